package node

import (
	"context"
	"math"
	"sync"
	"time"

	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
)

const (
	// joiningPerNode bounds the moves that one node takes part in.
	joiningPerNode = 4
	// What is measured is told to the plan in steps, so that what hardly matters moves nothing.
	bytesStep = 1 << 20
	workStep  = 200
)

// planPolicy is how the leader plans.
func planPolicy() placement.Policy {
	p := placement.DefaultPolicy()
	p.PerNode = joiningPerNode
	p.MinBytes = math.MaxUint64 // chunks are set apart for what is read of them: their shards' replicas keep them all the same
	return p
}

// plan proposes the next steps towards as many replicas as are wanted, over all zones, evenly by number, bytes and reads.
func (l *leader) plan(ctx context.Context, s *cluster.State) error {
	b := s.Branch(0)
	if s.Follow.Importer != "" || b != nil && !b.Imported {
		return nil
	}
	if time.Since(l.asked) > usageEvery {
		l.asked = time.Now()
		l.usage = l.askUsage(ctx, s)
	}
	layout := layoutFor(s, func(id string) (alive, dead bool) {
		gone := l.gone(id)
		return gone == 0, gone >= max(l.n.cfg.DeadAfter, 1)
	})
	for _, m := range placement.Plan(layout, l.usage, planPolicy()) {
		l.n.cfg.Logger.Debug("planned", "move", m.String())
		if err := l.propose(ctx, commandOf(m)); err != nil {
			return err
		}
	}
	return nil
}

// layoutFor is the map with what is known of the nodes: those that were given up are dead, unless they are drained, which needs no more.
func layoutFor(s *cluster.State, known func(id string) (alive, dead bool)) *placement.Layout {
	layout := s.Layout()
	for i := range layout.Members {
		m := &layout.Members[i]
		alive, dead := known(m.ID)
		m.Silent = !alive
		if dead && m.State == placement.Active {
			m.State = placement.Dead
		}
	}
	return layout
}

// commandOf is the change that a move proposes.
func commandOf(m placement.Move) command.Command {
	of := command.OfPlace(m.Place)
	switch m.Kind {
	case placement.MoveAdd:
		return &command.AddReplica{Of: of, Node: m.Node, Epoch: m.Epoch, Replaces: m.Replaces}
	case placement.MoveRemove:
		return &command.DropReplica{Of: of, Node: m.Node, Epoch: m.Epoch}
	case placement.MoveStay:
		return &command.KeepReplica{Of: of, Node: m.Node, Epoch: m.Epoch}
	case placement.MovePrefer:
		return &command.OrderReplicas{Of: of, First: m.Node, Epoch: m.Epoch}
	case placement.MoveSplit:
		return &command.SplitChunk{Chunk: m.Place.Chunk, Epoch: m.Epoch}
	case placement.MoveUnsplit:
		return &command.UnsplitChunk{Chunk: m.Place.Chunk, Epoch: m.Epoch}
	}
	panic("a move of kind " + string(m.Kind))
}

// askUsage asks the nodes that are there what their shards cost them.
func (l *leader) askUsage(ctx context.Context, s *cluster.State) placement.Usage {
	ctx, cancel := context.WithTimeout(ctx, progressWait)
	defer cancel()
	answers := [][]*pb.PlaceUsage{l.n.usage.report()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, x := range s.Nodes {
		if alive, _ := l.n.cluster.Alive(x.ID); !alive || x.ID == l.n.cluster.ID() {
			continue
		}
		c, err := l.n.peers.at(l.n.cluster.PageAddress(x.ID))
		if err != nil {
			continue
		}
		wg.Go(func() {
			if r, err := c.Usage(ctx, &pb.UsageRequest{}); err == nil {
				mu.Lock()
				defer mu.Unlock()
				answers = append(answers, r.Places)
			}
		})
	}
	wg.Wait()
	return usageOf(s, answers)
}

// usageOf puts what the nodes say together: of bytes what the replica with the most has, of reads the share of one replica.
func usageOf(s *cluster.State, answers [][]*pb.PlaceUsage) placement.Usage {
	u := placement.Usage{Shards: make([]placement.Load, len(s.Map)), Chunks: map[placement.Chunk]placement.Load{}}
	sum := func(load placement.Load, p *pb.PlaceUsage) placement.Load {
		return placement.Load{Bytes: max(load.Bytes, p.Bytes), Work: load.Work + p.Reads}
	}
	for _, places := range answers {
		for _, p := range places {
			if c := chunkFrom(p.Rel, p.Segment); c != (placement.Chunk{}) {
				u.Chunks[c] = sum(u.Chunks[c], p)
			} else if int(p.Shard) < len(u.Shards) {
				u.Shards[p.Shard] = sum(u.Shards[p.Shard], p)
			}
		}
	}
	steps := func(load placement.Load, a placement.Assignment) placement.Load {
		return placement.Load{Bytes: (load.Bytes + bytesStep - 1) / bytesStep * bytesStep, Work: load.Work / uint64(max(1, len(a.Serving()))) / workStep * workStep}
	}
	for i := range u.Shards {
		u.Shards[i] = steps(u.Shards[i], s.Map[i])
	}
	layout := s.Layout()
	for c, load := range u.Chunks {
		u.Chunks[c] = steps(load, *layout.Of(c))
	}
	return u
}
