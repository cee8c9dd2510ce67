// Package page has the item operations of PostgreSQL's standard page layout (bufpage.c), as redo needs them: the same bytes at the same
// places as PostgreSQL leaves them. Every operation checks what it reads and reports a page that makes no sense as an error; it never panics
// on a page of 8192 bytes, and allocates nothing.
//
// After an error the page's content is undefined.
package page

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/wal/pg"
)

// Most items that fit on a page.
const (
	MaxHeapTuples  = 291 // MaxHeapTuplesPerPage
	MaxIndexTuples = 408 // MaxIndexTuplesPerPage
)

// What can be wrong with a page or with what is asked of it. The errors of this package wrap one of these.
var (
	ErrHeader = errors.New("corrupt page pointers")
	ErrItem   = errors.New("corrupt line pointer")
	ErrOffset = errors.New("no such item")
	ErrSpace  = errors.New("not enough space on the page")
)

// CheckHeader tells whether the page's pointers are in order, as each operation here checks first (PageRepairFragmentation's paranoia).
func CheckHeader(p pg.Page) error {
	if len(p) != pg.BlockSize {
		return fmt.Errorf("%w: %d bytes, want %d", ErrHeader, len(p), pg.BlockSize)
	}
	lo, up, sp := p.Lower(), p.Upper(), p.Special()
	if lo < pg.PageHeaderSize || lo > up || up > sp || sp > pg.BlockSize || sp&7 != 0 {
		return fmt.Errorf("%w: lower %d, upper %d, special %d", ErrHeader, lo, up, sp)
	}
	return nil
}

// Item reads line pointer off, which must exist.
func Item(p pg.Page, off pg.OffsetNumber) (pg.ItemID, error) {
	if off == 0 || int(off) > p.ItemCount() {
		return 0, fmt.Errorf("%w: offset %d of %d", ErrOffset, off, p.ItemCount())
	}
	return p.Item(off), nil
}

// Tuple is the storage of line pointer off, which must be in the page's item area. It borrows the page.
func Tuple(p pg.Page, off pg.OffsetNumber) ([]byte, error) {
	id, err := Item(p, off)
	if err != nil {
		return nil, err
	}
	return Storage(p, id)
}

// Storage is what id points to (PageGetItem). It borrows the page.
func Storage(p pg.Page, id pg.ItemID) ([]byte, error) {
	start, end := id.Offset(), id.Offset()+id.Length()
	if id.Length() == 0 || start < int(p.Upper()) || start < pg.PageHeaderSize || end > int(p.Special()) || end > len(p) {
		return nil, fmt.Errorf("%w: offset %d, length %d, upper %d, special %d", ErrItem, start, id.Length(), p.Upper(), p.Special())
	}
	return p[start:end:end], nil
}

// Special is the access method's own area at the page's end, at least size bytes (PageGetSpecialPointer). It borrows the page.
func Special(p pg.Page, size int) ([]byte, error) {
	sp := int(p.Special())
	if len(p) != pg.BlockSize || sp < pg.PageHeaderSize || sp > pg.BlockSize-size {
		return nil, fmt.Errorf("%w: special %d, want an area of %d bytes", ErrHeader, sp, size)
	}
	return p[sp:], nil
}

// DecodeOffsets appends to dst the packed offset numbers of a record (two bytes each, any alignment). An odd last byte is ignored:
// the caller has checked the length.
func DecodeOffsets(dst []pg.OffsetNumber, raw []byte) []pg.OffsetNumber {
	for ; len(raw) >= 2; raw = raw[2:] {
		dst = append(dst, binary.LittleEndian.Uint16(raw))
	}
	return dst
}

// FreeSpace is the space left for one item's data, its line pointer taken off (PageGetFreeSpace).
func FreeSpace(p pg.Page) int {
	space := int(p.Upper()) - int(p.Lower())
	if space < pg.ItemIDSize {
		return 0
	}
	return space - pg.ItemIDSize
}

// ExactFreeSpace is the space between the line pointers and the items (PageGetExactFreeSpace).
func ExactFreeSpace(p pg.Page) int { return max(0, int(p.Upper())-int(p.Lower())) }
