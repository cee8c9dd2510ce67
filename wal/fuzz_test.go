package wal_test

import (
	"errors"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

// checkDecoded holds a decoded record against its own bytes: parts lie in it, in order, and none is counted twice.
func checkDecoded(t *testing.T, rec *wal.Record, raw []byte) {
	total := len(rec.Main)
	last := -1
	for i := range rec.Blocks {
		b := &rec.Blocks[i]
		if int(b.ID) <= last || b.ID > wal.MaxBlockID {
			t.Fatalf("block IDs out of order: %d after %d", b.ID, last)
		}
		last = int(b.ID)
		total += len(b.Data) + len(b.Image.Data)
		if b.HasImage && int(b.Image.HoleOffset)+int(b.Image.HoleLength) > pg.BlockSize {
			t.Fatal("a hole leaves its page")
		}
	}
	if total > len(raw)-wal.RecordHeaderSize {
		t.Fatalf("parts of %d bytes in a record of %d", total, len(raw))
	}
}

func FuzzBlockHeaders(f *testing.F) {
	for _, r := range realRecords(f) {
		f.Add(byte(r.major-pg.MajorFirst), r.raw[wal.RecordHeaderSize:])
	}
	f.Fuzz(func(t *testing.T, major byte, rest []byte) {
		m := pg.MajorFirst + pg.Major(major%5)
		raw := body(rest)
		var rec wal.Record
		if err := wal.Decode(&rec, m, raw); err != nil {
			return
		}
		checkDecoded(t, &rec, raw)
	})
}

// FuzzReader reads WAL of which some bytes are replaced, growing in steps.
func FuzzReader(f *testing.F) {
	b := waltest.New(waltest.Options{})
	for _, r := range realRecords(f) {
		if r.major != 15 {
			continue
		}
		var rec wal.Record
		if err := wal.Decode(&rec, r.major, r.raw); err != nil {
			f.Fatal(err)
		}
		b.Add(&rec)
	}
	b.FillPage(16)
	b.Filler(20_000)
	b.FillPage(24)
	b.Abandon(&wal.Record{Main: make([]byte, 100)})
	f.Add(uint16(0), []byte{}, uint16(1000), true)
	f.Add(uint16(8192), []byte{1, 2, 3}, uint16(8), false)
	f.Add(uint16(40), []byte{255, 255, 255, 63}, uint16(9999), false)
	f.Fuzz(func(t *testing.T, at uint16, change []byte, step uint16, growing bool) {
		src := b.Source()
		src.Data = append([]byte(nil), src.Data...)
		copy(src.Data[min(int(at), len(src.Data)):], change)
		src.Growing = growing
		limit := src.Limit
		if growing {
			src.Limit = src.Base
		}
		r, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: wal.MinSegmentSize, Growing: growing, BufferSize: 1})
		if err != nil {
			t.Fatal(err)
		}
		r.Find(b.Base() + pg.LSN(step%64))
		position := pg.LSN(0)
		for records := 0; ; {
			rec, err := r.Next()
			if errors.Is(err, wal.ErrMore) {
				if src.Limit >= limit {
					return
				}
				src.Limit = min(limit, src.Limit+pg.LSN(step)+8)
				continue
			}
			if err != nil {
				var corrupt *wal.CorruptError
				if !wal.IsEnd(err) && !errors.As(err, &corrupt) {
					t.Fatalf("untyped error %v", err)
				}
				return
			}
			if rec.Start < position || rec.End <= rec.Start || rec.End-rec.Start < pg.LSN(rec.TotalLength) {
				t.Fatalf("record %s..%s of %d bytes after %s", rec.Start, rec.End, rec.TotalLength, position)
			}
			position = rec.End
			checkDecoded(t, rec, rec.Raw)
			if records++; records > len(src.Data)/wal.RecordHeaderSize {
				t.Fatal("more records than fit")
			}
		}
	})
}

func FuzzImage(f *testing.F) {
	for _, r := range realRecords(f) {
		var rec wal.Record
		if err := wal.Decode(&rec, r.major, r.raw); err != nil {
			f.Fatal(err)
		}
		for i := range rec.Blocks {
			if img := rec.Blocks[i].Image; rec.Blocks[i].HasImage {
				f.Add(byte(img.Compression), img.HoleOffset, img.HoleLength, img.Data)
			}
		}
	}
	var scratch wal.Scratch
	page := make([]byte, pg.BlockSize)
	f.Fuzz(func(t *testing.T, method byte, offset, length uint16, data []byte) {
		img := wal.Image{Compression: wal.Compression(method % 5), HoleOffset: offset, HoleLength: length, Data: data}
		if err := img.Restore(page, &scratch); err != nil {
			return
		}
		for i := range int(length) {
			if page[int(offset)+i] != 0 {
				t.Fatal("the hole is not zero")
			}
		}
	})
}

// FuzzPGLZ packs and unpacks, and unpacks what was never packed.
func FuzzPGLZ(f *testing.F) {
	f.Add([]byte("a page of a page of a page of a page"))
	f.Add(make([]byte, 5000))
	var scratch wal.Scratch
	page := make([]byte, pg.BlockSize)
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = (&wal.Image{Compression: wal.PGLZ, Data: b}).Restore(page, &scratch)
		if len(b) == 0 {
			return
		}
		whole := make([]byte, 0, pg.BlockSize+len(b))
		for len(whole) < pg.BlockSize {
			whole = append(whole, b...)
		}
		whole = whole[:pg.BlockSize]
		packed := waltest.PackPGLZ(whole)
		if len(packed) >= pg.BlockSize {
			return
		}
		if err := (&wal.Image{Compression: wal.PGLZ, Data: packed}).Restore(page, &scratch); err != nil {
			t.Fatal(err)
		}
		if string(page) != string(whole) {
			t.Fatal("unpacked page differs")
		}
	})
}
