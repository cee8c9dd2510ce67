package wal

import (
	"errors"

	"everpage/wal/pg"
)

// enterPage reads and checks the header of the page at LSN page, once.
func (r *Reader) enterPage(page pg.LSN) error {
	if r.pageKnown && r.page == page {
		return nil
	}
	if offset := r.opts.SegmentSize.Offset(page); offset != 0 && !r.pageKnown {
		// Entering a segment in the middle: its first page says whose it is.
		if err := r.checkSegmentStart(page - pg.LSN(offset)); err != nil {
			return err
		}
	}
	b, err := r.bytes(page, ShortPageHeaderSize)
	if err != nil {
		return err
	}
	h := parseShort(b)
	if h.Long() {
		if b, err = r.bytes(page, LongPageHeaderSize); err != nil {
			return err
		}
		h.parseLong(b)
	}
	if err := r.checkPage(page, &h); err != nil {
		return err
	}
	r.adopt(&h)
	r.page, r.pageHeader, r.pageKnown = page, h, true
	return nil
}

// checkSegmentStart checks the header of a segment that is entered behind its start, as ReadPageInternal does. A Source that doesn't hold
// the segment's start leaves nothing to check.
func (r *Reader) checkSegmentStart(start pg.LSN) error {
	if start == 0 {
		return nil // segment 0 is never written
	}
	var b [LongPageHeaderSize]byte
	for n := 0; n < len(b); {
		m, err := r.src.ReadWAL(b[n:], start+pg.LSN(n))
		if errors.Is(err, ErrMore) || IsEnd(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if m <= 0 || m > len(b)-n {
			return invalid(start, "the segment's header can't be read")
		}
		n += m
	}
	h := parseShort(b[:])
	h.parseLong(b[:])
	if err := r.checkPage(start, &h); err != nil {
		return err
	}
	r.adopt(&h)
	return nil
}

// adopt takes over what the options left open.
func (r *Reader) adopt(h *PageHeader) {
	if r.opts.Major == 0 {
		r.opts.Major, _ = pg.MajorOfMagic(h.Magic) // checkPage has seen that there is one
		r.magic = h.Magic
	}
	if h.Long() && r.opts.SystemID == 0 {
		r.opts.SystemID = h.SystemID
	}
}

// checkPage mirrors XLogReaderValidatePageHeader.
func (r *Reader) checkPage(page pg.LSN, h *PageHeader) error {
	if h.Magic == 0 && h.Address == 0 {
		return invalid(page, "the page was never written: its header is zero")
	}
	if h.Magic != r.magic {
		major, err := pg.MajorOfMagic(h.Magic)
		if err != nil {
			return invalid(page, "%v", err)
		}
		if r.magic != 0 {
			return invalid(page, "the page is of PostgreSQL %d, not %d", major, r.opts.Major)
		}
	}
	if h.Info&^pageAllFlags != 0 {
		return invalid(page, "the page header has unknown flags %04X", h.Info)
	}
	if atStart := r.opts.SegmentSize.Offset(page) == 0; h.Long() != atStart {
		if atStart {
			return invalid(page, "the segment's first page has no long header")
		}
		return invalid(page, "a page inside a segment of %d bytes has a segment's long header", r.opts.SegmentSize)
	}
	if h.Long() {
		if r.opts.SystemID != 0 && h.SystemID != r.opts.SystemID {
			return invalid(page, "the segment is of another cluster: system identifier %d, want %d", h.SystemID, r.opts.SystemID)
		}
		if h.SegmentSize != r.opts.SegmentSize {
			return invalid(page, "the segment says its size is %d, want %d", h.SegmentSize, r.opts.SegmentSize)
		}
		if h.BlockSize != pg.BlockSize {
			return invalid(page, "the segment's pages are of %d bytes; only %d are supported", h.BlockSize, pg.BlockSize)
		}
	}
	if h.Address != page {
		return invalid(page, "the page says it is at %s, as a recycled segment does", h.Address)
	}
	if r.opts.History != nil {
		if want := r.opts.History.TimelineAt(page); h.Timeline != want {
			return invalid(page, "the page is of timeline %d, want %d", h.Timeline, want)
		}
	} else if r.pageKnown && h.Timeline < r.pageHeader.Timeline {
		return invalid(page, "the page is of timeline %d, after one of timeline %d", h.Timeline, r.pageHeader.Timeline)
	}
	return nil
}

// seekBoundary finds a record's start at or before r.find: behind the continuation that its page may start with, which can span pages.
func (r *Reader) seekBoundary() error {
	page := r.next &^ (pg.BlockSize - 1) // that of find or, after a longer continuation, a later one
	if err := r.enterPage(page); err != nil {
		return err
	}
	h := &r.pageHeader
	size := pg.LSN(h.Size())
	switch rest := pg.LSN(pg.MaxAlign(uint64(h.Remaining))); {
	case h.Info&PageFirstIsContrecord == 0:
		r.next, r.sought = page, true
	case rest >= pg.BlockSize-size:
		r.next = page + pg.BlockSize
	default:
		r.next, r.sought = page+size+rest, true
	}
	return nil
}
