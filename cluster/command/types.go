package command

import (
	"reflect"
	"time"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// The kinds. Never give a number twice.
const (
	kindMakeCluster Kind = iota + 1
	kindPutNode
	kindSetNodeState
	kindRemoveNode
	kindSetReplicas
	kindAttach
	kindDetach
	kindTakeImport
	kindSetBranch
	kindDropBranches
	kindReserveTimeline
	kindAddReplica
	kindReplicaReady
	kindDropReplica
	kindOrderReplicas
	kindSetManifest
	kindSetRetention
	kindPlanHorizon
	kindApplyHorizon
	kindLease
	kindEndLeases
	kindForgetSlot
	kindSync
	kindReportChunks
	kindSetHole
	kindLoseReplica
	kindSetStore
	kindKeepReplica
	kindSplitChunk
	kindUnsplitChunk
	kindForkBranch
	kindCollectObjects
)

// known are all commands, once each.
var known = []Command{
	&MakeCluster{}, &PutNode{}, &SetNodeState{}, &RemoveNode{}, &SetReplicas{}, &Attach{}, &Detach{}, &TakeImport{}, &SetBranch{}, &DropBranches{}, &ReserveTimeline{},
	&AddReplica{}, &ReplicaReady{}, &DropReplica{}, &OrderReplicas{}, &SetManifest{}, &SetRetention{}, &PlanHorizon{}, &ApplyHorizon{}, &Lease{}, &EndLeases{},
	&ForgetSlot{}, &Sync{}, &SetHole{}, &LoseReplica{}, &SetStore{}, &KeepReplica{}, &SplitChunk{}, &UnsplitChunk{}, &ForkBranch{},
	&ReportChunks{}, &CollectObjects{},
}

// types are the known commands by kind.
var types = func() map[Kind]reflect.Type {
	m := map[Kind]reflect.Type{}
	for _, c := range known {
		m[c.kind()] = reflect.TypeOf(c).Elem()
	}
	return m
}()

// MakeCluster is the first command of every cluster.
type MakeCluster struct {
	ID            string
	Name          string
	Format        uint32
	Shards        uint32
	SegmentBlocks uint32
	Replicas      int // 0: as many as there are nodes, at most 3
}

// PutNode adds a node, or says where a known one is now.
type PutNode struct {
	ID, Name, Zone             string
	PageAddress, RaftAddress   string
	GossipAddress              string
	Format                     uint32
	ReplacesDeadNodeOfSameName bool // its id is gone for good: its replicas are lost
}

// NodeState is what the cluster wants of a node.
type NodeState string

// The states of a node.
const (
	Active   NodeState = "active"
	Draining NodeState = "draining" // its shards go elsewhere
)

// SetNodeState drains a node, or takes that back.
type SetNodeState struct {
	ID    string
	State NodeState
}

// RemoveNode takes a node out of the cluster for good. Its replicas are lost.
type RemoveNode struct {
	ID string
	// Force removes a node that still has the only full replica of a shard.
	Force bool
	Slot  string // that the node has on the followed primary, to be dropped
}

// SetReplicas says how many replicas each shard is to have. 0: as many as there are nodes, at most 3.
type SetReplicas struct{ Replicas int }

// Attach says which primary to follow.
type Attach struct {
	Conninfo         string
	Primary          string // where and as whom, for people
	SystemIdentifier uint64
	Major            pg.Major
	WALSegmentSize   uint32
	Importer         string   // node id that takes the base backup, if one is needed
	Slots            []string // that the nodes have or make there: those of them that were left are in use again
	// Former are slots there of a cluster that this one took the place of, and that nobody uses any more.
	Former []string `json:",omitempty"`
}

// Detach ends following. The slots that nodes have there are to be dropped.
type Detach struct{ Slots []string }

// TakeImport gives the import to another node, whose predecessor is gone or lost it. Everything imported so far is void.
type TakeImport struct {
	Importer string
	From     string // the importer until now
}

// SetBranch makes a branch or changes it. All but Number, Parent and Fork may change later. An import that was not completed vanishes with the next one.
type SetBranch struct {
	Number   uint32 // 0: the next one
	Parent   uint32
	Fork     pg.LSN
	Timeline pg.TimelineID
	History  []byte // the .history file of Timeline; empty for 1
	Start    pg.LSN // of its base backup; 0: it has a parent
	Imported bool   // the base backup is complete
	Importer string // node id; must be the one that the state names
	Main     bool   // main is this branch from now on
	// NextTimeline is at least the next timeline id to give out, where a cluster is recovered.
	NextTimeline pg.TimelineID
}

// ForkBranch makes the branch of a timeline that the primary went over to, and lets main be it. The result is its number. Every node that sees the switch says
// so: the first one makes the branch.
type ForkBranch struct {
	Parent   uint32 // main until now
	Fork     pg.LSN // where the parent's timeline was left
	Timeline pg.TimelineID
	History  []byte // the .history file of Timeline
}

// DropBranches forgets all history: the data of every branch and what was followed. Timeline ids given out stay so.
type DropBranches struct{}

// SetHole says that history has a hole which only a new import mends.
//
// With an Importer that node takes the new base backup at once. What main is now stays readable, and main until the import is complete.
type SetHole struct {
	Hole     string
	Branch   uint32 // main, as whoever proposes it knows
	Importer string
}

// ReserveTimeline gives out a timeline id that was never given before. The result is the id.
type ReserveTimeline struct{}

// Of is the shard that a command is about, or one chunk that has replicas of its own.
type Of struct {
	Shard placement.Shard
	Chunk *placement.Chunk `json:",omitempty"`
}

// Place is the same in the words of package placement.
func (o Of) Place() placement.Place {
	p := placement.Place{Shard: o.Shard}
	if o.Chunk != nil {
		p.Chunk = *o.Chunk
	}
	return p
}

// OfPlace is the opposite of Place.
func OfPlace(p placement.Place) Of {
	o := Of{Shard: p.Shard}
	if p.Chunk != (placement.Chunk{}) {
		o.Chunk = &p.Chunk
	}
	return o
}

// AddReplica has a node take up a shard or chunk.
type AddReplica struct {
	Of
	Node  string
	Epoch uint64 // of the place, as the planner saw it; 0 fits any, here and below
	// Replaces leaves when this one is full; empty: none.
	Replaces string
}

// ReplicaReady says that a joining replica has all.
type ReplicaReady struct {
	Of
	Node  string
	Since uint64 // the place's epoch with which the replica was added
}

// DropReplica takes a shard or chunk from a node.
type DropReplica struct {
	Of
	Node  string
	Epoch uint64
}

// KeepReplica has a replica stay that was to leave.
type KeepReplica struct {
	Of
	Node  string
	Epoch uint64
}

// LoseReplica says that a node no longer has what it had: its disk was replaced or damaged. It is joining again.
type LoseReplica struct {
	Of
	Node string
}

// OrderReplicas puts a full replica first.
type OrderReplicas struct {
	Of
	First string
	Epoch uint64
}

// SplitChunk gives a chunk replicas of its own, at first those of its shard.
type SplitChunk struct {
	Chunk  placement.Chunk
	Epoch  uint64 // of its shard
	Pinned bool   // somebody asked for it: it is not taken back because the chunk has cooled down
}

// UnsplitChunk gives a chunk back to its shard.
type UnsplitChunk struct {
	Chunk placement.Chunk
	Epoch uint64 // of the chunk
}

// SetManifest names the manifest of a shard's backup. It is refused unless Old is the one until now and the shard has Epoch.
type SetManifest struct {
	Branch   uint32
	Shard    placement.Shard // shards and above: the small classes
	Epoch    uint64
	Old, New string
	LSN      pg.LSN // up to which the store has the shard
	// OldestUS is when the first of the objects that New needs and Old doesn't was written, in µs since 1970 by the store's clock; 0: there is none. It is refused
	// where CollectObjects said that objects of that age go.
	OldestUS int64 `json:",omitempty"`
}

// CollectObjects announces that objects which were written to the store before then, by its clock, are deleted unless a manifest that is current now needs them.
type CollectObjects struct{ BeforeUS int64 }

// SetRetention sets how long history is kept, or how many bytes of WAL it spans: one of the two. Both 0: for ever. Horizons that are planned and not yet final
// are withdrawn.
type SetRetention struct {
	Retention time.Duration
	Bytes     uint64
}

// PlanHorizon announces that LSNs below are about to be no longer answered; leases below are refused from then on.
type PlanHorizon struct {
	Branch uint32
	LSN    pg.LSN
	// For is the retention that the LSN was worked out for, nil: none. The plan is refused where another one has been set since.
	For *SetRetention `json:",omitempty"`
}

// ApplyHorizon makes a planned horizon final. Leases hold it back.
type ApplyHorizon struct {
	Branch uint32
	LSN    pg.LSN
}

// Lease pins an LSN. The result is the lease's number.
type Lease struct {
	Branch  uint32
	LSN     pg.LSN
	Seconds uint32
	Renew   uint64 // the lease to extend; 0: a new one
}

// EndLeases ends leases that the leader found expired, or that were given back.
type EndLeases struct {
	Leases []uint64
	Before uint64 // spares leases that were made or renewed at or behind this index; 0: none
}

// ForgetSlot says that a slot that was left on a primary is gone.
type ForgetSlot struct{ Slot string }

// Sync changes nothing: whoever sees it applied sees all that was agreed before it was proposed.
type Sync struct{}

// ReportChunks tells what the owners of chunks have seen of them: reports as package catalog packs them, sorted, each chunk once.
type ReportChunks struct{ Reports []byte }

// SetStore names the store that backups go to.
type SetStore struct{ URL string }

func (*MakeCluster) kind() Kind     { return kindMakeCluster }
func (*PutNode) kind() Kind         { return kindPutNode }
func (*SetNodeState) kind() Kind    { return kindSetNodeState }
func (*RemoveNode) kind() Kind      { return kindRemoveNode }
func (*SetReplicas) kind() Kind     { return kindSetReplicas }
func (*Attach) kind() Kind          { return kindAttach }
func (*Detach) kind() Kind          { return kindDetach }
func (*TakeImport) kind() Kind      { return kindTakeImport }
func (*SetBranch) kind() Kind       { return kindSetBranch }
func (*DropBranches) kind() Kind    { return kindDropBranches }
func (*ReserveTimeline) kind() Kind { return kindReserveTimeline }
func (*AddReplica) kind() Kind      { return kindAddReplica }
func (*ReplicaReady) kind() Kind    { return kindReplicaReady }
func (*DropReplica) kind() Kind     { return kindDropReplica }
func (*OrderReplicas) kind() Kind   { return kindOrderReplicas }
func (*SetManifest) kind() Kind     { return kindSetManifest }
func (*SetRetention) kind() Kind    { return kindSetRetention }
func (*PlanHorizon) kind() Kind     { return kindPlanHorizon }
func (*ApplyHorizon) kind() Kind    { return kindApplyHorizon }
func (*Lease) kind() Kind           { return kindLease }
func (*EndLeases) kind() Kind       { return kindEndLeases }
func (*ForgetSlot) kind() Kind      { return kindForgetSlot }
func (*Sync) kind() Kind            { return kindSync }
func (*SetHole) kind() Kind         { return kindSetHole }
func (*LoseReplica) kind() Kind     { return kindLoseReplica }
func (*SetStore) kind() Kind        { return kindSetStore }
func (*KeepReplica) kind() Kind     { return kindKeepReplica }
func (*SplitChunk) kind() Kind      { return kindSplitChunk }
func (*UnsplitChunk) kind() Kind    { return kindUnsplitChunk }
func (*ForkBranch) kind() Kind      { return kindForkBranch }
func (*ReportChunks) kind() Kind    { return kindReportChunks }
func (*CollectObjects) kind() Kind  { return kindCollectObjects }
