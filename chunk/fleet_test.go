package chunk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// fleet is several stores that hold parts of one branch, all fed from one history.
type fleet struct {
	t      testing.TB
	rng    *rand.Rand
	nodes  []*world
	page   pg.Page
	right  int // reads that were answered
	away   int // and refused
	layers int // imported
}

// newFleet is one store that has all, and stores that have not joined yet.
func newFleet(t testing.TB, rng *rand.Rand, n int) *fleet {
	x := &fleet{t: t, rng: rng, page: make(pg.Page, pg.BlockSize)}
	first := newWorld(t, rng)
	first.step()
	first.commit()
	// A crash must not leave a fleet of which nobody knows the branch: nobody could join it any more.
	if err := first.s.Flush(); err != nil {
		t.Fatal(err)
	}
	x.nodes = append(x.nodes, first)
	for range n - 1 {
		w := &world{t: t, rng: rng, fs: vfs.NewCrashableMem(), m: first.m, g: first.g}
		w.opt = testOptions(w.fs)
		s, err := Open(w.opt)
		if err != nil {
			t.Fatal(err)
		}
		w.s = s
		x.nodes = append(x.nodes, w)
	}
	return x
}

func (x *fleet) any() *world { return x.nodes[x.rng.IntN(len(x.nodes))] }

func joined(w *world) bool {
	_, ok := w.s.Progress(testBranch)
	return ok
}

func (x *fleet) shard() placement.Shard { return placement.Shard(x.rng.Uint32N(x.nodes[0].opt.Shards)) }

// act does one thing to one store.
func (x *fleet) act() {
	t, w := x.t, x.any()
	if !joined(w) {
		x.tryJoin(w, x.any())
		return
	}
	switch n := x.rng.IntN(100); {
	case n < 50:
		for range x.rng.IntN(30) {
			w.step()
		}
		if x.rng.IntN(3) != 0 {
			w.commit()
		}
	case n < 62:
		k := x.shard()
		if x.complete(k) < 2 {
			x.fill(k)
		} else if err := w.s.Disown(testBranch, k); err != nil {
			t.Fatal(err)
		}
	case n < 64:
		if _, err := w.s.OwnChunk(testBranch, x.chunk()); err != nil && !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
	case n < 66:
		k := x.chunk()
		owned := w.s.Coverage(testBranch, placement.ShardOf(k, w.opt.Shards)).Owned
		if err := w.s.DropChunk(testBranch, k); (err != nil) != owned {
			t.Fatalf("drop of chunk %s: %v", k, err)
		}
	case n < 74:
		if _, err := w.s.Own(testBranch, x.shard(), x.shard()); err != nil && !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
	case n < 87:
		x.fill(x.shard())
	case n < 91:
		x.evict(w)
	case n < 94:
		k := x.shard()
		others := slices.ContainsFunc(w.s.OwnedChunks(testBranch), func(c placement.Chunk) bool { return placement.ShardOf(c, w.opt.Shards) == k })
		if err := w.s.DropShard(testBranch, k); (err != nil) != (w.s.Coverage(testBranch, k).Owned || others) {
			t.Fatalf("drop of shard %d: %v", k, err)
		}
	case n < 97:
		w.reopen()
	default:
		w.crash()
	}
}

// tryJoin brings what is small of the branch from one store to another, if it comes whole.
func (x *fleet) tryJoin(w, from *world) {
	if !joined(from) {
		return
	}
	t, ctx := x.t, context.Background()
	var b bytes.Buffer
	if _, err := from.s.ExportSmall(ctx, testBranch, 0, 0, &b); err != nil {
		t.Fatal(err)
	}
	if x.rng.IntN(3) == 0 { // what comes broken makes no branch
		cut := b.Bytes()[:x.rng.IntN(b.Len())]
		if _, err := w.s.ImportSmall(ctx, testBranch, bytes.NewReader(cut)); err == nil {
			t.Fatal("a truncated export was taken")
		}
		return
	}
	if _, err := w.s.ImportSmall(ctx, testBranch, &b); err != nil {
		t.Fatal(err)
	}
	w.resume()
}

