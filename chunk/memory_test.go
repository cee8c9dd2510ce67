package chunk

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

// The memory of a run is used again as soon as nobody reads the run any more, and not before.
func TestRunMemory(t *testing.T) {
	s, err := Open(testOptions(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w, err := s.Writer(testBranch)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	key := pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}}}
	lsn := pg.LSN(0x1000)
	fill := func() {
		t.Helper()
		for range 20 {
			lsn += 64
			if err := w.Delta(key, lsn, Origin{}, BaseInit, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Commit(Progress{Start: 0x1000, Consistent: 0x1000, Readable: lsn, Resume: lsn}); err != nil {
			t.Fatal(err)
		}
	}
	kept := func() int64 {
		s.memory.mu.Lock()
		defer s.memory.mu.Unlock()
		return s.memory.kept
	}
	fill()
	r, err := s.reader()
	if err != nil {
		t.Fatal(err)
	}
	p := s.pagePrefix(testBranch, key)
	v, ok, err := r.newest(&p, lsn)
	if err != nil || !ok || v.lent {
		t.Fatalf("the newest version is not in the run: %v, %t", err, ok)
	}
	was, at := string(v.value), v.lsn
	for range 3 {
		fill()
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if string(v.value) != was || !sealed(p.appendKey(nil, at), v.value) {
		t.Fatal("a version changed while it was read")
	}
	read := r.st.runs[0]
	before := kept()
	r.release()
	if kept() <= before {
		t.Fatalf("%d bytes are kept for the next run after its last reader went, %d before", kept(), before)
	}
	if read.entries[0] != nil || read.slabs[0] != nil || read.pages.buckets != nil {
		t.Fatal("a run that nobody reads still has its memory")
	}
	fill()
	if err := s.Page(t.Context(), testBranch, key, lsn, make(pg.Page, pg.BlockSize)); err != nil {
		t.Fatal(err)
	}
	if kept() > s.memory.limit {
		t.Fatalf("%d bytes are kept, at most %d should be", kept(), s.memory.limit)
	}
}
