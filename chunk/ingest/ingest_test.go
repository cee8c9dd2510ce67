package ingest_test

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"everpage/chunk"
	"everpage/chunk/ingest"
	"everpage/chunk/offline"
	"everpage/chunk/verify"
	"everpage/deploy/workload"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

const branch = 1

func corpus(t *testing.T, which workload.Which) *offline.Source {
	t.Helper()
	files, err := workload.Cached(t.Context(), 15, nil, which, workload.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	src, err := offline.Open(files.Base, files.WAL)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// open opens a store in dir with runs so small that many tables come of them.
func open(t *testing.T, dir string, major pg.Major) *chunk.Store {
	t.Helper()
	store, err := chunk.Open(chunk.Options{Dir: filepath.Join(dir, "store"), Redoer: redo.Redoer{Major: major}, Checksum: pg.Checksum, RunBytes: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func imported(t *testing.T, src *offline.Source, store *chunk.Store) {
	t.Helper()
	if _, err := src.Import(t.Context(), store, branch); err != nil {
		t.Fatal(err)
	}
}

// drain ingests from an LSN on (0: where the branch stands) to the WAL's end, or until fn fails.
func drain(t *testing.T, src *offline.Source, store *chunk.Store, o ingest.Options) (chunk.Progress, error) {
	t.Helper()
	o.Branch, o.Major = branch, src.Control.Major
	p, err := ingest.Open(store, o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	from := o.From
	if from == 0 {
		from = p.Progress().Resume
	}
	reader, dir, err := src.Reader(from)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	err = p.Drain(t.Context(), reader)
	if wal.IsEnd(err) {
		err = nil
	}
	return p.Progress(), err
}

func digest(t *testing.T, store *chunk.Store, at ...pg.LSN) string {
	t.Helper()
	d, err := verify.Digest(t.Context(), store, branch, at)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func check(t *testing.T, store *chunk.Store) {
	t.Helper()
	if _, err := store.Check(t.Context(), func(v chunk.Violation) { t.Errorf("%s at %s: %s", v.Key, v.LSN, v.Text) }); err != nil {
		t.Fatal(err)
	}
}

// Any suffix of the WAL, ingested once more over all that came of it, leaves the store as it was: also where records depend on sizes, objects, counters
// and whole databases that have changed since.
func TestIngestedAgainLeavesTheStoreAsItIs(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	src := corpus(t, workload.Mixed)
	store := open(t, t.TempDir(), src.Control.Major)
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	imported(t, src, store)
	var ends []pg.LSN
	copies := 0
	progress, err := drain(t, src, store, ingest.Options{Watch: func(rec *wal.Record, ch *redo.Changes) error {
		ends = append(ends, rec.End)
		copies += len(ch.CopyDatabases)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if copies == 0 {
		t.Error("no database is copied in this corpus")
	}
	span := progress.Readable - progress.Start
	at := []pg.LSN{progress.Start + span/2, progress.Readable}
	want := digest(t, store, at...)
	froms := []pg.LSN{progress.Start, ends[len(ends)/4+r.IntN(len(ends)/2)]}
	for _, from := range froms {
		records := 0
		again, err := drain(t, src, store, ingest.Options{From: from, Watch: func(*wal.Record, *redo.Changes) error {
			records++
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if again.Readable != progress.Readable || again.Resume != progress.Resume || records == 0 {
			t.Errorf("from %s: %d records, progress %+v, want %+v", from, records, again, progress)
		}
		if got := digest(t, store, at...); got != want {
			t.Errorf("from %s: the store has changed: digest %s, want %s", from, got, want)
		}
		t.Logf("%d records from %s on", records, from)
	}
	check(t, store)
}

// A pipeline that ends in the middle of a batch, again and again at other records, comes to the same store as one that never does.
func TestInterruptedIngest(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	src := corpus(t, workload.TPCB)
	dir := t.TempDir()
	whole := open(t, filepath.Join(dir, "whole"), src.Control.Major)
	defer whole.Close()
	imported(t, src, whole)
	progress, err := drain(t, src, whole, ingest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	store := open(t, filepath.Join(dir, "parts"), src.Control.Major)
	defer func() { store.Close() }()
	imported(t, src, store)
	for i := 0; ; i++ {
		left := 500 + r.IntN(3000)
		p, err := drain(t, src, store, ingest.Options{BatchBytes: 64 << 10, Watch: func(*wal.Record, *redo.Changes) error {
			if left--; left == 0 {
				return context.Canceled
			}
			return nil
		}})
		if i%3 == 2 { // reopened: what was not committed is gone
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			store = open(t, filepath.Join(dir, "parts"), src.Control.Major)
		}
		if err == nil {
			if p.Readable != progress.Readable {
				t.Errorf("it ended at %s, want %s", p.Readable, progress.Readable)
			}
			t.Logf("%d interruptions", i)
			break
		}
	}
	at := []pg.LSN{progress.Start, progress.Start + (progress.Readable-progress.Start)/2, progress.Readable}
	if got, want := digest(t, store, at...), digest(t, whole, at...); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	check(t, store)
}

func TestFromMustLieInTheBranch(t *testing.T) {
	src := corpus(t, workload.TPCB)
	store := open(t, t.TempDir(), src.Control.Major)
	defer store.Close()
	if _, err := ingest.Open(store, ingest.Options{Branch: branch, Major: 15}); err == nil {
		t.Error("a branch that was never imported was opened")
	}
	imported(t, src, store)
	for _, from := range []pg.LSN{src.Redo - 8, src.Redo + 8} {
		if p, err := ingest.Open(store, ingest.Options{Branch: branch, Major: 15, From: from}); err == nil {
			p.Close()
			t.Errorf("ingest from %s was begun, of a branch that starts and stands at %s", from, src.Redo)
		}
	}
	p, err := ingest.Open(store, ingest.Options{Branch: branch, Major: 14})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	reader, dir, err := src.Reader(src.Redo)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := p.Drain(t.Context(), reader); err == nil || wal.IsEnd(err) {
		t.Errorf("records of another major were taken: %v", err)
	}
}
