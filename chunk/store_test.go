package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"everpage/redo"
	"everpage/wal/pg"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testBranch = 7

func testOptions(fs vfs.FS) Options {
	return Options{
		Dir: "store", FS: fs, Redoer: toyRedo{}, SegmentBlocks: 16, Shards: 8, RunBytes: 48 << 10, CacheBytes: 4 << 20, PageCacheBytes: 256 << 10,
		DepthBytes: 512, MaxChain: 5, MaxChainBytes: 1500, testBatch: 9,
	}
}

var testChunks = chunks{16, 8}

// seedOf is the seed of a test: EVERPAGE_SEED, or a new one. It is printed.
func seedOf(t testing.TB) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("EVERPAGE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("EVERPAGE_SEED=%d", seed)
	return seed
}

// world drives a store and its model side by side.
type world struct {
	t    testing.TB
	rng  *rand.Rand
	fs   *vfs.MemFS
	opt  Options
	s    *Store
	w    *Writer
	g    *generator
	m    *model
	wrap func(vfs.FS) vfs.FS // what the store sees of fs; nil: fs itself
	fed  int                 // records fed to the writer
	done int                 // records committed
	high pg.LSN              // Readable as it must be
}

func newWorld(t testing.TB, rng *rand.Rand) *world {
	const start = pg.LSN(0x1_F000_0000)
	m := newModel(start)
	x := &world{t: t, rng: rng, fs: vfs.NewCrashableMem(), m: m, g: &generator{rng: rng, m: m, lsn: start}}
	x.opt = testOptions(x.fs)
	x.g.base()
	x.open()
	return x
}

func (x *world) open() {
	x.t.Helper()
	x.opt.FS = x.fs
	if x.wrap != nil {
		x.opt.FS = x.wrap(x.fs)
	}
	s, err := Open(x.opt)
	if err != nil {
		x.t.Fatalf("open: %v", err)
	}
	x.s, x.fed = s, 0
	x.resume()
}

// resume starts a writer where the store says.
func (x *world) resume() {
	x.t.Helper()
	p, _ := x.s.Progress(testBranch)
	x.from(p.Resume)
}

// from starts a writer behind an LSN.
func (x *world) from(lsn pg.LSN) {
	x.t.Helper()
	if x.w != nil {
		x.w.Close()
	}
	w, err := x.s.Writer(testBranch)
	if err != nil {
		x.t.Fatalf("writer: %v", err)
	}
	x.w = w
	x.fed = 0
	for x.fed < len(x.m.recs) && x.m.recs[x.fed].lsn <= lsn {
		x.fed++
	}
	x.done = x.fed
	p, _ := x.s.Progress(testBranch)
	x.high = p.Readable
}

// committed is the LSN of any record that was committed, 1 if there is none.
func (x *world) committed() pg.LSN {
	n := 0
	for n < len(x.m.recs) && x.m.recs[n].lsn <= x.high {
		n++
	}
	if n == 0 {
		return 1
	}
	return x.m.recs[x.rng.IntN(n)].lsn
}

// step feeds one record, a new one if there is none left.
func (x *world) step() {
	x.t.Helper()
	if x.fed == len(x.m.recs) {
		x.m.run(x.g.next())
	}
	if err := feed(x.w, x.m.recs[x.fed]); err != nil {
		x.t.Fatalf("feed: %v", err)
	}
	x.fed++
}

func (x *world) commit() {
	x.t.Helper()
	if x.fed == 0 {
		return
	}
	lsn := x.m.recs[x.fed-1].lsn
	p := Progress{Start: x.m.start, Consistent: x.m.start, Readable: lsn, Resume: lsn, Note: fmt.Appendf(nil, "note %s", lsn)}
	if err := x.w.Commit(p); err != nil {
		x.t.Fatalf("commit: %v", err)
	}
	x.done = x.fed
	x.high = max(x.high, lsn)
	if got, ok := x.s.Progress(testBranch); !ok || got.Readable != x.high {
		x.t.Fatalf("readable is %s, want %s", got.Readable, x.high)
	}
}

func (x *world) reopen() {
	x.t.Helper()
	if err := x.s.Close(); err != nil {
		x.t.Fatalf("close: %v", err)
	}
	x.w = nil
	high := x.high
	x.open()
	if x.high != high {
		x.t.Fatalf("after a clean close the store is readable to %s, want %s", x.high, high)
	}
}

