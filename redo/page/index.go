package page

import (
	"fmt"

	"everpage/wal/pg"
)

// indexItem reads a line pointer that has storage, as the index operations check it.
func indexItem(p pg.Page, off pg.OffsetNumber) (pg.ItemID, error) {
	id, err := Item(p, off)
	if err != nil {
		return 0, err
	}
	return id, checkIndexItem(p, id)
}

func checkIndexItem(p pg.Page, id pg.ItemID) error {
	at := id.Offset()
	if at < int(p.Upper()) || at+pg.MaxAlign(id.Length()) > int(p.Special()) || at&7 != 0 {
		return fmt.Errorf("%w: offset %d, length %d, upper %d, special %d", ErrItem, at, id.Length(), p.Upper(), p.Special())
	}
	return nil
}

// closeGap takes size bytes at offset at out of the items' data, or makes room there if size is negative (then -size bytes above at belong to
// the item): everything between pd_upper and at moves by size, with its line pointers. storageOnly leaves line pointers without storage alone.
func closeGap(p pg.Page, at, size int, storageOnly bool) error {
	up := int(p.Upper())
	if up+size < int(p.Lower()) || at+size > pg.BlockSize {
		return fmt.Errorf("%w: moving items by %d bytes, lower %d, upper %d", ErrItem, size, p.Lower(), up)
	}
	copy(p[up+size:at+size], p[up:at])
	p.SetUpper(uint16(up + size))
	lines := p.ItemCount()
	for i := 1; i <= lines; i++ {
		off := pg.OffsetNumber(i)
		id := p.Item(off)
		if (!storageOnly || id.Length() != 0) && id.Offset() <= at {
			putItemOffset(p, off, id.Offset()+size)
		}
	}
	return nil
}

// IndexDelete removes item off and its line pointer; later items get lower numbers (PageIndexTupleDelete).
func IndexDelete(p pg.Page, off pg.OffsetNumber) error {
	if err := CheckHeader(p); err != nil {
		return err
	}
	id, err := indexItem(p, off)
	if err != nil {
		return err
	}
	start, lo := pg.PageHeaderSize+pg.ItemIDSize*(int(off)-1), int(p.Lower())
	copy(p[start:], p[start+pg.ItemIDSize:lo])
	p.SetLower(uint16(lo - pg.ItemIDSize))
	return closeGap(p, id.Offset(), pg.MaxAlign(id.Length()), false)
}

// IndexDeleteNoCompact removes item off; its line pointer becomes unused, or goes if it is the last (PageIndexTupleDeleteNoCompact).
func IndexDeleteNoCompact(p pg.Page, off pg.OffsetNumber) error {
	if err := CheckHeader(p); err != nil {
		return err
	}
	id, err := indexItem(p, off)
	if err != nil {
		return err
	}
	if int(off) < p.ItemCount() {
		p.SetItem(off, 0)
	} else {
		p.SetLower(p.Lower() - pg.ItemIDSize)
	}
	return closeGap(p, id.Offset(), pg.MaxAlign(id.Length()), true)
}

// IndexMultiDelete removes several items, whose numbers ascend, and their line pointers (PageIndexMultiDelete). Up to two go one by one,
// which keeps the order of the items' data; more repack the page in line pointer order.
func IndexMultiDelete(p pg.Page, offs []pg.OffsetNumber) error {
	if len(offs) <= 2 {
		for i := len(offs) - 1; i >= 0; i-- {
			if err := IndexDelete(p, offs[i]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := CheckHeader(p); err != nil {
		return err
	}
	var pieces [MaxIndexTuples]piece
	n, next, lines := 0, 0, p.ItemCount()
	sorted := true
	for i := 1; i <= lines; i++ {
		id := p.Item(pg.OffsetNumber(i))
		if err := checkIndexItem(p, id); err != nil {
			return err
		}
		if next < len(offs) && int(offs[next]) == i {
			next++
			continue
		}
		var err error
		if sorted, err = gather(p, pieces[:], n, pg.OffsetNumber(n+1), id, sorted); err != nil {
			return err
		}
		n++
		p.SetItem(pg.OffsetNumber(n), id) // n <= i: overwrites only what was read
	}
	if next != len(offs) {
		return fmt.Errorf("%w: offsets to delete are not ascending numbers of items (%d of %d found among %d)", ErrOffset, next, len(offs), lines)
	}
	p.SetLower(uint16(pg.PageHeaderSize + pg.ItemIDSize*n))
	if n == 0 {
		p.SetUpper(p.Special())
		return nil
	}
	return compactify(p, pieces[:n], sorted)
}

// IndexOverwrite replaces item off by another of any size, in its place; what lies below it moves (PageIndexTupleOverwrite).
// The line pointer's flags stay. A page without the space is ErrSpace.
func IndexOverwrite(p pg.Page, off pg.OffsetNumber, item []byte) error {
	if err := CheckHeader(p); err != nil {
		return err
	}
	id, err := indexItem(p, off)
	if err != nil {
		return err
	}
	old, size := pg.MaxAlign(id.Length()), pg.MaxAlign(len(item))
	if len(item) == 0 || size > old+int(p.Upper())-int(p.Lower()) {
		return fmt.Errorf("%w: item of %d bytes over one of %d, lower %d, upper %d", ErrSpace, len(item), id.Length(), p.Lower(), p.Upper())
	}
	at := id.Offset()
	if old != size {
		if err := closeGap(p, at, old-size, true); err != nil {
			return err
		}
		at += old - size
	}
	p.SetItem(off, pg.NewItemID(at, id.Flags(), len(item)))
	copy(p[at:], item)
	return nil
}
