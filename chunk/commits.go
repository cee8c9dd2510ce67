package chunk

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"everpage/redo"
	"everpage/wal/pg"
)

// The commit index has one object whose versions are all the commits and aborts of a branch, by LSN. Each bears the maximum of all commit times
// up to it: times are not monotonic in WAL order, but their running maximum is, so the first record beyond a time is found by bisection.

// Commit is one entry of the commit index: a transaction's end.
type Commit struct {
	redo.TransactionEnd
	Start, End pg.LSN // of the record
}

type commitEntry struct {
	Commit
	maxTime pg.Timestamp
}

const (
	commitKind   = 1
	commitBody   = 1 + 4 + 8 + 2 + 8 + 8
	minTimestamp = pg.Timestamp(math.MinInt64)
)

func (e *commitEntry) put(b []byte) {
	b[0] = 0
	if e.TransactionEnd.Commit {
		b[0] = 1
	}
	binary.LittleEndian.PutUint32(b[1:], e.XID)
	binary.LittleEndian.PutUint64(b[5:], uint64(e.Time))
	binary.LittleEndian.PutUint16(b[13:], e.Origin)
	binary.LittleEndian.PutUint64(b[15:], uint64(e.Start))
	binary.LittleEndian.PutUint64(b[23:], uint64(e.maxTime))
}

func getCommit(lsn pg.LSN, v []byte) (e commitEntry, err error) {
	b := body(v)
	if len(b) != commitBody {
		return e, errShape
	}
	return commitEntry{
		Commit: Commit{
			TransactionEnd: redo.TransactionEnd{
				Commit: b[0] == 1, XID: binary.LittleEndian.Uint32(b[1:]),
				Time: pg.Timestamp(binary.LittleEndian.Uint64(b[5:])), Origin: binary.LittleEndian.Uint16(b[13:]),
			},
			Start: pg.LSN(binary.LittleEndian.Uint64(b[15:])), End: lsn,
		},
		maxTime: pg.Timestamp(binary.LittleEndian.Uint64(b[23:])),
	}, nil
}

func restorePrefix(branch uint32, name string) prefix {
	h := sha256.Sum256([]byte(name))
	return makePrefix(classRestore, branch, binary.BigEndian.Uint32(h[0:]), binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:]), 0, 0)
}

// readable is the last LSN of a branch that the indexes answer for.
func (s *Store) readable(branch uint32) (pg.LSN, error) {
	p := s.branch(branch).current()
	if p == nil {
		return 0, fmt.Errorf("branch %d: %w", branch, ErrNoBranch)
	}
	return p.Readable, nil
}

// commitAt is the newest entry of the commit index at or below lsn.
func (r *reader) commitAt(branch uint32, lsn pg.LSN) (e commitEntry, ok bool, err error) {
	p := commitPrefix(branch)
	v, ok, err := r.newest(&p, lsn)
	if err != nil || !ok {
		return e, false, err
	}
	if e, err = getCommit(v.lsn, v.value); err != nil {
		return e, false, r.corrupt(&p, v.lsn, err)
	}
	return e, true, nil
}

// FirstCommitAfter is the first commit or abort in WAL order whose time is beyond t (at or beyond, if orEqual). Commit times are not monotonic.
func (s *Store) FirstCommitAfter(branch uint32, t pg.Timestamp, orEqual bool) (c Commit, ok bool, err error) {
	return s.firstCommit(branch, func(e *commitEntry) bool { return e.maxTime > t || orEqual && e.maxTime == t })
}

// firstCommit bisects for the first entry for which is holds, which holds for all after it.
func (s *Store) firstCommit(branch uint32, is func(e *commitEntry) bool) (c Commit, ok bool, err error) {
	hi, err := s.readable(branch)
	if err != nil {
		return c, false, err
	}
	r, err := s.reader()
	if err != nil {
		return c, false, err
	}
	defer r.release()
	// No entry at or below lo is one; found, if any, is one and nothing beyond it is of interest.
	lo := pg.LSN(0)
	for lo < hi {
		mid := lo + (hi-lo+1)/2
		e, any, err := r.commitAt(branch, mid)
		switch {
		case err != nil:
			return c, false, err
		case any && is(&e):
			c, ok = e.Commit, true
			hi = e.End - 1
		default:
			lo = mid
		}
	}
	return c, ok, nil
}

// CommitOfXID is the newest commit or abort of a transaction. Subtransactions are not in the index.
func (s *Store) CommitOfXID(branch uint32, xid pg.TransactionID) (c Commit, ok bool, err error) {
	hi, err := s.readable(branch)
	if err != nil {
		return c, false, err
	}
	r, err := s.reader()
	if err != nil {
		return c, false, err
	}
	defer r.release()
	p := xidPrefix(branch, xid)
	for r.seek(&p, hi); ; {
		v, ok, err := r.next()
		if err != nil || !ok {
			return c, false, err
		}
		e, err := getCommit(v.lsn, v.value)
		if err != nil {
			return c, false, r.corrupt(&p, v.lsn, err)
		}
		if e.XID == xid {
			return e.Commit, true, nil
		}
	}
}

// Commits calls fn with each commit and abort of a branch that ends beyond an LSN, the newest first.
func (s *Store) Commits(ctx context.Context, branch uint32, beyond pg.LSN, fn func(Commit) error) error {
	hi, err := s.readable(branch)
	if err != nil {
		return err
	}
	r, err := s.reader()
	if err != nil {
		return err
	}
	defer r.release()
	p := commitPrefix(branch)
	for r.seek(&p, hi); ; {
		v, ok, err := r.next()
		if err != nil || !ok || v.lsn <= beyond {
			return err
		}
		e, err := getCommit(v.lsn, v.value)
		if err != nil {
			return r.corrupt(&p, v.lsn, err)
		}
		if err := errors.Join(fn(e.Commit), ctx.Err()); err != nil {
			return err
		}
	}
}

// Neighbours are the last commit or abort that ends at or before lsn and the first one that ends after it; nil where there is none.
func (s *Store) Neighbours(branch uint32, lsn pg.LSN) (before, after *Commit, err error) {
	hi, err := s.readable(branch)
	if err != nil {
		return nil, nil, err
	}
	r, err := s.reader()
	if err != nil {
		return nil, nil, err
	}
	e, ok, err := r.commitAt(branch, min(lsn, hi))
	r.release()
	if err != nil {
		return nil, nil, err
	}
	if ok {
		before = &e.Commit
	}
	c, ok, err := s.firstCommit(branch, func(e *commitEntry) bool { return e.End > lsn })
	if err != nil {
		return nil, nil, err
	}
	if ok {
		after = &c
	}
	return before, after, nil
}
