package redo

import (
	"encoding/binary"
	"fmt"
	"math"

	"everpage/redo/page"
	"everpage/wal/pg"
)

// Flags of a B-tree page (BTPageOpaqueData.btpo_flags).
const (
	btpLeaf            = 1 << 0
	btpRoot            = 1 << 1
	btpDeleted         = 1 << 2
	btpMeta            = 1 << 3
	btpHalfDead        = 1 << 4
	btpSplitEnd        = 1 << 5
	btpHasGarbage      = 1 << 6
	btpIncompleteSplit = 1 << 7
	btpHasFullXID      = 1 << 8
)

// btreeSpecial is where the special area of a B-tree page starts: BTPageOpaqueData of 16 bytes.
const btreeSpecial = pg.BlockSize - 16

// btreeOpaque is BTPageOpaqueData: {uint32 left sibling, right sibling, level, uint16 flags, vacuum cycle}.
type btreeOpaque []byte

func (o btreeOpaque) next() pg.BlockNumber     { return binary.LittleEndian.Uint32(o[4:]) }
func (o btreeOpaque) flags() uint16            { return binary.LittleEndian.Uint16(o[12:]) }
func (o btreeOpaque) setPrev(b pg.BlockNumber) { binary.LittleEndian.PutUint32(o, b) }
func (o btreeOpaque) setNext(b pg.BlockNumber) { binary.LittleEndian.PutUint32(o[4:], b) }
func (o btreeOpaque) setLevel(v uint32)        { binary.LittleEndian.PutUint32(o[8:], v) }
func (o btreeOpaque) setFlags(v uint16)        { binary.LittleEndian.PutUint16(o[12:], v) }
func (o btreeOpaque) setCycle(v uint16)        { binary.LittleEndian.PutUint16(o[14:], v) }

// firstDataKey is P_FIRSTDATAKEY: on all but the rightmost page of a level the first item is the high key.
func (o btreeOpaque) firstDataKey() pg.OffsetNumber {
	if o.next() == 0 {
		return 1
	}
	return 2
}

// btreeOpaqueOf is BTPageGetOpaque of a page that must be a B-tree's.
func btreeOpaqueOf(p pg.Page) (btreeOpaque, error) {
	if !p.Valid() || p.Special() != btreeSpecial {
		return nil, fmt.Errorf("the page is no B-tree page: lower %d, upper %d, special %d", p.Lower(), p.Upper(), p.Special())
	}
	return btreeOpaque(p[btreeSpecial:]), nil
}

// btreeInit is _bt_pageinit.
func btreeInit(p pg.Page) btreeOpaque {
	p.Init(pg.BlockSize - btreeSpecial)
	return btreeOpaque(p[btreeSpecial:])
}

// btreeInitHalfDead makes an empty leaf whose only item is a high key without attributes that links to the top of the subtree being deleted
// (BTreeTupleSetTopParent).
func btreeInitHalfDead(p pg.Page, left, right, topParent pg.BlockNumber) {
	o := btreeInit(p)
	o.setPrev(left)
	o.setNext(right)
	o.setFlags(btpHalfDead | btpLeaf)
	const at = btreeSpecial - indexTupleHeader
	binary.LittleEndian.PutUint16(p[at:], uint16(topParent>>16))
	binary.LittleEndian.PutUint16(p[at+2:], uint16(topParent))
	binary.LittleEndian.PutUint16(p[at+6:], indexTupleHeader|indexAMReservedBit)
	p.SetLower(pg.PageHeaderSize + pg.ItemIDSize)
	p.SetUpper(at)
	p.SetItem(1, pg.NewItemID(at, pg.LPNormal, indexTupleHeader))
}

// btreeRestorePage is _bt_restore_page: data are the tuples of an empty page as they lie in it, the last item first.
// So they are copied in one piece, and what remains to make are the line pointers.
func btreeRestorePage(p pg.Page, data []byte) error {
	items := 0
	for rest := data; len(rest) > 0; items++ {
		var err error
		if _, rest, err = cutIndexTuple(rest); err != nil {
			return fmt.Errorf("item %d from the end: %w", items+1, err)
		}
	}
	lower, upper := pg.PageHeaderSize+items*pg.ItemIDSize, btreeSpecial-len(data)
	if items > page.MaxIndexTuples || lower > upper {
		return fmt.Errorf("%d items of %d bytes don't fit a page", items, len(data))
	}
	copy(p[upper:], data)
	p.SetLower(uint16(lower))
	p.SetUpper(uint16(upper))
	for off, at := items, upper; off > 0; off-- {
		size := pg.MaxAlign(indexTupleLength(p[at:]))
		p.SetItem(pg.OffsetNumber(off), pg.NewItemID(at, pg.LPNormal, size))
		at += size
	}
	return nil
}

// btreeRestoreMeta is _bt_restore_meta: the metapage made anew.
// Data is xl_btree_metadata: {uint32 version, root, level, fast root, fast level, deleted pages of the last cleanup, bool all equal image, 3 pad}.
func btreeRestoreMeta(p pg.Page, d *Delta) error {
	const magic = 0x053162    // BTREE_MAGIC
	const metaSize = 48       // sizeof(BTMetaPageData)
	const noHeapTuples = -1.0 // btm_last_cleanup_num_heap_tuples, deprecated
	if len(d.Data) != 28 {
		return fmt.Errorf("metadata of %d bytes, want 28", len(d.Data))
	}
	o := btreeInit(p)
	m := p[pg.PageHeaderSize:]
	binary.LittleEndian.PutUint32(m, magic)
	copy(m[4:28], d.Data[:24])
	binary.LittleEndian.PutUint64(m[32:], math.Float64bits(noHeapTuples))
	m[40] = d.Data[24]
	o.setFlags(btpMeta)
	p.SetLower(pg.PageHeaderSize + metaSize)
	return nil
}
