package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/redo/page"
	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the second heap resource manager (heapam_xlog.h), by the bits of heapOpMask.
const (
	heap2Rewrite     = 0x00 // for logical decoding only
	heap2Prune       = 0x10 // from 17 on PRUNE_ON_ACCESS
	heap2Vacuum      = 0x20 // from 17 on PRUNE_VACUUM_SCAN
	heap2FreezePage  = 0x30 // from 17 on PRUNE_VACUUM_CLEANUP
	heap2Visible     = 0x40
	heap2MultiInsert = 0x50
	heap2LockUpdated = 0x60
	heap2NewCid      = 0x70 // for logical decoding only
)

var (
	heap2Names = names{"REWRITE", "PRUNE", "VACUUM", "FREEZE_PAGE", "VISIBLE", "MULTI_INSERT", "LOCK_UPDATED", "NEW_CID",
		heap2MultiInsert>>4 | 8: "MULTI_INSERT"}
	heap2Names17 = names{"REWRITE", "PRUNE_ON_ACCESS", "PRUNE_VACUUM_SCAN", "PRUNE_VACUUM_CLEANUP", "VISIBLE", "MULTI_INSERT", "LOCK_UPDATED",
		"NEW_CID", heap2MultiInsert>>4 | 8: "MULTI_INSERT"}
)

// heap2Manager redoes what vacuum and COPY do to heap pages.
var heap2Manager = manager{touch: heap2Touch, apply: heap2Apply, tags: true, mask: heapMask, name: heap2Name}

func heap2Name(major pg.Major, info uint8) string {
	if major >= 17 {
		return heap2Names17[info>>4]
	}
	return heap2Names[info>>4]
}

const multiInsertSize = 4 // flags, padding, number of tuples

// heap2Touch adds the visibility map bits that a record clears without naming the map's page, and what a delta of VISIBLE must know.
func heap2Touch(rec *wal.Record, st *ControlState, ch *Changes) error {
	op := rec.Info & heapOpMask
	if op == heap2Rewrite || op == heap2NewCid {
		return nil
	}
	key, err := heapBlock(rec, 0)
	if err != nil {
		return err
	}
	switch op {
	case heap2Visible:
		if _, err := heapBlock(rec, 1); err != nil {
			return err
		}
		if err := trimMain(rec, ch, heapVisibleSize); err != nil {
			return err
		}
		for i := range ch.Pages {
			ch.Pages[i].Delta.HintLSN = st.DataChecksums || st.WALLogHints
		}
	case heap2MultiInsert:
		if len(rec.Main) < multiInsertSize {
			return errHeapMain
		}
		if rec.Main[0]&insertAllVisibleCleared != 0 {
			ch.clearVMBits(rec, key.RelFileLocator, vmBits, key.Block, pg.InvalidBlock)
		}
	case heap2LockUpdated:
		if err := trimMain(rec, ch, heapLockSize); err != nil {
			return err
		}
		if rec.Main[7]&lockAllFrozenCleared != 0 {
			ch.clearVMBits(rec, key.RelFileLocator, vmAllFrozen, key.Block, pg.InvalidBlock)
		}
	}
	return nil
}

// startsFromZeros tells that redo initialises a page never written, though the record doesn't say so: the map's page of Heap2/VISIBLE
// (RBM_ZERO_ON_ERROR).
func startsFromZeros(d *Delta) bool {
	return d.Rmgr == wal.RmHeap2 && d.Info&heapOpMask == heap2Visible && d.Part == 0
}

// heap2Apply is heap2_redo, one page at a time.
func heap2Apply(p pg.Page, d *Delta) error {
	op := d.Info & heapOpMask
	if op == heap2Visible {
		switch d.Part {
		case 0:
			return heap2ApplyVisibleMap(p, d)
		case 1:
			return heap2ApplyVisible(p, d)
		}
		return errNoSuchBlock
	}
	if d.Part != 0 {
		return errNoSuchBlock
	}
	switch op {
	case heap2Prune, heap2Vacuum, heap2FreezePage:
		var pf pruneFreeze
		if err := pf.decode(d); err != nil {
			return err
		}
		return pf.apply(p, d.Major)
	case heap2MultiInsert:
		return heap2ApplyMultiInsert(p, d)
	case heap2LockUpdated:
		return heap2ApplyLockUpdated(p, d)
	}
	return errNoSuchBlock
}

// heap2ApplyVisibleMap is heap_xlog_visible for the map's page (visibilitymap_set): Tag 1 is the heap page. Main: {xid, flags}.
func heap2ApplyVisibleMap(p pg.Page, d *Delta) error {
	tag, ok := d.Tag(1)
	if !ok {
		return errors.New("the heap block is not known")
	}
	if len(d.Main) < heapVisibleSize {
		return errHeapMain
	}
	block, at, shift := vmAddress(tag.Block)
	if block != d.Key.Block {
		return fmt.Errorf("heap block %d is not in this page of the map", tag.Block)
	}
	if p.IsNew() {
		p.Init(0)
	}
	bits := d.Main[4] & vmBits // 16 and later have a bit of their own beside those of the map
	if p[at]>>shift&vmBits == bits {
		return errNoChange
	}
	p[at] |= bits << shift
	return nil
}

