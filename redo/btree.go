package redo

import (
	"encoding/binary"
	"fmt"

	"everpage/redo/page"
	"everpage/wal/pg"
)

// Records of the btree resource manager (nbtxlog.h), unchanged from 14 to 18.
const (
	btreeInsertLeaf       = 0x00
	btreeInsertUpper      = 0x10
	btreeInsertMeta       = 0x20
	btreeSplitL           = 0x30
	btreeSplitR           = 0x40
	btreeInsertPost       = 0x50
	btreeDedup            = 0x60
	btreeDelete           = 0x70
	btreeUnlinkPage       = 0x80
	btreeUnlinkPageMeta   = 0x90
	btreeNewRoot          = 0xA0
	btreeMarkPageHalfDead = 0xB0
	btreeVacuum           = 0xC0
	btreeReusePage        = 0xD0
	btreeMetaCleanup      = 0xE0
)

var btreeNames = [16]string{
	btreeInsertLeaf >> 4:       "INSERT_LEAF",
	btreeInsertUpper >> 4:      "INSERT_UPPER",
	btreeInsertMeta >> 4:       "INSERT_META",
	btreeSplitL >> 4:           "SPLIT_L",
	btreeSplitR >> 4:           "SPLIT_R",
	btreeInsertPost >> 4:       "INSERT_POST",
	btreeDedup >> 4:            "DEDUP",
	btreeDelete >> 4:           "DELETE",
	btreeUnlinkPage >> 4:       "UNLINK_PAGE",
	btreeUnlinkPageMeta >> 4:   "UNLINK_PAGE_META",
	btreeNewRoot >> 4:          "NEWROOT",
	btreeMarkPageHalfDead >> 4: "MARK_PAGE_HALFDEAD",
	btreeVacuum >> 4:           "VACUUM",
	btreeReusePage >> 4:        "REUSE_PAGE",
	btreeMetaCleanup >> 4:      "META_CLEANUP",
}

// btreeManager redoes B-tree indexes. All pages that its records change are named by block references; REUSE_PAGE names none and changes none.
var btreeManager = manager{
	apply: btreeApply,
	tags:  true, // a split's left page needs the number of the right one
	mask:  btreeMask,
	name:  func(_ pg.Major, info uint8) string { return btreeNames[info>>4] },
}

// btreeApply is btree_redo, one page at a time. All redo of this manager depends on the page, its data, the main data and the block numbers of
// sibling references.
func btreeApply(p pg.Page, d *Delta) error {
	switch op := d.Info & 0xF0; op {
	case btreeInsertLeaf, btreeInsertUpper, btreeInsertMeta, btreeInsertPost:
		switch {
		case d.Part == 0:
			return btreeInsert(p, d, op == btreeInsertPost)
		case d.Part == 1 && (op == btreeInsertUpper || op == btreeInsertMeta):
			return btreeClearIncompleteSplit(p)
		case d.Part == 2 && op == btreeInsertMeta:
			return btreeRestoreMeta(p, d)
		}
	case btreeSplitL, btreeSplitR:
		return btreeSplit(p, d, op == btreeSplitL)
	case btreeDedup:
		if d.Part == 0 {
			return btreeDedupPage(p, d)
		}
	case btreeDelete, btreeVacuum:
		if d.Part == 0 {
			return btreeDeleteItems(p, d, op == btreeVacuum)
		}
	case btreeUnlinkPage, btreeUnlinkPageMeta:
		return btreeUnlink(p, d, op == btreeUnlinkPageMeta)
	case btreeNewRoot:
		return btreeNewRootPage(p, d)
	case btreeMarkPageHalfDead:
		return btreeHalfDead(p, d)
	case btreeMetaCleanup:
		if d.Part == 0 {
			return btreeRestoreMeta(p, d)
		}
	case btreeReusePage:
	default:
		return fmt.Errorf("unknown record type %02X", op)
	}
	return errNoSuchBlock
}

