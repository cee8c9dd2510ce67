package archive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

// spool is WAL that becomes durable as the test says.
type spool struct {
	b  *waltest.Builder
	mu sync.Mutex

	first, durable pg.LSN
	grown          chan struct{}
}

func newSpool(b *waltest.Builder) *spool {
	return &spool{b: b, first: b.Base(), grown: make(chan struct{})}
}

func (s *spool) grow(to pg.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.durable = to
	close(s.grown)
	s.grown = make(chan struct{})
}

func (s *spool) First() pg.LSN { return s.first }

func (s *spool) Durable() pg.LSN {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable
}

func (s *spool) WaitDurable(ctx context.Context, at pg.LSN) error {
	for {
		s.mu.Lock()
		durable, grown := s.durable, s.grown
		s.mu.Unlock()
		if durable > at {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-grown:
		}
	}
}

func (s *spool) DurableWAL() wal.Source { return s }

func (s *spool) ReadWAL(p []byte, at pg.LSN) (int, error) {
	if at >= s.Durable() {
		return 0, wal.ErrMore
	}
	return copy(p, s.b.Bytes()[at-s.b.Base():s.Durable()-s.b.Base()]), nil
}

// someWAL is records of random sizes and contents over about size bytes.
func someWAL(rnd *rand.Rand, size int) *waltest.Builder {
	b := waltest.New(waltest.Options{})
	addWAL(rnd, b, size)
	return b
}

func addWAL(rnd *rand.Rand, b *waltest.Builder, size int) {
	for end := len(b.Bytes()) + size; len(b.Bytes()) < end; {
		main := make([]byte, 300+rnd.IntN(50_000))
		for i := range main {
			main[i] = byte(rnd.IntN(16))
		}
		b.AddRecord(wal.RmXLOG, 0x20, 0, nil, main)
	}
}

func options(t *testing.T, s store.Store, b *waltest.Builder) archive.Options {
	return archive.Options{
		Store: s, ID: archive.ID{SystemID: b.Options().SystemID, SegmentSize: b.Options().SegmentSize}, History: wal.History{Timeline: 1}, Every: 10 * time.Second, Dir: t.TempDir(),
	}
}

// run archives while fn runs.
func run(t *testing.T, opt archive.Options, s *spool, fn func(a *archive.Archiver)) error {
	t.Helper()
	a := archive.New(opt)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx, s) }()
	fn(a)
	cancel()
	return <-done
}

// readBack reads a history out of the store and holds it against what was written.
func readBack(t *testing.T, s store.Store, opt archive.Options, b *waltest.Builder, from, to pg.LSN) {
	t.Helper()
	inv, err := archive.List(t.Context(), s, opt.ID)
	if err != nil {
		t.Fatal(err)
	}
	if end := inv.End(opt.History, from); end != to {
		t.Fatalf("the archive ends at %s, want %s; gaps %v", end, to, inv.Gaps(opt.History.Timeline, from))
	}
	src := archive.NewSource(t.Context(), s, inv, opt.History, opt.Dir)
	defer src.Close()
	got := make([]byte, to-from)
	for n := 0; n < len(got); {
		m, err := src.ReadWAL(got[n:min(n+100_000, len(got))], from+pg.LSN(n))
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	if !bytes.Equal(got, b.Bytes()[from-b.Base():to-b.Base()]) {
		t.Error("the archive's WAL differs from what was written")
	}
	if _, err := src.ReadWAL(got, to); !wal.IsEnd(err) {
		t.Errorf("behind the end: %v", err)
	}
	r, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: opt.ID.SegmentSize, SystemID: opt.ID.SystemID, History: &opt.History})
	if err != nil {
		t.Fatal(err)
	}
	r.Seek(b.Base())
	var last pg.LSN
	for {
		rec, err := r.Next()
		if wal.IsEnd(err) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		last = rec.End
	}
	if last != to {
		t.Errorf("records end at %s, want %s", last, to)
	}
}

func TestArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(1, 1))
		b := someWAL(rnd, 700_000)
		first := b.End()
		addWAL(rnd, b, 4<<20)
		s, m := newSpool(b), store.NewMemory()
		opt := options(t, m, b)
		var ends []pg.LSN
		opt.Advance = func(_ context.Context, end pg.LSN) error {
			ends = append(ends, end)
			return nil
		}
		run(t, opt, s, func(a *archive.Archiver) {
			s.grow(first)
			synctest.Wait()
			if st := a.Status(); st.End != b.Base() || st.Lag() != uint64(first-b.Base()) {
				t.Errorf("before its time: %+v", st)
			}
			time.Sleep(opt.Every)
			synctest.Wait()
			if st := a.Status(); st.End != first || st.Pieces != 1 || st.Lag() != 0 {
				t.Errorf("after its time: %+v", st)
			}
			readBack(t, m, opt, b, b.Base(), first)
			s.grow(b.End())
			synctest.Wait()
			if st := a.Status(); st.End != b.Base()+4<<20 || st.Segments != 4 || st.Pieces != 1 || st.Gaps != nil {
				t.Errorf("whole segments go at once: %+v", st)
			}
			time.Sleep(opt.Every)
			synctest.Wait()
			readBack(t, m, opt, b, b.Base(), b.End())
		})
		for i := range ends {
			if i > 0 && ends[i] <= ends[i-1] {
				t.Errorf("the end goes back: %v", ends)
			}
		}
		inv, err := archive.List(t.Context(), m, opt.ID)
		if err != nil || inv.Objects != 5 || len(inv.Strange) != 0 {
			t.Errorf("%d objects, want 4 segments and a piece; strange %v, %v", inv.Objects, inv.Strange, err)
		}
		// Another archiver goes on where the first one ended, also one whose spool begins later.
		s.first = b.Base() + 3<<20
		addWAL(rnd, b, 2<<20)
		run(t, opt, s, func(a *archive.Archiver) {
			s.grow(b.End())
			time.Sleep(2 * opt.Every)
			synctest.Wait()
			if st := a.Status(); st.Segments != 2 || st.Begin != b.Base() || st.End != b.End() {
				t.Errorf("the second archiver: %+v", st)
			}
		})
		readBack(t, m, opt, b, b.Base(), b.End())
	})
}

func TestGapIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := someWAL(rand.New(rand.NewPCG(2, 1)), 6<<20)
		s, m := newSpool(b), store.NewMemory()
		opt := options(t, m, b)
		run(t, opt, s, func(*archive.Archiver) {
			s.grow(b.Base() + 3<<19)
			time.Sleep(2 * opt.Every)
			synctest.Wait()
		})
		s.first = b.Base() + 3<<20
		s.grow(b.End())
		want := archive.Gap{Timeline: 1, Begin: b.Base() + 3<<19, End: b.Base() + 3<<20}
		for range 2 { // the next archiver finds it too
			run(t, opt, s, func(a *archive.Archiver) {
				time.Sleep(2 * opt.Every)
				synctest.Wait()
				if st := a.Status(); len(st.Gaps) != 1 || st.Gaps[0] != want || st.Begin != s.first || st.End != b.End() {
					t.Errorf("%+v", st)
				}
			})
		}
		inv, err := archive.List(t.Context(), m, opt.ID)
		if err != nil {
			t.Fatal(err)
		}
		if end := inv.End(opt.History, b.Base()); end != want.Begin {
			t.Errorf("the archive is read up to %s, beyond the gap %s", end, want)
		}
	})
}

