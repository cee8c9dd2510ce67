package backup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/chunk"
	"everpage/cluster/placement"
	"everpage/wal"
	"everpage/wal/pg"
)

const (
	testBranch = 1
	testShards = 4
	firstLSN   = pg.LSN(0x1000000)
)

// copier's deltas are bytes that go to an offset of the page.
type copier struct{}

func (copier) Redo(page pg.Page, _ pg.PageKey, lsn pg.LSN, _ bool, delta []byte) (bool, error) {
	copy(page[binary.LittleEndian.Uint16(delta):], delta[2:])
	page.SetLSN(lsn)
	return true, nil
}

func openStore(t *testing.T) *chunk.Store {
	t.Helper()
	s, err := chunk.Open(chunk.Options{Dir: "store", FS: vfs.NewMem(), Redoer: copier{}, ReserveBytes: -1, Shards: testShards, SegmentBlocks: 8, CacheBytes: 1 << 20, RunBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// world is a history that grows, and what its pages were.
type world struct {
	t    *testing.T
	rng  *rand.Rand
	s    *chunk.Store
	lsn  pg.LSN
	keys []pg.PageKey
	lsns []pg.LSN
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 5)), s: openStore(t), lsn: firstLSN}
	for rel := range pg.Oid(3) {
		for block := range pg.BlockNumber(20) {
			w.keys = append(w.keys, pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: pg.DefaultTablespace, DB: 5, Rel: 16384 + rel}}, Block: block})
		}
	}
	return w
}

