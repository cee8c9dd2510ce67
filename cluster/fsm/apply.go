package fsm

import (
	"fmt"
	"slices"
	"strings"

	"everpage/cluster/command"
	"everpage/wal/pg"
)

// Refused is why a command was not carried out. The state is as before, on every node.
type Refused struct{ Reason string }

func (r *Refused) Error() string { return r.Reason }

func refuse(format string, args ...any) error { return &Refused{fmt.Sprintf(format, args...)} }

// Apply is the state after a command, and the command's result, if it has one. On a Refused nothing but Index changes. Any other error means that this
// release can't carry the command out.
func (s *State) Apply(index uint64, c command.Command) (*State, any, error) {
	next := *s
	next.Index = index
	result, err := next.apply(c)
	if err != nil {
		unchanged := *s
		unchanged.Index = index
		return &unchanged, nil, err
	}
	return &next, result, nil
}

// apply changes s, a copy: slices are shared with the state before and cloned before they change.
func (s *State) apply(c command.Command) (any, error) {
	if made, ok := c.(*command.MakeCluster); ok {
		return nil, s.makeCluster(made)
	}
	if s.ID == "" {
		return nil, refuse("there is no cluster yet")
	}
	switch c := c.(type) {
	case *command.PutNode:
		return nil, s.putNode(c)
	case *command.SetNodeState:
		return nil, s.setNodeState(c)
	case *command.RemoveNode:
		return nil, s.removeNode(c)
	case *command.SetReplicas:
		return nil, s.setReplicas(c)
	case *command.AddReplica:
		return s.addReplica(c)
	case *command.ReplicaReady:
		return nil, s.replicaReady(c)
	case *command.DropReplica:
		return nil, s.dropReplica(c)
	case *command.LoseReplica:
		return nil, s.loseReplica(c)
	case *command.OrderReplicas:
		return nil, s.orderReplicas(c)
	case *command.KeepReplica:
		return nil, s.keepReplica(c)
	case *command.SplitChunk:
		return nil, s.splitChunk(c)
	case *command.UnsplitChunk:
		return nil, s.unsplitChunk(c)
	case *command.Attach:
		return nil, s.attach(c)
	case *command.Detach:
		return nil, s.detach(c)
	case *command.TakeImport:
		return nil, s.takeImport(c)
	case *command.SetBranch:
		return s.setBranch(c)
	case *command.ForkBranch:
		return s.forkBranch(c)
	case *command.DropBranches:
		return nil, s.dropBranches()
	case *command.SetHole:
		return nil, s.setHole(c)
	case *command.ReserveTimeline:
		return s.reserveTimeline()
	case *command.ForgetSlot:
		s.Left = slices.DeleteFunc(slices.Clone(s.Left), func(l LeftSlot) bool { return l.Slot == c.Slot })
		return nil, nil
	case *command.SetStore:
		s.Store = c.URL
		return nil, nil
	case *command.SetManifest:
		return nil, s.setManifest(c)
	case *command.CollectObjects:
		s.CollectedUS = max(s.CollectedUS, c.BeforeUS)
		return nil, nil
	case *command.SetRetention:
		return nil, s.setRetention(c)
	case *command.PlanHorizon:
		return nil, s.planHorizon(c)
	case *command.ApplyHorizon:
		return nil, s.applyHorizon(c)
	case *command.Lease:
		return s.lease(c)
	case *command.EndLeases:
		s.Leases = slices.DeleteFunc(slices.Clone(s.Leases), func(l Lease) bool {
			return slices.Contains(c.Leases, l.Number) && (c.Before == 0 || l.Renewed < c.Before)
		})
		return nil, nil
	case *command.ReportChunks:
		return nil, s.reportChunks(c)
	case *command.Sync:
		return nil, nil
	}
	return nil, fmt.Errorf("command %s is known, but not how to carry it out", command.Name(c))
}

