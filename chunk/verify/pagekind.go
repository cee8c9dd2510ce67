package verify

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// pageKind is what a page is, told by its special area.
type pageKind string

const (
	pageHeap     pageKind = "heap"
	pageBtree    pageKind = "btree"
	pageHash     pageKind = "hash"
	pageGist     pageKind = "gist"
	pageSPGist   pageKind = "spgist"
	pageGin      pageKind = "gin"
	pageBRIN     pageKind = "brin"
	pageBloom    pageKind = "bloom"
	pageSequence pageKind = "sequence"
	pageUnknown  pageKind = "unknown"
)

func kindOf(p pg.Page) pageKind {
	sp := int(p.Special())
	if sp == pg.BlockSize || !p.Valid() {
		return pageHeap
	}
	last := binary.LittleEndian.Uint16(p[pg.BlockSize-2:])
	switch pg.BlockSize - sp {
	case 16:
		switch {
		case last == 0xFF80:
			return pageHash
		case last == 0xFF81:
			return pageGist
		case last == 0xFF82:
			return pageSPGist
		case last <= 0xFF7F:
			return pageBtree
		}
	case 8:
		switch {
		case last == 0xF091, last == 0xF092, last == 0xF093:
			return pageBRIN
		case last == 0xFF82:
			return pageSPGist
		case last == 0xFF83:
			return pageBloom
		case binary.LittleEndian.Uint32(p[sp:]) == 0x1717:
			return pageSequence
		}
		return pageGin
	}
	return pageUnknown
}

var kindRmgrs = map[pageKind]wal.Rmgr{
	pageHeap: wal.RmHeap, pageBtree: wal.RmBtree, pageHash: wal.RmHash, pageGist: wal.RmGist, pageSPGist: wal.RmSPGist, pageGin: wal.RmGin,
	pageBRIN: wal.RmBRIN, pageBloom: wal.RmGeneric, pageSequence: wal.RmSequence,
}

// B-tree: the metapage's vacuum counters are set without WAL. GiST: redo marks deleted tuples, the primary doesn't.
// Bloom: 16 and later make the init fork's metapage with a generic record, which is not written for an unlogged table. The fork's creation is
// logged, so a stock standby has it without its block, and reading the index fails there after a promotion until REINDEX.
const (
	btreeMetaFlag      = 1 << 3
	btreeMetaCounters  = 28 // offset of btm_last_cleanup_num_delpages behind the page header, 16 bytes with the tuple count
	gistTuplesDeleted  = 1 << 2
	bloomMetaFlag      = 1 << 0
	bloomMagic         = 0xDBAC0DED // behind the page header
	sequenceValueBytes = 17         // last_value, log_cnt, is_called
)

func maskKind(kind pageKind, p pg.Page, key pg.PageKey) error {
	rmgr, ok := kindRmgrs[kind]
	if !ok {
		return fmt.Errorf("a page of a kind that is not known (special area at %d)", p.Special())
	}
	sp := int(p.Special())
	switch kind {
	case pageBtree:
		if binary.LittleEndian.Uint16(p[sp+12:])&btreeMetaFlag != 0 {
			clear(p[pg.PageHeaderSize+btreeMetaCounters : pg.PageHeaderSize+btreeMetaCounters+16])
		}
	case pageGist:
		flags := binary.LittleEndian.Uint16(p[sp+12:])
		binary.LittleEndian.PutUint16(p[sp+12:], flags&^gistTuplesDeleted)
	}
	return redo.Mask(rmgr, p, key)
}

// maskSequenceValue clears what a sequence logs 32 values ahead, in its only tuple.
func maskSequenceValue(p pg.Page) {
	if p.ItemCount() < 1 {
		return
	}
	id := p.Item(1)
	hoff := int(p[id.Offset()+22])
	if at := id.Offset() + hoff; at+sequenceValueBytes <= pg.BlockSize {
		clear(p[at : at+sequenceValueBytes])
	}
}

// spgistCacheOnly tells whether two SP-GiST metapages differ in the cache of last used pages only, which is never logged.
func spgistCacheOnly(a, b pg.Page) bool {
	const magicEnd = pg.PageHeaderSize + 4
	lower := int(a.Lower())
	return a.Lower() == b.Lower() && lower >= magicEnd && bytes.Equal(a[:magicEnd], b[:magicEnd]) && bytes.Equal(a[lower:], b[lower:])
}

// unloggedBloom tells whether a page is the metapage in the init fork of a bloom index, and one that no record has stamped with its LSN.
func unloggedBloom(key pg.PageKey, p pg.Page) bool {
	return key.Fork == pg.InitFork && key.Block == 0 && p.LSN() == 0 && kindOf(p) == pageBloom &&
		binary.LittleEndian.Uint16(p[int(p.Special())+2:])&bloomMetaFlag != 0 && binary.LittleEndian.Uint32(p[pg.PageHeaderSize:]) == bloomMagic
}
