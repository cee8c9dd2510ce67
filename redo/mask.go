package redo

import (
	"everpage/redo/page"
	"everpage/wal/pg"
)

// The parts that the managers' mask functions are made of (bufmask.c). They clear what a primary changes without WAL, so that two pages that
// should be equal are. A page whose header makes no sense keeps the bytes that it would need to know about.

// maskLSNAndChecksum is mask_page_lsn_and_checksum.
func maskLSNAndChecksum(p pg.Page) {
	p.SetLSN(0)
	p.SetStoredChecksum(0)
}

// maskHintBits is mask_page_hint_bits.
func maskHintBits(p pg.Page) {
	p.SetPruneXID(0)
	p.SetFlags(p.Flags() &^ (pg.PageHasFreeLines | pg.PageFull | pg.PageAllVisible))
}

// maskUnusedSpace is mask_unused_space: the hole between line pointers and items.
func maskUnusedSpace(p pg.Page) {
	if page.CheckHeader(p) == nil {
		clear(p[p.Lower():p.Upper()])
	}
}

// maskItemFlags is mask_lp_flags: used line pointers become unused ones that keep offset and length.
func maskItemFlags(p pg.Page) {
	if page.CheckHeader(p) != nil {
		return
	}
	for off, n := 1, p.ItemCount(); off <= n; off++ {
		if id := p.Item(pg.OffsetNumber(off)); id.Flags() != pg.LPUnused {
			p.SetItem(pg.OffsetNumber(off), pg.NewItemID(id.Offset(), pg.LPUnused, id.Length()))
		}
	}
}

// maskContent is mask_page_content: all but the rest of the header.
func maskContent(p pg.Page) {
	clear(p[pg.PageHeaderSize:])
	p.SetLower(0)
	p.SetUpper(0)
}
