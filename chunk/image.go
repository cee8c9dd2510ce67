package chunk

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"everpage/wal/pg"
)

// Chains are bounded: where more than MaxChain deltas or MaxChainBytes lie over a page's last image, the table that is being written bears an image
// in place of the delta at that LSN, made by the same read that would have made it later. So no read applies more than that many deltas,
// those of the runs in memory apart.

// bound finds out which of an object's deltas are to be images, and makes these. versions are a page's, newest first.
func (t *tableWriter) bound(p *prefix, versions []flat) error {
	t.swaps, t.image, t.made = t.swaps[:0], t.image[:0], -1
	opt := &t.s.opt
	last := len(versions) - 1
	var d depth
	if oldest := &versions[last]; !starts(oldest.value.kind()) {
		var ok bool
		if d, ok = t.s.depths.get(p); !ok {
			var err error
			if d, err = t.below(p, oldest.lsn-1); err != nil {
				return err
			}
		}
	}
	for i := last; i >= 0; i-- {
		kind := versions[i].value.kind()
		if starts(kind) {
			d = depth{}
			if VersionKind(kind) != KindInit {
				continue
			}
		}
		d.deltas++
		d.bytes += versions[i].value.length()
		if int(d.deltas) <= opt.MaxChain && int(d.bytes) <= opt.MaxChainBytes {
			continue
		}
		if VersionKind(kind) == KindInit {
			continue // one long delta alone
		}
		if err := t.materialise(p, versions, i); err != nil {
			return err
		}
		// Also where the page can't be made: reads will say why until something starts it anew, and to try with every further delta would walk
		// down all of them each time.
		d = depth{}
	}
	if t.made >= 0 {
		t.s.cache.put(t.s.branch(p.branch()).id, p.pageKey(), versions[t.made].lsn, t.buf)
	}
	t.s.depths.put(p, d)
	return nil
}

// starts tells whether a walk down the versions of a page ends at one of this kind.
func starts(kind uint8) bool {
	switch VersionKind(kind) {
	case KindImage, KindInit, KindDamaged, KindMissing:
		return true
	}
	return false
}

// below counts what lies over the last image at or below lsn.
func (t *tableWriter) below(p *prefix, lsn pg.LSN) (d depth, err error) {
	r, err := t.s.reader()
	if err != nil {
		return d, err
	}
	defer r.release()
	r.seek(p, lsn)
	for {
		v, ok, err := r.next()
		if err != nil {
			return d, unlessCorrupt(err)
		}
		if !ok || VersionKind(v.value[0]) != KindInit && starts(v.value[0]) {
			return d, nil
		}
		d.deltas++
		d.bytes += uint32(len(v.value))
		if starts(v.value[0]) {
			return d, nil
		}
	}
}

// materialise makes the image of version i, or nothing where the page can't be made.
func (t *tableWriter) materialise(p *prefix, versions []flat, i int) error {
	if t.buf == nil {
		t.buf = make(pg.Page, pg.BlockSize)
	}
	lsn := versions[i].lsn
	b := t.s.branch(p.branch())
	r, view, err := t.s.view(context.Background(), b)
	if err != nil {
		return err
	}
	defer r.release()
	view.src = nil // the writer of tables waits for nobody
	ok, err := t.forward(r, &view, b, p.pageKey(), versions, i)
	if err == nil && !ok {
		t.made = -1
		err = r.page(view, b, p.pageKey(), lsn, t.buf)
	} else if err == nil && t.s.opt.testForward != nil {
		t.s.opt.testForward(b, p.pageKey(), lsn, t.buf)
	}
	if err != nil {
		t.made = -1
		var damage *DamagedError
		if errors.As(err, &damage) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrNotHere) {
			return nil
		}
		return unlessCorrupt(err)
	}
	t.made = i
	off, n := imageHole(t.buf)
	start := len(t.image)
	t.image = slices.Grow(t.image, valueOver+imageHead+pg.BlockSize-n)[:start+valueOver+imageHead+pg.BlockSize-n]
	img, v := t.image[start:], t.run.value(versions[i].value)
	img[0], img[1], img[2] = byte(KindImage), v[1], v[2]
	putImage(img[valueHead:], t.buf, off, n)
	seal(p.appendKey(t.key[:0], lsn), img)
	t.swaps = append(t.swaps, swap{i: i, off: start, end: len(t.image)})
	t.s.images.Add(1)
	return nil
}