// TestOthersFillGaps: who archives now never had some WAL that the store lacks. Others have it, though not at once.
func TestOthersFillGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := someWAL(rand.New(rand.NewPCG(7, 1)), 6<<20)
		s, m := newSpool(b), store.NewMemory()
		opt := options(t, m, b)
		run(t, opt, s, func(*archive.Archiver) {
			s.grow(b.Base() + 3<<19)
			time.Sleep(2 * opt.Every)
			synctest.Wait()
		})
		s.first = b.Base() + 3<<20
		s.grow(b.End())
		other := newSpool(b)
		other.grow(b.End())
		asked, ended := 0, 0
		opt.Elsewhere = func(_ context.Context, from, to pg.LSN) (wal.Source, func(), error) {
			if asked++; asked < 5 {
				return nil, nil, errors.New("no node answers")
			}
			if from != b.Base()+3<<19 || to != s.first {
				t.Errorf("asked for WAL from %s to %s", from, to)
			}
			return other, func() { ended++ }, nil
		}
		run(t, opt, s, func(a *archive.Archiver) {
			time.Sleep(time.Second)
			if st := a.Status(); st.Err == nil || st.End != 0 {
				t.Errorf("while no node answers: %+v", st)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if st := a.Status(); len(st.Gaps) != 0 || st.End != b.End() || st.Err != nil {
				t.Errorf("%+v", st)
			}
		})
		if ended != 1 {
			t.Errorf("%d sources were closed", ended)
		}
		readBack(t, m, opt, b, b.Base(), b.End())

		// Nobody has it for long: archiving goes on behind the gap.
		m = store.NewMemory()
		opt.Store = m
		s = newSpool(b)
		run(t, opt, s, func(*archive.Archiver) {
			s.grow(b.Base() + 3<<19)
			time.Sleep(2 * opt.Every)
			synctest.Wait()
		})
		s.first = b.Base() + 3<<20
		s.grow(b.End())
		opt.Elsewhere = func(context.Context, pg.LSN, pg.LSN) (wal.Source, func(), error) {
			return nil, nil, errors.New("no node answers")
		}
		run(t, opt, s, func(a *archive.Archiver) {
			time.Sleep(time.Hour)
			synctest.Wait()
			if st := a.Status(); len(st.Gaps) != 1 || st.End != b.End() {
				t.Errorf("%+v", st)
			}
		})
	})
}

func TestTimelines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(3, 1))
		old := someWAL(rnd, 3<<19)
		m := store.NewMemory()
		opt := options(t, m, old)
		s := newSpool(old)
		at := old.End()
		// The new timeline's first segment begins with a copy of the old one's.
		next := someWAL(rand.New(rand.NewPCG(3, 1)), 3<<19)
		next.Promote(2)
		addWAL(rnd, old, 1<<20) // the old primary wrote on
		addWAL(rnd, next, 2<<20)
		run(t, opt, s, func(*archive.Archiver) {
			s.grow(old.End())
			time.Sleep(2 * opt.Every)
			synctest.Wait()
		})
		second := newSpool(next)
		second.first = next.Base() + 1<<20
		newer := opt
		newer.History = wal.History{Timeline: 2, Parents: []wal.HistoryEntry{{Timeline: 1, Switch: at, Reason: "no recovery target specified"}}}
		run(t, newer, second, func(*archive.Archiver) {
			second.grow(next.End())
			time.Sleep(2 * opt.Every)
			synctest.Wait()
		})
		readBack(t, m, newer, next, next.Base(), next.End())
		readBack(t, m, opt, old, old.Base(), old.End())
		h, err := archive.ReadHistory(t.Context(), m, opt.ID, 2)
		if err != nil || len(h.Parents) != 1 || h.Parents[0].Switch != at {
			t.Errorf("%+v, %v", h, err)
		}
		// A second server that was promoted to the same number is refused.
		newer.History.Parents[0].Switch--
		if err := run(t, newer, second, func(*archive.Archiver) { synctest.Wait() }); !errors.Is(err, archive.ErrDiverged) {
			t.Errorf("another timeline 2: %v", err)
		}
	})
}

func TestDivergedIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := store.NewMemory()
		for seed, want := range []error{context.Canceled, archive.ErrDiverged} {
			b := someWAL(rand.New(rand.NewPCG(uint64(seed), 1)), 1<<20)
			s := newSpool(b)
			opt := options(t, m, b)
			if seed == 1 {
				// It begins as the other one ends, so that it must write the same name.
				opt.Store = &hidden{Memory: m}
			}
			s.grow(b.End())
			if err := run(t, opt, s, func(*archive.Archiver) { time.Sleep(time.Minute) }); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
	})
}

