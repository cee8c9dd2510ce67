package chunk

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/redo"
	"everpage/wal/pg"
)

// A redo that fails is known once a page was read, a mark at once; both also of what was copied with its database, by the copy's own name and as long as no
// image has replaced it.
func TestDamagedPagesAreTold(t *testing.T) {
	s, err := Open(testOptions(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w, err := s.Writer(testBranch)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	page := func(db, block uint32) pg.PageKey {
		return pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: db, Rel: 16384}}, Block: block}
	}
	const broken, marked = 1, 2
	image := heapPage(rand.New(rand.NewPCG(1, 1)))
	for _, err := range []error{
		w.Image(page(5, 0), 100, Origin{}, image), w.Image(page(5, broken), 100, Origin{}, image), w.Image(page(5, marked), 100, Origin{}, image),
		w.Delta(page(5, broken), 200, Origin{}, BaseRequired, []byte("short")), // which toyRedo refuses
		w.Damaged(page(5, marked), 300, Origin{}, "a record that nobody knows"),
		w.CopyDatabase(redo.DatabaseDir{Spc: 1663, DB: 5}, redo.DatabaseDir{Spc: 1663, DB: 6}, 400),
		w.Image(page(5, broken), 500, Origin{}, image),
		w.Image(page(6, marked), 600, Origin{}, image),
		w.Commit(Progress{Start: 100, Consistent: 100, Readable: 700, Resume: 700}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	told := func(at pg.LSN, want ...pg.PageKey) {
		t.Helper()
		var got []pg.PageKey
		err := s.DamagedPages(t.Context(), testBranch, at, func(e *DamagedError) error {
			got = append(got, e.Key)
			return nil
		})
		slices.SortFunc(got, pg.PageKey.Compare)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("at %s: told of %v, want %v; %v", at, got, want, err)
		}
	}
	told(199)
	told(299) // nobody knows of it yet
	told(399, page(5, marked))
	told(499, page(5, marked), page(6, marked))
	dst := make(pg.Page, pg.BlockSize)
	if err := s.Page(t.Context(), testBranch, page(5, broken), 250, dst); err == nil {
		t.Fatal("a delta that can't be applied was applied")
	}
	told(199)
	told(299, page(5, broken))
	told(399, page(5, broken), page(5, marked))
	told(499, page(5, broken), page(5, marked), page(6, broken), page(6, marked))
	told(599, page(5, marked), page(6, broken), page(6, marked))
	told(700, page(5, marked), page(6, broken))
}
