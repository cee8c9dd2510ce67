package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

// expected is what a test knows of a record it wrote.
type expected struct {
	start, end, prev pg.LSN
	rec              wal.Record
}

// writer keeps what it wrote beside the WAL.
type writer struct {
	*waltest.Builder
	want []expected
	prev pg.LSN
}

func newWriter(opts waltest.Options) *writer { return &writer{Builder: waltest.New(opts)} }

func (w *writer) add(rec wal.Record) (start, end pg.LSN) {
	start, end = w.Add(&rec)
	w.want = append(w.want, expected{start, end, w.prev, rec})
	w.prev = start
	return start, end
}

func (w *writer) filler(size int) (start, end pg.LSN) {
	return w.add(wal.Record{Info: 0x20, Main: waltest.FillerMain(size)})
}

// fillPage is Builder.FillPage, remembered.
func (w *writer) fillPage(room int) {
	for w.Room() != room {
		if have := w.Room(); have >= room+24 {
			w.filler(have - room)
		} else {
			w.filler(have + 24)
		}
	}
}

func newReader(t testing.TB, src wal.Source, opts wal.ReaderOptions, from pg.LSN) *wal.Reader {
	t.Helper()
	if opts.SegmentSize == 0 {
		opts.SegmentSize = wal.MinSegmentSize
	}
	r, err := wal.NewReader(src, opts)
	if err != nil {
		t.Fatal(err)
	}
	r.Seek(from)
	return r
}

// check holds one decoded record against what was written.
func check(got *wal.Record, want *expected) error {
	w := &want.rec
	switch {
	case got.Start != want.start || got.End != want.end || got.Prev != want.prev:
		return fmt.Errorf("record %s..%s prev %s, want %s..%s prev %s", got.Start, got.End, got.Prev, want.start, want.end, want.prev)
	case got.Rmgr != w.Rmgr || got.Info != w.Info || got.XID != w.XID || got.Origin != w.Origin || got.TopLevelXID != w.TopLevelXID:
		return fmt.Errorf("record at %s: header differs: %+v, want %+v", want.start, got, w)
	case !bytes.Equal(got.Main, w.Main):
		return fmt.Errorf("record at %s: main data differ: %d bytes, want %d", want.start, len(got.Main), len(w.Main))
	case len(got.Blocks) != len(w.Blocks):
		return fmt.Errorf("record at %s: %d blocks, want %d", want.start, len(got.Blocks), len(w.Blocks))
	case int(got.TotalLength) != len(got.Raw):
		return fmt.Errorf("record at %s: length %d, raw %d", want.start, got.TotalLength, len(got.Raw))
	}
	for i := range w.Blocks {
		g, b := &got.Blocks[i], &w.Blocks[i]
		if g.ID != b.ID || g.WillInit != b.WillInit || g.PageKey != b.PageKey || g.HasImage != b.HasImage || g.HasData != (len(b.Data) > 0) || !bytes.Equal(g.Data, b.Data) {
			return fmt.Errorf("record at %s: block %d is %+v, want %+v", want.start, i, g, b)
		}
		gi, bi := g.Image, b.Image
		if gi.Apply != bi.Apply || gi.Compression != bi.Compression || gi.HoleOffset != bi.HoleOffset || gi.HoleLength != bi.HoleLength || !bytes.Equal(gi.Data, bi.Data) {
			return fmt.Errorf("record at %s: block %d has another image", want.start, i)
		}
	}
	return nil
}

// readAll reads to the end of a finished run and holds every record against what was written.
func readAll(t testing.TB, r *wal.Reader, want []expected) {
	t.Helper()
	for i := range want {
		rec, err := r.Next()
		if err != nil {
			t.Fatalf("record %d of %d, at %s: %v", i, len(want), want[i].start, err)
		}
		if err := check(rec, &want[i]); err != nil {
			t.Fatal(err)
		}
		if r.Position() != want[i].end {
			t.Fatalf("reader is at %s behind a record that ends at %s", r.Position(), want[i].end)
		}
	}
	rec, err := r.Next()
	if rec != nil || !wal.IsEnd(err) {
		t.Fatalf("after the last record: %v, %v; want the end", rec, err)
	}
	if _, again := r.Next(); again != err {
		t.Fatalf("the end is not final: %v", again)
	}
}

func rel(n uint32) pg.RelFork {
	return pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: n}}
}

