package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"everpage/backup/archive"
	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/fsm"
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
			if f.direct() || st.Until != 0 {
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
	if st.Until != 0 { // the rest of a timeline that was left: whoever has it will do
		return f.receive(ctx, receiver, spool, st, first)
	}
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
	var slot errgroup.Group
	defer slot.Wait()
	caughtUp := false
	for watched.Err() == nil {
		for _, address := range f.n.others() {
			f.set(stateStreaming, "from node "+address)
			err := f.fillFrom(watched, spool, st.Branch, first, address, false)
			if err == nil && !caughtUp {
				caughtUp = true
				slot.Go(func() error { f.giveUpSlot(watched, st); return nil })
			}
			if err == nil {
				err = f.fillFrom(watched, spool, st.Branch, first, address, true)
			}
			if spoolErr := spool.Err(); spoolErr != nil {
				return spoolErr
			}
			if watched.Err() != nil {
				break
			}
			if err != nil {
				f.set(stateWaiting, err.Error())
			}
		}
		select {
		case <-watched.Done():
		case <-time.After(exchangeEvery):
		}
	}
	slot.Wait()
	// Whoever receives itself from now on needs a slot.
	if ctx.Err() == nil && f.direct() {
		if err := f.ensureSlot(ctx, st); err != nil {
			f.warn("the slot could not be made: " + err.Error())
		}
	}
	return ctx.Err()
}