func (s *State) makeCluster(c *command.MakeCluster) error {
	switch {
	case s.ID != "":
		return refuse("cluster %s is made already", s.Name)
	case c.ID == "" || c.Name == "" || c.SegmentBlocks == 0:
		return refuse("a cluster needs an id, a name and a segment size")
	case c.Shards == 0 || c.Shards > 1<<16:
		return refuse("%d shards: want 1 to %d", c.Shards, 1<<16)
	}
	s.ID, s.Name, s.Format, s.Shards, s.SegmentBlocks, s.Replicas = c.ID, c.Name, c.Format, c.Shards, c.SegmentBlocks, c.Replicas
	s.Map = make([]Assignment, c.Shards)
	s.NextBranch, s.NextTimeline, s.NextLease, s.MapEpoch = 1, 2, 1, 1
	return nil
}

// putNode adds a member or moves one. The first member gets all shards.
func (s *State) putNode(c *command.PutNode) error {
	if c.ID == "" || c.Name == "" || c.PageAddress == "" {
		return refuse("a node needs an id, a name and an address")
	}
	if c.Format < s.Format {
		return refuse("node %s knows formats up to %d, the cluster has %d: run the newer release on it", c.Name, c.Format, s.Format)
	}
	other := s.NodeNamed(c.Name)
	if other != nil && other.ID != c.ID {
		if !c.ReplacesDeadNodeOfSameName {
			return refuse("a node named %s is a member already (id %s, %s): give this one another name with --node, or remove the other one with everpage node remove %s",
				c.Name, other.ID, other.PageAddress, c.Name)
		}
		if err := s.removeNode(&command.RemoveNode{ID: other.ID, Force: false}); err != nil {
			return err
		}
	}
	n := Node{ID: c.ID, Name: c.Name, Zone: c.Zone, PageAddress: c.PageAddress, RaftAddress: c.RaftAddress, GossipAddress: c.GossipAddress, Format: c.Format,
		State: command.Active}
	if old := s.Node(c.ID); old != nil {
		if old.Name != c.Name {
			return refuse("node %s can't be renamed to %s", old.Name, c.Name)
		}
		n.State = old.State
	}
	first := len(s.Nodes) == 0
	s.Nodes = slices.DeleteFunc(slices.Clone(s.Nodes), func(x Node) bool { return x.ID == c.ID })
	i, _ := slices.BinarySearchFunc(s.Nodes, c.Name, func(n Node, name string) int { return strings.Compare(n.Name, name) })
	s.Nodes = slices.Insert(s.Nodes, i, n)
	s.MapEpoch++
	if first {
		s.giveAll(c.ID)
	}
	return nil
}

// giveAll makes a node the one full replica of every shard, which it may be only while there is no history.
func (s *State) giveAll(node string) {
	s.Map = slices.Clone(s.Map)
	for i := range s.Map {
		epoch := s.Map[i].Epoch + 1
		s.Map[i] = Assignment{Epoch: epoch, Replicas: []Replica{{Node: node, Role: full, Since: epoch}}}
	}
	s.Chunks = nil
	s.MapEpoch++
}

// takeAll makes a node the one that has all shards of a new history. The others keep what they have of older ones, and join again.
func (s *State) takeAll(node string) {
	s.Map = slices.Clone(s.Map)
	for i := range s.Map {
		epoch := s.Map[i].Epoch + 1
		a := Assignment{Epoch: epoch, Replicas: []Replica{{Node: node, Role: full, Since: epoch}}}
		for _, r := range s.Map[i].Replicas {
			if r.Node != node {
				a.Replicas = append(a.Replicas, Replica{Node: r.Node, Role: joining, Since: epoch})
			}
		}
		s.Map[i] = a
	}
	s.Chunks = nil
	s.MapEpoch++
}

