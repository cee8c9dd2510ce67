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
	"everpage/cluster/fsm"
	"everpage/cluster/placement"
	"everpage/pageapi"
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
	unwanted := map[placement.Place]time.Time{}
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

func (n *Node) matchShards(ctx context.Context, s *cluster.State, unwanted map[placement.Place]time.Time) error {
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
	apart := s.OwnedChunks(n.cluster.ID())
	for _, branch := range branches {
		for _, o := range apart {
			if _, err := n.store.OwnChunk(branch, o.Chunk); err != nil {
				return err
			}
		}
	}
	n.repairShards(ctx, s, branches)
	n.giveUp(ctx, branches, owned, apart, unwanted)
	if len(branches) < len(s.Branches) {
		return nil // the rest is still on its way
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(moves)
	for _, shard := range owned {
		g.Go(func() error { return n.take(ctx, s, branches, placement.Place{Shard: shard}, s.Map[shard]) })
	}
	for _, o := range apart {
		g.Go(func() error { return n.take(ctx, s, branches, s.ChunkPlace(o.Chunk), o.Assignment) })
	}
	return g.Wait()
}

// coverage is what the store has of a shard or chunk.
func (n *Node) coverage(branch uint32, p placement.Place) chunk.Coverage {
	if p.Chunk != (placement.Chunk{}) {
		return n.store.ChunkCoverage(branch, p.Chunk)
	}
	return n.store.Coverage(branch, p.Shard)
}

// giveUp forgets shards and chunks that were taken from this node, after a while.
func (n *Node) giveUp(ctx context.Context, branches []uint32, owned []placement.Shard, apart []fsm.Override, unwanted map[placement.Place]time.Time) {
	keeps := func(p placement.Place) bool {
		if p.Chunk != (placement.Chunk{}) {
			return slices.ContainsFunc(apart, func(o fsm.Override) bool { return o.Chunk == p.Chunk })
		}
		// A shard goes as a whole: not while a chunk of it is to stay.
		return slices.Contains(owned, p.Shard) ||
			slices.ContainsFunc(apart, func(o fsm.Override) bool { return placement.ShardOf(o.Chunk, n.store.Shards()) == p.Shard })
	}
	for _, branch := range branches {
		places := make([]placement.Place, 0, n.store.Shards())
		for shard := range placement.Shard(n.store.Shards()) {
			places = append(places, placement.Place{Shard: shard})
		}
		for _, c := range n.store.OwnedChunks(branch) {
			places = append(places, placement.Place{Shard: placement.ShardOf(c, n.store.Shards()), Chunk: c})
		}
		for _, p := range places {
			if keeps(p) || !n.coverage(branch, p).Owned {
				if keeps(p) {
					delete(unwanted, p)
				}
				continue
			}
			since, known := unwanted[p]
			if !known {
				unwanted[p] = time.Now()
				continue
			}
			if time.Since(since) < dropAfter {
				continue
			}
			// What this node knows may be old: it was cut off, or has just come back. It may have the only copy by now, so the cluster is asked first.
			if owns, err := n.ownsNow(ctx, p); err != nil || owns {
				return
			}
			if err := n.drop(branch, p); err != nil {
				n.cfg.Logger.Warn("what is elsewhere now could not be removed", "what", p, "branch", branch, "error", err)
				continue
			}
			n.cfg.Logger.Info("what is elsewhere now is removed", "what", p, "branch", branch)
		}
	}
}

// drop removes a shard or chunk from the store.
func (n *Node) drop(branch uint32, p placement.Place) error {
	if p.Chunk != (placement.Chunk{}) {
		return n.store.DropChunk(branch, p.Chunk)
	}
	if err := n.store.Disown(branch, p.Shard); err != nil {
		return err
	}
	return n.store.DropShard(branch, p.Shard)
}

// ownsNow tells whether the cluster gave this node a shard or chunk, by all that was agreed on before the call. Without a majority it is an error, soon.
func (n *Node) ownsNow(ctx context.Context, p placement.Place) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, moveEvery)
	defer cancel()
	if err := n.cluster.Sync(ctx); err != nil {
		return false, err
	}
	a := n.cluster.State().Layout().Assignment(p)
	return a != nil && a.Replica(n.cluster.ID()) != nil, nil
}

