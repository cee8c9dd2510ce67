package wal_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

const spoolDir = "node/spool"

func spoolOptions(w *writer, fs vfs.FS) wal.SpoolOptions {
	o := w.Options()
	return wal.SpoolOptions{
		FS: fs, Dir: spoolDir, SegmentSize: o.SegmentSize, Major: o.Major, SystemID: o.SystemID, History: wal.History{Timeline: 1},
	}
}

func openSpool(t testing.TB, opts wal.SpoolOptions) *wal.Spool {
	t.Helper()
	s, err := wal.OpenSpool(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// spoolWAL is about size bytes of WAL with everything that matters to a spool: long records, switches, every kind of boundary.
func spoolWAL(rnd *rand.Rand, size int) *writer {
	w := newWriter(waltest.Options{})
	for len(w.Bytes()) < size {
		w.add(randomRecord(rnd, 15))
		switch rnd.IntN(100) {
		case 0:
			w.add(wal.Record{Info: 0x40})
		case 1:
			w.filler(100_000 + rnd.IntN(1_200_000))
		}
	}
	return w
}

func appendAll(t testing.TB, s *wal.Spool, w *writer, to pg.LSN, step func() int) {
	t.Helper()
	at := s.Written()
	if at == 0 {
		at = w.Base()
	}
	for at < to {
		n := min(step(), int(to-at))
		if err := s.Append(at, w.Bytes()[at-w.Base():][:n]); err != nil {
			t.Fatal(err)
		}
		at += pg.LSN(n)
	}
}

func steps(n int) func() int { return func() int { return n } }

func mustSync(t testing.TB, s *wal.Spool) pg.LSN {
	t.Helper()
	d, err := s.Sync()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// holds checks that the spool's bytes are those of the WAL, from its first to its last.
func holds(t testing.TB, s *wal.Spool, w *writer) {
	t.Helper()
	if s.Written() == 0 {
		return
	}
	got := make([]byte, s.Written()-s.First())
	for n := 0; n < len(got); {
		m, err := s.ReadWAL(got[n:], s.First()+pg.LSN(n))
		if err != nil {
			t.Fatal(err)
		}
		n += m
	}
	want := w.Bytes()[s.First()-w.Base():][:len(got)]
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("spool differs from what was appended at %s", s.First()+pg.LSN(i))
			}
		}
	}
}

// lastEnd is the end of the last record that ends at or before limit.
func (w *writer) lastEnd(limit pg.LSN) pg.LSN {
	end := w.Base()
	for i := range w.want {
		if w.want[i].end > limit {
			break
		}
		end = w.want[i].end
	}
	return end
}

