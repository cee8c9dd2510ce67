package chunk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// collectOnce moves the horizon of a world's branch and collects, and tells what stays readable.
func collectOnce(x *world, branch uint32, pins []pg.LSN) (pg.LSN, []pg.LSN) {
	x.t.Helper()
	p, _ := x.s.Progress(branch)
	d, _ := x.s.Durable(branch)
	if d.Resume <= max(p.Horizon, p.Consistent) {
		return p.Horizon, p.Pins
	}
	low := max(p.Horizon, p.Consistent)
	h := low + pg.LSN(x.rng.Uint64N(uint64(d.Resume-low)+1))
	keep := slices.DeleteFunc(slices.Clone(pins), func(pin pg.LSN) bool { return x.rng.IntN(4) == 0 })
	for range x.rng.IntN(3) {
		keep = append(keep, low+pg.LSN(x.rng.Uint64N(uint64(h-low)+1)))
	}
	dry, err := x.s.CollectDry(context.Background(), branch, h, keep)
	if err != nil {
		x.t.Fatal(err)
	}
	if err := x.s.SetHorizon(branch, h, keep); err != nil {
		x.t.Fatal(err)
	}
	got, err := x.s.Collect(context.Background(), branch, CollectOptions{BytesPerSecond: 1 << 40, Worth: 1e-9})
	if err != nil {
		x.t.Fatal(err)
	}
	if got.Bytes != dry.Bytes {
		x.t.Logf("dry run saw %d bytes, collection %d", dry.Bytes, got.Bytes)
	}
	p, _ = x.s.Progress(branch)
	if p.Horizon != h {
		x.t.Fatalf("horizon is %s, want %s", p.Horizon, h)
	}
	return h, p.Pins
}

// Whatever is collected, what lies at or beyond the horizon and at pins reads as before, and what lies below is refused.
func TestCollect(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 15))
	for range 2 {
		var x *world
		if rng.IntN(2) == 0 {
			x = newWorld(t, rng)
		} else {
			x = forked(t, rng)
		}
		var pins []pg.LSN
		for range 4 {
			for range 40 + rng.IntN(150) {
				x.step()
			}
			x.commit()
			if err := x.s.Flush(); err != nil {
				t.Fatal(err)
			}
			var h pg.LSN
			h, pins = collectOnce(x, testBranch, pins)
			p, _ := x.s.Progress(testBranch)
			if p.Fork != 0 && rng.IntN(2) == 0 {
				collectOnce(x, parentBranch, nil)
			}
			for i, lsn := range append([]pg.LSN{x.high, h, h + pg.LSN(rng.Uint64N(uint64(x.high-h)+1))}, pins...) {
				if p, _ := x.s.Progress(testBranch); p.Fork != 0 && lsn <= p.Fork {
					continue // the parent's horizon counts
				}
				if i == 1 || i == 0 || lsn >= h || slices.Contains(pins, lsn) {
					x.compareAt(lsn)
				}
			}
			if low := h - 1; h > p.Consistent && !slices.Contains(pins, low) && low > p.Fork {
				for k := range x.m.pages {
					if err := x.s.Page(context.Background(), testBranch, k, low, make(pg.Page, pg.BlockSize)); !errors.Is(err, ErrBelowHorizon) {
						t.Fatalf("%s below the horizon: %v", k, err)
					}
				}
			}
			x.check()
			switch rng.IntN(3) {
			case 0:
				x.reopen()
			case 1:
				x.crash()
			}
		}
		n := 0
		if err := x.s.Usage(context.Background(), testBranch, func(u ChunkUsage) error { n++; return nil }); err != nil || n == 0 {
			t.Errorf("usage of %d chunks: %v", n, err)
		}
		x.close()
	}
}

