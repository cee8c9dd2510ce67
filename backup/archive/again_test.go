package archive_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/wal"
	"everpage/wal/pg"
)

// TestServerAway: a primary that is gone can't be told how far the store is. What the spool has of it is archived all the same, now above all.
func TestServerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := someWAL(rand.New(rand.NewPCG(8, 1)), 3<<20)
		s, m := newSpool(b), store.NewMemory()
		opt := options(t, m, b)
		opt.Advance = func(context.Context, pg.LSN) error { return errors.New("the server is away") }
		run(t, opt, s, func(a *archive.Archiver) {
			s.grow(b.End())
			time.Sleep(2 * opt.Every)
			synctest.Wait()
			if st := a.Status(); st.End != b.End() || st.Err != nil {
				t.Errorf("%+v", st)
			}
		})
	})
}

// TestEveryGapHasItsTime: an archiver that leads for the second time is as patient with what is missing then as the first time.
func TestEveryGapHasItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(9, 1))
		b := someWAL(rnd, 3<<20)
		s, m := newSpool(b), store.NewMemory()
		opt := options(t, m, b)
		run(t, opt, s, func(*archive.Archiver) {
			s.grow(b.Base() + 3<<19)
			time.Sleep(2 * opt.Every)
			synctest.Wait()
		})
		other := newSpool(b)
		other.grow(b.End())
		away := 0
		opt.Elsewhere = func(context.Context, pg.LSN, pg.LSN) (wal.Source, func(), error) {
			if away > 0 {
				away--
				return nil, nil, errors.New("no node answers")
			}
			return other, func() {}, nil
		}
		a := archive.New(opt)
		lead := func() {
			t.Helper()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- a.Run(ctx, s) }()
			time.Sleep(time.Minute)
			synctest.Wait()
			if st := a.Status(); len(st.Gaps) != 0 || st.End != s.Durable() {
				t.Errorf("%+v", st)
			}
			cancel()
			<-done
		}
		away, s.first = 2, b.Base()+2<<20
		s.grow(b.End())
		lead()
		time.Sleep(time.Hour)
		addWAL(rnd, b, 3<<20)
		other.grow(b.End())
		away, s.first = 2, opt.ID.SegmentSize.Floor(b.End())
		s.grow(b.End())
		lead()
		readBack(t, m, opt, b, b.Base(), b.End())
	})
}

// TestGapIsFilledLater: what was given up for lost is archived when a node leads that has it still.
func TestGapIsFilledLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := someWAL(rand.New(rand.NewPCG(10, 1)), 6<<20)
		s, m := newSpool(b), store.NewMemory()
		opt := options(t, m, b)
		run(t, opt, s, func(*archive.Archiver) {
			s.grow(b.Base() + 3<<19)
			time.Sleep(2 * opt.Every)
			synctest.Wait()
		})
		late := newSpool(b)
		late.first = b.Base() + 4<<20
		late.grow(b.End())
		run(t, opt, late, func(a *archive.Archiver) {
			time.Sleep(2 * opt.Every)
			synctest.Wait()
			if st := a.Status(); len(st.Gaps) != 1 {
				t.Fatalf("no gap was made: %+v", st)
			}
		})
		s.grow(b.End())
		run(t, opt, s, func(a *archive.Archiver) {
			time.Sleep(2 * opt.Every)
			synctest.Wait()
			if st := a.Status(); len(st.Gaps) != 0 || st.Begin != b.Base() || st.End != b.End() || st.Err != nil {
				t.Errorf("%+v", st)
			}
		})
		readBack(t, m, opt, b, b.Base(), b.End())
	})
}

// TestHurry: what is durable is due at once, also where a segment became whole just then.
func TestHurry(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			b := someWAL(rand.New(rand.NewPCG(11, seed)), 3<<19)
			s := newSpool(b)
			opt := options(t, store.NewMemory(), b)
			run(t, opt, s, func(a *archive.Archiver) {
				s.grow(b.Base() + 1<<19)
				time.Sleep(2 * opt.Every)
				synctest.Wait()
				s.grow(b.End())
				a.Hurry()
				synctest.Wait()
				if st := a.Status(); st.End != b.End() {
					t.Errorf("archived up to %s, want %s", st.End, b.End())
				}
			})
		})
	}
}

// TestScrubWhileArchiving: pieces go while they are read, when their segment is whole.
func TestScrubWhileArchiving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := someWAL(rand.New(rand.NewPCG(12, 1)), 5<<20)
		s, m := newSpool(b), store.NewMemory()
		opt := options(t, m, b)
		var inv *archive.Inventory
		run(t, opt, s, func(*archive.Archiver) {
			for _, at := range []pg.LSN{3<<19 - 5000, 3<<19 + 5000, 3 << 20} {
				if at == 3<<20 {
					var err error
					if inv, err = archive.List(t.Context(), m, opt.ID); err != nil {
						t.Fatal(err)
					}
				}
				s.grow(b.Base() + at)
				time.Sleep(2 * opt.Every)
				synctest.Wait()
			}
		})
		if bad, err := inv.Scrub(t.Context(), m); err != nil || len(bad) != 0 {
			t.Errorf("pieces whose segment is whole now: %v, %v", bad, err)
		}
		// What is collected meanwhile is nobody's loss either.
		old, err := archive.Before(t.Context(), m, opt.ID, b.Base()+1<<20+1, time.Now().Add(time.Hour))
		if err != nil || len(old) != 1 {
			t.Fatalf("%v, %v", old, err)
		}
		if err := m.Delete(t.Context(), old[0].Name); err != nil {
			t.Fatal(err)
		}
		if bad, err := inv.Scrub(t.Context(), m); err != nil || len(bad) != 0 {
			t.Errorf("WAL that was collected: %v, %v", bad, err)
		}
		// A segment that is gone and was needed is.
		if inv, err = archive.List(t.Context(), m, opt.ID); err != nil {
			t.Fatal(err)
		}
		var last string
		if err := m.List(t.Context(), "", func(i store.Info) error {
			if strings.HasSuffix(i.Name, "00000003") {
				last = i.Name
			}
			return nil
		}); err != nil || last == "" {
			t.Fatalf("%q, %v", last, err)
		}
		if err := m.Delete(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		if bad, err := inv.Scrub(t.Context(), m); err != nil || len(bad) != 1 || bad[0].Name != last {
			t.Errorf("a lost segment: %v, %v", bad, err)
		}
	})
}
