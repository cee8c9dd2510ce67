package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"everpage/chunk"
	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// repairs is what a node knows of repairs that could not be done.
type repairs struct {
	said time.Time
}

// repairShards takes away what is corrupt on this node's disk, shard by shard, where another place has it: it then comes again as what is missing does, from
// another replica or the store, and reads ask those meanwhile. What nobody else has stays as it is.
func (n *Node) repairShards(ctx context.Context, s *cluster.State, branches []uint32) {
	var errs []error
	for _, branch := range branches {
		spans, err := n.store.Decayed(branch)
		errs = append(errs, err)
		for _, span := range spans {
			upTo, err := n.elsewhere(ctx, s, branch, span)
			if err == nil {
				err = n.store.EvictShards(ctx, branch, span.First, upTo)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			n.cfg.Logger.Info("what was corrupt on disk is taken away; it comes again from another node or the store", "branch", branch, "first_shard", span.First, "last_shard", span.Last)
		}
	}
	if err := errors.Join(errs...); err != nil && ctx.Err() == nil && time.Since(n.repairs.said) >= saidEvery {
		n.repairs.said = time.Now()
		n.cfg.Logger.Error("what is corrupt on disk is not repaired; it is tried again", "error", err)
	}
}

// elsewhere tells for shards in a row up to where another place has them, for as long as they are not here: other replicas, of which the cluster then keeps at
// least one, or the store.
func (n *Node) elsewhere(ctx context.Context, s *cluster.State, branch uint32, span chunk.ShardSpan) (upTo []pg.LSN, err error) {
	durable, _ := n.store.Durable(branch)
	for shard := span.First; shard <= span.Last; shard++ {
		if !n.store.Coverage(branch, shard).Owned {
			upTo = append(upTo, 0) // all of it goes
			continue
		}
		from, _ := n.store.Since(branch, shard)
		at := pg.LSN(0)
		if n.backups != nil {
			at = min(n.backups.registry.Current(branch, shard).LSN, durable.Resume)
		}
		// The map doesn't know who is dead.
		others := slices.ContainsFunc(s.Map[shard].Serving(), func(id string) bool {
			alive, _ := n.cluster.Alive(id)
			return alive && id != n.cluster.ID()
		})
		// Nodes with a disk budget may have as little of it themselves.
		if others && (n.budget == nil || at == 0) {
			_, err := n.cluster.Propose(ctx, &command.LoseReplica{Of: command.OfPlace(placement.Place{Shard: shard}), Node: n.cluster.ID()})
			var refused *cluster.Refused
			switch {
			case err == nil:
				at = durable.Resume
			case !errors.As(err, &refused):
				return nil, err
			}
		}
		if at == 0 || at < from {
			return nil, fmt.Errorf("shard %d of branch %d has corrupt versions, and no other place has all of it", shard, branch)
		}
		upTo = append(upTo, at)
	}
	return upTo, nil
}
