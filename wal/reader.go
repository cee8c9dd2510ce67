package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"everpage/wal/pg"
)

// Source hands out the bytes of one line of history.
type Source interface {
	// ReadWAL fills p with the WAL that starts at LSN at. It may fill less than p, but at least one byte where it returns no error.
	// ErrMore: these bytes are not written yet, ask again later. *EndError: there are none. Any other error is a failure to read,
	// which the Reader passes on; the call may be repeated.
	ReadWAL(p []byte, at pg.LSN) (n int, err error)
}

// Follower is a Source that can look past invalid bytes.
type Follower interface {
	// WALFollows finds the first page behind LSN after that bears a valid header of its own address, which tells corruption from the end.
	WALFollows(after pg.LSN) (at pg.LSN, found bool, err error)
}

// ReaderOptions say what a Reader holds WAL against. The zero value of every field but SegmentSize means that there is nothing known.
type ReaderOptions struct {
	SegmentSize SegmentSize // must be given
	Major       pg.Major    // 0: what the first page says
	SystemID    uint64      // 0: what the first segment says
	History     *History    // each page's timeline must be the one this history has there. nil: timelines must not descend

	// End is an LSN up to which WAL is known to exist: whatever is missing or invalid before it is an error. Records that end behind it are
	// not returned. 0: the first invalid byte is the end, unless the Source is a Follower and valid pages follow.
	End pg.LSN
	// Growing says that the Source is being written to and holds WAL only: ErrMore ends it for now, anything invalid is an error.
	Growing bool

	BufferSize int // bytes asked from the Source at once, 0: 256 KiB
}

const (
	defaultReadBuffer = 256 << 10
	minReadBuffer     = 2 * pg.BlockSize
	keepAssembly      = 4 << 20 // a larger buffer, grown for one giant record, is given back
)

// Reader decodes records one after another. It keeps one window of WAL and, for records that cross pages, one assembly buffer that grows
// only as their bytes arrive. It is not safe for concurrent use.
type Reader struct {
	src   Source
	opts  ReaderOptions
	magic uint16 // of every page, 0 until known

	window []byte // backing of the window
	base   pg.LSN // of window[0]
	filled int    // valid bytes in window

	next   pg.LSN // where the next record starts, or the start of the page whose header comes before it
	prev   pg.LSN // start of the last record, 0 if unknown
	find   pg.LSN // not 0: the first record that starts at or behind it is looked for
	sought bool   // next is a record boundary, as it always is without find
	rescan bool   // find goes through the whole segment

	page       pg.LSN // the page whose header was checked last
	pageHeader PageHeader
	pageKnown  bool

	overwritten pg.LSN // start of a record whose rest never came, until XLOG_OVERWRITE_CONTRECORD confirms it

	// A record that crosses pages, as far as gathered.
	assembly    []byte
	assembling  bool
	start       pg.LSN // of the record being gathered
	startTLI    pg.TimelineID
	total       uint32
	nextPage    pg.LSN // holds its next part, or the last one
	gatheredEnd pg.LSN // its end, once all is gathered
	headerKnown bool

	rec    Record
	blocks [MaxBlockID + 1]Block
	err    error // final
}

// NewReader makes a reader of src. Seek or Find must come before Next.
func NewReader(src Source, opts ReaderOptions) (*Reader, error) {
	if !opts.SegmentSize.Valid() {
		return nil, fmt.Errorf("WAL segment size %d is not a power of 2 from 1 MB to 1 GB", opts.SegmentSize)
	}
	if opts.BufferSize == 0 {
		opts.BufferSize = defaultReadBuffer
	}
	opts.BufferSize = max(opts.BufferSize, minReadBuffer)
	r := &Reader{src: src, opts: opts, window: make([]byte, opts.BufferSize)}
	if opts.Major != 0 && opts.Major.PageMagic() == 0 {
		return nil, fmt.Errorf("PostgreSQL %d is not supported: want %d to %d", opts.Major, pg.MajorFirst, pg.MajorLast)
	}
	r.magic = opts.Major.PageMagic()
	r.err = errors.New("WAL reader was not positioned: call Seek or Find first")
	return r, nil
}

// Seek positions the reader at a record boundary (XLogBeginRead): the start of a record, or the end of the one before.
func (r *Reader) Seek(at pg.LSN) { r.position(at, 0) }

// Find positions the reader anywhere: Next then returns the first record that starts at or behind at (XLogFindNextRecord).
func (r *Reader) Find(at pg.LSN) { r.position(at, at) }

