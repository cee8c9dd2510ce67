package chunk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// createHook calls a function once, before the next file is made.
type createHook struct {
	vfs.FS
	next func()
}

func (h *createHook) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if fn := h.next; fn != nil {
		h.next = nil
		fn()
	}
	return h.FS.Create(name, c)
}

// A horizon that is moved while a collection makes the one before durable counts for the next collection only: a crash would bring the older one back, and reads
// above that would find versions gone.
func TestHorizonMovesWhileCollecting(t *testing.T) {
	x := newWorld(t, rand.New(rand.NewPCG(seedOf(t), 31)))
	hook := &createHook{}
	x.wrap = func(fs vfs.FS) vfs.FS { hook.FS = fs; return hook }
	x.reopen()
	for range 300 {
		x.step()
	}
	x.commit()
	if err := x.s.Flush(); err != nil {
		t.Fatal(err)
	}
	first := x.m.start + (x.high-x.m.start)/4
	if err := x.s.SetHorizon(testBranch, first, nil); err != nil {
		t.Fatal(err)
	}
	second := x.high
	hook.next = func() {
		if err := x.s.SetHorizon(testBranch, second, nil); err != nil {
			t.Error(err)
		}
	}
	x.step()
	x.commit()
	if _, err := x.s.Collect(context.Background(), testBranch, CollectOptions{BytesPerSecond: 1 << 40, Worth: 1e-9}); err != nil {
		t.Fatal(err)
	}
	if hook.next != nil {
		t.Fatal("no file was made")
	}
	x.crash()
	p, _ := x.s.Progress(testBranch)
	for i := range pg.LSN(12) {
		if at := first + (second-first)*i/12; at >= p.Horizon {
			x.compareAt(at)
		}
	}
	x.close()
}

// handmade is a store with versions of two pages in one chunk each, written one by one.
type handmade struct {
	t testing.TB
	s *Store
}

var pageK, pageJ = pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 100}}, Block: 3}, pg.PageKey{
	RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 200}}, Block: 4}

