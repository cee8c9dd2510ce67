package pg

import "encoding/binary"

// Offsets in a page header (PageHeaderData, bufpage.h).
const (
	PageHeaderSize = 24
	ItemIDSize     = 4

	offPageLSN      = 0 // two uint32: xlogid, xrecoff
	offPageChecksum = 8
	offPageFlags    = 10
	offPageLower    = 12
	offPageUpper    = 14
	offPageSpecial  = 16
	offPageVersion  = 18 // page size | layout version
	offPagePruneXID = 20
)

// Bits of pd_flags.
const (
	PageHasFreeLines = 0x0001 // PD_HAS_FREE_LINES, a hint
	PageFull         = 0x0002 // PD_PAGE_FULL, a hint
	PageAllVisible   = 0x0004 // PD_ALL_VISIBLE
)

// PageLayoutVersion is PG_PAGE_LAYOUT_VERSION, the only one since 8.3.
const PageLayoutVersion = 4

// Page is one 8192-byte block. Its methods read and write the header without checks; use Valid on untrusted bytes.
type Page []byte

// ZeroPage is a page never written. It must not be modified.
var ZeroPage = Page(make([]byte, BlockSize))

// LSN is pd_lsn: the end of the last record that changed the page.
func (p Page) LSN() LSN {
	return LSN(uint64(binary.LittleEndian.Uint32(p[offPageLSN:]))<<32 | uint64(binary.LittleEndian.Uint32(p[offPageLSN+4:])))
}

// SetLSN sets pd_lsn (PageSetLSN).
func (p Page) SetLSN(l LSN) {
	binary.LittleEndian.PutUint32(p[offPageLSN:], uint32(l>>32))
	binary.LittleEndian.PutUint32(p[offPageLSN+4:], uint32(l))
}

// StoredChecksum is pd_checksum as the page bears it.
func (p Page) StoredChecksum() uint16 { return binary.LittleEndian.Uint16(p[offPageChecksum:]) }

// SetStoredChecksum sets pd_checksum.
func (p Page) SetStoredChecksum(v uint16) { binary.LittleEndian.PutUint16(p[offPageChecksum:], v) }

// Flags is pd_flags.
func (p Page) Flags() uint16 { return binary.LittleEndian.Uint16(p[offPageFlags:]) }

// SetFlags sets pd_flags.
func (p Page) SetFlags(v uint16) { binary.LittleEndian.PutUint16(p[offPageFlags:], v) }

// Lower is pd_lower: the end of the line pointers.
func (p Page) Lower() uint16 { return binary.LittleEndian.Uint16(p[offPageLower:]) }

// SetLower sets pd_lower.
func (p Page) SetLower(v uint16) { binary.LittleEndian.PutUint16(p[offPageLower:], v) }

// Upper is pd_upper: the start of the lowest tuple.
func (p Page) Upper() uint16 { return binary.LittleEndian.Uint16(p[offPageUpper:]) }

// SetUpper sets pd_upper.
func (p Page) SetUpper(v uint16) { binary.LittleEndian.PutUint16(p[offPageUpper:], v) }

// Special is pd_special: the start of the access method's own area.
func (p Page) Special() uint16 { return binary.LittleEndian.Uint16(p[offPageSpecial:]) }

// SetSpecial sets pd_special.
func (p Page) SetSpecial(v uint16) { binary.LittleEndian.PutUint16(p[offPageSpecial:], v) }

// SizeVersion is pd_pagesize_version: the page size with the layout version in its low byte.
func (p Page) SizeVersion() uint16 { return binary.LittleEndian.Uint16(p[offPageVersion:]) }

// SetSizeVersion sets pd_pagesize_version.
func (p Page) SetSizeVersion(v uint16) { binary.LittleEndian.PutUint16(p[offPageVersion:], v) }

// PruneXID is pd_prune_xid, a hint.
func (p Page) PruneXID() TransactionID { return binary.LittleEndian.Uint32(p[offPagePruneXID:]) }

// SetPruneXID sets pd_prune_xid.
func (p Page) SetPruneXID(x TransactionID) { binary.LittleEndian.PutUint32(p[offPagePruneXID:], x) }

// IsNew tells whether the page was never initialised (PageIsNew: pd_upper is 0).
func (p Page) IsNew() bool { return p.Upper() == 0 }

// Init makes the page empty with a special area of at least special bytes (PageInit). All other bytes become zero.
func (p Page) Init(special int) {
	clear(p)
	special = MaxAlign(special)
	p.SetLower(PageHeaderSize)
	p.SetUpper(uint16(BlockSize - special))
	p.SetSpecial(uint16(BlockSize - special))
	p.SetSizeVersion(BlockSize | PageLayoutVersion)
}

// Valid tells whether the header's pointers are in order, so that the item and special areas may be sliced
// (PageIsVerifiedExtended's checks, without the checksum). A new page is valid only if it is all zero.
func (p Page) Valid() bool {
	if len(p) != BlockSize {
		return false
	}
	if p.IsNew() {
		return p.IsZero()
	}
	lo, up, sp := p.Lower(), p.Upper(), p.Special()
	return lo >= PageHeaderSize && lo <= up && up <= sp && sp <= BlockSize && sp%8 == 0 && p.SizeVersion() == BlockSize|PageLayoutVersion
}

// IsZero tells whether every byte is zero.
func (p Page) IsZero() bool {
	for i := 0; i+8 <= len(p); i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != 0 {
			return false
		}
	}
	return true
}

// ItemCount is the number of line pointers (PageGetMaxOffsetNumber).
func (p Page) ItemCount() int {
	if lo := p.Lower(); lo > PageHeaderSize {
		return int(lo-PageHeaderSize) / ItemIDSize
	}
	return 0
}

// ItemID is one line pointer: offset (15 bits), flags (2 bits), length (15 bits).
type ItemID uint32

// Flags of a line pointer.
const (
	LPUnused   = 0
	LPNormal   = 1
	LPRedirect = 2
	LPDead     = 3
)

// NewItemID packs a line pointer (ItemIdSetNormal and its like).
func NewItemID(off, flags, length int) ItemID {
	return ItemID(uint32(off)&0x7FFF | uint32(flags)&3<<15 | uint32(length)&0x7FFF<<17)
}

// Offset is lp_off: a byte offset in the page, or the target of a redirect.
func (i ItemID) Offset() int { return int(i & 0x7FFF) }

// Flags is lp_flags.
func (i ItemID) Flags() int { return int(i >> 15 & 3) }

// Length is lp_len in bytes.
func (i ItemID) Length() int { return int(i >> 17) }

// Item reads line pointer off, counted from 1. The caller has checked off against ItemCount.
func (p Page) Item(off OffsetNumber) ItemID {
	return ItemID(binary.LittleEndian.Uint32(p[PageHeaderSize+ItemIDSize*(int(off)-1):]))
}

// SetItem writes line pointer off, counted from 1.
func (p Page) SetItem(off OffsetNumber, id ItemID) {
	binary.LittleEndian.PutUint32(p[PageHeaderSize+ItemIDSize*(int(off)-1):], uint32(id))
}
