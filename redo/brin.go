package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/redo/page"
	"everpage/wal/pg"
)

// Records of the BRIN resource manager (brin_xlog.h), unchanged from 14 to 18. INSERT and UPDATE may carry initBit: their new page starts empty.
const (
	brinCreateIndex    = 0x00
	brinInsert         = 0x10
	brinUpdate         = 0x20
	brinSamepageUpdate = 0x30
	brinRevmapExtend   = 0x40
	brinDesummarize    = 0x50

	brinOpMask = 0x70 // XLOG_BRIN_OPMASK
)

var brinNames = names{
	brinCreateIndex >> 4:        "CREATE_INDEX",
	brinInsert >> 4:             "INSERT",
	brinUpdate >> 4:             "UPDATE",
	brinSamepageUpdate >> 4:     "SAMEPAGE_UPDATE",
	brinRevmapExtend >> 4:       "REVMAP_EXTEND",
	brinDesummarize >> 4:        "DESUMMARIZE",
	(brinInsert | initBit) >> 4: "INSERT",
	(brinUpdate | initBit) >> 4: "UPDATE",
}

// brinManager redoes block range indexes.
var brinManager = manager{
	apply: brinApply,
	tags:  true, // the range map points to the page that got the tuple
	mask:  brinMask,
	name:  brinNames.of,
}

// Types of BRIN pages, in the last two bytes of the special area (BRIN_PAGETYPE_*).
const (
	brinMeta    = 0xF091
	brinRevmap  = 0xF092
	brinRegular = 0xF093

	brinEvacuate = 1 << 0 // BRIN_EVACUATE_PAGE, in the two bytes before the type
)

const (
	brinSpecial = pg.BlockSize - 8 // where BrinSpecialSpace starts

	brinMagic     = 0xA8109CFA             // BRIN_META_MAGIC
	brinMetaLower = pg.PageHeaderSize + 16 // BrinMetaPageData: {uint32 magic, version, pages per range, last page of the range map}
	brinMetaLast  = pg.PageHeaderSize + 12 // lastRevmapPage
	brinMapItems  = (brinSpecial - 24) / 6 // REVMAP_PAGE_MAXITEMS
	brinMapStart  = pg.PageHeaderSize      // RevmapContents: TIDs
)

func brinPageType(p pg.Page) uint16 { return binary.LittleEndian.Uint16(p[pg.BlockSize-2:]) }

// brinInit is brin_page_init.
func brinInit(p pg.Page, typ uint16) {
	p.Init(pg.BlockSize - brinSpecial)
	binary.LittleEndian.PutUint16(p[pg.BlockSize-2:], typ)
}

// brinCheck tells whether the page is a BRIN page of a type.
func brinCheck(p pg.Page, typ uint16) error {
	if !p.Valid() || p.Special() != brinSpecial || brinPageType(p) != typ {
		return fmt.Errorf("the page is no BRIN page of type %04X: type %04X, lower %d, upper %d, special %d",
			typ, brinPageType(p), p.Lower(), p.Upper(), p.Special())
	}
	return nil
}

// brinApply is brin_redo, one page at a time.
func brinApply(p pg.Page, d *Delta) error {
	switch op := d.Info & brinOpMask; op {
	case brinCreateIndex:
		if d.Part == 0 {
			return brinApplyCreate(p, d)
		}
	case brinInsert, brinUpdate:
		return brinApplyInsert(p, d, op == brinUpdate)
	case brinSamepageUpdate:
		if d.Part == 0 {
			return brinApplySamepage(p, d)
		}
	case brinRevmapExtend:
		return brinApplyExtend(p, d)
	case brinDesummarize:
		return brinApplyDesummarize(p, d)
	default:
		return fmt.Errorf("unknown record type %02X", op)
	}
	return errNoSuchBlock
}

// brinApplyCreate is brin_xlog_createidx: the metapage. Main data: {uint32 pages per range, uint16 version}.
func brinApplyCreate(p pg.Page, d *Delta) error {
	if len(d.Main) < 6 {
		return errMainLength(6, len(d.Main))
	}
	brinInit(p, brinMeta)
	m := p[pg.PageHeaderSize:brinMetaLower]
	binary.LittleEndian.PutUint32(m, brinMagic)
	binary.LittleEndian.PutUint32(m[4:], uint32(binary.LittleEndian.Uint16(d.Main[4:])))
	copy(m[8:12], d.Main)
	p.SetLower(brinMetaLower)
	return nil
}

