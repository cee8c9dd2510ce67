// Package fsm is the state that a cluster's nodes agree on, and how commands change it. A State never changes once it is published: Apply makes
// the next one, and gives the same for the same state and command on every node. It knows no clock, no network and no randomness.
package fsm

import (
	"slices"
	"strings"
	"time"

	"everpage/cluster/catalog"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Format is the newest format of cluster state that this release knows. A cluster keeps the format it was made with until all nodes know a newer one.
const Format = 1

// MaxReplicas bounds replicas where nobody says how many there are to be.
const MaxReplicas = 3

// State is all that the nodes agree on. It must not be changed.
type State struct {
	Index uint64 // of the last command applied

	ID            string // of the cluster, made once
	Name          string
	Format        uint32
	Shards        uint32
	SegmentBlocks uint32
	Replicas      int // wanted; 0: as many as there are nodes, at most MaxReplicas

	Nodes    []Node // by name
	Map      []Assignment
	MapEpoch uint64 // grows with every change of what clients are told

	Follow       Follow
	Branches     []Branch // by number
	Main         uint32   // the branch that the alias main names, 0: none yet
	NextBranch   uint32
	NextTimeline pg.TimelineID
	Left         []LeftSlot

	Store     string
	Manifests []Manifest // by branch and shard
	// CollectedUS is the age, in µs since 1970 by the store's clock, up to which objects may be gone that no current manifest needs.
	CollectedUS int64 `json:",omitempty"`
	Retention   time.Duration
	// RetentionBytes of WAL are kept where Retention is 0. Both 0: everything is.
	RetentionBytes uint64
	Horizons       []Horizon // by branch
	Leases         []Lease   // by number
	NextLease      uint64

	// Chunks are those, in their order, that clients read from replicas of their own. Their shards' replicas keep them all the same: backups, moves of shards and
	// copied databases need no more than the shard.
	Chunks []Override `json:",omitempty"`

	// Inventory are all chunks of all branches, as their owners reported them; nil: none. It has an encoding of its own.
	Inventory *catalog.Catalog `json:"-"`

	Former []string `json:",omitempty"` // ids that the cluster had before one node went on alone, oldest first
}

// Node is a member.
type Node struct {
	ID            string
	Name          string
	Zone          string
	PageAddress   string
	RaftAddress   string
	GossipAddress string
	Format        uint32
	State         command.NodeState
}

// What the nodes keep of shards is in the words of package placement.
type (
	Assignment = placement.Assignment
	Replica    = placement.Replica
	Override   = placement.Override
)

const (
	joining = placement.Joining
	full    = placement.Full
)

// Follow is the followed primary. Conninfo is empty while none is followed.
type Follow struct {
	Epoch            uint64 // grows with every change
	Conninfo         string // may hold a password
	Primary          string // where and as whom, for people
	SystemIdentifier uint64
	Major            pg.Major
	WALSegmentSize   uint32
	Importer         string // node id that takes the base backup of the branch that is not there yet
	Hole             string
}

// Branch is one line of history.
type Branch struct {
	Number   uint32
	Parent   uint32 // 0: it began with an import
	Fork     pg.LSN
	Timeline pg.TimelineID
	History  []byte // the .history file of Timeline
	Start    pg.LSN
	Imported bool
	Importer string // node id
	Hole     string `json:",omitempty"` // why it goes no further, where main is another import since
}

// LeftSlot is a replication slot that still has to be dropped: until then its server keeps WAL for it.
type LeftSlot struct {
	Slot     string
	Conninfo string
	Primary  string
	// Former tells that it was of a cluster that this one took the place of, whose nodes may still be there.
	Former bool `json:",omitempty"`
}

// Manifest is the newest manifest of a shard's backup.
type Manifest struct {
	Branch uint32
	Shard  placement.Shard
	Name   string
	LSN    pg.LSN // up to which the store has the shard
	Epoch  uint64 // of the shard, when it was written
}

// Horizon is how far a branch's history was or is about to be cut off.
type Horizon struct {
	Branch  uint32
	Planned pg.LSN
	Applied pg.LSN
}

// Lease pins an LSN against the horizon. The leader ends it: Renewed says, in commands, when it was last extended.
type Lease struct {
	Number  uint64
	Branch  uint32
	LSN     pg.LSN
	Seconds uint32
	Renewed uint64 // index of the command that made or renewed it
}

// Node finds a member by id.
func (s *State) Node(id string) *Node {
	for i := range s.Nodes {
		if s.Nodes[i].ID == id {
			return &s.Nodes[i]
		}
	}
	return nil
}

// NodeNamed finds a member by name.
func (s *State) NodeNamed(name string) *Node {
	i, ok := slices.BinarySearchFunc(s.Nodes, name, func(n Node, name string) int { return strings.Compare(n.Name, name) })
	if !ok {
		return nil
	}
	return &s.Nodes[i]
}

// Branch finds a branch by number; 0 is main.
func (s *State) Branch(number uint32) *Branch {
	if number == 0 {
		number = s.Main
	}
	for i := range s.Branches {
		if s.Branches[i].Number == number {
			return &s.Branches[i]
		}
	}
	return nil
}

// WantReplicas is how many replicas each shard is to have now.
func (s *State) WantReplicas() int {
	active := 0
	for _, n := range s.Nodes {
		if n.State == command.Active {
			active++
		}
	}
	want := s.Replicas
	if want == 0 {
		want = MaxReplicas
	}
	return max(1, min(want, active))
}

// Horizon is the planned and applied horizon of a branch.
func (s *State) Horizon(branch uint32) Horizon {
	for _, h := range s.Horizons {
		if h.Branch == branch {
			return h
		}
	}
	return Horizon{Branch: branch}
}

// Manifest is the newest manifest of a shard.
func (s *State) Manifest(branch uint32, shard placement.Shard) (Manifest, bool) {
	for _, m := range s.Manifests {
		if m.Branch == branch && m.Shard == shard {
			return m, true
		}
	}
	return Manifest{}, false
}

// ClientMap is what clients are told: only full replicas. nil before the cluster is made.
func (s *State) ClientMap() *placement.Map {
	if len(s.Map) == 0 {
		return nil
	}
	m := &placement.Map{Epoch: s.MapEpoch, SegmentBlocks: s.SegmentBlocks, Replicas: make([][]int, len(s.Map))}
	number := map[string]int{}
	for i, n := range s.Nodes {
		m.Nodes = append(m.Nodes, placement.Node{Name: n.Name, Address: n.PageAddress, Zone: n.Zone})
		number[n.ID] = i
	}
	serving := func(a Assignment) (out []int) {
		for _, id := range a.Serving() {
			if n, ok := number[id]; ok {
				out = append(out, n)
			}
		}
		return out
	}
	for shard, a := range s.Map {
		m.Replicas[shard] = serving(a)
	}
	for _, o := range s.Chunks {
		m.Chunks = append(m.Chunks, placement.ChunkReplicas{Chunk: o.Chunk, Replicas: serving(o.Assignment)})
	}
	return m
}

// Owned lists the shards of which the node keeps a replica, full or joining.
func (s *State) Owned(node string) []placement.Shard {
	var out []placement.Shard
	for shard, a := range s.Map {
		if a.Replica(node) != nil {
			out = append(out, placement.Shard(shard))
		}
	}
	return out
}

// OwnedChunks lists the chunks with replicas of their own of which the node keeps one, full or joining.
func (s *State) OwnedChunks(node string) []Override {
	var out []Override
	for _, o := range s.Chunks {
		if o.Replica(node) != nil {
			out = append(out, o)
		}
	}
	return out
}

// ChunkPlace is a chunk as a place: by itself if it has replicas of its own, else its shard.
func (s *State) ChunkPlace(c placement.Chunk) placement.Place {
	p := placement.Place{Shard: placement.ShardOf(c, uint32(len(s.Map)))}
	if s.Layout().Override(c) != nil {
		p.Chunk = c
	}
	return p
}
