package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/redo/page"
	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the heap resource manager (heapam_xlog.h), by the bits of heapOpMask.
const (
	heapInsert    = 0x00
	heapDelete    = 0x10
	heapUpdate    = 0x20
	heapTruncate  = 0x30 // for logical decoding only
	heapHotUpdate = 0x40
	heapConfirm   = 0x50
	heapLock      = 0x60
	heapInplace   = 0x70

	heapOpMask = 0x70
)

// Flags of INSERT and MULTI_INSERT.
const (
	insertAllVisibleCleared = 0x01
	insertAllFrozenSet      = 0x20
)

// Flags of UPDATE and HOT_UPDATE.
const (
	updateOldAllVisibleCleared = 0x01
	updateNewAllVisibleCleared = 0x02
	updatePrefixFromOld        = 0x20
	updateSuffixFromOld        = 0x40
)

// Flags of DELETE.
const (
	deleteAllVisibleCleared = 0x01
	deleteIsSuper           = 0x08
	deletePartitionMove     = 0x10
)

// lockAllFrozenCleared is the one flag of LOCK and LOCK_UPDATED.
const lockAllFrozenCleared = 0x01

// Lengths of the records' fixed parts. What follows (old tuples for logical decoding, invalidation messages) isn't kept.
const (
	heapInsertSize  = 3  // offset, flags
	heapDeleteSize  = 8  // xmax, offset, infobits, flags
	heapUpdateSize  = 14 // old: xmax, offset, infobits; flags; new: xmax, offset
	heapLockSize    = 8  // xmax, offset, infobits, flags
	heapOffsetSize  = 2  // CONFIRM, INPLACE
	heapVisibleSize = 5  // xid, flags
)

var heapNames = names{"INSERT", "DELETE", "UPDATE", "TRUNCATE", "HOT_UPDATE", "HEAP_CONFIRM", "LOCK", "INPLACE",
	heapInsert>>4 | 8: "INSERT", heapUpdate>>4 | 8: "UPDATE", heapHotUpdate>>4 | 8: "HOT_UPDATE"}

// heapManager redoes changes of single tuples. Layouts are the same in all majors, but for 18's INPLACE, whose offset still comes first.
var heapManager = manager{touch: heapTouch, apply: heapApply, tags: true, mask: heapMask, name: heapNames.of}

var errHeapMain = errors.New("main data is too short")

// trimMain cuts the main data of the record's deltas to what redo reads of it.
func trimMain(rec *wal.Record, ch *Changes, size int) error {
	if len(rec.Main) < size {
		return errHeapMain
	}
	for i := range ch.Pages {
		ch.Pages[i].Delta.Main = rec.Main[:size:size]
	}
	return nil
}

// heapBlock is the block reference of a heap page that the record must have.
func heapBlock(rec *wal.Record, id uint8) (pg.PageKey, error) {
	b := rec.Block(id)
	if b == nil {
		return pg.PageKey{}, fmt.Errorf("block reference %d is missing", id)
	}
	return b.PageKey, nil
}

// heapMainSizes are how much of the main data redo reads, by the operation.
var heapMainSizes = [8]int{heapInsertSize, heapDeleteSize, heapUpdateSize, 0, heapUpdateSize, heapOffsetSize, heapLockSize, heapOffsetSize}

// heapTouch adds the visibility map bits that a record clears without naming the map's page, whatever becomes of the heap page.
func heapTouch(rec *wal.Record, _ *ControlState, ch *Changes) error {
	op := rec.Info & heapOpMask
	if op == heapTruncate {
		return nil
	}
	if err := trimMain(rec, ch, heapMainSizes[op>>4]); err != nil {
		return err
	}
	key, err := heapBlock(rec, 0)
	if err != nil {
		return err
	}
	switch op {
	case heapInsert:
		if rec.Main[2]&insertAllVisibleCleared != 0 {
			ch.clearVMBits(rec, key.RelFileLocator, vmBits, key.Block, pg.InvalidBlock)
		}
	case heapDelete:
		if rec.Main[7]&deleteAllVisibleCleared != 0 {
			ch.clearVMBits(rec, key.RelFileLocator, vmBits, key.Block, pg.InvalidBlock)
		}
	case heapUpdate, heapHotUpdate:
		heapTouchUpdate(rec, key, ch)
	case heapLock:
		if rec.Main[7]&lockAllFrozenCleared != 0 {
			ch.clearVMBits(rec, key.RelFileLocator, vmAllFrozen, key.Block, pg.InvalidBlock)
		}
	}
	return nil
}

