package chunk

import (
	"encoding/binary"
	"fmt"

	"everpage/redo"
	"everpage/wal/pg"
)

// Kinds of the values of small objects.
const (
	metaSet  = 1
	metaGone = 2
)

// Meta is a small object's value at an LSN and the LSN of that version; ok is false if it doesn't exist then. Small objects are answered from
// Progress.Start on, also before the branch is consistent: the writer takes up its work with them.
func (s *Store) Meta(branch uint32, kind redo.MetaKind, id [2]uint32, at pg.LSN) (value []byte, lsn pg.LSN, ok bool, err error) {
	if err := s.openMeta(branch, at); err != nil {
		return nil, 0, false, err
	}
	r, err := s.readerAt(s.branch(branch), at)
	if err != nil {
		return nil, 0, false, err
	}
	defer r.release()
	p := metaPrefix(branch, kind, id)
	v, ok, err := r.newest(&p, at)
	if err != nil || !ok || v.value[0] != metaSet {
		return nil, 0, false, err
	}
	return append([]byte{}, body(v.value)...), v.lsn, true, nil
}

func (s *Store) openMeta(branch uint32, at pg.LSN) error {
	p := s.branch(branch).current()
	switch {
	case p == nil:
		return fmt.Errorf("branch %d: %w", branch, ErrNoBranch)
	case at < p.Start:
		return fmt.Errorf("branch %d at %s: %w: the import starts at %s", branch, at, ErrBelowHorizon, p.Start)
	case !s.above(p, at):
		return s.belowHorizon(branch, p, at)
	case at > p.Readable:
		return fmt.Errorf("branch %d at %s: %w: the last LSN that is answered is %s", branch, at, ErrNotYet, p.Readable)
	}
	return nil
}

// MetaAll calls fn for every object of a kind that exists at an LSN, in order of ID, under the same terms as Meta. value is fn's only until it returns.
func (s *Store) MetaAll(branch uint32, kind redo.MetaKind, at pg.LSN, fn func(id [2]uint32, lsn pg.LSN, value []byte) error) error {
	if err := s.openMeta(branch, at); err != nil {
		return err
	}
	r, err := s.readerAt(s.branch(branch), at)
	if err != nil {
		return err
	}
	defer r.release()
	lo := makePrefix(classMeta, branch, uint32(kind), 0, 0, 0, 0)
	hi := makePrefix(classMeta, branch, uint32(kind)+1, 0, 0, 0, 0)
	return r.each(lo, hi, at, func(p *prefix, v version) error {
		if v.value[0] != metaSet {
			return nil
		}
		return fn([2]uint32{p.num(1), p.num(2)}, v.lsn, body(v.value))
	})
}

const (
	restoreKind = 1
	restoreBody = 16
)

// RestorePoints lists the restore points of that name in WAL order.
func (s *Store) RestorePoints(branch uint32, name string) ([]RestorePoint, error) {
	p, err := s.readable(branch)
	if err != nil {
		return nil, err
	}
	r, err := s.reader()
	if err != nil {
		return nil, err
	}
	defer r.release()
	var out []RestorePoint
	key := restorePrefix(branch, name)
	r.seek(&key, p)
	for {
		v, ok, err := r.next()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		b := body(v.value)
		if len(b) < restoreBody {
			return nil, r.corrupt(&key, v.lsn, errShape)
		}
		if string(b[restoreBody:]) == name {
			out = append(out, RestorePoint{
				Name: name, Time: pg.Timestamp(binary.LittleEndian.Uint64(b)),
				Start: pg.LSN(binary.LittleEndian.Uint64(b[8:])), End: v.lsn,
			})
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out, nil
}

// RestorePoint is a named restore point.
type RestorePoint struct {
	Name       string
	Time       pg.Timestamp
	Start, End pg.LSN // of the record
}
