package node

import (
	"time"

	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/chunk"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// testPages is a page service over a store in memory, with a branch that stands at p.
func testPages(t *testing.T, p chunk.Progress) *pages {
	store, err := chunk.Open(chunk.Options{Dir: "store", FS: vfs.NewMem(), Redoer: &redoer{}, ReserveBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	w, err := store.Writer(1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Commit(p); err != nil {
		t.Fatal(err)
	}
	return &pages{store: store, usage: newUsage(store.Shards()), segmentBlocks: pg.SegmentBlocks, main: func() uint32 { return 1 }, behind: func(uint32, pg.LSN) string { return "the test has no more" }}
}

func TestUnprovenIsRefusedWhateverIsAsked(t *testing.T) {
	p := testPages(t, chunk.Progress{Start: 0x1000, Consistent: 0x2000, Readable: 0x5000, Resume: 0x5000, Unproven: 0x4000, UnprovenReason: "a record of nobody's"})
	for _, c := range []struct {
		lsn  pg.LSN
		code pageapi.Code
	}{{0x3FFF, pageapi.OK}, {0x4000, pageapi.Corrupt}, {0x5000, pageapi.Corrupt}, {0, pageapi.Corrupt}, {0x1FFF, pageapi.OutOfWindow}} {
		at, err := p.Position(context.Background(), pageapi.Position{LSN: c.lsn}, time.Second)
		if got := pageapi.CodeOf(err); got != c.code {
			t.Errorf("position %s became %s: %v (code %v), want code %v", c.lsn, at.LSN, err, got, c.code)
		}
	}
}

func TestDataDirectoryIsMadeWithThoseAboveIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "c")
	for range 2 {
		if err := makeData(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makeData(filepath.Join(dir, "file", "d")); err == nil {
		t.Error("a directory was made below a file")
	}
}