func (x *world) crash() {
	x.t.Helper()
	durable, _ := x.s.Durable(testBranch)
	clone := x.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: x.rng.IntN(101), RNG: x.rng})
	if err := x.s.Close(); err != nil {
		x.t.Fatalf("close: %v", err)
	}
	x.fs, x.w = clone, nil
	x.open()
	if p, _ := x.s.Progress(testBranch); p.Resume < durable.Resume {
		x.t.Fatalf("after a crash the store resumes at %s, but said that it was durable to %s", p.Resume, durable.Resume)
	}
}

func (x *world) close() {
	x.t.Helper()
	x.check()
	x.w.Close()
	if err := x.s.Close(); err != nil {
		x.t.Errorf("close: %v", err)
	}
}

// check walks the store. Deltas on new pages, of which the model knows, are all it may find.
func (x *world) check() {
	x.t.Helper()
	check(x.t, x.s, func(v Violation) bool {
		if v.Branch == parentBranch && v.Text == "has nothing under it" {
			return true // its model is not at hand
		}
		for k := range x.m.pages {
			if k.String() == v.Key && v.Text == "has nothing under it" && x.m.pageAt(k, v.LSN).what == 'd' {
				return true
			}
		}
		return false
	})
}

func check(t testing.TB, s *Store, known func(v Violation) bool) {
	t.Helper()
	bad := 0
	if _, err := s.Check(context.Background(), func(v Violation) {
		if known != nil && known(v) {
			return
		}
		if bad++; bad < 20 {
			t.Errorf("check: branch %d: %s at %s: %s", v.Branch, v.Key, v.LSN, v.Text)
		}
	}); err != nil {
		t.Errorf("check: %v", err)
	}
}

// randomLSN is one that the store answers.
func (x *world) randomLSN() pg.LSN {
	switch x.rng.IntN(3) {
	case 0:
		return x.high
	case 1:
		return x.m.start + pg.LSN(x.rng.Uint64N(uint64(x.high-x.m.start)+1))
	}
	return min(x.high, x.m.recs[x.rng.IntN(len(x.m.recs))].lsn)
}

func samePage(s *Store, k pg.PageKey, lsn pg.LSN, want pageState) error {
	got := make(pg.Page, pg.BlockSize)
	err := s.Page(context.Background(), testBranch, k, lsn, got)
	var damage *DamagedError
	switch {
	case want.what == 'p' && err == nil:
		if !bytes.Equal(got, want.page) {
			return fmt.Errorf("%s at %s differs from its version %s", k, lsn, want.lsn)
		}
	case want.what == 'd' && errors.As(err, &damage), want.what == 'n' && errors.Is(err, ErrNotFound):
	default:
		return &answerError{fmt.Sprintf("%s at %s: got %v, want %c of %s", k, lsn, err, want.what, want.lsn), err}
	}
	return nil
}

// answerError tells of another answer than the model's; cause is the store's own error, if it gave one.
type answerError struct {
	text  string
	cause error
}

func (e *answerError) Error() string { return e.text }
func (e *answerError) Unwrap() error { return e.cause }

// compareDamage compares the list of damaged pages with the model's. All of them have been read, so that errors of redo are known, too.
func (x *world) compareDamage(lsn pg.LSN) {
	x.t.Helper()
	told := map[pg.PageKey]bool{}
	err := x.s.DamagedPages(context.Background(), testBranch, lsn, func(e *DamagedError) error {
		told[e.Key] = true
		return nil
	})
	if err != nil {
		x.t.Fatalf("damage at %s: %v", lsn, err)
	}
	for k := range x.m.pages {
		if want := x.m.pageAt(k, lsn).what == 'd'; told[k] != want {
			x.t.Fatalf("%s at %s: told to be damaged: %v, want %v", k, lsn, told[k], want)
		}
	}
}

