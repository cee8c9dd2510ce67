package catalog

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

func key(branch uint32, rel, segment uint32) Key {
	return Key{branch, placement.Chunk{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: pg.Oid(rel)}}, Segment: segment}}
}

func anyEntry(t *rapid.T) Entry {
	lsn := func(what string) uint64 {
		return rapid.OneOf(rapid.Uint64Range(0, 3), rapid.Uint64Range(0, 1<<62)).Draw(t, what)
	}
	e := Entry{Key: key(rapid.Uint32Range(1, 2).Draw(t, "branch"), rapid.Uint32Range(0, 40).Draw(t, "rel")*(rapid.SampledFrom([]uint32{1, 1 << 25}).Draw(t, "far")), rapid.Uint32Range(0, 1).Draw(t, "segment"))}
	e.Fork = pg.ForkNumber(rapid.IntRange(0, 3).Draw(t, "fork"))
	e.Born, e.Last = Birth(lsn("born")), Event(lsn("last"))
	e.Backed = Interval{pg.LSN(lsn("from")), pg.LSN(lsn("to"))}
	e.Damaged, e.Unproven = Toggle(rapid.Uint8().Draw(t, "damaged")), Toggle(rapid.Uint8().Draw(t, "unproven"))
	return e
}

// Reports may come in any order, any number of times, in any batches: the catalog is the same, and the same as a map's.
func TestReportsCommute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var reports []Entry
		twin := map[Key]Entry{}
		for range rapid.IntRange(0, 60).Draw(t, "reports") {
			e := anyEntry(t)
			reports = append(reports, e)
			if have, ok := twin[e.Key]; ok {
				e = have.Merge(e)
			}
			twin[e.Key] = e
		}
		build := func(reports []Entry) *Catalog {
			c := &Catalog{}
			for len(reports) > 0 {
				n := rapid.IntRange(1, len(reports)).Draw(t, "batch")
				var b Batch
				for _, e := range reports[:n] {
					b.Add(e)
				}
				for _, piece := range b.Encode(rapid.IntRange(1, 400).Draw(t, "limit")) {
					list, err := Decode(bytes.NewReader(piece))
					if err != nil {
						t.Fatal(err)
					}
					c = c.With(list)
				}
				reports = reports[n:]
			}
			return c
		}
		c := build(reports)
		other := build(rapid.Permutation(append(slices.Clone(reports), reports...)).Draw(t, "order"))
		all, others := slices.Collect(c.All(Key{})), slices.Collect(other.All(Key{}))
		if !slices.Equal(all, others) {
			t.Fatalf("another order gives another catalog:\n%v\n%v", all, others)
		}
		if c.Len() != len(twin) || len(all) != len(twin) || !slices.IsSortedFunc(all, func(a, b Entry) int { return a.Key.Compare(b.Key) }) {
			t.Fatalf("%d chunks, %d listed, want %d", c.Len(), len(all), len(twin))
		}
		for k, want := range twin {
			if got, ok := c.Get(k); !ok || got != want {
				t.Fatalf("%v: %v, %v; want %v", k, got, ok, want)
			}
		}
		var snapshot bytes.Buffer
		if _, err := c.WriteTo(&snapshot); err != nil {
			t.Fatal(err)
		}
		whole := snapshot.Bytes()
		back, err := Read(bytes.NewReader(whole))
		if err != nil || back.Len() != c.Len() || !slices.Equal(slices.Collect(back.All(Key{})), all) {
			t.Fatalf("a snapshot gives another catalog: %v", err)
		}
		if cut := rapid.IntRange(0, len(whole)-1).Draw(t, "cut"); len(twin) > 0 {
			if _, err := Read(bytes.NewReader(whole[:cut])); !errors.Is(err, ErrMalformed) {
				t.Fatalf("a snapshot cut at %d of %d: %v", cut, len(whole), err)
			}
		}
		left := c.Without(func(e Entry) bool { return e.Branch == 1 })
		for e := range left.All(Key{}) {
			if e.Branch == 1 {
				t.Fatal("a forgotten branch is still there")
			}
		}
	})
}