func heapTouchUpdate(rec *wal.Record, key pg.PageKey, ch *Changes) {
	flags := rec.Main[7]
	oldBlock, newBlock := key.Block, key.Block
	if b := rec.Block(1); b != nil {
		oldBlock = b.Block
	}
	switch flags & (updateOldAllVisibleCleared | updateNewAllVisibleCleared) {
	case updateOldAllVisibleCleared | updateNewAllVisibleCleared:
		ch.clearVMBits(rec, key.RelFileLocator, vmBits, oldBlock, newBlock)
	case updateOldAllVisibleCleared:
		ch.clearVMBits(rec, key.RelFileLocator, vmBits, oldBlock, pg.InvalidBlock)
	case updateNewAllVisibleCleared:
		ch.clearVMBits(rec, key.RelFileLocator, vmBits, newBlock, pg.InvalidBlock)
	}
}

// heapApply is heap_redo, one page at a time.
func heapApply(p pg.Page, d *Delta) error {
	switch op := d.Info & heapOpMask; {
	case d.Part == 1 && (op == heapUpdate || op == heapHotUpdate):
		return heapApplyOldPage(p, d)
	case d.Part != 0:
		return errNoSuchBlock
	case op == heapInsert:
		return heapApplyInsert(p, d)
	case op == heapDelete:
		return heapApplyDelete(p, d)
	case op == heapUpdate, op == heapHotUpdate:
		return heapApplyUpdate(p, d)
	case op == heapConfirm:
		return heapApplyConfirm(p, d)
	case op == heapLock:
		return heapApplyLock(p, d)
	case op == heapInplace:
		return heapApplyInplace(p, d)
	}
	return errNoSuchBlock
}

// heapApplyInsert is heap_xlog_insert. Data: header and tuple behind its fixed header.
func heapApplyInsert(p pg.Page, d *Delta) error {
	if len(d.Main) < heapInsertSize {
		return errHeapMain
	}
	if len(d.Data) < heapHeaderSize {
		return errHeapData
	}
	if d.Info&initBit != 0 {
		p.Init(0)
	}
	off, flags := binary.LittleEndian.Uint16(d.Main), d.Main[2]
	body := d.Data[heapHeaderSize:]
	t, err := addHeapTuple(p, d, off, tupleHeader+len(body), d.Data)
	if err != nil {
		return err
	}
	copy(t[tupleHeader:], body)
	heapSetInserted(p, flags)
	return nil
}

// heapSetInserted sets PD_ALL_VISIBLE as the flags of an insertion say.
func heapSetInserted(p pg.Page, flags uint8) {
	if flags&insertAllVisibleCleared != 0 {
		setAllVisible(p, false)
	}
	if flags&insertAllFrozenSet != 0 {
		setAllVisible(p, true)
	}
}

// heapApplyDelete is heap_xlog_delete.
func heapApplyDelete(p pg.Page, d *Delta) error {
	if len(d.Main) < heapDeleteSize {
		return errHeapMain
	}
	off, infobits, flags := binary.LittleEndian.Uint16(d.Main[4:]), d.Main[6], d.Main[7]
	t, err := heapTupleAt(p, off)
	if err != nil {
		return err
	}
	t.clearUpdate()
	t.setHotUpdated(false)
	t.setInfobits(infobits)
	if flags&deleteIsSuper != 0 {
		t.setXmin(0)
	} else {
		t.setXmax(binary.LittleEndian.Uint32(d.Main))
	}
	t.setFirstCmax()
	setPrunable(p, d.XID)
	if flags&deleteAllVisibleCleared != 0 {
		setAllVisible(p, false)
	}
	if flags&deletePartitionMove != 0 {
		t.setCtid(pg.InvalidBlock, movedPartitionsOffset)
	} else {
		t.setCtid(d.Key.Block, off)
	}
	return nil
}

