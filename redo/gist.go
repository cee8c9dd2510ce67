package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/redo/page"
	"everpage/wal/pg"
)

// Records of the GiST resource manager (gistxlog.h).
const (
	gistPageUpdate = 0x00
	gistDelete     = 0x10
	gistPageReuse  = 0x20
	gistPageSplit  = 0x30
	gistPageDelete = 0x60
	gistAssignLSN  = 0x70
)

var gistNames = names{
	gistPageUpdate >> 4: "PAGE_UPDATE",
	gistDelete >> 4:     "DELETE",
	gistPageReuse >> 4:  "PAGE_REUSE",
	gistPageSplit >> 4:  "PAGE_SPLIT",
	gistPageDelete >> 4: "PAGE_DELETE",
	gistAssignLSN >> 4:  "ASSIGN_LSN",
}

// gistManager redoes GiST indexes. PAGE_REUSE and ASSIGN_LSN name no page and change none.
var gistManager = manager{
	apply:      gistApply,
	afterImage: gistAfterImage,
	tags:       true, // a split's pages are linked to the next one named
	mask:       gistMask,
	name:       gistNames.of,
}

// Flags of a GiST page (GISTPageOpaqueData.flags).
const (
	gistLeaf          = 1 << 0
	gistDeleted       = 1 << 1
	gistTuplesDeleted = 1 << 2
	gistFollowRight   = 1 << 3
	gistHasGarbage    = 1 << 4
)

const (
	gistSpecial = pg.BlockSize - 16 // where GISTPageOpaqueData starts
	gistPageID  = 0xFF81            // GIST_PAGE_ID
	gistRoot    = 0                 // GIST_ROOT_BLKNO
)

// gistOpaque is GISTPageOpaqueData: {LSN of the last split (NSN), uint32 right link, uint16 flags, page id}.
type gistOpaque []byte

func (o gistOpaque) flags() uint16                 { return binary.LittleEndian.Uint16(o[12:]) }
func (o gistOpaque) setFlags(v uint16)             { binary.LittleEndian.PutUint16(o[12:], v) }
func (o gistOpaque) setRightLink(b pg.BlockNumber) { binary.LittleEndian.PutUint32(o[8:], b) }

// setNSN writes the NSN in halves, the upper one first, as page LSNs lie (GistPageSetNSN).
func (o gistOpaque) setNSN(l pg.LSN) {
	binary.LittleEndian.PutUint32(o, uint32(l>>32))
	binary.LittleEndian.PutUint32(o[4:], uint32(l))
}

// gistOpaqueOf is GistPageGetOpaque of a page that must be a GiST index's.
func gistOpaqueOf(p pg.Page) (gistOpaque, error) {
	if !p.Valid() || p.Special() != gistSpecial {
		return nil, fmt.Errorf("the page is no GiST page: lower %d, upper %d, special %d", p.Lower(), p.Upper(), p.Special())
	}
	return gistOpaque(p[gistSpecial:]), nil
}

// gistApply is gist_redo, one page at a time.
func gistApply(p pg.Page, d *Delta) error {
	switch op := d.Info & 0xF0; op {
	case gistPageUpdate:
		switch d.Part {
		case 0:
			return gistApplyUpdate(p, d)
		case 1:
			return gistClearFollowRight(p, d)
		}
	case gistDelete:
		if d.Part == 0 {
			return gistApplyDelete(p, d)
		}
	case gistPageSplit:
		if d.Part == 0 {
			return gistClearFollowRight(p, d)
		}
		return gistApplySplit(p, d)
	case gistPageDelete:
		return gistApplyPageDelete(p, d)
	case gistPageReuse, gistAssignLSN:
	default:
		return fmt.Errorf("unknown record type %02X", op)
	}
	return errNoSuchBlock
}

// gistAfterImage is what redo still does to a restored page: the left child's image has neither its new NSN nor the flag cleared.
func gistAfterImage(p pg.Page, d *Delta) error {
	op := d.Info & 0xF0
	if op == gistPageUpdate && d.Part == 1 || op == gistPageSplit && d.Part == 0 {
		return gistClearFollowRight(p, d)
	}
	return nil
}

