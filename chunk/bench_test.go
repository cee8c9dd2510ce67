package chunk

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

func benchStore(b testing.TB, compression *block.CompressionProfile) *Store {
	s, err := Open(Options{Dir: b.TempDir(), FS: vfs.Default, Redoer: toyRedo{}, ReserveBytes: -1, testCompression: compression})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

func benchKey(i uint32) pg.PageKey {
	return pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384 + i%7}}, Block: i / 7}
}

// tuple fills a delta as a heap insert looks: ids that count, text that repeats, some noise.
func tuple(d []byte, i int, rng *rand.Rand) {
	for j := range d {
		d[j] = "                customer number "[j%32]
	}
	binary.LittleEndian.PutUint64(d, uint64(i))
	for j := 40; j < 60 && j < len(d); j++ {
		d[j] = byte(rng.Uint32())
	}
	d[0], d[1] = byte(rng.Uint32()), byte(rng.Uint32())
}

// BenchmarkIngest measures a 100-byte version from the call to the durable table, sort included. One operation is one version.
func BenchmarkIngest(b *testing.B) {
	for _, pages := range []int{1_000, 30_000, 300_000} {
		for _, c := range []*block.CompressionProfile{block.NoCompression, block.SnappyCompression, block.ZstdCompression} {
			b.Run(fmt.Sprintf("pages=%d/%s", pages, c.Name), func(b *testing.B) {
				s := benchStore(b, c)
				w, err := s.Writer(1)
				if err != nil {
					b.Fatal(err)
				}
				rng := rand.New(rand.NewPCG(1, 2))
				delta := make([]byte, 100)
				lsn := pg.LSN(1 << 30)
				b.SetBytes(100)
				b.ReportAllocs()
				for i := range b.N {
					lsn += 128
					base := BaseInit
					k := uint32(i)
					if i >= pages {
						base = BaseRequired
						k = rng.Uint32N(uint32(pages))
					}
					tuple(delta, i, rng)
					if err := w.Delta(benchKey(k), lsn, Origin{10, 0}, base, delta); err != nil {
						b.Fatal(err)
					}
					if i%10000 == 0 {
						if err := w.Commit(Progress{Start: 1 << 30, Consistent: 1 << 30, Readable: lsn, Resume: lsn}); err != nil {
							b.Fatal(err)
						}
					}
				}
				if err := w.Commit(Progress{Start: 1 << 30, Consistent: 1 << 30, Readable: lsn, Resume: lsn}); err != nil {
					b.Fatal(err)
				}
				if err := s.Flush(); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				st := s.Stats()
				b.ReportMetric(float64(st.DiskBytes)/float64(b.N), "disk-B/op")
				b.ReportMetric(float64(st.Written)/float64(b.N), "written-B/op")
				b.ReportMetric(float64(st.ReadAmp), "readamp")
				b.ReportMetric(float64(st.Images)*100/float64(b.N), "images/100")
				w.Close()
			})
		}
	}
}

// BenchmarkImages measures 8 KiB images, as an import or full-page writes bring them.
func BenchmarkImages(b *testing.B) {
	for _, c := range []*block.CompressionProfile{block.NoCompression, block.SnappyCompression, block.ZstdCompression} {
		b.Run(c.Name, func(b *testing.B) {
			s := benchStore(b, c)
			w, err := s.Writer(1)
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			rng := rand.New(rand.NewPCG(1, 2))
			page := heapPage(rng)
			b.SetBytes(pg.BlockSize)
			lsn := pg.LSN(1 << 30)
			for i := range b.N {
				if i%16 == 0 {
					page = heapPage(rng)
				}
				if err := w.Image(benchKey(uint32(i)), lsn, Origin{}, page); err != nil {
					b.Fatal(err)
				}
				if i%128 == 0 {
					if err := w.Commit(Progress{Start: lsn, Consistent: lsn, Readable: lsn, Resume: lsn}); err != nil {
						b.Fatal(err)
					}
				}
			}
			if err := s.Flush(); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric(float64(s.Stats().DiskBytes)/float64(b.N), "disk-B/op")
		})
	}
}

// heapPage is a page as pgbench fills it: 60 tuples, little free space.
func heapPage(rng *rand.Rand) pg.Page {
	p := make(pg.Page, pg.BlockSize)
	p.Init(0)
	up := pg.BlockSize
	for i := range 61 {
		up -= 128
		tuple(p[up:up+121], i, rng)
		p.SetLower(p.Lower() + 4)
		p.SetItem(uint16(i+1), pg.NewItemID(up, pg.LPNormal, 121))
	}
	p.SetUpper(uint16(up))
	return p
}

// BenchmarkPage measures warm reads.
func BenchmarkPage(b *testing.B) {
	for _, deltas := range []int{0, 10, 60} {
		b.Run(fmt.Sprintf("deltas=%d", deltas), func(b *testing.B) {
			s := benchStore(b, nil)
			w, err := s.Writer(1)
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			const pages = 2000
			rng := rand.New(rand.NewPCG(1, 2))
			lsn := pg.LSN(1 << 30)
			delta := make([]byte, 100)
			for i := range uint32(pages) {
				if err := w.Image(benchKey(i), lsn, Origin{}, heapPage(rng)); err != nil {
					b.Fatal(err)
				}
			}
			for j := range deltas {
				for i := range uint32(pages) {
					lsn += 128
					tuple(delta, j, rng)
					if err := w.Delta(benchKey(i), lsn, Origin{}, BaseRequired, delta); err != nil {
						b.Fatal(err)
					}
				}
			}
			if err := w.Commit(Progress{Start: 1 << 30, Consistent: 1 << 30, Readable: lsn, Resume: lsn}); err != nil {
				b.Fatal(err)
			}
			if err := s.Flush(); err != nil {
				b.Fatal(err)
			}
			s.cache.sets = nil
			dst := make(pg.Page, pg.BlockSize)
			ctx := context.Background()
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if err := s.Page(ctx, 1, benchKey(rng.Uint32N(pages)), lsn, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
