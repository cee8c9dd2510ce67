package node

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/chunk"
	"everpage/cluster"
	"everpage/cluster/catalog"
	"everpage/cluster/command"
	"everpage/cluster/fsm"
	"everpage/cluster/placement"
	"everpage/redo"
	"everpage/wal/pg"
)

// TestInventoryIsComplete: whatever happens to relations and SLRUs, and whenever two owners that speak for half of the shards each compare, the inventory has just the
// chunks that are there, each with the LSN at which it began.
func TestInventoryIsComplete(t *testing.T) {
	const segment, start = 8, 0x1000
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for round := range 30 {
		store, err := chunk.Open(chunk.Options{Dir: "store", FS: vfs.NewMem(), ReserveBytes: -1, Redoer: &redoer{}, SegmentBlocks: segment, Shards: 4})
		if err != nil {
			t.Fatal(err)
		}
		w, err := store.Writer(1)
		if err != nil {
			t.Fatal(err)
		}
		s := &cluster.State{}
		do := func(c command.Command) {
			t.Helper()
			next, _, err := s.Apply(s.Index+1, c)
			if err != nil {
				t.Fatalf("%s: %v", command.Name(c), err)
			}
			s = next
		}
		do(&command.MakeCluster{ID: "c", Name: "main", Format: fsm.Format, Shards: 4, SegmentBlocks: segment})
		do(&command.PutNode{ID: "a", Name: "n1", PageAddress: "h:1", Format: fsm.Format})
		do(&command.Attach{Conninfo: "c", SystemIdentifier: 5, Major: 15, WALSegmentSize: 1 << 24, Importer: "a"})
		do(&command.SetBranch{Number: 1, Timeline: 1, Imported: true, Importer: "a", Main: true})
		owners := make([]*comparison, 2)
		speaks := [2][]bool{make([]bool, 4), make([]bool, 4)}
		for i := range owners {
			owners[i] = &comparison{store: store, branch: 1, segment: segment, examined: map[pg.RelFork]pg.LSN{}}
			for k := range speaks[i] {
				speaks[i][k] = k%2 == i
			}
		}
		// compare lets owners report until they have nothing to say.
		compare := func() {
			t.Helper()
			for quiet, i := 0, r.IntN(len(owners)); quiet < len(owners); {
				i = (i + 1) % len(owners)
				var b catalog.Batch
				owners[i].damage = time.Now().Add(time.Hour) // whose bits are not of this test
				if err := owners[i].look(t.Context(), s, slices.Clone(speaks[i]), &b); err != nil {
					t.Fatal(err)
				}
				if b.Len() == 0 {
					quiet++
					continue
				}
				quiet = 0
				for _, piece := range b.Encode(1 + r.IntN(500)) {
					do(&command.ReportChunks{Reports: piece})
				}
			}
		}
		m := map[placement.Chunk]pg.LSN{} // when each chunk that is there began
		blocks := map[pg.RelFork]uint32{}
		lsn := pg.LSN(start)
		set := func(f pg.RelFork, n uint32, anew bool) {
			_, known := blocks[f]
			blocks[f] = n
			for c := range m {
				if forkOf(c) == f && f.Spc != 0 && (anew || c.Segment > 0 && c.Segment*segment >= n) {
					delete(m, c)
				}
			}
			for i := uint32(0); i == 0 || i*segment < n; i++ {
				c := placement.Chunk{RelFork: f, Segment: i}
				if f.Spc == 0 {
					c.Rel, c.Segment = 0, f.Rel
				}
				if _, ok := m[c]; !ok || anew && i == 0 && known {
					m[c] = lsn
				}
				if f.Spc == 0 {
					break
				}
			}
		}
		drop := func(f pg.RelFork) {
			delete(blocks, f)
			for c := range m {
				if forkOf(c) == f {
					delete(m, c)
				}
			}
		}
		page := make(pg.Page, pg.BlockSize)
		for step := range 40 + r.IntN(100) {
			lsn += pg.LSN(8 + r.IntN(500))
			f := pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 100 + r.Uint32N(4)}, Fork: pg.ForkNumber(r.IntN(2))}
			var err error
			switch n := r.IntN(12); {
			case n < 4:
				to := blocks[f] + r.Uint32N(3*segment)
				err = w.Image(pg.PageKey{RelFork: f, Block: to}, lsn, chunk.Origin{}, page)
				set(f, max(to+1, blocks[f]), false)
			case n == 4:
				err = w.Create(f, lsn)
				set(f, blocks[f], false)
			case n < 7:
				if _, ok := blocks[f]; ok {
					to := r.Uint32N(blocks[f] + 2)
					err = w.Truncate(f, lsn, to)
					set(f, min(to, blocks[f]), false)
				}
			case n < 9:
				err = w.Drop(f, lsn)
				drop(f)
			case n == 9:
				key := pg.SLRUPage(pg.Xact, r.Uint32N(5*pg.SLRUPagesPerSegment))
				err = w.Delta(key, lsn, chunk.Origin{}, chunk.BaseZeroed, nil)
				g := pg.RelFork{RelFileLocator: pg.RelFileLocator{DB: uint32(pg.Xact), Rel: key.Block / pg.SLRUPagesPerSegment}}
				set(g, 1, false)
			case n == 10:
				before := r.Uint32N(5)
				err = w.TruncateSLRU(pg.Xact, lsn, func(k uint32) bool { return k < before })
				for k := range before {
					drop(pg.RelFork{RelFileLocator: pg.RelFileLocator{DB: uint32(pg.Xact), Rel: k}})
				}
			default:
				err = w.CopyDatabase(redo.DatabaseDir{Spc: 1663, DB: 5}, redo.DatabaseDir{Spc: 1663, DB: 6}, lsn)
				for g := range maps.Clone(blocks) {
					if g.DB == 6 && g.Spc != 0 {
						was := g
						was.DB = 5
						if _, ok := blocks[was]; !ok {
							drop(g)
						}
					}
				}
				for g, n := range maps.Clone(blocks) {
					if g.DB == 5 && g.Spc != 0 {
						g.DB = 6
						_, known := blocks[g]
						set(g, n, known)
					}
				}
			}
			if err == nil {
				err = w.Commit(chunk.Progress{Start: start, Consistent: start, Readable: lsn, Resume: lsn})
			}
			if err != nil {
				t.Fatalf("round %d, step %d: %v", round, step, err)
			}
			if r.IntN(6) == 0 {
				compare()
			}
			if r.IntN(20) == 0 { // the one is away for a while: the other speaks for all
				for k := range speaks[0] {
					speaks[0][k], speaks[1][k] = r.IntN(2) == 0, true
				}
			}
		}
		compare()
		there := map[placement.Chunk]string{}
		for e := range s.ChunksOf(1, placement.Chunk{}) {
			if !e.Last.Dropped() {
				there[e.Chunk] = e.Last.LSN().String()
			}
		}
		for c, born := range m {
			if there[c] != born.String() {
				t.Errorf("round %d: chunk %s began at %s, the inventory says %q", round, c, born, there[c])
			}
			delete(there, c)
		}
		if len(there) > 0 {
			t.Errorf("round %d: the inventory has chunks that are not there: %v", round, fmt.Sprint(there))
		}
		w.Close()
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
}