func newHandmade(t testing.TB) *handmade {
	s, err := Open(testOptions(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &handmade{t, s}
}

// image is a page that tells its LSN.
func image(lsn pg.LSN) pg.Page {
	p := make(pg.Page, pg.BlockSize)
	for i := range p {
		p[i] = byte(lsn) ^ byte(i)
	}
	return p
}

// write writes an image of a page.
func (h *handmade) write(branch uint32, key pg.PageKey, lsn pg.LSN) {
	h.t.Helper()
	w, err := h.s.Writer(branch)
	if err != nil {
		h.t.Fatal(err)
	}
	defer w.Close()
	err = w.Image(key, lsn, Origin{}, image(lsn))
	if err = errors.Join(err, w.Commit(Progress{Start: 0x100, Consistent: 0x100, Readable: lsn, Resume: lsn})); err != nil {
		h.t.Fatal(err)
	}
}

// reads compares a page with the image of an LSN.
func (h *handmade) reads(branch uint32, key pg.PageKey, at, want pg.LSN) error {
	got := make(pg.Page, pg.BlockSize)
	if err := h.s.Page(context.Background(), branch, key, at, got); err != nil {
		return err
	}
	if !bytes.Equal(got, image(want)) {
		h.t.Errorf("%s of branch %d at %s is not the version of %s", key, branch, at, want)
	}
	return nil
}

// copySmallTo brings what is small of a branch to another store.
func (h *handmade) copySmallTo(to *handmade, branch uint32) {
	h.t.Helper()
	var b bytes.Buffer
	if _, err := h.s.ExportSmall(context.Background(), branch, 0, 0, &b); err != nil {
		h.t.Fatal(err)
	}
	if _, err := to.s.ImportSmall(context.Background(), branch, &b); err != nil {
		h.t.Fatal(err)
	}
}

func (h *handmade) horizon(branch uint32, at pg.LSN) Collected {
	h.t.Helper()
	err := h.s.Flush()
	if err = errors.Join(err, h.s.SetHorizon(branch, at, nil)); err != nil {
		h.t.Fatal(err)
	}
	got, err := h.s.Collect(context.Background(), branch, CollectOptions{BytesPerSecond: 1 << 40, Worth: 1e-9})
	if err != nil {
		h.t.Fatal(err)
	}
	return got
}

// A read of a branch that goes on in its parent takes from another store what lies at or below the fork, also where the parent's horizon is beyond that: never
// what the parent got later.
func TestForkIsReadFromACollectedStore(t *testing.T) {
	a, b := newHandmade(t), newHandmade(t)
	a.write(parentBranch, pageK, 0x110)
	a.copySmallTo(b, parentBranch)
	var all []placement.Shard
	for i := range placement.Shard(a.s.Shards()) {
		all = append(all, i)
	}
	if _, err := b.s.Own(parentBranch, all...); err != nil {
		t.Fatal(err)
	}
	const fork = pg.LSN(0x200)
	for _, x := range []*handmade{a, b} {
		x.write(parentBranch, pageJ, fork)
		if err := x.s.Fork(parentBranch, testBranch, fork); err != nil {
			t.Fatal(err)
		}
		x.write(parentBranch, pageK, 0x250)
		x.write(testBranch, pageJ, 0x300)
		x.horizon(parentBranch, 0x250)
	}
	b.s.SetSource(a.s)
	for _, x := range []*handmade{a, b} {
		if err := errors.Join(x.reads(testBranch, pageK, 0x300, 0x110), x.reads(testBranch, pageJ, 0x300, 0x300), x.reads(parentBranch, pageK, 0x250, 0x250)); err != nil {
			t.Error(err)
		}
	}
}

// A chunk that is owned without its shard is collected, too.
func TestChunksOfTheirOwnAreCollected(t *testing.T) {
	a, b := newHandmade(t), newHandmade(t)
	a.write(testBranch, pageK, 0x110)
	a.copySmallTo(b, testBranch)
	k := placement.ChunkOf(pageK, a.s.SegmentBlocks())
	if _, err := b.s.OwnChunk(testBranch, k); err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	if _, err := a.s.ExportLayer(context.Background(), LayerSpec{Branch: testBranch, Chunk: &k}, &layer); err != nil {
		t.Fatal(err)
	}
	if _, err := b.s.ImportLayer(context.Background(), &layer); err != nil {
		t.Fatal(err)
	}
	for lsn := pg.LSN(0x120); lsn < 0x200; lsn += 0x10 {
		b.write(testBranch, pageK, lsn)
	}
	if got := b.horizon(testBranch, 0x1F0); got.GoneVersions < 10 {
		t.Errorf("%+v: the chunk's older versions stay", got)
	}
	if err := b.reads(testBranch, pageK, 0x1F0, 0x1F0); err != nil {
		t.Error(err)
	}
}

// That a page can't be made shows when it is read, and is told after a start without another read.
func TestBrokenPagesAreKnownAfterAStart(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Open(testOptions(fs))
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Writer(testBranch)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(w.Image(pageK, 0x110, Origin{}, image(0x110)), w.Delta(pageK, 0x120, Origin{}, BaseRequired, []byte("short")), // which toyRedo refuses
		w.Commit(Progress{Start: 0x100, Consistent: 0x100, Readable: 0x200, Resume: 0x200}))
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var damage *DamagedError
	if err := s.Page(t.Context(), testBranch, pageK, 0x200, make(pg.Page, pg.BlockSize)); !errors.As(err, &damage) {
		t.Fatalf("it can be read: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(testOptions(fs)); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	told := 0
	if err := s.DamagedPages(t.Context(), testBranch, 0x200, func(e *DamagedError) error {
		if e.Key == pageK {
			told++
		}
		return nil
	}); err != nil || told != 1 {
		t.Errorf("told %d times: %v", told, err)
	}
}

// A branch whose progress can't be read is an error, and nothing that lies there of it is taken for what an interrupted import left.
func TestUnreadableProgressSweepsNothing(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Open(testOptions(fs))
	if err != nil {
		t.Fatal(err)
	}
	h := &handmade{t, s}
	h.write(testBranch, pageK, 0x110)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	p := progressPrefix(testBranch)
	key := p.appendKey(nil, 0)
	good, closer, err := s.db.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	good = bytes.Clone(good)
	bad := bytes.Clone(good)
	bad[len(bad)/2] ^= 1
	set := func(value []byte) {
		t.Helper()
		if err := errors.Join(s.db.Set(key, value, pebble.NoSync), s.db.Flush(), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := closer.Close(); err != nil {
		t.Fatal(err)
	}
	set(bad)
	var corrupt *CorruptError
	if _, err := Open(testOptions(fs)); !errors.As(err, &corrupt) {
		t.Fatalf("opened: %v", err)
	}
	// The same bytes with the bit flipped back.
	opt := s.pebbleOptions()
	db, err := pebble.Open(fs.PathJoin("store", "pebble"), opt)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Set(key, good, pebble.NoSync), db.Flush(), db.Close()); err != nil {
		t.Fatal(err)
	}
	opt.Cache.Unref()
	if s, err = Open(testOptions(fs)); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h.s = s
	if err := h.reads(testBranch, pageK, 0x110, 0x110); err != nil {
		t.Error(err)
	}
}
