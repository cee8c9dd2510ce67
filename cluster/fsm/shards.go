package fsm

import (
	"slices"

	"everpage/cluster/command"
	"everpage/cluster/placement"
)

// shard clones the map for a change of one shard, if the command fits the state. epoch 0 fits always.
func (s *State) shard(shard placement.Shard, epoch uint64) (*Assignment, error) {
	if int(shard) >= len(s.Map) {
		return nil, refuse("shard %d: the cluster has %d", shard, len(s.Map))
	}
	if have := s.Map[shard].Epoch; epoch != 0 && epoch != have {
		return nil, refuse("shard %d has epoch %d, the command was meant for %d", shard, have, epoch)
	}
	s.Map = slices.Clone(s.Map)
	a := &s.Map[shard]
	a.Replicas = slices.Clone(a.Replicas)
	return a, nil
}

// addReplica answers the epoch with which the replica was added.
func (s *State) addReplica(c *command.AddReplica) (any, error) {
	n := s.Node(c.Node)
	switch {
	case n == nil:
		return nil, refuse("node %s is not a member", c.Node)
	case n.State != command.Active:
		return nil, refuse("node %s is %s: it takes no shards", n.Name, n.State)
	}
	a, err := s.shard(c.Shard, c.Epoch)
	if err != nil {
		return nil, err
	}
	if a.Replica(c.Node) != nil {
		return nil, refuse("node %s has shard %d already", n.Name, c.Shard)
	}
	if c.Replaces != "" {
		old := a.Replica(c.Replaces)
		if old == nil {
			return nil, refuse("the node whose replica of shard %d is to be replaced has none", c.Shard)
		}
		if old.Role == full {
			old.Role = placement.Leaving // it serves until the new one does
		}
	}
	a.Epoch++
	role := joining
	if len(s.Branches) == 0 && s.Follow.Conninfo == "" {
		role = full // there is nothing to have yet
	}
	a.Replicas = append(a.Replicas, Replica{Node: c.Node, Role: role, Since: a.Epoch})
	if role == full {
		s.MapEpoch++
	}
	return a.Epoch, nil
}

func (s *State) replicaReady(c *command.ReplicaReady) error {
	a, err := s.shard(c.Shard, 0)
	if err != nil {
		return err
	}
	r := a.Replica(c.Node)
	if r == nil || r.Since != c.Since {
		return refuse("shard %d is no longer wanted on that node", c.Shard)
	}
	if r.Role == full {
		return nil
	}
	r.Role = full
	a.Epoch++
	s.MapEpoch++
	for _, old := range slices.Clone(a.Replicas) {
		if old.Role == placement.Leaving { // its successor is here
			s.withdraw(int(c.Shard), old.Node)
			break
		}
	}
	return nil
}

func (s *State) dropReplica(c *command.DropReplica) error {
	a, err := s.shard(c.Shard, c.Epoch)
	if err != nil {
		return err
	}
	r := a.Replica(c.Node)
	if r == nil {
		return refuse("that node has no replica of shard %d", c.Shard)
	}
	if r.Role == full && len(a.Full()) == 1 {
		return refuse("it is the last full replica of shard %d", c.Shard)
	}
	s.withdraw(int(c.Shard), c.Node)
	s.MapEpoch++
	return nil
}

// loseReplica has a replica join again.
func (s *State) loseReplica(c *command.LoseReplica) error {
	a, err := s.shard(c.Shard, 0)
	if err != nil {
		return err
	}
	r := a.Replica(c.Node)
	if r == nil || r.Role == joining {
		return nil
	}
	if len(a.Full()) == 1 {
		return refuse("it is the last full replica of shard %d", c.Shard)
	}
	a.Epoch++
	r.Role, r.Since = joining, a.Epoch
	s.MapEpoch++
	return nil
}

func (s *State) orderReplicas(c *command.OrderReplicas) error {
	a, err := s.shard(c.Shard, c.Epoch)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(a.Replicas, func(r Replica) bool { return r.Node == c.First && r.Role == full })
	if i < 0 {
		return refuse("that node has no full replica of shard %d", c.Shard)
	}
	if i == 0 {
		return nil
	}
	r := a.Replicas[i]
	a.Replicas = slices.Insert(slices.Delete(a.Replicas, i, i+1), 0, r)
	a.Epoch++
	s.MapEpoch++
	return nil
}
