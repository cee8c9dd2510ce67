package node

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"everpage/chunk"
	"everpage/cluster"
	"everpage/cluster/catalog"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Each node compares what the cluster's inventory says with the sizes that its store has, and reports what is missing of the chunks for which it speaks: those whose
// first full replica that is there it has. So whatever was not reported, for a crash or a change of the leader, is reported a little later. Up to where the store has
// a chunk is not said of each: its shard's manifest says it.

const (
	// catalogEvery is how often a node compares, at most, catalogAnew how often where nothing seems to have changed.
	catalogEvery = 2 * time.Second
	catalogAnew  = 30 * time.Second
	// catalogShare bounds the part of its time that it takes.
	catalogShare = 20
	// reportedAtOnce bounds the chunks that are reported before it compares again.
	reportedAtOnce = 100_000
)

// errReported ends a comparison that has found enough.
var errReported = errors.New("enough is reported")

// keepCatalog reports what happened to the chunks that this node speaks for, again and again.
func (n *Node) keepCatalog(ctx context.Context) error {
	branches := map[uint32]*comparison{}
	wait := catalogEvery
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		began := time.Now()
		var batch catalog.Batch
		s := n.cluster.State()
		speaks := n.speaks(s)
		for _, branch := range n.here(s) {
			c := branches[branch]
			if c == nil {
				c = &comparison{store: n.store, branch: branch, segment: n.cfg.SegmentBlocks, examined: map[pg.RelFork]pg.LSN{}}
				branches[branch] = c
			}
			if err := c.look(ctx, s, speaks, &batch); err != nil && ctx.Err() == nil {
				n.cfg.Logger.Warn("the inventory of chunks can't be compared with the store; it is tried again", "branch", branch, "error", err)
			}
		}
		wait = max(catalogEvery, catalogShare*time.Since(began))
		if batch.Len() == 0 {
			continue
		}
		if err := n.cluster.Report(ctx, &batch); err != nil && ctx.Err() == nil { // no leader now, say: what was not taken is found again
			n.cfg.Logger.Debug("chunks could not be reported", "chunks", batch.Len(), "error", err)
			clear(branches)
		}
	}
}

// speaks tells for which shards this node reports.
func (n *Node) speaks(s *cluster.State) []bool {
	out := make([]bool, len(s.Map))
	for i, a := range s.Map {
		for _, id := range a.Serving() {
			if alive, _ := n.cluster.Alive(id); alive {
				out[i] = id == n.cluster.ID()
				break
			}
		}
	}
	return out
}

// comparison compares a branch.
type comparison struct {
	store   *chunk.Store
	branch  uint32
	segment uint32 // blocks

	at      pg.LSN // of the last comparison
	against *catalog.Catalog
	speaks  []bool
	when    time.Time
	damage  time.Time // of the next look at damage
	// examined are the latest truncations that were found to spare the chunks of a fork.
	examined map[pg.RelFork]pg.LSN
}

// look adds to a batch what the inventory lacks, unless all is as it was.
func (c *comparison) look(ctx context.Context, s *cluster.State, speaks []bool, batch *catalog.Batch) error {
	p, ok := c.store.Progress(c.branch)
	if !ok || p.Consistent == 0 {
		return nil
	}
	same := slices.Equal(speaks, c.speaks)
	if same && p.Readable == c.at && s.Inventory == c.against && time.Since(c.when) < catalogAnew {
		return nil
	}
	if !same {
		clear(c.examined)
		c.speaks, c.damage = speaks, time.Time{}
	}
	mine := func(k placement.Chunk) bool { return speaks[placement.ShardOf(k, uint32(len(speaks)))] }
	damaged, err := c.damaged(ctx, p.Readable, mine)
	if err != nil {
		return err
	}
	err = c.compare(ctx, p.Readable, s.ChunksOf(c.branch, placement.Chunk{}), mine, damaged, func(e catalog.Entry) error {
		if have, ok := s.Chunk(c.branch, e.Chunk); ok && have.Merge(e) == have {
			return nil
		}
		e.Branch = c.branch
		batch.Add(e)
		if batch.Len() >= reportedAtOnce {
			return errReported
		}
		return nil
	})
	if errors.Is(err, errReported) {
		return nil // the rest next time
	}
	if err == nil {
		c.at, c.against, c.when = p.Readable, s.Inventory, time.Now()
	}
	return err
}

// damaged are the chunks with pages that can't be made; nil where it is not known now.
func (c *comparison) damaged(ctx context.Context, at pg.LSN, mine func(placement.Chunk) bool) (map[placement.Chunk]bool, error) {
	began := time.Now()
	if began.Before(c.damage) {
		return nil, nil
	}
	out := map[placement.Chunk]bool{}
	err := c.store.DamagedPages(ctx, c.branch, at, func(e *chunk.DamagedError) error {
		if k := placement.ChunkOf(e.Key, c.segment); mine(k) {
			out[k] = true
		}
		return nil
	})
	if err == nil {
		c.damage = time.Now().Add(max(catalogAnew, catalogShare*time.Since(began)))
	}
	return out, err
}

