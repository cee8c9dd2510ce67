package backup

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// led is the registry of a node of several.
type led struct {
	*Local
	leads bool
	term  uint64
}

func (l *led) Leads() bool  { return l.leads }
func (l *led) Term() uint64 { return l.term }

// whole makes sure that all is there that the newest root and the current manifests need.
func (w *world) whole(objects store.Store, r Registry) {
	w.t.Helper()
	inv, err := TakeInventory(w.t.Context(), objects, r, []uint32{testBranch}, testShards)
	if err != nil {
		w.t.Fatal(err)
	}
	if missing := inv.Missing(); len(missing) > 0 {
		w.t.Fatalf("missing: %s", strings.Join(missing, ", "))
	}
}

// TestCollectBesideUploads has garbage of any age collected before each single call to the store that an upload makes. Nothing goes that a manifest or a root needs
// then or later, and the upload comes to its end.
func TestCollectBesideUploads(t *testing.T) {
	refused := 0
	for at, reached := 0, true; reached; at++ {
		var again int
		if reached, again = collectBeside(t, at); reached {
			refused += again
		}
	}
	if refused == 0 {
		t.Error("no upload was overtaken by a collection")
	}
}

// collectBeside collects before the call with this number. It returns how often the upload was made again for that.
func collectBeside(t *testing.T, at int) (reached bool, again int) {
	w, objects, dir := newWorld(t, 1), store.NewMemory(), t.TempDir()
	w.grow(60)
	calls, inside := 0, false
	var hook func(name string)
	faulty := &store.Faulty{Store: objects, Decide: func(_, name string) store.Fault {
		if !inside {
			if calls++; calls-1 == at {
				reached, inside = true, true
				hook(name)
				inside = false
			}
		}
		return store.Fault{}
	}}
	u, r := w.uploader(faulty, dir)
	other, _ := w.uploader(objects, t.TempDir())
	other.opt.Registry = &led{Local: r}
	c := collector(t, objects, dir)
	c.Registry, c.Grace = r, 0
	hook = func(name string) {
		// Another node goes on with the shards meanwhile, so that what this one has read of the registry is old.
		w.grow(20)
		if err := other.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
		rooting := strings.HasPrefix(name, rootDir)
		c.HoldRoots = func(ctx context.Context) (func(), error) {
			if rooting { // it would wait for the root
				done, cancel := context.WithCancel(ctx)
				cancel()
				ctx = done
			}
			return u.HoldRoots(ctx)
		}
		if _, err := c.Collect(t.Context(), false); err != nil && !(rooting && errors.Is(err, context.Canceled)) {
			t.Fatal(err)
		}
		w.whole(objects, r)
	}
	for round := range 3 {
		for attempt := 0; ; attempt++ {
			err := u.upload(t.Context())
			if err == nil {
				break
			}
			// Its objects are gone, as it sees by itself or is told.
			if !errors.Is(err, ErrConflict) && !errors.Is(err, store.ErrNotExist) || attempt == 2 {
				t.Fatalf("collected at call %d, attempt %d: %v", at, attempt, err)
			}
			again++
		}
		w.whole(objects, r)
		// What came to be during the upload may have to wait for the next one.
		want := r.Current(testBranch, Small).LSN
		if hi := w.recover(objects); hi != want || calls <= at && hi != w.lsn {
			t.Fatalf("collected at call %d: after upload %d, recovered up to %s, agreed was %s, there is %s", at, round, hi, want, w.lsn)
		}
		w.grow(60)
	}
	return reached, again
}

// overtaken refuses the first manifests, as a registry does that a collection was announced to meanwhile.
type overtaken struct {
	*Local
	left atomic.Int32
}

func (o *overtaken) Set(ctx context.Context, branch uint32, shard placement.Shard, old Current, n Next) error {
	if o.left.Add(-1) >= 0 {
		return ErrConflict
	}
	return o.Local.Set(ctx, branch, shard, old, n)
}

// TestNowIsMadeAgain: who asks for a backup doesn't hear of what was faster than it.
func TestNowIsMadeAgain(t *testing.T) {
	w, objects, dir := newWorld(t, 1), store.NewMemory(), t.TempDir()
	w.grow(60)
	u, r := w.uploader(objects, dir)
	refusing := &overtaken{Local: r}
	u.opt.Registry = refusing
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	defer func() { cancel(); <-done }()
	refusing.left.Store(2)
	if err := u.Now(ctx); err != nil {
		t.Fatal(err)
	}
	if hi := w.recover(objects); hi != w.lsn {
		t.Fatalf("recovered up to %s, there is %s", hi, w.lsn)
	}
	refusing.left.Store(1000)
	w.grow(60)
	if err := u.Now(ctx); !errors.Is(err, ErrConflict) {
		t.Fatalf("refused for ever: %v", err)
	}
}

