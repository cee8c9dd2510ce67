package wal_test

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal"
	"everpage/wal/pg"
)

// Receiving real WAL as a walsender sends it, 128 KB at a time, with a sync and check of each: the processor's part of it, without a disk's.
func BenchmarkSpool(b *testing.B) {
	src, size := small.load(b)
	header, err := wal.ParsePageHeader(src.Data)
	if err != nil {
		b.Fatal(err)
	}
	r, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: size})
	if err != nil {
		b.Fatal(err)
	}
	r.Find(src.Base)
	for err == nil {
		_, err = r.Next()
	}
	if !wal.IsEnd(err) {
		b.Fatal(err)
	}
	data := src.Data[:r.Position()-src.Base]
	for _, disk := range []bool{false, true} {
		name := "memory"
		if disk {
			name = "disk"
		}
		b.Run(name, func(b *testing.B) {
			start := cpuSeconds(b)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				opts := wal.SpoolOptions{FS: vfs.NewMem(), Dir: "spool", SegmentSize: size, Major: 15, SystemID: header.SystemID, History: wal.History{Timeline: 1}}
				if disk {
					opts.FS, opts.Dir = nil, b.TempDir()
				}
				s, err := wal.OpenSpool(opts)
				if err != nil {
					b.Fatal(err)
				}
				for at := 0; at < len(data); at += 128 << 10 {
					if err := s.Append(src.Base+pg.LSN(at), data[at:min(len(data), at+128<<10)]); err != nil {
						b.Fatal(err)
					}
					if _, err := s.Sync(); err != nil {
						b.Fatal(err)
					}
				}
				if s.Durable() != r.Position() {
					b.Fatalf("durable up to %s of %s", s.Durable(), r.Position())
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(data)*b.N)/(cpuSeconds(b)-start)/1e6, "MB/cpu-s")
		})
	}
}
