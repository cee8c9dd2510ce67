package page

import (
	"encoding/binary"
	"fmt"

	"everpage/wal/pg"
)

// Flags of Add.
type Flags uint8

// How Add places an item (PAI_OVERWRITE, PAI_IS_HEAP).
const (
	Overwrite Flags = 1 << iota // take line pointer off, which must be unused or the next one; without it later line pointers move up
	Heap                        // refuse offsets beyond MaxHeapTuples
)

// Add puts an item on the page at line pointer off; 0 takes the first free one (PageAddItemExtended). It returns the item's offset number.
func Add(p pg.Page, item []byte, off pg.OffsetNumber, flags Flags) (pg.OffsetNumber, error) {
	off, dst, err := Reserve(p, len(item), off, flags)
	if err != nil {
		return 0, err
	}
	copy(dst, item)
	return off, nil
}

// Reserve is Add without the copy: it returns the place of an item of size bytes, for the caller to fill. The place holds old bytes.
// Bytes of alignment behind it stay as they were, as in PostgreSQL. No item that is already on the page moves.
func Reserve(p pg.Page, size int, off pg.OffsetNumber, flags Flags) (pg.OffsetNumber, []byte, error) {
	if len(p) != pg.BlockSize {
		return 0, nil, fmt.Errorf("%w: %d bytes, want %d", ErrHeader, len(p), pg.BlockSize)
	}
	lo, up := int(p.Lower()), int(p.Upper())
	if sp := int(p.Special()); lo < pg.PageHeaderSize || lo > up || up > sp || sp > pg.BlockSize {
		return 0, nil, fmt.Errorf("%w: lower %d, upper %d, special %d", ErrHeader, lo, up, sp)
	}
	limit := pg.OffsetNumber(p.ItemCount() + 1)
	shuffle := false
	switch {
	case off == 0:
		off = firstFree(p, limit)
	case flags&Overwrite == 0:
		shuffle = off < limit
	case off < limit:
		if id := p.Item(off); id.Flags() != pg.LPUnused || id.Length() != 0 {
			return 0, nil, fmt.Errorf("%w: line pointer %d is in use", ErrOffset, off)
		}
	}
	if off > limit {
		return 0, nil, fmt.Errorf("%w: offset %d is beyond the next one, %d", ErrOffset, off, limit)
	}
	if flags&Heap != 0 && off > MaxHeapTuples {
		return 0, nil, fmt.Errorf("%w: offset %d on a heap page, at most %d", ErrOffset, off, MaxHeapTuples)
	}
	if off == limit || shuffle {
		lo += pg.ItemIDSize
	}
	if size < 0 || size > pg.BlockSize || lo > up-pg.MaxAlign(size) {
		return 0, nil, fmt.Errorf("%w: item of %d bytes, lower %d, upper %d", ErrSpace, size, p.Lower(), up)
	}
	up -= pg.MaxAlign(size)
	if shuffle {
		at := pg.PageHeaderSize + pg.ItemIDSize*int(off-1)
		copy(p[at+pg.ItemIDSize:lo], p[at:lo-pg.ItemIDSize])
	}
	p.SetItem(off, pg.NewItemID(up, pg.LPNormal, size))
	p.SetLower(uint16(lo))
	p.SetUpper(uint16(up))
	return off, p[up : up+size : up+size], nil
}

// firstFree finds the line pointer that a new item takes: the first unused one if the page's hint says that there is any, else the next.
func firstFree(p pg.Page, limit pg.OffsetNumber) pg.OffsetNumber {
	if p.Flags()&pg.PageHasFreeLines == 0 {
		return limit
	}
	for off := pg.OffsetNumber(1); off < limit; off++ {
		if id := p.Item(off); id.Flags() == pg.LPUnused && id.Length() == 0 {
			return off
		}
	}
	p.SetFlags(p.Flags() &^ pg.PageHasFreeLines)
	return limit
}

func setHasFreeLines(p pg.Page, on bool) {
	if on {
		p.SetFlags(p.Flags() | pg.PageHasFreeLines)
	} else {
		p.SetFlags(p.Flags() &^ pg.PageHasFreeLines)
	}
}

// putItemOffset changes lp_off alone.
func putItemOffset(p pg.Page, off pg.OffsetNumber, to int) {
	at := pg.PageHeaderSize + pg.ItemIDSize*(int(off)-1)
	v := binary.LittleEndian.Uint32(p[at:])
	binary.LittleEndian.PutUint32(p[at:], v&^0x7FFF|uint32(to)&0x7FFF)
}