// evict gives up some versions of a chunk or of shards of a store; a layer that begins behind them is still to be had.
func (x *fleet) evict(w *world) (evicted int) {
	t, ctx := x.t, context.Background()
	d, _ := w.s.Durable(testBranch)
	below := func(have Coverage) (pg.LSN, bool) {
		if !have.Owned || have.From > d.Resume {
			return 0, false
		}
		return have.From + pg.LSN(x.rng.Uint64N(uint64(d.Resume-have.From)+1)), true
	}
	spec := LayerSpec{Branch: testBranch, Delta: true}
	if c := x.chunk(); x.rng.IntN(4) != 0 {
		upTo, ok := below(w.s.ChunkCoverage(testBranch, c))
		if !ok {
			return 0
		}
		if err := w.s.Evict(ctx, testBranch, Eviction{c, upTo}); err != nil {
			t.Fatal(err)
		}
		if have := w.s.ChunkCoverage(testBranch, c); have != (Coverage{Owned: true, From: upTo}) {
			t.Fatalf("evicted up to %s: %+v", upTo, have)
		}
		spec.Chunk, spec.From = &c, upTo
	} else {
		first, list := x.shard(), []pg.LSN{}
		for i := first; i < placement.Shard(w.opt.Shards) && len(list) < 1+x.rng.IntN(3); i++ {
			have := w.s.Coverage(testBranch, i)
			for k, c := range w.s.branch(testBranch).cover.Load().chunks {
				if placement.ShardOf(k, w.opt.Shards) == i {
					have.From = max(have.From, c.From)
				}
			}
			upTo, ok := below(have)
			if !ok {
				break
			}
			list = append(list, upTo)
		}
		if len(list) == 0 {
			return 0
		}
		if err := w.s.EvictShards(ctx, testBranch, first, list); err != nil {
			t.Fatal(err)
		}
		spec.Shard, spec.From = first, list[0]
	}
	if p, _ := w.s.Progress(testBranch); spec.From >= max(p.Horizon, p.Start) && spec.From > 0 {
		var b bytes.Buffer
		if l, err := w.s.ExportLayer(ctx, spec, &b); err != nil || l.Lo != spec.From {
			t.Fatalf("export of what was not evicted, beyond %s: %+v, %v", spec.From, l, err)
		}
	}
	return 1
}

// chunk is one of those that the history has pages of.
func (x *fleet) chunk() placement.Chunk {
	keys := slices.SortedFunc(mapKeys(x.nodes[0].m.pages), pg.PageKey.Compare)
	return placement.ChunkOf(keys[x.rng.IntN(len(keys))], x.nodes[0].opt.SegmentBlocks)
}

// complete counts the stores that have all of a shard.
func (x *fleet) complete(k placement.Shard) (n int) {
	for _, w := range x.nodes {
		if joined(w) && w.s.Coverage(testBranch, k).Complete {
			n++
		}
	}
	return n
}

