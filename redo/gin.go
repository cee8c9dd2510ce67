package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/redo/page"
	"everpage/wal/pg"
)

// Records of the GIN resource manager (ginxlog.h), unchanged from 14 to 18.
const (
	ginCreatePTree        = 0x10
	ginInsert             = 0x20
	ginSplit              = 0x30
	ginVacuumPage         = 0x40
	ginDeletePage         = 0x50
	ginUpdateMetaPage     = 0x60
	ginInsertListPage     = 0x70
	ginDeleteListPage     = 0x80
	ginVacuumDataLeafPage = 0x90
)

var ginNames = names{
	ginCreatePTree >> 4:        "CREATE_PTREE",
	ginInsert >> 4:             "INSERT",
	ginSplit >> 4:              "SPLIT",
	ginVacuumPage >> 4:         "VACUUM_PAGE",
	ginDeletePage >> 4:         "DELETE_PAGE",
	ginUpdateMetaPage >> 4:     "UPDATE_META_PAGE",
	ginInsertListPage >> 4:     "INSERT_LISTPAGE",
	ginDeleteListPage >> 4:     "DELETE_LISTPAGE",
	ginVacuumDataLeafPage >> 4: "VACUUM_DATA_LEAF_PAGE",
}

// ginManager redoes GIN indexes: an entry tree of keys, posting trees of TIDs, and a list of pending tuples.
// What a record says of a page stands in its main data and the page's own; it needs no sibling's number.
var ginManager = manager{
	apply: ginApply,
	mask:  ginMask,
	name:  ginNames.of,
}

// Flags of INSERT and SPLIT.
const (
	ginInsertIsData = 0x01 // GIN_INSERT_ISDATA
	ginInsertIsLeaf = 0x02 // GIN_INSERT_ISLEAF
)

// errGinNoImage tells that a record lacks an image that its type always has.
var errGinNoImage = errors.New("the record has no image of this page")

// ginApply is gin_redo, one page at a time.
func ginApply(p pg.Page, d *Delta) error {
	switch op := d.Info & 0xF0; op {
	case ginCreatePTree:
		if d.Part == 0 {
			return ginApplyCreatePTree(p, d)
		}
	case ginInsert:
		switch d.Part {
		case 0:
			return ginApplyInsert(p, d)
		case 1:
			return ginClearIncompleteSplit(p)
		}
	case ginSplit:
		// The pages of the split itself are images always.
		switch d.Part {
		case 0, 1, 2:
			return errGinNoImage
		case 3:
			return ginClearIncompleteSplit(p)
		}
	case ginVacuumPage:
		if d.Part == 0 {
			return errGinNoImage
		}
	case ginVacuumDataLeafPage:
		if d.Part == 0 {
			o, err := ginDataPageOf(p, true)
			if err != nil {
				return err
			}
			return ginRecompress(p, o, d.Data)
		}
	case ginDeletePage:
		return ginApplyDeletePage(p, d)
	case ginUpdateMetaPage:
		return ginApplyUpdateMeta(p, d)
	case ginInsertListPage:
		if d.Part == 0 {
			return ginApplyInsertListPage(p, d)
		}
	case ginDeleteListPage:
		return ginApplyDeleteListPage(p, d)
	default:
		return fmt.Errorf("unknown record type %02X", op)
	}
	return errNoSuchBlock
}

// ginClearIncompleteSplit is ginRedoClearIncompleteSplit: the page's right sibling has its downlink now.
func ginClearIncompleteSplit(p pg.Page) error {
	o, err := ginOpaqueOf(p)
	if err != nil {
		return err
	}
	o.setFlags(o.flags() &^ ginIncompleteSplit)
	return nil
}

// ginApplyCreatePTree is ginRedoCreatePTree: a posting tree of one leaf. Main data: {uint32 size}, posting lists.
func ginApplyCreatePTree(p pg.Page, d *Delta) error {
	if len(d.Main) < 4 {
		return errMainLength(4, len(d.Main))
	}
	lists := d.Main[4:]
	if size := binary.LittleEndian.Uint32(d.Main); int64(size) != int64(len(lists)) || size > ginDataMax {
		return fmt.Errorf("posting lists of %d bytes in %d bytes", size, len(lists))
	}
	ginInit(p, ginData|ginLeaf|ginCompressed)
	copy(p[ginDataStart:], lists)
	ginSetDataSize(p, len(lists))
	return nil
}

