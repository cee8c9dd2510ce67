package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/redo/page"
	"everpage/wal/pg"
)

// Offsets in a heap tuple's header (HeapTupleHeaderData) and its length without the null bitmap (SizeofHeapTupleHeader).
const (
	tupleXmin      = 0
	tupleXmax      = 4
	tupleCid       = 8 // t_cid, or t_xvac
	tupleCtid      = 12
	tupleInfomask2 = 18
	tupleInfomask  = 20
	tupleHoff      = 22
	tupleHeader    = 23
)

// Bits of t_infomask (htup_details.h).
const (
	heapXmaxKeyshrLock = 0x0010
	heapComboCid       = 0x0020
	heapXmaxExclLock   = 0x0040
	heapXmaxLockOnly   = 0x0080
	heapXminFrozen     = 0x0300 // HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID
	heapXmaxCommitted  = 0x0400
	heapXmaxInvalid    = 0x0800
	heapXmaxIsMulti    = 0x1000
	heapMoved          = 0xC000
	heapXactMask       = 0xFFF0
	heapLockMask       = heapXmaxExclLock | heapXmaxKeyshrLock
	heapXmaxBits       = heapXmaxCommitted | heapXmaxInvalid | heapLockMask | heapXmaxIsMulti | heapXmaxLockOnly
)

// Bits of t_infomask2.
const (
	heapKeysUpdated = 0x2000
	heapHotUpdated  = 0x4000
)

// Offset numbers that ctids use as marks.
const (
	specTokenOffset       = 0xFFFE // SpecTokenOffsetNumber: a speculative insertion, not confirmed
	movedPartitionsOffset = 0xFFFD // MovedPartitionsOffsetNumber
)

// heapTuple is a tuple on a page, header first, at least tupleHeader bytes.
type heapTuple []byte

// heapTupleAt finds the tuple of line pointer off, which must be a normal one.
func heapTupleAt(p pg.Page, off pg.OffsetNumber) (heapTuple, error) {
	id, err := page.Item(p, off)
	if err != nil {
		return nil, err
	}
	if id.Flags() != pg.LPNormal {
		return nil, fmt.Errorf("line pointer %d has flags %d, want a tuple", off, id.Flags())
	}
	t, err := page.Storage(p, id)
	if err != nil {
		return nil, fmt.Errorf("item %d: %w", off, err)
	}
	if len(t) < tupleHeader {
		return nil, fmt.Errorf("item %d of %d bytes is no tuple", off, len(t))
	}
	return t, nil
}

func (t heapTuple) infomask() uint16      { return binary.LittleEndian.Uint16(t[tupleInfomask:]) }
func (t heapTuple) setInfomask(v uint16)  { binary.LittleEndian.PutUint16(t[tupleInfomask:], v) }
func (t heapTuple) infomask2() uint16     { return binary.LittleEndian.Uint16(t[tupleInfomask2:]) }
func (t heapTuple) setInfomask2(v uint16) { binary.LittleEndian.PutUint16(t[tupleInfomask2:], v) }

func (t heapTuple) setXmin(x pg.TransactionID) { binary.LittleEndian.PutUint32(t[tupleXmin:], x) }
func (t heapTuple) setXmax(x pg.TransactionID) { binary.LittleEndian.PutUint32(t[tupleXmax:], x) }
func (t heapTuple) setXvac(x pg.TransactionID) { binary.LittleEndian.PutUint32(t[tupleCid:], x) }

// setFirstCmax is HeapTupleHeaderSetCmax with FirstCommandId.
func (t heapTuple) setFirstCmax() {
	binary.LittleEndian.PutUint32(t[tupleCid:], 0)
	t.setInfomask(t.infomask() &^ heapComboCid)
}

func (t heapTuple) setCtid(block pg.BlockNumber, off pg.OffsetNumber) {
	binary.LittleEndian.PutUint16(t[tupleCtid:], uint16(block>>16))
	binary.LittleEndian.PutUint16(t[tupleCtid+2:], uint16(block))
	binary.LittleEndian.PutUint16(t[tupleCtid+4:], off)
}

