package chunk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

const parentBranch = 6

// forked is a world whose branch forked off another one, which has gone its own way since.
func forked(t testing.TB, rng *rand.Rand) *world {
	const start = pg.LSN(0x1_F000_0000)
	m := newModel(start)
	x := &world{t: t, rng: rng, fs: vfs.NewCrashableMem(), m: m, g: &generator{rng: rng, m: m, lsn: start}}
	x.opt = testOptions(x.fs)
	x.g.base()
	for range 50 + rng.IntN(150) {
		m.run(x.g.next())
	}
	other := newModel(start)
	for _, r := range m.recs {
		other.run(r)
	}
	g := &generator{rng: rng, m: other, lsn: x.g.lsn}
	for range rng.IntN(100) {
		other.run(g.next())
	}
	s, err := Open(x.opt)
	if err != nil {
		t.Fatal(err)
	}
	x.s = s
	w, err := s.Writer(parentBranch)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range other.recs {
		if err := feed(w, r); err != nil {
			t.Fatal(err)
		}
		if i%7 == 0 || i == len(other.recs)-1 {
			if err := w.Commit(Progress{Start: start, Consistent: start, Readable: r.lsn, Resume: r.lsn}); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.Close()
	if err := s.Fork(parentBranch, testBranch, m.recs[len(m.recs)-1].lsn); err != nil {
		t.Fatal(err)
	}
	x.resume()
	return x
}

// A branch that forked off another one is that one up to the fork, and its own beyond, whatever happens to either; also in a store that got both by layers.
func TestFork(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 14))
	for range 3 {
		x := forked(t, rng)
		fork := x.high
		x.compareAt(x.high)
		x.compareAt(x.randomLSN())
		for range 4 {
			for range rng.IntN(80) {
				x.step()
			}
			x.commit()
			for range 2 {
				x.compareAt(x.randomLSN())
			}
			x.compareAt(fork)
			x.compareCommits()
			switch rng.IntN(3) {
			case 0:
				x.reopen()
			case 1:
				x.crash()
			}
		}
		if err := x.s.DropBranch(parentBranch); !errors.Is(err, ErrBusy) {
			t.Errorf("the parent was dropped: %v", err)
		}
		y := copied(x)
		for range 3 {
			y.compareAt(y.randomLSN())
		}
		y.compareCommits()
		y.close()
		x.close()
	}
}

// copied is a store that has got all branches of another one by layers.
func copied(x *world) *world {
	t, ctx := x.t, context.Background()
	y := &world{t: t, rng: x.rng, fs: vfs.NewCrashableMem(), m: x.m, g: x.g}
	y.opt = testOptions(y.fs)
	s, err := Open(y.opt)
	if err != nil {
		t.Fatal(err)
	}
	y.s = s
	for _, b := range []uint32{parentBranch, testBranch} {
		var buf bytes.Buffer
		if _, err := x.s.ExportSmall(ctx, b, 0, 0, &buf); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ImportSmall(ctx, b, &buf); err != nil {
			t.Fatal(err)
		}
		for i := range placement.Shard(y.opt.Shards) {
			if _, err := s.Own(b, i); err != nil {
				t.Fatal(err)
			}
			buf.Reset()
			if _, err := x.s.ExportLayer(ctx, LayerSpec{Branch: b, Shard: i}, &buf); err != nil {
				t.Fatal(err)
			}
			if _, err := s.ImportLayer(ctx, &buf); err != nil {
				t.Fatal(err)
			}
		}
	}
	y.resume()
	return y
}
