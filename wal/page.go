package wal

import (
	"encoding/binary"
	"fmt"

	"everpage/wal/pg"
)

// Lengths and flags of a WAL page's header (XLogPageHeaderData, XLogLongPageHeaderData).
const (
	ShortPageHeaderSize = 24 // SizeOfXLogShortPHD
	LongPageHeaderSize  = 40 // SizeOfXLogLongPHD

	PageFirstIsContrecord          = 0x0001 // XLP_FIRST_IS_CONTRECORD: the page starts with the rest of a record
	PageLongHeader                 = 0x0002 // XLP_LONG_HEADER: first page of a segment
	PageBackupRemovable            = 0x0004 // XLP_BKP_REMOVABLE
	PageFirstIsOverwriteContrecord = 0x0008 // XLP_FIRST_IS_OVERWRITE_CONTRECORD: the record before was never completed

	pageAllFlags = 0x000F
)

// PageHeader is the header of one WAL page. The last three fields are of long headers only.
type PageHeader struct {
	Magic     uint16
	Info      uint16
	Timeline  pg.TimelineID
	Address   pg.LSN
	Remaining uint32 // xlp_rem_len: bytes still to come of the record that started on an earlier page

	SystemID    uint64
	SegmentSize SegmentSize
	BlockSize   uint32
}

// Long tells whether the header is a segment's first.
func (h *PageHeader) Long() bool { return h.Info&PageLongHeader != 0 }

// Size is the header's length in bytes.
func (h *PageHeader) Size() int {
	if h.Long() {
		return LongPageHeaderSize
	}
	return ShortPageHeaderSize
}

// ParsePageHeader reads a page's header without judging it. b holds at least 24 bytes, 40 if the header is long.
func ParsePageHeader(b []byte) (PageHeader, error) {
	if len(b) < ShortPageHeaderSize {
		return PageHeader{}, fmt.Errorf("%d bytes are too few for a WAL page header", len(b))
	}
	h := parseShort(b)
	if h.Long() {
		if len(b) < LongPageHeaderSize {
			return PageHeader{}, fmt.Errorf("%d bytes are too few for a long WAL page header", len(b))
		}
		h.parseLong(b)
	}
	return h, nil
}

func parseShort(b []byte) PageHeader {
	le := binary.LittleEndian
	_ = b[ShortPageHeaderSize-1]
	return PageHeader{
		Magic:     le.Uint16(b),
		Info:      le.Uint16(b[2:]),
		Timeline:  le.Uint32(b[4:]),
		Address:   pg.LSN(le.Uint64(b[8:])),
		Remaining: le.Uint32(b[16:]),
	}
}

func (h *PageHeader) parseLong(b []byte) {
	le := binary.LittleEndian
	_ = b[LongPageHeaderSize-1]
	h.SystemID = le.Uint64(b[24:])
	h.SegmentSize = SegmentSize(le.Uint32(b[32:]))
	h.BlockSize = le.Uint32(b[36:])
}

// Append writes the header as a server of its magic does.
func (h *PageHeader) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, h.Magic)
	b = le.AppendUint16(b, h.Info)
	b = le.AppendUint32(b, h.Timeline)
	b = le.AppendUint64(b, uint64(h.Address))
	b = le.AppendUint32(b, h.Remaining)
	b = le.AppendUint32(b, 0)
	if h.Long() {
		b = le.AppendUint64(b, h.SystemID)
		b = le.AppendUint32(b, uint32(h.SegmentSize))
		b = le.AppendUint32(b, h.BlockSize)
	}
	return b
}
