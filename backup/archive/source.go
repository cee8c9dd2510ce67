package archive

import (
	"context"
	"fmt"
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

	open  segment
	ahead chan segment // of the segment that is read ahead; nil if none is
	wg    sync.WaitGroup
}

type segment struct {
	key   key
	start pg.LSN
	data  []byte
	err   error
}

// NewSource reads along a history what an inventory found.
func NewSource(ctx context.Context, s store.Store, inv *Inventory, history wal.History) *Source {
	ctx, cancel := context.WithCancel(ctx)
	return &Source{ctx: ctx, cancel: cancel, store: s, inv: inv, history: history}
}

// Close ends what is read ahead.
func (s *Source) Close() {
	s.cancel()
	s.wg.Wait()
}

// ReadWAL implements wal.Source.
func (s *Source) ReadWAL(p []byte, at pg.LSN) (int, error) {
	tli, end := s.inv.best(s.history, at)
	if tli == 0 {
		return 0, &wal.EndError{LSN: at, Reason: fmt.Sprintf("the archive in %s has no WAL there", s.store)}
	}
	k := key{tli, s.inv.ID.SegmentSize.Number(at)}
	if s.open.data == nil || s.open.key != k {
		g, err := s.segment(k)
		if err != nil {
			return 0, err
		}
		s.open = g
		s.readAhead(end)
	}
	b := s.open.data[at-s.open.start:]
	return copy(p, b[:min(uint64(len(b)), uint64(end-at))]), nil
}

// segment takes what was read ahead, or reads now.
func (s *Source) segment(k key) (segment, error) {
	if s.ahead != nil {
		g := <-s.ahead
		s.ahead = nil
		if g.key == k && g.err == nil {
			return g, nil
		}
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
	for _, o := range s.inv.cover(k) {
		b, err := read(s.ctx, s.store, s.inv.ID, o)
		if err != nil {
			g.err = err
			return g
		}
		// Pieces may overlap: whoever took over an archive uploads again what he isn't sure of.
		skip := len(g.data) - int(o.from)
		for i := range skip {
			if b[i] != g.data[int(o.from)+i] {
				g.err = fmt.Errorf("%w: pieces of segment %s differ at %s", ErrDiverged, s.inv.ID.segmentName(k.timeline, k.number), o.begin(s.inv.ID.SegmentSize)+pg.LSN(i))
				return g
			}
		}
		g.data = append(g.data, b[skip:]...)
	}
	return g
}

func read(ctx context.Context, s store.Store, id ID, o object) ([]byte, error) {
	r, err := s.Get(ctx, o.name, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return decompress(id, o, r)
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
