package chunk

import (
	"encoding/binary"
	"fmt"

	"everpage/redo"
	"everpage/wal/pg"
)

// sizeMemo knows the sizes of a few forks that were used last: most WAL is about few, and a map of all takes longer.
type sizeMemo [16]sizeMemoSlot

type sizeMemoSlot struct {
	fork pg.RelFork
	size sizeEntry
	ok   bool
}

func (m *sizeMemo) slot(f pg.RelFork) *sizeMemoSlot {
	return &m[(f.Rel^f.DB+uint32(f.Fork)*5)%uint32(len(m))]
}

func (m *sizeMemo) clear() { *m = sizeMemo{} }

// size is a fork's size as the record being written finds it, its own changes so far included. It is looked up as of that record, not the newest,
// so that feeding old WAL again gives the same entries again.
func (w *Writer) size(fork pg.RelFork) (e sizeEntry, err error) {
	m := w.memo.slot(fork)
	if m.ok && m.fork == fork {
		return m.size, nil
	}
	var ok bool
	if w.replay != nil {
		e, ok = w.replay[fork]
	} else {
		e, ok = w.b.sizes[fork] // only the writer changes the map
	}
	if !ok {
		if err := w.gathered(); err != nil {
			return e, err
		}
		r, err := w.s.reader()
		if err != nil {
			return e, w.fail(err)
		}
		e, err = r.sizeAt(w.b.num, fork, w.lsn-1)
		r.release()
		if err != nil {
			return e, w.fail(err)
		}
		w.remember(fork, e)
	}
	*m = sizeMemoSlot{fork, e, true}
	return e, nil
}

func (w *Writer) remember(fork pg.RelFork, e sizeEntry) {
	if w.replay != nil {
		w.replay[fork] = e
		return
	}
	w.b.mu.Lock()
	w.b.sizes[fork] = e
	w.b.mu.Unlock()
}

// setSize stores a fork's new size at the writer's LSN.
func (w *Writer) setSize(fork pg.RelFork, e sizeEntry) error {
	e.lsn = w.lsn
	p := sizePrefix(w.b.num, fork)
	e.put(w.hold(&p, e.op, sizeBody))
	w.remember(fork, e)
	*w.memo.slot(fork) = sizeMemoSlot{fork, e, true}
	return nil
}

// cut stores a shrink. A second one by the same record takes the first one's place.
func (w *Writer) cut(fork pg.RelFork, cur, e sizeEntry) error {
	e.link = cur.lastShrink()
	if cur.lsn == w.lsn && cur.shrinks() {
		e.link = cur.link
		if e.op != sizeCopy {
			e.left = min(e.left, cur.left)
		}
	}
	return w.setSize(fork, e)
}

// raise makes a fork exist with at least so many blocks.
func (w *Writer) raise(fork pg.RelFork, blocks uint32) error {
	cur, err := w.size(fork)
	if err != nil {
		return err
	}
	if cur.exists && cur.blocks >= blocks {
		return nil
	}
	if cur.lsn == w.lsn && cur.shrinks() {
		return w.fail(fmt.Errorf("branch %d: %s grows to %d blocks in the record at %s that cut it off", w.b.num, fork, blocks, w.lsn))
	}
	op := uint8(sizeGrow)
	if blocks == 0 {
		op = sizeCreate
	}
	return w.setSize(fork, sizeEntry{op: op, exists: true, blocks: blocks, link: cur.lastShrink()})
}

// grow makes a page's fork hold it.
func (w *Writer) grow(key pg.PageKey) error {
	fork, block := forkOf(key)
	return w.raise(fork, block+1)
}

// Create makes the fork exist with no block; one that exists is left alone (smgrcreate).
func (w *Writer) Create(fork pg.RelFork, lsn pg.LSN) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	cur, err := w.size(fork)
	if err != nil || cur.exists {
		return err
	}
	if cur.lsn == lsn && cur.shrinks() {
		// Cut off and made again by one record: the shrink stays, the fork is there, empty.
		cur.exists, cur.blocks = true, 0
		return w.setSize(fork, cur)
	}
	return w.setSize(fork, sizeEntry{op: sizeCreate, exists: true, link: cur.lastShrink()})
}