// btreeInsert is btree_xlog_insert for the page that gets the tuple. Main data: {uint16 offset}. Data: [uint16 posting offset] tuple.
func btreeInsert(p pg.Page, d *Delta, posting bool) error {
	if _, err := btreeOpaqueOf(p); err != nil {
		return err
	}
	if len(d.Main) < 2 {
		return errMainLength(2, len(d.Main))
	}
	off := binary.LittleEndian.Uint16(d.Main)
	if !posting {
		size, err := indexTupleSize(d.Data)
		if err != nil {
			return err
		}
		if size != len(d.Data) {
			return fmt.Errorf("tuple of %d bytes in data of %d bytes", size, len(d.Data))
		}
		return addItem(p, d.Data, off)
	}
	if len(d.Data) < 2 {
		return fmt.Errorf("data of %d bytes, want a posting offset and a tuple", len(d.Data))
	}
	postingOff := int(binary.LittleEndian.Uint16(d.Data))
	newItem := d.Data[2:]
	if size, err := indexTupleSize(newItem); err != nil {
		return err
	} else if size != len(newItem) {
		return fmt.Errorf("tuple of %d bytes in data of %d bytes", size, len(newItem))
	}
	old, err := page.Tuple(p, off-1)
	if err != nil {
		return err
	}
	tid, err := btreeSwapPosting(old, indexTupleTID(newItem), postingOff)
	if err != nil {
		return err
	}
	if err := addItem(p, newItem, off); err != nil {
		return err
	}
	copy(p[p.Item(off).Offset():], tid[:])
	return nil
}

// btreeClearIncompleteSplit is _bt_clear_incomplete_split: the page's right sibling has its downlink now.
func btreeClearIncompleteSplit(p pg.Page) error {
	o, err := btreeOpaqueOf(p)
	if err != nil {
		return err
	}
	o.setFlags(o.flags() &^ btpIncompleteSplit)
	return nil
}

// btreeSplit is btree_xlog_split. Block 0 is the left page, 1 the new right one, 2 the page to the right of that, 3 a child whose split is finished
// by this one's new tuple.
func btreeSplit(p pg.Page, d *Delta, newItemOnLeft bool) error {
	if len(d.Main) < 10 {
		return errMainLength(10, len(d.Main))
	}
	level := binary.LittleEndian.Uint32(d.Main)
	switch d.Part {
	case 0:
		right, ok := d.Tag(1)
		if !ok {
			return fmt.Errorf("no reference to the right page")
		}
		return btreeSplitLeft(p, d, level == 0, newItemOnLeft, right.Block)
	case 1:
		left, ok := d.Tag(0)
		if !ok {
			return fmt.Errorf("no reference to the left page")
		}
		o := btreeInit(p)
		o.setPrev(left.Block)
		if next, ok := d.Tag(2); ok {
			o.setNext(next.Block)
		}
		o.setLevel(level)
		if level == 0 {
			o.setFlags(btpLeaf)
		}
		return btreeRestorePage(p, d.Data)
	case 2:
		right, ok := d.Tag(1)
		if !ok {
			return fmt.Errorf("no reference to the right page")
		}
		o, err := btreeOpaqueOf(p)
		if err != nil {
			return err
		}
		o.setPrev(right.Block)
		return nil
	case 3:
		return btreeClearIncompleteSplit(p)
	}
	return errNoSuchBlock
}

