package archive

import (
	"bufio"
	"io"
	"runtime"
	"testing"

	"everpage/wal/pg"
)

// pattern is WAL of any length.
type pattern struct{}

func (pattern) at(lsn pg.LSN) byte { return byte(lsn>>3) ^ byte(lsn>>13)*7 }

func (p pattern) ReadWAL(b []byte, at pg.LSN) (int, error) {
	for i := range b {
		b[i] = p.at(at + pg.LSN(i))
	}
	return len(b), nil
}

// expect holds what is written against the pattern.
type expect struct {
	t  *testing.T
	at pg.LSN
}

func (e *expect) Write(b []byte) (int, error) {
	for _, c := range b {
		if want := (pattern{}).at(e.at); c != want {
			e.t.Fatalf("at %s there is %x, want %x", e.at, c, want)
		}
		e.at++
	}
	return len(b), nil
}

// TestSegmentsOfAnySizeTakeLittleMemory archives and reads back one large segment.
func TestSegmentsOfAnySizeTakeLittleMemory(t *testing.T) {
	id := ID{SystemID: 7, SegmentSize: 64 << 20}
	start := id.SegmentSize.Start(3)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f, err := newScratch(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, h, err := compress(f, id, 1, pattern{}, start, start+pg.LSN(id.SegmentSize))
	if err != nil {
		t.Fatal(err)
	}
	if size > int64(id.SegmentSize)/4 || h.length != uint64(id.SegmentSize) {
		t.Errorf("%d bytes, head %+v", size, h)
	}
	o := object{name: id.segmentName(1, 3), timeline: 1, number: 3, size: size}
	e := &expect{t, start}
	if err := decompress(e, id, o, bufio.NewReader(io.NewSectionReader(f, 0, size))); err != nil || e.at != id.SegmentSize.Start(4) {
		t.Fatalf("up to %s: %v", e.at, err)
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 32 {
		t.Errorf("%d MiB were allocated on the way", n)
	}
}
