package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"everpage/backup/store"
	"everpage/wal"
	"everpage/wal/pg"
)

// Spool is where an Archiver takes WAL from: only what is durable there.
type Spool interface {
	First() pg.LSN
	Durable() pg.LSN
	DurableWAL() wal.Source
	WaitDurable(ctx context.Context, at pg.LSN) error
}

// Options describe an Archiver. All but Log and Advance must be given.
type Options struct {
	Store   store.Store
	ID      ID
	History wal.History   // of the timeline that is archived
	Every   time.Duration // how long the newest WAL may be missing in the store
	Dir     string        // for what is being compressed
	Log     *slog.Logger
	// Advance is told where the store's gap-free WAL ends, whenever that moves. An error is shown and the call repeated with the next move.
	Advance func(ctx context.Context, end pg.LSN) error
	// Elsewhere reads WAL, from one LSN to another and in order, that is missing in the store and that this spool no longer has or never had. done ends it.
	// ErrNowhere says that nobody can have it.
	Elsewhere func(ctx context.Context, from, to pg.LSN) (src wal.Source, done func(), err error)
}

// ErrNowhere says that WAL which is missing is lost.
var ErrNowhere = errors.New("no other node could have the WAL")

// gapPatience is how long others are asked for WAL until it is given up for lost and archiving goes on behind it.
const gapPatience = 10 * time.Minute

// Status is how archiving goes.
type Status struct {
	Begin, End pg.LSN // of the gap-free WAL in the store that reaches the newest; 0: not known yet
	Durable    pg.LSN // of the spool
	Gaps       []Gap  // what is missing before Begin
	Segments   uint64 // uploaded since the start
	Pieces     uint64
	Bytes      uint64 // of WAL
	Uploaded   uint64 // after compression
	Err        error  // why nothing is uploaded now
	Moved      time.Time
}

// Lag is how many bytes of durable WAL the store does not have.
func (s Status) Lag() uint64 {
	if s.Durable < s.End {
		return 0
	}
	return uint64(s.Durable - s.End)
}

// Archiver uploads one timeline's WAL out of a spool. Any number of them, on any nodes, may archive the same WAL: they write the same objects.
type Archiver struct {
	opt   Options
	mu    sync.Mutex
	st    Status
	spool Spool     // while Run runs
	since time.Time // of WAL being looked for elsewhere
	// pieces of the segment where End lies, to be deleted once it is whole
	pieces []string
	hurry  chan struct{}
}

// New makes an Archiver.
func New(opt Options) *Archiver {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Advance == nil {
		opt.Advance = func(context.Context, pg.LSN) error { return nil }
	}
	if opt.Elsewhere == nil {
		opt.Elsewhere = func(context.Context, pg.LSN, pg.LSN) (wal.Source, func(), error) { return nil, nil, ErrNowhere }
	}
	return &Archiver{opt: opt, hurry: make(chan struct{}, 1)}
}

// Hurry makes what is durable now due at once.
func (a *Archiver) Hurry() {
	select {
	case a.hurry <- struct{}{}:
	default:
	}
}

// Status is how archiving goes now.
func (a *Archiver) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.spool != nil {
		a.st.Durable = a.spool.Durable() // the lag must be true above all while nothing can be uploaded
	}
	return a.st
}

func (a *Archiver) use(spool Spool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spool = spool
}

func (a *Archiver) update(fn func(s *Status)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fn(&a.st)
}

const (
	minRetry = 200 * time.Millisecond
	maxRetry = 15 * time.Second
)

// Run archives until ctx ends, the spool fails or the store proves to hold another history (ErrDiverged). All else is tried again for as long as it takes.
func (a *Archiver) Run(ctx context.Context, spool Spool) error {
	a.use(spool)
	defer a.use(nil)
	a.since = time.Time{}
	if err := a.persist(ctx, func() error { return a.begin(ctx, spool) }); err != nil {
		return err
	}
	for {
		end := a.Status().End
		if err := spool.WaitDurable(ctx, end); err != nil {
			return err
		}
		due, err := a.gather(ctx, spool, end)
		if err != nil {
			return err
		}
		if err := a.persist(ctx, func() error { return a.upload(ctx, spool, due) }); err != nil {
			return err
		}
	}
}

