package chunk

import (
	"context"
	"fmt"

	"everpage/wal/pg"
)

// sizeAt is the newest size entry of a fork at or below lsn; the zero entry if there is none.
func (r *reader) sizeAt(branch uint32, fork pg.RelFork, lsn pg.LSN) (e sizeEntry, err error) {
	p := sizePrefix(branch, fork)
	v, ok, err := r.newest(&p, lsn)
	if err != nil || !ok {
		return e, err
	}
	if e, err = getSize(v.lsn, v.value); err != nil {
		return e, r.corrupt(&p, v.lsn, err)
	}
	return e, nil
}

// floor finds, from a fork's size entry e, the newest shrink at or before it that cut block off. ok is false if there is none: then every version
// counts. A copy cuts off everything; a block that the copied fork had goes on in source just before the copy. Of what was collected some entries of the list
// are missing: newer ones cut off what these did.
func (r *reader) floor(branch uint32, fork pg.RelFork, e sizeEntry, block uint32) (f sizeEntry, ok bool, err error) {
	for at := e.lastShrink(); at != 0; at = e.link {
		if e.lsn != at {
			if e, err = r.sizeAt(branch, fork, at); err != nil {
				return f, false, err
			}
		}
		if e.lsn < at && r.s.collected(branch, at) {
			if e.lsn == 0 {
				return f, false, nil
			}
			if !e.shrinks() {
				if e.link >= e.lsn {
					p := sizePrefix(branch, fork)
					return f, false, r.corrupt(&p, e.lsn, errShape)
				}
				continue
			}
			at = e.lsn
		}
		if e.lsn != at || !e.shrinks() || e.link >= at {
			p := sizePrefix(branch, fork)
			return f, false, r.corrupt(&p, at, fmt.Errorf("the list of truncations is broken: found an entry of %s", e.lsn))
		}
		if e.left <= block || e.op == sizeCopy {
			return e, true, nil
		}
	}
	return f, false, nil
}

// collected tells whether a branch's entries at an LSN were collected, those that no read needs.
func (s *Store) collected(branch uint32, at pg.LSN) bool {
	p := s.branch(branch).current()
	for p != nil && p.Fork != 0 && at <= p.Fork {
		p = s.branch(p.Parent).current()
	}
	return p != nil && at <= p.Horizon
}

// currentSize answers from the writer's own state, if that is old enough to be what lsn sees.
func (b *branchState) currentSize(fork pg.RelFork, lsn pg.LSN) (e sizeEntry, ok bool) {
	b.mu.RLock()
	e, ok = b.sizes[fork]
	b.mu.RUnlock()
	return e, ok && e.lsn <= lsn
}

// Size is the number of blocks of a fork at an LSN; ok is false if it doesn't exist then.
func (s *Store) Size(branch uint32, fork pg.RelFork, at pg.LSN) (blocks uint32, ok bool, err error) {
	b, _, err := s.open(branch, at)
	if err != nil {
		return 0, false, err
	}
	if e, ok := b.currentSize(fork, at); ok {
		return e.blocks, e.exists, nil
	}
	r, err := s.readerAt(b, at)
	if err != nil {
		return 0, false, err
	}
	defer r.release()
	e, err := r.sizeAt(branch, fork, at)
	return e.blocks, e.exists, err
}

// Relations calls fn for every fork that exists at an LSN, from the given one on, in order. An error of fn ends the walk and is returned.
func (s *Store) Relations(ctx context.Context, branch uint32, at pg.LSN, from pg.RelFork, fn func(fork pg.RelFork, blocks uint32) error) error {
	if from.Spc == 0 {
		from = pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1}}
	}
	return s.forks(ctx, branch, at, sizePrefix(branch, from), makePrefix(classSize, branch+1, 0, 0, 0, 0, 0), fn)
}

// SLRUSegments calls fn for every segment of an SLRU that exists at an LSN, in order, with the number of pages that its file has.
// Pages are read by Page with pg.SLRUPage; those never written inside that number are zero.
func (s *Store) SLRUSegments(branch uint32, slru pg.SLRU, at pg.LSN, fn func(segment, pages uint32) error) error {
	lo, hi := slruRange(branch, slru)
	return s.forks(context.Background(), branch, at, lo, hi, func(fork pg.RelFork, blocks uint32) error { return fn(fork.Rel, blocks) })
}