func (t heapTuple) ctidOffset() pg.OffsetNumber {
	return binary.LittleEndian.Uint16(t[tupleCtid+4:])
}

// body is the tuple behind its header and null bitmap.
func (t heapTuple) body() ([]byte, error) {
	hoff := int(t[tupleHoff])
	if hoff < tupleHeader || hoff > len(t) {
		return nil, fmt.Errorf("tuple of %d bytes has its data at %d", len(t), hoff)
	}
	return t[hoff:], nil
}

// clearUpdate takes an earlier deletion, update or lock off the tuple, as each of them begins with.
func (t heapTuple) clearUpdate() {
	t.setInfomask(t.infomask() &^ (heapXmaxBits | heapMoved))
	t.setInfomask2(t.infomask2() &^ heapKeysUpdated)
}

func (t heapTuple) setHotUpdated(on bool) {
	v := t.infomask2() &^ heapHotUpdated
	if on {
		v |= heapHotUpdated
	}
	t.setInfomask2(v)
}

// setInfobits sets the bits that a record carries in one byte (fix_infomask_from_infobits).
func (t heapTuple) setInfobits(infobits uint8) {
	mask := t.infomask() &^ (heapXmaxIsMulti | heapXmaxLockOnly | heapLockMask)
	mask2 := t.infomask2() &^ heapKeysUpdated
	if infobits&0x01 != 0 { // XLHL_XMAX_IS_MULTI
		mask |= heapXmaxIsMulti
	}
	if infobits&0x02 != 0 { // XLHL_XMAX_LOCK_ONLY
		mask |= heapXmaxLockOnly
	}
	if infobits&0x04 != 0 { // XLHL_XMAX_EXCL_LOCK
		mask |= heapXmaxExclLock
	}
	if infobits&0x08 != 0 { // XLHL_XMAX_KEYSHR_LOCK
		mask |= heapXmaxKeyshrLock
	}
	if infobits&0x10 != 0 { // XLHL_KEYS_UPDATED
		mask2 |= heapKeysUpdated
	}
	t.setInfomask(mask)
	t.setInfomask2(mask2)
}

// lockedOnly tells that xmax, if valid, is no update (HEAP_XMAX_IS_LOCKED_ONLY).
func (t heapTuple) lockedOnly() bool {
	m := t.infomask()
	return m&heapXmaxLockOnly != 0 || m&(heapXmaxIsMulti|heapLockMask) == heapXmaxExclLock
}

// heapHeaderSize is the part of a tuple's header that a record carries (SizeOfHeapHeader): infomask2, infomask, hoff.
const heapHeaderSize = 5

var errHeapData = errors.New("block data is too short for a tuple")

// addHeapTuple makes room for a tuple of size bytes at line pointer off and writes its header: xmin, no xmax, ctid to itself, and what header
// (heapHeaderSize bytes) says. The bytes behind the header are left for the caller.
func addHeapTuple(p pg.Page, d *Delta, off pg.OffsetNumber, size int, header []byte) (heapTuple, error) {
	if off == 0 {
		return nil, page.ErrOffset
	}
	_, dst, err := page.Reserve(p, size, off, page.Overwrite|page.Heap)
	if err != nil {
		return nil, err
	}
	t := heapTuple(dst)
	clear(t[:tupleHeader])
	t.setXmin(d.XID)
	t.setCtid(d.Key.Block, off)
	copy(t[tupleInfomask2:tupleHeader], header[:heapHeaderSize])
	t.setInfomask(t.infomask() &^ heapComboCid) // HeapTupleHeaderSetCmin
	return t, nil
}

// setPrunable is PageSetPrunable.
func setPrunable(p pg.Page, xid pg.TransactionID) {
	if old := p.PruneXID(); old == 0 || xidPrecedes(xid, old) {
		p.SetPruneXID(xid)
	}
}

func setAllVisible(p pg.Page, on bool) {
	if on {
		p.SetFlags(p.Flags() | pg.PageAllVisible)
	} else {
		p.SetFlags(p.Flags() &^ pg.PageAllVisible)
	}
}
