package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"everpage/chunk"
	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/pageapi"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// A primary that fails over goes on, on a standby that was promoted, with a new timeline. The first node that sees it has the cluster agree on a branch for that
// timeline, which forked off main where the old one was left, and main is that branch from then on. Each node then reads the old timeline up to the switch point,
// forks the branch in its own store and follows the new timeline into it. What it received beyond the switch point stays on the old branch.

// lineage lists the states of a branch and of those that it descends from, the oldest first.
func (f *follower) lineage(st state) ([]state, error) {
	var line []state
	for _, b := range lineOf(f.n.cluster.State(), st.Branch) {
		x, err := st.of(b)
		if err != nil {
			return nil, err
		}
		line = append(line, x)
	}
	if len(line) == 0 {
		return nil, fmt.Errorf("branch %d is not there", st.Branch)
	}
	return line, nil
}

// arrive makes the branch that main names be here: forked off one that is, else copied from other nodes.
func (f *follower) arrive(ctx context.Context, st state) error {
	line, err := f.lineage(st)
	if err != nil {
		return err
	}
	at := len(line) - 1
	for ; at >= 0; at-- {
		if p, here := f.n.store.Progress(line[at].Branch); here && p.Consistent != 0 {
			break
		}
	}
	if at < 0 {
		return f.copySmall(ctx, line)
	}
	for ; at < len(line)-1; at++ {
		err := f.fork(ctx, line[at], line[at+1])
		if errors.Is(err, errCopyInstead) {
			err := f.copySmall(ctx, line[at+1:])
			if errors.Is(err, chunk.ErrNoBranch) {
				err = fmt.Errorf("%w; WAL of timeline %d from %s to %s is nowhere any more: remove this node (everpage node remove %s) and let it join anew with an empty data directory",
					err, line[at].Timeline, f.applied(line[at].Branch), line[at+1].Fork, f.n.cfg.Node)
			}
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// errReached ends following a branch that another one forked off, once that LSN is readable.
var errReached = errors.New("the switch point is reached")

// fork makes a branch here out of its parent, once that is ingested up to the switch point.
func (f *follower) fork(ctx context.Context, parent, child state) error {
	for f.applied(parent.Branch) < child.Fork {
		parent.Until = child.Fork
		f.log.Info("the rest of the old timeline is received", "timeline", parent.Timeline, "up_to", child.Fork)
		if err := f.followBranch(ctx, parent, nil); !errors.Is(err, errReached) {
			return err
		}
	}
	if err := markCopy(f.n.cfg.Data, spoolStart{child.Branch, child.Fork}); err != nil {
		return err
	}
	if err := f.n.store.Fork(parent.Branch, child.Branch, child.Fork); err != nil {
		return err
	}
	f.log.Info("a new timeline is followed", "timeline", child.Timeline, "branch", child.Branch, "from", child.Fork, "beyond_on_old", f.applied(parent.Branch)-child.Fork)
	return nil
}

// switched has the cluster agree on the branch of the timeline that the primary is on now. It returns nil once that is agreed: the state then changes.
func (f *follower) switched(ctx context.Context, st state, end *stream.EndOfTimeline) error {
	history, ok := end.NextHistory()
	if !ok {
		return fmt.Errorf("%w; its history %v is not one of timeline %d", end, end.History.Parents, end.Next)
	}
	p, _ := f.n.store.Progress(st.Branch)
	switch {
	case p.Consistent == 0 && f.applied(st.Branch) < end.Switch:
		return fmt.Errorf("%w; the base backup is not complete without WAL of the old timeline, which is ingested up to %s", end, p.Readable)
	case end.Switch < p.Consistent || end.Switch < p.Horizon || p.Consistent == 0:
		return fmt.Errorf("%w; that is before the oldest LSN that can be read here, %s: everpage detach --keep-data ends following it, or everpage detach and attach import it anew",
			end, max(p.Consistent, p.Horizon))
	}
	number, err := cluster.ProposeFor[uint32](ctx, f.n.cluster, &command.ForkBranch{
		Parent: st.Branch, Fork: end.Switch, Timeline: end.Next, History: history.Format(),
	})
	var refused *cluster.Refused
	if errors.As(err, &refused) && f.n.cluster.State().Main != st.Branch {
		return nil // others were first, and it is followed already
	}
	if err != nil {
		return err
	}
	f.warn(fmt.Sprintf("the primary failed over: timeline %d was left at %s for timeline %d, which is branch %d, main from now on", st.Timeline, end.Switch, end.Next, number))
	return f.refresh(f.n.cluster.State())
}

// maxLost bounds the lost commits that info lists of a branch.
const maxLost = 1000

// branches are those that the cluster knows, and those that are here. This node need not have all of them yet, nor has the store what the cluster dropped.
func (n *Node) branches() []uint32 { return branchesOf(n.cluster.State(), n.store.Branches()) }

func branchesOf(s *cluster.State, here []uint32) []uint32 {
	all := slices.Clone(here)
	for _, b := range s.Branches {
		all = append(all, b.Number)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// left tells where main left a branch that it descends from: what lies beyond is on that branch only.
func (f *follower) left(branch uint32) (at pg.LSN, ok bool) {
	s := f.n.cluster.State()
	for _, b := range lineOf(s, s.Main) {
		if b.Parent == branch {
			return b.Fork, true
		}
	}
	return 0, false
}

// isMain refuses a branch that main is not any more at an LSN, and waits where this node has not heard of it yet.
func (f *follower) isMain(ctx context.Context, branch uint32, at pg.LSN) error {
	s, err := f.n.cluster.Until(ctx, func(s *cluster.State) bool { return s.Main >= branch || s.Main == 0 })
	if err != nil {
		return pageapi.Errorf(pageapi.Unavailable, "this node has not heard yet that main is branch %d: to its knowledge it is branch %d (%w)", branch, s.Main, err)
	}
	if s.Main == 0 || sameOnMain(s, branch, at) {
		return nil
	}
	return pageapi.Errorf(pageapi.MainMoved, "main is branch %d by now, not %d, and not the same at %s", s.Main, branch, at)
}

// sameOnMain tells whether main has a branch's versions at an LSN: it is that branch, or forked off it later.
func sameOnMain(s *cluster.State, branch uint32, at pg.LSN) bool {
	if branch == s.Main {
		return true
	}
	for _, b := range lineOf(s, s.Main) {
		if b.Parent == branch {
			return at != 0 && at <= b.Fork
		}
	}
	return false
}

// lost lists the commits of a branch beyond an LSN, the first maxLost of them, and counts all.
func lost(ctx context.Context, store *chunk.Store, branch uint32, beyond pg.LSN) (list []chunk.Commit, count int, err error) {
	err = store.Commits(ctx, branch, beyond, func(c chunk.Commit) error {
		if !c.Commit {
			return nil
		}
		count++
		if list = append(list, c); len(list) == 2*maxLost { // the newest come first, the oldest are wanted
			list = append(list[:0], list[maxLost:]...)
		}
		return nil
	})
	list = list[max(0, len(list)-maxLost):]
	slices.Reverse(list)
	return list, count, err
}
