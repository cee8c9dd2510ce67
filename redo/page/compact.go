package page

import (
	"fmt"

	"everpage/wal/pg"
)

// piece is one item to keep (itemIdCompactData).
type piece struct {
	off    pg.OffsetNumber // its line pointer after the change
	at     uint16          // where its data is
	length uint16          // MAXALIGNed
}

// gather notes one item to keep, and tells whether the items still lie in descending order.
func gather(p pg.Page, pieces []piece, n int, off pg.OffsetNumber, id pg.ItemID, sorted bool) (bool, error) {
	at, length := id.Offset(), pg.MaxAlign(id.Length())
	if at < int(p.Upper()) || at+length > int(p.Special()) {
		return false, fmt.Errorf("%w: offset %d, length %d, upper %d, special %d", ErrItem, at, id.Length(), p.Upper(), p.Special())
	}
	if n >= len(pieces) {
		return false, fmt.Errorf("%w: more than %d items", ErrItem, len(pieces))
	}
	pieces[n] = piece{off, uint16(at), uint16(length)}
	if n > 0 {
		// Items that overlap would make the moves depend on their order.
		sorted = sorted && at+length <= int(pieces[n-1].at)
	}
	return sorted, nil
}

// compactify packs the items downward from the special area, in the order given, each with the bytes of alignment behind it (compactify_tuples).
// The outcome is the same for both of PostgreSQL's ways, sorted or through a copy. What is below the new pd_upper keeps its old bytes.
func compactify(p pg.Page, pieces []piece, sorted bool) error {
	total := 0
	for i := range pieces {
		total += int(pieces[i].length)
	}
	if total > int(p.Special())-int(p.Lower()) {
		return fmt.Errorf("%w: items of %d bytes, %d available", ErrItem, total, int(p.Special())-int(p.Lower()))
	}
	if sorted {
		moveSorted(p, pieces)
	} else {
		moveUnsorted(p, pieces)
	}
	return nil
}

// moveSorted moves items that lie in descending order: each moves up or stays, so none overwrites one that comes later.
func moveSorted(p pg.Page, pieces []piece) {
	upper := int(p.Special())
	i := 0
	for i < len(pieces) && int(pieces[i].at)+int(pieces[i].length) == upper {
		upper = int(pieces[i].at)
		i++
	}
	for i < len(pieces) {
		// Neighbours move together: [head, tail) is one run of bytes.
		tail := int(pieces[i].at) + int(pieces[i].length)
		head := tail
		to := upper
		for i < len(pieces) && int(pieces[i].at)+int(pieces[i].length) == head {
			head = int(pieces[i].at)
			upper -= int(pieces[i].length)
			putItemOffset(p, pieces[i].off, upper)
			i++
		}
		copy(p[upper:to], p[head:tail])
	}
	p.SetUpper(uint16(upper))
}

// moveUnsorted moves items that lie anyhow.
//
//go:noinline
func moveUnsorted(p pg.Page, pieces []piece) {
	var scratch [pg.BlockSize]byte
	low, upper := int(p.Upper()), int(p.Special())
	copy(scratch[low:upper], p[low:upper])
	for _, c := range pieces {
		upper -= int(c.length)
		copy(p[upper:upper+int(c.length)], scratch[c.at:int(c.at)+int(c.length)])
		putItemOffset(p, c.off, upper)
	}
	p.SetUpper(uint16(upper))
}

// RepairFragmentation closes the gaps that unused items left on a heap page (PageRepairFragmentation). From 15 on it also cuts unused
// line pointers off the array's end; 14 leaves them, without any sign of it in the record.
func RepairFragmentation(p pg.Page, major pg.Major) error {
	if err := CheckHeader(p); err != nil {
		return err
	}
	var pieces [MaxHeapTuples]piece
	n, unused, lines := 0, 0, p.ItemCount()
	last := 0
	sorted := true
	for i := 1; i <= lines; i++ {
		off := pg.OffsetNumber(i)
		id := p.Item(off)
		if id.Flags() == pg.LPUnused {
			p.SetItem(off, 0)
			unused++
			continue
		}
		last = i
		if id.Length() == 0 {
			continue
		}
		var err error
		if sorted, err = gather(p, pieces[:], n, off, id, sorted); err != nil {
			return err
		}
		n++
	}
	if n == 0 {
		p.SetUpper(p.Special())
	} else if err := compactify(p, pieces[:n], sorted); err != nil {
		return err
	}
	if major >= 15 && last != lines {
		unused -= lines - last
		p.SetLower(p.Lower() - uint16(pg.ItemIDSize*(lines-last)))
	}
	setHasFreeLines(p, unused > 0)
	return nil
}

// TruncateLinePointers cuts unused line pointers off the end of a heap page's array, all but the first of the page
// (PageTruncateLinePointerArray). The items' data stays.
func TruncateLinePointers(p pg.Page) error {
	if err := CheckHeader(p); err != nil {
		return err
	}
	lines := p.ItemCount()
	keep := lines
	for keep > 1 && p.Item(pg.OffsetNumber(keep)).Flags() == pg.LPUnused {
		keep--
	}
	free := false
	for i := keep; i >= 1 && !free; i-- {
		free = p.Item(pg.OffsetNumber(i)).Flags() == pg.LPUnused
	}
	p.SetLower(p.Lower() - uint16(pg.ItemIDSize*(lines-keep)))
	setHasFreeLines(p, free)
	return nil
}
