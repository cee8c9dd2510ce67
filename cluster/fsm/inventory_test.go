package fsm

import (
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"everpage/cluster/catalog"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// told is a state that chunks are reported to.
type told struct {
	t *testing.T
	s *State
}

func (s *told) must(c command.Command) {
	s.t.Helper()
	next, _, err := s.s.Apply(s.s.Index+1, c)
	if err != nil {
		s.t.Fatalf("%s: %v", command.Name(c), err)
	}
	s.s = next
}

func newTold(t *testing.T) *told {
	s := &told{t, &State{}}
	s.must(&command.MakeCluster{ID: "c", Name: "main", Format: 1, Shards: 2, SegmentBlocks: 131072})
	s.must(&command.PutNode{ID: "a", Name: "n1", PageAddress: "h:1", Format: 1})
	s.must(&command.Attach{Conninfo: "c", SystemIdentifier: 5, Major: 15, WALSegmentSize: 1 << 24, Importer: "a"})
	s.must(&command.SetBranch{Number: 1, Timeline: 1, Imported: true, Importer: "a", Main: true})
	return s
}

func rel(n uint32) placement.Chunk {
	return placement.Chunk{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: n}}}
}

func (s *told) report(branch, n uint32, born pg.LSN, last catalog.Event) {
	s.t.Helper()
	var b catalog.Batch
	b.Add(catalog.Entry{Key: catalog.Key{Branch: branch, Chunk: rel(n)}, Born: catalog.Birth(born), Last: last})
	s.must(&command.ReportChunks{Reports: b.Encode(1 << 10)[0]})
}

// there lists the relations of a branch that are there, and those that were dropped.
func (s *told) there(branch uint32) (here, gone []uint32) {
	for e := range s.s.ChunksOf(branch, placement.Chunk{}) {
		if one, ok := s.s.Chunk(branch, e.Chunk); !ok || one.Last != e.Last || one.Born != e.Born {
			s.t.Errorf("branch %d: %+v in the list, %+v by itself", branch, e, one)
		}
		if e.Last.Dropped() {
			gone = append(gone, e.Rel)
		} else {
			here = append(here, e.Rel)
		}
	}
	return here, gone
}

func (s *told) want(branch uint32, here, gone []uint32) {
	s.t.Helper()
	if h, g := s.there(branch); !slices.Equal(h, here) || !slices.Equal(g, gone) {
		s.t.Errorf("branch %d: there are %v, dropped %v; want %v and %v", branch, h, g, here, gone)
	}
}

// TestInventoryOfBranches: a branch has what its parent had at the fork, whatever happens to either since; what was dropped below the horizon is forgotten, unless the
// parent's chunk would come back with it.
func TestInventoryOfBranches(t *testing.T) {
	s := newTold(t)
	for n := range uint32(5) {
		s.report(1, 10+n, 100, catalog.BornAt(100))
	}
	s.report(1, 11, 0, catalog.DroppedAt(150))
	s.must(&command.ForkBranch{Parent: 1, Fork: 200, Timeline: 2, History: []byte("1\t0/C8\tx\n")})
	s.want(2, []uint32{10, 12, 13, 14}, []uint32{11})
	s.report(1, 12, 0, catalog.DroppedAt(250)) // in what the failover lost
	s.report(1, 9, 260, catalog.BornAt(260))
	s.report(2, 12, 100, catalog.BornAt(100)) // as its owners see that it is gone on the parent
	s.report(2, 13, 0, catalog.DroppedAt(300))
	s.report(2, 20, 310, catalog.BornAt(310))
	s.report(2, 21, 310, catalog.BornAt(310))
	s.report(2, 21, 0, catalog.DroppedAt(320))
	s.report(2, 11, 330, catalog.BornAt(330)) // a number that is used again
	s.report(3, 12, 1, catalog.BornAt(1))     // there is no such branch
	s.want(1, []uint32{9, 10, 13, 14}, []uint32{11, 12})
	s.want(2, []uint32{10, 11, 12, 14, 20}, []uint32{13, 21})
	if e, ok := s.s.Chunk(2, rel(11)); !ok || e.Born != 100 || e.Last != catalog.BornAt(330) {
		t.Errorf("the chunk whose number is used again: %+v", e)
	}
	before := s.s.Inventory.Len()
	s.must(&command.PlanHorizon{Branch: 2, LSN: 400})
	s.must(&command.ApplyHorizon{Branch: 2, LSN: 400})
	s.want(2, []uint32{10, 11, 12, 14, 20}, []uint32{13})
	s.want(1, []uint32{9, 10, 13, 14}, []uint32{11, 12})
	s.report(2, 21, 0, catalog.DroppedAt(320)) // by a node that was away
	s.want(2, []uint32{10, 11, 12, 14, 20}, []uint32{13})
	if n := s.s.Inventory.Len(); n != before-1 {
		t.Errorf("%d chunks, %d before the horizon moved", n, before)
	}
	// Nothing malformed is taken, and nothing that a newer release packed is skipped.
	var refused *Refused
	if _, _, err := s.s.Apply(s.s.Index+1, &command.ReportChunks{Reports: []byte{1, 9}}); !errors.As(err, &refused) {
		t.Errorf("a report that is cut: %v", err)
	}
	if _, _, err := s.s.Apply(s.s.Index+1, &command.ReportChunks{Reports: []byte{9, 0}}); err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), "newer release") {
		t.Errorf("a report of a newer release: %v", err)
	}
	s.must(&command.Detach{})
	s.must(&command.DropBranches{})
	if s.s.Inventory != nil {
		t.Error("chunks of branches that were dropped are still there")
	}
}