func TestSpoolServesAReaderWhileItGrows(t *testing.T) {
	rnd := seeded(t)
	w := spoolWAL(rnd, 8<<20)
	s := openSpool(t, spoolOptions(w, vfs.NewMem()))
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			if err := s.WaitWritten(context.Background(), 0); err != nil {
				return err
			}
			r, err := wal.NewReader(s, wal.ReaderOptions{SegmentSize: s.SegmentSize(), Growing: true})
			if err != nil {
				return err
			}
			r.Seek(w.Base())
			for i := 0; i < len(w.want); {
				rec, err := r.Next()
				if errors.Is(err, wal.ErrMore) {
					err = s.WaitWritten(context.Background(), r.Received())
					if err == nil {
						continue
					}
				}
				if err != nil {
					return err
				}
				if err := check(rec, &w.want[i]); err != nil {
					return err
				}
				i++
			}
			return nil
		}()
	}()
	for to := w.Base(); to < w.End(); {
		to = min(w.End(), to+pg.LSN(rnd.IntN(2<<20)))
		appendAll(t, s, w, to, func() int { return 1 + rnd.IntN(200_000) })
		if d := mustSync(t, s); d != w.lastEnd(s.Written()) {
			t.Fatalf("durable up to %s with %s written, want %s", d, s.Written(), w.lastEnd(s.Written()))
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	holds(t, s, w)
}

// Whatever a crash leaves of what was not fsynced, what Sync returned is found again, nothing invalid is kept, and the spool goes on.
func TestSpoolSurvivesCrashes(t *testing.T) {
	rnd := seeded(t)
	for range 10 {
		w := spoolWAL(rnd, 1<<20+rnd.IntN(4<<20))
		fs := vfs.NewCrashableMem()
		opts := spoolOptions(w, fs)
		s := openSpool(t, opts)
		durable := pg.LSN(0)
		for s.Written() < w.End() {
			to := min(w.End(), max(s.Written(), w.Base())+pg.LSN(rnd.IntN(1<<20)))
			appendAll(t, s, w, to, func() int { return 1 + rnd.IntN(100_000) })
			if rnd.IntN(2) == 0 {
				durable = mustSync(t, s)
			}
			if rnd.IntN(3) > 0 {
				continue
			}
			fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rnd.IntN(101), RNG: rnd})
			s.Close()
			opts.FS, opts.AtLeast, opts.From = fs, durable, 0
			if rnd.IntN(2) == 0 && durable > w.Base() {
				opts.From = durable
			}
			s = openSpool(t, opts)
			if s.Written() != 0 && s.Written() != w.lastEnd(s.Written()) {
				t.Fatalf("spool reopened at %s, which is no record's end", s.Written())
			}
			if s.Durable() != s.Written() {
				t.Fatalf("reopened spool is durable up to %s, holds %s", s.Durable(), s.Written())
			}
			holds(t, s, w)
			durable = s.Durable()
		}
		mustSync(t, s)
		holds(t, s, w)
	}
}

// What is read of the durable part never runs ahead of what a crash leaves, and misses no record of it.
func TestSpoolShowsItsDurablePart(t *testing.T) {
	rnd := seeded(t)
	w := spoolWAL(rnd, 4<<20)
	fs := vfs.NewCrashableMem()
	s := openSpool(t, spoolOptions(w, fs))
	r, err := wal.NewReader(s.DurableWAL(), wal.ReaderOptions{SegmentSize: s.SegmentSize(), Growing: true})
	if err != nil {
		t.Fatal(err)
	}
	r.Seek(w.Base())
	i := 0
	for s.Written() < w.End() {
		appendAll(t, s, w, min(w.End(), max(s.Written(), w.Base())+pg.LSN(1+rnd.IntN(200_000))), steps(50_000))
		if rnd.IntN(2) == 0 {
			mustSync(t, s)
		}
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
		}
		if r.Position() != max(s.Durable(), w.Base()) || r.Received() > max(s.Durable(), w.Base()) {
			t.Fatalf("read to %s, received %s, durable %s", r.Position(), r.Received(), s.Durable())
		}
		opts := spoolOptions(w, fs.CrashClone(vfs.CrashCloneCfg{}))
		if r.Position() > w.Base() {
			opts.From, opts.AtLeast = r.Position(), r.Position()
		}
		crashed, err := wal.OpenSpool(opts)
		if err != nil {
			t.Fatal(err)
		}
		crashed.Close()
	}
}

func TestSpoolRefusesWhatDoesNotJoin(t *testing.T) {
	w := spoolWAL(seeded(t), 2<<20)
	s := openSpool(t, spoolOptions(w, vfs.NewMem()))
	var gap *wal.GapError
	if err := s.Append(w.Base()+8, w.Bytes()[8:100]); !errors.As(err, &gap) {
		t.Fatalf("start inside a segment: %v", err)
	}
	if _, err := s.ReadWAL(make([]byte, 8), w.Base()); !errors.Is(err, wal.ErrMore) {
		t.Fatalf("reading an empty spool: %v", err)
	}
	appendAll(t, s, w, w.Base()+1_500_000, steps(10_000))
	if err := s.Append(s.Written()+1, w.Bytes()[:10]); !errors.As(err, &gap) || gap.Want != s.Written() {
		t.Fatalf("gap: %v", err)
	}
	// The same bytes again are fine, also where they go beyond the end.
	if err := s.Append(w.Base()+1_000_000, w.Bytes()[1_000_000:1_600_000]); err != nil || s.Written() != w.Base()+1_600_000 {
		t.Fatalf("overlap: %v, written %s", err, s.Written())
	}
	other := bytes.Clone(w.Bytes()[1_200_000:1_700_000])
	other[70_000]++
	var diverged *wal.DivergedError
	if err := s.Append(w.Base()+1_200_000, other); !errors.As(err, &diverged) || diverged.LSN != w.Base()+1_270_000 {
		t.Fatalf("other bytes: %v", err)
	}
	if s.Written() != w.Base()+1_600_000 {
		t.Fatalf("written %s behind a divergence", s.Written())
	}
	holds(t, s, w)
}