func (s *State) setNodeState(c *command.SetNodeState) error {
	if s.Node(c.ID) == nil {
		return refuse("node %s is not a member", c.ID)
	}
	if c.State != command.Active && c.State != command.Draining {
		return refuse("node state %q is not known", c.State)
	}
	s.Nodes = slices.Clone(s.Nodes)
	s.Node(c.ID).State = c.State
	if c.State == command.Draining && !slices.ContainsFunc(s.Nodes, func(n Node) bool { return n.State == command.Active }) {
		return refuse("node %s is the last one that is not drained: its shards have nowhere to go", s.Node(c.ID).Name)
	}
	return nil
}

func (s *State) removeNode(c *command.RemoveNode) error {
	n := s.Node(c.ID)
	if n == nil {
		return refuse("node %s is not a member", c.ID)
	}
	name := n.Name
	if len(s.Nodes) == 1 {
		return refuse("node %s is the last node of the cluster: it can't be removed", name)
	}
	if !c.Force && len(s.Branches) > 0 {
		for shard, a := range s.Map {
			if has := a.Serving(); len(has) == 1 && has[0] == c.ID {
				return refuse("node %s has the only full replica of shard %d: drain it first (everpage node drain %s), or bring back a node that has another", name, shard, name)
			}
		}
	}
	if len(s.Branches) == 0 {
		s.Chunks = nil
	}
	s.Map, s.Chunks = slices.Clone(s.Map), slices.Clone(s.Chunks)
	for i := range s.Map {
		withdraw(&s.Map[i], c.ID)
	}
	for i := range s.Chunks {
		withdraw(&s.Chunks[i].Assignment, c.ID)
	}
	for _, o := range s.Chunks {
		if len(o.Serving()) == 0 { // its shard's replicas have it
			s.unsplit(o.Chunk)
		}
	}
	s.Nodes = slices.DeleteFunc(slices.Clone(s.Nodes), func(x Node) bool { return x.ID == c.ID })
	if c.Slot != "" && s.Follow.Conninfo != "" {
		s.Left = append(slices.Clone(s.Left), LeftSlot{Slot: c.Slot, Conninfo: s.Follow.Conninfo, Primary: s.Follow.Primary})
	}
	if s.Follow.Importer == c.ID {
		s.Follow.Importer = ""
		s.Follow.Epoch++
	}
	if len(s.Branches) == 0 { // nothing is lost: all shards are as good anywhere
		for i := range s.Map {
			if len(s.Map[i].Replicas) == 0 {
				epoch := s.Map[i].Epoch + 1
				s.Map[i] = Assignment{Epoch: epoch, Replicas: []Replica{{Node: s.Nodes[0].ID, Role: full, Since: epoch}}}
			}
		}
	}
	s.MapEpoch++
	return nil
}

// withdraw takes a node's replica away from an assignment, which is our own.
func withdraw(a *Assignment, node string) {
	if a.Replica(node) == nil {
		return
	}
	a.Replicas = slices.DeleteFunc(slices.Clone(a.Replicas), func(r Replica) bool { return r.Node == node })
	a.Epoch++
}

func (s *State) setReplicas(c *command.SetReplicas) error {
	if c.Replicas < 0 {
		return refuse("%d replicas: want 1 or more, or 0 for as many as there are nodes, at most %d", c.Replicas, MaxReplicas)
	}
	if c.Replicas > len(s.Nodes) {
		return refuse("%d replicas need as many nodes, the cluster has %d", c.Replicas, len(s.Nodes))
	}
	s.Replicas = c.Replicas
	return nil
}

func (s *State) reserveTimeline() (any, error) {
	if len(s.Branches) == 0 {
		return nil, refuse("there is no history yet")
	}
	tli := s.NextTimeline
	for _, b := range s.Branches {
		tli = max(tli, b.Timeline+1)
	}
	s.NextTimeline = tli + 1
	return tli, nil
}

func (s *State) raiseTimeline(tli pg.TimelineID) { s.NextTimeline = max(s.NextTimeline, tli+1) }