func randomBytes(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// randomRecord makes any record that a server of this major could log, as far as the format goes.
func randomRecord(rnd *rand.Rand, major pg.Major) wal.Record {
	rec := wal.Record{Rmgr: wal.Rmgr(1 + rnd.IntN(21)), Info: byte(rnd.IntN(16)) << 4, XID: rnd.Uint32()}
	if major >= 15 && rnd.IntN(10) == 0 {
		rec.Rmgr = wal.FirstCustomRmgr + wal.Rmgr(rnd.IntN(128))
	}
	if rnd.IntN(8) == 0 {
		rec.Origin = uint16(1 + rnd.IntN(65535))
	}
	if rnd.IntN(8) == 0 {
		rec.TopLevelXID = 1 + rnd.Uint32N(1<<31)
	}
	switch rnd.IntN(4) {
	case 0:
		rec.Main = randomBytes(rnd, 1+rnd.IntN(255))
	case 1:
		rec.Main = randomBytes(rnd, 256+rnd.IntN(30000))
	case 2:
		rec.Main = randomBytes(rnd, 1+rnd.IntN(20))
	}
	id := 0
	for range rnd.IntN(5) {
		id += rnd.IntN(3)
		if id > wal.MaxBlockID {
			break
		}
		blk := wal.Block{ID: uint8(id), WillInit: rnd.IntN(3) == 0, PageKey: pg.PageKey{RelFork: rel(uint32(rnd.IntN(2))), Block: rnd.Uint32()}}
		blk.Fork = pg.ForkNumber(rnd.IntN(4))
		if rnd.IntN(2) == 0 {
			blk.Data = randomBytes(rnd, 1+rnd.IntN(300))
		}
		if rnd.IntN(3) == 0 {
			blk.HasImage = true
			blk.Image = randomImage(rnd, major)
		}
		rec.Blocks = append(rec.Blocks, blk)
		id++
	}
	return rec
}

func randomImage(rnd *rand.Rand, major pg.Major) wal.Image {
	img := wal.Image{Apply: rnd.IntN(2) == 0}
	if rnd.IntN(3) > 0 {
		img.HoleOffset = uint16(1 + rnd.IntN(4000))
		img.HoleLength = uint16(1 + rnd.IntN(4000))
	}
	length := pg.BlockSize - int(img.HoleLength)
	methods := []wal.Compression{wal.NoCompression, wal.PGLZ, wal.LZ4, wal.Zstd}
	if major == 14 {
		methods = methods[:2]
	}
	if img.Compression = methods[rnd.IntN(len(methods))]; img.Compression != wal.NoCompression {
		length = 1 + rnd.IntN(length-1)
	}
	img.Data = randomBytes(rnd, length)
	return img
}

func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestRandomRecordsOfEveryMajor(t *testing.T) {
	for _, major := range pg.Majors() {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			rnd := seeded(t)
			w := newWriter(waltest.Options{Major: major})
			for len(w.Bytes()) < 3<<20 {
				w.add(randomRecord(rnd, major))
				if rnd.IntN(200) == 0 {
					w.add(wal.Record{Info: 0x40})
				}
			}
			src := w.Source()
			for _, buffer := range []int{0, 1, 100_000} {
				readAll(t, newReader(t, src, wal.ReaderOptions{Major: major, BufferSize: buffer}, w.Base()), w.want)
			}
			src.Chunk = 1000
			r := newReader(t, src, wal.ReaderOptions{}, w.Base())
			readAll(t, r, w.want)
			if r.Major() != major || r.SystemID() != w.Options().SystemID {
				t.Fatalf("reader found PostgreSQL %d, system %d", r.Major(), r.SystemID())
			}
		})
	}
}

