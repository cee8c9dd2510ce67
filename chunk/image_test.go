package chunk

import (
	"errors"
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