// shortFS makes the nth write on do only half of its work.
type shortFS struct {
	vfs.FS
	left *atomic.Int64 // bytes until the disk is full
}

func (f shortFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, o...)
	return shortFile{file, f.left}, err
}

type shortFile struct {
	vfs.File
	left *atomic.Int64
}

func (f shortFile) WriteAt(p []byte, at int64) (int, error) {
	n := min(int64(len(p)), f.left.Load())
	f.left.Add(-n)
	m, err := f.File.WriteAt(p[:n], at)
	if err == nil && n < int64(len(p)) {
		err = syscall.ENOSPC
	}
	return m, err
}

func TestSpoolOnAFullDisk(t *testing.T) {
	w := spoolWAL(seeded(t), 3<<20)
	var left atomic.Int64
	s := openSpool(t, spoolOptions(w, shortFS{vfs.NewMem(), &left}))
	for s.Written() < w.End() {
		left.Store(400_000)
		at := s.Written()
		err := s.Append(max(at, w.Base()), w.Bytes()[max(at, w.Base())-w.Base():])
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), spoolDir) {
			t.Fatal(err)
		}
		if s.Written() < at {
			t.Fatal("the end moved back")
		}
		mustSync(t, s)
		if s.Written() != 0 {
			holds(t, s, w)
		}
		left.Store(1 << 30)
		// A retry with less, then on.
		at = max(s.Written(), w.Base())
		if err := s.Append(at, w.Bytes()[at-w.Base():][:min(300_000, int(w.End()-at))]); err != nil {
			t.Fatal(err)
		}
	}
	if d := mustSync(t, s); d != w.End() {
		t.Fatalf("durable up to %s of %s", d, w.End())
	}
	holds(t, s, w)
}

func TestSpoolFaults(t *testing.T) {
	boom := errors.New("input/output error")
	w := spoolWAL(seeded(t), 3<<20)
	for _, c := range []struct {
		name     string
		kind     errorfs.OpKind
		suffix   string
		poisoned bool
	}{
		{"write", errorfs.OpFileWriteAt, "", false},
		{"create", errorfs.OpCreate, "", false},
		{"reserve", errorfs.OpFilePreallocate, "", false},
		{"open", errorfs.OpOpen, "", false},
		{"fsync", errorfs.OpFileSyncData, "", true},
		{"fsync directory", errorfs.OpFileSync, "spool", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var armed atomic.Bool
			mem := vfs.NewCrashableMem()
			s := openSpool(t, spoolOptions(w, errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if armed.Load() && op.Kind == c.kind && strings.HasSuffix(op.Path, c.suffix) {
					return boom
				}
				return nil
			}))))
			appendAll(t, s, w, w.Base()+700_000, steps(50_000))
			acknowledged := mustSync(t, s)
			armed.Store(true)
			var err error
			for at := s.Written(); at < w.End() && err == nil; at = s.Written() {
				if err = s.Append(at, w.Bytes()[at-w.Base():][:min(50_000, int(w.End()-at))]); err == nil {
					_, err = s.Sync()
				}
			}
			if !errors.Is(err, boom) {
				t.Fatalf("got %v", err)
			}
			armed.Store(false)
			if c.poisoned {
				for _, err := range []error{
					s.Append(s.Written(), w.Bytes()[:1]), s.Err(), s.WaitWritten(context.Background(), w.End()),
					second(s.Sync()), second(s.ReadWAL(make([]byte, 8), w.Base())), second(s.Trim(w.End())),
				} {
					if !errors.Is(err, boom) {
						t.Fatalf("a poisoned spool answered %v", err)
					}
				}
				if s.Durable() != w.lastEnd(s.Durable()) || s.Durable() < acknowledged {
					t.Fatalf("durable %s", s.Durable())
				}
				acknowledged = s.Durable()
				s.Close()
				opts := spoolOptions(w, mem.CrashClone(vfs.CrashCloneCfg{}))
				opts.AtLeast = acknowledged
				s = openSpool(t, opts)
			}
			appendAll(t, s, w, w.End(), steps(50_000))
			if d := mustSync(t, s); d != w.End() {
				t.Fatalf("durable up to %s of %s", d, w.End())
			}
			holds(t, s, w)
		})
	}
}

