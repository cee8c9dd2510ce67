package wal

import (
	"fmt"
	"strings"

	"everpage/wal/pg"
)

// Bounds of wal_segment_size, bytes.
const (
	MinSegmentSize     = 1 << 20
	MaxSegmentSize     = 1 << 30
	DefaultSegmentSize = 16 << 20
)

// SegmentSize is a cluster's wal_segment_size in bytes.
type SegmentSize uint32

// Valid tells whether a server can have this segment size: a power of 2 from 1 MB to 1 GB.
func (s SegmentSize) Valid() bool {
	return s >= MinSegmentSize && s <= MaxSegmentSize && s&(s-1) == 0
}

// Number is the number of the segment that holds lsn.
func (s SegmentSize) Number(lsn pg.LSN) uint64 { return uint64(lsn) / uint64(s) }

// Start is the first LSN of a segment.
func (s SegmentSize) Start(segno uint64) pg.LSN { return pg.LSN(segno * uint64(s)) }

// Offset is lsn's byte offset in its segment.
func (s SegmentSize) Offset(lsn pg.LSN) uint32 { return uint32(uint64(lsn) % uint64(s)) }

// Floor is the start of the segment that holds lsn.
func (s SegmentSize) Floor(lsn pg.LSN) pg.LSN { return lsn - pg.LSN(s.Offset(lsn)) }

// perXlogID is the number of segments in 4 GB of WAL (XLogSegmentsPerXLogId).
func (s SegmentSize) perXlogID() uint64 { return (1 << 32) / uint64(s) }

// Segment names one WAL segment file.
type Segment struct {
	Timeline pg.TimelineID
	Number   uint64
	Partial  bool // the file's name ends with .partial: the last segment of a timeline that was left, or one still being received
}

// Name is the segment's file name (XLogFileName).
func (g Segment) Name(size SegmentSize) string {
	n := fmt.Sprintf("%08X%08X%08X", g.Timeline, g.Number/size.perXlogID(), g.Number%size.perXlogID())
	if g.Partial {
		n += ".partial"
	}
	return n
}

// ParseSegmentName reads a segment's file name, with or without .partial. Any other file name is an error.
func ParseSegmentName(name string, size SegmentSize) (Segment, error) {
	if !size.Valid() {
		return Segment{}, fmt.Errorf("WAL segment size %d is not a power of 2 from 1 MB to 1 GB", size)
	}
	base, partial := strings.CutSuffix(name, ".partial")
	if !isSegmentName(base) {
		return Segment{}, fmt.Errorf("%q is not the name of a WAL segment: want 24 hexadecimal digits", name)
	}
	low := uint64(hex8(base[16:24]))
	if low >= size.perXlogID() {
		return Segment{}, fmt.Errorf("%q is not the name of a WAL segment of %d bytes: its last part is at most %X", name, size, size.perXlogID()-1)
	}
	g := Segment{Timeline: hex8(base[:8]), Number: uint64(hex8(base[8:16]))*size.perXlogID() + low, Partial: partial}
	if g.Timeline == 0 {
		return Segment{}, fmt.Errorf("%q is not the name of a WAL segment: timeline 0", name)
	}
	return g, nil
}

// isSegmentName is IsXLogFileName: 24 upper-case hexadecimal digits.
func isSegmentName(s string) bool { return len(s) == 24 && isHex(s) }

func isHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

// hex8 reads hexadecimal digits that isHex has accepted.
func hex8(s string) uint32 {
	var v uint32
	for i := 0; i < len(s); i++ {
		d := s[i] - '0'
		if d > 9 {
			d = s[i] - 'A' + 10
		}
		v = v<<4 | uint32(d)
	}
	return v
}
