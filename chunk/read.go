package chunk

import (
	"context"
	"fmt"
	"slices"

	"everpage/wal/pg"
)

// maxCopies bounds how many database copies a page may lie under.
const maxCopies = 64

// open checks that a branch answers at an LSN.
func (s *Store) open(branch uint32, at pg.LSN) (*branchState, *Progress, error) {
	b := s.branch(branch)
	p := b.current()
	switch {
	case p == nil:
		return nil, nil, fmt.Errorf("branch %d: %w", branch, ErrNoBranch)
	case p.Consistent == 0:
		return nil, nil, fmt.Errorf("branch %d at %s: %w: the base import has not reached its end LSN", branch, at, ErrNotConsistent)
	case at < p.Consistent:
		return nil, nil, fmt.Errorf("branch %d at %s: %w: the first LSN that is answered is %s", branch, at, ErrBelowHorizon, p.Consistent)
	case !s.above(p, at):
		return nil, nil, s.belowHorizon(branch, p, at)
	case at > p.Readable:
		return nil, nil, fmt.Errorf("branch %d at %s: %w: the last LSN that is answered is %s", branch, at, ErrNotYet, p.Readable)
	}
	return b, p, nil
}

// above tells whether a branch's versions at an LSN were not collected.
func (s *Store) above(p *Progress, at pg.LSN) bool {
	for p != nil && p.Fork != 0 && at <= p.Fork {
		p = s.branch(p.Parent).current()
	}
	return p == nil || at >= p.Horizon || slices.Contains(p.Pins, at)
}

// Oldest is the first LSN that a branch answers, 0 while it answers none.
func (s *Store) Oldest(branch uint32) pg.LSN {
	p := s.branch(branch).current()
	if p == nil || p.Consistent == 0 {
		return 0
	}
	if p.Fork != 0 && p.Horizon <= p.Fork {
		return max(p.Consistent, s.Oldest(p.Parent))
	}
	return max(p.Consistent, p.Horizon)
}

// horizon is that of a branch's own versions, 0 if it was never moved.
func (s *Store) horizon(branch uint32) pg.LSN {
	if p := s.branch(branch).current(); p != nil {
		return p.Horizon
	}
	return 0
}

// still tells, once a read has its reader, that nothing it may need was collected before it took it.
func (s *Store) still(b *branchState, at pg.LSN) error {
	if p := b.current(); p != nil && !s.above(p, at) {
		return s.belowHorizon(b.num, p, at)
	}
	return nil
}

// readerAt takes a reader for a read at an LSN.
func (s *Store) readerAt(b *branchState, at pg.LSN) (*reader, error) {
	r, err := s.reader()
	if err != nil {
		return nil, err
	}
	if err := s.still(b, at); err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

func (s *Store) belowHorizon(branch uint32, p *Progress, at pg.LSN) error {
	for up := p; up != nil && up.Fork != 0 && at <= up.Fork; {
		if up = s.branch(up.Parent).current(); up != nil {
			p = up
		}
	}
	return fmt.Errorf("branch %d at %s: %w: the first LSN that is answered is %s", branch, at, ErrBelowHorizon, max(p.Horizon, p.Consistent))
}

// Page reads a page as it is at an LSN into dst, which holds pg.BlockSize bytes.
//
// Errors wrap ErrNotFound (no such fork, or the block is past its end), ErrBelowHorizon, ErrNotYet, ErrNotConsistent, ErrNoBranch, or are a
// *CorruptError, a *DamagedError or a *NotHereError. dst is undefined after an error.
func (s *Store) Page(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN, dst pg.Page) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(dst) != pg.BlockSize {
		return fmt.Errorf("read of %s: dst has %d bytes, want %d", key, len(dst), pg.BlockSize)
	}
	if key.Block == pg.InvalidBlock {
		return fmt.Errorf("%s: %w: not a block number", key, ErrNotFound)
	}
	b, p, err := s.open(branch, at)
	if err != nil {
		return err
	}
	if p.DataChecksums && s.opt.Checksum == nil {
		return fmt.Errorf("branch %d has data checksums, but the store was opened without Options.Checksum", branch)
	}
	sums := p.DataChecksums && key.Spc != 0
	ok, summed := s.cache.at(b.id, key, at, dst)
	if ok && (summed || !sums) {
		return nil
	}
	version := pg.LSN(0)
	if !ok {
		r, v, err := s.view(ctx, b)
		if err != nil {
			return err
		}
		if err := s.still(b, at); err != nil {
			r.release()
			return err
		}
		err = r.page(v, b, key, at, dst)
		version = r.version
		r.release()
		if version, err = s.mend(ctx, b, key, at, dst, version, err); err != nil {
			return err
		}
		if version != 0 {
			s.cache.keep(b.id, key, version, at, false, dst)
		}
	}
	if sums && !dst.IsNew() {
		sum := s.opt.Checksum(dst, key.Block)
		dst.SetStoredChecksum(sum)
		if version != 0 {
			s.cache.sum(b.id, key, version, sum)
		}
	}
	return nil
}

