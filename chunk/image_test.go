package chunk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

// brokenRedo can't redo anything, and counts how often it was asked.
type brokenRedo struct{ asked *atomic.Int64 }

func (r brokenRedo) Redo(pg.Page, pg.PageKey, pg.LSN, bool, []byte) (bool, error) {
	r.asked.Add(1)
	return false, errors.New("a delta of nobody's")
}

// A page that can't be made costs a table no more than any other page: it is not tried with each of its deltas.
func TestImagesOfAPageThatCannotBeMade(t *testing.T) {
	var asked atomic.Int64
	opt := testOptions(vfs.NewMem())
	opt.Redoer, opt.RunBytes = brokenRedo{&asked}, 8<<20
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w, err := s.Writer(testBranch)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	key := pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}}}
	page := make(pg.Page, pg.BlockSize)
	page.Init(0)
	if err := w.Image(key, 0x1000, Origin{}, page); err != nil {
		t.Fatal(err)
	}
	const deltas = 1000
	lsn := pg.LSN(0x1000)
	for range deltas {
		lsn += 64
		if err := w.Delta(key, lsn, Origin{}, BaseRequired, []byte("delta")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(Progress{Start: 0x1000, Consistent: 0x1000, Readable: lsn, Resume: lsn}); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if most := int64(deltas / opt.MaxChain); asked.Load() > most || asked.Load() == 0 {
		t.Fatalf("redo was asked %d times for %d deltas, want 1 to %d", asked.Load(), deltas, most)
	}
}

// Versions of a page that lie beyond a truncation are none of the page's that comes after it, also within one run.
func TestImagesBehindATruncation(t *testing.T) {
	opt := testOptions(vfs.NewMem())
	opt.RunBytes = 8 << 20
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w, err := s.Writer(testBranch)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	key := pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}}}
	other := key
	other.Block = 1
	page := make(pg.Page, pg.BlockSize)
	page.Init(0)
	lsn := pg.LSN(0x1000)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		lsn += 64
	}
	deltas := func() {
		t.Helper()
		for range 3 * (opt.MaxChain + 1) {
			do(w.Delta(key, lsn, Origin{}, BaseRequired, fmt.Appendf(nil, "delta at %s", lsn)))
		}
	}
	do(w.Image(key, lsn, Origin{}, page))
	deltas()
	before := lsn - 64
	do(w.Truncate(key.RelFork, lsn, 0))
	do(w.Image(other, lsn, Origin{}, page)) // the fork has two blocks again, of which the first is new
	deltas()
	if err := w.Commit(Progress{Start: 0x1000, Consistent: 0x1000, Readable: lsn, Resume: lsn}); err != nil {
		t.Fatal(err)
	}
	was := make(pg.Page, pg.BlockSize)
	if err := s.Page(t.Context(), testBranch, key, before, was); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"from memory", "from tables"} {
		var damage *DamagedError
		if err := s.Page(t.Context(), testBranch, key, lsn, page); !errors.As(err, &damage) {
			t.Fatalf("%s: a page that WAL changes though it is new: %v, want *DamagedError", when, err)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	s.cache = newPageCache(0)
	if err := s.Page(t.Context(), testBranch, key, before, page); err != nil || string(page) != string(was) {
		t.Fatalf("the page before the truncation is another one from tables than from memory (%v)", err)
	}
	if st := s.Stats(); st.Images != 3 {
		t.Fatalf("%d images were added, want 3: of the page before the truncation", st.Images)
	}
}

// An image that goes on from the one before is the page that a read makes of all versions, whatever happened to the page, its fork and its database in between.
func TestImagesGoOn(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 0))
	var made, wrong atomic.Int64
	for range 8 {
		x := newWorld(t, rng)
		x.close()
		x.opt.RunBytes = 32<<10 + rng.Int64N(1<<20)
		x.opt.MaxChain = 1 + rng.IntN(6)
		x.opt.PageCacheBytes = -1 // it would answer what is tested
		x.opt.testForward = func(b *branchState, key pg.PageKey, lsn pg.LSN, page pg.Page) {
			made.Add(1)
			r, v, err := x.s.view(t.Context(), b)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.release()
			want := make(pg.Page, pg.BlockSize)
			if err := r.page(v, b, key, lsn, want); err != nil || string(page) != string(want) {
				if wrong.Add(1) < 4 {
					t.Errorf("%s at %s: the image is not what a read makes (%v)", key, lsn, err)
				}
			}
		}
		x.fs = vfs.NewCrashableMem()
		x.open()
		for range 2500 {
			x.step()
			if rng.IntN(40) == 0 {
				x.commit()
			}
			if rng.IntN(900) == 0 { // WAL comes again, over later versions
				x.from(x.committed())
			}
		}
		x.commit()
		if err := x.s.Flush(); err != nil {
			t.Fatal(err)
		}
		x.check()
		x.compareAt(x.high)
		x.close()
	}
	if made.Load() < 100 {
		t.Errorf("only %d images went on from another", made.Load())
	}
}