// compareAt compares all that the store says at one LSN with the model.
func (x *world) compareAt(lsn pg.LSN) {
	x.t.Helper()
	if x.t.Failed() {
		x.t.FailNow()
	}
	for k := range x.m.pages {
		if err := samePage(x.s, k, lsn, x.m.pageAt(k, lsn)); err != nil {
			x.dump(k)
			x.t.Fatal(err)
		}
	}
	if x.rng.IntN(4) == 0 {
		x.compareDamage(lsn)
	}
	want := map[pg.RelFork]uint32{}
	for f := range x.m.sizes {
		w := x.m.sizeAt(f, lsn)
		n, ok, err := x.s.Size(testBranch, f, lsn)
		if err != nil || ok != w.exists || n != w.blocks {
			x.t.Fatalf("size of %s at %s: got %d %v %v, want %d %v of %s", f, lsn, n, ok, err, w.blocks, w.exists, w.lsn)
		}
		if w.exists {
			want[f] = w.blocks
		}
	}
	last := pg.RelFork{}
	rels := 0
	err := x.s.Relations(context.Background(), testBranch, lsn, pg.RelFork{}, func(f pg.RelFork, n uint32) error {
		if last.Rel != 0 && (pg.PageKey{RelFork: f}).Compare(pg.PageKey{RelFork: last}) <= 0 {
			return fmt.Errorf("%s after %s", f, last)
		}
		last = f
		rels++
		if w, ok := want[f]; !ok || w != n {
			return fmt.Errorf("%s has %d blocks, want %d %v", f, n, w, ok)
		}
		return nil
	})
	for _, slru := range pg.SLRUs() {
		if err == nil {
			err = x.s.SLRUSegments(testBranch, slru, lsn, func(segment, pages uint32) error {
				rels++
				if w, ok := want[pg.RelFork{RelFileLocator: pg.RelFileLocator{DB: uint32(slru), Rel: segment}}]; !ok || w != pages {
					return fmt.Errorf("%s segment %d has %d pages, want %d %v", slru, segment, pages, w, ok)
				}
				return nil
			})
		}
	}
	if err != nil || rels != len(want) {
		x.t.Fatalf("relations at %s: %v; listed %d, want %d", lsn, err, rels, len(want))
	}
	x.compareMeta(lsn)
}

func (x *world) compareMeta(lsn pg.LSN) {
	x.t.Helper()
	count := map[redo.MetaKind]int{}
	for k := range x.m.metas {
		want, wantLSN := x.m.metaAt(k, lsn)
		got, gotLSN, ok, err := x.s.Meta(testBranch, k.kind, k.id, lsn)
		if err != nil || ok != (want != nil) || !bytes.Equal(got, want) || ok && gotLSN != wantLSN {
			x.t.Fatalf("object %v at %s: got %d bytes of %s, %v %v, want %d of %s", k, lsn, len(got), gotLSN, ok, err, len(want), wantLSN)
		}
		if ok {
			count[k.kind]++
		}
	}
	for kind := redo.MetaControl; kind <= redo.MetaFile; kind++ {
		n := 0
		if err := x.s.MetaAll(testBranch, kind, lsn, func(id [2]uint32, _ pg.LSN, value []byte) error {
			n++
			if want, _ := x.m.metaAt(metaKey{kind, id}, lsn); !bytes.Equal(want, value) {
				return fmt.Errorf("object %d %v differs", kind, id)
			}
			return nil
		}); err != nil || n != count[kind] {
			x.t.Fatalf("objects of kind %d at %s: %v; listed %d, want %d", kind, lsn, err, n, count[kind])
		}
	}
}

func (x *world) compareCommits() {
	x.t.Helper()
	var commits []Commit
	for _, c := range x.m.commits {
		if c.End <= x.high {
			commits = append(commits, c)
		}
	}
	for range 10 {
		t := pg.Timestamp(int64(x.m.start)+x.rng.Int64N(int64(x.high-x.m.start)+4000)-2000) * 10
		if len(commits) > 0 && x.rng.IntN(2) == 0 {
			t = commits[x.rng.IntN(len(commits))].Time
		}
		or := x.rng.IntN(2) == 0
		i := slices.IndexFunc(commits, func(c Commit) bool { return c.Time > t || or && c.Time == t })
		got, ok, err := x.s.FirstCommitAfter(testBranch, t, or)
		if err != nil || ok != (i >= 0) || ok && got != commits[i] {
			x.t.Fatalf("first commit after %d (%v): got %v %v %v, want number %d of %d", t, or, got, ok, err, i, len(commits))
		}
		xid := 700 + x.rng.Uint32N(50)
		got, ok, err = x.s.CommitOfXID(testBranch, xid)
		i = -1
		for j, c := range commits {
			if c.XID == xid {
				i = j
			}
		}
		if err != nil || ok != (i >= 0) || ok && got != commits[i] {
			x.t.Fatalf("commit of %d: got %v %v %v, want number %d", xid, got, ok, err, i)
		}
		lsn := x.randomLSN()
		before, after, err := x.s.Neighbours(testBranch, lsn)
		i = slices.IndexFunc(commits, func(c Commit) bool { return c.End > lsn })
		if i < 0 {
			i = len(commits)
		}
		if err != nil || (before != nil) != (i > 0) || (after != nil) != (i < len(commits)) || before != nil && *before != commits[i-1] || after != nil && *after != commits[i] {
			x.t.Fatalf("neighbours of %s: got %v %v %v, want numbers %d and %d", lsn, before, after, err, i-1, i)
		}
	}
	for n := range 3 {
		name := fmt.Sprintf("point %d", n)
		var want []RestorePoint
		for _, p := range x.m.points {
			if p.Name == name && p.End <= x.high {
				want = append(want, p)
			}
		}
		got, err := x.s.RestorePoints(testBranch, name)
		if err != nil || !slices.Equal(got, want) {
			x.t.Fatalf("restore points %q: got %v %v, want %v", name, got, err, want)
		}
	}
}