// TestSnapshotOfAnOlderRelease: it had no inventory.
func TestSnapshotOfAnOlderRelease(t *testing.T) {
	s, err := Decode([]byte(`everpage cluster state 1` + "\n" + `{"Index":7,"ID":"c"}`))
	if err != nil || s.Index != 7 || s.Inventory != nil {
		t.Fatalf("state %+v, error %v", s, err)
	}
}

// TestMillionChunksInTheState measures what a million chunks cost the log, the state and its snapshots, which go through Raft's own files.
func TestMillionChunksInTheState(t *testing.T) {
	const n, limit, entryBytes = 1_000_000, 64, 256 << 10
	const seed = 5
	r := rand.New(rand.NewPCG(seed, 0))
	f := New(newTold(t).s)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	logged, entries := 0, uint64(0)
	for i := uint32(0); i < n; {
		var b catalog.Batch
		for range 50_000 {
			e := catalog.Entry{Key: catalog.Key{Branch: 1, Chunk: rel(16384 + i/3)}, Born: catalog.Birth(1<<40 + r.Uint64N(1<<36))}
			e.Fork, e.Last = pg.ForkNumber(i%3), catalog.BornAt(pg.LSN(e.Born))
			b.Add(e)
			i++
		}
		for _, piece := range b.Encode(entryBytes) {
			entry, err := command.Encode(&command.ReportChunks{Reports: piece})
			if err != nil {
				t.Fatal(err)
			}
			logged += len(entry)
			entries++
			if o := f.Apply(&raft.Log{Index: 100 + entries, Data: entry}).(Outcome); o.Err != nil || o.Refused != "" {
				t.Fatalf("%+v", o)
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	memory := float64(after.HeapAlloc-before.HeapAlloc) / n
	dir := t.TempDir()
	store, err := raft.NewFileSnapshotStore(dir, 1, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	sink, err := store.Create(1, 1, 1, raft.Configuration{}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Persist(sink); err != nil {
		t.Fatal(err)
	}
	wrote := time.Since(began)
	list, err := store.List()
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	began = time.Now()
	meta, in, err := store.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	back := New(nil)
	if err := back.Restore(in); err != nil || back.State().Inventory.Len() != n {
		t.Fatal(back.State().Inventory.Len(), err)
	}
	read := time.Since(began)
	t.Logf("seed %d: %d chunks: %.1f bytes each in memory, %.1f in a snapshot, %.1f in the log (%d entries); snapshot written in %s, restored in %s", seed, n, memory,
		float64(meta.Size)/n, float64(logged)/n, entries, wrote.Round(time.Millisecond), read.Round(time.Millisecond))
	for what, bytes := range map[string]float64{"memory": memory, "a snapshot": float64(meta.Size) / n, "the log": float64(logged) / n} {
		if bytes > limit {
			t.Errorf("%.1f bytes a chunk in %s, want at most %d", bytes, what, limit)
		}
	}
	runtime.KeepAlive(f)
}
