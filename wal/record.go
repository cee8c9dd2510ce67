// Package wal reads PostgreSQL's write-ahead log: segments, pages, records, block references and images, of majors 14 to 18.
package wal

import "everpage/wal/pg"

// Limits and lengths of the record format (xlogrecord.h).
const (
	RecordHeaderSize = 24 // SizeOfXLogRecord
	MaxBlockID       = 32 // XLR_MAX_BLOCK_ID
)

// Record is one decoded WAL record. All slices borrow the reader's memory and are valid until its next call; what is kept must be copied.
type Record struct {
	Major    pg.Major
	Timeline pg.TimelineID // of the page on which the record starts

	Start pg.LSN // first byte of its header (ReadRecPtr)
	End   pg.LSN // MAXALIGN of its last byte + 1 (EndRecPtr), the LSN of every version it makes; an XLOG_SWITCH ends with its segment
	Prev  pg.LSN // xl_prev: Start of the record before

	Rmgr        Rmgr
	Info        uint8 // xl_info, both nibbles
	XID         pg.TransactionID
	TotalLength uint32 // xl_tot_len, bytes
	CRC         uint32

	Origin      uint16           // replication origin, 0 if none
	TopLevelXID pg.TransactionID // 0 if none; wal_level=logical only

	Blocks []Block // in the order of the record; IDs ascend
	Main   []byte  // main data
	Raw    []byte  // the whole record, header first and page headers left out: TotalLength bytes
}

// Op is the resource manager's own nibble of Info (xl_info & ~XLR_INFO_MASK).
func (r *Record) Op() uint8 { return r.Info & 0xF0 }

// Block finds the reference with this ID, nil if the record has none.
func (r *Record) Block(id uint8) *Block {
	for i := range r.Blocks {
		if r.Blocks[i].ID == id {
			return &r.Blocks[i]
		}
	}
	return nil
}

// Block is one block reference of a record.
type Block struct {
	ID       uint8
	WillInit bool // BKPBLOCK_WILL_INIT: redo starts from a zero page
	HasImage bool
	HasData  bool // BKPBLOCK_HAS_DATA
	pg.PageKey
	Image Image  // where HasImage
	Data  []byte // the block's own data; to be ignored where the image is applied
}

// Compression of a block image.
type Compression uint8

// How an image's bytes are packed. Bits differ between 14 and 15; the decoder maps both to these.
const (
	NoCompression Compression = iota
	PGLZ
	LZ4
	Zstd
)

// Image is a full-page image, still packed.
type Image struct {
	Apply       bool // BKPIMAGE_APPLY: it replaces the page. Without it the image is a consistency check's and never enters the store
	Compression Compression
	HoleOffset  uint16
	HoleLength  uint16 // bytes left out at HoleOffset, all zero
	Info        uint8  // bimg_info as the record bears it
	Data        []byte
}
