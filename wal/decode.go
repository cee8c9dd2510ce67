package wal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/wal/pg"
)

// Offsets in a record's header (XLogRecord) and the numbers of the headers that follow it (xlogrecord.h).
const (
	offTotalLength = 0
	offXID         = 4
	offPrev        = 8
	offInfo        = 16
	offRmgr        = 17
	offCRC         = 20

	idMainShort   = 255 // XLR_BLOCK_ID_DATA_SHORT
	idMainLong    = 254 // XLR_BLOCK_ID_DATA_LONG
	idOrigin      = 253 // XLR_BLOCK_ID_ORIGIN
	idTopLevelXID = 252 // XLR_BLOCK_ID_TOPLEVEL_XID

	forkMask  = 0x0F // BKPBLOCK_FORK_MASK
	hasImage  = 0x10 // BKPBLOCK_HAS_IMAGE
	hasData   = 0x20 // BKPBLOCK_HAS_DATA
	willInit  = 0x40 // BKPBLOCK_WILL_INIT
	sameRel   = 0x80 // BKPBLOCK_SAME_REL
	imageHole = 0x01 // BKPIMAGE_HAS_HOLE, in all majors
)

// MaxRecordLength is the longest record that any server can read back (MaxAllocSize), bytes.
const MaxRecordLength = 1<<30 - 1

// RecordCRC is the CRC-32C of a whole record, as its header should bear it. raw is at least RecordHeaderSize long.
func RecordCRC(raw []byte) uint32 {
	return pg.CRC32C(pg.CRC32C(0, raw[RecordHeaderSize:]), raw[:offCRC])
}

// imageBits are the flags of bimg_info that changed between majors.
type imageBits struct {
	apply, pglz, lz4, zstd, all uint8
}

func imageBitsOf(m pg.Major) imageBits {
	if m == 14 {
		return imageBits{apply: 0x04, pglz: 0x02, all: 0x07}
	}
	return imageBits{apply: 0x02, pglz: 0x04, lz4: 0x08, zstd: 0x10, all: 0x1F}
}

// compression maps a bimg_info to the packing it names. ok is false for bits or mixtures that this major doesn't write.
func (b imageBits) compression(info uint8) (c Compression, ok bool) {
	if info&^b.all != 0 {
		return NoCompression, false
	}
	switch info & (b.pglz | b.lz4 | b.zstd) {
	case 0:
		return NoCompression, true
	case b.pglz:
		return PGLZ, true
	case b.lz4:
		return LZ4, true
	case b.zstd:
		return Zstd, true
	}
	return NoCompression, false
}

// Decode fills rec from the bytes of one whole record (raw, header first), mirroring DecodeXLogRecord. It checks every length and flag, so that
// the parts add up to the record exactly; it checks neither the CRC nor xl_prev, which the Reader does. Timeline, Start and End are
// left as they are. rec borrows raw; rec.Blocks is reused.
func Decode(rec *Record, major pg.Major, raw []byte) error {
	if len(raw) < RecordHeaderSize {
		return fmt.Errorf("record of %d bytes is shorter than its header", len(raw))
	}
	le := binary.LittleEndian
	if n := le.Uint32(raw[offTotalLength:]); uint64(n) != uint64(len(raw)) {
		return fmt.Errorf("record's length field says %d, but %d bytes are given", n, len(raw))
	}
	rec.Major = major
	rec.Raw = raw
	rec.TotalLength = uint32(len(raw))
	rec.XID = le.Uint32(raw[offXID:])
	rec.Prev = pg.LSN(le.Uint64(raw[offPrev:]))
	rec.Info = raw[offInfo]
	rec.Rmgr = Rmgr(raw[offRmgr])
	rec.CRC = le.Uint32(raw[offCRC:])
	return decodeBody(rec, imageBitsOf(major), raw[RecordHeaderSize:])
}

