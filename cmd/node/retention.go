package node

import (
	"context"
	"fmt"
	"time"

	"everpage/backup"
	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/fsm"
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// The leader moves each branch's horizon, in two steps. It announces where history is to begin: from then on no lease and no fork below that is
// taken. A grace later it makes that final, as far as the leases allow that were there before. Then every node stops to answer what lies below, and collects it.

// plannedHorizon is a horizon that this leader has seen announced.
type plannedHorizon struct {
	lsn pg.LSN
	at  time.Time
}

// horizonEvery is how often the leader looks whether history can begin later, at most; with a short retention it does so more often.
const horizonEvery = 10 * time.Second

// moveHorizons does both steps where they are due.
func (l *leader) moveHorizons(ctx context.Context, s *cluster.State) error {
	for _, h := range s.Horizons {
		if h.Planned == h.Applied {
			delete(l.planned, h.Branch)
			continue
		}
		seen, ok := l.planned[h.Branch]
		if !ok || seen.lsn != h.Planned {
			l.planned[h.Branch] = plannedHorizon{h.Planned, time.Now()}
			continue
		}
		if time.Since(seen.at) < l.n.cfg.HorizonGrace {
			continue
		}
		if to := applicable(s, h); to > h.Applied {
			if err := l.propose(ctx, &command.ApplyHorizon{Branch: h.Branch, LSN: to}); err != nil {
				return err
			}
		}
	}
	every := horizonEvery
	if s.Retention != 0 {
		every = min(every, max(s.Retention/20, leadEvery))
	}
	if s.Retention == 0 && s.RetentionBytes == 0 || time.Since(l.horizon) < every {
		return nil
	}
	l.horizon = time.Now()
	for _, t := range l.n.horizonTargets(ctx, s, l.gone) {
		// One step after the other: a plan that changes all the time would never be final.
		if h := s.Horizon(t.branch); t.lsn > h.Planned && h.Planned == h.Applied {
			if err := l.propose(ctx, &command.PlanHorizon{Branch: t.branch, LSN: t.lsn, For: s.Kept()}); err != nil {
				return err
			}
		}
	}
	return nil
}

// applicable is up to where a planned horizon can be made final: leases that were there before it hold it back.
func applicable(s *cluster.State, h fsm.Horizon) pg.LSN {
	to := h.Planned
	if pin := s.OldestLease(h.Branch); pin != 0 {
		to = min(to, pin)
	}
	return to
}

// horizonTarget is where a branch's history could begin now.
type horizonTarget struct {
	branch uint32
	lsn    pg.LSN
	heldBy string // what keeps it from being what retention says
}

// horizonTargets finds out where the branches' history could begin: what retention says, unless something needs older versions. 0 where that isn't known.
func (n *Node) horizonTargets(ctx context.Context, s *cluster.State, gone func(id string) time.Duration) (out []horizonTarget) {
	if s.Main == 0 || s.Retention == 0 && s.RetentionBytes == 0 {
		return nil
	}
	progress := n.nodesProgress(ctx, s)
	newest := n.newestCommit(s)
	for _, b := range s.Branches {
		if !b.Imported && b.Parent == 0 {
			continue
		}
		t := horizonTarget{branch: b.Number}
		want, err := n.retained(s, b.Number, newest)
		switch {
		case err != nil:
			t.heldBy = err.Error()
		case want > n.store.Oldest(b.Number) && want > b.Fork:
			t.lsn = want
			n.hold(&t, s, b, progress, gone)
		}
		out = append(out, t)
	}
	return out
}

// newestCommit is the time of the newest commit that this node knows of, or now where that is earlier. Retention counts from there: a clock that jumps
// ahead must not take history away.
func (n *Node) newestCommit(s *cluster.State) time.Time {
	var newest time.Time
	for _, b := range s.Branches {
		p, ok := n.store.Progress(b.Number)
		if !ok {
			continue
		}
		if last, _, err := n.store.Neighbours(b.Number, p.Readable); err == nil && last != nil && last.Time.Time().After(newest) {
			newest = last.Time.Time()
		}
	}
	if now := time.Now(); newest.After(now) {
		return now
	}
	return newest
}

// retained is where the history of a branch begins by what retention alone says; 0: where it does already.
func (n *Node) retained(s *cluster.State, branch uint32, newest time.Time) (pg.LSN, error) {
	p, ok := n.store.Progress(branch)
	if !ok || p.Consistent == 0 || newest.IsZero() && s.Retention != 0 {
		return 0, nil
	}
	if s.Retention == 0 {
		main, _ := n.store.Progress(s.Main)
		end := max(p.Readable, main.Readable)
		if uint64(end) <= s.RetentionBytes {
			return 0, nil
		}
		return min(end-pg.LSN(s.RetentionBytes), p.Readable), nil
	}
	// In WAL order: the state at a time is that before the first commit which is later.
	c, ok, err := n.store.FirstCommitAfter(branch, pg.TimestampOf(newest.Add(-s.Retention)), false)
	if err != nil {
		return 0, err
	}
	if ok {
		return c.Start, nil
	}
	last, _, err := n.store.Neighbours(branch, p.Readable)
	if err != nil || last == nil {
		return 0, err
	}
	return last.End, nil
}

// hold lowers a target to what is needed or not yet safe elsewhere.
func (n *Node) hold(t *horizonTarget, s *cluster.State, b fsm.Branch, progress map[string]*pb.NodeProgress, gone func(id string) time.Duration) {
	lower := func(to pg.LSN, why string) {
		if to < t.lsn {
			t.lsn, t.heldBy = to, why
		}
	}
	if pin := s.OldestLease(b.Number); pin != 0 {
		lower(pin, "a lease of "+pin.String())
	}
	if fork := s.OldestFork(b.Number); fork != 0 {
		lower(fork, "a branch that forked off at "+fork.String())
	}
	for _, x := range s.Nodes {
		p := progress[x.ID]
		if p == nil {
			if gone(x.ID) < n.cfg.DeadAfter {
				lower(0, "node "+x.Name+", which does not answer")
			}
			continue
		}
		for _, at := range p.Branches {
			if at.Branch == b.Number {
				lower(pg.LSN(at.Stored), fmt.Sprintf("node %s, which has made versions durable up to %s", x.Name, pg.LSN(at.Stored)))
			}
		}
	}
	if at, there := backedUp(s, b.Number); there || n.backups != nil {
		lower(at, "the backup, which goes up to "+at.String())
	}
}

// backedUp is up to where the store has all of a branch.
func backedUp(s *cluster.State, branch uint32) (at pg.LSN, there bool) {
	have := map[placement.Shard]pg.LSN{}
	for _, m := range s.Manifests {
		if m.Branch == branch {
			have[m.Shard] = m.LSN
		}
	}
	at = have[backup.Small]
	for shard := range placement.Shard(s.Shards) {
		at = min(at, have[shard])
	}
	return at, len(have) > 0
}