// fill moves a shard, or a chunk of it, from a store that has it to those that own it and lack it.
func (x *fleet) fill(k placement.Shard) {
	ctx := context.Background()
	for _, w := range x.nodes {
		if !joined(w) {
			continue
		}
		have := w.s.Coverage(testBranch, k)
		spec := LayerSpec{Branch: testBranch, Shard: k}
		if others := w.s.OwnedChunks(testBranch); !have.Owned && len(others) > 0 {
			slices.SortFunc(others, placement.Chunk.Compare)
			spec.Chunk = &others[x.rng.IntN(len(others))]
			have = w.s.ChunkCoverage(testBranch, *spec.Chunk)
		} else if x.rng.IntN(2) == 0 {
			if c := x.chunk(); placement.ShardOf(c, w.opt.Shards) == k {
				spec.Chunk = &c
			}
		}
		if !have.Owned || have.Complete && x.rng.IntN(4) != 0 {
			continue
		}
		from := x.any()
		p, _ := from.s.Durable(testBranch)
		if x.rng.IntN(2) == 0 && p.Readable != 0 {
			spec.From = x.nodes[0].m.start + pg.LSN(x.rng.Uint64N(uint64(p.Readable-x.nodes[0].m.start)+1))
		}
		var b bytes.Buffer
		l, err := from.s.ExportLayer(ctx, spec, &b)
		if err != nil {
			if !errors.Is(err, ErrNotHere) && !errors.Is(err, ErrNoBranch) {
				x.t.Fatalf("export: %v", err)
			}
			continue
		}
		if x.rng.IntN(3) == 0 {
			if _, err := w.s.ImportLayer(ctx, bytes.NewReader(b.Bytes()[:x.rng.IntN(b.Len())])); err == nil {
				x.t.Fatal("a truncated layer was taken")
			}
			continue
		}
		if _, err := w.s.ImportLayer(ctx, &b); err != nil {
			here := w.s.Coverage(testBranch, k)
			if spec.Chunk != nil {
				here = w.s.ChunkCoverage(testBranch, *spec.Chunk)
			}
			if errors.Is(err, ErrNotHere) && l.Hi < here.From {
				continue
			}
			if p, _ := w.s.Durable(testBranch); errors.Is(err, ErrNotHere) && !here.Complete && l.Lo > min(here.From, p.Resume) { // it must begin anew
				if l.Chunk != nil && !w.s.Coverage(testBranch, l.Shard).Owned {
					if err := w.s.DropChunk(testBranch, *l.Chunk); err != nil {
						x.t.Fatal(err)
					}
					continue
				}
				if err := w.s.Disown(testBranch, k); err != nil {
					x.t.Fatal(err)
				}
				if err := w.s.DropShard(testBranch, k); err != nil {
					x.t.Fatal(err)
				}
				if _, err := w.s.Own(testBranch, k); err != nil {
					x.t.Fatal(err)
				}
				continue
			}
			x.t.Fatalf("import of %+v: %v", l, err)
		}
		x.layers++
	}
}

// Versions asks the stores in any order.
func (x *fleet) Versions(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN) (list []PageVersion, err error) {
	err = errors.New("nobody has it")
	for _, i := range x.rng.Perm(len(x.nodes)) {
		if list, err = x.nodes[i].s.Versions(ctx, branch, key, at); err == nil {
			return list, nil
		}
	}
	return nil, err
}

// compare reads all pages at a few LSNs from every store: each answer is the model's, or none; covered pages are answered.
func (x *fleet) compare() {
	for _, w := range x.nodes {
		if !joined(w) {
			continue
		}
		for range 2 {
			lsn := w.randomLSN()
			for k := range w.m.pages {
				err := samePage(w.s, k, lsn, w.m.pageAt(k, lsn))
				var away *NotHereError
				switch {
				case err == nil:
					x.right++
				case errors.As(err, &away):
					x.away++
					if have := w.s.ChunkCoverage(testBranch, placement.ChunkOf(k, w.opt.SegmentBlocks)); have.answers(lsn) && away.Have == have {
						x.t.Fatalf("%s at %s is covered by %+v: %v", k, lsn, have, err)
					}
				default:
					w.dump(k)
					x.t.Fatal(err)
				}
			}
			for f := range w.m.sizes {
				want := w.m.sizeAt(f, lsn)
				if n, ok, err := w.s.Size(testBranch, f, lsn); err != nil || ok != want.exists || n != want.blocks {
					x.t.Fatalf("size of %s at %s: got %d %v %v, want %d", f, lsn, n, ok, err, want.blocks)
				}
			}
			w.compareMeta(lsn)
		}
		w.compareCommits()
	}
}

// A fleet whose only member crashes at once can still be joined.
func TestFleetCrash(t *testing.T) {
	x := newFleet(t, rand.New(rand.NewPCG(seedOf(t), 21)), 2)
	x.nodes[0].crash()
	if !joined(x.nodes[0]) {
		t.Error("the first store has forgotten its branch")
	}
	x.join(x.nodes[1])
	for _, w := range x.nodes {
		w.close()
	}
}

