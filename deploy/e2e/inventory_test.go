package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"everpage/chunk"
	"everpage/cluster/placement"
	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

// inventoryBlocks is the size of a chunk in these tests.
const inventoryBlocks = 16

// filesOf lists the chunks that a stopped server's files are, but for free space maps and unlogged tables, which WAL does not define.
func filesOf(t *testing.T, pgdata string) map[string]bool {
	t.Helper()
	blocks, out := map[pg.RelFork]uint32{}, map[string]bool{}
	err := filepath.WalkDir(pgdata, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(pgdata, path)
		if err != nil {
			return err
		}
		f, err := pg.Classify(filepath.ToSlash(rel))
		if err != nil {
			return err
		}
		switch {
		case f.Kind == pg.FileRelation && f.Rel.Fork != pg.FSMFork:
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			blocks[f.Rel] += uint32(info.Size() / pg.BlockSize)
		case f.Kind == pg.FileSLRU:
			out[placement.Chunk{RelFork: pg.SLRUPage(f.SLRU, 0).RelFork, Segment: f.Segment}.String()] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for fork, n := range blocks {
		if _, unlogged := blocks[pg.RelFork{RelFileLocator: fork.RelFileLocator, Fork: pg.InitFork}]; unlogged && fork.Fork != pg.InitFork {
			continue // no WAL tells of it
		}
		for i := uint32(0); i == 0 || i*inventoryBlocks < n; i++ {
			out[placement.Chunk{RelFork: fork, Segment: i}.String()] = true
		}
	}
	return out
}

// inventory is what a node says of the chunks that there are, but for free space maps.
func inventory(t *testing.T, n *nodetest.Node) map[string]bool {
	t.Helper()
	var list []struct {
		Name string
		Born uint64 `json:"born_lsn"`
	}
	if err := n.JSON(t.Context(), &list, "chunk", "list"); err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, c := range list {
		if c.Born == 0 {
			t.Errorf("when chunk %s began is not known", c.Name)
		}
		if !strings.Contains(c.Name, "_fsm.") {
			out[c.Name] = true
		}
	}
	return out
}

// unlike lists what one of two sets has and the other has not.
func unlike(a, b map[string]bool) (out []string) {
	for k := range a {
		if !b[k] {
			out = append(out, "+"+k)
		}
	}
	for k := range b {
		if !a[k] {
			out = append(out, "-"+k)
		}
	}
	slices.Sort(out)
	return out
}

// wholeInventory stops the server and waits until every node's inventory has just the chunks that its files are.
func wholeInventory(t *testing.T, nodes []*nodetest.Node, s *pgtest.Server) (known map[string]bool, at pg.LSN) {
	t.Helper()
	at = caughtUp(t, nodes[0], s)
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	files := filesOf(t, s.DataDir())
	if len(files) < 300 {
		t.Fatalf("the server has %d chunks only", len(files))
	}
	for i, n := range nodes {
		eventually(t, fmt.Sprintf("node %d lists the chunks that the server has", i+1), func() (bool, string) {
			differ := unlike(files, inventory(t, n))
			return len(differ) == 0, fmt.Sprintf("%d chunks; %d differ: %v", len(files), len(differ), differ[:min(len(differ), 20)])
		})
	}
	t.Logf("%d chunks in the inventory of %d nodes and in the server's files", len(files), len(nodes))
	return files, at
}

// holders stops nodes and opens their stores: every chunk that one of them has pages of is in the inventory, and every one of the inventory is at a node that
// keeps all of it.
func holders(t *testing.T, nodes []*nodetest.Node, shards uint32, known map[string]bool) {
	t.Helper()
	held := map[string]bool{}
	for i, n := range nodes {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		store, err := chunk.Open(chunk.Options{Dir: filepath.Join(n.Data(), "store"), Redoer: nothing{}, SegmentBlocks: inventoryBlocks, Shards: shards})
		if err != nil {
			t.Fatal(err)
		}
		err = store.Usage(t.Context(), 1, func(u chunk.ChunkUsage) error {
			name := u.Chunk.String()
			if u.Chunk.Fork != pg.FSMFork && store.Coverage(1, u.Shard).Owned && !known[name] {
				// Versions of what was dropped stay as long as history is kept.
				if blocks, ok, err := store.Size(1, sizeFork(u.Chunk), readable(store)); err != nil || ok && u.Chunk.Segment*inventoryBlocks < blocks {
					t.Errorf("node %d has pages of chunk %s, which the inventory lacks: %d blocks, error %v", i+1, name, blocks, err)
				}
			}
			held[name] = held[name] || store.ChunkCoverage(1, u.Chunk).Complete
			return nil
		})
		if err := store.Close(); err != nil {
			t.Error(err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	lacking := 0
	for name := range known {
		if !held[name] {
			lacking++
		}
	}
	// Empty files and pages that are zero have no versions.
	t.Logf("%d of %d chunks have versions at a node that keeps all of them", len(known)-lacking, len(known))
	if len(held) < len(known)/3 {
		t.Errorf("the nodes have %d chunks of %d", len(held), len(known))
	}
}

func readable(s *chunk.Store) pg.LSN {
	p, _ := s.Progress(1)
	return p.Readable
}

func sizeFork(c placement.Chunk) pg.RelFork {
	f := c.RelFork
	if f.Spc == 0 {
		f.Rel = c.Segment
	}
	return f
}

// nothing redoes nothing: no page is read.
type nothing struct{}

func (nothing) Redo(pg.Page, pg.PageKey, pg.LSN, bool, []byte) (bool, error) {
	return false, errors.New("no page is read here")
}
