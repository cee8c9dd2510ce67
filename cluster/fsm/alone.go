package fsm

import (
	"slices"

	"everpage/cluster/command"
)

// Alone is the state of the cluster that one node makes of what it has, when so many others were lost that nothing can be agreed on any more. It has another
// id: whoever was lost and comes back all the same is refused, and must not write where this cluster writes. slot names the replication slot of a node.
func (s *State) Alone(node, id string, slot func(name string) (string, error)) (*State, error) {
	next := *s
	me := s.Node(node)
	switch {
	case s.ID == "":
		return nil, refuse("this node has no state of a cluster: let it join one")
	case me == nil:
		return nil, refuse("this node is no member of cluster %s", s.Name)
	case id == "" || id == s.ID:
		return nil, refuse("the cluster needs a new id")
	}
	next.Map = make([]Assignment, len(s.Map))
	for i, a := range s.Map {
		if r := a.Replica(node); len(s.Branches) > 0 && (r == nil || r.Role == joining) {
			return nil, refuse("node %s has no whole replica of shard %d: choose a node that has all shards, or make a new cluster of the store with everpage serve --recover", me.Name, i)
		}
		next.Map[i] = Assignment{Epoch: a.Epoch + 1, Replicas: []Replica{{Node: node, Role: full, Since: a.Epoch + 1}}}
	}
	next.Chunks = nil // their shards' again, whose replicas have them all along
	next.MapEpoch++
	next.ID, next.Former = id, append(slices.Clone(s.Former), s.ID)
	alone := *me
	alone.State = command.Active
	next.Nodes = []Node{alone}
	next.Left = slices.Clone(s.Left)
	for _, n := range s.Nodes {
		if n.ID == node || s.Follow.Conninfo == "" {
			continue
		}
		name, err := slot(n.Name)
		if err != nil {
			return nil, err
		}
		next.Left = append(slices.DeleteFunc(next.Left, func(l LeftSlot) bool { return l.Slot == name }), LeftSlot{Slot: name, Conninfo: s.Follow.Conninfo, Primary: s.Follow.Primary})
	}
	if s.Follow.Importer != "" {
		next.Follow.Importer = node
		next.Follow.Epoch++
	}
	return &next, nil
}