// persist repeats fn until it succeeds or can't.
func (a *Archiver) persist(ctx context.Context, fn func() error) error {
	for wait := minRetry; ; wait = min(2*wait, maxRetry) {
		err := fn()
		a.update(func(s *Status) { s.Err = err })
		var lost *wal.TrimmedError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrDiverged), errors.Is(err, wal.ErrSpoolClosed), errors.As(err, &lost):
			return err
		}
		a.opt.Log.Warn("WAL is not archived", "error", err, "retry_in", wait)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// begin finds out what the store has already.
func (a *Archiver) begin(ctx context.Context, spool Spool) error {
	id, tli := a.opt.ID, a.opt.History.Timeline
	if len(a.opt.History.Parents) > 0 {
		text := a.opt.History.Format()
		err := a.opt.Store.Put(ctx, id.historyName(tli), store.Bytes(text))
		if errors.Is(err, store.ErrExists) {
			var there []byte
			if there, err = store.ReadAll(ctx, a.opt.Store, id.historyName(tli), 0, -1); err == nil && !bytes.Equal(there, text) {
				err = fmt.Errorf("%w: history of timeline %d", ErrDiverged, tli)
			}
		}
		if err != nil {
			return err
		}
	}
	if spool.Durable() == 0 {
		// Nothing was received yet: where it begins is not known.
		if err := spool.WaitDurable(ctx, 0); err != nil {
			return err
		}
	}
	inv, err := list(ctx, a.opt.Store, id, id.timelineDir(tli))
	if err != nil {
		return err
	}
	first := spool.First()
	begin, ok := inv.First(tli)
	if !ok {
		begin = first
	}
	filled, err := a.fill(ctx, spool, inv.Gaps(tli, begin))
	if err != nil {
		return err
	}
	if filled {
		if inv, err = list(ctx, a.opt.Store, id, id.timelineDir(tli)); err != nil {
			return err
		}
	}
	// The newest run of WAL without gaps is gone on with. What lies between it and the spool's start can't be had from this spool.
	gaps := inv.Gaps(tli, begin)
	run := begin
	if len(gaps) > 0 {
		run = gaps[len(gaps)-1].End
	}
	end := inv.end(tli, run)
	if end < first && end > begin {
		switch err := a.bridge(ctx, end, first); {
		case err == nil:
			end = first
		case !errors.Is(err, ErrNowhere) && time.Since(a.since) < gapPatience:
			return fmt.Errorf("the store lacks WAL from %s to %s, which this node has not: %w", end, first, err)
		}
	}
	if end < first {
		if end > begin {
			gaps = append(gaps, Gap{tli, end, first})
			a.opt.Log.Error("WAL is missing in the store and here", "gap", gaps[len(gaps)-1].String())
		}
		run, end = first, first
	}
	a.pieces = nil
	for _, o := range inv.segments[key{tli, id.SegmentSize.Number(end)}] {
		a.pieces = append(a.pieces, o.name)
	}
	a.update(func(s *Status) {
		s.Begin, s.Durable, s.Gaps = run, spool.Durable(), gaps
	})
	return a.moved(ctx, end)
}

// fill uploads what is missing between the WAL in the store and is in this spool: whoever gave it up for lost had not.
func (a *Archiver) fill(ctx context.Context, spool Spool, gaps []Gap) (filled bool, err error) {
	for _, g := range gaps {
		from, to := max(g.Begin, spool.First()), min(g.End, spool.Durable())
		if from >= to {
			continue
		}
		a.opt.Log.Info("WAL that is missing in the store is here", "gap", g.String())
		if err := a.copy(ctx, spool.DurableWAL(), from, to); err != nil {
			return filled, err
		}
		filled = true
	}
	return filled, nil
}

// bridge uploads WAL that others have: whoever leads now may have joined when the store was away.
func (a *Archiver) bridge(ctx context.Context, from, to pg.LSN) error {
	if a.since.IsZero() {
		a.since = time.Now()
	}
	src, done, err := a.opt.Elsewhere(ctx, from, to)
	if err != nil {
		return err
	}
	defer done()
	return a.copy(ctx, src, from, to)
}

// copy uploads WAL of any number of segments.
func (a *Archiver) copy(ctx context.Context, src wal.Source, from, to pg.LSN) error {
	size := a.opt.ID.SegmentSize
	for at := from; at < to; {
		stop := min(size.Start(size.Number(at)+1), to)
		if err := a.put(ctx, src, at, stop); err != nil {
			return err
		}
		at = stop
	}
	return nil
}

