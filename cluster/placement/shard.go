// Package placement decides which shard a chunk belongs to and which nodes keep a shard. It is pure: no clock, no network, no state of its own.
package placement

import (
	"fmt"
	"math/bits"

	"everpage/wal/pg"
)

// Shard is a bucket that chunks hash into, from 0 to the cluster's number of shards.
type Shard uint32

// DefaultShards is the number of shards of a cluster that is made without naming one.
const DefaultShards = 64

// Chunk names one relation segment, or one SLRU segment, with all its versions.
type Chunk struct {
	pg.RelFork        // an SLRU's as pg.SLRUPage makes it
	Segment    uint32 // block / blocks a segment
}

// ChunkOf is the chunk that holds a page. segmentBlocks is the cluster's segment size in blocks (131072 but in tests).
func ChunkOf(key pg.PageKey, segmentBlocks uint32) Chunk {
	if _, slru := key.SLRU(); slru {
		return Chunk{key.RelFork, key.Block / pg.SLRUPagesPerSegment}
	}
	if segmentBlocks&(segmentBlocks-1) == 0 {
		return Chunk{key.RelFork, key.Block >> bits.TrailingZeros32(segmentBlocks)}
	}
	return Chunk{key.RelFork, key.Block / segmentBlocks}
}

// String is the chunk's relation fork and segment, or its SLRU and segment.
func (c Chunk) String() string {
	if s, ok := (pg.PageKey{RelFork: c.RelFork}).SLRU(); ok {
		return fmt.Sprintf("%s/%s", s, pg.SLRUSegmentName(c.Segment))
	}
	return fmt.Sprintf("%s.%d", c.RelFork, c.Segment)
}

// ShardOf hashes a chunk into one of shards buckets. A relation's chunk hashes by relation number and segment alone, without tablespace, database
// and fork, so that what copies a database or moves it between tablespaces stays within a shard; an SLRU's by its kind and segment.
//
// The function is part of the cluster's format: it never changes.
func ShardOf(c Chunk, shards uint32) Shard {
	kind := uint32(0)
	if s, ok := (pg.PageKey{RelFork: c.RelFork}).SLRU(); ok {
		kind = uint32(s)
	}
	x := uint64(c.Rel)<<32 | uint64(c.Segment)
	h := mix(mix(x) + uint64(kind))
	if shards&(shards-1) == 0 { // the same without a division, which every page that WAL names would wait for
		return Shard(h & uint64(shards-1))
	}
	return Shard(h % uint64(shards))
}

// mix is the finalizer of splitmix64: every input bit moves half the output bits.
func mix(x uint64) uint64 {
	x += 0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}
