package node

import (
	"context"

	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/placement"
)

// joiningPerNode bounds the shards that are on their way to one node.
const joiningPerNode = 4

// plan proposes the next steps towards as many replicas as are wanted, spread evenly.
func (l *leader) plan(ctx context.Context, s *cluster.State) error {
	b := s.Branch(0)
	if s.Follow.Importer != "" || b != nil && !b.Imported {
		return nil
	}
	good := map[string]bool{}
	load, coming := map[string]int{}, map[string]int{}
	for _, n := range s.Nodes {
		good[n.ID] = n.State == command.Active && l.gone(n.ID) < max(l.n.cfg.DeadAfter, 1)
	}
	for _, a := range s.Map {
		for _, r := range a.Replicas {
			load[r.Node]++
			if r.Role == placement.Joining {
				coming[r.Node]++
			}
		}
	}
	want := s.WantReplicas()
	for i, a := range s.Map {
		shard := placement.Shard(i)
		full, all := 0, 0
		worst := ""
		for _, r := range a.Replicas {
			if !good[r.Node] {
				worst = r.Node
				continue
			}
			all++
			if r.Role == placement.Full {
				full++
			}
		}
		switch {
		case all < want:
			if to := l.target(s, a, good, load, coming); to != "" {
				load[to]++
				coming[to]++
				if err := l.propose(ctx, &command.AddReplica{Shard: shard, Node: to, Epoch: a.Epoch}); err != nil {
					return err
				}
			}
		case worst != "" && full >= want:
			if err := l.propose(ctx, &command.DropReplica{Shard: shard, Node: worst, Epoch: a.Epoch}); err != nil {
				return err
			}
		case full > want:
			for _, r := range a.Replicas {
				if r.Role == placement.Full && (worst == "" || load[r.Node] > load[worst]) {
					worst = r.Node
				}
			}
			load[worst]--
			if err := l.propose(ctx, &command.DropReplica{Shard: shard, Node: worst, Epoch: a.Epoch}); err != nil {
				return err
			}
		case all == want && full == want:
			to := l.target(s, a, good, load, coming)
			if to == "" {
				continue
			}
			most := ""
			for _, r := range a.Replicas {
				if most == "" || load[r.Node] > load[most] {
					most = r.Node
				}
			}
			if load[most] < load[to]+2 {
				continue
			}
			load[to]++
			coming[to]++
			if err := l.propose(ctx, &command.AddReplica{Shard: shard, Node: to, Epoch: a.Epoch}); err != nil {
				return err
			}
		}
	}
	return nil
}

// target is the node that has the least and may take a replica, "" if there is none now.
func (l *leader) target(s *cluster.State, a placement.Assignment, good map[string]bool, load, coming map[string]int) string {
	best := ""
	for _, n := range s.Nodes {
		alive, _ := l.n.cluster.Alive(n.ID)
		if !good[n.ID] || !alive || a.Replica(n.ID) != nil || coming[n.ID] >= joiningPerNode {
			continue
		}
		if best == "" || load[n.ID] < load[best] {
			best = n.ID
		}
	}
	return best
}