// heapUpdated is what UPDATE and HOT_UPDATE say of the two versions (xl_heap_update).
type heapUpdated struct {
	oldXmax     pg.TransactionID
	oldOffset   pg.OffsetNumber
	oldInfobits uint8
	flags       uint8
	newXmax     pg.TransactionID
	newOffset   pg.OffsetNumber
}

func decodeHeapUpdate(main []byte) (u heapUpdated, err error) {
	if len(main) < heapUpdateSize {
		return u, errHeapMain
	}
	return heapUpdated{
		oldXmax: binary.LittleEndian.Uint32(main), oldOffset: binary.LittleEndian.Uint16(main[4:]), oldInfobits: main[6], flags: main[7],
		newXmax: binary.LittleEndian.Uint32(main[8:]), newOffset: binary.LittleEndian.Uint16(main[12:]),
	}, nil
}

// heapApplyOldPage is heap_xlog_update for the old version's page where it is another than the new one's.
func heapApplyOldPage(p pg.Page, d *Delta) error {
	u, err := decodeHeapUpdate(d.Main)
	if err != nil {
		return err
	}
	tag, ok := d.Tag(0)
	if !ok {
		return errors.New("the new version's block is not known")
	}
	_, err = heapMarkUpdated(p, d, u, tag.Block)
	return err
}

// heapMarkUpdated changes the old version of an update, which points to the new one from then on.
func heapMarkUpdated(p pg.Page, d *Delta, u heapUpdated, newBlock pg.BlockNumber) (heapTuple, error) {
	t, err := heapTupleAt(p, u.oldOffset)
	if err != nil {
		return nil, err
	}
	t.clearUpdate()
	t.setHotUpdated(d.Info&heapOpMask == heapHotUpdate)
	t.setInfobits(u.oldInfobits)
	t.setXmax(u.oldXmax)
	t.setFirstCmax()
	t.setCtid(newBlock, u.newOffset)
	setPrunable(p, d.XID)
	if u.flags&updateOldAllVisibleCleared != 0 {
		setAllVisible(p, false)
	}
	return t, nil
}

// heapApplyUpdate is heap_xlog_update for the page that gets the new version, and the old one's if they are the same.
// Data: [uint16 prefix length] [uint16 suffix length] header, null bitmap and padding, what of the tuple isn't taken from the old version.
func heapApplyUpdate(p pg.Page, d *Delta) error {
	u, err := decodeHeapUpdate(d.Main)
	if err != nil {
		return err
	}
	_, otherPage := d.Tag(1)
	if d.Info&initBit != 0 {
		if !otherPage {
			return errors.New("the page is initialised, but the old version is on it")
		}
		p.Init(0)
	}
	var old heapTuple
	if !otherPage {
		if old, err = heapMarkUpdated(p, d, u, d.Key.Block); err != nil {
			return err
		}
	}
	if err := heapAddUpdated(p, d, u, old); err != nil {
		return err
	}
	if u.flags&updateNewAllVisibleCleared != 0 {
		setAllVisible(p, false)
	}
	return nil
}

// heapAddUpdated puts the new version on the page, with the beginning and end that it shares with the old one.
func heapAddUpdated(p pg.Page, d *Delta, u heapUpdated, old heapTuple) error {
	data := d.Data
	var prefix, suffix int
	if u.flags&updatePrefixFromOld != 0 {
		if len(data) < 2 {
			return errHeapData
		}
		prefix, data = int(binary.LittleEndian.Uint16(data)), data[2:]
	}
	if u.flags&updateSuffixFromOld != 0 {
		if len(data) < 2 {
			return errHeapData
		}
		suffix, data = int(binary.LittleEndian.Uint16(data)), data[2:]
	}
	if len(data) < heapHeaderSize {
		return errHeapData
	}
	header, rest := data[:heapHeaderSize], data[heapHeaderSize:]
	bitmap := 0
	if prefix > 0 {
		if bitmap = int(header[4]) - tupleHeader; bitmap < 0 || bitmap > len(rest) {
			return errHeapData
		}
	}
	var shared []byte
	if prefix > 0 || suffix > 0 {
		if old == nil {
			return errors.New("the new version shares bytes with an old one on another page")
		}
		var err error
		if shared, err = old.body(); err != nil {
			return err
		}
		if prefix > len(shared) || suffix > len(old)-tupleHeader {
			return fmt.Errorf("the new version shares %d and %d bytes with one of %d", prefix, suffix, len(shared))
		}
	}
	// Reserve moves no item, so the old version stays where it is.
	t, err := addHeapTuple(p, d, u.newOffset, tupleHeader+len(rest)+prefix+suffix, header)
	if err != nil {
		return err
	}
	t.setXmax(u.newXmax)
	at := tupleHeader
	if prefix > 0 {
		at += copy(t[at:], rest[:bitmap])
		at += copy(t[at:], shared[:prefix])
		rest = rest[bitmap:]
	}
	at += copy(t[at:], rest)
	if suffix > 0 {
		copy(t[at:], old[len(old)-suffix:])
	}
	return nil
}