// Every way in which a record can lie across the end of a page or segment: the header's first bytes only, the header exactly, one byte over, the end exactly.
func TestRecordsAtBoundaries(t *testing.T) {
	for _, major := range []pg.Major{14, 18} {
		for room := 8; room <= 64; room += 8 {
			for _, over := range []int{-8, -1, 0, 1, 2, 7, 8, 9, 8152, 8168, 8169, 20000} {
				size := room + over
				if size < 24 || size == 25 || size == 26 {
					continue
				}
				t.Run(fmt.Sprintf("%d/room%d/over%d", major, room, over), func(t *testing.T) {
					w := newWriter(waltest.Options{Major: major})
					w.fillPage(room)
					w.filler(size)
					w.filler(30)
					// The same at the end of the segment.
					for w.End()%wal.MinSegmentSize < wal.MinSegmentSize-3*pg.BlockSize {
						w.filler(pg.BlockSize)
					}
					for w.End()%wal.MinSegmentSize < wal.MinSegmentSize-pg.BlockSize {
						w.fillPage(room)
						if w.End()%wal.MinSegmentSize < wal.MinSegmentSize-pg.BlockSize {
							w.filler(room + 24)
						}
					}
					w.fillPage(room)
					start, _ := w.filler(size)
					w.filler(30)
					if got := wal.MinSegmentSize - start%wal.MinSegmentSize; int(got) != room {
						t.Fatalf("the record starts %d bytes before the segment's end, want %d", got, room)
					}
					readAll(t, newReader(t, w.Source(), wal.ReaderOptions{}, w.Base()), w.want)
				})
			}
		}
	}
}

func TestRecordThatEndsAtPageBoundary(t *testing.T) {
	w := newWriter(waltest.Options{})
	w.fillPage(104)
	_, end := w.filler(104)
	if end%pg.BlockSize != 0 {
		t.Fatalf("test record ends at %s, not at a page's end", end)
	}
	next, _ := w.filler(24)
	if next != end+wal.ShortPageHeaderSize {
		t.Fatalf("next record at %s", next)
	}
	readAll(t, newReader(t, w.Source(), wal.ReaderOptions{}, w.Base()), w.want)
	// Both names of the next record's place are good to start from.
	for _, at := range []pg.LSN{end, next} {
		r := newReader(t, w.Source(), wal.ReaderOptions{}, at)
		if rec, err := r.Next(); err != nil || rec.Start != next {
			t.Fatalf("from %s: %v, %v", at, rec, err)
		}
	}
	// Inside the page header no record starts.
	r := newReader(t, w.Source(), wal.ReaderOptions{End: w.End()}, end+8)
	var corrupt *wal.CorruptError
	if _, err := r.Next(); !errors.As(err, &corrupt) {
		t.Fatalf("inside a page header: %v", err)
	}
}

func TestSwitchEndsWithItsSegment(t *testing.T) {
	w := newWriter(waltest.Options{})
	w.filler(100)
	start, end := w.add(wal.Record{Info: 0x40})
	if end != w.Base()+wal.MinSegmentSize {
		t.Fatalf("switch at %s ends at %s", start, end)
	}
	after, _ := w.filler(100)
	if after != end+wal.LongPageHeaderSize {
		t.Fatalf("record behind the switch at %s", after)
	}
	// A switch that ends exactly with its segment, and one as the last record.
	for w.End()%wal.MinSegmentSize != wal.MinSegmentSize-24 {
		w.filler(min(8192, int(wal.MinSegmentSize-24-w.End()%wal.MinSegmentSize)))
		if left := wal.MinSegmentSize - w.End()%wal.MinSegmentSize; left < 48 && left != 24 {
			t.Fatalf("%d bytes left", left)
		}
	}
	_, end = w.add(wal.Record{Info: 0x40})
	if end%wal.MinSegmentSize != 0 || end-w.want[len(w.want)-1].start != 24 {
		t.Fatalf("switch ends at %s", end)
	}
	w.filler(64)
	w.add(wal.Record{Info: 0x40})
	readAll(t, newReader(t, w.Source(), wal.ReaderOptions{}, w.Base()), w.want)
	// Looking for a record among the zeros behind the switch finds the next segment's first.
	r := newReader(t, w.Source(), wal.ReaderOptions{}, w.Base())
	r.Find(start + 3*pg.BlockSize + 8)
	if rec, err := r.Next(); err != nil || rec.Start != after {
		t.Fatalf("found %v, %v; want the record at %s", rec, err, after)
	}
}

func TestAbandonedRecord(t *testing.T) {
	for _, size := range []int{100, 9000, 40000} {
		w := newWriter(waltest.Options{})
		w.filler(64)
		w.fillPage(16)
		rec := wal.Record{Rmgr: wal.RmHeap, Main: make([]byte, size)}
		prev := w.prev
		aborted, start, end := w.Abandon(&rec)
		var main [16]byte
		for i := range 8 {
			main[i] = byte(aborted >> (8 * i))
		}
		w.want = append(w.want, expected{start, end, prev, wal.Record{Info: 0xD0, Main: main[:]}})
		w.prev = start
		w.filler(64)
		readAll(t, newReader(t, w.Source(), wal.ReaderOptions{}, w.Base()), w.want)
	}
}