func slruRange(branch uint32, slru pg.SLRU) (lo, hi prefix) {
	return makePrefix(classSize, branch, 0, uint32(slru), 0, 0, 0), makePrefix(classSize, branch, 0, uint32(slru)+1, 0, 0, 0)
}

func (s *Store) forks(ctx context.Context, branch uint32, at pg.LSN, lo, hi prefix, fn func(fork pg.RelFork, blocks uint32) error) error {
	b, _, err := s.open(branch, at)
	if err != nil {
		return err
	}
	r, err := s.readerAt(b, at)
	if err != nil {
		return err
	}
	defer r.release()
	return r.each(lo, hi, at, func(p *prefix, v version) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := getSize(v.lsn, v.value)
		if err != nil {
			return r.corrupt(p, v.lsn, err)
		}
		if !e.exists {
			return nil
		}
		return fn(p.pageKey().RelFork, e.blocks)
	})
}

// ForkState is what the newest entry of a fork's size history says.
type ForkState struct {
	Fork   pg.RelFork // an SLRU segment's: tablespace 0, database = the SLRU, relation = the segment
	LSN    pg.LSN
	Exists bool
	Blocks uint32
	Shrunk pg.LSN // the latest truncation, drop or copy; 0: none
}

// Forks calls fn for every fork and SLRU segment of which something is known at an LSN, those that are gone too, in order.
func (s *Store) Forks(ctx context.Context, branch uint32, at pg.LSN, fn func(f ForkState) error) error {
	b, _, err := s.open(branch, at)
	if err != nil {
		return err
	}
	r, err := s.readerAt(b, at)
	if err != nil {
		return err
	}
	defer r.release()
	return r.each(makePrefix(classSize, branch, 0, 0, 0, 0, 0), makePrefix(classSize, branch+1, 0, 0, 0, 0, 0), at, func(p *prefix, v version) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := getSize(v.lsn, v.value)
		if err != nil {
			return r.corrupt(p, v.lsn, err)
		}
		return fn(ForkState{p.pageKey().RelFork, e.lsn, e.exists, e.blocks, e.lastShrink()})
	})
}

// SizeVersion is one entry of a fork's size history.
type SizeVersion struct {
	LSN    pg.LSN
	Op     string // grow, create, truncate, drop, copy
	Exists bool
	Blocks uint32
	Left   uint32            // versions of blocks from here on, at or before LSN, are cut off; truncate, drop and copy only
	Source pg.RelFileLocator // copy only: what the fork is a copy of, as that was just before LSN
}

// Cuts tells whether the entry cut off all older versions of a block.
func (v *SizeVersion) Cuts(block uint32) bool {
	switch v.Op {
	case sizeOps[sizeTruncate], sizeOps[sizeDrop]:
		return v.Left <= block
	}
	return v.Op == sizeOps[sizeCopy]
}

var sizeOps = [...]string{sizeGrow: "grow", sizeCreate: "create", sizeTruncate: "truncate", sizeDrop: "drop", sizeCopy: "copy", sizeAbsent: "absent"}

// Sizes calls fn for each version of a fork's size that can be read, newest first.
func (s *Store) Sizes(ctx context.Context, branch uint32, fork pg.RelFork, fn func(v SizeVersion) error) error {
	b := s.branch(branch)
	pr := b.current()
	if pr == nil {
		return fmt.Errorf("branch %d: %w", branch, ErrNoBranch)
	}
	r, err := s.reader()
	if err != nil {
		return err
	}
	defer r.release()
	p := sizePrefix(branch, fork)
	r.seek(&p, pr.Readable)
	for {
		v, ok, err := r.next()
		if err != nil || !ok {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := getSize(v.lsn, v.value)
		if err != nil {
			return r.corrupt(&p, v.lsn, err)
		}
		if e.op == sizeAbsent {
			continue
		}
		if err := fn(SizeVersion{LSN: e.lsn, Op: sizeOps[e.op], Exists: e.exists, Blocks: e.blocks, Left: e.left, Source: e.source}); err != nil {
			return err
		}
	}
}
