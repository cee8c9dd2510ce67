package redo

import (
	"encoding/binary"
	"fmt"

	"everpage/redo/page"
	"everpage/wal/pg"
)

// genericManager redoes generic records, by which extensions such as bloom change pages: they say which bytes change.
// There is one type of record, the same from 14 to 18, for up to four pages.
var genericManager = manager{
	apply: genericApply,
	mask:  genericMask,
	name:  func(pg.Major, uint8) string { return "Generic" },
}

// genericFragment is the header of a fragment: {uint16 offset, uint16 length}.
const genericFragment = 4

// genericApply is generic_redo and applyPageRedo: it puts fragments over the page and zeroes the hole between pd_lower and pd_upper, of which
// they say nothing. Data: fragments.
func genericApply(p pg.Page, d *Delta) error {
	for b := d.Data; len(b) > 0; {
		if len(b) < genericFragment {
			return fmt.Errorf("data end %d bytes into a fragment's header", len(b))
		}
		off, n := int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))
		b = b[genericFragment:]
		if n > len(b) || off+n > pg.BlockSize {
			return fmt.Errorf("a fragment of %d bytes at offset %d, in %d bytes of data", n, off, len(b))
		}
		copy(p[off:], b[:n])
		b = b[n:]
	}
	if !p.Valid() {
		return fmt.Errorf("%w: lower %d, upper %d, special %d", page.ErrHeader, p.Lower(), p.Upper(), p.Special())
	}
	clear(p[p.Lower():p.Upper()])
	return nil
}

// genericMask is generic_mask. Hint bits stay: an extension has to log them.
func genericMask(p pg.Page, _ pg.PageKey) {
	maskLSNAndChecksum(p)
	maskUnusedSpace(p)
}
