package redo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"everpage/wal"
	"everpage/wal/pg"
)

// An encoded delta is part of the store's format:
//
//	part, rmgr, info, flags   one byte each
//	xid                       4 bytes, if flags has deltaXID
//	tags                      if flags has deltaTags: a count, then for each: ID, fork | tagImage | tagInit, block (4 bytes)
//	main                      if flags has deltaMain: its length as a uvarint, then its bytes
//	data                      the rest
//
// Numbers are little endian.
const (
	deltaHintLSN = 1 << iota
	deltaXID
	deltaTags
	deltaMain

	deltaFlags = deltaHintLSN | deltaXID | deltaTags | deltaMain
)

const (
	tagImage = 0x10
	tagInit  = 0x20
	tagSize  = 6
)

// deltas are decoded deltas in between, for the memory of their tags.
var deltas = sync.Pool{New: func() any { return new(Delta) }}

// AppendDelta appends d, encoded. Major, LSN and Key aren't part of it.
func AppendDelta(dst []byte, d *Delta) []byte {
	var flags uint8
	if d.HintLSN {
		flags |= deltaHintLSN
	}
	if d.XID != 0 {
		flags |= deltaXID
	}
	if len(d.Tags) > 0 {
		flags |= deltaTags
	}
	if len(d.Main) > 0 {
		flags |= deltaMain
	}
	dst = append(dst, d.Part, uint8(d.Rmgr), d.Info, flags)
	if flags&deltaXID != 0 {
		dst = binary.LittleEndian.AppendUint32(dst, d.XID)
	}
	if flags&deltaTags != 0 {
		dst = append(dst, uint8(len(d.Tags))) // at most wal.MaxBlockID
		for _, t := range d.Tags {
			bits := uint8(t.Fork)
			if t.HasImage {
				bits |= tagImage
			}
			if t.WillInit {
				bits |= tagInit
			}
			dst = append(dst, t.ID, bits)
			dst = binary.LittleEndian.AppendUint32(dst, t.Block)
		}
	}
	if flags&deltaMain != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(d.Main)))
		dst = append(dst, d.Main...)
	}
	return append(dst, d.Data...)
}

var errDeltaShort = errors.New("encoded delta ends early")

// DecodeDelta reads what AppendDelta wrote. Main and Data borrow b; the memory of d.Tags is used again. Major, LSN and Key become zero.
func DecodeDelta(b []byte, d *Delta) error {
	tags := d.Tags[:0]
	*d = Delta{Tags: tags}
	if len(b) < 4 {
		return errDeltaShort
	}
	flags := b[3]
	d.Part, d.Rmgr, d.Info, d.HintLSN = b[0], wal.Rmgr(b[1]), b[2], flags&deltaHintLSN != 0
	if flags&^deltaFlags != 0 {
		return fmt.Errorf("encoded delta has unknown flags %02X", flags)
	}
	b = b[4:]
	if flags&deltaXID != 0 {
		if len(b) < 4 {
			return errDeltaShort
		}
		d.XID = binary.LittleEndian.Uint32(b)
		b = b[4:]
	}
	if flags&deltaTags != 0 {
		if len(b) < 1 || len(b)-1 < tagSize*int(b[0]) {
			return errDeltaShort
		}
		n := int(b[0])
		b = b[1:]
		for ; n > 0; n-- {
			if b[1]&^(0x0F|tagImage|tagInit) != 0 {
				return fmt.Errorf("encoded delta has a tag with unknown bits %02X", b[1])
			}
			d.Tags = append(d.Tags, Tag{
				ID: b[0], Fork: pg.ForkNumber(b[1] & 0x0F), Block: binary.LittleEndian.Uint32(b[2:]),
				HasImage: b[1]&tagImage != 0, WillInit: b[1]&tagInit != 0,
			})
			b = b[tagSize:]
		}
	}
	if flags&deltaMain != 0 {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			return errDeltaShort
		}
		d.Main = b[size : size+int(n) : size+int(n)]
		b = b[size+int(n):]
	}
	if len(b) > 0 {
		d.Data = b
	}
	return nil
}
