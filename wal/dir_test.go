package wal_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

// outcome reads to the end and tells how many records there were, and the last error.
func outcome(r *wal.Reader, want []expected) (n int, err error) {
	for {
		rec, err := r.Next()
		if err != nil {
			return n, err
		}
		if n < len(want) {
			if err := check(rec, &want[n]); err != nil {
				return n, err
			}
		}
		n++
	}
}

func openDir(t testing.TB, dir string, history wal.History) *wal.Dir {
	t.Helper()
	size, err := wal.DetectSegmentSize(dir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := wal.OpenDir(dir, size, history)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// writeDir writes the WAL into a new directory.
func writeDir(t testing.TB, w *writer) (dir string, files []string) {
	t.Helper()
	dir = t.TempDir()
	files, err := w.WriteDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, files
}

func corruptFile(t testing.TB, file string, at int64, change func([]byte)) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	change(b[at:])
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Where WAL is damaged in the middle that is an error with the place, even where no end is given; at the end of what was written it is the end.
func TestDamageIsNotTheEnd(t *testing.T) {
	build := func() *writer {
		w := newWriter(waltest.Options{})
		for len(w.Bytes()) < 2<<20+500_000 {
			w.filler(700)
		}
		return w
	}
	flip := func(b []byte) { b[0] ^= 4 }
	for _, c := range []struct {
		name    string
		segment int
		change  func(t *testing.T, file string)
		corrupt bool
	}{
		{"whole", 0, func(*testing.T, string) {}, false},
		{"bit in the first segment", 0, func(t *testing.T, f string) { corruptFile(t, f, 500_000, flip) }, true},
		{"bit in the last segment", 2, func(t *testing.T, f string) { corruptFile(t, f, 300_000, flip) }, true},
		{"page header in the last segment", 2, func(t *testing.T, f string) { corruptFile(t, f, 30*8192+8, flip) }, true},
		{"segment missing", 1, func(t *testing.T, f string) {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"segment cut", 1, func(t *testing.T, f string) {
			if err := os.Truncate(f, 700_001); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"last segment cut", 2, func(t *testing.T, f string) {
			if err := os.Truncate(f, 200_001); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"last page zero", 2, func(t *testing.T, f string) {
			corruptFile(t, f, 499_712/8192*8192, func(b []byte) { clear(b) })
		}, false},
		{"recycled tail", 2, func(t *testing.T, f string) {
			corruptFile(t, f, 40*8192, func(b []byte) {
				for at := 0; at < len(b); at += 8192 {
					h := wal.PageHeader{Magic: pg.Major(15).PageMagic(), Timeline: 1, Address: pg.LSN(at)}
					copy(b[at:], h.Append(nil))
				}
			})
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := build()
			dir, files := writeDir(t, w)
			c.change(t, files[c.segment])
			n, err := outcome(newReader(t, openDir(t, dir, wal.History{Timeline: 1}), wal.ReaderOptions{}, w.Base()), w.want)
			var corrupt *wal.CorruptError
			var end *wal.EndError
			switch {
			case c.corrupt && !errors.As(err, &corrupt):
				t.Fatalf("%d records, then %v", n, err)
			case !c.corrupt && !errors.As(err, &end):
				t.Fatalf("%d records, then %v", n, err)
			case end != nil && n < len(w.want) && end.LSN != w.want[n].start && end.LSN != w.want[n-1].end:
				t.Fatalf("end at %s, the first record missing starts at %s", end.LSN, w.want[n].start)
			}
			t.Log(err)
			// Where the end is known all of it must be there.
			n, err = outcome(newReader(t, openDir(t, dir, wal.History{Timeline: 1}), wal.ReaderOptions{End: w.End()}, w.Base()), w.want)
			if n == len(w.want) {
				if c.corrupt || !wal.IsEnd(err) {
					t.Fatalf("all records, then %v", err)
				}
			} else if !errors.As(err, &corrupt) {
				t.Fatalf("%d of %d records, then %v", n, len(w.want), err)
			}
		})
	}
}

func TestEndInsideRecordsAndHeaders(t *testing.T) {
	rnd := seeded(t)
	w := newWriter(waltest.Options{})
	for len(w.Bytes()) < 200_000 {
		w.add(randomRecord(rnd, 15))
	}
	w.fillPage(104)
	w.filler(104) // ends at a page boundary
	boundary := w.End()
	w.Header()
	if w.End() != boundary+wal.ShortPageHeaderSize {
		t.Fatalf("header-only tail ends at %s", w.End())
	}
	for end := boundary; end <= w.End(); end += 8 {
		src := w.Source()
		src.Limit = end
		n, err := outcome(newReader(t, src, wal.ReaderOptions{End: end}, w.Base()), w.want)
		if n != len(w.want) || !wal.IsEnd(err) {
			t.Fatalf("end at %s: %d of %d records, then %v", end, n, len(w.want), err)
		}
	}
	// The same tail in a file, where zeros follow.
	src := w.Source()
	src.Data = append(bytes.Clone(src.Data), make([]byte, 20_000)...)
	src.Limit = src.Base + pg.LSN(len(src.Data))
	for _, end := range []pg.LSN{0, boundary, w.End()} {
		n, err := outcome(newReader(t, src, wal.ReaderOptions{End: end}, w.Base()), w.want)
		if n != len(w.want) || !wal.IsEnd(err) {
			t.Fatalf("end at %s: %d of %d records, then %v", end, n, len(w.want), err)
		}
	}
	for range 300 {
		end := w.Base() + pg.LSN(rnd.IntN(int(w.End()-w.Base())))
		want := 0
		for want < len(w.want) && w.want[want].end <= end {
			want++
		}
		for _, limit := range []pg.LSN{end, w.End()} { // whether or not more follows
			src := w.Source()
			src.Limit = limit
			n, err := outcome(newReader(t, src, wal.ReaderOptions{End: end}, w.Base()), w.want)
			if n != want || !wal.IsEnd(err) {
				t.Fatalf("end at %s: %d records, want %d, then %v", end, n, want, err)
			}
		}
	}
}

// Every single flipped byte is found, or lies where nothing is said: in padding.
func TestFlippedBytesAreFound(t *testing.T) {
	rnd := seeded(t)
	w := newWriter(waltest.Options{})
	for len(w.Bytes()) < 60_000 {
		w.add(randomRecord(rnd, 15))
	}
	data := w.Bytes()
	payload := make([]bool, len(data)) // bytes of records, not of padding or page headers
	i := 0
	for at := range data {
		lsn := w.Base() + pg.LSN(at)
		for i < len(w.want) && w.want[i].end <= lsn {
			i++
		}
		header := pg.LSN(wal.ShortPageHeaderSize)
		if lsn%wal.MinSegmentSize < pg.BlockSize {
			header = wal.LongPageHeaderSize
		}
		payload[at] = i < len(w.want) && lsn >= w.want[i].start && lsn+8 < w.want[i].end && lsn%pg.BlockSize >= header
	}
	src := w.Source()
	for range 4000 {
		at := rnd.IntN(len(data))
		bit := byte(1) << rnd.IntN(8)
		data[at] ^= bit
		n, err := outcome(newReader(t, src, wal.ReaderOptions{End: w.End(), History: &wal.History{Timeline: 1}}, w.Base()), w.want)
		data[at] ^= bit
		var corrupt *wal.CorruptError
		if errors.As(err, &corrupt) {
			// A wrong length is noticed on the next page.
			if corrupt.LSN < w.Base() || corrupt.LSN > w.Base()+pg.LSN(at)+pg.BlockSize {
				t.Fatalf("byte at %s flipped, complaint about %s", w.Base()+pg.LSN(at), corrupt.LSN)
			}
			continue
		}
		if payload[at] || n != len(w.want) {
			t.Fatalf("flipped byte at %s not found: %d of %d records, %v", w.Base()+pg.LSN(at), n, len(w.want), err)
		}
	}
}

func TestSegmentHeadersAreChecked(t *testing.T) {
	base := waltest.Options{Segment: 3}
	w := newWriter(base)
	for len(w.Bytes()) < 1<<20+100_000 {
		w.filler(600)
	}
	mid := w.lastEnd(w.Base() + 500_000)
	for name, opts := range map[string]wal.ReaderOptions{
		"another system":       {SystemID: 5},
		"another major":        {Major: 16},
		"another segment size": {SegmentSize: 2 << 20},
		"another timeline":     {History: &wal.History{Timeline: 2}},
	} {
		opts.End = w.End()
		for _, from := range []pg.LSN{w.Base(), mid} {
			var corrupt *wal.CorruptError
			if _, err := outcome(newReader(t, w.Source(), opts, from), nil); !errors.As(err, &corrupt) {
				t.Errorf("%s, from %s: %v", name, from, err)
			}
		}
	}
	if _, err := wal.NewReader(w.Source(), wal.ReaderOptions{SegmentSize: 3 << 20}); err == nil {
		t.Error("a segment of 3 MB is accepted")
	}
	if _, err := wal.NewReader(w.Source(), wal.ReaderOptions{SegmentSize: 1 << 20, Major: 13}); err == nil {
		t.Error("PostgreSQL 13 is accepted")
	}
	r, err := wal.NewReader(w.Source(), wal.ReaderOptions{SegmentSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err == nil {
		t.Error("a reader reads before it is positioned")
	}
	for _, at := range []pg.LSN{0, w.Base() + 44} {
		r.Seek(at)
		if _, err := r.Next(); err == nil {
			t.Errorf("a reader starts at %s", at)
		}
	}
}

func TestTimelinesAlongHistory(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, atBoundary := range []bool{false, true} {
		// Timeline 2 leaves 1, 3 leaves 2 within the same or a later segment.
		w := newWriter(waltest.Options{})
		history := wal.History{Timeline: 3}
		dir := t.TempDir()
		for tli := pg.TimelineID(1); tli <= 3; tli++ {
			for range 250 + rnd.IntN(100) {
				w.filler(5000)
			}
			if atBoundary {
				w.fillPage(48)
				w.filler(48)
			}
			if _, err := w.WriteDir(dir); err != nil {
				t.Fatal(err)
			}
			if tli < 3 {
				history.Parents = append(history.Parents, wal.HistoryEntry{Timeline: tli, Switch: w.End()})
				w.Promote(tli + 1)
			}
			// What the old timeline wrote behind the switch is not followed.
			if tli < 3 {
				b := waltest.New(waltest.Options{Segment: uint64(w.End()/wal.MinSegmentSize) + 1, Timeline: tli})
				b.Filler(100)
				if _, err := b.WriteDir(dir); err != nil {
					t.Fatal(err)
				}
			}
		}
		// Files that a timeline has no part in go away: WriteDir wrote all segments again under each timeline's name.
		for _, tli := range []pg.TimelineID{2, 3} {
			begin, _, _ := history.Range(tli)
			for n := uint64(1); n < uint64(begin/wal.MinSegmentSize); n++ {
				if err := os.Remove(filepath.Join(dir, wal.Segment{Timeline: tli, Number: n}.Name(wal.MinSegmentSize))); err != nil {
					t.Fatal(err)
				}
			}
		}
		d := openDir(t, dir, history)
		r := newReader(t, d, wal.ReaderOptions{History: &history, End: w.End()}, w.Base())
		readAll(t, r, w.want)
		// A history that names another point is found out.
		wrong := history
		wrong.Parents = append([]wal.HistoryEntry(nil), history.Parents...)
		wrong.Parents[0].Switch += 3 * pg.BlockSize
		if n, err := outcome(newReader(t, openDir(t, dir, wrong), wal.ReaderOptions{History: &wrong, End: w.End()}, w.Base()), w.want); n == len(w.want) {
			t.Fatalf("a wrong switch point is accepted: %v", err)
		}
	}
}

func TestOpenFile(t *testing.T) {
	w := newWriter(waltest.Options{Segment: 0x1234})
	for len(w.Bytes()) < 1<<20+100_000 {
		w.filler(600)
	}
	dir, files := writeDir(t, w)
	d, err := wal.OpenFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	n, err := outcome(newReader(t, d, wal.ReaderOptions{}, w.Base()), w.want)
	if !wal.IsEnd(err) || w.want[n].end <= w.Base()+wal.MinSegmentSize {
		t.Fatalf("%d records, then %v", n, err)
	}
	recycled := filepath.Join(dir, wal.Segment{Timeline: 1, Number: 0x9999}.Name(wal.MinSegmentSize))
	if err := os.Rename(files[0], recycled); err != nil {
		t.Fatal(err)
	}
	if _, err := wal.OpenFile(recycled); err == nil {
		t.Fatal("a recycled file is opened")
	}
	renamed := filepath.Join(dir, "backup of a segment")
	if err := os.Rename(recycled, renamed); err != nil {
		t.Fatal(err)
	}
	d, err = wal.OpenFile(renamed)
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if err := os.WriteFile(renamed, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := wal.OpenFile(renamed); err == nil {
		t.Fatal("zeros are opened")
	}
}

func TestListDir(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int64) {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"000000010000000000000002", "000000010000000000000001", "000000020000000000000002.partial", "000000020000000000000002",
		"00000002.history", "000000010000000000000002.00000028.backup", "archive_status", "README", "00000001000000000000000g"} {
		write(name, 1<<20)
	}
	segments, histories, err := wal.ListDir(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	want := []wal.Segment{{Timeline: 1, Number: 1}, {Timeline: 2, Number: 2}, {Timeline: 2, Number: 2, Partial: true}, {Timeline: 1, Number: 2}}
	if len(segments) != len(want) || len(histories) != 1 || histories[0] != 2 {
		t.Fatalf("found %v, %v", segments, histories)
	}
	for i := range want {
		if segments[i] != want[i] {
			t.Fatalf("found %v, want %v", segments, want)
		}
	}
	write("000000010000000000000003", 1<<20+1)
	if _, _, err := wal.ListDir(dir, 1<<20); err == nil {
		t.Fatal("a segment longer than a segment is accepted")
	}
	write("000000010000000000000003", 5)
	write("000000010000000000000100", 5) // no segment of 16 MB has this number
	if _, _, err := wal.ListDir(dir, 16<<20); err == nil {
		t.Fatal("a segment number that does not exist is accepted")
	}
}
