package backup

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

// written is a spool that has all that a builder made.
type written struct{ b *waltest.Builder }

func (w written) First() pg.LSN          { return w.b.Base() }
func (w written) Durable() pg.LSN        { return w.b.End() }
func (w written) DurableWAL() wal.Source { return w }

func (w written) WaitDurable(ctx context.Context, at pg.LSN) error {
	if at < w.b.End() {
		return nil
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (w written) ReadWAL(p []byte, at pg.LSN) (int, error) {
	return copy(p, w.b.Bytes()[at-w.b.Base():]), nil
}

func listed(t *testing.T, s store.Store, prefix string) (list []store.Info) {
	t.Helper()
	if err := s.List(t.Context(), prefix, func(i store.Info) error {
		list = append(list, i)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestScrubAfterFailover: the old primary wrote on beyond the switch, further than the new one has come by now.
func TestScrubAfterFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		objects := store.NewMemory()
		record := func(b *waltest.Builder, n int) {
			for range n {
				b.AddRecord(wal.RmXLOG, 0x20, 0, nil, make([]byte, 300))
			}
		}
		older, newer := waltest.New(waltest.Options{}), waltest.New(waltest.Options{})
		record(older, 10)
		record(newer, 10)
		at := older.End()
		newer.Promote(2)
		record(newer, 1)
		record(older, 2000)
		id := archive.ID{SystemID: older.Options().SystemID, SegmentSize: older.Options().SegmentSize}
		history := wal.History{Timeline: 2, Parents: []wal.HistoryEntry{{Timeline: 1, Switch: at, Reason: "no recovery target specified"}}}
		for _, w := range []struct {
			b *waltest.Builder
			h wal.History
		}{{older, wal.History{Timeline: 1}}, {newer, history}} {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			a := archive.New(archive.Options{Store: objects, ID: id, History: w.h, Every: time.Second, Dir: t.TempDir()})
			go func() { done <- a.Run(ctx, written{w.b}) }()
			time.Sleep(5 * time.Second)
			cancel()
			<-done
		}
		root := &Root{SystemID: id.SystemID, History: history, Main: 2, Lines: []Line{{Branch: 1, Timeline: 1}, {Branch: 2, Parent: 1, Fork: at, Timeline: 2, History: history.Format()}}}
		resume := map[uint32]pg.LSN{1: older.End(), 2: newer.End()}
		check := func(want ...string) {
			t.Helper()
			var found []string
			s := &Scrub{Store: objects, ID: id, Root: root, Report: func(p string) { found = append(found, p) }, Note: func(string) {}}
			if err := s.wal(t.Context(), resume); err != nil || !slices.Equal(found, want) {
				t.Errorf("%q, %v; want %q", found, err, want)
			}
		}
		check()
		// Where the new branch is in no layer yet, all of it is in WAL only.
		delete(resume, 2)
		check()
		for _, i := range listed(t, objects, "wal/") {
			if err := objects.Delete(t.Context(), i.Name); err != nil {
				t.Fatal(err)
			}
		}
		check("hole: the WAL of branch 2 ends at 0/100000, what is read of it in a recovery begins at " + at.String())
	})
}

// TestDamagedRootIsFound: recovery passes over a damaged root for the one before, so that nothing but verify tells of it.
func TestDamagedRootIsFound(t *testing.T) {
	w, objects, dir := newWorld(t, 4), store.NewMemory(), t.TempDir()
	w.grow(60)
	for range 3 {
		u, _ := w.uploader(objects, dir)
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.grow(60)
	}
	names := listed(t, objects, rootDir)
	if len(names) < 3 {
		t.Fatalf("roots: %v", names)
	}
	scrubbed(t, objects, dir, 0)
	for _, i := range names {
		objects.Flip(i.Name, i.Size/2)
		if _, err := ReadRoot(t.Context(), objects); err != nil {
			t.Errorf("with %s damaged no root is found: %v", i.Name, err)
		}
		scrubbed(t, objects, dir, 1)
		objects.Flip(i.Name, i.Size/2)
	}
}

// TestScrubReadsWhatTheRootNeeds: until a root is replaced, recovery begins with its manifests, though there are newer ones.
func TestScrubReadsWhatTheRootNeeds(t *testing.T) {
	w, objects, dir := newWorld(t, 5), store.NewMemory(), t.TempDir()
	u, r := w.uploader(objects, dir)
	for range 5 {
		w.grow(60)
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	old := listed(t, objects, rootDir)
	if err := w.s.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := w.s.SetHorizon(testBranch, w.lsns[len(w.lsns)-2], nil); err != nil { // so that all layers are made anew
		t.Fatal(err)
	}
	w.grow(60)
	if err := u.upload(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, i := range listed(t, objects, rootDir) { // as if none of the newer roots had been written
		if i.Name > old[len(old)-1].Name {
			if err := objects.Delete(t.Context(), i.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	inv, err := TakeInventory(t.Context(), objects, r, []uint32{testBranch}, testShards)
	if err != nil {
		t.Fatal(err)
	}
	current := map[string]bool{}
	for _, m := range inv.Lists {
		for _, l := range m.Layers {
			current[l.Object] = true
		}
	}
	found := false
	for _, i := range listed(t, objects, layersDir) {
		if inv.Needed[i.Name] && !current[i.Name] {
			found = true
			objects.Flip(i.Name, i.Size/2)
			var told []string
			s := &Scrub{Store: objects, Registry: r, Branches: []uint32{testBranch}, Shards: testShards, Note: func(string) {}, Report: func(p string) { told = append(told, p) }}
			if err := s.Run(t.Context()); err != nil || len(told) == 0 {
				t.Errorf("%s is damaged: %v, %v", i.Name, told, err)
			}
			objects.Flip(i.Name, i.Size/2)
		}
	}
	if !found {
		t.Error("the root needs nothing that the current manifests don't")
	}
}

// hooked calls once before the first object of a kind is read.
type hooked struct {
	store.Store
	kind string
	once func()
}

func (h *hooked) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if fn := h.once; fn != nil && strings.HasPrefix(name, h.kind) {
		h.once = nil
		fn()
	}
	return h.Store.Get(ctx, name, offset, length)
}

// TestScrubWhileLayersAreReplaced: a walk takes hours, in which shards get new bases and gc takes the old ones away.
func TestScrubWhileLayersAreReplaced(t *testing.T) {
	w, objects, dir := newWorld(t, 6), store.NewMemory(), t.TempDir()
	u, r := w.uploader(objects, dir)
	for range 5 {
		w.grow(60)
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	damage := false
	replace := func() {
		if err := w.s.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := w.s.SetHorizon(testBranch, w.lsns[len(w.lsns)-2], nil); err != nil {
			t.Fatal(err)
		}
		w.grow(60)
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if removed, err := collector(t, objects, dir).Collect(t.Context(), false); err != nil || len(removed) == 0 {
			t.Fatalf("%v, %v", removed, err)
		}
		if damage {
			for _, i := range listed(t, objects, layersDir) {
				objects.Flip(i.Name, i.Size/2)
			}
		}
	}
	for _, damage = range []bool{false, true} {
		var told []string
		s := &Scrub{Store: &hooked{objects, layersDir, replace}, Registry: r, Branches: []uint32{testBranch}, Shards: testShards, Note: func(string) {}, Report: func(p string) { told = append(told, p) }}
		if err := s.Run(t.Context()); err != nil || len(told) > 0 != damage {
			t.Errorf("%q, %v; what is new is damaged: %t", told, err, damage)
		}
		w.grow(60)
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestScrubBesideAnUpload: the shards' manifests are read one after the other, and new ones come meanwhile.
func TestScrubBesideAnUpload(t *testing.T) {
	w, objects, dir := newWorld(t, 7), store.NewMemory(), t.TempDir()
	u, r := w.uploader(objects, dir)
	grow := func() {
		w.grow(60)
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	grow()
	var told []string
	s := &Scrub{Store: &hooked{objects, manifestsDir, grow}, Registry: r, Branches: []uint32{testBranch}, Shards: testShards, Note: func(string) {}, Report: func(p string) { told = append(told, p) }}
	if err := s.Run(t.Context()); err != nil || len(told) > 0 {
		t.Errorf("%q, %v", told, err)
	}
}