func second[T any](_ T, err error) error { return err }

func TestSpoolNeverAcknowledgesInvalidWAL(t *testing.T) {
	w := spoolWAL(seeded(t), 2<<20)
	victim := w.want[len(w.want)/2]
	data := bytes.Clone(w.Bytes())
	w.Bytes()[victim.start-w.Base()+pg.LSN(5)] ^= 0x40 // xl_xid: the CRC is wrong now
	fs := vfs.NewMem()
	s := openSpool(t, spoolOptions(w, fs))
	var err error
	for at := w.Base(); at < w.End() && err == nil; at += 8192 {
		if err = s.Append(at, w.Bytes()[at-w.Base():][:min(8192, int(w.End()-at))]); err == nil {
			_, err = s.Sync()
		}
	}
	var corrupt *wal.CorruptError
	if !errors.As(err, &corrupt) || corrupt.LSN != victim.start {
		t.Fatalf("got %v, want a complaint about %s", err, victim.start)
	}
	if s.Durable() != victim.start && s.Durable() != w.lastEnd(victim.start) {
		t.Fatalf("durable up to %s", s.Durable())
	}
	s.Close()
	copy(w.Bytes(), data)
	s = openSpool(t, spoolOptions(w, fs))
	appendAll(t, s, w, w.End(), steps(9999))
	mustSync(t, s)
	holds(t, s, w)
}

