package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"everpage/chunk"
	"everpage/cluster"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// collecting is what a node does about the versions below the horizon.
type collecting struct {
	one sync.Mutex // a pass at a time

	mu   sync.Mutex
	last pb.Collecting     // as status shows it
	done map[uint32]pg.LSN // the horizon up to which a pass went, by branch
	fail time.Time         // when one failed last
}

const (
	collectEvery = time.Second
	collectRetry = time.Minute
	// A pass reads all versions of a branch. It is worth that when so much WAL went below the horizon since the last one: a part of what the store takes.
	collectWorth = 8 // the store's bytes by this
	collectLeast = 4 << 20
)

// keepHorizon takes over the horizons that the cluster agrees on, and collects what lies below them in the background.
func (n *Node) keepHorizon(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return n.eachHorizon(ctx, func(s *cluster.State, branch uint32) {
			if err := n.takeHorizon(s, branch); err != nil {
				n.cfg.Logger.Warn("the horizon can't be moved; it is tried again", "branch", branch, "error", err)
			}
		})
	})
	g.Go(func() error {
		return n.eachHorizon(ctx, func(_ *cluster.State, branch uint32) {
			if !n.worthPass(branch) {
				return
			}
			if _, err := n.pass(ctx, branch, n.cfg.CollectRate); err != nil && ctx.Err() == nil {
				n.cfg.Logger.Warn("versions below the horizon stay; it is tried again", "branch", branch, "error", err, "retry_in", collectRetry)
			}
		})
	})
	return g.Wait()
}

// eachHorizon calls fn for each branch that has a horizon, whenever the cluster's state changes and from time to time, until ctx ends.
func (n *Node) eachHorizon(ctx context.Context, fn func(s *cluster.State, branch uint32)) error {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		s, changed := n.cluster.Watch()
		for _, h := range s.Horizons {
			fn(s, h.Branch)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-tick.C:
		}
	}
}

// takeHorizon makes the store begin where the cluster agreed that a branch's history does, as soon as all up to there is durable here.
func (n *Node) takeHorizon(s *cluster.State, branch uint32) error {
	to := s.Horizon(branch).Applied
	p, ok := n.store.Progress(branch)
	d, durable := n.store.Durable(branch)
	// What forked off needs each page's newest version before the fork: it must be here, and must not be read before it any more.
	for _, b := range s.Branches {
		if b.Parent == branch && b.Fork < to {
			if child, here := n.store.Progress(b.Number); !here || child.Horizon <= b.Fork {
				to = b.Fork
			}
		}
	}
	if !ok || !durable || p.Consistent == 0 || to <= max(p.Horizon, p.Consistent) || to > d.Resume {
		return nil
	}
	return n.store.SetHorizon(branch, to, nil)
}

// worthPass tells whether enough may go for all versions to be read.
func (n *Node) worthPass(branch uint32) bool {
	p, ok := n.store.Progress(branch)
	if !ok || p.Horizon == 0 {
		return false
	}
	n.collecting.mu.Lock()
	done, fail := n.collecting.done[branch], n.collecting.fail
	n.collecting.mu.Unlock()
	if !fail.IsZero() && time.Since(fail) < collectRetry {
		return false
	}
	if done == 0 {
		return true // since the start
	}
	return p.Horizon > done && uint64(p.Horizon-done) >= max(collectLeast, n.store.Stats().DiskBytes/collectWorth)
}

// pass collects a branch once.
func (n *Node) pass(ctx context.Context, branch uint32, rate int64) (chunk.Collected, error) {
	c := &n.collecting
	c.one.Lock()
	defer c.one.Unlock()
	p, ok := n.store.Progress(branch)
	if !ok || p.Horizon == 0 {
		return chunk.Collected{}, nil
	}
	c.mu.Lock()
	c.last.Running, c.last.Branch, c.last.HorizonLsn, c.last.SeenBytes, c.last.GoneBytes = true, branch, uint64(p.Horizon), 0, 0
	c.mu.Unlock()
	began := time.Now()
	got, err := n.store.Collect(ctx, branch, chunk.CollectOptions{BytesPerSecond: rate, Note: func(now chunk.Collected) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.last.SeenBytes, c.last.GoneBytes = now.Bytes, now.GoneBytes
	}})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last.Running, c.last.SeenBytes, c.last.GoneBytes, c.last.Error = false, got.Bytes, got.GoneBytes, ""
	c.last.TotalGoneBytes += got.GoneBytes
	switch {
	case errors.Is(err, chunk.ErrClosed), ctx.Err() != nil:
	case err != nil:
		c.fail = time.Now()
		c.last.Error = fmt.Sprintf("branch %d up to %s: %v", branch, p.Horizon, err)
	default:
		c.last.Passes++
		if c.done == nil {
			c.done = map[uint32]pg.LSN{}
		}
		c.done[branch] = p.Horizon
		n.cfg.Logger.Debug("versions below the horizon are collected", "branch", branch, "horizon", p.Horizon, "bytes", got.Bytes, "gone", got.GoneBytes, "in", time.Since(began))
	}
	return got, err
}

// status is how collecting goes.
func (c *collecting) status() *pb.Collecting {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &c.last
	return &pb.Collecting{
		Running: l.Running, Branch: l.Branch, HorizonLsn: l.HorizonLsn, SeenBytes: l.SeenBytes, GoneBytes: l.GoneBytes, Passes: l.Passes, TotalGoneBytes: l.TotalGoneBytes,
		Error: l.Error,
	}
}
