package cluster_test

import (
	"testing"

	"golang.org/x/sync/errgroup"

	"everpage/cluster"
	"everpage/cluster/catalog"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// TestNewTablesCostFewEntries: ten thousand new tables, each with a toast table and its index, are reported by three nodes at the same time, a hundred at once. What
// they report comes into the log together.
func TestNewTablesCostFewEntries(t *testing.T) {
	const tables, perReport, limit = 10_000, 100, 60
	_, nodes := three(t)
	if _, err := nodes[0].Propose(t.Context(), &command.Attach{Conninfo: "host=x", SystemIdentifier: 7, Major: 15, WALSegmentSize: 16 << 20, Importer: nodes[0].ID()}); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].Propose(t.Context(), &command.SetBranch{Number: 1, Timeline: 1, Start: 8, Imported: true, Importer: nodes[0].ID(), Main: true}); err != nil {
		t.Fatal(err)
	}
	before := nodes[0].Applied()
	var g errgroup.Group
	g.SetLimit(40)
	for first := uint32(0); first < tables; first += perReport {
		g.Go(func() error {
			var b catalog.Batch
			for i := first * 3; i < (first+perReport)*3; i++ {
				k := placement.Chunk{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384 + i}}}
				at := pg.LSN(1<<32 + uint64(i)*700)
				b.Add(catalog.Entry{Key: catalog.Key{Branch: 1, Chunk: k}, Born: catalog.Birth(at), Last: catalog.BornAt(at)})
			}
			return nodes[first/perReport%3].Report(t.Context(), &b)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	entries := nodes[0].Applied() - before
	for i, n := range nodes {
		s := until(t, n, "all chunks are known", func(s *cluster.State) bool { return s.Inventory != nil && s.Inventory.Len() == 3*tables })
		if e, ok := s.Chunk(1, placement.Chunk{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 20000}}}); !ok || e.Born == 0 {
			t.Errorf("node %d: chunk %+v", i+1, e)
		}
	}
	t.Logf("%d tables, %d chunks, %d reports: %d log entries", tables, 3*tables, tables/perReport, entries)
	if entries > limit {
		t.Errorf("%d log entries, want at most %d", entries, limit)
	}

	// What was known outlives the nodes, without a majority.
	for _, n := range nodes {
		n.kill()
	}
	nodes[2].again(t)
	if s := nodes[2].State(); s.Inventory == nil || s.Inventory.Len() != 3*tables {
		t.Errorf("a node alone knows %d chunks", s.Inventory.Len())
	}
}