func (r *Reader) position(at, find pg.LSN) {
	r.err = nil
	r.next, r.find, r.prev = at, find, 0
	r.sought, r.rescan = find == 0, false
	r.filled, r.base = 0, at
	r.pageKnown = false
	r.overwritten = 0
	r.assembling = false
	if at == 0 {
		r.err = errors.New("WAL can't be read from LSN 0/0, which is invalid")
	}
	if find == 0 && at%8 != 0 {
		r.err = fmt.Errorf("WAL can't be read from %s: records start at multiples of 8", at)
	}
}

// Position is where the next record starts: the End of the last one returned. All records that end at or before it were returned.
func (r *Reader) Position() pg.LSN { return r.next }

// Received is the end of the bytes taken from the Source so far. After ErrMore, every record that ends at or before it was returned.
func (r *Reader) Received() pg.LSN { return max(r.base+pg.LSN(r.filled), r.next) }

// Major is the server's major, 0 before the first page was read.
func (r *Reader) Major() pg.Major { return r.opts.Major }

// SystemID is the cluster's system identifier, 0 before a segment's first page was read.
func (r *Reader) SystemID() uint64 { return r.opts.SystemID }

// Next returns the next record, which is valid until the next call. ErrMore: it is not complete yet, call again when the Source has grown. *EndError
// and *CorruptError are final; so is any other error of the Source, except that Next may be called again after it.
func (r *Reader) Next() (*Record, error) {
	if r.err != nil {
		return nil, r.err
	}
	for {
		rec, err := r.read()
		if err != nil && r.rescanSegment(err) {
			continue
		}
		if err != nil {
			return nil, r.judge(err)
		}
		if rec == nil || rec.Start < r.find {
			continue
		}
		r.find = 0
		if r.opts.End != 0 && rec.End > r.opts.End {
			r.err = &EndError{LSN: rec.Start, Reason: fmt.Sprintf("the next record ends at %s, behind the end asked for, %s", rec.End, r.opts.End)}
			return nil, r.err
		}
		return rec, nil
	}
}

// rescanSegment starts a search anew from the start of the segment, where the page that it began with holds no record: it may lie in the zeros behind
// an XLOG_SWITCH, which only a reader that has passed the switch knows.
func (r *Reader) rescanSegment(err error) bool {
	var bad *invalidError
	start := r.opts.SegmentSize.Floor(r.find)
	if r.find == 0 || r.rescan || r.prev != 0 || r.assembling || start == 0 || !errors.As(err, &bad) {
		return false
	}
	r.position(start, r.find)
	r.rescan = true
	return true
}

// judge decides whether what stopped the reader is the end of WAL, a gap or a passing condition.
func (r *Reader) judge(err error) error {
	at := r.next
	if r.assembling {
		at = r.start
	}
	var bad *invalidError
	var end *EndError
	switch {
	case errors.As(err, &bad):
		if r.opts.Growing || at < r.opts.End {
			r.err = &CorruptError{LSN: bad.at, Reason: bad.reason}
			return r.err
		}
		end = &EndError{LSN: at, Reason: bad.reason}
	case errors.As(err, &end):
		if end.LSN < r.opts.End {
			r.err = &CorruptError{LSN: end.LSN, Reason: fmt.Sprintf("WAL is missing before %s: %s", r.opts.End, end.Reason)}
			return r.err
		}
		end = &EndError{LSN: at, Reason: end.Reason}
	default:
		return err // ErrMore or a failure to read: the same call can be repeated
	}
	f, ok := r.src.(Follower)
	if !ok || r.opts.End != 0 {
		r.err = end
		return end
	}
	behind := end.LSN
	if r.assembling {
		behind = max(behind, r.nextPage) // pages of the unfinished record prove nothing
	}
	valid, found, ferr := f.WALFollows(behind)
	switch {
	case ferr != nil:
		return fmt.Errorf("looking for WAL behind %s: %w", at, ferr)
	case found:
		r.err = &CorruptError{LSN: at, Reason: fmt.Sprintf("%s, though valid WAL follows at %s", end.Reason, valid)}
	default:
		r.err = end
	}
	return r.err
}

// read decodes one record. It returns nil without error where it must be called again from a new position.
func (r *Reader) read() (*Record, error) {
	if !r.sought {
		return nil, r.seekBoundary()
	}
	if r.assembling {
		return r.assemble()
	}
	if cap(r.assembly) > keepAssembly {
		r.assembly = nil
	}
	pos := r.next
	if r.opts.End != 0 && pos >= r.opts.End {
		return nil, &EndError{LSN: pos, Reason: "the end asked for is reached"}
	}
	page := pos &^ (pg.BlockSize - 1)
	if err := r.enterPage(page); err != nil {
		return nil, err
	}
	first := page + pg.LSN(r.pageHeader.Size())
	if pos == page {
		pos = first
	}
	if r.opts.End != 0 && pos >= r.opts.End {
		return nil, &EndError{LSN: pos, Reason: "the end asked for is reached"}
	}
	if pos < first {
		return nil, invalid(pos, "this is inside the page's header, where no record starts")
	}
	if pos == first && r.pageHeader.Info&PageFirstIsContrecord != 0 {
		return nil, invalid(pos, "the page goes on with an earlier record, but a record should start here")
	}
	return r.readAt(pos, page)
}