// heap2ApplyVisible is heap_xlog_visible for the heap page, whose LSN moves only where hint bits are logged.
func heap2ApplyVisible(p pg.Page, d *Delta) error {
	setAllVisible(p, true)
	if d.HintLSN {
		return nil
	}
	return errKeepLSN
}

// heap2ApplyMultiInsert is heap_xlog_multi_insert. Main: {uint8 flags, pad, uint16 tuples, offsets unless the page is initialised}.
// Data: for each tuple, at an even offset, {uint16 length, infomask2, infomask, uint8 hoff} and the tuple behind its fixed header.
func heap2ApplyMultiInsert(p pg.Page, d *Delta) error {
	if len(d.Main) < multiInsertSize {
		return errHeapMain
	}
	flags, n, offsets := d.Main[0], int(binary.LittleEndian.Uint16(d.Main[2:])), d.Main[multiInsertSize:]
	init := d.Info&initBit != 0
	if init {
		p.Init(0)
	} else if len(offsets) < 2*n {
		return errHeapMain
	}
	data := d.Data
	at := 0
	for i := range n {
		off := pg.OffsetNumber(i + 1)
		if !init {
			off = binary.LittleEndian.Uint16(offsets[2*i:])
		}
		at += at & 1
		if len(data)-at < 2+heapHeaderSize {
			return errHeapData
		}
		size, header := int(binary.LittleEndian.Uint16(data[at:])), data[at+2:at+2+heapHeaderSize]
		at += 2 + heapHeaderSize
		if len(data)-at < size {
			return errHeapData
		}
		t, err := addHeapTuple(p, d, off, tupleHeader+size, header)
		if err != nil {
			return err
		}
		copy(t[tupleHeader:], data[at:at+size])
		at += size
	}
	if at != len(data) {
		return errors.New("tuples and block data differ in length")
	}
	heapSetInserted(p, flags)
	return nil
}

// heap2ApplyLockUpdated is heap_xlog_lock_updated.
func heap2ApplyLockUpdated(p pg.Page, d *Delta) error {
	if len(d.Main) < heapLockSize {
		return errHeapMain
	}
	t, err := heapTupleAt(p, binary.LittleEndian.Uint16(d.Main[4:]))
	if err != nil {
		return err
	}
	t.clearUpdate()
	t.setInfobits(d.Main[6])
	t.setXmax(binary.LittleEndian.Uint32(d.Main))
	return nil
}

// offsets are packed offset numbers as records carry them.
type offsets []byte

func (o offsets) len() int                 { return len(o) / 2 }
func (o offsets) at(i int) pg.OffsetNumber { return binary.LittleEndian.Uint16(o[2*i:]) }

// pruneFreeze is what PRUNE, VACUUM and FREEZE_PAGE of 14 to 16 and the three PRUNE records of 17 say, each a part of it.
type pruneFreeze struct {
	redirected offsets // pairs: from, to
	dead       offsets
	unused     offsets
	// truncate only: the unused items are dead ones already, so nothing moves and line pointers at the end go.
	truncate bool

	plans   []byte  // freezePlanSize each
	tuples  offsets // of all plans, in order; in 14 and 15 each plan has its own offset instead
	inlined bool    // 14 and 15
}

const freezePlanSize = 12

// Flags of 17's PRUNE records.
const (
	pruneCleanupLock        = 0x04
	pruneHasConflictHorizon = 0x08
	pruneHasFreezePlans     = 0x10
	pruneHasRedirections    = 0x20
	pruneHasDeadItems       = 0x40
	pruneHasNowUnusedItems  = 0x80
)

func (f *pruneFreeze) decode(d *Delta) error {
	if d.Major >= 17 {
		return f.decode17(d)
	}
	main, data := d.Main, d.Data
	switch d.Info & heapOpMask {
	case heap2Prune: // {xid, uint16 redirected, uint16 dead}
		if len(main) < 8 {
			return errHeapMain
		}
		nredirected, ndead := int(binary.LittleEndian.Uint16(main[4:])), int(binary.LittleEndian.Uint16(main[6:]))
		if len(data)&1 != 0 || len(data) < 4*nredirected+2*ndead {
			return errHeapData
		}
		f.redirected, data = data[:4*nredirected], data[4*nredirected:]
		f.dead, f.unused = data[:2*ndead], data[2*ndead:]
	case heap2Vacuum: // {uint16 unused}
		if len(main) < 2 {
			return errHeapMain
		}
		n := int(binary.LittleEndian.Uint16(main))
		if len(data) != 2*n {
			return errHeapData
		}
		f.unused, f.truncate = data, true
	case heap2FreezePage: // {xid, uint16 plans}
		if len(main) < 6 {
			return errHeapMain
		}
		n := freezePlanSize * int(binary.LittleEndian.Uint16(main[4:]))
		if len(data) < n {
			return errHeapData
		}
		f.plans, f.tuples, f.inlined = data[:n], data[n:], d.Major <= 15
	}
	return nil
}

