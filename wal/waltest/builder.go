// Package waltest crafts WAL of any major for tests: records with right lengths, CRCs and back links, on pages and segments as a server lays
// them out, and the faults that a reader must survive.
package waltest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"everpage/wal"
	"everpage/wal/pg"
)

// Options describe the WAL to craft. The zero value is PostgreSQL 15, timeline 1, 1 MB segments, starting with segment 1.
type Options struct {
	Major       pg.Major
	Timeline    pg.TimelineID
	SystemID    uint64
	SegmentSize wal.SegmentSize
	Segment     uint64 // number of the first segment
	Prev        pg.LSN // xl_prev of the first record
}

// Builder appends records to a run of WAL that starts with a segment. Its methods panic on arguments that no server could have logged: it is for tests only.
type Builder struct {
	opts Options
	base pg.LSN
	data []byte
	prev pg.LSN
}

// New starts a run of WAL.
func New(opts Options) *Builder {
	if opts.Major == 0 {
		opts.Major = 15
	}
	if opts.Timeline == 0 {
		opts.Timeline = 1
	}
	if opts.SystemID == 0 {
		opts.SystemID = 7_000_000_000_000_000_001
	}
	if opts.SegmentSize == 0 {
		opts.SegmentSize = wal.MinSegmentSize
	}
	if opts.Segment == 0 {
		opts.Segment = 1
	}
	return &Builder{opts: opts, base: opts.SegmentSize.Start(opts.Segment), prev: opts.Prev}
}

// Options are those given, with defaults filled in.
func (b *Builder) Options() Options { return b.opts }

// Base is the LSN of the first byte.
func (b *Builder) Base() pg.LSN { return b.base }

// End is the LSN behind the last byte: the end of the last record.
func (b *Builder) End() pg.LSN { return b.base + pg.LSN(len(b.data)) }

// Bytes is all WAL so far, from Base to End.
func (b *Builder) Bytes() []byte { return b.data }

// Next is where the next record will start, behind the page header if one comes before it.
func (b *Builder) Next() pg.LSN {
	end := b.End()
	switch {
	case b.opts.SegmentSize.Offset(end) == 0:
		return end + wal.LongPageHeaderSize
	case end%pg.BlockSize == 0:
		return end + wal.ShortPageHeaderSize
	}
	return end
}

// Room is the number of bytes left on the page where the next record will start.
func (b *Builder) Room() int { return int(pg.BlockSize - b.Next()%pg.BlockSize) }

// AddRecord appends a record with these parts and returns its start and end.
func (b *Builder) AddRecord(rmgr wal.Rmgr, info uint8, xid pg.TransactionID, blocks []wal.Block, main []byte) (start, end pg.LSN) {
	return b.Add(&wal.Record{Rmgr: rmgr, Info: info, XID: xid, Blocks: blocks, Main: main})
}

// Add appends a record made of rec's Rmgr, Info, XID, Origin, TopLevelXID, Blocks and Main. An XLOG_SWITCH fills its segment.
func (b *Builder) Add(rec *wal.Record) (start, end pg.LSN) {
	start = b.Next()
	b.write(Encode(b.opts.Major, b.prev, rec), 0, -1)
	b.prev = start
	if rec.Rmgr == wal.RmXLOG && rec.Op() == 0x40 {
		b.fillSegment()
	}
	return start, b.End()
}

// AddRaw appends the bytes of a whole record as they are, with its own CRC and back link.
func (b *Builder) AddRaw(raw []byte) (start, end pg.LSN) {
	start = b.Next()
	b.write(raw, 0, -1)
	b.prev = start
	return start, b.End()
}

// Filler appends a record without effect (XLOG_NOOP) that takes exactly size bytes of record, header included; at least 24, and neither 25 nor 26.
func (b *Builder) Filler(size int) (start, end pg.LSN) {
	return b.AddRecord(wal.RmXLOG, 0x20, 0, nil, FillerMain(size))
}

// FillerMain is main data that makes a record without blocks exactly size bytes long.
func FillerMain(size int) []byte {
	switch n := size - wal.RecordHeaderSize; {
	case n == 0:
		return nil
	case n >= 3 && n-2 <= 255:
		return make([]byte, n-2)
	case n-5 > 255:
		return make([]byte, n-5)
	}
	panic(fmt.Sprintf("no record of exactly %d bytes exists", size))
}