// btreeSplitLeft rebuilds the left half of a split from the page as it was: the items below the split point in their order, among them the new tuple
// or a posting list changed by it, under a new high key. Data: [new tuple, where it goes left or a posting list is split] high key.
func btreeSplitLeft(p pg.Page, d *Delta, leaf, newItemOnLeft bool, right pg.BlockNumber) error {
	o, err := btreeOpaqueOf(p)
	if err != nil {
		return err
	}
	firstRight := binary.LittleEndian.Uint16(d.Main[4:])
	newItemOff := binary.LittleEndian.Uint16(d.Main[6:])
	postingOff := int(binary.LittleEndian.Uint16(d.Main[8:]))
	data := d.Data

	var newItem []byte
	var newTID tupleID
	replaceOff := pg.OffsetNumber(0) // of the posting list that the new tuple splits
	if newItemOnLeft || postingOff != 0 {
		if newItem, data, err = cutIndexTuple(data); err != nil {
			return fmt.Errorf("new item: %w", err)
		}
		newTID = indexTupleTID(newItem)
		if postingOff != 0 {
			if newItemOff < 2 {
				return fmt.Errorf("new item %d has no posting list before it", newItemOff)
			}
			replaceOff = newItemOff - 1
		}
	}
	highKey, data, err := cutIndexTuple(data)
	if err != nil {
		return fmt.Errorf("high key: %w", err)
	}
	if len(data) != 0 {
		return fmt.Errorf("%d bytes behind the high key", len(data))
	}

	var scratch [pg.BlockSize]byte
	left := pg.Page(scratch[:])
	btreeInit(left)
	copy(left[btreeSpecial:], p[btreeSpecial:])
	off := pg.OffsetNumber(1)
	if err := addItem(left, highKey, off); err != nil {
		return err
	}
	addNew := func() error {
		off++
		if err := addItem(left, newItem, off); err != nil {
			return err
		}
		copy(left[left.Item(off).Offset():], newTID[:])
		return nil
	}
	old, replaced, added := o.firstDataKey(), false, false
	for ; old < firstRight; old++ {
		if newItemOnLeft && old == newItemOff && old != replaceOff {
			if err := addNew(); err != nil {
				return err
			}
			added = true
		}
		item, err := page.Tuple(p, old)
		if err != nil {
			return err
		}
		off++
		if err := addItem(left, item, off); err != nil {
			return err
		}
		if old == replaceOff {
			id := left.Item(off)
			if newTID, err = btreeSwapPosting(left[id.Offset():id.Offset()+id.Length()], newTID, postingOff); err != nil {
				return err
			}
			replaced = true
		}
	}
	if newItemOnLeft && old == newItemOff {
		if err := addNew(); err != nil {
			return err
		}
		added = true
	}
	if newItemOnLeft && !added || replaceOff != 0 && !replaced {
		return fmt.Errorf("new item %d is not among the left page's, which end before %d", newItemOff, firstRight)
	}

	flags := uint16(btpIncompleteSplit)
	if leaf {
		flags |= btpLeaf
	}
	o.setFlags(flags)
	o.setNext(right)
	o.setCycle(0)
	copy(left[btreeSpecial:], o)
	copy(p, left)
	return nil
}

// btreeDeleteItems is btree_xlog_vacuum and btree_xlog_delete, whose block data are alike: deleted offsets, offsets of posting lists to update,
// and for each of those {uint16 count, uint16 index of a TID that goes …}. In main data the counts stand behind DELETE's horizon.
func btreeDeleteItems(p pg.Page, d *Delta, vacuum bool) error {
	o, err := btreeOpaqueOf(p)
	if err != nil {
		return err
	}
	main := d.Main
	if !vacuum {
		if len(main) < 8 {
			return errMainLength(8, len(main))
		}
		main = main[4:]
	}
	if len(main) < 4 {
		return errMainLength(4, len(main))
	}
	deleted, updated := int(binary.LittleEndian.Uint16(main)), int(binary.LittleEndian.Uint16(main[2:]))
	if len(d.Data) < 2*(deleted+updated) {
		return fmt.Errorf("data of %d bytes, too few for %d deleted and %d updated items", len(d.Data), deleted, updated)
	}
	updates := d.Data[2*(deleted+updated):]
	for i := range updated {
		off := binary.LittleEndian.Uint16(d.Data[2*(deleted+i):])
		if len(updates) < 2 {
			return fmt.Errorf("data ends before the update of item %d", off)
		}
		n := 2 + 2*int(binary.LittleEndian.Uint16(updates))
		if len(updates) < n {
			return fmt.Errorf("data ends within the update of item %d", off)
		}
		if err := btreeUpdatePosting(p, off, updates[2:n]); err != nil {
			return err
		}
		updates = updates[n:]
	}
	if len(updates) != 0 {
		return fmt.Errorf("%d bytes behind the last update", len(updates))
	}
	if err := indexMultiDelete(p, d.Data[:2*deleted]); err != nil {
		return err
	}
	o.setFlags(o.flags() &^ btpHasGarbage)
	if vacuum && d.Major >= 18 {
		o.setCycle(0)
	}
	return nil
}

