package wal

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"everpage/wal/pg"
)

// Scratch is what unpacking images needs besides their bytes, to be reused from one to the next. It is not safe for concurrent use.
type Scratch struct {
	raw  [pg.BlockSize]byte
	zstd *zstd.Decoder // made with the first zstd image
}

// Restore unpacks the image to dst, which is one page, and fills its hole with zeros (RestoreBlockImage). It does not touch pd_lsn. On error dst's
// contents are undefined.
func (img *Image) Restore(dst []byte, s *Scratch) error {
	if len(dst) != pg.BlockSize {
		return fmt.Errorf("an image unpacks to %d bytes, not %d", pg.BlockSize, len(dst))
	}
	if err := img.check(img.HoleLength > 0, uint16(min(len(img.Data), 0xFFFF))); err != nil {
		return err
	}
	packed := pg.BlockSize - int(img.HoleLength) // length without the hole
	raw := img.Data
	if img.Compression != NoCompression {
		raw = s.raw[:packed]
		if img.HoleLength == 0 {
			raw = dst
		}
		if err := s.unpack(img.Compression, raw, img.Data); err != nil {
			return err
		}
	}
	if len(raw) != packed {
		return fmt.Errorf("image has %d bytes, but a page without its hole of %d has %d", len(raw), img.HoleLength, packed)
	}
	if img.HoleLength == 0 {
		copy(dst, raw)
		return nil
	}
	hole := int(img.HoleOffset)
	copy(dst, raw[:hole])
	clear(dst[hole : hole+int(img.HoleLength)])
	copy(dst[hole+int(img.HoleLength):], raw[hole:])
	return nil
}

// unpack decompresses src, which must fill dst exactly.
func (s *Scratch) unpack(c Compression, dst, src []byte) error {
	switch c {
	case PGLZ:
		return unpackPGLZ(dst, src)
	case LZ4:
		n, err := lz4.UncompressBlock(src, dst)
		if err != nil {
			return fmt.Errorf("unpacking an lz4 image: %w", err)
		}
		if n != len(dst) {
			return fmt.Errorf("lz4 image unpacks to %d bytes, want %d", n, len(dst))
		}
		return nil
	case Zstd:
		if s.zstd == nil {
			d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true))
			if err != nil {
				return fmt.Errorf("making a zstd decoder: %w", err)
			}
			s.zstd = d
		}
		out, err := s.zstd.DecodeAll(src, dst[:0:len(dst)])
		if err != nil {
			return fmt.Errorf("unpacking a zstd image: %w", err)
		}
		if len(out) != len(dst) {
			return fmt.Errorf("zstd image unpacks to %d bytes, want %d", len(out), len(dst))
		}
		return nil
	}
	return fmt.Errorf("unknown image compression %d", c)
}

var errPGLZ = errors.New("pglz data is corrupt")

// unpackPGLZ decompresses a pglz stream that must fill dst exactly and end with it (pglz_decompress with check_complete). A control byte
// says of the next eight items which are literals and which are matches: 4 bits of length less 3 and 12 of offset, and where the
// length is at its most, 18, a byte to add to it.
func unpackPGLZ(dst, src []byte) error {
	d, s := 0, 0
	for s < len(src) && d < len(dst) {
		control := src[s]
		s++
		for bit := 0; bit < 8 && s < len(src) && d < len(dst); bit++ {
			if control&(1<<bit) == 0 {
				dst[d] = src[s]
				d++
				s++
				continue
			}
			if s+2 > len(src) {
				return errPGLZ
			}
			length := int(src[s]&0x0F) + 3
			offset := int(src[s]&0xF0)<<4 | int(src[s+1])
			s += 2
			if length == 18 {
				if s >= len(src) {
					return errPGLZ
				}
				length += int(src[s])
				s++
			}
			if offset == 0 || offset > d {
				return errPGLZ
			}
			end := min(d+length, len(dst))
			if offset >= end-d {
				d += copy(dst[d:end], dst[d-offset:])
				continue
			}
			// The match overlaps what it makes: each copy doubles the distance that the next may span.
			for from := d - offset; d < end; {
				d += copy(dst[d:end], dst[from:d])
			}
		}
	}
	if d != len(dst) || s != len(src) {
		return errPGLZ
	}
	return nil
}
