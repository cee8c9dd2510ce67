package placement

import (
	"fmt"
	"slices"

	"everpage/wal/pg"
)

// Map says which nodes clients may ask for which shard. A newer map has a higher epoch.
type Map struct {
	Epoch         uint64
	SegmentBlocks uint32
	Nodes         []Node
	Replicas      [][]int         // by shard: indexes into Nodes, in order of preference
	Chunks        []ChunkReplicas // by chunk: those that have replicas of their own
}

// Node is one member of the cluster as clients reach it.
type Node struct {
	Name    string
	Address string // host:port of its page service
	Zone    string
}

// ChunkReplicas are the nodes that keep a chunk instead of its shard's.
type ChunkReplicas struct {
	Chunk    Chunk
	Replicas []int // indexes into the map's nodes, in order of preference
}

// Single is the map of a cluster of one node, which keeps every shard.
func Single(n Node, shards, segmentBlocks uint32) *Map {
	m := &Map{Epoch: 1, SegmentBlocks: segmentBlocks, Nodes: []Node{n}, Replicas: make([][]int, shards)}
	for i := range m.Replicas {
		m.Replicas[i] = []int{0}
	}
	return m
}

// Shard is the bucket of a page.
func (m *Map) Shard(key pg.PageKey) Shard {
	return ShardOf(ChunkOf(key, m.SegmentBlocks), uint32(len(m.Replicas)))
}

// ReplicasOf are the nodes that keep a page, as indexes into Nodes, in order of preference. The map's own: not to be changed.
func (m *Map) ReplicasOf(key pg.PageKey) []int {
	c := ChunkOf(key, m.SegmentBlocks)
	if len(m.Chunks) > 0 {
		if i, ok := slices.BinarySearchFunc(m.Chunks, c, func(o ChunkReplicas, c Chunk) int { return o.Chunk.Compare(c) }); ok {
			return m.Chunks[i].Replicas
		}
	}
	return m.Replicas[ShardOf(c, uint32(len(m.Replicas)))]
}

// Owners are the nodes that keep a page, in order of preference.
func (m *Map) Owners(key pg.PageKey) []Node {
	replicas := m.ReplicasOf(key)
	owners := make([]Node, len(replicas))
	for i, n := range replicas {
		owners[i] = m.Nodes[n]
	}
	return owners
}

// OwnersNear are the nodes that keep a page, those of a zone first.
func (m *Map) OwnersNear(key pg.PageKey, zone string) []Node {
	owners := m.Owners(key)
	slices.SortStableFunc(owners, func(a, b Node) int {
		switch {
		case a.Zone == zone && b.Zone != zone:
			return -1
		case a.Zone != zone && b.Zone == zone:
			return 1
		}
		return 0
	})
	return owners
}

// Valid tells what is wrong with a map that came from elsewhere.
func (m *Map) Valid() error {
	if m.SegmentBlocks == 0 || len(m.Replicas) == 0 {
		return fmt.Errorf("shard map of epoch %d has no shards or no segment size", m.Epoch)
	}
	for shard, replicas := range m.Replicas {
		for _, n := range replicas {
			if n < 0 || n >= len(m.Nodes) {
				return fmt.Errorf("shard map of epoch %d: shard %d names node %d of %d", m.Epoch, shard, n, len(m.Nodes))
			}
		}
	}
	for i, o := range m.Chunks {
		if i > 0 && m.Chunks[i-1].Chunk.Compare(o.Chunk) >= 0 {
			return fmt.Errorf("shard map of epoch %d: chunk %s is out of order", m.Epoch, o.Chunk)
		}
		for _, n := range o.Replicas {
			if n < 0 || n >= len(m.Nodes) {
				return fmt.Errorf("shard map of epoch %d: chunk %s names node %d of %d", m.Epoch, o.Chunk, n, len(m.Nodes))
			}
		}
	}
	return nil
}