// gather waits until a segment is whole or the newest WAL is due, and tells whether it is.
func (a *Archiver) gather(ctx context.Context, spool Spool, end pg.LSN) (bool, error) {
	a.update(func(s *Status) { s.Durable = spool.Durable() })
	size := a.opt.ID.SegmentSize
	boundary := size.Start(size.Number(end) + 1)
	due, cancel := context.WithTimeout(ctx, a.opt.Every-time.Since(a.Status().Moved))
	hurried := false
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-a.hurry:
			hurried = true
			cancel()
		case <-due.Done():
		}
	}()
	var err error
	for err == nil && due.Err() == nil && spool.Durable() < boundary {
		err = spool.WaitDurable(due, max(spool.Durable(), end))
	}
	late := due.Err() != nil
	cancel()
	<-watching
	switch {
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case late || hurried: // also where a segment became whole just then: nobody hurries again
		return true, nil
	}
	return false, err
}

// upload brings the store up to what is durable now: whole segments, and the newest WAL behind them where it is due.
func (a *Archiver) upload(ctx context.Context, spool Spool, due bool) error {
	size, tli := a.opt.ID.SegmentSize, a.opt.History.Timeline
	durable := spool.Durable()
	a.update(func(s *Status) { s.Durable = durable })
	for {
		end := a.Status().End
		if end >= durable {
			return nil
		}
		start := size.Floor(end)
		stop := start + pg.LSN(size)
		if durable >= stop {
			if err := a.put(ctx, spool.DurableWAL(), start, stop); err != nil {
				return err
			}
			// Readers take the whole segment where it is there, so that its pieces are of no use any more. One that stays is only an orphan.
			for _, name := range a.pieces {
				if name != a.opt.ID.segmentName(tli, size.Number(start)) {
					_ = a.opt.Store.Delete(ctx, name)
				}
			}
			a.pieces = nil
			if err := a.moved(ctx, stop); err != nil {
				return err
			}
			continue
		}
		if !due {
			return nil
		}
		if err := a.put(ctx, spool.DurableWAL(), end, durable); err != nil {
			return err
		}
		return a.moved(ctx, durable)
	}
}

func (a *Archiver) moved(ctx context.Context, end pg.LSN) error {
	a.update(func(s *Status) { s.End, s.Moved = end, time.Now() })
	if err := a.opt.Advance(ctx, end); err != nil {
		a.opt.Log.Warn("the store has the WAL, but the server still keeps it", "to", end, "error", err)
	}
	return nil
}

// put uploads the WAL of one segment between two LSNs: all of it, or a piece.
func (a *Archiver) put(ctx context.Context, src wal.Source, from, to pg.LSN) error {
	id, tli := a.opt.ID, a.opt.History.Timeline
	number := id.SegmentSize.Number(from)
	f, err := newScratch(a.opt.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	size, h, err := compress(f, id, tli, src, from, to)
	if err != nil {
		return err
	}
	whole := to-from == pg.LSN(id.SegmentSize)
	name := id.segmentName(tli, number)
	if !whole {
		name = id.pieceName(tli, number, id.SegmentSize.Offset(from), id.SegmentSize.Offset(from)+uint32(to-from), h.crc)
	}
	err = a.opt.Store.Put(ctx, name, fileBody{f, size})
	if errors.Is(err, store.ErrExists) {
		err = a.same(ctx, name, h)
	}
	if err != nil {
		return err
	}
	if !whole {
		a.pieces = append(a.pieces, name)
	}
	a.update(func(s *Status) {
		if whole {
			s.Segments++
		} else {
			s.Pieces++
		}
		s.Bytes += uint64(to - from)
		s.Uploaded += uint64(size)
	})
	return nil
}

// same holds an object that is there already against what we would have written: an attempt whose answer was lost, or another node's.
func (a *Archiver) same(ctx context.Context, name string, want head) error {
	first, err := store.ReadAll(ctx, a.opt.Store, name, 0, headSize)
	if err != nil {
		return err
	}
	h, err := decodeHead(name, first)
	if err != nil {
		return err
	}
	if h != want {
		return fmt.Errorf("%w: %s; give this cluster another --store", ErrDiverged, name)
	}
	return nil
}