// Extend makes the fork exist with at least so many blocks; new ones are zero. Only the import needs it: growth otherwise follows from page keys.
func (w *Writer) Extend(fork pg.RelFork, lsn pg.LSN, blocks uint32) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	return w.raise(fork, blocks)
}

// Truncate cuts the fork to blocks; it never grows it. An absent one comes into being, empty (smgr_redo).
func (w *Writer) Truncate(fork pg.RelFork, lsn pg.LSN, blocks uint32) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	cur, err := w.size(fork)
	if err != nil {
		return err
	}
	return w.cut(fork, cur, sizeEntry{op: sizeTruncate, exists: true, blocks: min(cur.blocks, blocks), left: blocks})
}

// Drop makes the fork absent.
func (w *Writer) Drop(fork pg.RelFork, lsn pg.LSN) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	cur, err := w.size(fork)
	if err != nil {
		return err
	}
	if cur.lsn == 0 || cur.op == sizeDrop && !cur.exists {
		return nil
	}
	return w.cut(fork, cur, sizeEntry{op: sizeDrop})
}

// directory lists the forks of a directory, or segments of an SLRU, as they are just before the writer's LSN.
func (w *Writer) directory(lo, hi prefix, fn func(fork pg.RelFork, e sizeEntry)) error {
	if err := w.gathered(); err != nil {
		return err
	}
	r, err := w.s.reader()
	if err != nil {
		return w.fail(err)
	}
	defer r.release()
	err = r.each(lo, hi, w.lsn-1, func(p *prefix, v version) error {
		e, err := getSize(v.lsn, v.value)
		if err != nil {
			return r.corrupt(p, v.lsn, err)
		}
		fn(p.pageKey().RelFork, e)
		return nil
	})
	if err != nil {
		return w.fail(err)
	}
	return nil
}

func databaseRange(branch uint32, d redo.DatabaseDir) (lo, hi prefix) {
	lo = makePrefix(classSize, branch, d.Spc, d.DB, 0, 0, 0)
	hi = makePrefix(classSize, branch, d.Spc, d.DB, 0xFFFFFFFF, 0xFF, 0xFFFFFFFF).next()
	return lo, hi
}

// directoryMeta are the small objects that lie in a database's directory.
var directoryMeta = [...]redo.MetaKind{redo.MetaRelMap, redo.MetaDatabase}

// CopyDatabase makes directory to what from is just before lsn: every fork with its pages (their page LSNs kept), relation map and PG_VERSION.
// What was in to before is replaced whole.
//
// No page is copied: each fork gets a size entry that says what it is a copy of, and reads go on there.
func (w *Writer) CopyDatabase(from, to redo.DatabaseDir, lsn pg.LSN) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	if from == to || from.Spc == 0 || to.Spc == 0 {
		return w.fail(fmt.Errorf("branch %d: copy of database %d/%d to %d/%d at %s makes no sense", w.b.num, from.Spc, from.DB, to.Spc, to.DB, lsn))
	}
	type fork struct {
		pg.RelFork
		blocks uint32
	}
	var forks []fork
	target := map[pg.RelFork]bool{}
	lo, hi := databaseRange(w.b.num, from)
	err := w.directory(lo, hi, func(f pg.RelFork, e sizeEntry) {
		if e.exists {
			forks = append(forks, fork{f, e.blocks})
			f.Spc, f.DB = to.Spc, to.DB
			target[f] = true
		}
	})
	if err != nil {
		return err
	}
	var gone []pg.RelFork
	lo, hi = databaseRange(w.b.num, to)
	if err := w.directory(lo, hi, func(f pg.RelFork, e sizeEntry) {
		if !target[f] {
			gone = append(gone, f)
		}
	}); err != nil {
		return err
	}
	for _, f := range gone {
		if err := w.Drop(f, lsn); err != nil {
			return err
		}
	}
	for _, f := range forks {
		source := f.RelFileLocator
		f.Spc, f.DB = to.Spc, to.DB
		cur, err := w.size(f.RelFork)
		if err != nil {
			return err
		}
		if err := w.cut(f.RelFork, cur, sizeEntry{op: sizeCopy, exists: true, blocks: f.blocks, left: f.blocks, source: source}); err != nil {
			return err
		}
	}
	p := copyPrefix(w.b.num, from.Spc, from.DB)
	binary.LittleEndian.PutUint32(w.hold(&p, 1, copyBody), to.Spc)
	binary.LittleEndian.PutUint32(w.heldBuf[len(w.heldBuf)-4:], to.DB)
	for _, kind := range directoryMeta {
		value, ok, err := w.metaBefore(kind, [2]uint32{from.Spc, from.DB})
		if err != nil {
			return err
		}
		if !ok {
			value = nil
		}
		if err := w.Meta(kind, [2]uint32{to.Spc, to.DB}, lsn, value); err != nil {
			return err
		}
	}
	return nil
}

