package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"everpage/redo"
	"everpage/wal/pg"
)

// copyFS copies all files of a store.
func copyFS(t testing.TB, from vfs.FS, dir string, to *vfs.MemFS, files map[string][]byte) {
	t.Helper()
	if err := to.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	list, err := from.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		path := from.PathJoin(dir, n)
		st, err := from.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.IsDir() {
			copyFS(t, from, path, to, files)
			continue
		}
		f, err := from.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		files[path] = b
		putFile(t, to, path, b)
	}
}

func putFile(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFlippedBits flips one bit of the files of a store at a time: every answer must be right or an error that is not an answer itself.
func TestFlippedBits(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 2))
	x := newWorld(t, rng)
	x.opt.testBlockSize = 1 << 10
	x.reopen()
	for range 150 {
		x.step()
	}
	x.commit()
	lsns := []pg.LSN{x.high, x.randomLSN()}
	x.compareAt(lsns[1])
	x.w.Close()
	if err := x.s.Close(); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	copyFS(t, x.fs, "store", vfs.NewMem(), files)
	var tables, others []string
	for _, path := range slices.Sorted(mapKeys(files)) {
		switch {
		case len(files[path]) == 0 || strings.HasSuffix(path, "/PID"):
		case strings.HasSuffix(path, ".sst"):
			tables = append(tables, path)
		default:
			others = append(others, path)
		}
	}
	flips := 40
	if testing.Short() {
		flips = 20
	}
	refused, corrupt, right := 0, 0, 0
	for i := range flips {
		list := tables
		if i%8 == 7 {
			list = others
		}
		path := list[rng.IntN(len(list))]
		b := slices.Clone(files[path])
		bit := rng.IntN(len(b) * 8)
		if rng.IntN(3) == 0 { // index, filter, footer
			bit = len(b)*8 - 1 - rng.IntN(min(len(b), 600)*8)
		}
		b[bit/8] ^= 1 << (bit % 8)
		fs := vfs.NewMem()
		copyFS(t, x.fs, "store", fs, map[string][]byte{})
		putFile(t, fs, path, b)
		opt := x.opt
		opt.FS = fs
		s, err := Open(opt)
		if err != nil {
			refused++
			continue
		}
		wrong := fmt.Sprintf("bit %d of %s", bit, path)
		p, ok := s.Progress(testBranch)
		if ok && p.Readable > x.high {
			t.Errorf("%s: readable is %s, want at most %s", wrong, p.Readable, x.high)
		}
		noticed := 0
		for _, lsn := range lsns {
			for k := range x.m.pages {
				if noticed >= 3 {
					break // the database takes long to describe what it found
				}
				want := x.m.pageAt(k, lsn)
				err := samePage(s, k, lsn, want)
				var c *CorruptError
				switch { // by this very read: another one may have the luck not to touch what is broken
				case err == nil:
					right++
				case errors.As(err, &c):
					corrupt++
					noticed++
				case errors.Is(err, ErrNotYet), errors.Is(err, ErrNoBranch), errors.Is(err, ErrNotConsistent):
					refused++
				default:
					t.Errorf("%s: %v", wrong, err)
				}
			}
			for f := range x.m.sizes {
				if noticed >= 6 {
					break
				}
				want := x.m.sizeAt(f, lsn)
				n, ok, err := s.Size(testBranch, f, lsn)
				if err != nil {
					noticed++
				} else if ok != want.exists || n != want.blocks {
					t.Errorf("%s: %s has %d blocks (%v) at %s, want %d (%v)", wrong, f, n, ok, lsn, want.blocks, want.exists)
				}
			}
			for k := range x.m.metas {
				if noticed >= 9 {
					break
				}
				want, _ := x.m.metaAt(k, lsn)
				v, _, ok, err := s.Meta(testBranch, k.kind, k.id, lsn)
				if err != nil {
					noticed++
				} else if ok != (want != nil) || !bytes.Equal(v, want) {
					t.Errorf("%s: object %v differs", wrong, k)
				}
			}
		}
		s.Close() // may fail, the store is broken
	}
	t.Logf("%d right, %d corrupt, %d refused", right, corrupt, refused)
	if corrupt == 0 {
		t.Error("no flip was noticed by a read")
	}
}

