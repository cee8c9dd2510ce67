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

// every compares all that a world's store says at every LSN from its horizon on, and at its pins, with the model. most bounds the LSNs.
func (x *world) every(most int) (lsns int) {
	x.t.Helper()
	p, _ := x.s.Progress(testBranch)
	list := append([]pg.LSN{x.s.Oldest(testBranch)}, p.Pins...)
	for _, r := range x.m.recs {
		if r.lsn > p.Horizon && r.lsn > p.Fork && r.lsn <= x.high {
			list = append(list, r.lsn)
		}
	}
	for i, at := range list {
		if len(list) > most && i > len(p.Pins) && x.rng.IntN(len(list)) >= most {
			continue
		}
		x.compareAt(at)
		lsns++
	}
	return lsns
}

// Whatever is written and read meanwhile, after a collection every LSN from the horizon on reads as before, on a branch with and without a parent.
func TestCollectWhileWriting(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 17))
	ctx := context.Background()
	lsns := 0
	var total Collected
	for round := range 2 {
		x := newWorld(t, rng)
		if round%2 == 1 {
			x.close()
			x = forked(t, rng)
		}
		for range 3 {
			for range 60 + rng.IntN(60) {
				x.step()
			}
			x.commit()
			if err := x.s.Flush(); err != nil {
				t.Fatal(err)
			}
			p, _ := x.s.Progress(testBranch)
			low := max(p.Horizon, p.Consistent, p.Fork)
			h := low + pg.LSN(rng.Uint64N(uint64(x.high-low)+1))
			var pins []pg.LSN
			if rng.IntN(2) == 0 {
				pins = append(pins, low+pg.LSN(rng.Uint64N(uint64(h-low)+1)))
			}
			if err := x.s.SetHorizon(testBranch, h, pins); err != nil {
				t.Fatal(err)
			}
			type result struct {
				got Collected
				err error
			}
			done := make(chan result, 1)
			go func() {
				got, err := x.s.Collect(ctx, testBranch, CollectOptions{BytesPerSecond: 1 << 40, Worth: 1e-9})
				done <- result{got, err}
			}()
			for running := true; running; {
				select {
				case r := <-done:
					if r.err != nil {
						t.Fatal(r.err)
					}
					total.GoneVersions += r.got.GoneVersions
					total.Rewritten += r.got.Rewritten
					running = false
				default:
					for range 1 + rng.IntN(10) {
						x.step()
					}
					x.commit()
					x.compareAt(h + pg.LSN(rng.Uint64N(uint64(x.high-h)+1)))
				}
			}
			lsns += x.every(15)
			x.check()
			if rng.IntN(2) == 0 {
				x.crash()
				lsns += x.every(5)
			}
		}
		x.close()
	}
	t.Logf("%d LSNs compared, %d versions and more gone of %d ranges", lsns, total.GoneVersions, total.Rewritten)
	if total.GoneVersions == 0 {
		t.Error("nothing was collected")
	}
}

// begin moves the horizon of one store, each its own, and collects there.
func (x *fleet) begin(w *world) {
	p, ok := w.s.Progress(testBranch)
	d, _ := w.s.Durable(testBranch)
	low := max(p.Horizon, p.Consistent)
	if !ok || d.Resume <= low {
		return
	}
	h := low + pg.LSN(x.rng.Uint64N(uint64(d.Resume-low)/2+1))
	if err := w.s.SetHorizon(testBranch, h, nil); err != nil {
		x.t.Fatal(err)
	}
	if x.rng.IntN(4) == 0 {
		return // its versions stay for now
	}
	if _, err := w.s.Collect(context.Background(), testBranch, CollectOptions{BytesPerSecond: 1 << 40, Worth: 1e-9}); err != nil {
		x.t.Fatal(err)
	}
}

// parts moves a shard as a base layer of one store and a delta of another one, which may have collected more.
func (x *fleet) parts(k placement.Shard) {
	ctx := context.Background()
	var base, delta bytes.Buffer
	l, err := x.any().s.ExportLayer(ctx, LayerSpec{Branch: testBranch, Shard: k}, &base)
	if err != nil {
		return
	}
	d, err := x.any().s.ExportLayer(ctx, LayerSpec{Branch: testBranch, Shard: k, Delta: true, From: l.Hi}, &delta)
	if err != nil {
		return
	}
	for _, w := range x.nodes {
		have := w.s.Coverage(testBranch, k)
		if !joined(w) || !have.Owned || have.Complete || d.Hi < have.From {
			continue
		}
		im, err := w.s.Import(testBranch, k, nil)
		if err != nil {
			x.t.Fatal(err)
		}
		for _, b := range [][]byte{base.Bytes(), delta.Bytes()} {
			if _, err := im.Add(ctx, bytes.NewReader(b)); err != nil {
				x.t.Fatal(err)
			}
		}
		if err := im.Finish(); err != nil && !errors.Is(err, ErrNotHere) {
			x.t.Fatal(err)
		}
		x.layers++
	}
}

// below reads at any LSN from every store, also below horizons: each answer is the model's, or a refusal that fits.
func (x *fleet) below() (refused int) {
	for _, w := range x.nodes {
		if !joined(w) {
			continue
		}
		for range 3 {
			lsn := w.randomLSN()
			p, _ := w.s.Progress(testBranch)
			for k := range w.m.pages {
				err := samePage(w.s, k, lsn, w.m.pageAt(k, lsn))
				var away *NotHereError
				switch {
				case lsn < p.Horizon && !slices.Contains(p.Pins, lsn):
					if !errors.Is(err, ErrBelowHorizon) {
						x.t.Fatalf("%s at %s, below %s: %v", k, lsn, p.Horizon, err)
					}
					refused++
				case err == nil:
					x.right++
				case errors.As(err, &away):
					x.away++
					have := w.s.ChunkCoverage(testBranch, placement.ChunkOf(k, w.opt.SegmentBlocks))
					if have.answers(lsn) && away.Have == have {
						x.t.Fatalf("%s at %s is covered by %+v: %v", k, lsn, have, err)
					}
				default:
					w.dump(k)
					x.t.Fatal(err)
				}
			}
			if lsn < p.Horizon {
				continue
			}
			for f := range w.m.sizes {
				want := w.m.sizeAt(f, lsn)
				if n, ok, err := w.s.Size(testBranch, f, lsn); err != nil || ok != want.exists || n != want.blocks {
					x.t.Fatalf("size of %s at %s: got %d %v %v, want %d", f, lsn, n, ok, err, want.blocks)
				}
			}
			w.compareMeta(lsn)
		}
	}
	return refused
}

// Stores with horizons of their own exchange layers, versions on demand and what is small, join, crash and go on: every answer is right, or refused.
func TestCollectedFleet(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 18))
	rounds := 8
	if testing.Short() {
		rounds = 4
	}
	x := newFleet(t, rng, 3)
	refused := 0
	for round := range rounds {
		for range 12 {
			for range 3 {
				x.act()
			}
			switch rng.IntN(3) {
			case 0:
				x.begin(x.any())
			case 1:
				x.parts(x.shard())
			}
		}
		for _, w := range x.nodes {
			w.s.SetSource(nil)
			if round%2 == 1 {
				w.s.SetSource(x)
			}
		}
		refused += x.below()
	}
	for _, w := range x.nodes {
		w.s.SetSource(nil)
		if joined(w) {
			w.w.Close()
		}
		if err := w.s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d pages right, %d elsewhere, %d refused below a horizon, %d layers moved", x.right, x.away, refused, x.layers)
	if x.right == 0 || refused == 0 || x.layers == 0 {
		t.Error("the history did not move enough")
	}
}
