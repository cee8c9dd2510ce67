package placement

import (
	"fmt"

	"everpage/wal/pg"
)

// Map says which nodes keep which shard. A newer map has a higher epoch.
type Map struct {
	Epoch         uint64
	SegmentBlocks uint32
	Nodes         []Node
	Replicas      [][]int // by shard: indexes into Nodes
}

// Node is one member of the cluster as clients reach it.
type Node struct {
	Name    string
	Address string // host:port of its page service
	Zone    string
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

// Owners are the nodes that keep a page's shard.
func (m *Map) Owners(key pg.PageKey) []Node {
	replicas := m.Replicas[m.Shard(key)]
	owners := make([]Node, len(replicas))
	for i, n := range replicas {
		owners[i] = m.Nodes[n]
	}
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
	return nil
}
