package archive

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"everpage/backup/store"
	"everpage/wal"
	"everpage/wal/pg"
)

// Source reads a history's WAL out of the store, for a wal.Reader. The segment that comes next is read ahead. It is not safe for concurrent use. Close it.
type Source struct {
	ctx     context.Context
	cancel  context.CancelFunc
	store   store.Store
	inv     *Inventory
	history wal.History
	dir     string

	open  segment
	ahead chan segment // of the segment that is read ahead; nil if none is
	wg    sync.WaitGroup
}

type segment struct {
	key   key
	start pg.LSN
	file  *os.File // its WAL from start on
	err   error
}

func (g *segment) close() {
	if g.file != nil {
		g.file.Close()
		g.file = nil
	}
}

// NewSource reads along a history what an inventory found. Two segments at a time lie in files without a name in dir.
func NewSource(ctx context.Context, s store.Store, inv *Inventory, history wal.History, dir string) *Source {
	ctx, cancel := context.WithCancel(ctx)
	return &Source{ctx: ctx, cancel: cancel, store: s, inv: inv, history: history, dir: dir}
}

// Close ends what is read ahead.
func (s *Source) Close() {
	s.cancel()
	s.wg.Wait()
	s.open.close()
	if s.ahead != nil {
		g := <-s.ahead
		g.close()
	}
}

// ReadWAL implements wal.Source.
func (s *Source) ReadWAL(p []byte, at pg.LSN) (int, error) {
	tli, end := s.inv.best(s.history, at)
	if tli == 0 {
		return 0, &wal.EndError{LSN: at, Reason: fmt.Sprintf("the archive in %s has no WAL there", s.store)}
	}
	k := key{tli, s.inv.ID.SegmentSize.Number(at)}
	if s.open.file == nil || s.open.key != k {
		g, err := s.segment(k)
		if err != nil {
			return 0, err
		}
		s.open.close()
		s.open = g
		s.readAhead(end)
	}
	p = p[:min(uint64(len(p)), uint64(end-at))]
	return s.open.file.ReadAt(p, int64(at-s.open.start))
}

// segment takes what was read ahead, or reads now.
func (s *Source) segment(k key) (segment, error) {
	if s.ahead != nil {
		g := <-s.ahead
		s.ahead = nil
		if g.key == k && g.err == nil {
			return g, nil
		}
		g.close()
	}
	g := s.load(k)
	return g, g.err
}

func (s *Source) readAhead(at pg.LSN) {
	tli, _ := s.inv.best(s.history, at)
	k := key{tli, s.inv.ID.SegmentSize.Number(at)}
	if tli == 0 || k == s.open.key {
		return
	}
	c := make(chan segment, 1)
	s.ahead = c
	s.wg.Go(func() { c <- s.load(k) })
}

// load reads a segment from its start as far as the archive has it.
func (s *Source) load(k key) segment {
	g := segment{key: k, start: s.inv.ID.SegmentSize.Start(k.number)}
	if g.file, g.err = newScratch(s.dir); g.err != nil {
		return g
	}
	w := &joiner{file: g.file}
	for _, o := range s.inv.cover(k) {
		w.at = int64(o.from)
		g.err = read(s.ctx, w, s.store, s.inv.ID, o)
		if g.err == nil && w.differs {
			g.err = fmt.Errorf("%w: pieces of segment %s differ at %s", ErrDiverged, s.inv.ID.segmentName(k.timeline, k.number), g.start+pg.LSN(w.where))
		}
		if g.err != nil {
			g.close()
			return g
		}
	}
	return g
}

// joiner writes pieces into one file. They may overlap: whoever took over an archive uploads again what he isn't sure of. What is there already is compared.
type joiner struct {
	file    *os.File
	at, end int64
	differs bool
	where   int64
	buf     []byte
}

func (w *joiner) Write(p []byte) (int, error) {
	total := len(p)
	if n := min(w.end-w.at, int64(len(p))); n > 0 {
		w.buf = slices.Grow(w.buf[:0], int(n))[:n]
		if _, err := w.file.ReadAt(w.buf, w.at); err != nil {
			return 0, err
		}
		for i := range w.buf {
			if w.buf[i] != p[i] && !w.differs {
				w.differs, w.where = true, w.at+int64(i)
			}
		}
		p, w.at = p[n:], w.at+n
	}
	n, err := w.file.WriteAt(p, w.at)
	w.at += int64(n)
	w.end = max(w.end, w.at)
	if err != nil {
		return total - len(p) + n, err
	}
	return total, nil
}

func read(ctx context.Context, w io.Writer, s store.Store, id ID, o object) error {
	r, err := s.Get(ctx, o.name, 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	return decompress(w, id, o, r)
}

// ReadHistory reads a timeline's history out of the store. Timeline 1 needs none.
func ReadHistory(ctx context.Context, s store.Store, id ID, tli pg.TimelineID) (wal.History, error) {
	if tli == 1 {
		return wal.History{Timeline: 1}, nil
	}
	b, err := store.ReadAll(ctx, s, id.historyName(tli), 0, -1)
	if err != nil {
		return wal.History{}, err
	}
	return wal.ParseHistory(tli, b)
}
