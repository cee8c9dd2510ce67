package redo

import (
	"bytes"
	"errors"
	"fmt"

	"everpage/wal"
	"everpage/wal/pg"
)

// Outcome is what became of a consistency check.
type Outcome uint8

// The outcomes of CheckImage.
const (
	CheckNone    Outcome = iota // the block bears no image to check against, only one that replaces the page, or none
	CheckSkipped                // our page is ahead of the record
	CheckEqual                  // equal after masking; of a visibility map page: the same bits
	CheckVMBits                 // a visibility map page with other bits: see Extra and Missing
	CheckDiffers                // the pages differ, from FirstDiff on
)

// Check is the result of CheckImage.
type Check struct {
	Outcome   Outcome
	FirstDiff int // offset of the first byte that differs after masking; CheckDiffers only
	// Extra and Missing are the heap blocks with bits that only we have, and that only the primary has; they borrow the scratch.
	//
	// A primary clears bits before it logs the change that clears them, so under concurrency a block can be Extra until that record
	// comes: the image was taken in between. Each Extra must be explained by a later record that clears these bits before any sets them
	// again; one that stays is a wrong page. Missing bits are safe: a vacuum sets them again.
	Extra, Missing []VMBits
}

// VMBits are bits of one heap block in the visibility map.
type VMBits struct {
	Heap pg.BlockNumber
	Bits uint8 // 1 all-visible, 2 all-frozen
}

// CheckScratch is what CheckImage needs besides its arguments. It is not safe for concurrent use.
type CheckScratch struct {
	Ours, Image    [pg.BlockSize]byte // the pages as they were compared, masked; valid until the next check
	unpack         wal.Scratch
	extra, missing []VMBits
}

// CheckImage holds our page, as it is after the whole record, against the primary's own that the record bears under
// wal_consistency_checking (verifyBackupPageConsistency). Only images that aren't applied are compared; they never repair a page.
// Images show a page before the record's LSN was set, so the LSN is masked.
//
// Pages of the visibility map, which PostgreSQL masks whole, are compared bit by bit.
func CheckImage(rec *wal.Record, blk *wal.Block, ours pg.Page, s *CheckScratch) (Check, error) {
	if !blk.HasImage || blk.Image.Apply {
		return Check{}, nil
	}
	if len(ours) != pg.BlockSize {
		return Check{}, fmt.Errorf("check of a page of %d bytes, want %d", len(ours), pg.BlockSize)
	}
	if ours.LSN() > rec.End {
		return Check{Outcome: CheckSkipped}, nil
	}
	image := pg.Page(s.Image[:])
	if err := blk.Image.Restore(image, &s.unpack); err != nil {
		return Check{}, recordError(rec, fmt.Errorf("check image of block %d: %w", blk.ID, err))
	}
	if blk.Fork == pg.VMFork {
		return s.checkVM(blk.Block, ours, image), nil
	}
	copy(s.Ours[:], ours)
	for _, p := range []pg.Page{s.Ours[:], image} {
		if err := Mask(rec.Rmgr, p, blk.PageKey); err != nil {
			return Check{}, recordError(rec, err)
		}
	}
	if bytes.Equal(s.Ours[:], s.Image[:]) {
		return Check{Outcome: CheckEqual}, nil
	}
	at := 0
	for s.Ours[at] == s.Image[at] {
		at++
	}
	return Check{Outcome: CheckDiffers, FirstDiff: at}, nil
}

// CompareVM compares the bits of two pages of the visibility map. The outcome is CheckEqual or CheckVMBits.
func CompareVM(block pg.BlockNumber, ours, theirs pg.Page, s *CheckScratch) Check {
	return s.checkVM(block, ours, theirs)
}

func (s *CheckScratch) checkVM(block pg.BlockNumber, ours, image pg.Page) Check {
	s.extra, s.missing = s.extra[:0], s.missing[:0]
	copy(s.Ours[:], ours)
	for at := pg.PageHeaderSize; at < pg.BlockSize; at++ {
		if ours[at] == image[at] {
			continue
		}
		heap := block*vmBlocksPerPage + pg.BlockNumber(at-pg.PageHeaderSize)*vmBlocksPerByte
		for i := range pg.BlockNumber(vmBlocksPerByte) {
			our, primary := ours[at]>>(2*i)&vmBits, image[at]>>(2*i)&vmBits
			if bits := our &^ primary; bits != 0 {
				s.extra = append(s.extra, VMBits{heap + i, bits})
			}
			if bits := primary &^ our; bits != 0 {
				s.missing = append(s.missing, VMBits{heap + i, bits})
			}
		}
	}
	if len(s.extra)+len(s.missing) == 0 {
		return Check{Outcome: CheckEqual}
	}
	return Check{Outcome: CheckVMBits, Extra: s.extra, Missing: s.missing}
}

// errNoMask tells that a resource manager's pages can't be compared.
var errNoMask = errors.New("this resource manager masks no pages")

// Mask clears what may differ between a primary's page and redo's without either being wrong: hint bits, unused space and their like
// (rm_mask of the resource manager that owns the page). A manager without a mask is an error.
func Mask(rmgr wal.Rmgr, page pg.Page, key pg.PageKey) error {
	m := managerOf(rmgr)
	if m == nil || m.mask == nil {
		return fmt.Errorf("%s: %w", rmgr, errNoMask)
	}
	m.mask(page, key)
	return nil
}