// FillPage appends fillers so that the next record starts with exactly room bytes left on its page: a multiple of 8, from 8 to 8096.
func (b *Builder) FillPage(room int) {
	if room%8 != 0 || room < 8 || room > 8096 {
		panic(fmt.Sprintf("can't leave %d bytes on a page", room))
	}
	for b.Room() != room {
		if have := b.Room(); have >= room+wal.RecordHeaderSize {
			b.Filler(have - room)
		} else {
			b.Filler(have + wal.RecordHeaderSize) // goes on to the next page
		}
	}
}

// Switch appends an XLOG_SWITCH.
func (b *Builder) Switch() (start, end pg.LSN) { return b.AddRecord(wal.RmXLOG, 0x40, 0, nil, nil) }

// Abandon writes a record as far as its first page reaches and goes on, on the next one, as a server does that crashed within it: with a page
// marked as overwriting and an XLOG_OVERWRITE_CONTRECORD. The record must be longer than the page has room.
func (b *Builder) Abandon(rec *wal.Record) (aborted, start, end pg.LSN) {
	aborted = b.Next()
	raw := Encode(b.opts.Major, b.prev, rec)
	if len(raw) <= b.Room() {
		panic("the record to abandon fits its page")
	}
	b.write(raw, 0, 1)
	var main [16]byte
	binary.LittleEndian.PutUint64(main[:], uint64(aborted))
	start = b.Next()
	b.write(Encode(b.opts.Major, b.prev, &wal.Record{Info: 0xD0, Main: main[:]}), wal.PageFirstIsOverwriteContrecord, -1)
	b.prev = start
	return aborted, start, b.End()
}

// Promote makes the pages that start from here on of another timeline, as a promotion does.
func (b *Builder) Promote(tli pg.TimelineID) { b.opts.Timeline = tli }

// Header starts the next page and writes nothing on it: a tail that is only a page header. Only at a page boundary.
func (b *Builder) Header() {
	if b.End()%pg.BlockSize != 0 {
		panic("not at a page boundary")
	}
	b.header(0, 0)
}

// write puts a record's bytes on pages. flags are for the first page if it is new; pages, if not -1, is how many it may take.
func (b *Builder) write(raw []byte, flags uint16, pages int) {
	for first := true; len(raw) > 0 || first; first = false {
		if b.End()%pg.BlockSize == 0 {
			if first {
				b.header(flags, 0)
			} else {
				if pages == 0 {
					return
				}
				b.header(wal.PageFirstIsContrecord, uint32(len(raw)))
			}
		}
		n := min(len(raw), int(pg.BlockSize-b.End()%pg.BlockSize))
		b.data = append(b.data, raw[:n]...)
		raw = raw[n:]
		pages--
	}
	for len(b.data)%8 != 0 {
		b.data = append(b.data, 0)
	}
}

func (b *Builder) header(flags uint16, remaining uint32) {
	h := wal.PageHeader{Magic: b.opts.Major.PageMagic(), Info: flags, Timeline: b.opts.Timeline, Address: b.End(), Remaining: remaining}
	if b.opts.SegmentSize.Offset(b.End()) == 0 {
		h.Info |= wal.PageLongHeader
		h.SystemID, h.SegmentSize, h.BlockSize = b.opts.SystemID, b.opts.SegmentSize, pg.BlockSize
	}
	b.data = h.Append(b.data)
}

// fillSegment writes zeros to the end of the segment: a server clears even the page headers behind a switch (CopyXLogRecordToWAL).
func (b *Builder) fillSegment() {
	if offset := b.opts.SegmentSize.Offset(b.End()); offset != 0 {
		b.data = append(b.data, make([]byte, uint32(b.opts.SegmentSize)-offset)...)
	}
}

// Source is the WAL built so far as a finished, unpadded run.
func (b *Builder) Source() *Source {
	return &Source{Base: b.base, Data: b.data, Limit: b.End()}
}

// WriteDir writes the WAL as segment files, the last one filled up with zeros, and returns their paths.
func (b *Builder) WriteDir(dir string) ([]string, error) {
	var files []string
	size := int(b.opts.SegmentSize)
	for at := 0; at < len(b.data); at += size {
		seg := wal.Segment{Timeline: b.opts.Timeline, Number: b.opts.Segment + uint64(at/size)}
		content := make([]byte, size)
		copy(content, b.data[at:])
		file := filepath.Join(dir, seg.Name(b.opts.SegmentSize))
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}
