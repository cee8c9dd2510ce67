package chunk

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

// TestTablesLikeStairs lays tables over each other like the steps of a stair: there are too many levels of them, but no key is under more than two, so the database
// compacts nothing, and whoever waited for that would wait for ever.
func TestTablesLikeStairs(t *testing.T) {
	s, err := Open(testOptions(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for step := range 2 * maxSublevels {
		for block := range 2 {
			p := makePrefix(classPage, 1, 1663, 5, 16384, 0, uint32(step+block))
			if err := s.db.Set(p.appendKey(nil, pg.LSN(step+1)), []byte("step"), pebble.NoSync); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.db.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.db.Metrics().Levels[0].Sublevels; n < maxSublevels {
		t.Fatalf("%d sublevels: the stair is compacted, and this test tests nothing", n)
	}
	done := make(chan error, 1)
	go func() { done <- s.awaitCompactions() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a new table waits for a compaction that is not under way")
	}
}