// ginApplyInsert is ginRedoInsert for the page that gets something. Main data: {uint16 flags}, and if the page is no leaf the numbers of the left
// and the right child whose split this finishes. Data: as the kind of page needs.
func ginApplyInsert(p pg.Page, d *Delta) error {
	if len(d.Main) < 2 {
		return errMainLength(2, len(d.Main))
	}
	flags, right := binary.LittleEndian.Uint16(d.Main), pg.InvalidBlock
	leaf := flags&ginInsertIsLeaf != 0
	if !leaf {
		if len(d.Main) < 10 {
			return errMainLength(10, len(d.Main))
		}
		right = blockID(d.Main[6:])
	}
	if flags&ginInsertIsData == 0 {
		return ginInsertEntry(p, d.Data, leaf, right)
	}
	o, err := ginDataPageOf(p, leaf)
	if err != nil {
		return err
	}
	if leaf {
		return ginRecompress(p, o, d.Data)
	}
	return ginInsertPostingItem(p, o, d.Data, right)
}

// ginInsertEntry is ginRedoInsertEntry: a tuple of the entry tree, which may replace the one at its place. Above the leaves the tuple at its place
// is the child's that was split, and leads to the right half from now on. Data: {uint16 offset, bool replace, pad}, tuple.
func ginInsertEntry(p pg.Page, data []byte, leaf bool, right pg.BlockNumber) error {
	o, err := ginOpaqueOf(p)
	if err != nil {
		return err
	}
	if f := o.flags(); f&(ginData|ginList|ginMeta|ginDeleted) != 0 || f&ginLeaf != 0 != leaf {
		return fmt.Errorf("the page is not of the entry tree's level: flags %04X, leaf wanted: %t", f, leaf)
	}
	if len(data) < 4 {
		return fmt.Errorf("data of %d bytes, want an offset and a tuple", len(data))
	}
	off, replace, tuple := binary.LittleEndian.Uint16(data), data[2] != 0, data[4:]
	if size, err := indexTupleSize(tuple); err != nil {
		return err
	} else if size != len(tuple) {
		return fmt.Errorf("tuple of %d bytes in data of %d bytes", size, len(tuple))
	}
	if right != pg.InvalidBlock {
		child, err := page.Tuple(p, off)
		if err != nil {
			return err
		}
		if len(child) < indexTupleHeader {
			return fmt.Errorf("item %d is shorter than a tuple's header", off)
		}
		tid := makeTID(right, 0)
		copy(child, tid[:])
	}
	if replace {
		if !leaf {
			return errors.New("a tuple above the leaves is to be replaced")
		}
		if err := page.IndexDelete(p, off); err != nil {
			return err
		}
	}
	return addItem(p, tuple, off)
}

// ginInsertPostingItem is ginRedoInsertData and GinDataPageAddPostingItem above the leaves of a posting tree: the item at the new one's place leads
// to the right half of its child from now on. Data: {uint16 offset, item}.
func ginInsertPostingItem(p pg.Page, o ginOpaque, data []byte, right pg.BlockNumber) error {
	if len(data) != 2+ginPostingItem {
		return fmt.Errorf("data of %d bytes, want an offset and a posting item", len(data))
	}
	off, n := int(binary.LittleEndian.Uint16(data)), int(o.maxOff())
	if off < 1 || off > n || (n+1)*ginPostingItem > ginDataMax {
		return fmt.Errorf("posting item %d on a page of %d", off, n)
	}
	items := p[ginDataStart : ginDataStart+(n+1)*ginPostingItem]
	at := (off - 1) * ginPostingItem
	putBlockID(items[at:], right)
	copy(items[at+ginPostingItem:], items[at:n*ginPostingItem])
	copy(items[at:], data[2:])
	o.setMaxOff(uint16(n + 1))
	ginSetDataSize(p, len(items))
	return nil
}

// ginApplyDeletePage is ginRedoDeletePage. Block 0 is the page of a posting tree that goes, 1 its parent, 2 its left sibling.
// Main data: {uint16 offset of the downlink, 2 pad, uint32 right sibling, uint32 xid}.
func ginApplyDeletePage(p pg.Page, d *Delta) error {
	if len(d.Main) < 12 {
		return errMainLength(12, len(d.Main))
	}
	o, err := ginOpaqueOf(p)
	if err != nil {
		return err
	}
	if o.flags()&ginData == 0 {
		return fmt.Errorf("the page is not of a posting tree: flags %04X", o.flags())
	}
	switch d.Part {
	case 0:
		o.setFlags(o.flags() | ginDeleted)
		p.SetPruneXID(binary.LittleEndian.Uint32(d.Main[8:])) // GinPageSetDeleteXid
		return nil
	case 1:
		// GinPageDeletePostingItem
		off, n := int(binary.LittleEndian.Uint16(d.Main)), int(o.maxOff())
		if o.flags()&ginLeaf != 0 || off < 1 || off > n || n*ginPostingItem > ginDataMax {
			return fmt.Errorf("posting item %d on a page of %d, flags %04X", off, n, o.flags())
		}
		items := p[ginDataStart : ginDataStart+n*ginPostingItem]
		copy(items[(off-1)*ginPostingItem:], items[off*ginPostingItem:])
		o.setMaxOff(uint16(n - 1))
		ginSetDataSize(p, len(items)-ginPostingItem)
		return nil
	case 2:
		o.setRightLink(binary.LittleEndian.Uint32(d.Main[4:]))
		return nil
	}
	return errNoSuchBlock
}

