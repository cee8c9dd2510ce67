package redo

import (
	"encoding/binary"
	"fmt"

	"everpage/wal"
	"everpage/wal/pg"
)

// bodyReader reads a record's main data field by field, little-endian and without alignment. What is read beyond the end is zero and makes
// it short, so that a decoder asks once, at its end. Slices that it returns are the record's own.
type bodyReader struct {
	b     []byte
	short bool
}

func (r *bodyReader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.short, r.b = true, nil
		return nil
	}
	s := r.b[:n:n]
	r.b = r.b[n:]
	return s
}

func (r *bodyReader) u8() uint8 {
	if s := r.bytes(1); s != nil {
		return s[0]
	}
	return 0
}

func (r *bodyReader) u16() uint16 {
	if s := r.bytes(2); s != nil {
		return binary.LittleEndian.Uint16(s)
	}
	return 0
}

func (r *bodyReader) u32() uint32 {
	if s := r.bytes(4); s != nil {
		return binary.LittleEndian.Uint32(s)
	}
	return 0
}

func (r *bodyReader) u64() uint64 {
	if s := r.bytes(8); s != nil {
		return binary.LittleEndian.Uint64(s)
	}
	return 0
}

// list reads an int32 count and that many items of size bytes.
func (r *bodyReader) list(size int) []byte { return r.items(int32(r.u32()), size) }

func (r *bodyReader) items(count int32, size int) []byte {
	if count < 0 || int64(count)*int64(size) > int64(len(r.b)) {
		return r.bytes(-1)
	}
	return r.bytes(int(count) * size)
}

// cstring reads up to a zero byte and skips that.
func (r *bodyReader) cstring() []byte {
	for i, c := range r.b {
		if c == 0 {
			return r.bytes(i + 1)[:i]
		}
	}
	return r.bytes(-1)
}

// slruPage reads the number of an SLRU page: an int, from 17 on an int64.
func (r *bodyReader) slruPage(major pg.Major) uint32 {
	if major < 17 {
		return r.u32()
	}
	page := r.u64()
	if page > 0xFFFFFFFF {
		r.bytes(-1)
	}
	return uint32(page)
}

func (r *bodyReader) relFileLocator() pg.RelFileLocator {
	return pg.RelFileLocator{Spc: r.u32(), DB: r.u32(), Rel: r.u32()}
}

// malformed tells that a record's main data isn't what its type needs. The record's checksum was right, so the server that wrote it is not one
// of those that are known.
func malformed(rec *wal.Record, why string) error {
	return fmt.Errorf("%s record at %s, info %02X, %d bytes of main data: %s", rec.Rmgr, rec.Start, rec.Info, len(rec.Main), why)
}

const tooShort = "the main data is too short for its type"

// unknownType tells that a resource manager has no such record.
func unknownType(rec *wal.Record) error {
	return fmt.Errorf("%s record at %s has info %02X, which is of no type that PostgreSQL %d is known to write", rec.Rmgr, rec.Start, rec.Info, rec.Major)
}