// layer is one delta of a chain that is being put together.
type layer struct {
	key     pg.PageKey
	lsn     pg.LSN
	kind    VersionKind
	content []byte // of a run, or
	off, n  int    // of reader.bytes
}

// page makes a page as it is at an LSN, whatever the branch's progress is.
func (r *reader) page(view view, b *branchState, key pg.PageKey, at pg.LSN, dst pg.Page) error {
	r.stack, r.bytes, r.version = r.stack[:0], r.bytes[:0], 0
	asked, own := key, pg.LSN(0)
	for i := range maxCopies {
		next, lsn, done, err := r.chain(view, b, key, at, i > 0, dst)
		if err != nil {
			return err
		}
		if i == 0 {
			own = r.version
		}
		if r.version = own; done {
			err := r.apply(b, dst)
			if err != nil {
				r.s.addBroken(b.num, asked)
			}
			return err
		}
		key, at = next, lsn
	}
	return &CorruptError{Branch: b.num, Key: asked.String(), LSN: at, Err: fmt.Errorf("lies under more than %d database copies", maxCopies)}
}

// chain collects key's deltas down to their base, which it puts into dst. copied tells that another database was made as a copy of key's at LSN at. done is false if the base lies in another database, at next just before a copy.
func (r *reader) chain(view view, b *branchState, key pg.PageKey, at pg.LSN, copied bool, dst pg.Page) (next pg.PageKey, lsn pg.LSN, done bool, err error) {
	fork, block := forkOf(key)
	line, up := b.num, view.up   // the branch that the walk is in, and those that it may go on in
	cover, top := view.cover, at // of line; top: versions beyond it are none of this branch's
	for len(up) > 0 && at <= up[0].at {
		line, cover, up = up[0].b.num, up[0].cover, up[1:]
	}
	have, _ := r.s.coverageOf(cover, key)
	limit := have.limit(at)
	if copied && have.Complete {
		limit = 0 // what copies of a database need comes with its layers
	}
	if !have.Owned && copied { // the copy is owned without its shard: its source is asked for
		have = Coverage{Owned: true, From: at}
		limit = at
	}
	limit = max(limit, min(at, view.distrust))
	if !have.Owned {
		return next, 0, false, &NotHereError{Branch: line, Key: key, Shard: r.s.shard(key), At: at, Have: have}
	}
	size, ok := b.currentSize(fork, at)
	if !ok {
		if size, err = r.sizeAt(b.num, fork, at); err != nil {
			return next, 0, false, err
		}
	}
	p := r.s.pagePrefix(line, key)
	if !size.exists || block >= size.blocks {
		return next, 0, false, r.absent(b, key, fork, block, size, at)
	}

	shrink, resolved := size.lastShrink(), false
	var floor sizeEntry
	var fetched []PageVersion // what the source has of the versions at or below limit
	remote := false
	cached := r.s.cache.newest(b.id, key)
	r.seek(&p, at)
	for prev := at; ; {
		var v version
		if remote {
			if ok = len(fetched) > 0; ok {
				v = version{lsn: fetched[0].LSN, value: fetched[0].Value}
				fetched = fetched[1:]
			}
		} else if limit != 0 && prev <= limit {
			ok = false // nothing that is here counts, nor can it be an error
		} else if v, ok, err = r.next(); err != nil {
			return next, 0, false, err
		}
		beyond := !remote && limit != 0 && (!ok || v.lsn <= limit)
		if (!ok || beyond || v.lsn <= shrink) && shrink != 0 && !resolved {
			// Versions from here on may have been cut off. Finding out takes the reader away, so the walk is taken up again afterwards.
			if floor, _, err = r.floor(b.num, fork, size, block); err != nil {
				return next, 0, false, err
			}
			resolved = true
			if ok && !remote {
				r.seek(&p, prev)
				continue
			}
		}
		if beyond {
			if ok = false; limit > floor.lsn {
				fetched, err = r.fetch(view, line, key, have, limit, at)
				if h := min(r.s.horizon(line), top); err != nil && h > limit {
					// Who has it may have collected up to the horizon. Then what is here itself of that is of no use.
					if fetched, err = r.fetch(view, line, key, have, h, at); err == nil {
						for n := len(r.stack); n > 0 && r.stack[n-1].lsn <= h; n = len(r.stack) {
							r.stack = r.stack[:n-1]
						}
					}
				}
				if err != nil {
					return next, 0, false, err
				}
				remote = true
				continue
			}
		}
		if !ok && len(up) > 0 && up[0].at > floor.lsn {
			if !resolved && up[0].at <= shrink { // the floor may be in between
				if floor, _, err = r.floor(b.num, fork, size, block); err != nil {
					return next, 0, false, err
				}
				resolved = true
			}
			if up[0].at > floor.lsn {
				prev, top = up[0].at, up[0].at
				line, cover, up = up[0].b.num, up[0].cover, up[1:]
				if have, _ = r.s.coverageOf(cover, key); !have.Owned {
					return next, 0, false, &NotHereError{Branch: line, Key: key, Shard: r.s.shard(key), At: prev, Have: have}
				}
				if limit = have.limit(prev); have.Complete {
					limit = 0 // nor can anything take away what a branch needs that forked off
				}
				limit = max(limit, min(prev, view.distrust))
				p, remote, fetched = r.s.pagePrefix(line, key), false, nil
				r.seek(&p, prev)
				continue
			}
		}
		if !ok || v.lsn <= floor.lsn {
			if floor.op == sizeCopy && block < floor.left {
				key.RelFileLocator = floor.source
				return key, floor.lsn - 1, false, nil
			}
			clear(dst)
			return next, 0, true, nil
		}
		prev = v.lsn - 1
		if len(r.stack) == 0 {
			r.version = v.lsn
		}
		kind := VersionKind(v.value[0])
		switch kind {
		case KindImage:
			if err := getImage(dst, body(v.value)); err != nil {
				return next, 0, false, r.corrupt(&p, v.lsn, err)
			}
			return next, 0, true, nil
		case KindDamaged, KindMissing:
			return next, 0, false, damaged(b.num, key, v)
		case KindDelta, KindInit, KindOptional, KindZeroed:
			if v.lsn == cached && r.s.cache.get(b.id, key, v.lsn, dst) {
				return next, 0, true, nil
			}
			l := layer{key: key, lsn: v.lsn, kind: kind, content: body(v.value)}
			if v.lent {
				l.off, l.n = len(r.bytes), len(l.content)
				r.bytes = append(r.bytes, l.content...)
				l.content = nil
			}
			r.stack = append(r.stack, l)
			if kind == KindInit {
				clear(dst)
				return next, 0, true, nil
			}
		default:
			return next, 0, false, r.corrupt(&p, v.lsn, errShape)
		}
	}
}

