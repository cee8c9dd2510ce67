package wal_test

import (
	"encoding/binary"
	"strings"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

// body makes a record's bytes from what follows its header.
func body(b []byte) []byte {
	raw := append(make([]byte, wal.RecordHeaderSize), b...)
	binary.LittleEndian.PutUint32(raw, uint32(len(raw)))
	return raw
}

func TestDecodeRefuses(t *testing.T) {
	rel := []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0}
	blk := []byte{9, 0, 0, 0}
	join := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	plain := join([]byte{0, 0x00, 0, 0}, rel, blk)
	for _, c := range []struct {
		name  string
		major pg.Major
		body  []byte
		want  string // in the error; "" if it decodes
	}{
		{"nothing at all", 15, nil, ""},
		{"a block", 15, plain, ""},
		{"two blocks, same relation", 15, join(plain, []byte{1, 0x80, 0, 0}, blk), ""},
		{"same relation first", 15, join([]byte{0, 0x80, 0, 0}, blk), "none before"},
		{"IDs descend", 15, join([]byte{3, 0, 0, 0}, rel, blk, []byte{2, 0x80, 0, 0}, blk), "out of order"},
		{"ID twice", 15, join(plain, plain), "out of order"},
		{"ID 33", 15, join([]byte{33, 0, 0, 0}, rel, blk), "invalid block ID 33"},
		{"ID 251", 15, []byte{251}, "invalid block ID 251"},
		{"fork 4", 15, join([]byte{0, 4, 0, 0}, rel, blk), "fork number 4"},
		{"data flag without data", 15, join([]byte{0, 0x20, 0, 0}, rel, blk), "data flag"},
		{"data without flag", 15, join([]byte{0, 0, 1, 0}, rel, blk, []byte{7}), "data flag"},
		{"data missing", 15, join([]byte{0, 0x20, 5, 0}, rel, blk, []byte{7}), "behind its headers"},
		{"data too many", 15, join([]byte{0, 0x20, 1, 0}, rel, blk, []byte{7, 7}), "ends inside"},
		{"cut in the block's header", 15, []byte{0, 0, 0}, "ends inside"},
		{"cut in the relation", 15, join([]byte{0, 0, 0, 0}, rel[:11]), "ends inside"},
		{"cut in the block number", 15, join([]byte{0, 0, 0, 0}, rel, blk[:3]), "ends inside"},
		{"cut in the image's header", 15, []byte{0, 0x10, 0, 0, 0, 0}, "ends inside"},
		{"cut before the hole's length", 15, []byte{0, 0x10, 0, 0, 5, 0, 9, 0, 0x05, 0}, "ends inside"},
		{"short main data", 15, []byte{255, 3, 1, 2, 3}, ""},
		{"short main data too short", 15, []byte{255, 3, 1, 2}, "behind its headers"},
		{"short main data too long", 15, []byte{255, 3, 1, 2, 3, 4}, "behind its headers"},
		{"long main data", 15, []byte{254, 3, 0, 0, 0, 1, 2, 3}, ""},
		{"long main data of 4 GB", 15, []byte{254, 255, 255, 255, 255, 1, 2, 3}, "behind its headers"},
		{"cut in long main data's header", 15, []byte{254, 3, 0, 0}, "ends inside"},
		{"cut in the origin", 15, []byte{253, 1}, "ends inside"},
		{"cut in the toplevel xid", 15, []byte{252, 1, 2, 3}, "ends inside"},
		{"image with hole at 0", 15, join([]byte{0, 0x10, 0, 0, 100, 0, 0, 0, 0x01}, rel, blk, make([]byte, 100)), "has a hole"},
		{"whole image with hole flag", 15, join([]byte{0, 0x10, 0, 0, 0, 0x20, 9, 0, 0x01}, rel, blk, make([]byte, 8192)), "has a hole"},
		{"short image without hole", 15, join([]byte{0, 0x10, 0, 0, 100, 0, 0, 0, 0x00}, rel, blk, make([]byte, 100)), "no hole"},
		{"image longer than a page", 15, join([]byte{0, 0x10, 0, 0, 1, 0x20, 0, 0, 0x00}, rel, blk, make([]byte, 8193)), "longer than a page"},
		{"packed image of a page", 15, join([]byte{0, 0x10, 0, 0, 0, 0x20, 0, 0, 0x04}, rel, blk, make([]byte, 8192)), "no less than a page"},
		{"hole leaves the page", 15, join([]byte{0, 0x10, 0, 0, 10, 0, 0, 0x1F, 0x05, 0xFF, 0x10}, rel, blk, make([]byte, 10)), "leaves the page"},
		{"two ways of packing", 15, join([]byte{0, 0x10, 0, 0, 10, 0, 0, 0, 0x0C}, rel, blk, make([]byte, 10)), "not of this major"},
		{"unknown image flag", 15, join([]byte{0, 0x10, 0, 0, 10, 0, 0, 0, 0x20}, rel, blk, make([]byte, 10)), "not of this major"},
		{"lz4 in 14", 14, join([]byte{0, 0x10, 0, 0, 10, 0, 0, 0, 0x08}, rel, blk, make([]byte, 10)), "not of this major"},
		{"pglz in 14", 14, join([]byte{0, 0x10, 0, 0, 10, 0, 0, 0, 0x02}, rel, blk, make([]byte, 10)), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var rec wal.Record
			err := wal.Decode(&rec, c.major, body(c.body))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
	var rec wal.Record
	raw := body(plain)
	for n := range raw {
		if err := wal.Decode(&rec, 15, raw[:n]); err == nil {
			t.Fatalf("%d of %d bytes decode", n, len(raw))
		}
	}
}

// The bits of bimg_info changed their meaning between 14 and 15.
func TestImageFlagsOfEachMajor(t *testing.T) {
	for _, major := range pg.Majors() {
		for _, img := range []wal.Image{
			{Apply: true, Data: make([]byte, 8192)},
			{Data: make([]byte, 8192)},
			{Apply: true, Compression: wal.PGLZ, Data: make([]byte, 100)},
			{Compression: wal.PGLZ, HoleOffset: 24, HoleLength: 1000, Data: make([]byte, 100)},
		} {
			raw := waltest.Encode(major, 0, &wal.Record{Blocks: []wal.Block{{Image: img}}})
			var rec wal.Record
			if err := wal.Decode(&rec, major, raw); err != nil {
				t.Fatal(err)
			}
			got := rec.Blocks[0].Image
			if got.Apply != img.Apply || got.Compression != img.Compression || got.HoleLength != img.HoleLength || len(got.Data) != len(img.Data) {
				t.Errorf("PostgreSQL %d: %+v, want %+v", major, got, img)
			}
			wantInfo := map[bool]map[wal.Compression]uint8{
				false: {wal.NoCompression: 0, wal.PGLZ: 4}, true: {wal.NoCompression: 0, wal.PGLZ: 2},
			}[major == 14][img.Compression]
			if img.Apply {
				wantInfo |= map[bool]uint8{false: 2, true: 4}[major == 14]
			}
			if got.Info&^1 != wantInfo {
				t.Errorf("PostgreSQL %d: flags %02X, want %02X", major, got.Info, wantInfo)
			}
		}
	}
}