func TestAbandonedRecordMustBeConfirmed(t *testing.T) {
	w := newWriter(waltest.Options{})
	w.fillPage(16)
	aborted, start, _ := w.Abandon(&wal.Record{Main: make([]byte, 100)})
	at := start - w.Base()
	raw := w.Bytes()[at : at+42]
	raw[26]++ // overwritten_lsn
	waltest.Seal(raw)
	r := newReader(t, w.Source(), wal.ReaderOptions{End: w.End()}, w.Base())
	var err error
	for err == nil {
		_, err = r.Next()
	}
	var corrupt *wal.CorruptError
	if !errors.As(err, &corrupt) || corrupt.LSN != start {
		t.Fatalf("record at %s abandoned by another's name: %v", aborted, err)
	}
}

func TestFindEveryPlace(t *testing.T) {
	rnd := seeded(t)
	w := newWriter(waltest.Options{})
	for len(w.Bytes()) < 300_000 {
		w.add(randomRecord(rnd, 15))
	}
	w.filler(60_000)
	w.filler(24)
	i := 0
	for at := w.Base(); at < w.End(); at += pg.LSN(1 + rnd.IntN(97)) {
		for i < len(w.want) && w.want[i].start < at {
			i++
		}
		r := newReader(t, w.Source(), wal.ReaderOptions{}, w.Base())
		r.Find(at)
		rec, err := r.Next()
		if i == len(w.want) {
			if !wal.IsEnd(err) {
				t.Fatalf("behind the last record, at %s: %v, %v", at, rec, err)
			}
			continue
		}
		if err != nil || rec.Start != w.want[i].start {
			t.Fatalf("from %s: %v, %v; want the record at %s", at, rec, err, w.want[i].start)
		}
	}
}

// A reader fed in steps of any size returns each record as soon as all its bytes are there and not before, and reads no byte twice.
func TestGrowing(t *testing.T) {
	rnd := seeded(t)
	w := newWriter(waltest.Options{})
	for len(w.Bytes()) < 1_500_000 {
		w.add(randomRecord(rnd, 15))
		if rnd.IntN(150) == 0 {
			w.add(wal.Record{Info: 0x40})
		}
	}
	w.filler(600_000)
	w.add(wal.Record{Info: 0x40})
	for _, step := range []int{8, 24, 1000, 8192, 100_000} {
		src := w.Source()
		src.Growing, src.Limit = true, w.Base()
		r := newReader(t, src, wal.ReaderOptions{Growing: true, BufferSize: 64 << 10}, w.Base())
		i := 0
		for src.Limit < w.End() {
			src.Limit = min(w.End(), src.Limit+pg.LSN(step))
			for {
				rec, err := r.Next()
				if errors.Is(err, wal.ErrMore) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := check(rec, &w.want[i]); err != nil {
					t.Fatal(err)
				}
				i++
				if rec.End > src.Limit {
					t.Fatalf("record that ends at %s returned with only %s received", rec.End, src.Limit)
				}
			}
			if i < len(w.want) && w.want[i].end <= src.Limit {
				t.Fatalf("record that ends at %s not returned though %s is received", w.want[i].end, src.Limit)
			}
		}
		if i != len(w.want) {
			t.Fatalf("%d of %d records", i, len(w.want))
		}
		// Each segment's first header may be read once more, and one byte behind a switch.
		if extra := src.Reads - int64(len(w.Bytes())); extra > 1000 {
			t.Fatalf("step %d: %d bytes read more than once", step, extra)
		}
	}
}

func TestReadFailureCanBeRepeated(t *testing.T) {
	w := newWriter(waltest.Options{})
	for range 100 {
		w.filler(5000)
	}
	src := w.Source()
	src.Chunk = 4096
	r := newReader(t, src, wal.ReaderOptions{BufferSize: 16 << 10}, w.Base())
	failure := errors.New("disk on fire")
	for i := range w.want {
		src.Err = failure
		rec, err := r.Next()
		if err != nil {
			if !errors.Is(err, failure) {
				t.Fatal(err)
			}
			rec, err = r.Next()
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := check(rec, &w.want[i]); err != nil {
			t.Fatal(err)
		}
	}
}