// TestMisplacedVersion moves a sealed value to another key: it must not pass for a version of that.
func TestMisplacedVersion(t *testing.T) {
	a := testChunks.pagePrefix(1, benchKey(1))
	b := testChunks.pagePrefix(1, benchKey(2))
	v := append([]byte{byte(KindDelta), 0, 0}, "content\x00\x00\x00\x00"...)
	seal(a.appendKey(nil, 100), v)
	for _, k := range [][]byte{b.appendKey(nil, 100), a.appendKey(nil, 101)} {
		if sealed(k, v) {
			t.Errorf("a value sealed for %x passes for one of %x", a.appendKey(nil, 100), k)
		}
	}
	if !sealed(a.appendKey(nil, 100), v) {
		t.Error("a value doesn't pass for itself")
	}
}

// TestDiskFull makes every write of a table fail: what is there is still answered, the error says what happened, and all goes on when there is space.
func TestDiskFull(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 3))
	x := newWorld(t, rng)
	x.w.Close()
	if err := x.s.Close(); err != nil {
		t.Fatal(err)
	}
	var full atomic.Bool
	x.wrap = func(fs vfs.FS) vfs.FS {
		return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && strings.HasSuffix(op.Path, ".sst") && (op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpFileSync) {
				return &os.PathError{Op: "write", Path: op.Path, Err: syscall.ENOSPC}
			}
			return nil
		}))
	}
	x.w = nil
	x.open()
	for range 100 {
		x.step()
	}
	x.commit()
	for round := range 3 {
		full.Store(true)
		var err error
		for n := 0; err == nil; n++ {
			if n > 20000 {
				t.Fatal("the store never filled up")
			}
			if x.fed == len(x.m.recs) {
				x.m.run(x.g.next())
			}
			if err = feed(x.w, x.m.recs[x.fed]); err == nil {
				x.fed++
				lsn := x.m.recs[x.fed-1].lsn
				err = x.w.Commit(Progress{Start: x.m.start, Consistent: x.m.start, Readable: lsn, Resume: lsn})
			}
		}
		if !errors.Is(err, ErrFull) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "no space left") {
			t.Fatalf("got %v, want ErrFull for ENOSPC", err)
		}
		if st := x.s.Stats(); st.WriteErr == nil || st.FrozenRuns != maxFrozen {
			t.Errorf("stats say %v and %d runs", st.WriteErr, st.FrozenRuns)
		}
		if limit := x.opt.RunBytes*(maxRuns+2) + 256<<10; x.s.Stats().RunBytes > limit {
			t.Errorf("runs hold %d bytes, more than %d", x.s.Stats().RunBytes, limit)
		}
		if err := x.w.Commit(Progress{}); !errors.Is(err, ErrFull) {
			t.Errorf("a failed writer commits: %v", err)
		}
		x.resume()
		x.compareAt(x.high)
		x.compareAt(x.randomLSN())
		if err := x.s.Flush(); !errors.Is(err, ErrFull) {
			t.Errorf("flush on a full disk: %v", err)
		}
		full.Store(false)
		if round == 1 {
			x.crash()
		}
		if err := x.s.Flush(); err != nil {
			t.Fatalf("flush after space came back: %v", err)
		}
		for range 50 {
			x.step()
			x.commit()
		}
		x.compareAt(x.high)
	}
	x.close()
}

// smallDisk is a file system that says how much is free.
type smallDisk struct {
	vfs.FS
	free atomic.Uint64
}

func (d *smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: d.free.Load(), TotalBytes: 1 << 30}, nil
}

