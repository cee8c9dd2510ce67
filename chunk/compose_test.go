package chunk

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

// TestSameVersions: stores that cut chains short at other places tell the same of a page, and no difference of what they tell goes unnoticed.
func TestSameVersions(t *testing.T) {
	seed := seedOf(t)
	key := pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}}}
	const first, deltas = pg.LSN(0x1000), 300
	made := func(chain int) *Store {
		opt := testOptions(vfs.NewMem())
		opt.MaxChain, opt.RunBytes = chain, 8<<20
		s, err := Open(opt)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		w, err := s.Writer(testBranch)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		page := make(pg.Page, pg.BlockSize)
		page.Init(0)
		page.SetLSN(first)
		if err := w.Image(key, first, Origin{}, page); err != nil {
			t.Fatal(err)
		}
		rng, lsn := rand.New(rand.NewPCG(seed, 1)), first
		for range deltas {
			lsn += 64
			if err := w.Delta(key, lsn, Origin{}, BaseRequired, binary.LittleEndian.AppendUint64(nil, rng.Uint64())); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Commit(Progress{Start: first, Consistent: first, Readable: lsn, Resume: lsn}); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	one, other := made(20), made(33)
	rng, unlike := rand.New(rand.NewPCG(seed, 2)), 0
	same := func(a, b []PageVersion) bool {
		t.Helper()
		ok, err := one.SameVersions(testBranch, key, a, b)
		back, errBack := one.SameVersions(testBranch, key, b, a)
		if ok != back || (err != nil) != (errBack != nil) {
			t.Fatalf("%t and %t, %v and %v", ok, back, err, errBack)
		}
		return ok && err == nil
	}
	for range 100 {
		at := first + pg.LSN(64*rng.IntN(deltas+1))
		a, err := one.Versions(t.Context(), testBranch, key, at)
		if err != nil {
			t.Fatal(err)
		}
		b, err := other.Versions(t.Context(), testBranch, key, at)
		if err != nil {
			t.Fatal(err)
		}
		if len(a) != len(b) {
			unlike++
		}
		if !same(a, b) {
			t.Fatalf("at %s: %d and %d versions are said to differ", at, len(a), len(b))
		}
		// Whatever counts is changed in a list: all of the shorter one, of the longer one what the shorter one's image doesn't stand for and what it was made of.
		i := rng.IntN(len(b))
		wrong := slices.Clone(b)
		wrong[i].Value = bytes.Clone(wrong[i].Value)
		if wrong[i].Value[0] == byte(KindImage) {
			continue // sealed bytes of an image may be padding
		}
		wrong[i].Value[len(wrong[i].Value)/2] ^= 1
		if same(a, wrong) {
			t.Fatalf("at %s: version %d of %d is another one, and that is not noticed", at, i, len(b))
		}
		if less := slices.Delete(slices.Clone(b), i, i+1); same(a, less) {
			t.Fatalf("at %s: version %d of %d is missing, and that is not noticed", at, i, len(b))
		}
	}
	if unlike == 0 {
		t.Error("the chains were alike")
	}
}
