package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"everpage/chunk"
	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

const (
	// moves bounds the shards that a node takes in at once.
	moves = 2
	// moveEvery is how often a node looks whether it has what it is to have, beside being told.
	moveEvery = 2 * time.Second
	// dropAfter is how long a node keeps what it no longer owns: readers with an older map are still answered, rightly.
	dropAfter = 30 * time.Second
)

// keepShards makes this node's store have the shards that the cluster gave it.
func (n *Node) keepShards(ctx context.Context) error {
	unwanted := map[placement.Shard]time.Time{}
	tick := time.NewTicker(moveEvery)
	defer tick.Stop()
	for {
		s, changed := n.cluster.Watch()
		if err := n.matchShards(ctx, s, unwanted); err != nil && ctx.Err() == nil {
			n.cfg.Logger.Warn("the node doesn't have all shards that it is to have; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-tick.C:
		}
	}
}

// here are the branches of the cluster that this node has.
func (n *Node) here(s *cluster.State) []uint32 {
	var out []uint32
	for _, b := range s.Branches {
		if p, ok := n.store.Progress(b.Number); ok && p.Consistent != 0 && b.Imported {
			out = append(out, b.Number)
		}
	}
	return out
}

func (n *Node) matchShards(ctx context.Context, s *cluster.State, unwanted map[placement.Shard]time.Time) error {
	branches := n.here(s)
	if len(branches) == 0 || s.Node(n.cluster.ID()) == nil {
		return nil
	}
	owned := s.Owned(n.cluster.ID())
	for _, branch := range branches {
		if _, err := n.store.Own(branch, owned...); err != nil {
			return err
		}
	}
	n.giveUp(ctx, branches, owned, unwanted)
	if len(branches) < len(s.Branches) {
		return nil // the rest is still on its way
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(moves)
	for _, shard := range owned {
		r := s.Map[shard].Replica(n.cluster.ID())
		g.Go(func() error { return n.takeShard(ctx, s, branches, shard, *r) })
	}
	return g.Wait()
}

// giveUp forgets shards that were taken from this node, after a while.
func (n *Node) giveUp(ctx context.Context, branches []uint32, owned []placement.Shard, unwanted map[placement.Shard]time.Time) {
	for shard := range placement.Shard(n.store.Shards()) {
		if slices.Contains(owned, shard) {
			delete(unwanted, shard)
			continue
		}
		for _, branch := range branches {
			if !n.store.Coverage(branch, shard).Owned {
				continue
			}
			since, known := unwanted[shard]
			if !known {
				unwanted[shard] = time.Now()
				continue
			}
			if time.Since(since) < dropAfter {
				continue
			}
			// What this node knows may be old: it was cut off, or has just come back. It may have the only copy by now, so the cluster is asked first.
			if owns, err := n.ownsNow(ctx, shard); err != nil || owns {
				return
			}
			err := n.store.Disown(branch, shard)
			if err == nil {
				err = n.store.DropShard(branch, shard)
			}
			if err != nil {
				n.cfg.Logger.Warn("a shard that is elsewhere now could not be removed", "shard", shard, "branch", branch, "error", err)
			}
		}
	}
}

// ownsNow tells whether the cluster gave this node a shard, by all that was agreed on before the call. Without a majority it is an error, soon.
func (n *Node) ownsNow(ctx context.Context, shard placement.Shard) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, moveEvery)
	defer cancel()
	if err := n.cluster.Sync(ctx); err != nil {
		return false, err
	}
	return slices.Contains(n.cluster.State().Owned(n.cluster.ID()), shard), nil
}

// takeShard brings a shard here, if it isn't, and says so to the cluster.
func (n *Node) takeShard(ctx context.Context, s *cluster.State, branches []uint32, shard placement.Shard, r placement.Replica) error {
	missing := false
	for _, branch := range branches {
		missing = missing || !n.store.Coverage(branch, shard).Complete
	}
	if missing && r.Role != placement.Joining && len(s.Map[shard].Full()) > 1 {
		// The map says that this node has it: its disk must have lost it. Others may have the rest; until then reads ask them.
		var refused *cluster.Refused
		_, err := n.cluster.Propose(ctx, &command.LoseReplica{Of: command.Of{Shard: shard}, Node: n.cluster.ID()})
		if err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	if !missing && r.Role != placement.Joining {
		return nil
	}
	for _, branch := range branches {
		have := n.store.Coverage(branch, shard)
		if have.Complete {
			continue
		}
		err := n.pull(ctx, branch, shard, have.From)
		if errors.Is(err, errCollected) {
			// This node begins to keep the shard anew: a replica that has all of it has just sent it.
			var from pg.LSN
			if from, err = n.ownAnew(branch, shard); err == nil {
				err = n.pull(ctx, branch, shard, from)
			}
		}
		if errors.Is(err, errFromStore) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("shard %d of branch %d: %w", shard, branch, err)
		}
	}
	if r.Role != placement.Joining {
		return nil
	}
	if err := n.store.Flush(); err != nil { // what is told must outlive a crash
		return err
	}
	_, err := n.cluster.Propose(ctx, &command.ReplicaReady{Of: command.Of{Shard: shard}, Node: n.cluster.ID(), Since: r.Since})
	var refused *cluster.Refused
	if errors.As(err, &refused) {
		return nil // it is wanted elsewhere now
	}
	return err
}

// ownAnew gives up what there is of a shard and keeps what WAL brings from here on.
func (n *Node) ownAnew(branch uint32, shard placement.Shard) (pg.LSN, error) {
	if err := n.store.Disown(branch, shard); err != nil {
		return 0, err
	}
	if err := n.store.DropShard(branch, shard); err != nil {
		return 0, err
	}
	return n.store.Own(branch, shard)
}

// errCollected says that a replica has a shard from a later LSN on only than this node has what WAL brought.
var errCollected = errors.New("what lies between was collected")

// errFromStore says that nobody but the backup has a shard, which is brought from there by itself.
var errFromStore = errors.New("the shard comes from the backup")

// pull takes a layer of a shard that reaches from from on from another replica.
func (n *Node) pull(ctx context.Context, branch uint32, shard placement.Shard, from pg.LSN) error {
	errs := []error{}
	for _, address := range n.replicas(shard) {
		r, err := n.peers.layer(ctx, address, branch, shard, from)
		if err == nil {
			began := time.Now()
			layer, err := n.store.ImportLayer(ctx, r)
			if err == nil {
				n.cfg.Logger.Info("a shard is here", "shard", shard, "branch", branch, "of", address, "from", layer.Lo, "to", layer.Hi, "in", time.Since(began).Round(time.Millisecond))
				return nil
			}
			if errors.Is(err, chunk.ErrNotHere) && layer.Lo > from {
				err = errors.Join(err, errCollected)
			}
			errs = append(errs, err)
			continue
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 && n.backups != nil {
		return errFromStore
	}
	if len(errs) == 0 {
		return errors.New("no other node has all of it")
	}
	return errors.Join(errs...)
}