// ginApplyUpdateMeta is ginRedoUpdateMetapage. Block 0 is the metapage, 1 the last page of the pending list, which gets tuples, its data, or
// a page behind it. Main data: {12 bytes relation, 4 pad, metadata, uint32 previous tail, uint32 new right link, int32 tuples}.
func ginApplyUpdateMeta(p pg.Page, d *Delta) error {
	const prevTail = 16 + ginMetaSize
	if len(d.Main) < prevTail+12 {
		return errMainLength(prevTail+12, len(d.Main))
	}
	tuples := int32(binary.LittleEndian.Uint32(d.Main[prevTail+8:]))
	switch d.Part {
	case 0:
		ginInitMeta(p, d.Main[16:prevTail])
		return nil
	case 1:
		o, err := ginOpaqueOf(p)
		if err != nil {
			return err
		}
		if o.flags()&ginList == 0 {
			return fmt.Errorf("the page is not of the pending list: flags %04X", o.flags())
		}
		if tuples > 0 {
			o.setMaxOff(o.maxOff() + 1) // one more heap tuple is complete
			return ginAddTuples(p, d.Data, tuples)
		}
		if binary.LittleEndian.Uint32(d.Main[prevTail:]) != pg.InvalidBlock {
			o.setRightLink(binary.LittleEndian.Uint32(d.Main[prevTail+4:]))
			return nil
		}
	}
	return errNoSuchBlock
}

// ginApplyInsertListPage is ginRedoInsertListPage: a new page of the pending list. Main data: {uint32 right link, int32 tuples}. Data: tuples.
func ginApplyInsertListPage(p pg.Page, d *Delta) error {
	if len(d.Main) < 8 {
		return errMainLength(8, len(d.Main))
	}
	right := binary.LittleEndian.Uint32(d.Main)
	ginInit(p, ginList)
	o := ginOpaque(p[ginSpecial:])
	o.setRightLink(right)
	if right == pg.InvalidBlock {
		// The last page of what is added: a heap tuple ends on it.
		o.setFlags(ginList | ginListFullRow)
		o.setMaxOff(1)
	}
	return ginAddTuples(p, d.Data, int32(binary.LittleEndian.Uint32(d.Main[4:])))
}

// ginApplyDeleteListPage is ginRedoDeleteListPages. Block 0 is the metapage, the others are pages of the pending list, which become empty.
// Main data: {metadata, int32 pages}.
func ginApplyDeleteListPage(p pg.Page, d *Delta) error {
	if len(d.Main) < ginMetaSize+4 {
		return errMainLength(ginMetaSize+4, len(d.Main))
	}
	switch pages := int32(binary.LittleEndian.Uint32(d.Main[ginMetaSize:])); {
	case d.Part == 0:
		ginInitMeta(p, d.Main[:ginMetaSize])
		return nil
	case int32(d.Part) <= pages:
		ginInit(p, ginDeleted)
		return nil
	}
	return errNoSuchBlock
}

// ginAddTuples adds n tuples behind the last item. They lie as GiST's do: one behind the other, nothing aligned.
func ginAddTuples(p pg.Page, data []byte, n int32) error {
	if n < 0 || n > page.MaxIndexTuples {
		return fmt.Errorf("%d tuples, more than a page can have", n)
	}
	return gistAddTuples(p, data, int(n))
}

// ginMask is gin_mask.
func ginMask(p pg.Page, _ pg.PageKey) {
	maskLSNAndChecksum(p)
	maskHintBits(p)
	if p.Special() == ginSpecial && ginOpaque(p[ginSpecial:]).flags()&ginDeleted != 0 {
		maskContent(p)
	} else if p.Lower() > pg.PageHeaderSize {
		maskUnusedSpace(p)
	}
}
