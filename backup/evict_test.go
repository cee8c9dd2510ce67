package backup

import (
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"everpage/backup/store"
	"everpage/chunk"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// A store that gives up what the backup has reads, is backed up, collected and filled again as one that keeps all.
func TestEvictedStoreIsBackedUp(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	ctx, rng := t.Context(), rand.New(rand.NewPCG(seed, 6))
	all, some := newWorld(t, seed), newWorld(t, seed)
	objects, dir := store.NewMemory(), t.TempDir()
	u, r := some.uploader(objects, dir)
	u.most = minMerged + 2
	src := NewSource(objects, r)
	some.s.SetSource(src)
	f := &Filler{Source: src, Store: objects, Target: some.s, Log: slog.New(slog.DiscardHandler)}
	evicted, filled, waited := 0, 0, 0
	grow := func(n int) {
		all.rng, some.rng = rand.New(rand.NewPCG(seed, uint64(evicted))), rand.New(rand.NewPCG(seed, uint64(evicted)))
		all.grow(n)
		some.grow(n)
	}
	grow(120)
	chunks := map[placement.Chunk]bool{}
	for _, k := range all.keys {
		chunks[placement.ChunkOf(k, 8)] = true
	}
	for round := range 40 {
		grow(30)
		if err := u.upload(ctx); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for c := range chunks {
			shard := placement.ShardOf(c, testShards)
			if u.Wanted(testBranch, shard) {
				waited++
			} else if rng.IntN(3) == 0 {
				if err := some.s.Evict(ctx, testBranch, chunk.Eviction{Chunk: c, UpTo: r.Current(testBranch, shard).LSN}); err != nil {
					t.Fatal(err)
				}
				evicted++
			}
		}
		if rng.IntN(4) == 0 && some.lsn != r.Current(testBranch, Small).LSN {
			t.Fatalf("uploaded up to %s, not to %s", r.Current(testBranch, Small).LSN, some.lsn)
		}
		all.compare(some.s, all.lsn)
		if round%8 == 7 { // both begin later
			h := all.lsns[len(all.lsns)-1-rng.IntN(6)]
			for _, w := range []*world{all, some} {
				if err := w.s.Flush(); err != nil {
					t.Fatal(err)
				}
				if err := w.s.SetHorizon(testBranch, h, nil); err != nil {
					t.Fatal(err)
				}
				if _, err := w.s.Collect(ctx, testBranch, chunk.CollectOptions{BytesPerSecond: 1 << 40, Worth: 1e-9}); err != nil {
					t.Fatal(err)
				}
			}
			all.compare(some.s, all.lsn)
		}
		for _, c := range some.s.Evicted(testBranch) {
			if !u.Wanted(testBranch, placement.ShardOf(c, testShards)) && rng.IntN(4) != 0 {
				continue
			}
			if n, err := f.ChunkBytes(ctx, testBranch, c); err != nil || n <= 0 {
				t.Fatalf("chunk %s takes %d bytes: %v", c, n, err)
			}
			if err := f.Chunk(ctx, testBranch, c); err != nil {
				t.Fatalf("chunk %s: %v", c, err)
			}
			if have := some.s.ChunkCoverage(testBranch, c); !have.Complete {
				t.Fatalf("chunk %s was filled, but %+v is here", c, have)
			}
			filled++
		}
		some.s.SetSource(nil)
		for c := range chunks { // what is filled needs no source
			if !some.s.ChunkCoverage(testBranch, c).Complete {
				continue
			}
			a, b := make(pg.Page, pg.BlockSize), make(pg.Page, pg.BlockSize)
			for _, k := range all.keys {
				if placement.ChunkOf(k, 8) == c {
					errA, errB := all.s.Page(ctx, testBranch, k, all.lsn, a), some.s.Page(ctx, testBranch, k, all.lsn, b)
					if errA != nil || errB != nil || string(a) != string(b) {
						t.Fatalf("page %s: %v, %v", k, errA, errB)
					}
				}
			}
		}
		some.s.SetSource(src)
		if _, err := some.s.Check(ctx, func(v chunk.Violation) { t.Errorf("round %d: %+v", round, v) }); err != nil {
			t.Fatal(err)
		}
		for shard := range placement.Shard(testShards) {
			m, err := src.manifest(ctx, shardKey{testBranch, shard})
			if err != nil || len(m.Layers) > u.most+2 {
				t.Fatalf("shard %d has %d layers: %v", shard, len(m.Layers), err)
			}
		}
	}
	if hi := all.recover(objects); hi != all.lsn {
		t.Fatalf("recovered up to %s, not to %s", hi, all.lsn)
	}
	t.Logf("%d times evicted, %d filled, %d times not evicted since the layers wait", evicted, filled, waited)
	if evicted == 0 || filled == 0 || waited == 0 {
		t.Error("not enough happened")
	}
}
