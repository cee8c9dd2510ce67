package fsm

import (
	"slices"

	"everpage/cluster/command"
	"everpage/cluster/placement"
)

// Layout is the map as package placement sees it. It shares the state's slices: neither changes them.
func (s *State) Layout() *placement.Layout {
	l := &placement.Layout{Epoch: s.MapEpoch, Replicas: s.Replicas, Shards: s.Map, Chunks: s.Chunks, Members: make([]placement.Member, len(s.Nodes))}
	for i, n := range s.Nodes {
		l.Members[i] = placement.Member{ID: n.ID, Name: n.Name, Zone: n.Zone, State: placement.NodeState(n.State)}
	}
	return l
}

// take makes a transition's result the state's map, or says why it was refused.
func (s *State) take(next *placement.Layout, err error) error {
	if err != nil {
		return refuse("%v", err)
	}
	s.Map, s.Chunks, s.MapEpoch = next.Shards, next.Chunks, next.Epoch
	return nil
}

// addReplica answers the epoch with which the replica was added.
func (s *State) addReplica(c *command.AddReplica) (any, error) {
	role := joining
	if len(s.Branches) == 0 && s.Follow.Conninfo == "" {
		role = full // there is nothing to have yet
	}
	if err := s.take(s.Layout().Add(c.Place(), c.Epoch, c.Node, c.Replaces, role)); err != nil {
		return nil, err
	}
	return s.Layout().Assignment(c.Place()).Epoch, nil
}

// replicaReady also ends the stay of one that was to leave, if there are enough without it.
func (s *State) replicaReady(c *command.ReplicaReady) error {
	if err := s.take(s.Layout().Promote(c.Place(), c.Node, c.Since)); err != nil {
		return err
	}
	l := s.Layout()
	a := l.Assignment(c.Place())
	i := slices.IndexFunc(a.Replicas, func(r Replica) bool { return r.Role == placement.Leaving })
	if i < 0 || len(a.Full()) < l.Want() {
		return nil
	}
	return s.take(l.Remove(c.Place(), 0, a.Replicas[i].Node, false))
}

func (s *State) dropReplica(c *command.DropReplica) error {
	return s.take(s.Layout().Remove(c.Place(), c.Epoch, c.Node, false))
}

func (s *State) keepReplica(c *command.KeepReplica) error {
	return s.take(s.Layout().Leave(c.Place(), c.Epoch, c.Node, true))
}

// loseReplica has a replica join again.
func (s *State) loseReplica(c *command.LoseReplica) error {
	if a := s.Layout().Assignment(c.Place()); a != nil {
		if r := a.Replica(c.Node); r != nil && r.Role == joining {
			return nil
		}
	}
	return s.take(s.Layout().Lose(c.Place(), c.Node))
}

func (s *State) orderReplicas(c *command.OrderReplicas) error {
	if a := s.Layout().Assignment(c.Place()); a != nil && len(a.Replicas) > 0 && a.Replicas[0].Node == c.First && a.Replicas[0].Role == full {
		return nil
	}
	return s.take(s.Layout().Prefer(c.Place(), c.Epoch, c.First))
}

func (s *State) splitChunk(c *command.SplitChunk) error {
	return s.take(s.Layout().Split(c.Chunk, c.Epoch, c.Pinned))
}

// unsplitChunk gives a chunk back to its shard, all of whose replicas have it too: clients go there from now on.
func (s *State) unsplitChunk(c *command.UnsplitChunk) error {
	o := s.Layout().Override(c.Chunk)
	switch {
	case o == nil:
		return refuse("chunk %s has no replicas of its own", c.Chunk)
	case c.Epoch != 0 && c.Epoch != o.Epoch:
		return refuse("chunk %s has epoch %d, the command was meant for %d", c.Chunk, o.Epoch, c.Epoch)
	}
	s.unsplit(c.Chunk)
	return nil
}

// unsplit takes a chunk's own replicas away. The shard's epoch passes the chunk's.
func (s *State) unsplit(c placement.Chunk) {
	shard := placement.ShardOf(c, uint32(len(s.Map)))
	own := s.Layout().Override(c).Epoch
	s.Map = slices.Clone(s.Map)
	s.Map[shard].Epoch = max(s.Map[shard].Epoch, own) + 1
	s.Chunks = slices.DeleteFunc(slices.Clone(s.Chunks), func(o Override) bool { return o.Chunk == c })
	s.MapEpoch++
}