// gistClearFollowRight is gistRedoClearFollowRight: a split's right page has its downlink now.
func gistClearFollowRight(p pg.Page, d *Delta) error {
	o, err := gistOpaqueOf(p)
	if err != nil {
		return err
	}
	o.setNSN(d.LSN)
	o.setFlags(o.flags() &^ gistFollowRight)
	return nil
}

// cutGistTuple cuts the tuple at the start of data off. Nothing is aligned.
func cutGistTuple(data []byte) (tuple, rest []byte, err error) {
	size, err := indexTupleSize(data)
	if err != nil {
		return nil, nil, err
	}
	return data[:size], data[size:], nil
}

// gistAddTuples adds n tuples behind the last item (gistfillbuffer).
func gistAddTuples(p pg.Page, data []byte, n int) error {
	for i := range n {
		tuple, rest, err := cutGistTuple(data)
		if err != nil {
			return fmt.Errorf("tuple %d of %d: %w", i+1, n, err)
		}
		data = rest
		if err := addItem(p, tuple, pg.OffsetNumber(p.ItemCount()+1)); err != nil {
			return fmt.Errorf("tuple %d of %d: %w", i+1, n, err)
		}
	}
	if len(data) != 0 {
		return fmt.Errorf("%d bytes behind %d tuples", len(data), n)
	}
	return nil
}

// gistApplyUpdate is gistRedoPageUpdateRecord for the page that changes. Main data: {uint16 items to delete, tuples to insert}.
// Data: the offsets, then the tuples.
func gistApplyUpdate(p pg.Page, d *Delta) error {
	if len(d.Main) < 4 {
		return errMainLength(4, len(d.Main))
	}
	o, err := gistOpaqueOf(p)
	if err != nil {
		return err
	}
	deleted, inserted := int(binary.LittleEndian.Uint16(d.Main)), int(binary.LittleEndian.Uint16(d.Main[2:]))
	if len(d.Data) < 2*deleted {
		return fmt.Errorf("data of %d bytes, too few for %d deleted items", len(d.Data), deleted)
	}
	offsets, tuples := d.Data[:2*deleted], d.Data[2*deleted:]
	if deleted == 1 && inserted == 1 {
		// One tuple for another takes its place, and the order of the items' data stays.
		tuple, rest, err := cutGistTuple(tuples)
		if err != nil {
			return err
		}
		if len(rest) != 0 {
			return fmt.Errorf("%d bytes behind the tuple", len(rest))
		}
		return page.IndexOverwrite(p, binary.LittleEndian.Uint16(offsets), tuple)
	}
	if deleted > 0 {
		if err := indexMultiDelete(p, offsets); err != nil {
			return err
		}
		if o.flags()&gistLeaf != 0 {
			o.setFlags(o.flags() | gistTuplesDeleted)
		}
	}
	return gistAddTuples(p, tuples, inserted)
}

// gistApplyDelete is gistRedoDeleteRecord. Main data: {uint32 horizon, uint16 count, from 16 on a bool and a byte of padding, offsets}.
// Unlike the primary, redo sets F_TUPLES_DELETED, which the mask leaves out therefore.
func gistApplyDelete(p pg.Page, d *Delta) error {
	header := 6
	if d.Major >= 16 {
		header = 8
	}
	if len(d.Main) < header {
		return errMainLength(header, len(d.Main))
	}
	o, err := gistOpaqueOf(p)
	if err != nil {
		return err
	}
	n := int(binary.LittleEndian.Uint16(d.Main[4:]))
	if len(d.Main) < header+2*n {
		return errMainLength(header+2*n, len(d.Main))
	}
	if err := indexMultiDelete(p, d.Main[header:header+2*n]); err != nil {
		return err
	}
	o.setFlags(o.flags()&^gistHasGarbage | gistTuplesDeleted)
	return nil
}