func TestReuseOfANumber(t *testing.T) {
	e := Entry{Key: key(1, 16384, 0), Born: 100, Last: BornAt(100)}
	e = e.Merge(Entry{Last: DroppedAt(200)})
	if !e.Last.Dropped() || e.Last.LSN() != 200 {
		t.Errorf("after a drop: %v", e)
	}
	if e = e.Merge(Entry{Born: 300, Last: BornAt(300)}); e.Last.Dropped() || e.Born != 100 {
		t.Errorf("after a new birth: %v", e)
	}
	if e = e.Merge(Entry{Last: DroppedAt(200)}); e.Last.Dropped() {
		t.Error("a late report of the old drop drops the new chunk")
	}
	damaged := e.Damaged.Set(true)
	twice := e.Merge(Entry{Damaged: damaged}).Merge(Entry{Damaged: damaged})
	if !twice.Damaged.On() || twice.Merge(Entry{Damaged: twice.Damaged.Set(false)}).Damaged.On() {
		t.Error("damage that two owners report, and that is mended, is not mended")
	}
}

// TestMillionChunks measures what a catalog of a million chunks costs.
func TestMillionChunks(t *testing.T) {
	const n, limit = 1_000_000, 64
	const seed = 3
	r := rand.New(rand.NewPCG(seed, 0))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	c := &Catalog{}
	for i := 0; i < n; {
		var list []Entry
		for range 20_000 {
			e := Entry{Key: key(1, 16384+uint32(i/3), 0), Born: Birth(1<<40 + r.Uint64N(1<<36))}
			e.Fork = pg.ForkNumber(i % 3)
			e.Last, e.Backed = BornAt(pg.LSN(e.Born)), Interval{pg.LSN(e.Born), 1<<41 + pg.LSN(i>>10)}
			list = append(list, e)
			i++
		}
		c = c.With(list)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	memory := float64(after.HeapAlloc-before.HeapAlloc) / n
	var snapshot bytes.Buffer
	began := time.Now()
	if _, err := c.WriteTo(&snapshot); err != nil {
		t.Fatal(err)
	}
	wrote := time.Since(began)
	began = time.Now()
	back, err := Read(bytes.NewReader(snapshot.Bytes()))
	if err != nil || back.Len() != n {
		t.Fatal(back.Len(), err)
	}
	read := time.Since(began)
	began = time.Now()
	c.With([]Entry{{Key: key(1, 16384+1000, 0), Unproven: 1}})
	t.Logf("seed %d: %d chunks: %.1f bytes each in memory, %.1f in a snapshot; written in %s, read in %s; one change in %s", seed, n, memory, float64(snapshot.Len())/n,
		wrote.Round(time.Millisecond), read.Round(time.Millisecond), time.Since(began))
	if memory > limit || float64(snapshot.Len())/n > limit {
		t.Errorf("more than %d bytes a chunk", limit)
	}
	runtime.KeepAlive(c)
}

// Ten thousand new tables, each with an index and a toast table, are a handful of log entries.
func TestNewTablesAreFewEntries(t *testing.T) {
	var b Batch
	for i := range uint32(30_000) {
		e := Entry{Key: key(1, 16384+i, 0), Born: Birth(0x1000000 + uint64(i)*700)}
		e.Last = BornAt(pg.LSN(e.Born))
		b.Add(e)
		b.Add(e) // as another replica's owner reports it
	}
	pieces := b.Encode(256 << 10)
	size := 0
	for _, p := range pieces {
		size += len(p)
	}
	t.Logf("%d chunks in %d entries of %d bytes", b.Len(), len(pieces), size)
	if len(pieces) > 4 {
		t.Errorf("%d log entries", len(pieces))
	}
}
