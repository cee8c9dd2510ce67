package placement

import (
	"testing"

	"everpage/wal/pg"
)

func rel(spc, db, rel pg.Oid, fork pg.ForkNumber) pg.RelFork {
	return pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: spc, DB: db, Rel: rel}, Fork: fork}
}

// The hash is a format: these values may never change.
func TestShardOfIsStable(t *testing.T) {
	for _, c := range []struct {
		chunk Chunk
		want  Shard
	}{
		{Chunk{rel(1663, 5, 16384, pg.MainFork), 0}, 63},
		{Chunk{rel(1663, 5, 16384, pg.MainFork), 1}, 41},
		{Chunk{pg.SLRUPage(pg.Xact, 0).RelFork, 0}, 63},
		{Chunk{pg.SLRUPage(pg.CommitTs, 0).RelFork, 7}, 43},
	} {
		if got := ShardOf(c.chunk, DefaultShards); got != c.want {
			t.Errorf("ShardOf(%s) = %d, want %d", c.chunk, got, c.want)
		}
	}
}

func TestCopiesStayWithinAShard(t *testing.T) {
	for segment := range uint32(50) {
		a := ShardOf(Chunk{rel(1663, 5, 1259, pg.MainFork), segment}, DefaultShards)
		b := ShardOf(Chunk{rel(70000, 4000000000, 1259, pg.VMFork), segment}, DefaultShards)
		if a != b {
			t.Fatalf("segment %d of a copied relation is in shard %d, its source in %d", segment, b, a)
		}
	}
}

func TestShardsAreEven(t *testing.T) {
	counts := make([]int, DefaultShards)
	const n = 64_000
	for i := range pg.Oid(n / 4) {
		for segment := range uint32(4) {
			counts[ShardOf(Chunk{rel(1663, 5, 16384+i, pg.MainFork), segment}, DefaultShards)]++
		}
	}
	for shard, c := range counts {
		if c < n/DefaultShards*8/10 || c > n/DefaultShards*12/10 {
			t.Errorf("shard %d has %d of %d chunks", shard, c, n)
		}
	}
}

func TestChunkOf(t *testing.T) {
	key := pg.PageKey{RelFork: rel(1663, 5, 16384, pg.MainFork), Block: 131072}
	if c := ChunkOf(key, pg.SegmentBlocks); c.Segment != 1 {
		t.Errorf("block 131072 is in segment %d, want 1", c.Segment)
	}
	if c := ChunkOf(key, 16); c.Segment != 8192 {
		t.Errorf("with 16 blocks a segment block 131072 is in segment %d, want 8192", c.Segment)
	}
	if c := ChunkOf(pg.SLRUPage(pg.Xact, 33), 16); c.Segment != 1 || c.String() != "pg_xact/0001" {
		t.Errorf("pg_xact page 33 is in %s", c)
	}
}