// compare walks what is known of a branch's chunks beside what the store has of its forks, and reports the difference.
func (c *comparison) compare(ctx context.Context, at pg.LSN, known iter.Seq[catalog.Entry], mine func(placement.Chunk) bool, damaged map[placement.Chunk]bool,
	report func(catalog.Entry) error) error {
	next, stop := iter.Pull(known)
	defer stop()
	k, more := next()
	var last chunk.ForkState
	absent := func() error { // k is not there at the LSN
		var err error
		if !k.Last.Dropped() && k.Last.LSN() <= at && mine(k.Chunk) {
			gone := at
			switch {
			case forkOf(k.Chunk) != last.Fork: // its history was collected
			case last.Exists:
				gone = max(last.Shrunk, k.Last.LSN())
			default:
				gone = max(last.LSN, k.Last.LSN())
			}
			err = report(catalog.Entry{Key: catalog.Key{Chunk: k.Chunk}, Last: catalog.DroppedAt(gone)})
		}
		k, more = next()
		return err
	}
	err := c.store.Forks(ctx, c.branch, at, func(f chunk.ForkState) error {
		first := placement.Chunk{RelFork: f.Fork}
		chunks := max(1, (f.Blocks+c.segment-1)/c.segment)
		if f.Fork.Spc == 0 {
			first.Rel, first.Segment, chunks = 0, f.Fork.Rel, 1
		}
		if !f.Exists {
			chunks = 0
		}
		for more && k.Chunk.Compare(first) < 0 {
			if err := absent(); err != nil {
				return err
			}
		}
		last = f
		var unknown []uint32
		for i := range chunks {
			here := first
			here.Segment += i
			same := more && k.Chunk == here
			if mine(here) && (!same || k.Last.Dropped() || f.Shrunk > k.Last.LSN() && c.examined[f.Fork] != f.Shrunk) {
				unknown = append(unknown, i)
			}
			if same {
				if err := c.flag(k, mine, damaged, report); err != nil {
					return err
				}
				k, more = next()
			} else if damaged[here] {
				if err := report(catalog.Entry{Key: catalog.Key{Chunk: here}, Damaged: catalog.Toggle(0).Set(true)}); err != nil {
					return err
				}
			}
		}
		if len(unknown) == 0 {
			return nil
		}
		if err := c.births(ctx, f.Fork, unknown, func(segment uint32, born pg.LSN) error {
			here := first
			here.Segment += segment
			return report(catalog.Entry{Key: catalog.Key{Chunk: here}, Born: catalog.Birth(born), Last: catalog.BornAt(born)})
		}); err != nil {
			return err
		}
		if f.Shrunk != 0 {
			c.examined[f.Fork] = f.Shrunk
		}
		return nil
	})
	for err == nil && more {
		err = absent()
	}
	return err
}

// flag reports a chunk that is damaged, or no longer so.
func (c *comparison) flag(k catalog.Entry, mine func(placement.Chunk) bool, damaged map[placement.Chunk]bool, report func(catalog.Entry) error) error {
	is := damaged[k.Chunk]
	if damaged == nil || k.Damaged.On() == is || !mine(k.Chunk) {
		return nil
	}
	return report(catalog.Entry{Key: catalog.Key{Chunk: k.Chunk}, Damaged: k.Damaged.Set(is)})
}

// forkOf is the fork whose size says of a chunk whether it is there.
func forkOf(c placement.Chunk) pg.RelFork {
	f := c.RelFork
	if f.Spc == 0 {
		f.Rel = c.Segment
	}
	return f
}

// births finds out when chunks of a fork that are there began; segments are in order.
func (c *comparison) births(ctx context.Context, fork pg.RelFork, segments []uint32, fn func(segment uint32, born pg.LSN) error) error {
	var born pg.LSN // as far as was seen
	take := func() error {
		k := segments[len(segments)-1]
		segments = segments[:len(segments)-1]
		if born == 0 {
			return nil // gone since
		}
		return fn(k, born)
	}
	err := c.store.Sizes(ctx, c.branch, fork, func(v chunk.SizeVersion) error {
		for len(segments) > 0 {
			if k := segments[len(segments)-1]; v.Exists && (k == 0 || uint64(v.Blocks) > uint64(k)*uint64(c.segment)) {
				break
			}
			if err := take(); err != nil {
				return err
			}
		}
		born = v.LSN
		for len(segments) > 0 && (v.Op == "copy" || v.Op == "drop") { // made anew by the record that took the one before away
			if err := take(); err != nil {
				return err
			}
		}
		if len(segments) == 0 {
			return errEnough
		}
		return nil
	})
	for len(segments) > 0 && (err == nil || errors.Is(err, errEnough)) {
		if err = take(); err != nil {
			return err
		}
	}
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}
