package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/wal"
	"everpage/wal/pg"
)

// Visibility map (visibilitymap.c): two bits a heap block behind the page header.
const (
	vmAllVisible = 0x01 // VISIBILITYMAP_ALL_VISIBLE
	vmAllFrozen  = 0x02 // VISIBILITYMAP_ALL_FROZEN
	vmBits       = vmAllVisible | vmAllFrozen

	vmBlocksPerByte = 4
	vmBlocksPerPage = (pg.BlockSize - pg.PageHeaderSize) * vmBlocksPerByte

	vmEntrySize = 5 // of PartVMClear's main data
)

// vmAddress tells where a heap block's bits are: the map's block, the byte in that page and the shift in that byte.
func vmAddress(heap pg.BlockNumber) (block pg.BlockNumber, at int, shift uint) {
	in := heap % vmBlocksPerPage
	return heap / vmBlocksPerPage, pg.PageHeaderSize + int(in/vmBlocksPerByte), uint(2 * (in % vmBlocksPerByte))
}

// clearVMBits adds to c that the record clears bits of the heap block a of rel, and if b isn't InvalidBlock those of b as well:
// one change if both are in the same page of the map.
func (c *Changes) clearVMBits(rec *wal.Record, rel pg.RelFileLocator, bits uint8, a, b pg.BlockNumber) {
	if b == a {
		b = pg.InvalidBlock
	}
	main := c.alloc(2 * vmEntrySize)[:0]
	main = append(binary.LittleEndian.AppendUint32(main, a), bits)
	if b != pg.InvalidBlock && a/vmBlocksPerPage == b/vmBlocksPerPage {
		main = append(binary.LittleEndian.AppendUint32(main, b), bits)
		b = pg.InvalidBlock
	}
	p := c.addPage(rec, rel.Spc, rel.DB, rel.Rel, pg.VMFork, a/vmBlocksPerPage)
	p.Optional = true
	p.Delta.XID, p.Delta.Part, p.Delta.Main = rec.XID, PartVMClear, main
	if b != pg.InvalidBlock {
		c.clearVMBits(rec, rel, bits, b, pg.InvalidBlock)
	}
}

// vmClear clears bits of the heap blocks that d.Main lists, without touching the page's LSN (visibilitymap_clear). A page never written has
// no bits and stays as it is, where PostgreSQL would initialise it.
func vmClear(page pg.Page, d *Delta) (bool, error) {
	if len(d.Main) == 0 || len(d.Main)%vmEntrySize != 0 {
		return false, errors.New("malformed list of heap blocks")
	}
	changed := false
	for b := d.Main; len(b) > 0; b = b[vmEntrySize:] {
		heap, bits := binary.LittleEndian.Uint32(b), b[4]
		block, at, shift := vmAddress(heap)
		if block != d.Key.Block || bits == 0 || bits&^vmBits != 0 {
			return false, fmt.Errorf("bits %02X of heap block %d are not in this page of the map", bits, heap)
		}
		if mask := bits << shift; page[at]&mask != 0 {
			page[at] &^= mask
			changed = true
		}
	}
	return changed, nil
}

// vmTruncate clears the bits of all heap blocks from d.Main's on, without touching the page's LSN (visibilitymap_prepare_truncate).
func vmTruncate(page pg.Page, d *Delta) (bool, error) {
	if len(d.Main) != 4 {
		return false, errors.New("malformed heap block")
	}
	heap := binary.LittleEndian.Uint32(d.Main)
	block, at, shift := vmAddress(heap)
	if block != d.Key.Block {
		return false, fmt.Errorf("heap block %d is not in this page of the map", heap)
	}
	if page.IsNew() {
		return false, nil
	}
	changed := page[at]>>shift != 0
	page[at] &= 1<<shift - 1
	for i := at + 1; i < pg.BlockSize; i++ {
		changed = changed || page[i] != 0
		page[i] = 0
	}
	return changed, nil
}

// Free space map (freespace.c, fsmpage.c): a page is a binary tree of bytes, the leaves last, behind the page header and an int.
const (
	fsmNodesAt       = pg.PageHeaderSize + 4
	fsmNodes         = pg.BlockSize - fsmNodesAt // NodesPerPage
	fsmInnerNodes    = pg.BlockSize/2 - 1        // NonLeafNodesPerPage
	fsmSlotsPerPage  = fsmNodes - fsmInnerNodes  // SlotsPerFSMPage
	fsmTreeDepth     = 3                         // FSM_TREE_DEPTH
	fsmBlocksPerLeaf = pg.BlockNumber(fsmSlotsPerPage)
)

// fsmAddress tells the block of the free space map's leaf page that has a heap block's slot, and the slot (fsm_get_location, fsm_logical_to_physical).
func fsmAddress(heap pg.BlockNumber) (block pg.BlockNumber, slot int) {
	leaf := heap / fsmBlocksPerLeaf
	for range fsmTreeDepth {
		block += leaf + 1
		leaf /= fsmBlocksPerLeaf
	}
	return block - 1, int(heap % fsmBlocksPerLeaf)
}

// fsmTruncate forgets the free space of all heap blocks from d.Main's on (fsm_truncate_avail, fsm_rebuild_page). Upper pages keep what they say
// of this one: a free space map is a hint.
func fsmTruncate(page pg.Page, d *Delta) (bool, error) {
	if len(d.Main) != 4 {
		return false, errors.New("malformed heap block")
	}
	heap := binary.LittleEndian.Uint32(d.Main)
	block, slot := fsmAddress(heap)
	if block != d.Key.Block {
		return false, fmt.Errorf("heap block %d is not in this page of the map", heap)
	}
	if page.IsNew() {
		return false, nil
	}
	nodes := page[fsmNodesAt:]
	changed := false
	for i := fsmInnerNodes + slot; i < fsmNodes; i++ {
		changed = changed || nodes[i] != 0
		nodes[i] = 0
	}
	if !changed {
		return false, nil
	}
	for i := fsmInnerNodes - 1; i >= 0; i-- {
		var v uint8
		if l := 2*i + 1; l < fsmNodes {
			v = nodes[l]
		}
		if r := 2*i + 2; r < fsmNodes {
			v = max(v, nodes[r])
		}
		nodes[i] = v
	}
	return true, nil
}