// layout is what a record's headers announce of its payload.
type layout struct {
	total    uint64 // bytes of all parts
	main     uint64
	room     []byte // what follows the record's header
	lastID   int
	mainSeen bool
}

// decodeBody reads the headers behind the record's own and cuts the payload to pieces: each block's image and data, then the main data.
func decodeBody(rec *Record, bits imageBits, b []byte) error {
	rec.Origin, rec.TopLevelXID, rec.Main = 0, 0, nil
	rec.Blocks = rec.Blocks[:0]
	l := layout{lastID: -1, room: b}
	// As in the server: headers end where what is left is just the payload announced, or with the main data's header.
	for uint64(len(b)) > l.total && !l.mainSeen {
		var err error
		if b[0] <= MaxBlockID {
			b, err = l.block(rec, bits, b)
		} else {
			b, err = l.other(rec, b)
		}
		if err != nil {
			return err
		}
	}
	if uint64(len(b)) != l.total {
		return fmt.Errorf("record's parts need %d bytes, but %d are left behind its headers", l.total, len(b))
	}
	for i := range rec.Blocks {
		blk := &rec.Blocks[i]
		if n := len(blk.Image.Data); blk.HasImage {
			blk.Image.Data = b[:n:n]
			b = b[n:]
		}
		if n := len(blk.Data); blk.HasData {
			blk.Data = b[:n:n]
			b = b[n:]
		}
	}
	if l.main > 0 {
		rec.Main = b
	}
	return nil
}

// block reads the block header that b starts with.
func (l *layout) block(rec *Record, bits imageBits, b []byte) (rest []byte, err error) {
	id := b[0]
	if int(id) <= l.lastID {
		return nil, fmt.Errorf("block ID %d out of order after %d", id, l.lastID)
	}
	l.lastID = int(id)
	n := len(rec.Blocks) // at most MaxBlockID, since IDs ascend
	if n < cap(rec.Blocks) {
		rec.Blocks = rec.Blocks[:n+1] // overwritten in place
	} else {
		rec.Blocks = append(rec.Blocks, Block{})
	}
	blk := &rec.Blocks[n]
	rest, dataLen, imageLen, err := decodeBlockHeader(blk, bits, b)
	if err != nil {
		return nil, fmt.Errorf("block %d: %w", id, err)
	}
	le := binary.LittleEndian
	if b[1]&sameRel == 0 {
		if len(rest) < 12 {
			return nil, errShortHeader
		}
		blk.Spc, blk.DB, blk.Rel = le.Uint32(rest), le.Uint32(rest[4:]), le.Uint32(rest[8:])
		rest = rest[12:]
	} else {
		if n == 0 {
			return nil, fmt.Errorf("block %d says same relation, but there is none before it", id)
		}
		before := &rec.Blocks[n-1] // copied in the pieces in which it was just written: another way the processor would wait
		blk.Spc, blk.DB, blk.Rel = before.Spc, before.DB, before.Rel
	}
	if len(rest) < 4 {
		return nil, errShortHeader
	}
	blk.PageKey.Block = le.Uint32(rest)
	l.total += uint64(dataLen) + uint64(imageLen)
	if l.total > uint64(len(l.room)) {
		return nil, fmt.Errorf("block %d: the record's parts need %d bytes, but it has %d", id, l.total, len(l.room))
	}
	// Only their lengths count as yet: where they lie is known when all headers are.
	if blk.HasImage {
		blk.Image.Data = l.room[:imageLen]
	}
	if blk.HasData {
		blk.Data = l.room[:dataLen]
	}
	return rest[4:], nil
}

// otherSizes are the lengths of the headers that are no block's, from idTopLevelXID on, with their IDs.
var otherSizes = [4]uint8{5, 3, 5, 2}

