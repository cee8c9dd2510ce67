package node

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"everpage/cluster/command"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

const (
	// exchangeEvery is how often nodes ask each other for WAL while the primary sends none.
	exchangeEvery = time.Second
	// defaultDirect is how many nodes receive from the primary itself.
	defaultDirect = 3
)

// receiveOrFetch fills the spool: from the primary, or, where enough nodes do that already, from one of them. While the primary is away nodes exchange what
// they have, so that all come as far as the furthest of them.
func (f *follower) receiveOrFetch(ctx context.Context, receiver *stream.Receiver, spool *wal.Spool, st state, first pg.LSN) error {
	if spool.Written() == 0 && len(f.n.others()) > 0 && st.Imported {
		// The slot may have been made a little behind the LSN at which the branch was copied.
		if err := f.fill(ctx, spool, st.Branch, first); err != nil {
			f.log.Debug("WAL before the slot is not to be had from all nodes", "error", err)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for ctx.Err() == nil {
			if f.direct() {
				if err := f.receiveWhile(ctx, receiver, spool, st, first); err != nil {
					return err
				}
			} else if err := f.fetchWhile(ctx, spool, st, first); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	})
	g.Go(func() error { return f.exchange(ctx, receiver, spool, st, first) })
	return g.Wait()
}

// direct tells whether this node receives from the primary itself: the first ones by name of those that are there do.
func (f *follower) direct() bool {
	s := f.n.cluster.State()
	before := 0
	for _, x := range s.Nodes {
		if x.ID == f.n.cluster.ID() {
			break
		}
		if alive, _ := f.n.cluster.Alive(x.ID); alive && x.State == command.Active {
			before++
		}
	}
	return before < f.n.cfg.Direct
}

// watchDirect ends ctx when the node's way of receiving changes.
func (f *follower) watchDirect(ctx context.Context, direct bool) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(exchangeEvery)
		defer tick.Stop()
		for f.direct() == direct {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		cancel()
	}()
	return ctx, func() { cancel(); <-done }
}

// receiveWhile receives from the primary for as long as this node is to.
func (f *follower) receiveWhile(ctx context.Context, receiver *stream.Receiver, spool *wal.Spool, st state, first pg.LSN) error {
	watched, stop := f.watchDirect(ctx, true)
	defer stop()
	err := f.receive(watched, receiver, spool, st, first)
	if watched.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}

// fetchWhile takes WAL from other nodes for as long as this one is to.
func (f *follower) fetchWhile(ctx context.Context, spool *wal.Spool, st state, first pg.LSN) error {
	watched, stop := f.watchDirect(ctx, false)
	defer stop()
	for watched.Err() == nil {
		for _, address := range f.n.others() {
			f.set(stateStreaming, "from node "+address)
			err := f.fillFrom(watched, spool, st.Branch, first, address, true)
			if spoolErr := spool.Err(); spoolErr != nil {
				return spoolErr
			}
			if watched.Err() != nil {
				break
			}
			f.set(stateWaiting, err.Error())
		}
		select {
		case <-watched.Done():
		case <-time.After(exchangeEvery):
		}
	}
	// Whoever receives itself from now on needs a slot.
	if ctx.Err() == nil && f.direct() {
		if err := f.ensureSlot(ctx, st.Conninfo, st.Slot); err != nil {
			f.warn("the slot could not be made: " + err.Error())
		}
	}
	return ctx.Err()
}

// exchange takes WAL from the others while the primary sends none.
func (f *follower) exchange(ctx context.Context, receiver *stream.Receiver, spool *wal.Spool, st state, first pg.LSN) error {
	tick := time.NewTicker(exchangeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if receiver.Status().State == stream.Streaming || !f.direct() || spool.Written() == 0 {
			continue
		}
		err := f.fill(ctx, spool, st.Branch, first)
		var diverged *wal.DivergedError
		if errors.As(err, &diverged) {
			f.warn("another node has other WAL than this one: " + err.Error())
		}
		if spoolErr := spool.Err(); spoolErr != nil {
			return spoolErr
		}
	}
}