// elsewhere is a store whose clock is off.
type elsewhere struct {
	store.Store
	off time.Duration
}

func (e elsewhere) Stat(ctx context.Context, name string) (store.Info, error) {
	i, err := e.Store.Stat(ctx, name)
	i.Modified = i.Modified.Add(e.off)
	return i, err
}

func (e elsewhere) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	return e.Store.List(ctx, prefix, func(i store.Info) error {
		i.Modified = i.Modified.Add(e.off)
		return fn(i)
	})
}

// TestCollectByTheStoresClock: what is old is so by the store's clock, however far ours is off.
func TestCollectByTheStoresClock(t *testing.T) {
	for _, off := range []time.Duration{-5 * time.Hour, 5 * time.Hour} {
		w, objects, dir := newWorld(t, 2), elsewhere{store.NewMemory(), off}, t.TempDir()
		u, r := w.uploader(objects, dir)
		c := collector(t, objects, dir)
		c.Registry, c.HoldRoots = r, u.HoldRoots
		orphan := layersDir + "1/orphan"
		if err := objects.Put(t.Context(), orphan, store.Bytes([]byte("x"))); err != nil {
			t.Fatal(err)
		}
		for _, c.Grace = range []time.Duration{time.Hour, 0} {
			w.grow(60)
			if err := u.upload(t.Context()); err != nil {
				t.Fatal(err)
			}
			removed, err := c.Collect(t.Context(), false)
			gone := slices.ContainsFunc(removed, func(i store.Info) bool { return i.Name == orphan })
			if err != nil || gone != (c.Grace == 0) {
				t.Errorf("clock %s off, grace %s: collected %v, %v", off, c.Grace, removed, err)
			}
		}
		w.grow(60)
		if err := u.upload(t.Context()); err != nil {
			t.Errorf("clock %s off: %v", off, err)
		}
		w.whole(objects, r)
	}
}

// TestRootsOfOldLeaders: the newest root is that of whoever led last, even where a leader did not notice that another one led for a while.
func TestRootsOfOldLeaders(t *testing.T) {
	w, objects := newWorld(t, 2), store.NewMemory()
	w.grow(60)
	newest := func(want pg.LSN) {
		t.Helper()
		root, err := ReadRoot(t.Context(), objects)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range root.Branches[0].Manifests {
			if m.Shard == Small && m.LSN != want {
				t.Errorf("the newest root reaches %s, not %s", m.LSN, want)
			}
		}
	}
	a, r := w.uploader(objects, t.TempDir())
	b, _ := w.uploader(objects, t.TempDir())
	first := &led{Local: r, leads: true, term: 1}
	a.opt.Registry, b.opt.Registry = first, &led{Local: r, leads: true, term: 2}
	for _, u := range []*Uploader{a, b} {
		w.grow(20)
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
		newest(w.lsn)
	}
	// The first one has not heard yet that it does not lead any more, with what was current in its time.
	at, all := w.lsn, a.opt.Known
	a.opt.Known = func() []uint32 { return nil }
	if err := a.writeRoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	newest(at)
	// Now it leads again.
	a.opt.Known, first.term = all, 3
	w.grow(20)
	if err := a.upload(t.Context()); err != nil {
		t.Fatal(err)
	}
	newest(w.lsn)
	release, err := a.HoldRoots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release()
	// A collection that began before another one led deletes nothing after it.
	c := &Collector{Store: objects, Registry: first, Branches: func() []uint32 { return []uint32{testBranch} }, Shards: testShards,
		ID: func() (archive.ID, bool) { first.term++; return archive.ID{}, false }, HoldRoots: a.HoldRoots}
	if removed, err := c.Collect(t.Context(), false); !errors.Is(err, ErrNotLeader) || len(removed) > 0 {
		t.Errorf("collected %v in another term: %v", removed, err)
	}
	first.leads = false
	if _, err := a.HoldRoots(t.Context()); !errors.Is(err, ErrNotLeader) {
		t.Errorf("roots held without leading: %v", err)
	}
}