// TestReserve sees to it that no table is begun where there is no space for it, and that the reserve is given up only by a full disk.
func TestReserve(t *testing.T) {
	disk := &smallDisk{FS: vfs.NewMem()}
	disk.free.Store(1 << 30)
	opt := testOptions(disk)
	opt.ReserveBytes = 3 << 20
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	st, err := disk.Stat("store/RESERVE")
	if err != nil || st.Size() != opt.ReserveBytes {
		t.Fatalf("reserve: %v %v", st, err)
	}
	w, err := s.Writer(1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Create(pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 1}}, 8); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(Progress{Start: 8, Consistent: 8, Readable: 8, Resume: 8}); err != nil {
		t.Fatal(err)
	}
	disk.free.Store(50)
	if err := s.Flush(); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "disk full: 50 bytes are free") {
		t.Fatalf("got %v, want ErrFull", err)
	}
	s.spare.release()
	if _, err := disk.Stat("store/RESERVE"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the reserve is still there: %v", err)
	}
	disk.free.Store(1 << 30)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Stat("store/RESERVE"); err != nil {
		t.Fatalf("the reserve was not taken again: %v", err)
	}
}

// TestConcurrentReads reads while a writer goes on and runs become tables, at LSNs that are readable.
func TestConcurrentReads(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 4))
	x := newWorld(t, rng)
	for range 400 {
		x.m.run(x.g.next())
	}
	x.step()
	x.commit()
	keys := slices.SortedFunc(mapKeys(x.m.pages), pg.PageKey.Compare)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var reads atomic.Int64
	for i := range 3 {
		rng := rand.New(rand.NewPCG(uint64(i), rng.Uint64()))
		wg.Go(func() {
			for ctx.Err() == nil {
				p, _ := x.s.Progress(testBranch)
				lsn := p.Readable
				if rng.IntN(2) == 0 {
					lsn = p.Consistent + pg.LSN(rng.Uint64N(uint64(lsn-p.Consistent)+1))
				}
				k := keys[rng.IntN(len(keys))]
				if err := samePage(x.s, k, lsn, x.m.pageAt(k, lsn)); err != nil {
					t.Error(err)
					return
				}
				f, _ := forkOf(k)
				want := x.m.sizeAt(f, lsn)
				if n, ok, err := x.s.Size(testBranch, f, lsn); err != nil || ok != want.exists || n != want.blocks {
					t.Errorf("size of %s at %s: got %d %v %v, want %d", f, lsn, n, ok, err, want.blocks)
					return
				}
				reads.Add(1)
			}
		})
	}
	for back := 0; x.fed < len(x.m.recs) && !t.Failed(); {
		x.step()
		if rng.IntN(5) == 0 {
			x.commit()
		}
		if rng.IntN(60) == 0 && back < 6 {
			back++
			x.from(x.m.recs[rng.IntN(x.done)].lsn) // old WAL again, under the readers
		}
	}
	x.commit()
	cancel()
	wg.Wait()
	t.Logf("%d reads", reads.Load())
	x.compareAt(x.high)
	x.close()
}

