package wal_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

// somePage is a page with a hole of the given size and contents that compress.
func somePage(rnd *rand.Rand, hole int) pg.Page {
	p := make(pg.Page, pg.BlockSize)
	p.Init(0)
	used := pg.BlockSize - pg.PageHeaderSize - hole
	lower := pg.PageHeaderSize + min(used, 400)
	p.SetLower(uint16(lower))
	p.SetUpper(uint16(lower + hole))
	words := [][]byte{[]byte("page"), []byte("server"), {0, 0, 0}, randomBytes(rnd, 9)}
	fill := func(b []byte) {
		for len(b) > 0 {
			b = b[copy(b, words[rnd.IntN(len(words))]):]
		}
	}
	fill(p[pg.PageHeaderSize:lower])
	fill(p[lower+hole:])
	return p
}

func pack(t testing.TB, c wal.Compression, b []byte) []byte {
	switch c {
	case wal.PGLZ:
		return waltest.PackPGLZ(b)
	case wal.LZ4:
		out := make([]byte, lz4.CompressBlockBound(len(b)))
		var comp lz4.Compressor
		n, err := comp.CompressBlock(b, out)
		if err != nil || n == 0 {
			t.Fatalf("lz4: %d, %v", n, err)
		}
		return out[:n]
	case wal.Zstd:
		w, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return w.EncodeAll(b, nil)
	}
	return b
}

func TestImagesRestore(t *testing.T) {
	rnd := seeded(t)
	var scratch wal.Scratch
	dst := make([]byte, pg.BlockSize)
	for _, c := range []wal.Compression{wal.NoCompression, wal.PGLZ, wal.LZ4, wal.Zstd} {
		for _, hole := range []int{0, 1, 8, 4000, 8160, 8168} {
			t.Run(fmt.Sprintf("method %d, hole %d", c, hole), func(t *testing.T) {
				page := somePage(rnd, hole)
				img := waltest.PageImage(page, true)
				if int(img.HoleLength) != hole {
					t.Fatalf("test page has a hole of %d", img.HoleLength)
				}
				img.Compression = c
				img.Data = pack(t, c, img.Data)
				for i := range dst {
					dst[i] = 0xEE
				}
				if err := img.Restore(dst, &scratch); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(dst, page) {
					t.Fatal("restored page differs")
				}
				if n := testing.AllocsPerRun(100, func() { _ = img.Restore(dst, &scratch) }); n > 0 && !raceEnabled {
					t.Errorf("%v allocations an image", n)
				}
				// No part of it alone is taken for the whole.
				whole := img.Data
				for range 200 {
					img.Data = whole[:rnd.IntN(len(whole))]
					if err := img.Restore(dst, &scratch); err == nil {
						t.Fatalf("%d of %d bytes restore", len(img.Data), len(whole))
					}
				}
				img.Data = append(bytes.Clone(whole), 0)
				if err := img.Restore(dst, &scratch); err == nil && c != wal.Zstd {
					t.Fatal("an image with a byte too many restores")
				}
			})
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	var scratch wal.Scratch
	page := make([]byte, pg.BlockSize)
	for name, img := range map[string]wal.Image{
		"hole leaves the page":    {HoleOffset: 8000, HoleLength: 1000, Data: make([]byte, 7192)},
		"hole at 0":               {HoleOffset: 0, HoleLength: 1000, Data: make([]byte, 7192)},
		"too few bytes":           {HoleOffset: 100, HoleLength: 1000, Data: make([]byte, 7191)},
		"too many bytes":          {HoleOffset: 100, HoleLength: 1000, Data: make([]byte, 7193)},
		"unknown compression":     {Compression: 9, Data: make([]byte, 100)},
		"pglz match before start": {Compression: wal.PGLZ, Data: []byte{1, 0x00, 1}},
		"pglz offset 0":           {Compression: wal.PGLZ, Data: []byte{2, 'a', 0x00, 0}},
		"pglz cut in a match":     {Compression: wal.PGLZ, Data: []byte{2, 'a', 0x00}},
		"pglz cut in a length":    {Compression: wal.PGLZ, Data: []byte{2, 'a', 0x0F, 1}},
		"empty":                   {Compression: wal.LZ4},
	} {
		if err := img.Restore(page, &scratch); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	whole := wal.Image{Data: make([]byte, pg.BlockSize)}
	if err := whole.Restore(page[:100], &scratch); err == nil {
		t.Error("restored to 100 bytes")
	}
}

// A zstd frame that claims or makes more than a page must not make memory for it.
func TestZstdBomb(t *testing.T) {
	bomb := pack(t, wal.Zstd, make([]byte, 64<<20))
	if len(bomb) > 8191 {
		t.Fatalf("bomb has %d bytes", len(bomb))
	}
	img := wal.Image{Compression: wal.Zstd, Data: bomb}
	var scratch wal.Scratch
	page := make([]byte, pg.BlockSize)
	_ = img.Restore(page, &scratch)
	if n := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := img.Restore(page, &scratch); err == nil {
				b.Fatal("64 MB restored to a page")
			}
		}
	}).AllocedBytesPerOp(); n > 1<<20 {
		t.Fatalf("%d bytes allocated for one bomb", n)
	}
}