// gistApplySplit is gistRedoPageSplitRecord for one of the pages of a split: block n is its n-th, and links to block n+1.
// Main data: {uint32 right link of the page before the split, 4 pad, its NSN, bool leaf, pad, uint16 pages, bool mark follow-right}.
// Data: {int32 tuples}, tuples.
func gistApplySplit(p pg.Page, d *Delta) error {
	if len(d.Main) < 21 {
		return errMainLength(21, len(d.Main))
	}
	pages := int(binary.LittleEndian.Uint16(d.Main[18:]))
	if int(d.Part) > pages {
		return errNoSuchBlock
	}
	if len(d.Data) < 4 {
		return fmt.Errorf("data of %d bytes, want a count and tuples", len(d.Data))
	}
	first := d.Key.Block
	if d.Part > 1 {
		tag, ok := d.Tag(1)
		if !ok {
			return errors.New("no reference to the first page")
		}
		first = tag.Block
	}
	rightLink, flags := binary.LittleEndian.Uint32(d.Main), uint16(0)
	if int(d.Part) < pages {
		next, ok := d.Tag(d.Part + 1)
		if !ok {
			return errors.New("no reference to the next page")
		}
		rightLink = next.Block
		// The pages of a root's split get their downlinks with it.
		if first != gistRoot && d.Main[20] != 0 {
			flags |= gistFollowRight
		}
	}
	if d.Key.Block == gistRoot {
		rightLink, flags = pg.InvalidBlock, 0
	} else if d.Main[16] != 0 {
		flags |= gistLeaf
	}

	p.Init(pg.BlockSize - gistSpecial)
	o := gistOpaque(p[gistSpecial:])
	o.setNSN(pg.LSN(binary.LittleEndian.Uint64(d.Main[8:])))
	o.setRightLink(rightLink)
	o.setFlags(flags)
	binary.LittleEndian.PutUint16(o[14:], gistPageID)
	n := binary.LittleEndian.Uint32(d.Data)
	if n > page.MaxIndexTuples {
		return fmt.Errorf("%d tuples, more than a page can have", n)
	}
	return gistAddTuples(p, d.Data[4:], int(n))
}

// gistApplyPageDelete is gistRedoPageDelete. Block 0 is the leaf that goes, 1 its parent. Main data: {uint64 xid, uint16 offset of the downlink}.
func gistApplyPageDelete(p pg.Page, d *Delta) error {
	if len(d.Main) < 10 {
		return errMainLength(10, len(d.Main))
	}
	o, err := gistOpaqueOf(p)
	if err != nil {
		return err
	}
	switch d.Part {
	case 0:
		// GistPageSetDeleted: the page holds no more than the transaction id from which on it may be used again.
		const lower = pg.PageHeaderSize + 8
		if p.ItemCount() != 0 && o.flags()&gistDeleted == 0 || p.Upper() < lower {
			return fmt.Errorf("the page has items: lower %d, upper %d", p.Lower(), p.Upper())
		}
		o.setFlags(o.flags() | gistDeleted)
		p.SetLower(lower)
		copy(p[pg.PageHeaderSize:lower], d.Main[:8])
		return nil
	case 1:
		return page.IndexDelete(p, binary.LittleEndian.Uint16(d.Main[8:]))
	}
	return errNoSuchBlock
}

// gistMask is gist_mask, and leaves out F_TUPLES_DELETED too: redo of DELETE sets it where the primary doesn't, for which PostgreSQL's
// own check stops a standby.
func gistMask(p pg.Page, _ pg.PageKey) {
	maskLSNAndChecksum(p)
	maskHintBits(p)
	maskUnusedSpace(p)
	o, err := gistOpaqueOf(p)
	if err != nil {
		return
	}
	o.setNSN(0)
	if o.flags()&gistLeaf != 0 {
		maskItemFlags(p)
	}
	o.setFlags(o.flags()&^(gistHasGarbage|gistTuplesDeleted) | gistFollowRight)
}
