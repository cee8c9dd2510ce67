package placement

import (
	"errors"
	"fmt"
	"slices"
)

// What a transition is refused for. The errors that bear them say of what, and what to do.
var (
	ErrNoPlace         = errors.New("no such shard or chunk")
	ErrNoNode          = errors.New("no such node")
	ErrNodeState       = errors.New("the node takes no replicas")
	ErrPast            = errors.New("meant for an older map")
	ErrFuture          = errors.New("meant for a newer map than this one")
	ErrHasReplica      = errors.New("the node has a replica already")
	ErrNoReplica       = errors.New("the node has no such replica")
	ErrLastReplica     = errors.New("it is the last complete replica")
	ErrTooManyReplicas = errors.New("more replicas than nodes")
	ErrHasOverride     = errors.New("the chunk has replicas of its own already")
	ErrStillApart      = errors.New("the chunk's replicas are not its shard's")
)

func (p Place) String() string {
	if p.Chunk != (Chunk{}) {
		return fmt.Sprintf("chunk %s", p.Chunk)
	}
	return fmt.Sprintf("shard %d", p.Shard)
}

// change makes the layout that differs in one place. epoch is that of the place as whoever asks saw it; 0 fits any.
func (l *Layout) change(p Place, epoch uint64, do func(*Assignment) error) (*Layout, error) {
	have := l.Assignment(p)
	switch {
	case have == nil && p.Chunk != (Chunk{}):
		return nil, fmt.Errorf("%s: %w: it has no replicas of its own; its shard has them", p, ErrNoPlace)
	case have == nil:
		return nil, fmt.Errorf("%s: %w: the cluster has %d", p, ErrNoPlace, len(l.Shards))
	case epoch != 0 && epoch < have.Epoch:
		return nil, fmt.Errorf("%s: %w: epoch %d, it has %d by now; look again and repeat", p, ErrPast, epoch, have.Epoch)
	case epoch > have.Epoch:
		return nil, fmt.Errorf("%s: %w: epoch %d, it has %d here; another cluster, or a node that is behind", p, ErrFuture, epoch, have.Epoch)
	}
	next := *l
	a := Assignment{have.Epoch + 1, slices.Clone(have.Replicas)}
	if err := do(&a); err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	next.Epoch++
	if p.Chunk != (Chunk{}) {
		next.Chunks = slices.Clone(l.Chunks)
		next.Override(p.Chunk).Assignment = a
	} else {
		next.Shards = slices.Clone(l.Shards)
		next.Shards[p.Shard] = a
	}
	return &next, nil
}

// name is a node's name for messages.
func (l *Layout) name(id string) string {
	if m := l.Member(id); m != nil && m.Name != "" {
		return m.Name
	}
	return id
}

// Add has a node take up a place. replaces, if not empty, names the node whose replica leaves once the new one is full. role is Joining, but Full while there
// is nothing to have yet.
func (l *Layout) Add(p Place, epoch uint64, node, replaces string, role Role) (*Layout, error) {
	m := l.Member(node)
	if m == nil {
		return nil, fmt.Errorf("%s: node %s: %w in this cluster; everpage node list shows them", p, node, ErrNoNode)
	}
	if m.State != Active {
		return nil, fmt.Errorf("%s: node %s is %s: %w; name an active one", p, l.name(node), m.State, ErrNodeState)
	}
	return l.change(p, epoch, func(a *Assignment) error {
		if r := a.Replica(node); r != nil {
			return fmt.Errorf("node %s is %s: %w", l.name(node), r.Role, ErrHasReplica)
		}
		if replaces != "" {
			r := a.Replica(replaces)
			if r == nil {
				return fmt.Errorf("node %s, which is to be replaced: %w", l.name(replaces), ErrNoReplica)
			}
			if r.Role == Full {
				r.Role = Leaving
			}
		}
		a.Replicas = append(a.Replicas, Replica{node, role, a.Epoch})
		return nil
	})
}

// Promote says that a joining replica has all. since tells which stay of the node is meant.
func (l *Layout) Promote(p Place, node string, since uint64) (*Layout, error) {
	return l.change(p, 0, func(a *Assignment) error {
		r := a.Replica(node)
		if r == nil || r.Since != since {
			return fmt.Errorf("node %s since epoch %d: %w any more; what it has may be dropped", l.name(node), since, ErrNoReplica)
		}
		if r.Role == Joining {
			r.Role = Full
		}
		return nil
	})
}

// Lose says that a node no longer has what it had: its replica is joining again.
func (l *Layout) Lose(p Place, node string) (*Layout, error) {
	return l.change(p, 0, func(a *Assignment) error {
		r := a.Replica(node)
		if r == nil {
			return fmt.Errorf("node %s: %w", l.name(node), ErrNoReplica)
		}
		if r.Role.Complete() && len(a.Serving()) == 1 {
			return fmt.Errorf("node %s: %w; nobody could give it back", l.name(node), ErrLastReplica)
		}
		r.Role, r.Since = Joining, a.Epoch
		return nil
	})
}

// Leave marks a full replica as one that goes once enough others are full. stay takes the mark back.
func (l *Layout) Leave(p Place, epoch uint64, node string, stay bool) (*Layout, error) {
	from, to := Full, Leaving
	if stay {
		from, to = to, from
	}
	return l.change(p, epoch, func(a *Assignment) error {
		r := a.Replica(node)
		if r == nil || r.Role != from {
			return fmt.Errorf("node %s: %w that is %s", l.name(node), ErrNoReplica, from)
		}
		r.Role = to
		return nil
	})
}

