package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/fsm"
	"everpage/cluster/placement"
	"everpage/wal/stream"
)

const (
	leadEvery = time.Second
	// importerGone is how long the node that takes the base backup may be away until another one takes a new one.
	importerGone = 30 * time.Second
	// slotsEvery is how often the leader looks at slots that nobody uses any more.
	slotsEvery = 30 * time.Second
	// formerTimeout bounds what is asked of the primary for the slot of a former cluster.
	formerTimeout = 2 * time.Second
)

// leader does what one node of the cluster has to do for all. Whatever it decides stands in the cluster's log; what it only saw, it sees again after a change
// of the lead, with full grace.
type leader struct {
	n      *Node
	since  time.Time            // of leading
	leases map[uint64]leaseSeen // by number
	slots  time.Time            // of the last look
	told   map[string]bool      // warnings that were given
	active map[string]time.Time // when a slot of a former cluster was last seen in use
	usage  placement.Usage      // as the nodes said
	asked  time.Time            // for it

	planned map[uint32]plannedHorizon // by branch
	horizon time.Time                 // of the last look at where history is to begin

	stuck stuck // of archiving
}

type leaseSeen struct {
	renewed uint64
	at      time.Time
}

// lead does the leader's duties while this node leads.
func (n *Node) lead(ctx context.Context) error {
	tick := time.NewTicker(leadEvery)
	defer tick.Stop()
	var l *leader
	for {
		_, changed := n.cluster.Watch()
		if !n.cluster.IsLeader() {
			l = nil
		} else {
			if l == nil {
				l = &leader{n: n, since: time.Now(), leases: map[uint64]leaseSeen{}, told: map[string]bool{}, active: map[string]time.Time{}, planned: map[uint32]plannedHorizon{}}
			}
			if err := l.duties(ctx); err != nil && ctx.Err() == nil {
				n.cfg.Logger.Warn("a duty of the leader failed; it is tried again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.cluster.Failed():
			return n.cluster.Err()
		case <-changed:
		case <-tick.C:
		}
	}
}

func (l *leader) duties(ctx context.Context) error {
	s := l.n.cluster.State()
	if s.ID == "" {
		return nil
	}
	return errors.Join(l.importer(ctx, s), l.plan(ctx, s), l.expire(ctx, s), l.moveHorizons(ctx, s), l.dropSlots(ctx, s), l.yield(ctx, s))
}

// gone is how long a node has been away, 0 if it is there. A node that was never seen counts from when this node began to lead.
func (l *leader) gone(id string) time.Duration {
	alive, since := l.n.cluster.Alive(id)
	if alive {
		return 0
	}
	if since.Before(l.since) {
		since = l.since
	}
	return max(time.Since(since), 1)
}

// propose proposes, and takes it easy when the state has moved on meanwhile.
func (l *leader) propose(ctx context.Context, c command.Command) error {
	_, err := l.n.cluster.Propose(ctx, c)
	var refused *cluster.Refused
	if errors.As(err, &refused) {
		l.n.cfg.Logger.Debug("a command no longer fits", "command", command.Name(c), "reason", err)
		return nil
	}
	return err
}

// importer gives the import to this node where the one that had it is gone.
func (l *leader) importer(ctx context.Context, s *cluster.State) error {
	f := s.Follow
	b := s.Branch(0)
	if f.Conninfo == "" || b != nil && b.Imported && (f.Hole == "" || f.Importer != "" && l.gone(f.Importer) < importerGone) {
		return nil
	}
	if f.Importer != "" && l.gone(f.Importer) < importerGone {
		return nil
	}
	l.n.cfg.Logger.Warn("the node that took the base backup is gone; this one takes another", "was", f.Importer)
	return l.propose(ctx, &command.TakeImport{From: f.Importer, Importer: l.n.cluster.ID()})
}

// expire ends leases that were not renewed in time.
func (l *leader) expire(ctx context.Context, s *cluster.State) error {
	var over []uint64
	seen := map[uint64]leaseSeen{}
	for _, lease := range s.Leases {
		old, ok := l.leases[lease.Number]
		if !ok || old.renewed != lease.Renewed {
			old = leaseSeen{lease.Renewed, time.Now()}
		}
		seen[lease.Number] = old
		if time.Since(old.at) > time.Duration(lease.Seconds)*time.Second {
			over = append(over, lease.Number)
		}
	}
	l.leases = seen
	if len(over) == 0 {
		return nil
	}
	return l.propose(ctx, &command.EndLeases{Leases: over, Before: s.Index + 1})
}

// dropSlots drops the slots of nodes that were removed, and of those that are dead for so long that the WAL kept for them may fill the primary's disk.
func (l *leader) dropSlots(ctx context.Context, s *cluster.State) error {
	if s.Follow.Conninfo == "" || time.Since(l.slots) < min(slotsEvery, max(leadEvery, l.n.cfg.SlotGrace/4)) {
		return nil
	}
	l.slots = time.Now()
	line := l.n.follow.view().line()
	var errs []error
	for _, left := range s.Left {
		// What the store keeps of a conninfo, from which a cluster was recovered, has no password.
		if stream.WithoutPassword(left.Conninfo) != stream.WithoutPassword(s.Follow.Conninfo) {
			continue
		}
		left.Conninfo = s.Follow.Conninfo
		if l.inUse(s, left.Slot) { // a node of that name has joined again
			errs = append(errs, l.propose(ctx, &command.ForgetSlot{Slot: left.Slot}))
			continue
		}
		if left.Former && !l.unused(left.Slot) {
			continue
		}
		err := func() error {
			if !left.Former {
				return dropSlot(ctx, left, line)
			}
			short, cancel := context.WithTimeout(ctx, formerTimeout) // not for as long as it is in use
			defer cancel()
			return dropSlot(short, left, line)
		}()
		if left.Former && errors.Is(err, stream.ErrSlotActive) {
			// Its node is there, though nobody writes to the store with it any more. It may lose its connection for a moment: that is not to be the end of its slot.
			l.active[left.Slot] = time.Now()
			l.n.cfg.Logger.Warn("a node of the cluster that this one was recovered from still follows the primary: stop it", "slot", left.Slot)
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("slot %s of a node that is not of the cluster any more: %w", left.Slot, err))
			continue
		}
		l.n.cfg.Logger.Info("the slot of a node that is not of the cluster any more is dropped", "slot", left.Slot)
		errs = append(errs, l.propose(ctx, &command.ForgetSlot{Slot: left.Slot}))
	}
	for _, x := range s.Nodes {
		gone := l.gone(x.ID)
		slot, err := stream.NodeSlot(l.n.cfg.Cluster, x.Name)
		if err != nil {
			return err
		}
		early := slot + " soon"
		switch {
		case gone < l.n.cfg.SlotGrace/2:
			delete(l.told, slot)
			delete(l.told, early)
			continue
		case gone < l.n.cfg.SlotGrace:
			if !l.told[early] {
				l.told[early] = true
				l.n.cfg.Logger.Warn(fmt.Sprintf("node %s is gone for %s: the primary keeps WAL for its slot %s, which is dropped after %s", x.Name, gone.Round(time.Second), slot,
					l.n.cfg.SlotGrace))
			}
			continue
		case l.told[slot]:
			continue
		}
		l.n.follow.warn(fmt.Sprintf("node %s is gone for %s: its slot %s is dropped, so that the WAL kept for it doesn't fill the primary's disk; when it comes back it gets what it lacks from the other nodes",
			x.Name, gone.Round(time.Second), slot))
		if err := dropSlot(ctx, fsm.LeftSlot{Slot: slot, Conninfo: s.Follow.Conninfo}, line); err != nil {
			errs = append(errs, fmt.Errorf("slot %s of node %s, which is gone: %w", slot, x.Name, err))
			continue
		}
		l.told[slot] = true
	}
	return errors.Join(errs...)
}

// unused tells whether nobody has used a former cluster's slot for long enough, as far as this leader has seen.
func (l *leader) unused(slot string) bool {
	since := l.since
	if at := l.active[slot]; at.After(since) {
		since = at
	}
	if time.Since(since) >= l.n.cfg.SlotGrace {
		return true
	}
	if told := slot + " former"; !l.told[told] {
		l.told[told] = true
		l.n.cfg.Logger.Warn("the primary keeps WAL for a slot of the cluster that this one was recovered from; it is dropped once nobody has used it for long", "slot", slot, "after", l.n.cfg.SlotGrace)
	}
	return false
}

// inUse tells whether a slot is a member's.
func (l *leader) inUse(s *cluster.State, slot string) bool {
	return slices.ContainsFunc(s.Nodes, func(x fsm.Node) bool {
		name, err := stream.NodeSlot(l.n.cfg.Cluster, x.Name)
		return err == nil && name == slot
	})
}