// btreeHalfDead is btree_xlog_mark_page_halfdead. Block 0 is the leaf, 1 the parent of the subtree that goes.
// Main data: {uint16 parent offset, 2 pad, uint32 leaf, left, right, top parent}.
func btreeHalfDead(p pg.Page, d *Delta) error {
	if len(d.Main) < 20 {
		return errMainLength(20, len(d.Main))
	}
	switch d.Part {
	case 0:
		btreeInitHalfDead(p, binary.LittleEndian.Uint32(d.Main[8:]), binary.LittleEndian.Uint32(d.Main[12:]), binary.LittleEndian.Uint32(d.Main[16:]))
		return nil
	case 1:
		if _, err := btreeOpaqueOf(p); err != nil {
			return err
		}
		// The downlink to the subtree becomes its right neighbour's, whose own tuple goes: so the key space moves right.
		off := binary.LittleEndian.Uint16(d.Main)
		item, err := page.Tuple(p, off)
		if err != nil {
			return err
		}
		if off == 0xFFFF {
			return fmt.Errorf("no item behind %d", off)
		}
		next, err := page.Tuple(p, off+1)
		if err != nil {
			return err
		}
		if len(item) < indexTupleHeader || len(next) < indexTupleHeader {
			return fmt.Errorf("item %d or the next is shorter than a tuple's header", off)
		}
		copy(item[:4], next[:4])
		return page.IndexDelete(p, off+1)
	}
	return errNoSuchBlock
}

// btreeUnlink is btree_xlog_unlink_page. Block 0 is the page that goes, 1 and 2 its left and right siblings, 3 the leaf whose subtree is deleted
// bottom-up, 4 the metapage. Main data: {uint32 left, right, level, 4 pad, uint64 safe xid, uint32 leaf's left, right, top parent}.
func btreeUnlink(p pg.Page, d *Delta, meta bool) error {
	if len(d.Main) < 36 {
		return errMainLength(36, len(d.Main))
	}
	left, right := binary.LittleEndian.Uint32(d.Main), binary.LittleEndian.Uint32(d.Main[4:])
	switch d.Part {
	case 0:
		level := binary.LittleEndian.Uint32(d.Main[8:])
		o := btreeInit(p)
		o.setPrev(left)
		o.setNext(right)
		o.setLevel(level)
		// BTPageSetDeleted: the transaction id from which on the page may be used again is all that the page holds.
		flags := uint16(btpDeleted | btpHasFullXID)
		if level == 0 {
			flags |= btpLeaf
		}
		o.setFlags(flags)
		copy(p[pg.PageHeaderSize:], d.Main[16:24])
		p.SetLower(pg.PageHeaderSize + 8)
		return nil
	case 1, 2:
		o, err := btreeOpaqueOf(p)
		if err != nil {
			return err
		}
		if d.Part == 1 {
			o.setNext(right)
		} else {
			o.setPrev(left)
		}
		return nil
	case 3:
		btreeInitHalfDead(p, binary.LittleEndian.Uint32(d.Main[24:]), binary.LittleEndian.Uint32(d.Main[28:]), binary.LittleEndian.Uint32(d.Main[32:]))
		return nil
	case 4:
		if meta {
			return btreeRestoreMeta(p, d)
		}
	}
	return errNoSuchBlock
}

// btreeNewRootPage is btree_xlog_newroot. Block 0 is the root, 1 its left child, 2 the metapage. Main data: {uint32 root, level}.
func btreeNewRootPage(p pg.Page, d *Delta) error {
	if len(d.Main) < 8 {
		return errMainLength(8, len(d.Main))
	}
	level := binary.LittleEndian.Uint32(d.Main[4:])
	switch d.Part {
	case 0:
		o := btreeInit(p)
		o.setLevel(level)
		if level == 0 {
			o.setFlags(btpRoot | btpLeaf)
			return nil
		}
		o.setFlags(btpRoot)
		return btreeRestorePage(p, d.Data)
	case 1:
		return btreeClearIncompleteSplit(p)
	case 2:
		return btreeRestoreMeta(p, d)
	}
	return errNoSuchBlock
}

// btreeMask is btree_mask.
func btreeMask(p pg.Page, _ pg.PageKey) {
	maskLSNAndChecksum(p)
	maskHintBits(p)
	maskUnusedSpace(p)
	o, err := btreeOpaqueOf(p)
	if err != nil {
		return
	}
	if o.flags()&btpLeaf != 0 {
		maskItemFlags(p)
	}
	o.setFlags(o.flags() &^ (btpHasGarbage | btpSplitEnd))
	o.setCycle(0)
}
