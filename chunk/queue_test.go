package chunk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// backup is what a backup would have: for each shard a base layer and delta layers that follow it, and the same of what is small.
type backup struct {
	x      *world
	shards [][][]byte // layers by shard
	small  [][]byte
	hi     pg.LSN
}

func (k *backup) base() {
	x, ctx := k.x, context.Background()
	var b bytes.Buffer
	l, err := x.s.ExportSmall(ctx, testBranch, 0, 0, &b)
	if err != nil {
		x.t.Fatal(err)
	}
	k.hi, k.small = l.Hi, [][]byte{bytes.Clone(b.Bytes())}
	k.shards = make([][][]byte, x.opt.Shards)
	for i := range k.shards {
		b.Reset()
		if l, err = x.s.ExportLayer(ctx, LayerSpec{Branch: testBranch, Shard: placement.Shard(i), To: k.hi}, &b); err != nil || l.Hi != k.hi {
			x.t.Fatalf("%+v: %v", l, err)
		}
		k.shards[i] = [][]byte{bytes.Clone(b.Bytes())}
	}
	for _, q := range x.s.Queued() {
		if q.Intervals[0].Hi <= k.hi {
			if err := x.s.Release(q.ID); err != nil {
				x.t.Fatal(err)
			}
		}
	}
}

// more takes what the queue has, and of the database what it doesn't have.
func (k *backup) more() (queued, remade int) {
	x, ctx := k.x, context.Background()
	var ids []uint64
	var lo, hi pg.LSN
	for _, q := range x.s.Queued() {
		v := q.Intervals[0]
		if lo == 0 {
			lo = v.Lo
		}
		ids, hi = append(ids, q.ID), v.Hi
	}
	p, _ := x.s.Durable(testBranch)
	whole := len(ids) > 0 && lo <= k.hi && hi > k.hi && x.rng.IntN(4) != 0
	if !whole {
		hi = p.Readable
	}
	if hi <= k.hi {
		return 0, 0
	}
	var b bytes.Buffer
	make := func(fromQueue, fromStore func() (Layer, error)) []byte {
		b.Reset()
		err := ErrNotHere
		var l Layer
		if whole {
			if l, err = fromQueue(); err == nil {
				queued++
			}
		}
		if errors.Is(err, ErrNotHere) {
			b.Reset()
			remade++
			l, err = fromStore()
		}
		if err != nil || l.Hi != hi || !l.Delta || l.Lo > k.hi {
			x.t.Fatalf("delta layer of %s to %s: %+v: %v", k.hi, hi, l, err)
		}
		return bytes.Clone(b.Bytes())
	}
	k.small = append(k.small, make(
		func() (Layer, error) { return x.s.QueueLayer(ctx, ids, testBranch, 0, true, &b) },
		func() (Layer, error) { return x.s.ExportSmall(ctx, testBranch, k.hi, hi, &b) }))
	for i := range k.shards {
		shard := placement.Shard(i)
		k.shards[i] = append(k.shards[i], make(
			func() (Layer, error) { return x.s.QueueLayer(ctx, ids, testBranch, shard, false, &b) },
			func() (Layer, error) {
				return x.s.ExportLayer(ctx, LayerSpec{Branch: testBranch, Shard: shard, From: k.hi, To: hi, Delta: true}, &b)
			}))
	}
	k.hi = hi
	for _, id := range ids {
		if whole {
			if err := x.s.Release(id); err != nil {
				x.t.Fatal(err)
			}
		}
	}
	return queued, remade
}

// Versions answers from the layers themselves.
func (k *backup) Versions(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN) (out []PageVersion, err error) {
	if at > k.hi {
		return nil, ErrNotHere
	}
	layers := k.shards[k.x.s.Shard(key)]
	for _, b := range slices.Backward(layers) {
		f, err := OpenLayer(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return nil, err
		}
		list, based, err := f.PageVersions(ctx, key, at)
		f.Close()
		if err != nil {
			return nil, err
		}
		for _, v := range list {
			if len(out) == 0 || v.LSN < out[len(out)-1].LSN {
				out = append(out, v)
			}
		}
		if based {
			return out, nil
		}
	}
	return nil, errors.New("no base")
}

// restore makes a store of the layers.
func (k *backup) restore() *world {
	x, ctx := k.x, context.Background()
	w := &world{t: x.t, rng: x.rng, fs: vfs.NewCrashableMem(), m: x.m, g: x.g}
	w.opt = testOptions(w.fs)
	s, err := Open(w.opt)
	if err != nil {
		x.t.Fatal(err)
	}
	w.s = s
	p, err := s.ImportSmall(ctx, testBranch, readers(k.small)...)
	if err != nil || p.Readable != k.hi {
		x.t.Fatalf("readable to %s, want %s: %v", p.Readable, k.hi, err)
	}
	for i := range k.shards {
		if _, err := s.Own(testBranch, placement.Shard(i)); err != nil {
			x.t.Fatal(err)
		}
	}
	w.resume()
	s.SetSource(k)
	w.compareAt(w.randomLSN()) // all of it on demand
	if s.Stats().Fetched == 0 {
		x.t.Error("nothing was fetched")
	}
	s.SetSource(nil)
	for i, layers := range k.shards {
		im, err := s.Import(testBranch, placement.Shard(i), nil)
		if err != nil {
			x.t.Fatal(err)
		}
		for _, r := range readers(layers) {
			if _, err := im.Add(ctx, r); err != nil {
				x.t.Fatal(err)
			}
		}
		if err := im.Finish(); err != nil {
			x.t.Fatal(err)
		}
	}
	return w
}

func readers(list [][]byte) (out []io.Reader) {
	for _, b := range list {
		out = append(out, bytes.NewReader(b))
	}
	return out
}

// A store made of a base, of what the queue gave and of what the database had to make again is the store that they came from, also on demand.
func TestQueue(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 12))
	x := newWorld(t, rng)
	x.opt.QueueBytes = 1 << 20
	if rng.IntN(2) == 0 {
		x.opt.QueueBytes = 60 << 10 // too little
	}
	x.reopen()
	for range 100 {
		x.step()
	}
	x.commit()
	k := &backup{x: x}
	k.base()
	queued, remade := 0, 0
	for range 6 {
		for range 30 {
			for range 5 {
				x.step()
			}
			if rng.IntN(3) != 0 {
				x.commit()
			}
		}
		x.commit()
		switch rng.IntN(4) {
		case 0:
			x.reopen()
		case 1:
			x.crash()
		}
		q, r := k.more()
		queued, remade = queued+q, remade+r
		for _, b := range k.shards[rng.IntN(len(k.shards))] {
			f, err := OpenLayer(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Walk(context.Background(), nil); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
	}
	st := x.s.Stats()
	t.Logf("%d layers from the queue, %d from the store; %d entries of %d bytes, %d lost", queued, remade, st.Queued, st.QueueBytes, st.QueueLost)
	if st.QueueBytes > x.opt.QueueBytes {
		t.Error("the queue is too large")
	}
	w := k.restore()
	for range 3 {
		w.compareAt(w.randomLSN())
	}
	for range 50 {
		w.step()
	}
	w.commit()
	w.compareAt(w.high)
	w.crash()
	w.compareAt(w.high)
	w.close()
	x.close()
}
