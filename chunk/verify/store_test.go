package verify_test

import (
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"everpage/chunk"
	"everpage/chunk/verify"
	"everpage/redo"
	"everpage/wal/pg"
)

const branch = 1

func openStore(dir string) (*chunk.Store, error) {
	return chunk.Open(chunk.Options{Dir: dir, Redoer: redo.Redoer{Major: 15}, Checksum: pg.Checksum, Fatal: func(string) {}})
}

// sums reads pages of a store at an LSN until some can't be read: a table's block with a wrong checksum takes Pebble part of a second each time, as it
// looks for the bit that flipped. A page that can't be read has no sum.
func sums(t *testing.T, store *chunk.Store, keys []pg.PageKey, at pg.LSN) (map[pg.PageKey][32]byte, int) {
	t.Helper()
	out := map[pg.PageKey][32]byte{}
	page := make(pg.Page, pg.BlockSize)
	failed := 0
	for _, key := range keys {
		if err := store.Page(t.Context(), branch, key, at, page); err != nil {
			if failed++; failed == 4 {
				break
			}
			continue
		}
		out[key] = sha256.Sum256(page)
	}
	return out, failed
}

// Bits that flip in a store's tables make reads fail or change nothing: no page is ever read wrong.
func TestFlippedBytesOfTables(t *testing.T) {
	files := tpcb(t)
	dir := t.TempDir()
	report, err := verify.Run(t.Context(), verify.Options{Base: files.Base, WAL: files.WAL, Store: dir})
	if err != nil || !report.OK() {
		t.Fatalf("%v, %d mismatches", err, report.Mismatches)
	}
	dir = filepath.Join(dir, "store")
	store, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	progress, _ := store.Progress(branch)
	at := []pg.LSN{progress.Start + (progress.Readable-progress.Start)/2, progress.Readable}
	var keys []pg.PageKey
	if err := store.Relations(t.Context(), branch, at[0], pg.RelFork{}, func(f pg.RelFork, blocks uint32) error {
		for b := range blocks {
			keys = append(keys, pg.PageKey{RelFork: f, Block: b})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := make([]map[pg.PageKey][32]byte, len(at))
	for i := range at {
		n := 0
		if want[i], n = sums(t, store, keys, at[i]); len(want[i]) < 3000 || n > 0 {
			t.Fatalf("only %d pages can be read at %s, %d not", len(want[i]), at[i], n)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	refused, failed, right := 0, 0, 0
	for range 4 {
		hurt := filepath.Join(t.TempDir(), "store")
		if err := os.CopyFS(hurt, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		tables, err := filepath.Glob(filepath.Join(hurt, "pebble", "*.sst"))
		if err != nil || len(tables) == 0 {
			t.Fatalf("no tables in %s: %v", hurt, err)
		}
		flips := 1 + r.IntN(20)
		for range flips {
			path := tables[r.IntN(len(tables))]
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		store, err := openStore(hurt)
		if err != nil {
			refused++
			continue
		}
		r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		for i := range at {
			got, n := sums(t, store, keys, at[i])
			failed += n
			for key, sum := range got {
				if w, ok := want[i][key]; ok && w != sum {
					t.Errorf("%s at %s is read wrong after %d flips", key, at[i], flips)
				}
			}
			right += len(got)
		}
		if err := store.Close(); err != nil {
			t.Logf("close: %v", err)
		}
		if err := os.RemoveAll(hurt); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of 4 opens refused, %d reads failed, %d were right", refused, failed, right)
	if refused+failed == 0 || right == 0 {
		t.Error("the flips met nothing, or everything")
	}
}
