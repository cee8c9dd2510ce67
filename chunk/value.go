package chunk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/bits"

	"everpage/wal/pg"
)

// A value is kind · rmgr · info · content · CRC-32C of all before, started from a hash of the key. The checksum binds the bytes to their key and LSN, so that a version
// that turns up under another key is as corrupt as one with a flipped bit.
const (
	valueHead = 3
	valueTail = 4
	valueOver = valueHead + valueTail
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errChecksum = errors.New("checksum mismatch")
var errShape = errors.New("malformed content")

// seal writes the checksum of v, whose last four bytes are free, under the key.
func seal(key, v []byte) {
	n := len(v) - 4
	binary.LittleEndian.PutUint32(v[n:], pg.CRC32C(keySum(key), v[:n]))
}

// keySum is what the CRC of a value starts from: a hash of its key, cheaper than a CRC of so few bytes.
func keySum(key []byte) uint32 {
	h := uint64(0x9E3779B97F4A7C15)
	for len(key) >= 8 {
		hi, lo := bits.Mul64(h^binary.LittleEndian.Uint64(key), 0xD6E8FEB86659FD93)
		h = hi ^ lo ^ h<<29 ^ h>>35
		key = key[8:]
	}
	for _, b := range key {
		h = (h ^ uint64(b)) * 0xA0761D6478BD642F
		h ^= h >> 32
	}
	return uint32(h ^ h>>32)
}

// sealed tells whether v is what seal made for key.
func sealed(key, v []byte) bool {
	n := len(v) - 4
	return n >= valueHead && binary.LittleEndian.Uint32(v[n:]) == pg.CRC32C(keySum(key), v[:n])
}

// body is a sealed value's content.
func body(v []byte) []byte { return v[valueHead : len(v)-4] }

func originOf(v []byte) Origin { return Origin{Rmgr: v[1], Info: v[2]} }

// Images are stored without the free space between pd_lower and pd_upper where that is all zero: content is the hole's offset and length
// (two uint16) and the bytes outside it.
const imageHead = 4

var zeros [pg.BlockSize]byte

// imageHole finds the zero bytes that needn't be stored.
func imageHole(page pg.Page) (off, n int) {
	lo, up := int(page.Lower()), int(page.Upper())
	if up == 0 && lo == 0 {
		if page.IsZero() {
			return 0, pg.BlockSize
		}
		return 0, 0
	}
	if lo < pg.PageHeaderSize || lo >= up || up > pg.BlockSize {
		return 0, 0
	}
	if !bytes.Equal(page[lo:up], zeros[:up-lo]) {
		return 0, 0
	}
	return lo, up - lo
}

func putImage(dst []byte, page pg.Page, off, n int) {
	binary.LittleEndian.PutUint16(dst, uint16(off))
	binary.LittleEndian.PutUint16(dst[2:], uint16(n))
	copy(dst[imageHead:], page[:off])
	copy(dst[imageHead+off:], page[off+n:])
}

// getImage makes the page from an image's content.
func getImage(dst pg.Page, b []byte) error {
	if len(b) < imageHead {
		return errShape
	}
	off, n := int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))
	if off+n > pg.BlockSize || len(b) != imageHead+pg.BlockSize-n {
		return errShape
	}
	b = b[imageHead:]
	copy(dst[:off], b)
	clear(dst[off : off+n])
	copy(dst[off+n:], b[off:])
	return nil
}

// Operations of a size entry; its value's kind. The numbers are part of the store's format.
const (
	sizeGrow     = 1 // also a fork's first appearance
	sizeCreate   = 2
	sizeTruncate = 3
	sizeDrop     = 4
	sizeCopy     = 5 // a database copy: the fork is what source was just before this LSN
	sizeAbsent   = 6 // something referred to the absent fork
)

// sizeEntry is one version of a fork's size.
//
// Shrinks (truncate, drop, copy) form a linked list: each entry knows the latest shrink at or before it, a shrink the one before itself. A version
// of block b at or below the newest shrink that left at most b blocks is cut off for good, whatever the fork grows to later.
type sizeEntry struct {
	lsn    pg.LSN
	op     uint8
	exists bool
	blocks uint32
	left   uint32 // shrinks: versions of blocks from here on are cut off
	link   pg.LSN // the latest shrink before this entry; 0 if none
	source pg.RelFileLocator
}

const sizeBody = 1 + 4 + 4 + 8 + 12

func (e *sizeEntry) shrinks() bool {
	return e.op == sizeTruncate || e.op == sizeDrop || e.op == sizeCopy
}

// lastShrink is the latest shrink at or before the entry.
func (e *sizeEntry) lastShrink() pg.LSN {
	if e.shrinks() {
		return e.lsn
	}
	return e.link
}

func (e *sizeEntry) put(b []byte) {
	b[0] = 0
	if e.exists {
		b[0] = 1
	}
	binary.LittleEndian.PutUint32(b[1:], e.blocks)
	binary.LittleEndian.PutUint32(b[5:], e.left)
	binary.LittleEndian.PutUint64(b[9:], uint64(e.link))
	binary.LittleEndian.PutUint32(b[17:], e.source.Spc)
	binary.LittleEndian.PutUint32(b[21:], e.source.DB)
	binary.LittleEndian.PutUint32(b[25:], e.source.Rel)
}

func getSize(lsn pg.LSN, v []byte) (e sizeEntry, err error) {
	b := body(v)
	if len(b) != sizeBody || v[0] < sizeGrow || v[0] > sizeAbsent || b[0] > 1 {
		return e, errShape
	}
	return sizeEntry{
		lsn:    lsn,
		op:     v[0],
		exists: b[0] == 1,
		blocks: binary.LittleEndian.Uint32(b[1:]),
		left:   binary.LittleEndian.Uint32(b[5:]),
		link:   pg.LSN(binary.LittleEndian.Uint64(b[9:])),
		source: pg.RelFileLocator{Spc: binary.LittleEndian.Uint32(b[17:]), DB: binary.LittleEndian.Uint32(b[21:]), Rel: binary.LittleEndian.Uint32(b[25:])},
	}, nil
}