// Remove takes a replica from a node. The last complete one stays, unless force says that it is lost anyway.
func (l *Layout) Remove(p Place, epoch uint64, node string, force bool) (*Layout, error) {
	return l.change(p, epoch, func(a *Assignment) error {
		r := a.Replica(node)
		if r == nil {
			return fmt.Errorf("node %s: %w", l.name(node), ErrNoReplica)
		}
		if r.Role.Complete() && len(a.Serving()) == 1 && !force {
			return fmt.Errorf("node %s: %w; move it to another node first", l.name(node), ErrLastReplica)
		}
		a.Replicas = slices.DeleteFunc(a.Replicas, func(r Replica) bool { return r.Node == node })
		return nil
	})
}

// Prefer puts a full replica first.
func (l *Layout) Prefer(p Place, epoch uint64, node string) (*Layout, error) {
	return l.change(p, epoch, func(a *Assignment) error {
		i := slices.IndexFunc(a.Replicas, func(r Replica) bool { return r.Node == node })
		if i < 0 || a.Replicas[i].Role != Full {
			return fmt.Errorf("node %s: %w that is full", l.name(node), ErrNoReplica)
		}
		r := a.Replicas[i]
		a.Replicas = slices.Insert(slices.Delete(a.Replicas, i, i+1), 0, r)
		return nil
	})
}

// Split gives a chunk replicas of its own: at first its shard's, so that nothing moves. epoch is the shard's.
func (l *Layout) Split(c Chunk, epoch uint64, pinned bool) (*Layout, error) {
	if c == (Chunk{}) {
		return nil, fmt.Errorf("chunk %s: %w", c, ErrNoPlace)
	}
	at, found := slices.BinarySearchFunc(l.Chunks, c, func(o Override, c Chunk) int { return o.Chunk.Compare(c) })
	if found {
		return nil, fmt.Errorf("chunk %s: %w", c, ErrHasOverride)
	}
	// The shard's epoch grows too: what was planned for the shard as a whole no longer fits.
	next, err := l.change(Place{Shard: ShardOf(c, uint32(len(l.Shards)))}, epoch, func(*Assignment) error { return nil })
	if err != nil {
		return nil, err
	}
	shard := next.Of(c)
	next.Chunks = slices.Insert(slices.Clone(l.Chunks), at, Override{c, pinned, Assignment{shard.Epoch, slices.Clone(shard.Replicas)}})
	return next, nil
}

// Unsplit gives a chunk back to its shard, each of whose replicas must have both. epoch is the chunk's.
func (l *Layout) Unsplit(c Chunk, epoch uint64) (*Layout, error) {
	own := l.Override(c)
	if own == nil {
		return nil, fmt.Errorf("chunk %s: %w: it has no replicas of its own", c, ErrNoPlace)
	}
	s := ShardOf(c, uint32(len(l.Shards)))
	for _, r := range l.Shards[s].Replicas {
		if mine := own.Replica(r.Node); !r.Role.Complete() || mine == nil || !mine.Role.Complete() {
			return nil, fmt.Errorf("chunk %s: %w: node %s has not both it and the rest of shard %d; move it there first", c, ErrStillApart, l.name(r.Node), s)
		}
	}
	next, err := l.change(Place{Chunk: c}, epoch, func(*Assignment) error { return nil })
	if err != nil {
		return nil, err
	}
	// The shard's epoch must pass the chunk's, so that an upload under either is told from what comes after.
	next.Shards = slices.Clone(l.Shards)
	next.Shards[s].Epoch = max(next.Shards[s].Epoch, own.Epoch) + 1
	next.Chunks = slices.DeleteFunc(slices.Clone(l.Chunks), func(o Override) bool { return o.Chunk == c })
	return next, nil
}

// SetReplicas says how many replicas each place is to have. 0: as many as there are nodes, at most MaxReplicas.
func (l *Layout) SetReplicas(n int) (*Layout, error) {
	active := 0
	for _, m := range l.Members {
		if m.State == Active {
			active++
		}
	}
	if n < 0 || n > active {
		return nil, fmt.Errorf("%d replicas with %d active nodes: %w; add nodes first, or ask for 1 to %d", n, active, ErrTooManyReplicas, active)
	}
	next := *l
	next.Epoch++
	next.Replicas = n
	return &next, nil
}

// With is the layout with one node in another state. A node that is removed loses its replicas in the same change; force lets the last complete ones go.
func (l *Layout) With(node string, state NodeState, force bool) (*Layout, error) {
	m := l.Member(node)
	if m == nil {
		return nil, fmt.Errorf("node %s: %w in this cluster; everpage node list shows them", node, ErrNoNode)
	}
	next := *l
	next.Epoch++
	next.Members = slices.Clone(l.Members)
	next.Member(node).State = state
	if state != Removed {
		return &next, nil
	}
	next.Shards, next.Chunks = slices.Clone(l.Shards), slices.Clone(l.Chunks)
	strip := func(p Place, a *Assignment) error {
		if a.Replica(node) == nil {
			return nil
		}
		left := slices.DeleteFunc(slices.Clone(a.Replicas), func(r Replica) bool { return r.Node == node })
		if serving := a.Serving(); !force && len(serving) == 1 && serving[0] == node {
			return fmt.Errorf("%s: node %s: %w; drain it first", p, l.name(node), ErrLastReplica)
		}
		*a = Assignment{a.Epoch + 1, left}
		return nil
	}
	for i := range next.Shards {
		if err := strip(Place{Shard: Shard(i)}, &next.Shards[i]); err != nil {
			return nil, err
		}
	}
	for i := range next.Chunks {
		if err := strip(Place{Chunk: next.Chunks[i].Chunk}, &next.Chunks[i].Assignment); err != nil {
			return nil, err
		}
	}
	next.Members = slices.DeleteFunc(next.Members, func(m Member) bool { return m.ID == node })
	return &next, nil
}
