package redo

import (
	"encoding/binary"
	"fmt"

	"everpage/redo/page"
	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the SP-GiST resource manager (spgxlog.h). All that they say stands in their main data; only VACUUM_REDIRECT's changed, in 16.
const (
	spgAddLeaf        = 0x10
	spgMoveLeafs      = 0x20
	spgAddNode        = 0x30
	spgSplitTuple     = 0x40
	spgPickSplit      = 0x50
	spgVacuumLeaf     = 0x60
	spgVacuumRoot     = 0x70
	spgVacuumRedirect = 0x80
)

var spgNames = names{
	spgAddLeaf >> 4:        "ADD_LEAF",
	spgMoveLeafs >> 4:      "MOVE_LEAFS",
	spgAddNode >> 4:        "ADD_NODE",
	spgSplitTuple >> 4:     "SPLIT_TUPLE",
	spgPickSplit >> 4:      "PICKSPLIT",
	spgVacuumLeaf >> 4:     "VACUUM_LEAF",
	spgVacuumRoot >> 4:     "VACUUM_ROOT",
	spgVacuumRedirect >> 4: "VACUUM_REDIRECT",
}

// spgistManager redoes SP-GiST indexes.
var spgistManager = manager{
	touch: spgTouch,
	apply: spgApply,
	tags:  true, // links lead to the pages named beside
	mask:  spgMask,
	name:  spgNames.of,
}

// The lengths of what main data start with; the spgxlogState in some is {uint32 xid, bool is a build, 3 pad}.
const (
	spgAddLeafSize    = 10 // {bool new page, bool nulls, uint16 offset, uint16 offset of the chain's head, uint16 parent's offset, uint16 node}
	spgMoveLeafsSize  = 20 // {uint16 moved, bool new page, bool replaces a dead tuple, bool nulls, pad, uint16 parent's offset, uint16 node, 2 pad, state}
	spgAddNodeSize    = 20 // {uint16 old offset, uint16 new offset, bool new page, int8 parent's block, uint16 parent's offset, uint16 node, 2 pad, state}
	spgSplitTupleSize = 6  // {uint16 prefix's offset, uint16 postfix's offset, bool new page, bool same page}
	spgPickSplitSize  = 28 // see spgApplyPickSplit
	spgVacuumLeafSize = 16 // {uint16 dead, placeholders, moved, rechained, state}
	spgVacuumRootSize = 12 // {uint16 deleted, 2 pad, state}
)

// spgTouch leaves out of the pages' deltas the tuples that go to other pages: they stand behind all that the page needs.
func spgTouch(rec *wal.Record, _ *ControlState, ch *Changes) error {
	for i := range ch.Pages {
		d := &ch.Pages[i].Delta
		need := len(d.Main)
		switch op := d.Info & 0xF0; {
		case op == spgAddLeaf && d.Part == 1:
			need = spgAddLeafSize
		case op == spgMoveLeafs && d.Part != 1 && len(d.Main) >= spgMoveLeafsSize:
			need = spgMoveLeafsSize + 2*spgMoves(d.Main)
		case op == spgAddNode && (d.Part == 2 || d.Part == 0 && rec.Block(1) != nil):
			need = spgAddNodeSize
		case op == spgPickSplit && d.Part == 3:
			need = spgPickSplitSize
		}
		d.Main = d.Main[:min(need, len(d.Main))]
	}
	return nil
}

// spgMoves is how many offsets MOVE_LEAFS lists: of the tuples that go and of those that come. It has one more to insert, or replaces a dead one.
func spgMoves(main []byte) int {
	moved := int(binary.LittleEndian.Uint16(main))
	if main[3] != 0 {
		return moved + 1
	}
	return moved + moved + 1
}

// spgApply is spg_redo, one page at a time.
func spgApply(p pg.Page, d *Delta) error {
	switch op := d.Info & 0xF0; op {
	case spgAddLeaf:
		return spgApplyAddLeaf(p, d)
	case spgMoveLeafs:
		return spgApplyMoveLeafs(p, d)
	case spgAddNode:
		return spgApplyAddNode(p, d)
	case spgSplitTuple:
		return spgApplySplitTuple(p, d)
	case spgPickSplit:
		return spgApplyPickSplit(p, d)
	case spgVacuumLeaf, spgVacuumRoot, spgVacuumRedirect:
		if d.Part != 0 {
			break
		}
		o, err := spgOpaqueOf(p)
		if err != nil {
			return err
		}
		switch op {
		case spgVacuumLeaf:
			return spgApplyVacuumLeaf(p, o, d)
		case spgVacuumRoot:
			return spgApplyVacuumRoot(p, d)
		}
		return spgApplyVacuumRedirect(p, o, d)
	default:
		return fmt.Errorf("unknown record type %02X", op)
	}
	return errNoSuchBlock
}

// spgOpen is the page that a record changes or, where it says so, starts anew.
func spgOpen(p pg.Page, anew bool, flags uint16, nulls bool) (spgOpaque, error) {
	if anew {
		spgInit(p, flags, nulls)
	}
	return spgOpaqueOf(p)
}

// spgBlock is the number of a page that the record names.
func spgBlock(d *Delta, id uint8) (pg.BlockNumber, error) {
	if d.Part == id {
		return d.Key.Block, nil
	}
	t, ok := d.Tag(id)
	if !ok {
		return 0, fmt.Errorf("no reference to block %d", id)
	}
	return t.Block, nil
}

// spgLink lets a node of the parent's tuple lead to a tuple on the page that the record names as block id.
func spgLink(p pg.Page, d *Delta, parent pg.OffsetNumber, node int, id uint8, off pg.OffsetNumber) error {
	if _, err := spgOpaqueOf(p); err != nil {
		return err
	}
	block, err := spgBlock(d, id)
	if err != nil {
		return err
	}
	return spgSetLink(p, parent, node, makeTID(block, off))
}

// spgApplyAddLeaf is spgRedoAddLeaf. Block 0 gets the leaf tuple, which stands behind the main data's fields; 1 is its parent.
func spgApplyAddLeaf(p pg.Page, d *Delta) error {
	if len(d.Main) < spgAddLeafSize {
		return errMainLength(spgAddLeafSize, len(d.Main))
	}
	off, head := binary.LittleEndian.Uint16(d.Main[2:]), binary.LittleEndian.Uint16(d.Main[4:])
	parent, node := binary.LittleEndian.Uint16(d.Main[6:]), int(binary.LittleEndian.Uint16(d.Main[8:]))
	switch {
	case d.Part == 0:
		o, err := spgOpen(p, d.Main[0] != 0, spgLeaf, d.Main[1] != 0)
		if err != nil {
			return err
		}
		tuple, rest, err := spgCutLeaf(d.Main[spgAddLeafSize:])
		if err != nil {
			return err
		}
		if len(rest) != 0 {
			return fmt.Errorf("%d bytes behind the tuple", len(rest))
		}
		if off == head {
			return spgReplace(p, tuple, off) // a dead one
		}
		if err := spgAddOrReplace(p, o, tuple, off); err != nil || head == 0 {
			return err
		}
		return spgRelink(p, head, off)
	case d.Part == 1 && parent != 0:
		return spgLink(p, d, parent, node, 0, off)
	}
	return errNoSuchBlock
}

// spgApplyMoveLeafs is spgRedoMoveLeafs. Block 0 loses a chain of leaf tuples to block 1; 2 is their parent. Behind the main data's fields stand the
// offsets of the tuples that go, those of the tuples that come, and the latter.
func spgApplyMoveLeafs(p pg.Page, d *Delta) error {
	if len(d.Main) < spgMoveLeafsSize {
		return errMainLength(spgMoveLeafsSize, len(d.Main))
	}
	moved, all := int(binary.LittleEndian.Uint16(d.Main)), spgMoves(d.Main)
	lists := d.Main[spgMoveLeafsSize:]
	if len(lists) < 2*all {
		return errMainLength(spgMoveLeafsSize+2*all, len(d.Main))
	}
	gone, come, tuples := lists[:2*moved], lists[2*moved:2*all], lists[2*all:]
	head := binary.LittleEndian.Uint16(come[len(come)-2:]) // of the chain on its new page
	switch d.Part {
	case 0:
		o, err := spgOpaqueOf(p)
		if err != nil {
			return err
		}
		to, err := spgBlock(d, 1)
		if err != nil {
			return err
		}
		state, xid, build := byte(spgRedirect), binary.LittleEndian.Uint32(d.Main[12:]), d.Main[16] != 0
		if build {
			state = spgPlaceholder
		}
		return spgMultiDelete(p, o, gone, state, spgPlaceholder, makeTID(to, head), xid)
	case 1:
		o, err := spgOpen(p, d.Main[2] != 0, spgLeaf, d.Main[4] != 0)
		if err != nil {
			return err
		}
		for ; len(come) > 0; come = come[2:] {
			var tuple []byte
			if tuple, tuples, err = spgCutLeaf(tuples); err != nil {
				return err
			}
			if err := spgAddOrReplace(p, o, tuple, binary.LittleEndian.Uint16(come)); err != nil {
				return err
			}
		}
		if len(tuples) != 0 {
			return fmt.Errorf("%d bytes behind the last tuple", len(tuples))
		}
		return nil
	case 2:
		return spgLink(p, d, binary.LittleEndian.Uint16(d.Main[6:]), int(binary.LittleEndian.Uint16(d.Main[8:])), 1, head)
	}
	return errNoSuchBlock
}

// spgApplyAddNode is spgRedoAddNode: an inner tuple with one node more. Without a block 1 it takes the old one's place. Else it goes to block 1,
// a redirection stays on block 0, and the parent is on block 0, 1 or 2, as the main data say.
func spgApplyAddNode(p pg.Page, d *Delta) error {
	if len(d.Main) < spgAddNodeSize {
		return errMainLength(spgAddNodeSize, len(d.Main))
	}
	off, newOff := binary.LittleEndian.Uint16(d.Main), binary.LittleEndian.Uint16(d.Main[2:])
	parentBlock := int8(d.Main[5])
	linked := func() error {
		if parentBlock != int8(d.Part) {
			return nil
		}
		return spgLink(p, d, binary.LittleEndian.Uint16(d.Main[6:]), int(binary.LittleEndian.Uint16(d.Main[8:])), 1, newOff)
	}
	switch d.Part {
	case 0:
		o, err := spgOpaqueOf(p)
		if err != nil {
			return err
		}
		to, ok := d.Tag(1)
		if !ok {
			tuple, _, err := spgCutInner(d.Main[spgAddNodeSize:])
			if err != nil {
				return err
			}
			return spgReplace(p, tuple, off)
		}
		state, xid, build := byte(spgRedirect), binary.LittleEndian.Uint32(d.Main[12:]), d.Main[16] != 0
		if build {
			state = spgPlaceholder
		}
		dead := spgDeadTuple(state, makeTID(to.Block, newOff), xid)
		if err := spgReplace(p, dead[:], off); err != nil {
			return err
		}
		o.count(state)
		return linked()
	case 1:
		o, err := spgOpen(p, d.Main[4] != 0, 0, false)
		if err != nil {
			return err
		}
		tuple, _, err := spgCutInner(d.Main[spgAddNodeSize:])
		if err != nil {
			return err
		}
		if err := spgAddOrReplace(p, o, tuple, newOff); err != nil {
			return err
		}
		return linked()
	case 2:
		if parentBlock == 2 {
			return linked()
		}
	}
	return errNoSuchBlock
}

// spgApplySplitTuple is spgRedoSplitTuple: an inner tuple becomes one of the common prefix, in its place on block 0, and one of the rest, there too or
// on block 1. Both stand behind the main data's fields.
func spgApplySplitTuple(p pg.Page, d *Delta) error {
	if len(d.Main) < spgSplitTupleSize {
		return errMainLength(spgSplitTupleSize, len(d.Main))
	}
	prefixOff, postfixOff := binary.LittleEndian.Uint16(d.Main), binary.LittleEndian.Uint16(d.Main[2:])
	newPage, same := d.Main[4] != 0, d.Main[5] != 0
	prefix, rest, err := spgCutInner(d.Main[spgSplitTupleSize:])
	if err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	postfix, _, err := spgCutInner(rest)
	if err != nil {
		return fmt.Errorf("postfix: %w", err)
	}
	switch {
	case d.Part == 0:
		o, err := spgOpaqueOf(p)
		if err != nil {
			return err
		}
		if err := spgReplace(p, prefix, prefixOff); err != nil || !same {
			return err
		}
		return spgAddOrReplace(p, o, postfix, postfixOff)
	case d.Part == 1 && !same:
		o, err := spgOpen(p, newPage, 0, false)
		if err != nil {
			return err
		}
		return spgAddOrReplace(p, o, postfix, postfixOff)
	}
	return errNoSuchBlock
}

// spgApplyPickSplit is spgRedoPickSplit: a chain of leaf tuples gets an inner tuple above it. Block 0 is the page that held them, unless that was the
// root, 1 another page that they are spread to, 2 the page of the inner tuple, 3 its parent if that is another one.
//
// Main data: {bool root split, pad, uint16 deleted, inserted, bool new block 0, bool new block 1, uint16 inner tuple's offset, bool new block 2,
// bool nulls, bool parent on block 2, pad, uint16 parent's offset, node, 2 pad, state}, offsets deleted, offsets inserted, for each of those
// a byte that says whether it goes to block 1, the inner tuple, the leaf tuples.
func spgApplyPickSplit(p pg.Page, d *Delta) error {
	if len(d.Main) < spgPickSplitSize {
		return errMainLength(spgPickSplitSize, len(d.Main))
	}
	rootSplit, nulls, innerIsParent := d.Main[0] != 0, d.Main[11] != 0, d.Main[12] != 0
	innerOff := binary.LittleEndian.Uint16(d.Main[8:])
	parent, node := binary.LittleEndian.Uint16(d.Main[14:]), int(binary.LittleEndian.Uint16(d.Main[16:]))
	if d.Part == 3 {
		return spgLink(p, d, parent, node, 2, innerOff)
	}

	deleted, inserted := int(binary.LittleEndian.Uint16(d.Main[2:])), int(binary.LittleEndian.Uint16(d.Main[4:]))
	rest := d.Main[spgPickSplitSize:]
	if need := 2*deleted + 3*inserted; len(rest) < need {
		return errMainLength(spgPickSplitSize+need, len(d.Main))
	}
	gone, come := rest[:2*deleted], rest[2*deleted:2*(deleted+inserted)]
	selected, rest := rest[2*(deleted+inserted):][:inserted], rest[2*(deleted+inserted)+inserted:]
	inner, tuples, err := spgCutInner(rest)
	if err != nil {
		return err
	}

	switch {
	case d.Part == 0 && !rootSplit:
		o, err := spgOpen(p, d.Main[6] != 0, spgLeaf, nulls)
		if err != nil {
			return err
		}
		if d.Main[6] == 0 {
			block, err := spgBlock(d, 2)
			if err != nil {
				return err
			}
			state, xid, build := byte(spgRedirect), binary.LittleEndian.Uint32(d.Main[20:]), d.Main[24] != 0
			if build {
				state = spgPlaceholder
			}
			if err := spgMultiDelete(p, o, gone, state, spgPlaceholder, makeTID(block, innerOff), xid); err != nil {
				return err
			}
		}
		return spgInsertSelected(p, o, come, selected, tuples, false)
	case d.Part == 1:
		o, err := spgOpen(p, d.Main[7] != 0, spgLeaf, nulls)
		if err != nil {
			return err
		}
		return spgInsertSelected(p, o, come, selected, tuples, true)
	case d.Part == 2:
		o, err := spgOpen(p, d.Main[10] != 0, 0, nulls)
		if err != nil {
			return err
		}
		if err := spgAddOrReplace(p, o, inner, innerOff); err != nil || !innerIsParent {
			return err
		}
		return spgLink(p, d, parent, node, 2, innerOff)
	}
	return errNoSuchBlock
}

// spgInsertSelected adds those of the leaf tuples that go to the source or to the destination page of a split.
func spgInsertSelected(p pg.Page, o spgOpaque, offsets, selected, tuples []byte, dest bool) error {
	for i, s := range selected {
		tuple, rest, err := spgCutLeaf(tuples)
		if err != nil {
			return fmt.Errorf("tuple %d of %d: %w", i+1, len(selected), err)
		}
		tuples = rest
		if s != 0 == dest {
			if err := spgAddOrReplace(p, o, tuple, binary.LittleEndian.Uint16(offsets[2*i:])); err != nil {
				return err
			}
		}
	}
	if len(tuples) != 0 {
		return fmt.Errorf("%d bytes behind the last tuple", len(tuples))
	}
	return nil
}

// spgApplyVacuumLeaf is spgRedoVacuumLeaf. Behind the main data's fields stand offsets: of tuples to become dead, of tuples to become placeholders,
// of tuples that move and of those whose places they take, of tuples whose link changes and what it becomes.
func spgApplyVacuumLeaf(p pg.Page, o spgOpaque, d *Delta) error {
	if len(d.Main) < spgVacuumLeafSize {
		return errMainLength(spgVacuumLeafSize, len(d.Main))
	}
	var n [4]int
	for i := range n {
		n[i] = 2 * int(binary.LittleEndian.Uint16(d.Main[2*i:]))
	}
	lists := d.Main[spgVacuumLeafSize:]
	if need := n[0] + n[1] + 2*n[2] + 2*n[3]; len(lists) < need {
		return errMainLength(spgVacuumLeafSize+need, len(d.Main))
	}
	cut := func(n int) (list []byte) {
		list, lists = lists[:n], lists[n:]
		return list
	}
	dead, placeholders := cut(n[0]), cut(n[1])
	moveFrom, moveTo := cut(n[2]), cut(n[2])
	chainFrom, chainTo := cut(n[3]), cut(n[3])

	if err := spgMultiDelete(p, o, dead, spgDead, spgDead, invalidTID, 0); err != nil {
		return err
	}
	if err := spgMultiDelete(p, o, placeholders, spgPlaceholder, spgPlaceholder, invalidTID, 0); err != nil {
		return err
	}
	for i := 0; i < len(moveFrom); i += 2 {
		from, to := binary.LittleEndian.Uint16(moveFrom[i:]), binary.LittleEndian.Uint16(moveTo[i:])
		a, err := page.Item(p, from)
		if err != nil {
			return err
		}
		b, err := page.Item(p, to)
		if err != nil {
			return err
		}
		p.SetItem(from, b)
		p.SetItem(to, a)
	}
	if err := spgMultiDelete(p, o, moveFrom, spgPlaceholder, spgPlaceholder, invalidTID, 0); err != nil {
		return err
	}
	for i := 0; i < len(chainFrom); i += 2 {
		if err := spgRelink(p, binary.LittleEndian.Uint16(chainFrom[i:]), binary.LittleEndian.Uint16(chainTo[i:])); err != nil {
			return err
		}
	}
	return nil
}

// spgApplyVacuumRoot is spgRedoVacuumRoot, for a root that is a leaf. Behind the main data's fields stand the offsets that go.
func spgApplyVacuumRoot(p pg.Page, d *Delta) error {
	if len(d.Main) < spgVacuumRootSize {
		return errMainLength(spgVacuumRootSize, len(d.Main))
	}
	n := 2 * int(binary.LittleEndian.Uint16(d.Main))
	if len(d.Main) < spgVacuumRootSize+n {
		return errMainLength(spgVacuumRootSize+n, len(d.Main))
	}
	return indexMultiDelete(p, d.Main[spgVacuumRootSize:spgVacuumRootSize+n])
}

// spgApplyVacuumRedirect is spgRedoVacuumRedirect. Main data: {uint16 redirections, uint16 first placeholder that goes, uint32 xid,
// from 16 on a bool and a byte of padding, offsets}.
func spgApplyVacuumRedirect(p pg.Page, o spgOpaque, d *Delta) error {
	header := 8
	if d.Major >= 16 {
		header = 10
	}
	if len(d.Main) < header {
		return errMainLength(header, len(d.Main))
	}
	n := 2 * int(binary.LittleEndian.Uint16(d.Main))
	if len(d.Main) < header+n {
		return errMainLength(header+n, len(d.Main))
	}
	return spgVacuumRedirects(p, o, d.Main[header:header+n], binary.LittleEndian.Uint16(d.Main[2:]))
}

// spgMask is spg_mask.
func spgMask(p pg.Page, _ pg.PageKey) {
	maskLSNAndChecksum(p)
	maskHintBits(p)
	maskUnusedSpace(p)
}