// copyBody is tablespace and database of the copy.
const copyBody = 4 + 4

// copies lists the LSNs at which a database directory was copied, newest first: its pages are needed as they were just before each.
func (r *reader) copies(branch, spc, db uint32) (list []pg.LSN, err error) {
	if spc == 0 {
		return nil, nil
	}
	p := copyPrefix(branch, spc, db)
	for r.seek(&p, ^pg.LSN(0)); ; {
		v, ok, err := r.next()
		if err != nil || !ok {
			return list, err
		}
		list = append(list, v.lsn)
	}
}

// metaBefore is a small object's value just before the writer's LSN.
func (w *Writer) metaBefore(kind redo.MetaKind, id [2]uint32) (value []byte, ok bool, err error) {
	if err := w.gathered(); err != nil {
		return nil, false, err
	}
	r, err := w.s.reader()
	if err != nil {
		return nil, false, w.fail(err)
	}
	defer r.release()
	p := metaPrefix(w.b.num, kind, id)
	v, ok, err := r.newest(&p, w.lsn-1)
	if err != nil {
		return nil, false, w.fail(err)
	}
	if !ok || v.value[0] != metaSet {
		return nil, false, nil
	}
	return append([]byte{}, body(v.value)...), true, nil
}

// DropDatabase drops every fork in the directory, its relation map and PG_VERSION.
func (w *Writer) DropDatabase(dir redo.DatabaseDir, lsn pg.LSN) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	var forks []pg.RelFork
	lo, hi := databaseRange(w.b.num, dir)
	if err := w.directory(lo, hi, func(f pg.RelFork, e sizeEntry) { forks = append(forks, f) }); err != nil {
		return err
	}
	for _, f := range forks {
		if err := w.Drop(f, lsn); err != nil {
			return err
		}
	}
	for _, kind := range directoryMeta {
		if err := w.Meta(kind, [2]uint32{dir.Spc, dir.DB}, lsn, nil); err != nil {
			return err
		}
	}
	return nil
}

// TruncateSLRU forgets those existing segments of an SLRU for which remove is true. Segments come into being with the first page in them.
func (w *Writer) TruncateSLRU(slru pg.SLRU, lsn pg.LSN, remove func(segment uint32) bool) error {
	if err := w.at(lsn); err != nil {
		return err
	}
	var segments []pg.RelFork
	lo, hi := slruRange(w.b.num, slru)
	if err := w.directory(lo, hi, func(f pg.RelFork, e sizeEntry) {
		if e.exists && remove(f.Rel) {
			segments = append(segments, f)
		}
	}); err != nil {
		return err
	}
	for _, f := range segments {
		if err := w.Drop(f, lsn); err != nil {
			return err
		}
	}
	return nil
}