// decode17 is heap_xlog_deserialize_prune_and_freeze.
func (f *pruneFreeze) decode17(d *Delta) error {
	if len(d.Main) < 2 {
		return errHeapMain
	}
	flags, data := d.Main[1], d.Data
	f.truncate = flags&pruneCleanupLock == 0
	if flags&pruneHasFreezePlans != 0 {
		if len(data) < 4 {
			return errHeapData
		}
		n := freezePlanSize * int(binary.LittleEndian.Uint16(data))
		if len(data)-4 < n {
			return errHeapData
		}
		f.plans, data = data[4:4+n], data[4+n:]
	}
	var err error
	if flags&pruneHasRedirections != 0 {
		if f.redirected, data, err = countedOffsets(data, 2); err != nil {
			return err
		}
	}
	if flags&pruneHasDeadItems != 0 {
		if f.dead, data, err = countedOffsets(data, 1); err != nil {
			return err
		}
	}
	if flags&pruneHasNowUnusedItems != 0 {
		if f.unused, data, err = countedOffsets(data, 1); err != nil {
			return err
		}
	}
	f.tuples = data
	return nil
}

// countedOffsets cuts {uint16 n, n times per offsets} off data (xlhp_prune_items).
func countedOffsets(data []byte, per int) (o offsets, rest []byte, err error) {
	if len(data) < 2 {
		return nil, nil, errHeapData
	}
	n := 2 * per * int(binary.LittleEndian.Uint16(data))
	if len(data)-2 < n {
		return nil, nil, errHeapData
	}
	return data[2 : 2+n], data[2+n:], nil
}

func (f *pruneFreeze) apply(p pg.Page, major pg.Major) error {
	if err := page.CheckHeader(p); err != nil {
		return err
	}
	if len(f.redirected)+len(f.dead)+len(f.unused) > 0 {
		if err := f.prune(p, major); err != nil {
			return err
		}
	}
	return f.freeze(p)
}

// prune is heap_page_prune_execute.
func (f *pruneFreeze) prune(p pg.Page, major pg.Major) error {
	lines := p.ItemCount()
	set := func(off pg.OffsetNumber, id pg.ItemID) error {
		if off == 0 || int(off) > lines {
			return fmt.Errorf("%w: offset %d of %d", page.ErrOffset, off, lines)
		}
		p.SetItem(off, id)
		return nil
	}
	for i := 0; i+1 < f.redirected.len(); i += 2 {
		if err := set(f.redirected.at(i), pg.NewItemID(int(f.redirected.at(i+1)), pg.LPRedirect, 0)); err != nil {
			return err
		}
	}
	for i := range f.dead.len() {
		if err := set(f.dead.at(i), pg.NewItemID(0, pg.LPDead, 0)); err != nil {
			return err
		}
	}
	for i := range f.unused.len() {
		off := f.unused.at(i)
		if f.truncate {
			if id, err := page.Item(p, off); err != nil {
				return err
			} else if id.Flags() != pg.LPDead || id.Length() != 0 {
				return fmt.Errorf("line pointer %d has flags %d, length %d, want a dead one", off, id.Flags(), id.Length())
			}
		}
		if err := set(off, 0); err != nil {
			return err
		}
	}
	if !f.truncate {
		return page.RepairFragmentation(p, major)
	}
	if len(f.redirected)+len(f.dead) > 0 {
		return errors.New("the record prunes without a cleanup lock")
	}
	return page.TruncateLinePointers(p)
}

// freeze is heap_execute_freeze_tuple for all tuples of all plans.
func (f *pruneFreeze) freeze(p pg.Page) error {
	next := 0
	for plans := f.plans; len(plans) > 0; plans = plans[freezePlanSize:] {
		// 14, 15: {xmax, uint16 offset, infomask2, infomask, uint8 flags}; later {xmax, infomask2, infomask, uint8 flags, pad, uint16 tuples}.
		plan, n, one := plans[4:], 1, f.inlined
		if one {
			plan = plans[6:]
		} else {
			n = int(binary.LittleEndian.Uint16(plans[10:]))
		}
		xmax, infomask2, infomask, flags := binary.LittleEndian.Uint32(plans), binary.LittleEndian.Uint16(plan),
			binary.LittleEndian.Uint16(plan[2:]), plan[4]
		if !one && f.tuples.len()-next < n {
			return errHeapData
		}
		for i := range n {
			off := binary.LittleEndian.Uint16(plans[4:])
			if !one {
				off = f.tuples.at(next + i)
			}
			t, err := heapTupleAt(p, off)
			if err != nil {
				return err
			}
			t.setXmax(xmax)
			if flags&0x02 != 0 { // XLH_FREEZE_XVAC
				t.setXvac(pg.FrozenXID)
			}
			if flags&0x04 != 0 { // XLH_INVALID_XVAC
				t.setXvac(0)
			}
			t.setInfomask(infomask)
			t.setInfomask2(infomask2)
		}
		if !one {
			next += n
		}
	}
	if 2*next != len(f.tuples) {
		return errors.New("freeze plans and block data differ in length")
	}
	return nil
}