func (x *world) dump(k pg.PageKey) {
	x.s.History(context.Background(), testBranch, k, func(v Version) error {
		x.t.Logf("history of %s: %s %s", k, v.LSN, v.Kind)
		return nil
	})
	f, _ := forkOf(k)
	x.s.Sizes(context.Background(), testBranch, f, func(v SizeVersion) error {
		x.t.Logf("sizes of %s: %s %s %v %d", f, v.LSN, v.Op, v.Exists, v.Blocks)
		return nil
	})
}

// TestModel runs random records against the store and a naive model, with flushes, clean closes, crashes and old WAL fed again in between.
func TestModel(t *testing.T) {
	seed := seedOf(t)
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, uint64(round)))
			x := newWorld(t, rng)
			for range 60 {
				for range rng.IntN(30) {
					x.step()
					if rng.IntN(4) == 0 {
						x.commit()
					}
				}
				switch rng.IntN(12) {
				case 0:
					if err := x.s.Flush(); err != nil {
						t.Fatal(err)
					}
				case 1:
					x.reopen()
				case 2:
					x.crash()
				case 3: // old WAL again, over the later state
					x.from(x.committed() - 1)
				case 4:
					x.resume()
				}
				if x.high != 0 {
					x.compareAt(x.randomLSN())
				}
			}
			x.commit()
			x.compareCommits()
			for range 10 {
				x.compareAt(x.randomLSN())
			}
			x.close()
		})
	}
}

// TestReplayLeavesContentUnchanged feeds every kind of suffix over the finished state and compares the store's whole content, version by version.
func TestReplayLeavesContentUnchanged(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 1))
	x := newWorld(t, rng)
	for range 500 {
		x.step()
	}
	x.commit()
	want := x.content()
	for range 5 {
		x.from(x.committed() - 1)
		n := len(x.m.recs) - x.fed
		if rng.IntN(2) == 0 {
			n = rng.IntN(n + 1) // and stop anywhere
		}
		for range n {
			x.step()
			if rng.IntN(10) == 0 {
				x.commit()
			}
		}
		if rng.IntN(2) == 0 {
			if err := x.s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if got := x.content(); got != want {
			t.Fatalf("content changed:\n%s", firstDifference(got, want))
		}
	}
	x.compareAt(x.high)
	x.close()
}

// content prints all versions of sizes, and every page at every LSN at which it changed.
func (x *world) content() string {
	var b bytes.Buffer
	keys := slices.SortedFunc(mapKeys(x.m.pages), pg.PageKey.Compare)
	page := make(pg.Page, pg.BlockSize)
	forks := map[pg.RelFork]bool{}
	for _, k := range keys {
		for _, v := range x.m.pages[k] {
			err := x.s.Page(context.Background(), testBranch, k, v.lsn, page)
			if err == nil {
				fmt.Fprintf(&b, "%s %s %x\n", k, v.lsn, page)
			} else {
				fmt.Fprintf(&b, "%s %s %v\n", k, v.lsn, err)
			}
		}
		f, _ := forkOf(k)
		if !forks[f] {
			forks[f] = true
			if err := x.s.Sizes(context.Background(), testBranch, f, func(v SizeVersion) error {
				fmt.Fprintf(&b, "%s %v\n", f, v)
				return nil
			}); err != nil {
				x.t.Fatal(err)
			}
		}
		var lsns []pg.LSN
		if err := x.s.History(context.Background(), testBranch, k, func(v Version) error {
			lsns = append(lsns, v.LSN)
			return nil
		}); err != nil {
			x.t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %v\n", k, lsns)
	}
	return b.String()
}

func mapKeys[K comparable, V any](m map[K]V) func(yield func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func firstDifference(a, b string) string {
	la, lb := bytes.Split([]byte(a), []byte("\n")), bytes.Split([]byte(b), []byte("\n"))
	for i := range min(len(la), len(lb)) {
		if !bytes.Equal(la[i], lb[i]) {
			return fmt.Sprintf("got  %.200s\nwant %.200s", la[i], lb[i])
		}
	}
	return "one is longer"
}