// join is for a store that gets the branch from the first one, which still has all.
func (x *fleet) join(w *world) {
	x.t.Helper()
	for n := 0; !joined(w); n++ {
		if n > 10_000 {
			x.t.Fatal("the store has not joined after 10000 tries")
		}
		x.nodes[0].step()
		x.nodes[0].commit()
		x.tryJoin(w, x.nodes[0])
	}
}

// Shards move at random moments between stores that are fed at their own pace, crash and come back: every page that one of them answers is right.
func TestFleet(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 11))
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	x := newFleet(t, rng, 3)
	for round := range rounds {
		for range 40 {
			x.act()
		}
		for _, w := range x.nodes {
			w.s.SetSource(nil)
			if round%2 == 1 {
				w.s.SetSource(x)
			}
		}
		x.compare()
	}
	for _, w := range x.nodes {
		w.s.SetSource(nil)
		if joined(w) {
			w.check()
			w.w.Close()
		}
		if err := w.s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d pages right, %d elsewhere, %d layers moved", x.right, x.away, x.layers)
	if x.right == 0 || x.away == 0 || x.layers == 0 {
		t.Error("the history did not move enough")
	}
}

// What was imported never lies beyond what a crash leaves of the branch's progress, although the writer stored nothing so far up.
func TestImportAhead(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 22)) // its last record changes a page that was there
	x := newFleet(t, rng, 2)
	x.join(x.nodes[1])
	a, b := x.nodes[0], x.nodes[1]
	if err := b.s.Disown(testBranch, allShards(b)...); err != nil {
		t.Fatal(err)
	}
	state := b.s.branch(testBranch)
	for n := 0; pg.LSN(state.at.Load()) <= state.high; n++ {
		if n > 10_000 {
			t.Fatal("no record without anything to store")
		}
		b.step()
		if err := b.w.gathered(); err != nil {
			t.Fatal(err)
		}
	}
	for a.fed < b.fed {
		a.step()
	}
	a.step()
	a.commit()
	if _, err := b.s.Own(testBranch, allShards(b)...); err != nil {
		t.Fatal(err)
	}
	for i, k := range allShards(b) {
		var buf bytes.Buffer
		if _, err := a.s.ExportLayer(context.Background(), LayerSpec{Branch: testBranch, Shard: k}, &buf); errors.Is(err, ErrNotHere) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if _, err := b.s.ImportLayer(context.Background(), &buf); err != nil {
			t.Fatalf("shard %d: %v", i, err)
		}
		b.crash()
		b.check()
		if _, err := b.s.Own(testBranch, allShards(b)...); err != nil {
			t.Fatal(err)
		}
	}
	b.commit()
	x.compare()
	b.close()
	a.close()
}

func allShards(w *world) (list []placement.Shard) {
	for i := range placement.Shard(w.opt.Shards) {
		list = append(list, i)
	}
	return list
}

// What is small of a branch and comes broken leaves nothing behind.
func TestImportSmallBroken(t *testing.T) {
	x := newFleet(t, rand.New(rand.NewPCG(seedOf(t), 24)), 2)
	a, b := x.nodes[0], x.nodes[1]
	var buf bytes.Buffer
	if _, err := a.s.ExportSmall(context.Background(), testBranch, 0, 0, &buf); err != nil {
		t.Fatal(err)
	}
	if _, err := b.s.ImportSmall(context.Background(), testBranch, bytes.NewReader(buf.Bytes()[:buf.Len()-1])); err == nil {
		t.Error("a truncated export was taken")
	}
	check(t, b.s, nil)
	if n := b.s.Stats().Tables; n != 0 {
		it, err := b.s.db.NewIter(nil)
		if err != nil {
			t.Fatal(err)
		}
		if it.First() {
			t.Errorf("key %x was left", it.Key())
		}
		if err := it.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.s.ImportSmall(context.Background(), testBranch, &buf); err != nil {
		t.Error(err)
	}
	b.resume()
	b.compareMeta(b.high)
	a.close()
	b.close()
}