// Chunks are given up while WAL goes on, and come back: from another store on demand, or as layers.
func TestEvict(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 16))
	x := newFleet(t, rng, 2)
	x.join(x.nodes[1])
	a, b := x.nodes[0], x.nodes[1]
	for i := range placement.Shard(b.opt.Shards) {
		if _, err := b.s.Own(testBranch, i); err != nil {
			t.Fatal(err)
		}
	}
	evicted := 0
	for range 6 {
		for _, w := range []*world{b, a} {
			for range 60 {
				w.step()
			}
			w.commit()
		}
		for i := range placement.Shard(b.opt.Shards) {
			x.fill(i)
		}
		for range 8 {
			evicted += x.evict(b)
			for range 5 {
				b.step()
			}
		}
		b.commit()
		x.compare()
		b.s.SetSource(a0{x})
		b.compareAt(min(a.high, b.high))
		b.s.SetSource(nil)
		switch rng.IntN(3) {
		case 0:
			b.crash()
		case 1:
			b.reopen()
		}
	}
	t.Logf("%d chunks given up; %d pages right, %d refused, %d layers", evicted, x.right, x.away, x.layers)
	b.close()
	a.close()
}

// a0 is the first store of a fleet as a source.
type a0 struct{ *fleet }

func (f a0) Versions(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN) ([]PageVersion, error) {
	return f.nodes[0].s.Versions(ctx, branch, key, at)
}

// Of a fork that was cut off again and again as few entries of its size are left as reads can tell apart, also where layers bring back what was cut off.
func TestCutOffSizesAreCollected(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 26))
	x := newFleet(t, rng, 2)
	x.join(x.nodes[1])
	a, b := x.nodes[0], x.nodes[1]
	if _, err := b.s.Own(testBranch, allShards(b)...); err != nil {
		t.Fatal(err)
	}
	a.commit()
	for _, k := range allShards(a) {
		var buf bytes.Buffer
		if _, err := a.s.ExportLayer(context.Background(), LayerSpec{Branch: testBranch, Shard: k}, &buf); err != nil {
			t.Fatal(err)
		}
		if _, err := b.s.ImportLayer(context.Background(), &buf); err != nil {
			t.Fatal(err)
		}
	}
	fork := pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}}
	add := func(ops ...op) {
		r := record{start: a.g.lsn, lsn: a.g.lsn + 8}
		a.g.lsn += 8
		r.ops = ops
		a.m.run(r)
	}
	for i := range uint32(60) {
		for block := range 4 + rng.Uint32N(8) {
			add(op{kind: "delta", key: pg.PageKey{RelFork: fork, Block: block}, base: BaseInit, data: a.g.delta()})
		}
		if i%10 == 9 {
			add(op{kind: "drop", fork: fork})
		} else {
			add(op{kind: "truncate", fork: fork, blocks: rng.Uint32N(4)})
		}
	}
	add(op{kind: "extend", fork: fork, blocks: 12}) // what it had shows nowhere
	for _, w := range x.nodes {
		for w.fed < len(w.m.recs) {
			w.step()
		}
		w.commit()
		if err := w.s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	entries := func() (n int) {
		if err := a.s.Sizes(context.Background(), testBranch, fork, func(SizeVersion) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := entries()
	if err := a.s.SetHorizon(testBranch, a.high, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := a.s.Collect(context.Background(), testBranch, CollectOptions{BytesPerSecond: 1 << 40, Worth: 1e-9}); err != nil {
		t.Fatal(err)
	}
	if n := entries(); n > 7 {
		t.Errorf("%d entries are left of %d", n, before)
	}
	a.check()
	// What the other store still has of it comes back.
	for _, k := range allShards(a) {
		if err := a.s.EvictShards(context.Background(), testBranch, k, []pg.LSN{a.high}); err != nil {
			t.Fatal(err)
		}
	}
	a.s.SetSource(only{b})
	defer a.s.SetSource(nil)
	for k := range a.m.pages {
		if err := samePage(a.s, k, a.high, a.m.pageAt(k, a.high)); err != nil {
			t.Error(err)
		}
	}
	if a.s.Stats().Fetched == 0 {
		t.Error("nothing came back")
	}
	a.check()
	b.close()
	a.close()
}

// only is one store as a source.
type only struct{ w *world }

func (o only) Versions(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN) ([]PageVersion, error) {
	return o.w.s.Versions(ctx, branch, key, at)
}
