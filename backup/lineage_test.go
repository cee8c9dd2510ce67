package backup

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/chunk"
	"everpage/cluster/placement"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// A node that leads and has not got a branch yet says of it what the cluster knows, and takes nothing of it for garbage.
func TestLeaderWithoutABranch(t *testing.T) {
	w, objects, dir := newWorld(t, uint64(time.Now().UnixNano())), store.NewMemory(), t.TempDir()
	w.grow(300)
	u, r := w.uploader(objects, dir)
	if err := u.upload(t.Context()); err != nil {
		t.Fatal(err)
	}
	known := func() []uint32 { return []uint32{testBranch} }
	opt := u.opt
	opt.History, opt.Known = openStore(t), known
	if err := New(opt).upload(t.Context()); err != nil {
		t.Fatal(err)
	}
	root, err := ReadRoot(t.Context(), objects)
	if err != nil {
		t.Fatal(err)
	}
	if len(root.Branches) != 1 || !root.Branches[0].whole(testShards) {
		t.Fatalf("the root says of branches: %+v", root.Branches)
	}
	c := &Collector{Store: objects, Registry: r, Branches: known, Shards: testShards, ID: func() (archive.ID, bool) { return archive.ID{}, false }, WALFrom: func() pg.LSN { return 0 }}
	if removed, err := c.Collect(t.Context(), false); err != nil || len(removed) != 0 {
		t.Fatalf("removed %v: %v", removed, err)
	}
	if w.recover(objects) == 0 {
		t.Error("nothing was whole")
	}
}

// What forked off and is not whole in the newest root is made anew out of WAL from the fork on, however far what it forked off goes.
func TestWALOfABranchThatIsNotWholeStays(t *testing.T) {
	w, objects, dir := newWorld(t, uint64(time.Now().UnixNano())), store.NewMemory(), t.TempDir()
	w.grow(300)
	u, r := w.uploader(objects, dir)
	fork := w.lsn - 100
	u.opt.Root = func() (Root, bool) {
		return Root{Cluster: "test", SystemID: 7, Major: 15, WALSegmentSize: wal.MinSegmentSize, Main: 2, Lines: []Line{{Branch: testBranch, Timeline: 1}, {Branch: 2, Parent: testBranch, Fork: fork, Timeline: 2}}}, true
	}
	if err := u.upload(t.Context()); err != nil {
		t.Fatal(err)
	}
	inv, err := TakeInventory(t.Context(), objects, r, []uint32{testBranch, 2}, testShards)
	if err != nil || inv.WALFrom != fork {
		t.Errorf("WAL is needed from %s on: %v; want %s", inv.WALFrom, err, fork)
	}
}

// Pages of a database that was copied are read out of the store also where what they were copied from lies below where the layers begin.
func TestCopiedDatabaseOutOfTheStore(t *testing.T) {
	w, objects, dir := newWorld(t, uint64(time.Now().UnixNano())), store.NewMemory(), t.TempDir()
	w.grow(300)
	wr, err := w.s.Writer(testBranch)
	if err != nil {
		t.Fatal(err)
	}
	w.lsn += 100
	if err := wr.CopyDatabase(redo.DatabaseDir{Spc: pg.DefaultTablespace, DB: 5}, redo.DatabaseDir{Spc: pg.DefaultTablespace, DB: 6}, w.lsn); err != nil {
		t.Fatal(err)
	}
	if err := wr.Commit(chunk.Progress{Start: firstLSN, Consistent: firstLSN + 808, Readable: w.lsn, Resume: w.lsn, Timeline: 1}); err != nil {
		t.Fatal(err)
	}
	wr.Close()
	w.grow(400)
	horizon := w.lsn
	w.grow(50)
	if err := w.s.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := w.s.SetHorizon(testBranch, horizon, nil); err != nil {
		t.Fatal(err)
	}
	u, r := w.uploader(objects, dir)
	if err := u.upload(t.Context()); err != nil {
		t.Fatal(err)
	}
	root, err := ReadRoot(t.Context(), objects)
	if err != nil {
		t.Fatal(err)
	}
	s, src := openStore(t), NewSource(objects, r)
	if _, err := RestoreSmall(t.Context(), objects, s, root); err != nil {
		t.Fatal(err)
	}
	src.Kept = s.Kept
	s.SetSource(src)
	want, got := make(pg.Page, pg.BlockSize), make(pg.Page, pg.BlockSize)
	for _, key := range w.keys {
		key.DB = 6
		if err := w.s.Page(t.Context(), testBranch, key, horizon, want); err != nil {
			t.Fatal(err)
		}
		if err := s.Page(t.Context(), testBranch, key, horizon, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want, got) {
			t.Fatalf("%s differs", key)
		}
	}
}

// A branch that gets nothing new, as one that main left, shrinks in the store with its horizon all the same, once.
func TestLayersOfABranchThatEndedGo(t *testing.T) {
	w, objects, dir := newWorld(t, uint64(time.Now().UnixNano())), store.NewMemory(), t.TempDir()
	w.grow(100)
	u, r := w.uploader(objects, dir)
	plain := u.opt.Root
	for range 6 {
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.grow(300)
	}
	if err := errors.Join(u.upload(t.Context()), w.s.Flush(), w.s.SetHorizon(testBranch, w.lsn, nil), w.s.Flush()); err != nil {
		t.Fatal(err)
	}
	u.opt.Root = func() (Root, bool) {
		r, ok := plain()
		r.Main = 2
		return r, ok
	}
	var refs [2]string
	for i := range refs {
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
		for shard := range placement.Shard(testShards) {
			m, err := ReadManifest(t.Context(), objects, r.Current(testBranch, shard).Ref)
			if err != nil {
				t.Fatal(err)
			}
			if len(m.Layers) != 1 || m.Hi != w.lsn {
				t.Errorf("shard %d has %d layers up to %s, the branch ends at %s", shard, len(m.Layers), m.Hi, w.lsn)
			}
			refs[i] += r.Current(testBranch, shard).Ref
		}
	}
	if refs[0] != refs[1] {
		t.Error("the layers are made anew over and over")
	}
	if w.recover(objects) != w.lsn {
		t.Error("it does not come back whole")
	}
}