// readAt reads the record at pos, whose page was entered.
func (r *Reader) readAt(pos, page pg.LSN) (*Record, error) {
	room := uint32(page + pg.BlockSize - pos)
	whole := room >= RecordHeaderSize
	b, err := r.buffered(pos, int(room)), error(nil)
	if b == nil {
		if b, err = r.bytes(pos, int(min(room, RecordHeaderSize))); err != nil {
			return nil, err
		}
	}
	total := binary.LittleEndian.Uint32(b[offTotalLength:])
	if whole {
		err = r.checkHeader(pos, b)
	} else {
		err = checkLength(pos, total)
	}
	if err != nil {
		return nil, err
	}
	if total > room {
		b, err = r.bytes(pos, int(room))
		if err != nil {
			return nil, err
		}
		r.assembly = append(r.assembly[:0], b...)
		r.assembling = true
		r.start, r.startTLI = pos, r.pageHeader.Timeline
		r.total = total
		r.nextPage = page + pg.BlockSize
		r.headerKnown = whole
		return r.assemble()
	}
	aligned := pg.MaxAlign(total) // within the page, whose length and pos are multiples of 8
	if uint32(len(b)) < aligned {
		if b, err = r.bytes(pos, int(aligned)); err != nil {
			return nil, err
		}
	}
	return r.finish(pos, pos+pg.LSN(aligned), r.pageHeader.Timeline, b[:total:total])
}

// assemble goes on gathering a record that crosses pages, one page at a time, so that it can stop after any of them.
func (r *Reader) assemble() (*Record, error) {
	for {
		if uint32(len(r.assembly)) == r.total {
			return r.finish(r.start, r.gatheredEnd, r.startTLI, r.assembly[:r.total:r.total])
		}
		if err := r.enterPage(r.nextPage); err != nil {
			return nil, err
		}
		h := &r.pageHeader
		if h.Info&PageFirstIsOverwriteContrecord != 0 {
			// The server crashed within the record and went on here without it.
			r.overwritten = r.start
			r.assembling = false
			r.next = r.nextPage
			return nil, nil
		}
		if h.Info&PageFirstIsContrecord == 0 {
			return nil, invalid(r.nextPage, "the page does not go on with the record that starts at %s", r.start)
		}
		missing := uint64(r.total) - uint64(len(r.assembly))
		if h.Remaining == 0 || uint64(h.Remaining) != missing {
			return nil, invalid(r.nextPage, "the page says that %d bytes of the record at %s are left, but %d are", h.Remaining, r.start, missing)
		}
		take := min(h.Remaining, uint32(pg.BlockSize-h.Size()))
		from := r.nextPage + pg.LSN(h.Size())
		b, err := r.bytes(from, int(pg.MaxAlign(take)))
		if err != nil {
			return nil, err
		}
		r.assembly = append(r.assembly, b[:take]...)
		if !r.headerKnown {
			// At least one page more was read, which holds more than the rest of a header.
			if err := r.checkHeader(r.start, r.assembly); err != nil {
				return nil, err
			}
			r.headerKnown = true
		}
		if take == h.Remaining {
			r.gatheredEnd = from + pg.LSN(pg.MaxAlign(take))
			continue
		}
		r.nextPage += pg.BlockSize
	}
}

// finish checks and decodes a record that is all there, and moves on behind it.
func (r *Reader) finish(start, end pg.LSN, tli pg.TimelineID, raw []byte) (*Record, error) {
	if crc := RecordCRC(raw); crc != binary.LittleEndian.Uint32(raw[offCRC:]) {
		return nil, invalid(start, "the record's CRC is %08X, but its bytes give %08X", binary.LittleEndian.Uint32(raw[offCRC:]), crc)
	}
	rec := &r.rec
	rec.Blocks = r.blocks[:0]
	if err := Decode(rec, r.opts.Major, raw); err != nil {
		return nil, invalid(start, "%v", err)
	}
	rec.Timeline, rec.Start, rec.End = tli, start, end
	isXLOG := rec.Rmgr == RmXLOG
	if r.overwritten != 0 || isXLOG && rec.Op() == opOverwriteContrecord && r.prev != 0 {
		if err := checkOverwrite(rec, r.overwritten); err != nil {
			return nil, err
		}
	}
	if isXLOG && rec.Op() == opSwitch {
		rec.End = r.opts.SegmentSize.Floor(end-1) + pg.LSN(r.opts.SegmentSize)
		if err := r.awaitSwitch(end, rec.End); err != nil { // its zeros are part of it
			return nil, err
		}
	}
	r.overwritten = 0
	r.assembling = false
	r.prev = start
	r.next = rec.End
	return rec, nil
}

