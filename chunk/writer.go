package chunk

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"everpage/cluster/placement"
	"everpage/redo"
	"everpage/wal/pg"
)

// Writer puts versions into a branch, in WAL order: LSNs never decrease, and all changes of one record stand together. All arguments are copied.
// An error is final for the writer: close it and start another at Progress.Resume.
type Writer struct {
	s      *Store
	b      *branchState
	err    error
	lsn    pg.LSN // of the last change
	high   pg.LSN // what the branch had reached before
	closed bool
	cover  *cover // as of the record at lsn

	// replay is the size cache while old WAL is fed again over what the store already holds: it has what each fork was as of lsn.
	// nil while lsn is beyond everything stored: then the branch's own cache, which readers share, is right.
	replay map[pg.RelFork]sizeEntry
	memo   sizeMemo

	maxTime    pg.Timestamp // the running maximum of commit times
	hasMaxTime bool

	// What a record says of sizes and small objects is held back until the record is over, since it may say several things of one of them: a reader
	// must not find the first ones while old WAL is fed again.
	held    []heldValue
	heldAt  map[prefix]int
	heldBuf []byte

	batches
}

type heldValue struct {
	p      prefix
	kind   uint8
	off, n int // of Writer.heldBuf
}

// maxSearched is the number of held values up to which they are searched one by one.
const maxSearched = 8

// maxSizes bounds the size cache, entries.
const maxSizes = 1 << 18

// Writer opens the branch for writing. A branch has one writer at a time (else ErrBusy). It may start anywhere at or below Progress.Resume
// and must then be fed everything in WAL order.
func (s *Store) Writer(branch uint32) (*Writer, error) {
	b := s.branch(branch)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, ErrClosed
	}
	if b.writing || b.dropped {
		return nil, fmt.Errorf("branch %d is %w", branch, ErrBusy)
	}
	b.writing = true
	s.early = earlyRuns
	if b.run == s.active {
		s.active.resumed = true
	}
	return &Writer{s: s, b: b, heldAt: map[prefix]int{}, cover: b.cover.Load(), high: b.high, batches: newBatches()}, nil
}

// Close gives up the branch. What was not committed is not visible, and must be fed again.
func (w *Writer) Close() {
	if w.closed {
		return
	}
	w.closed = true
	w.end()
	w.b.mu.Lock()
	for i := range w.held {
		w.forget(&w.held[i].p)
	}
	w.b.mu.Unlock()
	w.s.mu.Lock()
	w.b.writing = false
	w.s.mu.Unlock()
	if w.err == nil {
		w.err = ErrClosed
	}
}

// forget makes the size cache forget what it knows of an object that is one fork's size. Under branchState.mu.
func (w *Writer) forget(p *prefix) {
	if p.class() == classSize {
		delete(w.b.sizes, p.pageKey().RelFork)
	}
}

// at moves the writer to a record's end LSN.
func (w *Writer) at(lsn pg.LSN) error {
	if w.err != nil {
		return w.err
	}
	if lsn == w.lsn && lsn != 0 {
		return nil
	}
	if p := w.b.current(); p != nil && p.Fork != 0 && lsn <= p.Fork {
		return w.fail(fmt.Errorf("branch %d: change at %s lies before its fork from branch %d at %s", w.b.num, lsn, p.Parent, p.Fork))
	}
	if lsn < w.lsn || lsn == 0 {
		return w.fail(fmt.Errorf("branch %d: change at %s comes after one at %s: a writer must be fed in WAL order", w.b.num, lsn, w.lsn))
	}
	if err := w.settle(); err != nil {
		return err
	}
	w.lsn = lsn
	w.b.at.Store(uint64(lsn)) // before the look at the coverage: Own relies on it
	w.cover = w.b.cover.Load()
	if lsn <= w.high {
		if w.replay == nil {
			w.replay = map[pg.RelFork]sizeEntry{}
			w.memo.clear()
		}
	} else if w.replay != nil {
		w.replay = nil
		w.memo.clear()
	}
	if len(w.replay) > maxSizes {
		clear(w.replay)
		w.memo.clear()
	} else if len(w.b.sizes) > maxSizes {
		w.b.mu.Lock()
		clear(w.b.sizes)
		w.b.mu.Unlock()
		w.memo.clear()
	}
	return nil
}

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return err
}

// hold keeps a small object's new value until the record is over; room for n bytes of content is returned.
func (w *Writer) hold(p *prefix, kind uint8, n int) []byte {
	h := heldValue{p: *p, kind: kind, off: len(w.heldBuf), n: n}
	if i := w.holds(p); i >= 0 {
		w.held[i] = h
	} else {
		w.held = append(w.held, h)
	}
	w.heldBuf = append(w.heldBuf, make([]byte, n)...)
	return w.heldBuf[h.off:]
}

