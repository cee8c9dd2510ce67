package backup

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"everpage/backup/store"
	"everpage/wal/pg"
)

// TestRecoveryFaults lets each call of a recovery fail in each way: all ends in an error that trying again mends, or in what was there, never in anything else.
func TestRecoveryFaults(t *testing.T) {
	w, objects, dir := newWorld(t, 9), store.NewMemory(), t.TempDir()
	w.grow(60)
	for range 3 {
		u, _ := w.uploader(objects, dir)
		if err := u.upload(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.grow(40)
	}
	for name, fault := range map[string]store.Fault{
		"refused": {Err: &store.Error{Kind: store.ErrThrottled, Err: store.ErrInjected}},
		"cut":     {Truncate: true},
		"flipped": {Flip: true},
	} {
		t.Run(name, func(t *testing.T) {
			at := 0
			for reached := true; reached; at++ {
				reached = recoveryFault(t, w, objects, fault, at)
			}
			t.Logf("%d calls", at-1)
		})
	}
}

// again repeats what failed for the one fault that there is.
func again(t *testing.T, at int, fn func() error) {
	t.Helper()
	for range 3 {
		if fn() == nil {
			return
		}
	}
	t.Fatalf("fault at call %d: it does not end", at)
}

func recoveryFault(t *testing.T, w *world, objects store.Store, fault store.Fault, at int) (reached bool) {
	ctx := t.Context()
	var mu sync.Mutex // several layers are asked at once
	calls := 0
	faulty := &store.Faulty{Store: objects, Decide: func(string, string) store.Fault {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if calls-1 == at {
			reached = true
			return fault
		}
		return store.Fault{}
	}}
	var root *Root
	again(t, at, func() (err error) { root, err = ReadRoot(ctx, faulty); return err })
	r, err := OpenLocal(filepath.Join(t.TempDir(), "backup.json"), testShards)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Restore(root); err != nil {
		t.Fatal(err)
	}
	s := openStore(t)
	var hi pg.LSN
	again(t, at, func() error {
		for _, b := range s.Branches() {
			if err := s.DropBranch(b); err != nil {
				t.Fatal(err)
			}
		}
		progress, err := RestoreSmall(ctx, faulty, s, root)
		hi = progress[testBranch].Resume
		return err
	})
	src := NewSource(faulty, r)
	s.SetSource(src)
	want, got := make(pg.Page, pg.BlockSize), make(pg.Page, pg.BlockSize)
	compare := func() {
		for i, key := range w.keys {
			lsn := w.lsns[i%len(w.lsns)]
			if lsn > hi || lsn < firstLSN+808 {
				continue
			}
			if err := w.s.Page(ctx, testBranch, key, lsn, want); err != nil {
				t.Fatal(err)
			}
			again(t, at, func() error { return s.Page(ctx, testBranch, key, lsn, got) })
			if !bytes.Equal(want, got) {
				t.Fatalf("fault at call %d: page %s at %s differs", at, key, lsn)
			}
		}
	}
	compare()
	f := &Filler{Source: src, Store: faulty, Target: s, Log: slog.New(slog.DiscardHandler)}
	for list := f.missing(); len(list) > 0; list = f.missing() {
		again(t, at, func() error { return f.fill(ctx, list[0]) })
	}
	s.SetSource(nil)
	compare()
	return reached
}