// brinApplyInsert is brin_xlog_insert and brin_xlog_update. Block 0 gets the tuple, its data; 1 is the page of the range map that points to it;
// 2 is the page with the old tuple. Main data: [uint16 old offset, 2 pad] {uint32 heap block, uint32 pages per range, uint16 offset}.
func brinApplyInsert(p pg.Page, d *Delta, update bool) error {
	main := d.Main
	if update {
		if len(main) < 14 {
			return errMainLength(14, len(main))
		}
		main = main[4:]
	}
	if len(main) < 10 {
		return errMainLength(10, len(main))
	}
	off := binary.LittleEndian.Uint16(main[8:])
	switch d.Part {
	case 0:
		if d.Info&initBit != 0 {
			brinInit(p, brinRegular)
		} else if err := brinCheck(p, brinRegular); err != nil {
			return err
		}
		if off == 0 || len(d.Data) == 0 {
			return fmt.Errorf("a tuple of %d bytes at offset %d", len(d.Data), off)
		}
		_, err := page.Add(p, d.Data, off, page.Overwrite)
		return err
	case 1:
		regular, ok := d.Tag(0)
		if !ok {
			return errors.New("no reference to the tuple's page")
		}
		if off == 0 {
			return fmt.Errorf("%w: offset 0", page.ErrOffset)
		}
		return brinSetPointer(p, binary.LittleEndian.Uint32(main[4:]), binary.LittleEndian.Uint32(main), makeTID(regular.Block, off))
	case 2:
		if update {
			return brinDelete(p, binary.LittleEndian.Uint16(d.Main))
		}
	}
	return errNoSuchBlock
}

// brinApplySamepage is brin_xlog_samepage_update. Main data: {uint16 offset}. Data: the tuple.
func brinApplySamepage(p pg.Page, d *Delta) error {
	if len(d.Main) < 2 {
		return errMainLength(2, len(d.Main))
	}
	if err := brinCheck(p, brinRegular); err != nil {
		return err
	}
	return page.IndexOverwrite(p, binary.LittleEndian.Uint16(d.Main), d.Data)
}

// brinApplyExtend is brin_xlog_revmap_extend. Block 0 is the metapage, 1 the new page of the range map. Main data: {uint32 its number}.
func brinApplyExtend(p pg.Page, d *Delta) error {
	if len(d.Main) < 4 {
		return errMainLength(4, len(d.Main))
	}
	switch d.Part {
	case 0:
		// Its pd_lower may be wrong in an index that comes from a server before 11, and is put right.
		if err := brinCheck(p, brinMeta); err != nil {
			return err
		}
		copy(p[brinMetaLast:brinMetaLower], d.Main)
		p.SetLower(brinMetaLower)
		return nil
	case 1:
		brinInit(p, brinRevmap)
		return nil
	}
	return errNoSuchBlock
}

// brinApplyDesummarize is brin_xlog_desummarize_page. Block 0 is the page of the range map, 1 that of the tuple.
// Main data: {uint32 pages per range, uint32 heap block, uint16 offset}.
func brinApplyDesummarize(p pg.Page, d *Delta) error {
	if len(d.Main) < 10 {
		return errMainLength(10, len(d.Main))
	}
	switch d.Part {
	case 0:
		return brinSetPointer(p, binary.LittleEndian.Uint32(d.Main), binary.LittleEndian.Uint32(d.Main[4:]), invalidTID)
	case 1:
		return brinDelete(p, binary.LittleEndian.Uint16(d.Main[8:]))
	}
	return errNoSuchBlock
}

// brinSetPointer is brinSetHeapBlockItemptr: it points the range of a heap block to a tuple.
func brinSetPointer(p pg.Page, pagesPerRange uint32, heap pg.BlockNumber, tid tupleID) error {
	if err := brinCheck(p, brinRevmap); err != nil {
		return err
	}
	if pagesPerRange == 0 {
		return errors.New("ranges of 0 pages")
	}
	copy(p[brinMapStart+tidSize*int(heap/pagesPerRange%brinMapItems):], tid[:])
	return nil
}

// brinDelete removes a tuple; its line pointer stays for the next one.
func brinDelete(p pg.Page, off pg.OffsetNumber) error {
	if err := brinCheck(p, brinRegular); err != nil {
		return err
	}
	return page.IndexDeleteNoCompact(p, off)
}

// brinMask is brin_mask.
func brinMask(p pg.Page, _ pg.PageKey) {
	maskLSNAndChecksum(p)
	maskHintBits(p)
	if p.Special() != brinSpecial {
		return
	}
	if typ := brinPageType(p); typ == brinRegular || typ == brinMeta && p.Lower() > pg.PageHeaderSize {
		maskUnusedSpace(p)
	}
	p[pg.BlockSize-4] &^= brinEvacuate
}