// holds finds what is held of an object; -1 if nothing. Most records hold one or two values, which need no map.
func (w *Writer) holds(p *prefix) int {
	if len(w.held) <= maxSearched {
		return slices.IndexFunc(w.held, func(h heldValue) bool { return h.p == *p })
	}
	for i := len(w.heldAt); i < len(w.held); i++ {
		w.heldAt[w.held[i].p] = i
	}
	if i, ok := w.heldAt[*p]; ok {
		return i
	}
	return -1
}

// settle stores what was held.
func (w *Writer) settle() error {
	if len(w.held) == 0 {
		return nil
	}
	for i := range w.held {
		h := &w.held[i]
		if err := w.put(&h.p, h.kind, Origin{}, h.n, func(b []byte) { copy(b, w.heldBuf[h.off:]) }); err != nil {
			return err
		}
	}
	w.held, w.heldBuf = w.held[:0], w.heldBuf[:0]
	if len(w.heldAt) > 0 {
		clear(w.heldAt)
	}
	return nil
}

// put stores one version; fill writes its content.
func (w *Writer) put(p *prefix, kind uint8, origin Origin, n int, fill func(b []byte)) error {
	if n > maxValue-valueOver {
		return w.fail(fmt.Errorf("branch %d: %s at %s has %d bytes, more than the store takes", w.b.num, p.String(), w.lsn, n)) // p itself would have to live on the heap
	}
	if n <= maxGathered {
		b := w.filling
		v := b.add(p, kind, w.lsn, valueHead+n)
		v[0], v[1], v[2] = kind, origin.Rmgr, origin.Info
		if fill != nil {
			fill(v[valueHead:])
		}
		if b.full(cmp.Or(w.s.opt.testBatch, batchVersions)) {
			return w.hand()
		}
		return nil
	}
	if err := w.gathered(); err != nil {
		return err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	run, err := w.s.room(w.b, w.lsn)
	if err != nil {
		return w.fail(err)
	}
	v, ref := run.alloc(n + valueOver)
	v[0], v[1], v[2] = kind, origin.Rmgr, origin.Info
	fill(v[valueHead : valueHead+n])
	var key [keyLen]byte
	seal(p.appendKey(key[:0], w.lsn), v)
	run.push(p, p.hash(), kind, w.lsn, ref)
	return nil
}

// Keeps tells whether the version of a page that a record at lsn makes will be stored. If not, the content that Image and Delta are given does not matter;
// they must be called all the same.
func (w *Writer) Keeps(key pg.PageKey, lsn pg.LSN) (bool, error) {
	if err := w.at(lsn); err != nil {
		return false, err
	}
	return w.keeps(key), nil
}

func (w *Writer) keeps(key pg.PageKey) bool {
	c := w.cover
	if c.shards == nil {
		return c.rest.Owned
	}
	shard := w.s.shard(key)
	if c.keeps(shard) || len(c.chunks) == 0 {
		return c.keeps(shard)
	}
	return c.chunks[placement.ChunkOf(key, w.s.opt.SegmentBlocks)].Owned
}

// page stores a page version with content b, if the page's shard is kept.
func (w *Writer) page(key pg.PageKey, kind VersionKind, origin Origin, b []byte) error {
	if !w.keeps(key) {
		return nil
	}
	p := w.s.pagePrefix(w.b.num, key)
	return w.put(&p, uint8(kind), origin, len(b), func(v []byte) { copy(v, b) })
}

func (w *Writer) checkKey(key pg.PageKey) error {
	if key.Block == pg.InvalidBlock {
		return w.fail(fmt.Errorf("branch %d: change of %s at %s: not a block number", w.b.num, key, w.lsn))
	}
	if key.Spc == 0 && (key.Rel != 0 || key.Fork != 0) {
		return w.fail(fmt.Errorf("branch %d: change of %s at %s: no relation lies in tablespace 0", w.b.num, key, w.lsn))
	}
	return nil
}

// Image is a version that is the whole page. The fork grows to hold it.
func (w *Writer) Image(key pg.PageKey, lsn pg.LSN, origin Origin, page pg.Page) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	keep := w.keeps(key)
	if keep && len(page) != pg.BlockSize {
		return w.fail(fmt.Errorf("branch %d: image of %s at %s has %d bytes, want %d", w.b.num, key, lsn, len(page), pg.BlockSize))
	}
	if err := w.checkKey(key); err != nil {
		return err
	}
	if err := w.grow(key); err != nil {
		return err
	}
	if !keep {
		return nil
	}
	off, n := imageHole(page)
	p := w.s.pagePrefix(w.b.num, key)
	return w.put(&p, uint8(KindImage), origin, imageHead+pg.BlockSize-n, func(b []byte) { putImage(b, page, off, n) })
}

