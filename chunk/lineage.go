package chunk

import (
	"encoding/binary"
	"fmt"
	"slices"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// A branch may have a parent: at and below the LSN where it forked off, its history is the parent's. Nothing is copied: a walk down an object's versions
// goes on in the parent, at the fork.

// forkPoint is where a branch comes from.
type forkPoint struct {
	parent uint32
	at     pg.LSN
}

// lineage has the forkPoint of each branch that has a parent. It never changes: a change makes another one. nil: no branch has one.
type lineage map[uint32]forkPoint

// children lists where branches forked off, newest first.
func (l lineage) children(parent uint32) (at []pg.LSN) {
	for _, f := range l {
		if f.parent == parent {
			at = append(at, f.at)
		}
	}
	slices.Sort(at)
	slices.Reverse(at)
	return slices.Compact(at)
}

// relate makes the lineage anew from the branches' progress. Under s.mu, or before the store is shared. A branch that is to become known is told of by
// fresh: no reader may find it without its parent.
func (s *Store) relate(fresh uint32, of *Progress) {
	l := lineage{}
	s.branches.Range(func(k, v any) bool {
		if p := v.(*branchState).current(); p != nil && p.Fork != 0 {
			l[k.(uint32)] = forkPoint{p.Parent, p.Fork}
		}
		return true
	})
	if of != nil && of.Fork != 0 {
		l[fresh] = forkPoint{of.Parent, of.Fork}
	}
	s.lineage.Store(&l)
}

func (s *Store) lines() lineage { return *s.lineage.Load() }

// Fork makes a branch that is its parent up to an LSN, where a record ends, and goes on from there. It is durable when the call returns.
func (s *Store) Fork(parent, child uint32, at pg.LSN) error {
	fail := func(err error) error { return fmt.Errorf("fork of branch %d at %s: %w", parent, at, err) }
	s.covering.Lock()
	defer s.covering.Unlock()
	pb, b := s.branch(parent), s.branch(child)
	s.mu.Lock()
	p := pb.current()
	var err error
	switch {
	case s.closing:
		err = ErrClosed
	case p == nil:
		err = ErrNoBranch
	case b.current() != nil:
		err = fmt.Errorf("branch %d is here already", child)
	case b.writing || b.dropped || parent == child:
		err = fmt.Errorf("branch %d is %w", child, ErrBusy)
	case at > p.Readable:
		err = fmt.Errorf("%w: it is readable to %s", ErrNotYet, p.Readable)
	case at < p.Start || p.Horizon != 0 && at < p.Horizon:
		err = ErrBelowHorizon
	}
	if err != nil {
		s.mu.Unlock()
		return fail(err)
	}
	n := *p
	n.Parent, n.Fork, n.Readable, n.Resume = parent, at, at, at
	n.Horizon, n.Pins, n.Copied = 0, nil, 0
	if n.Consistent > at {
		n.Consistent = 0
	}
	if n.Unproven > at {
		n.Unproven, n.UnprovenReason = 0, ""
	}
	// What the parent has from a later LSN on only can't be what the child stands on.
	pc := pb.cover.Load()
	cc := pc.clone(s.opt.Shards)
	clear(cc.chunks)
	cut := pc.clone(s.opt.Shards)
	for i := range cc.shards {
		if c := &cc.shards[i]; c.Owned {
			*c = Coverage{Owned: true, Complete: true}
		}
		b.coverDirty[coverKey{shard: shardNumber(i)}] = true
		if c := &cut.shards[i]; c.Complete && c.From > at {
			c.Complete = false
			pb.coverDirty[coverKey{shard: shardNumber(i)}] = true
		}
	}
	for k, c := range cut.chunks {
		if c.Complete && c.From > at {
			c.Complete = false
			cut.chunks[k] = c
			pb.coverDirty[coverKey{one: true, chunk: k}] = true
		}
	}
	for k, c := range pc.chunks { // those that are owned without their shards
		if c.Owned && !pc.shard(placement.ShardOf(k, s.opt.Shards)).Owned {
			cc.chunks[k] = Coverage{Owned: true, Complete: true}
			b.coverDirty[coverKey{one: true, chunk: k}] = true
		}
	}
	cc.rest = Coverage{}
	b.coverDirty[coverKey{rest: true}] = true
	pb.cover.Store(cut)
	b.cover.Store(cc)
	b.high = at
	s.relate(child, &n)
	b.progress.Store(&n)
	b.dirty, pb.dirty = true, true
	b.wake(false)
	s.mu.Unlock()
	return s.flush(true)
}

// inParent is the prefix of the same object in the parent.
func (p prefix) inParent(parent uint32) prefix {
	binary.BigEndian.PutUint32(p[1:], parent)
	return p
}

// inherited tells whether an object's history goes on in the parent by itself. Pages do so in chain, which knows what is covered.
func (p *prefix) inherited() bool { return p.class() > classPage && p.class() < classProgress }

// ancestor is a branch that a read may go on in.
type ancestor struct {
	b     *branchState
	at    pg.LSN
	cover *cover
}

// ancestors are a branch's parent, that one's parent and so on.
func (s *Store) ancestors(l lineage, branch uint32) (up []ancestor) {
	for f, ok := l[branch]; ok; f, ok = l[f.parent] {
		b := s.branch(f.parent)
		at := f.at
		if n := len(up); n > 0 {
			at = min(at, up[n-1].at)
		}
		up = append(up, ancestor{b, at, b.cover.Load()})
	}
	return up
}
