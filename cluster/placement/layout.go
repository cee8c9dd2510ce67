package placement

import (
	"cmp"
	"slices"
)

// Role is what a replica is good for.
type Role string

// The roles of a replica.
const (
	Joining Role = "joining" // it keeps what is new, what is old is still on the way
	Full    Role = "full"
	Leaving Role = "leaving" // as good as full, until another replica has taken its place
)

// Complete tells whether a replica in this role has all: clients may be sent to it.
func (r Role) Complete() bool { return r == Full || r == Leaving }

// NodeState is what is wanted or known of a node.
type NodeState string

// The states of a node. A layout that the cluster agrees on says active or draining; whoever plans says dead of those that it gave up.
const (
	Active   NodeState = "active"
	Draining NodeState = "draining" // its replicas go elsewhere, and serve until they have
	Dead     NodeState = "dead"     // gone for longer than one waits: its replicas count as lost
	Removed  NodeState = "removed"  // gone for good
)

// Replica is a node that keeps a place.
type Replica struct {
	Node  string // id
	Role  Role
	Since uint64 // the place's epoch with which it was added: tells it from an earlier stay of the same node
}

// Assignment says which nodes keep a place, in order of preference. The first replica that is full is the primary: it uploads backups.
type Assignment struct {
	Epoch    uint64 // grows with every change
	Replicas []Replica
}

// Replica is the node's replica, nil if it has none.
func (a Assignment) Replica(node string) *Replica {
	for i := range a.Replicas {
		if a.Replicas[i].Node == node {
			return &a.Replicas[i]
		}
	}
	return nil
}

// Full lists the nodes whose replica is full, in order of preference.
func (a Assignment) Full() []string { return a.nodes(func(r Role) bool { return r == Full }) }

// Serving lists the nodes that clients may be sent to, in order of preference: the full replicas, then those that leave.
func (a Assignment) Serving() []string {
	return append(a.Full(), a.nodes(func(r Role) bool { return r == Leaving })...)
}

func (a Assignment) nodes(want func(Role) bool) []string {
	var out []string
	for _, r := range a.Replicas {
		if want(r.Role) {
			out = append(out, r.Node)
		}
	}
	return out
}

// Place is what replicas are kept of: a shard, or one chunk of it that has replicas of its own.
type Place struct {
	Shard Shard
	Chunk Chunk // zero: the shard, without the chunks that have replicas of their own
}

// Override gives one chunk, on every branch, replicas of its own instead of its shard's.
type Override struct {
	Chunk  Chunk
	Pinned bool // somebody asked for it: the plan doesn't take it back
	Assignment
}

// Member is a node of the cluster as placement sees it.
type Member struct {
	ID, Name string
	Zone     string
	State    NodeState
	Silent   bool // it doesn't answer now, and may do so again: it takes up nothing
}

// Layout says which nodes keep which place, and in what role: the full map, as the cluster agrees on it. A layout never changes; every transition makes
// the next one and leaves what it doesn't touch shared between the two.
type Layout struct {
	Epoch    uint64 // grows with every change
	Replicas int    // wanted of each place; 0: as many as there are active nodes, at most MaxReplicas
	Members  []Member
	Shards   []Assignment
	Chunks   []Override // by chunk
}

// MaxReplicas bounds replicas where nobody says how many there are to be.
const MaxReplicas = 3

// Member finds a node by id, nil if it is none.
func (l *Layout) Member(id string) *Member {
	i := slices.IndexFunc(l.Members, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return nil
	}
	return &l.Members[i]
}

// Want is how many replicas each place is to have now: never more than there are active nodes.
func (l *Layout) Want() int {
	active := 0
	for _, m := range l.Members {
		if m.State == Active {
			active++
		}
	}
	return l.wanted(active)
}

// wanted is how many replicas each place is to have with so many nodes to keep them.
func (l *Layout) wanted(nodes int) int {
	want := l.Replicas
	if want == 0 {
		want = MaxReplicas
	}
	return max(1, min(want, nodes))
}

// Override finds the replicas that a chunk has of its own, nil if it has none.
func (l *Layout) Override(c Chunk) *Override {
	i, ok := slices.BinarySearchFunc(l.Chunks, c, func(o Override, c Chunk) int { return o.Chunk.Compare(c) })
	if !ok {
		return nil
	}
	return &l.Chunks[i]
}

// Assignment is where a place is now, nil if there is no such place.
func (l *Layout) Assignment(p Place) *Assignment {
	if p.Chunk != (Chunk{}) {
		if o := l.Override(p.Chunk); o != nil {
			return &o.Assignment
		}
		return nil
	}
	if int(p.Shard) >= len(l.Shards) {
		return nil
	}
	return &l.Shards[p.Shard]
}

// Of is the assignment that holds for a chunk: its own, or its shard's.
func (l *Layout) Of(c Chunk) *Assignment {
	if o := l.Override(c); o != nil {
		return &o.Assignment
	}
	return &l.Shards[ShardOf(c, uint32(len(l.Shards)))]
}

// Compare orders chunks by relation, fork and segment.
func (c Chunk) Compare(o Chunk) int {
	return cmp.Or(c.RelFileLocator.Compare(o.RelFileLocator), cmp.Compare(c.Fork, o.Fork), cmp.Compare(c.Segment, o.Segment))
}