// Delta is a version that Redoer makes from the one before.
func (w *Writer) Delta(key pg.PageKey, lsn pg.LSN, origin Origin, base Base, delta []byte) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	if err := w.checkKey(key); err != nil {
		return err
	}
	kind := KindDelta
	switch {
	case base == BaseInit:
		kind = KindInit
	case base == BaseZeroed || key.Spc == 0:
		kind = KindZeroed
	case base == BaseOptional:
		kind = KindOptional
	}
	if kind == KindInit || kind == KindZeroed {
		if err := w.grow(key); err != nil {
			return err
		}
		return w.page(key, kind, origin, delta)
	}
	e, err := w.size(key.RelFork)
	if err != nil {
		return err
	}
	if e.exists && key.Block < e.blocks {
		return w.page(key, kind, origin, delta)
	}
	if kind == KindOptional {
		return nil
	}
	// An invalid-page reference. The fork doesn't grow; a later truncation or drop cuts the mark off like any version.
	if !e.exists {
		if err := w.setSize(key.RelFork, sizeEntry{op: sizeAbsent, link: e.lastShrink()}); err != nil {
			return err
		}
	}
	if err := w.mark(key, origin); err != nil {
		return err
	}
	return w.page(key, KindMissing, origin, nil)
}

// Damaged says that the page's content is unknown from lsn on. The fork grows to hold it.
func (w *Writer) Damaged(key pg.PageKey, lsn pg.LSN, origin Origin, reason string) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	if err := w.checkKey(key); err != nil {
		return err
	}
	if err := w.grow(key); err != nil {
		return err
	}
	if err := w.mark(key, origin); err != nil {
		return err
	}
	return w.page(key, KindDamaged, origin, []byte(reason))
}

// mark enters a page into the index of damage.
func (w *Writer) mark(key pg.PageKey, origin Origin) error {
	p := damagePrefix(w.b.num, key)
	return w.put(&p, 1, origin, 0, nil)
}

// Meta is a new version of a small object; a nil value deletes it (an empty one does not).
func (w *Writer) Meta(kind redo.MetaKind, id [2]uint32, lsn pg.LSN, value []byte) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	p := metaPrefix(w.b.num, kind, id)
	k := uint8(metaSet)
	if value == nil {
		k = metaGone
	}
	if len(value) > maxValue-valueOver {
		return w.fail(fmt.Errorf("branch %d: %s at %s has %d bytes, more than the store takes", w.b.num, p, lsn, len(value)))
	}
	copy(w.hold(&p, k, len(value)), value)
	return nil
}

// Transaction enters a commit or an abort into the commit index. start and lsn are the record's start and end.
func (w *Writer) Transaction(end redo.TransactionEnd, start, lsn pg.LSN) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	p := commitPrefix(w.b.num)
	if !w.hasMaxTime {
		if err := w.gathered(); err != nil {
			return err
		}
		r, err := w.s.reader()
		if err != nil {
			return w.fail(err)
		}
		v, ok, err := r.newest(&p, lsn-1)
		w.maxTime = minTimestamp
		if err == nil && ok {
			var e commitEntry
			if e, err = getCommit(v.lsn, v.value); err == nil {
				w.maxTime = e.maxTime
			}
		}
		r.release()
		if err != nil {
			return w.fail(err)
		}
		w.hasMaxTime = true
	}
	w.maxTime = max(w.maxTime, end.Time)
	e := commitEntry{Commit: Commit{TransactionEnd: end, Start: start, End: lsn}, maxTime: w.maxTime}
	if err := w.put(&p, commitKind, Origin{}, commitBody, func(b []byte) { e.put(b) }); err != nil {
		return err
	}
	p = xidPrefix(w.b.num, end.XID)
	return w.put(&p, commitKind, Origin{}, commitBody, func(b []byte) { e.put(b) })
}

// RestorePoint enters a named restore point. start and lsn are the record's start and end.
func (w *Writer) RestorePoint(name string, time pg.Timestamp, start, lsn pg.LSN) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	p := restorePrefix(w.b.num, name)
	return w.put(&p, restoreKind, Origin{}, restoreBody+len(name), func(b []byte) {
		binary.LittleEndian.PutUint64(b, uint64(time))
		binary.LittleEndian.PutUint64(b[8:], uint64(start))
		copy(b[restoreBody:], name)
	})
}

// Commit makes everything up to p.Readable visible. Readable, Resume and Start never go back, Consistent and Unproven stay as first set.
// It blocks while the runs in memory are full, and returns an error that wraps ErrFull if they can't be written.
func (w *Writer) Commit(p Progress) error {
	if w.err != nil {
		return w.err
	}
	if err := w.settle(); err != nil {
		return err
	}
	if err := w.gathered(); err != nil {
		return err
	}
	if err := w.s.commit(w.b, p); err != nil {
		return w.fail(err)
	}
	return nil
}