// Infos of the XLOG records that the format itself knows (pg_control.h).
const (
	opSwitch              = 0x40 // XLOG_SWITCH
	opOverwriteContrecord = 0xD0 // XLOG_OVERWRITE_CONTRECORD
)

// checkOverwrite holds the first record behind an aborted one against it (VerifyOverwriteContrecord).
func checkOverwrite(rec *Record, aborted pg.LSN) error {
	if rec.Rmgr != RmXLOG || rec.Op() != opOverwriteContrecord || len(rec.Main) < 8 {
		return invalid(rec.Start, "the record at %s was abandoned, but what follows is not XLOG_OVERWRITE_CONTRECORD", aborted)
	}
	if at := pg.LSN(binary.LittleEndian.Uint64(rec.Main)); at != aborted {
		return invalid(rec.Start, "XLOG_OVERWRITE_CONTRECORD abandons the record at %s, but the unfinished one is at %s", at, aborted)
	}
	return nil
}

// awaitSwitch makes sure that the Source has the segment to its end, where a switch record ends.
func (r *Reader) awaitSwitch(end, segmentEnd pg.LSN) error {
	if end == segmentEnd {
		return nil
	}
	var last [1]byte
	_, err := r.src.ReadWAL(last[:], segmentEnd-1)
	return err
}

func checkLength(pos pg.LSN, total uint32) error {
	switch {
	case total == 0:
		return invalid(pos, "no record: its length is 0")
	case total < RecordHeaderSize:
		return invalid(pos, "record length %d is less than a record header", total)
	case total > MaxRecordLength:
		return invalid(pos, "record length %d is more than the longest possible, %d", total, MaxRecordLength)
	}
	return nil
}

// checkHeader mirrors ValidXLogRecordHeader.
func (r *Reader) checkHeader(pos pg.LSN, b []byte) error {
	if err := checkLength(pos, binary.LittleEndian.Uint32(b[offTotalLength:])); err != nil {
		return err
	}
	rm := Rmgr(b[offRmgr])
	if rm > RmLogicalMessage && (rm < FirstCustomRmgr || r.opts.Major < 15) {
		return invalid(pos, "resource manager %d does not exist in PostgreSQL %d", rm, r.opts.Major)
	}
	prev := pg.LSN(binary.LittleEndian.Uint64(b[offPrev:]))
	if r.prev == 0 && prev >= pos {
		return invalid(pos, "the record says that the one before starts at %s, behind it", prev)
	}
	if r.prev != 0 && prev != r.prev {
		return invalid(pos, "the record says that the one before starts at %s, but that is at %s", prev, r.prev)
	}
	return nil
}

// buffered returns n bytes of WAL at LSN at as bytes does, nil if the window doesn't have them.
func (r *Reader) buffered(at pg.LSN, n int) []byte {
	if off := at - r.base; at >= r.base && off < pg.LSN(r.filled) && n <= r.filled-int(off) {
		return r.window[off : int(off)+n]
	}
	return nil
}

// bytes returns n bytes of WAL at LSN at, borrowed until the next call. at never moves back, n is at most a page.
func (r *Reader) bytes(at pg.LSN, n int) ([]byte, error) {
	if at >= r.base {
		if off := uint64(at - r.base); off+uint64(n) <= uint64(r.filled) {
			return r.window[off : int(off)+n : int(off)+n], nil
		}
	}
	if err := r.fill(at, n); err != nil {
		return nil, err
	}
	return r.window[:n:n], nil
}

// fill moves the window to at and reads until it holds n bytes.
func (r *Reader) fill(at pg.LSN, n int) error {
	if at < r.base || at >= r.base+pg.LSN(r.filled) {
		r.filled = 0
	} else if at > r.base {
		r.filled = copy(r.window, r.window[at-r.base:r.filled])
	}
	r.base = at
	for r.filled < n {
		m, err := r.src.ReadWAL(r.window[r.filled:], r.base+pg.LSN(r.filled))
		if err != nil {
			return err
		}
		if m <= 0 || m > len(r.window)-r.filled {
			return fmt.Errorf("reading WAL at %s: %w", r.base+pg.LSN(r.filled), io.ErrNoProgress)
		}
		r.filled += m
	}
	return nil
}