// take brings a shard or chunk here, if it isn't, and says so to the cluster.
func (n *Node) take(ctx context.Context, s *cluster.State, branches []uint32, p placement.Place, a placement.Assignment) error {
	r, of := a.Replica(n.cluster.ID()), command.OfPlace(p)
	missing := false
	for _, branch := range branches {
		missing = missing || !n.served(branch, p)
	}
	if missing && r.Role != placement.Joining && len(a.Serving()) > 1 {
		// The map says that this node has it: its disk must have lost it. Others may have the rest; until then reads ask them.
		var refused *cluster.Refused
		_, err := n.cluster.Propose(ctx, &command.LoseReplica{Of: of, Node: n.cluster.ID()})
		if err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	if !missing && r.Role != placement.Joining {
		return nil
	}
	for _, branch := range branches {
		have := n.coverage(branch, p)
		if n.served(branch, p) {
			continue
		}
		err := n.pull(ctx, branch, p, have.From)
		if errors.Is(err, errCollected) {
			// This node begins to keep it anew: a replica that has all of it has just sent it.
			var from pg.LSN
			if from, err = n.ownAnew(branch, p); err == nil {
				err = n.pull(ctx, branch, p, from)
			}
		}
		if errors.Is(err, errFromStore) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s of branch %d: %w", p, branch, err)
		}
	}
	if r.Role != placement.Joining {
		return nil
	}
	if err := n.store.Flush(); err != nil { // what is told must outlive a crash
		return err
	}
	_, err := n.cluster.Propose(ctx, &command.ReplicaReady{Of: of, Node: n.cluster.ID(), Since: r.Since})
	var refused *cluster.Refused
	if errors.As(err, &refused) {
		return nil // it is wanted elsewhere now
	}
	return err
}

// ownAnew gives up what there is of a shard or chunk and keeps what WAL brings from here on.
func (n *Node) ownAnew(branch uint32, p placement.Place) (pg.LSN, error) {
	if err := n.drop(branch, p); err != nil {
		return 0, err
	}
	if p.Chunk != (placement.Chunk{}) {
		return n.store.OwnChunk(branch, p.Chunk)
	}
	return n.store.Own(branch, p.Shard)
}

// errCollected says that a replica has a shard from a later LSN on only than this node has what WAL brought.
var errCollected = errors.New("what lies between was collected")

// errFromStore says that nobody but the backup has a shard, which is brought from there by itself.
var errFromStore = errors.New("the shard comes from the backup")

// pull takes a layer of a shard or chunk that reaches from from on from another replica.
func (n *Node) pull(ctx context.Context, branch uint32, p placement.Place, from pg.LSN) error {
	errs := []error{}
	for _, address := range n.replicas(p) {
		r, err := n.peers.layer(ctx, address, branch, p, from)
		if err == nil {
			began := time.Now()
			layer, err := n.store.ImportLayer(ctx, r)
			if err == nil {
				n.cfg.Logger.Info("a replica is here", "what", p, "branch", branch, "of", address, "from", layer.Lo, "to", layer.Hi, "in", time.Since(began).Round(time.Millisecond))
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
	// Others that keep it may have evicted some of it.
	nowhere := !slices.ContainsFunc(errs, func(err error) bool { return pageapi.CodeOf(err) != pageapi.NotFound })
	if nowhere && n.backups != nil && p.Chunk == (placement.Chunk{}) {
		return errFromStore
	}
	if len(errs) == 0 {
		return errors.New("no other node has all of it")
	}
	return errors.Join(errs...)
}