// giveUpSlot drops this node's slot, which nobody moves on while the node gets its WAL from others: the primary would keep all behind it.
func (f *follower) giveUpSlot(ctx context.Context, st state) {
	for {
		err := dropSlot(ctx, fsm.LeftSlot{Slot: st.Slot, Conninfo: st.Conninfo}, st.line())
		if err == nil || ctx.Err() != nil {
			return
		}
		f.log.Info("the slot, which is not needed, could not be dropped; it is tried again", "slot", st.Slot, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(slotsEvery):
		}
	}
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
		if receiver.Status().State == stream.Streaming || !f.direct() && st.Until == 0 || spool.Written() == 0 {
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

// refusedWait is how long until a server that was refused is asked again.
const refusedWait = 5 * time.Second

// receive streams until ctx ends or the spool fails. A server that is refused, or has left our timeline, ends nothing else: what was received before is still
// ingested. It is asked again, slowly: the address may be given back to the right server.
func (f *follower) receive(ctx context.Context, receiver *stream.Receiver, spool *wal.Spool, st state, first pg.LSN) error {
	for {
		err := receiver.Run(ctx)
		var end *stream.EndOfTimeline
		var sink *stream.SinkError
		ended := errors.As(err, &end)
		if ctx.Err() != nil || errors.As(err, &sink) || !ended && !stream.Refused(err) {
			return err
		}
		wait := refusedWait
		switch {
		case ended && st.Until == 0:
			err = f.switched(ctx, st, end)
		case ended && end.Switch >= st.Until: // all that is wanted of it is here
			err, wait = nil, leadEvery
		case errors.Is(err, stream.ErrSlotMissing) || errors.Is(err, stream.ErrSlotLost):
			var again bool
			if again, err = f.slotGone(ctx, receiver, spool, st, first, err); again {
				continue
			}
		case errors.Is(err, stream.ErrWALRemoved):
			promoted := receiver.Status().Server.Timeline > st.Timeline || st.Parent != 0 && f.applied(st.Branch) == st.Fork
			err = f.walGone(ctx, spool, st, first, promoted, err)
			if errors.Is(err, errCopyInstead) {
				return err
			}
		}
		if err != nil {
			f.set(stateStopped, err.Error())
			f.log.Error("the primary can't be followed", "error", err, "retry_in", wait)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// slotGone makes the slot anew where the WAL in between is to be had: a standby that was promoted never had it, the leader drops those of nodes that are away, and
// a node that was recovered under a name of its own has none yet. What the server has removed, if it has, is told when it is asked for: no WAL is passed over.
func (f *follower) slotGone(ctx context.Context, receiver *stream.Receiver, spool *wal.Spool, st state, first pg.LSN, reason error) (again bool, err error) {
	promoted := receiver.Status().Server.Timeline > st.Timeline || f.copied(st.Branch, f.applied(st.Branch))
	held := f.n.backups != nil // by the hold slot, from where the WAL in the store ends
	if !promoted && !held && len(f.n.others()) == 0 {
		return false, reason
	}
	f.log.Warn("the slot is made anew", "slot", st.Slot, "error", reason)
	var errs []error
	if !promoted { // what the primary no longer has, the others have; some of them may be gone
		for _, address := range f.n.others() {
			err := f.fillFrom(ctx, spool, st.Branch, first, address, false)
			if err == nil {
				errs = nil
				break
			}
			errs = append(errs, err)
		}
	}
	if err := errors.Join(append(errs, f.ensureSlot(ctx, st))...); err != nil {
		f.log.Warn("the slot could not be made anew", "error", err)
		return false, errors.Join(reason, err)
	}
	return promoted || held, reason
}

// errCopyInstead says that a branch can't be forked here, for want of WAL, but that another node has it.
var errCopyInstead = errors.New("the branch is copied from another node")

// walGone looks elsewhere for WAL that the primary no longer has. Where nobody has it there is a hole. Behind a failover, with which the slots were lost, the leader
// then takes a new base backup, which begins another branch; what was received before stays on this one. Else someone must decide: a slot was dropped.
func (f *follower) walGone(ctx context.Context, spool *wal.Spool, st state, first pg.LSN, promoted bool, reason error) error {
	before := spool.Durable()
	fillErr := f.fill(ctx, spool, st.Branch, first)
	storeErr := f.fillFromStore(ctx, spool, st, first)
	switch now := spool.Durable(); {
	case now > before:
		f.log.Info("WAL that the primary no longer has was found elsewhere", "from", before, "to", now)
		return nil
	case st.Until != 0:
		return errCopyInstead
	case !promoted || !f.n.cluster.IsLeader():
		return reason
	case fillErr != nil || storeErr != nil:
		return fmt.Errorf("%w; whether another node or the store has it is not known: %w", reason, errors.Join(fillErr, storeErr))
	case f.applied(st.Branch) < now:
		return reason // what is here is ingested first
	}
	if err := f.n.store.Flush(); err != nil {
		return errors.Join(reason, err)
	}
	hole := fmt.Sprintf("WAL of timeline %d from %s on is missing: the primary has removed it, and neither another node nor a store has it", st.Timeline, before)
	f.warn(hole + "; a new base backup is taken")
	_, err := f.n.cluster.Propose(ctx, &command.SetHole{Hole: hole, Branch: st.Branch, Importer: f.n.cluster.ID()})
	var refused *cluster.Refused
	if err == nil || errors.As(err, &refused) {
		return nil
	}
	return err
}

// fillFromStore takes WAL into the spool that the store has.
func (f *follower) fillFromStore(ctx context.Context, spool *wal.Spool, st state, first pg.LSN) error {
	if f.n.backups == nil {
		return nil
	}
	at := spool.Durable()
	if at == 0 {
		at = first
	}
	inv, err := archive.List(ctx, f.n.backups.store, archive.ID{SystemID: st.SystemIdentifier, SegmentSize: spool.SegmentSize()})
	if err != nil {
		return err
	}
	end := inv.End(st.History, spool.SegmentSize().Floor(at))
	src := archive.NewSource(ctx, f.n.backups.store, inv, st.History, filepath.Join(f.n.cfg.Data, packDir))
	defer src.Close()
	for buf := make([]byte, 1<<20); at < end; {
		n, err := src.ReadWAL(buf[:min(uint64(len(buf)), uint64(end-at))], at)
		if err != nil {
			return err
		}
		if err := spool.Append(at, buf[:n]); err != nil {
			return err
		}
		at += pg.LSN(n)
	}
	_, err = spool.Sync()
	return err
}
