package backup

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"everpage/backup/store"
	"everpage/chunk"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// growUnevenly has one shard grow by whole pages, and each of the others by a few bytes.
func (w *world) growUnevenly(busy placement.Shard) {
	w.t.Helper()
	wr, err := w.s.Writer(testBranch)
	if err != nil {
		w.t.Fatal(err)
	}
	defer wr.Close()
	quiet := map[placement.Shard]bool{}
	for _, key := range w.keys {
		shard := w.s.Shard(key)
		if shard != busy && quiet[shard] {
			continue
		}
		quiet[shard] = true
		w.lsn += 8
		if shard != busy {
			err = wr.Delta(key, w.lsn, chunk.Origin{}, chunk.BaseRequired, binary.LittleEndian.AppendUint16([]byte{200, 0}, uint16(w.rng.Uint32())))
		} else {
			page := make(pg.Page, pg.BlockSize)
			for i := 24; i < len(page); i++ {
				page[i] = byte(w.rng.Uint32())
			}
			binary.LittleEndian.PutUint16(page[12:], 4096)
			binary.LittleEndian.PutUint16(page[14:], 4096)
			page.SetLSN(w.lsn)
			err = wr.Image(key, w.lsn, chunk.Origin{}, page)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	if err := wr.Commit(chunk.Progress{Start: firstLSN, Consistent: firstLSN + 808, Readable: w.lsn, Resume: w.lsn, Timeline: 1}); err != nil {
		w.t.Fatal(err)
	}
	w.lsns = append(w.lsns, w.lsn)
}

// Quiet shards, whose layers stay for long, don't keep what was replaced of a busy one.
func TestQuietShardsKeepNoDeadBytes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	ctx, rng := t.Context(), rand.New(rand.NewPCG(seed, 7))
	w, objects, dir := newWorld(t, seed), store.NewMemory(), t.TempDir()
	w.grow(120)
	busy := w.s.Shard(w.keys[rng.IntN(len(w.keys))])
	u, r := w.uploader(objects, dir)
	worst := 0.0 // bytes of objects for one that is named
	for round := range 60 {
		w.growUnevenly(busy)
		if err := u.upload(ctx); err != nil {
			t.Fatal(err)
		}
		inv, err := TakeInventory(ctx, objects, r, []uint32{testBranch}, testShards)
		if err != nil {
			t.Fatal(err)
		}
		var named, held int64
		for _, m := range inv.Lists {
			named += m.Bytes()
			for _, l := range m.Layers {
				held += inv.Objects[l.Object].Size
				delete(inv.Objects, l.Object)
			}
		}
		worst = max(worst, float64(held)/float64(named))
		if round%4 == 3 { // history is five rounds long
			if err := w.s.Flush(); err != nil {
				t.Fatal(err)
			}
			if err := w.s.SetHorizon(testBranch, w.lsns[max(0, len(w.lsns)-6)], nil); err != nil {
				t.Fatal(err)
			}
			if _, err := w.s.Collect(ctx, testBranch, chunk.CollectOptions{BytesPerSecond: 1 << 40, Worth: 1e-9}); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("the objects had at most %.2f times the bytes that are named", worst)
	if worst > 1.25 {
		t.Errorf("objects had %.2f times the bytes that are named", worst)
	}
	if hi := w.recover(objects); hi != w.lsn {
		t.Fatalf("recovered up to %s, not to %s", hi, w.lsn)
	}
}
