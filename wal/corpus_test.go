package wal_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"everpage/deploy/workload"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

// A real corpus. Those of 15 are the same that wal/waldump is held against pg_waldump with.
type corpus struct {
	major    int
	which    workload.Which
	settings map[string]string
	initdb   []string
	packed   wal.Compression // how its images are
	options  workload.Options
}

var (
	few        = workload.Options{Seed: 1}
	unpacked   = corpus{15, workload.Mixed, nil, nil, wal.NoCompression, few}
	small      = corpus{15, workload.TPCB, map[string]string{"wal_consistency_checking": ""}, nil, wal.NoCompression, workload.Options{Seed: 1, Transactions: 2000}}
	withZstd   = corpus{15, workload.TPCB, map[string]string{"wal_compression": "zstd", "wal_consistency_checking": ""}, []string{"--wal-segsize=1"}, wal.Zstd, few}
	withLZ4    = corpus{15, workload.Concurrent, map[string]string{"wal_compression": "lz4", "wal_level": "logical"}, nil, wal.LZ4, few}
	withPGLZ14 = corpus{14, workload.TPCB, map[string]string{"wal_compression": "on", "wal_consistency_checking": ""}, nil, wal.PGLZ, few}
	withPGLZ18 = corpus{18, workload.TPCB, map[string]string{"wal_compression": "pglz", "wal_consistency_checking": ""}, nil, wal.PGLZ, few}
)

func (c corpus) load(t testing.TB) (*waltest.Source, wal.SegmentSize) {
	t.Helper()
	f, err := workload.Cached(context.Background(), c.major, c.settings, c.which, c.options, c.initdb...)
	if err != nil {
		t.Fatal(err)
	}
	return inMemory(t, f.WAL)
}

// inMemory loads a directory of segments of one timeline.
func inMemory(t testing.TB, dir string) (*waltest.Source, wal.SegmentSize) {
	t.Helper()
	size, err := wal.DetectSegmentSize(dir)
	if err != nil {
		t.Fatal(err)
	}
	segments, _, err := wal.ListDir(dir, size)
	if err != nil {
		t.Fatal(err)
	}
	src := &waltest.Source{Base: size.Start(segments[0].Number)}
	for _, g := range segments {
		b, err := os.ReadFile(filepath.Join(dir, g.Name(size)))
		if err != nil {
			t.Fatal(err)
		}
		src.Data = append(src.Data, b...)
	}
	src.Limit = src.Base + pg.LSN(len(src.Data))
	return src, size
}

func TestRealImages(t *testing.T) {
	for _, c := range []corpus{unpacked, withZstd, withLZ4, withPGLZ14, withPGLZ18} {
		t.Run(fmt.Sprintf("%d %s packed %d", c.major, c.which, c.packed), func(t *testing.T) {
			src, size := c.load(t)
			r, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: size})
			if err != nil {
				t.Fatal(err)
			}
			r.Find(src.Base)
			var scratch wal.Scratch
			page := make(pg.Page, pg.BlockSize)
			count := map[wal.Compression]int{}
			for {
				rec, err := r.Next()
				if wal.IsEnd(err) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				for i := range rec.Blocks {
					b := &rec.Blocks[i]
					if !b.HasImage {
						continue
					}
					for j := range page {
						page[j] = 0xA5
					}
					if err := b.Image.Restore(page, &scratch); err != nil {
						t.Fatalf("record at %s, %s: %v", rec.Start, b.PageKey, err)
					}
					if !page.Valid() || page.LSN() > rec.End {
						t.Fatalf("record at %s: the image of %s is no page, or from the future: LSN %s", rec.Start, b.PageKey, page.LSN())
					}
					count[b.Image.Compression]++
				}
			}
			t.Logf("images: %v", count)
			if count[c.packed] < 100 {
				t.Fatalf("only %d images are packed as asked", count[c.packed])
			}
		})
	}
}

func TestDecodingAllocatesNothing(t *testing.T) {
	src, size := withZstd.load(t)
	r, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: size})
	if err != nil {
		t.Fatal(err)
	}
	r.Find(src.Base)
	for range 1000 { // the assembly buffer grows to what is needed
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(5000, func() {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations a record", n)
	}
}

// cpuSeconds is the processor time used so far: what a core does, also when others use it too.
func cpuSeconds(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func benchmarkReader(b *testing.B, c corpus) {
	src, size := c.load(b)
	r, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: size})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	records, bytes, start := 0, int64(0), cpuSeconds(b)
	for b.Loop() {
		r.Find(src.Base)
		for {
			rec, err := r.Next()
			if wal.IsEnd(err) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			records++
			_ = rec
		}
		bytes += int64(r.Position() - src.Base)
	}
	b.SetBytes(bytes / int64(b.N))
	b.ReportMetric(float64(bytes)/(cpuSeconds(b)-start)/1e6, "MB/cpu-s")
	b.ReportMetric(float64(records)/b.Elapsed().Seconds()/1e6, "Mrecords/s")
	b.ReportMetric(float64(bytes)/float64(records), "B/record")
}

// Decoding with all checks, from memory: small records, and records with a check image for every page.
func BenchmarkReaderSmallRecords(b *testing.B) { benchmarkReader(b, small) }
func BenchmarkReaderImages(b *testing.B)       { benchmarkReader(b, unpacked) }

func BenchmarkRestore(b *testing.B) {
	for _, c := range []corpus{unpacked, withPGLZ14, withLZ4, withZstd} {
		b.Run([]string{"unpacked", "pglz", "lz4", "zstd"}[c.packed], func(b *testing.B) {
			src, size := c.load(b)
			r, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: size})
			if err != nil {
				b.Fatal(err)
			}
			var images []wal.Image
			for r.Find(src.Base); len(images) < 1000; {
				rec, err := r.Next()
				if err != nil {
					break
				}
				for i := range rec.Blocks {
					if img := rec.Blocks[i].Image; rec.Blocks[i].HasImage && img.Compression == c.packed {
						img.Data = append([]byte(nil), img.Data...)
						images = append(images, img)
					}
				}
			}
			var scratch wal.Scratch
			page := make([]byte, pg.BlockSize)
			b.SetBytes(pg.BlockSize)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := images[i%len(images)].Restore(page, &scratch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