// hidden is a store whose listings are late.
type hidden struct{ *store.Memory }

func (h *hidden) List(context.Context, string, func(store.Info) error) error { return nil }

// TestFaultAtEveryCall lets each call fail in each way. Nothing may be lost, told to be there that isn't, or read wrongly.
func TestFaultAtEveryCall(t *testing.T) {
	faults := map[string]store.Fault{
		"refused": {Err: &store.Error{Kind: store.ErrThrottled, Err: store.ErrInjected}}, "denied": {Err: &store.Error{Kind: store.ErrAuth, Err: store.ErrInjected}},
		"answer lost": {After: store.ErrInjected}, "slow": {Delay: time.Hour}, "cut": {Truncate: true},
	}
	for name, fault := range faults {
		for at, more := 0, true; more; at++ {
			more = false
			t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(name, " ", "_"), at), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { more = faultAt(t, fault, at) })
			})
		}
	}
}

func faultAt(t *testing.T, fault store.Fault, at int) (reached bool) {
	rnd := rand.New(rand.NewPCG(4, 1))
	b := someWAL(rnd, 300_000)
	ends := []pg.LSN{b.End()}
	for range 4 {
		addWAL(rnd, b, 500_000)
		ends = append(ends, b.End())
	}
	var mu sync.Mutex
	calls, m := 0, store.NewMemory()
	s, opt := newSpool(b), options(t, nil, b)
	opt.Store = &store.Faulty{Store: m, Decide: func(string, string) store.Fault {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if calls-1 == at {
			reached = true
			return fault
		}
		return store.Fault{}
	}}
	promised := b.Base()
	opt.Advance = func(ctx context.Context, end pg.LSN) error {
		// What the server may forget must be there, now.
		inv, err := archive.List(ctx, m, opt.ID)
		if err != nil || inv.End(opt.History, b.Base()) < end || end < promised {
			t.Errorf("%s was promised after %s, the store has WAL up to %s, %v", end, promised, inv.End(opt.History, b.Base()), err)
		}
		promised = end
		return nil
	}
	for i, end := range ends {
		// A new archiver each time, as after a restart: its calls may fail too.
		run(t, opt, s, func(a *archive.Archiver) {
			s.grow(end)
			time.Sleep(3 * time.Hour)
			synctest.Wait()
			if st := a.Status(); st.End != end || st.Err != nil {
				t.Fatalf("step %d: %+v", i, st)
			}
		})
	}
	readBack(t, m, opt, b, b.Base(), b.End())
	return reached
}

func TestCorruptObjectsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := someWAL(rand.New(rand.NewPCG(5, 1)), 3<<19)
		s, m := newSpool(b), store.NewMemory()
		opt := options(t, m, b)
		run(t, opt, s, func(*archive.Archiver) {
			s.grow(b.End())
			time.Sleep(2 * opt.Every)
			synctest.Wait()
		})
		inv, err := archive.List(t.Context(), m, opt.ID)
		if err != nil {
			t.Fatal(err)
		}
		if bad, err := inv.Scrub(t.Context(), m); err != nil || len(bad) != 0 {
			t.Errorf("scrub of what is whole: %v, %v", bad, err)
		}
		rnd := rand.New(rand.NewPCG(5, 2))
		err = m.List(t.Context(), "", func(i store.Info) error {
			for range 20 {
				at := rnd.Int64N(i.Size)
				m.Flip(i.Name, at)
				bad, err := inv.Scrub(t.Context(), m)
				if err != nil || len(bad) != 1 || bad[0].Name != i.Name || !errors.Is(bad[0].Err, store.ErrCorrupt) {
					t.Errorf("%s with a flipped bit in byte %d: %v, %v", i.Name, at, bad, err)
				}
				m.Flip(i.Name, at)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