// forward makes the page of version i from that of version made, which is at hand, and the run's versions in between, as a read would: for a page that
// changes often the walk down its versions costs more than their redo. ok is false where only a read can tell what lies between: where coverage has
// changed while the run was filled, where a second writer went on in it, perhaps beyond where the first one ended, where the fork was cut off or copied, where
// a version is none that always makes a page of the one before.
func (t *tableWriter) forward(r *reader, view *view, b *branchState, key pg.PageKey, versions []flat, i int) (ok bool, err error) {
	if t.made < 0 || len(t.run.cover) > 0 || t.run.resumed {
		return false, nil
	}
	made, lsn := versions[t.made].lsn, versions[i].lsn
	if have, _ := t.s.coverageOf(view.cover, key); !have.Owned || have.From > made || len(view.up) > 0 && made <= view.up[0].at {
		return false, nil
	}
	fork, block := forkOf(key)
	size, ok := b.currentSize(fork, lsn)
	if !ok {
		if size, err = r.sizeAt(b.num, fork, lsn); err != nil {
			return false, err
		}
	}
	if !size.exists || block >= size.blocks || size.lastShrink() > made {
		return false, nil
	}
	t.fetch(versions[i:t.made])
	for k := t.made - 1; k >= i; k-- {
		v := t.run.value(versions[k].value)
		kind := VersionKind(v[0])
		switch kind {
		case KindImage:
			if getImage(t.buf, body(v)) != nil {
				return false, nil
			}
			continue
		case KindInit:
			clear(t.buf)
		case KindDelta, KindOptional, KindZeroed:
			if key.Spc != 0 && t.buf.IsNew() {
				return false, nil
			}
		default:
			return false, nil
		}
		if _, err := t.s.opt.Redoer.Redo(t.buf, key, versions[k].lsn, kind == KindInit, body(v)); err != nil {
			return false, nil // the read will say why
		}
	}
	return true, nil
}

// unlessCorrupt leaves out what reads will report: a corrupt version below must not keep new ones from being stored.
func unlessCorrupt(err error) error {
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		return nil
	}
	return err
}

// depth is how much lies over a page's last image.
type depth struct {
	deltas uint32
	bytes  uint32
}

// depthTable remembers depths of pages. It has a fixed size: a page pushes another one out, and one not found is looked up. Those who write tables
// share it.
type depthTable struct{ slots []atomic.Uint64 } // tag (0: empty) << 32 | deltas << 16 | bytes in units of 16, rounded up

func newDepthTable(bytes int64) *depthTable {
	return &depthTable{make([]atomic.Uint64, max(1, bytes/8))}
}

func (t *depthTable) slot(p *prefix) (*atomic.Uint64, uint64) {
	h := p.hash()
	return &t.slots[h%uint64(len(t.slots))], h>>32 | 1
}

func (t *depthTable) get(p *prefix) (d depth, ok bool) {
	s, tag := t.slot(p)
	v := s.Load()
	if v>>32 != tag {
		return d, false
	}
	return depth{uint32(v >> 16 & 0xFFFF), uint32(v&0xFFFF) * 16}, true
}

func (t *depthTable) put(p *prefix, d depth) {
	s, tag := t.slot(p)
	s.Store(tag<<32 | uint64(min(d.deltas, 0xFFFF))<<16 | uint64(min((d.bytes+15)/16, 0xFFFF)))
}

func sortProgress(ps []branchProgress) {
	slices.SortFunc(ps, func(x, y branchProgress) int { return cmp.Compare(x.b.num, y.b.num) })
}