func TestSpoolFindsDamage(t *testing.T) {
	w := newWriter(waltest.Options{})
	for len(w.Bytes()) < 3<<20+300_000 {
		w.filler(3000)
	}
	build := func(t *testing.T) (*vfs.MemFS, wal.SpoolOptions) {
		fs := vfs.NewMem()
		opts := spoolOptions(w, fs)
		s := openSpool(t, opts)
		appendAll(t, s, w, w.End(), steps(1<<20))
		mustSync(t, s)
		s.Close()
		return fs, opts
	}
	name := func(n uint64) string {
		return filepath.Join(spoolDir, wal.Segment{Timeline: 1, Number: n}.Name(wal.MinSegmentSize))
	}
	flip := func(t *testing.T, fs vfs.FS, file string, at int64) {
		f, err := fs.OpenReadWrite(file, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if _, err := f.ReadAt(b[:], at); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b[:], at); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	var corrupt *wal.CorruptError
	t.Run("flipped bit in an earlier segment", func(t *testing.T) {
		fs, opts := build(t)
		flip(t, fs, name(2), 500_000)
		if _, err := wal.OpenSpool(opts); !errors.As(err, &corrupt) || corrupt.LSN/wal.MinSegmentSize != 2 {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("flipped bit in the last segment", func(t *testing.T) {
		fs, opts := build(t)
		flip(t, fs, name(4), 100_000)
		opts.AtLeast = w.End()
		if _, err := wal.OpenSpool(opts); !errors.As(err, &corrupt) {
			t.Fatalf("what was relied on is damaged: %v", err)
		}
		opts.AtLeast = w.Base()
		s := openSpool(t, opts)
		if got := s.Written(); got >= w.Base()+3<<20+100_000 || got < w.Base()+3<<20+95_000 {
			t.Fatalf("cut at %s", got)
		}
		holds(t, s, w)
		appendAll(t, s, w, w.End(), steps(12345))
		mustSync(t, s)
		holds(t, s, w)
	})
	t.Run("segment lost", func(t *testing.T) {
		fs, opts := build(t)
		if err := fs.Remove(name(2)); err != nil {
			t.Fatal(err)
		}
		if _, err := wal.OpenSpool(opts); !errors.As(err, &corrupt) {
			t.Fatalf("got %v", err)
		}
		// Below a known boundary it is a trim that was interrupted.
		opts.From = w.lastEnd(w.Base() + 2<<20 + 100_000)
		s := openSpool(t, opts)
		if s.First() != w.Base()+2<<20 || s.Written() != w.End() {
			t.Fatalf("holds %s to %s", s.First(), s.Written())
		}
		if _, err := fs.Stat(name(1)); err == nil {
			t.Fatal("the stale segment is still there")
		}
	})
	t.Run("all lost", func(t *testing.T) {
		_, opts := build(t)
		opts.FS, opts.From = vfs.NewMem(), w.End()
		if _, err := wal.OpenSpool(opts); !errors.As(err, &corrupt) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("of another cluster", func(t *testing.T) {
		_, opts := build(t)
		opts.SystemID++
		if _, err := wal.OpenSpool(opts); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "another cluster") {
			t.Fatalf("got %v", err)
		}
	})
}

func TestSpoolReopenedAtItsEnd(t *testing.T) {
	w := spoolWAL(seeded(t), 3<<20)
	w.Switch()
	fs := vfs.NewMem()
	opts := spoolOptions(w, fs)
	s := openSpool(t, opts)
	appendAll(t, s, w, w.End(), steps(100_000))
	if d := mustSync(t, s); d != w.End() {
		t.Fatalf("durable %s of %s", d, w.End())
	}
	s.Close()
	for _, from := range []pg.LSN{0, w.End()} {
		opts.From, opts.AtLeast = from, w.End()
		s = openSpool(t, opts)
		if s.Written() != w.End() {
			t.Fatalf("from %s: holds %s of %s", from, s.Written(), w.End())
		}
		s.Close()
	}
	w.filler(100)
	s = openSpool(t, opts)
	appendAll(t, s, w, w.End(), steps(77))
	if d := mustSync(t, s); d != w.End() {
		t.Fatalf("durable %s of %s", d, w.End())
	}
	holds(t, s, w)
}

func TestSpoolTrim(t *testing.T) {
	w := newWriter(waltest.Options{})
	for len(w.Bytes()) < 20<<20 {
		w.filler(9000)
	}
	fs := vfs.NewMem()
	s := openSpool(t, spoolOptions(w, fs))
	appendAll(t, s, w, w.End(), steps(1<<20))
	mustSync(t, s)
	holds(t, s, w) // reads more segments than are held open
	if n, err := s.Trim(w.Base() + 3<<20 + 5); n != 3 || err != nil || s.First() != w.Base()+3<<20 {
		t.Fatalf("trimmed %d, %v; starts at %s", n, err, s.First())
	}
	var trimmed *wal.TrimmedError
	if _, err := s.ReadWAL(make([]byte, 8), w.Base()+100); !errors.As(err, &trimmed) {
		t.Fatalf("reading trimmed WAL: %v", err)
	}
	holds(t, s, w)
	if n, err := s.Trim(w.End() + 100<<20); err != nil || n == 0 {
		t.Fatalf("trimmed %d, %v", n, err)
	}
	at, page, err := s.LastPage()
	if err != nil || at+pg.LSN(len(page)) != w.End() || !bytes.Equal(page, w.Bytes()[at-w.Base():]) {
		t.Fatalf("last page: %s, %d bytes, %v", at, len(page), err)
	}
	holds(t, s, w)
	names, err := fs.List(spoolDir)
	if err != nil || len(names) != 1 {
		t.Fatalf("left: %v, %v", names, err)
	}
}

func TestSpoolEndsItsWaits(t *testing.T) {
	w := spoolWAL(seeded(t), 1<<20)
	s := openSpool(t, spoolOptions(w, vfs.NewMem()))
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("the caller has gone")
	done := make(chan error, 1)
	go func() { done <- s.WaitDurable(ctx, 0) }()
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Fatal(err)
	}
	go func() { done <- s.WaitWritten(context.Background(), w.End()) }()
	s.Close()
	if err := <-done; !errors.Is(err, wal.ErrSpoolClosed) {
		t.Fatal(err)
	}
	if err := s.Append(w.Base(), w.Bytes()); !errors.Is(err, wal.ErrSpoolClosed) {
		t.Fatal(err)
	}
}

func TestSpoolOnDisk(t *testing.T) {
	w := spoolWAL(seeded(t), 4<<20)
	opts := spoolOptions(w, nil)
	opts.Dir = filepath.Join(t.TempDir(), "a", "spool")
	s := openSpool(t, opts)
	appendAll(t, s, w, w.End()-10, steps(300_000))
	durable := mustSync(t, s)
	s.Close()
	opts.AtLeast = durable
	s = openSpool(t, opts)
	appendAll(t, s, w, w.End(), steps(300_000))
	mustSync(t, s)
	holds(t, s, w)
	s.Close()
	// A spool's directory is read as any directory of segments.
	d, err := wal.OpenDir(opts.Dir, opts.SegmentSize, wal.History{Timeline: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	readAll(t, newReader(t, d, wal.ReaderOptions{End: w.End()}, w.Base()), w.want)
}

// kernelFS is a disk behind a page cache that forgets: bytes whose fsync failed count as written, so that the next fsync passes them over.
type kernelFS struct {
	vfs.FS
	fails *atomic.Bool
	files map[string]*kernelPages
}

type kernelPages struct {
	disk  []byte
	dirty [][2]int64
}

type kernelFile struct {
	vfs.File
	fs    kernelFS
	pages *kernelPages
}

func (k kernelFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := k.FS.OpenReadWrite(name, c, o...)
	if err != nil {
		return nil, err
	}
	if k.files[name] == nil {
		k.files[name] = &kernelPages{}
	}
	return &kernelFile{file, k, k.files[name]}, nil
}

func (f *kernelFile) WriteAt(p []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(p, at)
	f.pages.dirty = append(f.pages.dirty, [2]int64{at, at + int64(n)})
	return n, err
}

func (f *kernelFile) SyncData() error {
	dirty := f.pages.dirty
	f.pages.dirty = nil
	if f.fs.fails.CompareAndSwap(true, false) {
		return syscall.EIO
	}
	for _, d := range dirty {
		f.pages.disk = append(f.pages.disk, make([]byte, max(0, d[1]-int64(len(f.pages.disk))))...)
		if _, err := f.File.ReadAt(f.pages.disk[d[0]:d[1]], d[0]); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return f.File.SyncData()
}

// powerLoss is what a power loss leaves.
func (k kernelFS) powerLoss(t *testing.T) vfs.FS {
	fs := vfs.NewMem()
	if err := fs.MkdirAll(spoolDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, p := range k.files {
		f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
		if err == nil {
			_, err = f.Write(p.disk)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return fs
}

func TestSpoolTrustsNothingAfterAFailedFsync(t *testing.T) {
	w := newWriter(waltest.Options{})
	for len(w.Bytes()) < 900_000 {
		w.filler(1000)
	}
	kernel := kernelFS{vfs.NewMem(), new(atomic.Bool), map[string]*kernelPages{}}
	s := openSpool(t, spoolOptions(w, kernel))
	appendAll(t, s, w, w.lastEnd(w.Base()+400_000), steps(50_000))
	mustSync(t, s)
	appendAll(t, s, w, w.lastEnd(w.Base()+700_000), steps(1<<20))
	kernel.fails.Store(true)
	if _, err := s.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the fsync that fails gave %v", err)
	}
	s.Close()
	s = openSpool(t, spoolOptions(w, kernel))
	acknowledged := mustSync(t, s)
	opts := spoolOptions(w, kernel.powerLoss(t))
	opts.AtLeast = acknowledged
	holds(t, openSpool(t, opts), w)
}