// other reads the header that b starts with, which is no block's.
func (l *layout) other(rec *Record, b []byte) (rest []byte, err error) {
	if b[0] < idTopLevelXID {
		return nil, fmt.Errorf("invalid block ID %d", b[0])
	}
	size := int(otherSizes[b[0]-idTopLevelXID])
	if len(b) < size {
		return nil, errShortHeader
	}
	le := binary.LittleEndian
	switch b[0] {
	case idMainShort:
		l.main, l.mainSeen = uint64(b[1]), true
	case idMainLong:
		l.main, l.mainSeen = uint64(le.Uint32(b[1:])), true
	case idOrigin:
		rec.Origin = le.Uint16(b[1:])
	case idTopLevelXID:
		rec.TopLevelXID = le.Uint32(b[1:])
	}
	l.total += l.main
	return b[size:], nil
}

var errShortHeader = errors.New("record ends inside its headers")

// decodeBlockHeader reads a block's header up to its relation, and its image's header. It returns what follows and the lengths of data and image.
func decodeBlockHeader(blk *Block, bits imageBits, b []byte) (rest []byte, dataLen, imageLen uint16, err error) {
	if len(b) < 4 {
		return nil, 0, 0, errShortHeader
	}
	le := binary.LittleEndian
	flags := b[1]
	dataLen = le.Uint16(b[2:])
	blk.ID = b[0]
	blk.Fork = pg.ForkNumber(flags & forkMask)
	blk.HasImage = flags&hasImage != 0
	blk.HasData = flags&hasData != 0
	blk.WillInit = flags&willInit != 0
	blk.Image = Image{}
	blk.Data = nil
	if blk.Fork > pg.InitFork {
		return nil, 0, 0, fmt.Errorf("fork number %d is none of PostgreSQL's", blk.Fork)
	}
	if blk.HasData != (dataLen > 0) {
		return nil, 0, 0, fmt.Errorf("data flag is %t, but data length is %d", blk.HasData, dataLen)
	}
	b = b[4:]
	if !blk.HasImage {
		return b, dataLen, 0, nil
	}
	if len(b) < 5 {
		return nil, 0, 0, errShortHeader
	}
	img := &blk.Image
	imageLen = le.Uint16(b)
	img.HoleOffset = le.Uint16(b[2:])
	img.Info = b[4]
	b = b[5:]
	c, ok := bits.compression(img.Info)
	if !ok {
		return nil, 0, 0, fmt.Errorf("image flags %02X are not of this major", img.Info)
	}
	img.Compression = c
	img.Apply = img.Info&bits.apply != 0
	hole := img.Info&imageHole != 0
	switch {
	case c == NoCompression:
		if imageLen > pg.BlockSize {
			return nil, 0, 0, fmt.Errorf("image of %d bytes is longer than a page", imageLen)
		}
		img.HoleLength = pg.BlockSize - imageLen
	case hole:
		if len(b) < 2 {
			return nil, 0, 0, errShortHeader
		}
		img.HoleLength = le.Uint16(b)
		b = b[2:]
	}
	return b, dataLen, imageLen, img.check(hole, imageLen)
}

// check holds the image's header against the rules of DecodeXLogRecord, and the hole against the page.
func (img *Image) check(hole bool, length uint16) error {
	switch {
	case hole && (img.HoleOffset == 0 || img.HoleLength == 0 || length == pg.BlockSize):
		return fmt.Errorf("image has a hole, but hole offset is %d, hole length %d, image length %d", img.HoleOffset, img.HoleLength, length)
	case !hole && (img.HoleOffset != 0 || img.HoleLength != 0):
		return fmt.Errorf("image has no hole, but hole offset is %d, hole length %d", img.HoleOffset, img.HoleLength)
	case img.Compression != NoCompression && length >= pg.BlockSize:
		return fmt.Errorf("compressed image is %d bytes long, no less than a page", length)
	case uint32(img.HoleOffset)+uint32(img.HoleLength) > pg.BlockSize:
		return fmt.Errorf("image's hole at %d, %d bytes long, leaves the page", img.HoleOffset, img.HoleLength)
	}
	return nil
}