// heapApplyConfirm is heap_xlog_confirm.
func heapApplyConfirm(p pg.Page, d *Delta) error {
	if len(d.Main) < heapOffsetSize {
		return errHeapMain
	}
	off := binary.LittleEndian.Uint16(d.Main)
	t, err := heapTupleAt(p, off)
	if err != nil {
		return err
	}
	t.setCtid(d.Key.Block, off)
	return nil
}

// heapApplyLock is heap_xlog_lock.
func heapApplyLock(p pg.Page, d *Delta) error {
	if len(d.Main) < heapLockSize {
		return errHeapMain
	}
	off := binary.LittleEndian.Uint16(d.Main[4:])
	t, err := heapTupleAt(p, off)
	if err != nil {
		return err
	}
	t.clearUpdate()
	t.setInfobits(d.Main[6])
	if t.lockedOnly() {
		t.setHotUpdated(false)
		t.setCtid(d.Key.Block, off)
	}
	t.setXmax(binary.LittleEndian.Uint32(d.Main))
	t.setFirstCmax()
	return nil
}

// heapApplyInplace is heap_xlog_inplace: the tuple's data is overwritten by as many bytes.
func heapApplyInplace(p pg.Page, d *Delta) error {
	if len(d.Main) < heapOffsetSize {
		return errHeapMain
	}
	t, err := heapTupleAt(p, binary.LittleEndian.Uint16(d.Main))
	if err != nil {
		return err
	}
	body, err := t.body()
	if err != nil {
		return err
	}
	if len(body) != len(d.Data) {
		return fmt.Errorf("%w: %d bytes over a tuple's %d", page.ErrItem, len(d.Data), len(body))
	}
	copy(body, d.Data)
	return nil
}

// heapMask is heap_mask. On a page of the visibility map it leaves nothing but the header (CheckImage has other means for those).
func heapMask(p pg.Page, key pg.PageKey) {
	maskLSNAndChecksum(p)
	maskHintBits(p)
	maskUnusedSpace(p)
	if page.CheckHeader(p) != nil {
		return
	}
	for off, n := 1, p.ItemCount(); off <= n; off++ {
		id := p.Item(pg.OffsetNumber(off))
		if id.Flags() == pg.LPNormal {
			if t, err := heapTupleAt(p, pg.OffsetNumber(off)); err == nil {
				maskHeapTuple(t, key.Block, pg.OffsetNumber(off))
			}
		}
		if end := id.Offset() + id.Length(); id.Length() > 0 && end <= pg.BlockSize {
			clear(p[end:min(pg.MaxAlign(end), pg.BlockSize)])
		}
	}
}

// maskHeapTuple clears hint bits, the command ID, and the token of a speculative insertion, which no record carries.
func maskHeapTuple(t heapTuple, block pg.BlockNumber, off pg.OffsetNumber) {
	if m := t.infomask(); m&heapXminFrozen == heapXminFrozen {
		t.setInfomask(m &^ (heapXmaxInvalid | heapXmaxCommitted))
	} else {
		t.setInfomask(m &^ heapXactMask)
	}
	t.setXvac(0)
	if t.ctidOffset() == specTokenOffset {
		t.setCtid(block, off)
	}
}