// absent is the error for a page that its fork doesn't have: damaged if WAL refers to it, else not found.
func (r *reader) absent(b *branchState, key pg.PageKey, fork pg.RelFork, block uint32, size sizeEntry, at pg.LSN) error {
	floor, _, err := r.floor(b.num, fork, size, block)
	if err != nil {
		return err
	}
	// Other damage made the fork hold the page, so that something has cut it off since.
	mark := damagePrefix(b.num, key)
	v, ok, err := r.newest(&mark, at)
	if err != nil {
		return err
	}
	if ok && v.lsn > floor.lsn {
		return &DamagedError{Branch: b.num, Key: key, LSN: v.lsn, Reason: missingReason}
	}
	if slru, ok := key.SLRU(); ok {
		if size.exists {
			return fmt.Errorf("branch %d at %s: %s: %w: segment %s ends before it", b.num, at, key, ErrNotFound, pg.SLRUSegmentName(key.Block/pg.SLRUPagesPerSegment))
		}
		return fmt.Errorf("branch %d at %s: %s: %w: there is no segment %s of %s", b.num, at, key, ErrNotFound, pg.SLRUSegmentName(key.Block/pg.SLRUPagesPerSegment), slru)
	}
	if size.exists {
		return fmt.Errorf("branch %d at %s: %s: %w: the fork has %d blocks", b.num, at, key, ErrNotFound, size.blocks)
	}
	return fmt.Errorf("branch %d at %s: %s: %w: there is no such relation fork", b.num, at, key, ErrNotFound)
}

const missingReason = "WAL refers to the page there, but it does not exist"

func damaged(branch uint32, key pg.PageKey, v version) *DamagedError {
	e := &DamagedError{Branch: branch, Key: key, LSN: v.lsn}
	if VersionKind(v.value[0]) == KindMissing {
		e.Reason = missingReason
	} else {
		e.Reason = string(body(v.value))
	}
	return e
}

// apply brings the base in dst forward through the chain, oldest delta first.
func (r *reader) apply(b *branchState, dst pg.Page) error {
	if err := r.redo(b, dst); err != nil {
		return err
	}
	if len(r.stack) >= cacheFrom {
		r.s.cache.put(b.id, r.stack[0].key, r.stack[0].lsn, dst)
	}
	return nil
}

func (r *reader) redo(b *branchState, dst pg.Page) error {
	for i := len(r.stack) - 1; i >= 0; i-- {
		l := &r.stack[i]
		delta := l.content
		if delta == nil {
			delta = r.bytes[l.off : l.off+l.n]
		}
		init := l.kind == KindInit
		if l.key.Spc != 0 && !init && dst.IsNew() {
			switch l.kind {
			case KindOptional:
				continue
			case KindZeroed:
				clear(dst)
				init = true
			default:
				return &DamagedError{Branch: b.num, Key: l.key, LSN: l.lsn, Reason: "WAL refers to the page there, but it is new"}
			}
		}
		if _, err := r.s.opt.Redoer.Redo(dst, l.key, l.lsn, init, delta); err != nil {
			return &DamagedError{Branch: b.num, Key: l.key, LSN: l.lsn, Reason: err.Error(), Err: err}
		}
	}
	return nil
}