func (w *world) grow(records int) {
	w.t.Helper()
	wr, err := w.s.Writer(testBranch)
	if err != nil {
		w.t.Fatal(err)
	}
	defer wr.Close()
	base := w.lsn == firstLSN
	for i := range records {
		if base {
			i %= len(w.keys)
		}
		if !base || i == 0 {
			w.lsn += pg.LSN(8 * (1 + w.rng.IntN(100)))
		}
		key := w.keys[w.rng.IntN(len(w.keys))]
		if base {
			key = w.keys[i]
		}
		if base || w.rng.IntN(8) == 0 {
			page := make(pg.Page, pg.BlockSize)
			for k := range page {
				page[k] = byte(w.rng.IntN(8))
			}
			binary.LittleEndian.PutUint16(page[12:], 4096)
			binary.LittleEndian.PutUint16(page[14:], 4096)
			page.SetLSN(w.lsn)
			err = wr.Image(key, w.lsn, chunk.Origin{}, page)
		} else {
			delta := make([]byte, 2+1+w.rng.IntN(60))
			binary.LittleEndian.PutUint16(delta, uint16(100+w.rng.IntN(5000)))
			for k := range delta[2:] {
				delta[2+k] = byte(w.rng.Uint32())
			}
			err = wr.Delta(key, w.lsn, chunk.Origin{}, chunk.BaseRequired, delta)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	if err := wr.Commit(chunk.Progress{Start: firstLSN, Consistent: firstLSN + 808, Readable: max(w.lsn, firstLSN+808), Resume: max(w.lsn, firstLSN+808), Timeline: 1}); err != nil {
		w.t.Fatal(err)
	}
	w.lsn = max(w.lsn, firstLSN+808)
	w.lsns = append(w.lsns, w.lsn)
}

// uploader is one over a store, with a registry of its own in a file that the next one opens again.
func (w *world) uploader(s store.Store, dir string) (*Uploader, *Local) {
	w.t.Helper()
	r, err := OpenLocal(filepath.Join(dir, "backup.json"), testShards)
	if err != nil {
		w.t.Fatal(err)
	}
	return New(Options{
		Store: s, Registry: r, History: w.s, Dir: dir, Every: time.Second, Bytes: 1 << 20, Archived: func() pg.LSN { return ^pg.LSN(0) }, Hurry: func() {},
		Root: func() (Root, bool) {
			return Root{Cluster: "test", SystemID: 7, Major: 15, WALSegmentSize: wal.MinSegmentSize, History: wal.History{Timeline: 1}}, true
		},
	}), r
}

// compare holds pages of a store against the world's, at all LSNs up to one.
func (w *world) compare(s *chunk.Store, hi pg.LSN) {
	w.t.Helper()
	want, got := make(pg.Page, pg.BlockSize), make(pg.Page, pg.BlockSize)
	for _, at := range w.lsns {
		if at > hi || at < w.s.Oldest(testBranch) {
			continue
		}
		for range 10 {
			key := w.keys[w.rng.IntN(len(w.keys))]
			if err := w.s.Page(w.t.Context(), testBranch, key, at, want); err != nil {
				w.t.Fatal(err)
			}
			if err := s.Page(w.t.Context(), testBranch, key, at, got); err != nil {
				w.t.Fatalf("page %s at %s: %v", key, at, err)
			}
			if !bytes.Equal(want, got) {
				w.t.Fatalf("page %s at %s differs", key, at)
			}
		}
	}
}

// recover makes a store out of the objects alone, reads it while nothing is restored, restores all, and reads again.
func (w *world) recover(objects store.Store) pg.LSN {
	w.t.Helper()
	ctx := w.t.Context()
	root, err := ReadRoot(ctx, objects)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := OpenLocal(filepath.Join(w.t.TempDir(), "backup.json"), testShards)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := r.Restore(root); err != nil {
		w.t.Fatal(err)
	}
	s := openStore(w.t)
	progress, err := RestoreSmall(ctx, objects, s, root)
	if errors.Is(err, ErrNoRoot) {
		return 0 // nothing was whole when the root was written
	}
	if err != nil {
		w.t.Fatal(err)
	}
	src := NewSource(objects, r)
	s.SetSource(src)
	hi := progress[testBranch].Resume
	w.compare(s, hi)
	f := &Filler{Source: src, Store: objects, Target: s, Log: slog.New(slog.DiscardHandler)}
	for list := f.missing(); len(list) > 0; list = f.missing() {
		if err := f.fill(ctx, list[0]); err != nil {
			w.t.Fatal(err)
		}
	}
	s.SetSource(nil)
	w.compare(s, hi)
	if _, err := s.Check(ctx, func(v chunk.Violation) { w.t.Errorf("recovered store: %+v", v) }); err != nil {
		w.t.Fatal(err)
	}
	return hi
}

func TestBackupAndRecovery(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w, objects, dir := newWorld(t, seed), store.NewMemory(), t.TempDir()
	counted := store.Count(objects)
	w.grow(120)
	for i := range 30 { // far enough for layers to be made one, and for bases to be made anew
		u, r := w.uploader(counted, dir)
		u.most = 12
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if hi := r.Current(testBranch, Small).LSN; hi != w.lsn {
			t.Fatalf("round %d: uploaded up to %s, not to %s", i, hi, w.lsn)
		}
		if i%6 == 0 {
			if hi := w.recover(objects); hi != w.lsn {
				t.Fatalf("round %d: recovered up to %s, not to %s", i, hi, w.lsn)
			}
		}
		before := counted.Usage().Puts
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := counted.Usage().Puts - before; n != 0 {
			t.Errorf("round %d: %d puts where nothing is new", i, n)
		}
		if i%5 == 4 { // what lies below the horizon is in neither then
			low := max(w.s.Oldest(testBranch), w.lsns[i/2])
			if err := w.s.SetHorizon(testBranch, low, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := w.s.Collect(t.Context(), testBranch, chunk.CollectOptions{Worth: 1e-9, BytesPerSecond: 1 << 40}); err != nil {
				t.Fatal(err)
			}
		}
		w.grow(200)
	}
	scrubbed(t, objects, dir, 0)
	c := collector(t, objects, dir)
	if _, err := c.Collect(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	removed, err := c.Collect(t.Context(), false)
	if err != nil || len(removed) == 0 {
		t.Fatalf("%d objects removed, %v", len(removed), err)
	}
	w.recover(objects)
	scrubbed(t, objects, dir, 0)
}

func collector(t *testing.T, objects store.Store, dir string) *Collector {
	t.Helper()
	r, err := OpenLocal(filepath.Join(dir, "backup.json"), testShards)
	if err != nil {
		t.Fatal(err)
	}
	return &Collector{
		Store: objects, Registry: r, Branches: func() []uint32 { return []uint32{testBranch} }, Shards: testShards, Grace: -time.Hour,
		ID: func() (archive.ID, bool) { return archive.ID{}, false }, WALFrom: func() pg.LSN { return 0 },
	}
}

// scrubbed walks the backup and wants a number of problems.
func scrubbed(t *testing.T, objects store.Store, dir string, want int) {
	t.Helper()
	var found []string
	s := &Scrub{Store: objects, Registry: collector(t, objects, dir).Registry, Branches: []uint32{testBranch}, Shards: testShards, Note: func(string) {},
		Report: func(p string) { found = append(found, p) }}
	if err := s.Run(t.Context()); err != nil || len(found) != want {
		t.Errorf("scrub: %d problems, want %d: %s; %v", len(found), want, strings.Join(found, "; "), err)
	}
}

// TestUploadFaults lets each call of an upload fail in each way, and has another node recover from what is there at each moment.
func TestUploadFaults(t *testing.T) {
	faults := map[string]store.Fault{
		"refused":     {Err: &store.Error{Kind: store.ErrThrottled, Err: store.ErrInjected}},
		"denied":      {Err: &store.Error{Kind: store.ErrAuth, Err: store.ErrInjected}},
		"answer lost": {After: &store.Error{Kind: store.ErrUnavailable, Err: store.ErrInjected}},
		"cut":         {Truncate: true},
		"flipped":     {Flip: true},
	}
	for name, fault := range faults {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			for at, reached := 0, true; reached; at++ {
				reached = uploadFault(t, fault, at)
			}
		})
	}
}

func uploadFault(t *testing.T, fault store.Fault, at int) (reached bool) {
	w, objects, dir := newWorld(t, 1), store.NewMemory(), t.TempDir()
	calls := 0
	faulty := &store.Faulty{Store: objects, Decide: func(string, string) store.Fault {
		calls++
		if calls-1 == at {
			reached = true
			return fault
		}
		return store.Fault{}
	}}
	var promised pg.LSN
	w.grow(60)
	for range 3 {
		u, r := w.uploader(faulty, dir)
		for attempt := 0; ; attempt++ {
			err := u.upload(t.Context())
			if _, rerr := ReadRoot(t.Context(), objects); rerr == nil && (err != nil || attempt > 0) {
				if hi := w.recover(objects); hi < promised {
					t.Fatalf("fault at call %d: recovered up to %s, %s was there before", at, hi, promised)
				}
			} else if rerr != nil && !errors.Is(rerr, ErrNoRoot) {
				t.Fatal(rerr)
			}
			if err == nil {
				break
			}
			if attempt == 5 {
				t.Fatalf("fault at call %d: it does not end: %v", at, err)
			}
		}
		promised = r.Current(testBranch, Small).LSN
		if promised != w.lsn {
			t.Fatalf("fault at call %d: up to %s, not to %s", at, promised, w.lsn)
		}
		w.grow(60)
	}
	if _, err := collector(t, objects, dir).Collect(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	scrubbed(t, objects, dir, 0)
	return reached
}

func TestDamageIsFound(t *testing.T) {
	w, objects, dir := newWorld(t, 3), store.NewMemory(), t.TempDir()
	w.grow(60)
	u, _ := w.uploader(objects, dir)
	if err := u.upload(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{layersDir, manifestsDir} {
		var names []string
		if err := objects.List(t.Context(), kind, func(i store.Info) error {
			names = append(names, i.Name)
			for range 20 {
				at := w.rng.Int64N(i.Size)
				objects.Flip(i.Name, at)
				scrubbed(t, objects, dir, 1)
				objects.Flip(i.Name, at)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if len(names) == 0 {
			t.Errorf("no objects %s", kind)
		}
	}
	scrubbed(t, objects, dir, 0)
}

// deposed is the registry of a node that was paused while another took over: it learns so when it asks.
type deposed struct {
	*Local
	leads bool
}

func (d *deposed) Leads() bool { return d.leads }

func (d *deposed) Sync(context.Context) error {
	d.leads = false
	return nil
}

func (d *deposed) Set(context.Context, uint32, placement.Shard, Current, Next) error {
	return fmt.Errorf("%w: the shard has another epoch", ErrConflict)
}

// TestOldOwnerChangesNothing: a node that lost its shards in its sleep neither deletes nor replaces anything.
func TestOldOwnerChangesNothing(t *testing.T) {
	w, objects, dir := newWorld(t, 4), store.NewMemory(), t.TempDir()
	w.grow(60)
	u, _ := w.uploader(objects, dir)
	if err := u.upload(t.Context()); err != nil {
		t.Fatal(err)
	}
	hi := w.lsn
	c := collector(t, objects, dir)
	old := &deposed{Local: c.Registry.(*Local), leads: true}
	w.grow(60)
	late, _ := w.uploader(objects, t.TempDir())
	late.opt.Registry = old
	if err := late.upload(t.Context()); !errors.Is(err, ErrConflict) {
		t.Errorf("an upload of an old owner: %v", err)
	}
	c.Registry = old
	old.leads = true
	if removed, err := c.Collect(t.Context(), false); !errors.Is(err, ErrNotLeader) || len(removed) != 0 {
		t.Errorf("an old leader deleted %v: %v", removed, err)
	}
	if got := w.recover(objects); got != hi {
		t.Errorf("recovered up to %s, not to %s", got, hi)
	}
}

func TestRef(t *testing.T) {
	want := Ref{Object: "manifests/1/ab", Offset: 5, Length: 7, CRC: 0xfeed}
	if got, err := ParseRef(want.String()); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"a", "a:b:c:d", "a:1:2", "../a:1:2:3", "a:-1:2:3", "a:1:0:3"} {
		if r, err := ParseRef(text); err == nil {
			t.Errorf("%q became %+v", text, r)
		}
	}
}