func TestWait(t *testing.T) {
	s, err := Open(testOptions(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	got := make(chan error, 3)
	for _, lsn := range []pg.LSN{50, 100, 200} {
		go func() { got <- s.Wait(ctx, 1, lsn) }()
	}
	w, err := s.Writer(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(Progress{Readable: 100}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	if err := s.Wait(ctx, 1, 100); err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if err := s.Wait(short, 1, 300); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "has reached 0/64") {
		t.Errorf("got %v", err)
	}
	w.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Errorf("a waiter of a closed store got %v", err)
	}
	if err := s.Wait(ctx, 1, 300); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestDirectory(t *testing.T) {
	opt := testOptions(vfs.Default)
	opt.Dir = filepath.Join(t.TempDir(), "a", "store")
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(opt); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("a second store on the directory: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if err := s.Page(context.Background(), 1, benchKey(1), 1, make(pg.Page, pg.BlockSize)); err == nil {
		t.Error("a closed store answers")
	}
	other := opt
	other.SegmentBlocks = 32
	if _, err := Open(other); err == nil || !strings.Contains(err.Error(), "16 blocks") {
		t.Errorf("another chunk size: %v", err)
	}
	other = opt
	other.Shards = 9
	if _, err := Open(other); err == nil || !strings.Contains(err.Error(), "8 shards") {
		t.Errorf("another number of shards: %v", err)
	}
	format := filepath.Join(opt.Dir, "FORMAT")
	was, err := os.ReadFile(format)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"everpage store 4\nsegment blocks 16\nshards 8\n", "everpage store 2\nsegment blocks 16\nshards 8\n", "everpage store 1\nsegment blocks 16\n", "", "something else\n"} {
		if err := os.WriteFile(format, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(opt); !errors.Is(err, ErrFormat) {
			t.Errorf("format %q: %v", text, err)
		}
	}
	if err := os.Remove(format); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(opt); !errors.Is(err, ErrFormat) {
		t.Errorf("no format: %v", err)
	}
	if err := os.WriteFile(format, was, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(opt); err != nil {
		t.Fatal(err)
	}
	check(t, s, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestInterval tries reads outside the interval for which a branch is complete.
func TestInterval(t *testing.T) {
	s, err := Open(testOptions(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	k := benchKey(3)
	page := make(pg.Page, pg.BlockSize)
	expect := func(lsn pg.LSN, want error) {
		t.Helper()
		if err := s.Page(context.Background(), 1, k, lsn, page); !errors.Is(err, want) {
			t.Errorf("page at %s: got %v, want %v", lsn, err, want)
		}
		if _, _, err := s.Size(1, k.RelFork, lsn); want != ErrNotFound && !errors.Is(err, want) {
			t.Errorf("size at %s: got %v, want %v", lsn, err, want)
		}
	}
	expect(100, ErrNoBranch)
	w, err := s.Writer(1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := s.Writer(1); !errors.Is(err, ErrBusy) {
		t.Errorf("a second writer: %v", err)
	}
	if err := w.Image(k, 100, Origin{}, heapPage(rand.New(rand.NewPCG(1, 1)))); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(Progress{Start: 100, Readable: 100, Resume: 100}); err != nil {
		t.Fatal(err)
	}
	expect(100, ErrNotConsistent)
	if _, _, _, err := s.Meta(1, redo.MetaControl, [2]uint32{}, 100); err != nil {
		t.Errorf("small objects are answered before the branch is consistent: %v", err)
	}
	if err := w.Commit(Progress{Start: 100, Consistent: 200, Readable: 300, Resume: 300}); err != nil {
		t.Fatal(err)
	}
	expect(199, ErrBelowHorizon)
	expect(301, ErrNotYet)
	expect(200, nil)
	expect(300, nil)
	k.Block++
	expect(300, ErrNotFound)
	k.Block = pg.InvalidBlock
	expect(300, ErrNotFound)
	if err := w.Image(k, 400, Origin{}, page); err == nil {
		t.Error("block 0xFFFFFFFF was taken")
	}
}

// TestDropBranch forgets one branch and leaves another, and the number can be used again.
func TestDropBranch(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Open(testOptions(fs))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	k := benchKey(1)
	fill := func(branch uint32) pg.Page {
		t.Helper()
		w, err := s.Writer(branch)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		page := heapPage(rng)
		if err := w.Image(k, 100, Origin{}, page); err != nil {
			t.Fatal(err)
		}
		delta := make([]byte, 20)
		for lsn := pg.LSN(101); lsn < 121; lsn++ {
			if err := w.Delta(k, lsn, Origin{}, BaseRequired, delta); err != nil {
				t.Fatal(err)
			}
			if _, err := (toyRedo{}).Redo(page, k, lsn, false, delta); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Commit(Progress{Start: 100, Consistent: 100, Readable: 200, Resume: 200}); err != nil {
			t.Fatal(err)
		}
		return page
	}
	expect := func(branch uint32, want pg.Page) {
		t.Helper()
		got := make(pg.Page, pg.BlockSize)
		if err := s.Page(context.Background(), branch, k, 200, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("branch %d: page differs: %v", branch, err)
		}
	}
	one, two := fill(1), fill(2)
	expect(1, one)
	expect(2, two)
	for range 2 {
		if err := s.DropBranch(1); err != nil {
			t.Fatal(err)
		}
		if err := s.Page(context.Background(), 1, k, 200, make(pg.Page, pg.BlockSize)); !errors.Is(err, ErrNoBranch) {
			t.Errorf("a dropped branch answers: %v", err)
		}
		expect(2, two)
		n := 0
		if err := s.History(context.Background(), 2, k, func(Version) error { n++; return nil }); err != nil || n != 21 {
			t.Errorf("history: %d versions, %v", n, err)
		}
		one = fill(1)
		expect(1, one)
	}
	if err := s.DropBranch(1); err != nil {
		t.Fatal(err)
	}
	check(t, s, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(testOptions(fs)); err != nil {
		t.Fatal(err)
	}
	if got := s.Branches(); !slices.Equal(got, []uint32{2}) {
		t.Errorf("branches: %v", got)
	}
	expect(2, two)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestChainsAreBounded writes one page very often: no read after the flush may apply more deltas than the limit.
func TestChainsAreBounded(t *testing.T) {
	opt := testOptions(vfs.NewMem())
	var applied atomic.Int64
	opt.Redoer = countingRedo{&applied}
	opt.PageCacheBytes = -1
	s, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Writer(1)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	keys := []pg.PageKey{benchKey(0), pg.SLRUPage(pg.Xact, 3)}
	want := map[pg.PageKey]map[pg.LSN]pg.Page{}
	for _, k := range keys {
		want[k] = map[pg.LSN]pg.Page{}
	}
	page := map[pg.PageKey]pg.Page{keys[0]: make(pg.Page, pg.BlockSize), keys[1]: make(pg.Page, pg.BlockSize)}
	const n = 2000
	for i := range pg.LSN(n) {
		lsn := 100 + i
		for _, k := range keys {
			delta := make([]byte, 20)
			tuple(delta, int(i), rng)
			base := BaseRequired
			if i == 0 {
				base = BaseInit
			}
			if err := w.Delta(k, lsn, Origin{10, 0x20}, base, delta); err != nil {
				t.Fatal(err)
			}
			if _, err := (toyRedo{}).Redo(page[k], k, lsn, i == 0, delta); err != nil {
				t.Fatal(err)
			}
			want[k][lsn] = slices.Clone(page[k])
		}
		if err := w.Commit(Progress{Start: 100, Consistent: 100, Readable: lsn, Resume: lsn}); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(7) == 0 && i < 300 { // many short runs, too
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.Close()
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	got := make(pg.Page, pg.BlockSize)
	for _, k := range keys {
		for lsn, p := range want[k] {
			applied.Store(0)
			if err := s.Page(context.Background(), 1, k, lsn, got); err != nil || !bytes.Equal(got, p) {
				t.Fatalf("%s at %s differs: %v", k, lsn, err)
			}
			if a := applied.Load(); a > int64(opt.MaxChain) {
				t.Fatalf("%s at %s took %d deltas, the limit is %d", k, lsn, a, opt.MaxChain)
			}
		}
		images, versions := 0, 0
		if err := s.History(context.Background(), 1, k, func(v Version) error {
			versions++
			if v.Kind == KindImage {
				images++
			}
			if v.Origin != (Origin{10, 0x20}) {
				return fmt.Errorf("version %s has origin %v", v.LSN, v.Origin)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if versions != n || images < n/(opt.MaxChain+1)-1 {
			t.Errorf("%s has %d versions, %d of them images", k, versions, images)
		}
	}
	check(t, s, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

type countingRedo struct{ n *atomic.Int64 }

func (c countingRedo) Redo(page pg.Page, key pg.PageKey, lsn pg.LSN, init bool, delta []byte) (bool, error) {
	c.n.Add(1)
	return toyRedo{}.Redo(page, key, lsn, init, delta)
}
