package verify_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"everpage/chunk/offline"
	"everpage/chunk/verify"
	"everpage/deploy/workload"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

// tpcb is the smallest corpus.
func tpcb(t *testing.T) *workload.Files { return corpus(t, 15, workload.TPCB) }

// copyWAL makes a directory of its own of a corpus's WAL.
func copyWAL(t *testing.T, from string) string {
	t.Helper()
	dir := t.TempDir()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			copyFile(t, filepath.Join(from, e.Name()), filepath.Join(dir, e.Name()))
		}
	}
	return dir
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}

// place is a record that lies on one page of WAL.
type place struct {
	start, end pg.LSN
	name       string
	length     int
	at         int // offset in the record of a byte of its own data, that redo uses
}

// places lists records whose pages are checked, with a byte of theirs each that a page must show.
func places(t *testing.T, files *workload.Files) []place {
	t.Helper()
	src, err := offline.Open(files.Base, files.WAL)
	if err != nil {
		t.Fatal(err)
	}
	reader, dir, err := src.Reader(src.Redo)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var out []place
	for {
		rec, err := reader.Next()
		if wal.IsEnd(err) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Start/pg.BlockSize != (rec.Start+pg.LSN(rec.TotalLength)-1)/pg.BlockSize {
			continue
		}
		insert := rec.Rmgr == wal.RmHeap && rec.Info&0x70 == 0x00 || rec.Rmgr == wal.RmBtree && rec.Info&0xF0 == 0x00
		if !insert || len(rec.Blocks) != 1 || !rec.Blocks[0].HasImage || rec.Blocks[0].Image.Apply || len(rec.Blocks[0].Data) < 8 {
			continue
		}
		// The data's last byte belongs to the new tuple's last column.
		at := bytes.LastIndex(rec.Raw, rec.Blocks[0].Data) + len(rec.Blocks[0].Data) - 1
		if rec.Rmgr == wal.RmBtree {
			at -= len(rec.Blocks[0].Data) - 1 // an index tuple begins with the heap block that it points to
		}
		out = append(out, place{start: rec.Start, end: rec.End, name: rec.Rmgr.String(), length: int(rec.TotalLength), at: at})
	}
}

// change rewrites the bytes of WAL from an LSN on, which lie in one segment.
func change(t *testing.T, dir string, at pg.LSN, n int, fn func(b []byte)) {
	t.Helper()
	const size = wal.SegmentSize(16 << 20)
	file := filepath.Join(dir, wal.Segment{Timeline: 1, Number: size.Number(at)}.Name(size))
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, int64(size.Offset(at))); err != nil {
		t.Fatal(err)
	}
	fn(b)
	if _, err := f.WriteAt(b, int64(size.Offset(at))); err != nil {
		t.Fatal(err)
	}
}

func TestFlippedBytesOfWALWithRightCRC(t *testing.T) {
	files := tpcb(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	all := places(t, files)
	dir := copyWAL(t, files.WAL)
	flipped := map[pg.LSN]place{}
	for len(flipped) < 12 {
		p := all[r.IntN(len(all))]
		if _, ok := flipped[p.end]; ok {
			continue
		}
		flipped[p.end] = p
		change(t, dir, p.start, p.length, func(b []byte) {
			b[p.at] ^= 1 << r.IntN(8)
			waltest.Seal(b)
		})
	}
	seen := map[pg.LSN]bool{}
	report, err := verify.Run(t.Context(), verify.Options{Base: files.Base, WAL: dir, Final: files.Final, Found: func(m verify.Mismatch) { seen[m.LSN] = true }})
	if err != nil {
		t.Fatal(err)
	}
	if report.OK() {
		t.Error("WAL with flipped bytes was found right")
	}
	for lsn, p := range flipped {
		if !seen[lsn] {
			t.Errorf("the flipped byte %d of the %s record at %s went unnoticed", p.at, p.name, p.start)
		}
	}
}

func TestFlippedByteOfWALWithWrongCRC(t *testing.T) {
	files := tpcb(t)
	all := places(t, files)
	p := all[len(all)/2]
	dir := copyWAL(t, files.WAL)
	change(t, dir, p.start, p.length, func(b []byte) { b[p.at] ^= 4 })
	report, err := verify.Run(t.Context(), verify.Options{Base: files.Base, WAL: dir, Final: files.Final})
	var corrupt *wal.CorruptError
	if !errors.As(err, &corrupt) || corrupt.LSN != p.start || !strings.Contains(err.Error(), p.start.String()) {
		t.Fatalf("got %v, want the record at %s named as corrupt", err, p.start)
	}
	if report.Mismatches != 0 || report.End > p.start || report.End == 0 {
		t.Errorf("the report goes up to %s with %d mismatches, want what came before %s, and none", report.End, report.Mismatches, p.start)
	}
}

// WAL that is cut off ends, and the report says where; the data directory that was stopped later doesn't fit, and the report says that.
func TestTruncatedWAL(t *testing.T) {
	files := tpcb(t)
	all := places(t, files)
	p := all[len(all)/2]
	const size = wal.SegmentSize(16 << 20)
	cut := func(t *testing.T, keep func(n uint64) bool) string {
		dir := copyWAL(t, files.WAL)
		segments, _, err := wal.ListDir(dir, size)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range segments {
			if !keep(s.Number) {
				if err := os.Remove(filepath.Join(dir, s.Name(size))); err != nil {
					t.Fatal(err)
				}
			}
		}
		return dir
	}
	file := wal.Segment{Timeline: 1, Number: size.Number(p.start)}.Name(size)
	t.Run("within a record", func(t *testing.T) {
		dir := cut(t, func(n uint64) bool { return n <= size.Number(p.start) })
		if err := os.Truncate(filepath.Join(dir, file), int64(size.Offset(p.start))+30); err != nil {
			t.Fatal(err)
		}
		report, err := verify.Run(t.Context(), verify.Options{Base: files.Base, WAL: dir})
		if err != nil {
			t.Fatal(err)
		}
		if !report.OK() || report.End != p.start || !strings.Contains(report.EndReason, p.start.String()) {
			t.Errorf("got an end at %s (%s), want %s; mismatches %d", report.End, report.EndReason, p.start, report.Mismatches)
		}
		t.Log(report.EndReason)
		report, err = verify.Run(t.Context(), verify.Options{Base: files.Base, WAL: dir, Final: files.Final})
		if err != nil {
			t.Fatal(err)
		}
		if report.OK() || len(report.Found) != 1 || !strings.Contains(report.Found[0].Text, fmt.Sprintf("WAL ends at %s", p.start)) {
			t.Errorf("a data directory of later was not refused by name: %+v", report.Found)
		}
		t.Log(report.Found[0].Text)
	})
	t.Run("in its middle", func(t *testing.T) {
		dir := cut(t, func(n uint64) bool { return n != size.Number(p.start) })
		_, err := verify.Run(t.Context(), verify.Options{Base: files.Base, WAL: dir})
		var corrupt *wal.CorruptError
		if !errors.As(err, &corrupt) {
			t.Errorf("got %v for WAL with a hole, want it told as corrupt", err)
		}
		t.Log(err)
	})
}
