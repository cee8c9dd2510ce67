package waltest

import (
	"encoding/binary"

	"everpage/wal"
	"everpage/wal/pg"
)

// Encode makes the bytes of one record (XLogRecordAssemble) from rec's Rmgr, Info, XID, Origin, TopLevelXID, Blocks and Main, with its CRC. Of a
// block, the image is written if it has Data or HasImage is set, and data if there are any.
func Encode(major pg.Major, prev pg.LSN, rec *wal.Record) []byte {
	le := binary.LittleEndian
	b := make([]byte, wal.RecordHeaderSize, 512)
	var payload []byte
	var last *pg.RelFileLocator
	for i := range rec.Blocks {
		blk := &rec.Blocks[i]
		image := blk.HasImage || len(blk.Image.Data) > 0
		flags := uint8(blk.Fork)
		if image {
			flags |= 0x10
		}
		if len(blk.Data) > 0 {
			flags |= 0x20
		}
		if blk.WillInit {
			flags |= 0x40
		}
		same := last != nil && *last == blk.RelFileLocator
		if same {
			flags |= 0x80
		}
		b = append(b, blk.ID, flags)
		b = le.AppendUint16(b, uint16(len(blk.Data)))
		if image {
			b = appendImageHeader(b, major, &blk.Image)
			payload = append(payload, blk.Image.Data...)
		}
		if !same {
			b = le.AppendUint32(b, blk.Spc)
			b = le.AppendUint32(b, blk.DB)
			b = le.AppendUint32(b, blk.Rel)
			last = &blk.RelFileLocator
		}
		b = le.AppendUint32(b, blk.PageKey.Block)
		payload = append(payload, blk.Data...)
	}
	if rec.Origin != 0 {
		b = le.AppendUint16(append(b, 253), rec.Origin)
	}
	if rec.TopLevelXID != 0 {
		b = le.AppendUint32(append(b, 252), rec.TopLevelXID)
	}
	switch n := len(rec.Main); {
	case n > 255:
		b = le.AppendUint32(append(b, 254), uint32(n))
	case n > 0:
		b = append(b, 255, uint8(n))
	}
	b = append(append(b, payload...), rec.Main...)
	le.PutUint32(b, uint32(len(b)))
	le.PutUint32(b[4:], rec.XID)
	le.PutUint64(b[8:], uint64(prev))
	b[16], b[17] = rec.Info, uint8(rec.Rmgr)
	Seal(b)
	return b
}

// Seal writes the right CRC into a record's bytes.
func Seal(raw []byte) { binary.LittleEndian.PutUint32(raw[20:], wal.RecordCRC(raw)) }

func appendImageHeader(b []byte, major pg.Major, img *wal.Image) []byte {
	info := uint8(0)
	apply, packed := uint8(0x02), map[wal.Compression]uint8{wal.PGLZ: 0x04, wal.LZ4: 0x08, wal.Zstd: 0x10}
	if major == 14 {
		apply, packed = 0x04, map[wal.Compression]uint8{wal.PGLZ: 0x02}
	}
	if img.HoleLength > 0 {
		info |= 0x01
	}
	if img.Apply {
		info |= apply
	}
	if img.Compression != wal.NoCompression {
		bit, ok := packed[img.Compression]
		if !ok {
			panic("this major has no such image compression")
		}
		info |= bit
	}
	le := binary.LittleEndian
	b = le.AppendUint16(b, uint16(len(img.Data)))
	b = le.AppendUint16(b, img.HoleOffset)
	b = append(b, info)
	if img.Compression != wal.NoCompression && img.HoleLength > 0 {
		b = le.AppendUint16(b, img.HoleLength)
	}
	return b
}

// PageImage makes a page's full image, unpacked, that leaves out the hole between pd_lower and pd_upper where there is one.
func PageImage(page pg.Page, apply bool) wal.Image {
	lower, upper := page.Lower(), page.Upper()
	if lower < pg.PageHeaderSize || upper <= lower || upper > pg.BlockSize {
		return wal.Image{Apply: apply, Data: append([]byte(nil), page...)}
	}
	data := append(append([]byte(nil), page[:lower]...), page[upper:]...)
	return wal.Image{Apply: apply, HoleOffset: lower, HoleLength: upper - lower, Data: data}
}

// PackPGLZ compresses as pglz does, greedily and without its limits: the result may be longer than src.
func PackPGLZ(src []byte) []byte {
	var out []byte
	last := make(map[[3]byte]int)
	for at := 0; at < len(src); {
		control := len(out)
		out = append(out, 0)
		for bit := 0; bit < 8 && at < len(src); bit++ {
			length, offset := 0, 0
			if at+3 <= len(src) {
				key := [3]byte(src[at:])
				if from, ok := last[key]; ok && at-from < 4096 {
					offset = at - from
					for length < 273 && at+length < len(src) && src[from+length] == src[at+length] {
						length++
					}
				}
				last[key] = at
			}
			if length < 3 {
				out = append(out, src[at])
				at++
				continue
			}
			out[control] |= 1 << bit
			if length < 18 {
				out = append(out, uint8(offset>>4&0xF0)|uint8(length-3), uint8(offset))
			} else {
				out = append(out, uint8(offset>>4&0xF0)|0x0F, uint8(offset), uint8(length-18))
			}
			at += length
		}
	}
	return out
}
