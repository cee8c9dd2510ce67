package redo_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"everpage/deploy/pgtest"
	"everpage/deploy/workload"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// replayer keeps the newest version of every relation page of a cluster in memory. It replays WAL through Touch, the deltas' encoding and Redo,
// and holds each page against the image that the record bears of it.
type replayer struct {
	t      *testing.T
	major  pg.Major
	redoer redo.Redoer
	state  redo.ControlState

	pages map[pg.PageKey]pg.Page
	sizes map[pg.RelFork]pg.BlockNumber
	// owner is the manager whose redo function, not an image, changed the page last.
	owner   map[pg.PageKey]wal.Rmgr
	damaged map[pg.PageKey]error
	invalid map[pg.PageKey]string // references to pages that don't exist, until a truncation or drop explains them
	extra   map[vmBit]string      // map bits that the primary had cleared before it logged that

	// initial are the databases of the base. Others may lack map bits: CREATE DATABASE logs pages of the map as if their content were a hole.
	initial map[pg.Oid]bool

	fault func(c *redo.PageChange) // spoils a change, for negative controls

	records    int
	compared   map[string]int // by record name
	mismatches []string
	vmCompared int
	vmMissing  int

	changes redo.Changes
	scratch redo.CheckScratch
	encoded []byte
}

type vmBit struct {
	rel  pg.RelFileLocator
	heap pg.BlockNumber
}

func newReplayer(t *testing.T, major pg.Major, base string) *replayer {
	t.Helper()
	r := &replayer{
		t: t, major: major, redoer: redo.Redoer{Major: major},
		owner: map[pg.PageKey]wal.Rmgr{}, damaged: map[pg.PageKey]error{}, invalid: map[pg.PageKey]string{}, extra: map[vmBit]string{},
		compared: map[string]int{}, initial: map[pg.Oid]bool{},
	}
	r.pages, r.sizes = loadRelations(t, base)
	for f := range r.sizes {
		r.initial[f.DB] = true
	}
	b, err := os.ReadFile(filepath.Join(base, "global", "pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	control, err := pg.ReadControl(b)
	if err != nil {
		t.Fatal(err)
	}
	r.state = redo.NewControlState(control.Copy, control.CheckPoint, &control)
	return r
}

// loadRelations reads all relation files of a data directory.
func loadRelations(t *testing.T, dir string) (map[pg.PageKey]pg.Page, map[pg.RelFork]pg.BlockNumber) {
	t.Helper()
	pages, sizes := map[pg.PageKey]pg.Page{}, map[pg.RelFork]pg.BlockNumber{}
	var walk func(path, name string)
	walk = func(path, name string) {
		entries, err := os.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path, name := filepath.Join(path, e.Name()), filepath.ToSlash(filepath.Join(name, e.Name()))
			info, err := os.Stat(path) // through the links of pg_tblspc
			if errors.Is(err, fs.ErrNotExist) && e.Type()&fs.ModeSymlink != 0 {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() {
				walk(path, name)
				continue
			}
			f, err := pg.Classify(name)
			if err != nil {
				t.Fatal(err)
			}
			if f.Kind != pg.FileRelation {
				continue
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			first := f.Segment * pg.SegmentBlocks
			n := pg.BlockNumber(len(b) / pg.BlockSize)
			sizes[f.Rel] = max(sizes[f.Rel], first+n)
			for i := range n {
				pages[pg.PageKey{RelFork: f.Rel, Block: first + i}] = b[int(i)*pg.BlockSize : int(i+1)*pg.BlockSize]
			}
		}
	}
	walk(dir, "")
	return pages, sizes
}

// replay goes through a directory of segments from the base's checkpoint on.
func (r *replayer) replay(dir string) {
	r.t.Helper()
	size, err := wal.DetectSegmentSize(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	src, err := wal.OpenDir(dir, size, wal.History{Timeline: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	defer src.Close()
	reader, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: size, Major: r.major})
	if err != nil {
		r.t.Fatal(err)
	}
	reader.Seek(r.state.CheckPointRedo)
	for {
		rec, err := reader.Next()
		if wal.IsEnd(err) {
			return
		}
		if err != nil {
			r.t.Fatal(err)
		}
		r.records++
		r.record(rec)
	}
}

func (r *replayer) record(rec *wal.Record) {
	r.t.Helper()
	ch := &r.changes
	if err := redo.Touch(rec, &r.state, ch); err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.state.Redo(rec); err != nil {
		r.t.Fatal(err)
	}
	if ch.Unproven != nil {
		r.t.Errorf("%v", ch.Unproven)
	}
	for _, d := range ch.DropDatabases {
		r.drop(func(f pg.RelFork) bool { return f.Spc == d.Spc && f.DB == d.DB })
	}
	for _, c := range ch.CopyDatabases {
		r.copyDatabase(c)
	}
	for _, s := range ch.Sizes {
		r.resize(s)
	}
	made := map[pg.PageKey]bool{}
	for i := range ch.Pages {
		r.change(&ch.Pages[i], made)
	}
	for _, d := range ch.Damaged {
		r.damaged[d.Key] = d.Err
		r.sizes[d.Key.RelFork] = max(r.sizes[d.Key.RelFork], d.Key.Block+1)
	}
	for i := range rec.Blocks {
		r.check(rec, &rec.Blocks[i], made)
	}
}

func (r *replayer) drop(match func(pg.RelFork) bool) {
	for f := range r.sizes {
		if match(f) {
			delete(r.sizes, f)
		}
	}
	gone := func(k pg.PageKey) bool { return match(k.RelFork) }
	r.forget(gone)
}

func (r *replayer) forget(gone func(pg.PageKey) bool) {
	maps.DeleteFunc(r.pages, func(k pg.PageKey, _ pg.Page) bool { return gone(k) })
	maps.DeleteFunc(r.owner, func(k pg.PageKey, _ wal.Rmgr) bool { return gone(k) })
	maps.DeleteFunc(r.damaged, func(k pg.PageKey, _ error) bool { return gone(k) })
	maps.DeleteFunc(r.invalid, func(k pg.PageKey, _ string) bool { return gone(k) })
	maps.DeleteFunc(r.extra, func(b vmBit, _ string) bool {
		return gone(pg.PageKey{RelFork: pg.RelFork{RelFileLocator: b.rel}, Block: b.heap})
	})
}

func (r *replayer) copyDatabase(c redo.DatabaseCopy) {
	for f, n := range maps.Clone(r.sizes) {
		if f.Spc != c.From.Spc || f.DB != c.From.DB {
			continue
		}
		for b := range n {
			from := pg.PageKey{RelFork: f, Block: b}
			to := from
			to.Spc, to.DB = c.To.Spc, c.To.DB
			if p := r.pages[from]; p != nil {
				r.pages[to] = slices.Clone(p)
			}
			if err := r.damaged[from]; err != nil {
				r.damaged[to] = err
			}
		}
		to := f
		to.Spc, to.DB = c.To.Spc, c.To.DB
		r.sizes[to] = n
	}
}

func (r *replayer) resize(s redo.SizeChange) {
	switch s.Op {
	case redo.SizeCreate:
		r.sizes[s.Fork] = max(r.sizes[s.Fork], 0)
	case redo.SizeDrop:
		r.drop(func(f pg.RelFork) bool { return f == s.Fork })
	case redo.SizeTruncate:
		if n, ok := r.sizes[s.Fork]; ok && n > s.Blocks {
			r.sizes[s.Fork] = s.Blocks
		}
		r.forget(func(k pg.PageKey) bool { return k.RelFork == s.Fork && k.Block >= s.Blocks })
	}
}

// change makes one page's next version.
func (r *replayer) change(c *redo.PageChange, made map[pg.PageKey]bool) {
	r.t.Helper()
	if _, ok := c.Key.SLRU(); ok {
		return
	}
	if r.fault != nil {
		r.fault(c)
	}
	d := &c.Delta
	if d.Part == redo.PartVMClear {
		r.explain(c.Key.RelFileLocator, d.Main)
	}
	missing := c.Key.Block >= r.sizes[c.Key.RelFork]
	if c.Kind == redo.KindImage {
		r.grow(c.Key)
		r.pages[c.Key] = slices.Clone(pg.Page(c.Image))
		delete(r.damaged, c.Key)
		delete(r.owner, c.Key)
		return
	}
	page := r.pages[c.Key]
	if page == nil {
		page = make(pg.Page, pg.BlockSize)
	}
	if c.Kind == redo.KindInit {
		delete(r.damaged, c.Key)
	} else if r.damaged[c.Key] != nil {
		return
	} else if missing && !c.Optional && !c.Zeroed {
		r.invalid[c.Key] = fmt.Sprintf("%s at %s", d.Rmgr, d.LSN)
		return
	}
	r.encoded = redo.AppendDelta(r.encoded[:0], d)
	changed, err := r.redoer.Redo(page, c.Key, d.LSN, c.Kind == redo.KindInit, r.encoded)
	if errors.Is(err, redo.ErrNewPage) {
		r.invalid[c.Key] = fmt.Sprintf("%s at %s", d.Rmgr, d.LSN)
		return
	}
	if err != nil {
		r.mismatch("%v", err)
		r.damaged[c.Key] = err
		return
	}
	if missing && !changed {
		return
	}
	r.grow(c.Key)
	r.pages[c.Key] = page
	if d.Part <= wal.MaxBlockID {
		r.owner[c.Key] = d.Rmgr
	}
	if changed {
		made[c.Key] = true
	}
}

func (r *replayer) grow(key pg.PageKey) {
	r.sizes[key.RelFork] = max(r.sizes[key.RelFork], key.Block+1)
}

func (r *replayer) mismatch(format string, args ...any) {
	r.mismatches = append(r.mismatches, fmt.Sprintf(format, args...))
}

// explain takes the heap blocks of a map clear off the list of bits that the primary had cleared earlier.
func (r *replayer) explain(rel pg.RelFileLocator, entries []byte) {
	for b := entries; len(b) >= 5; b = b[5:] {
		delete(r.extra, vmBit{rel, pg.BlockNumber(b[0]) | pg.BlockNumber(b[1])<<8 | pg.BlockNumber(b[2])<<16 | pg.BlockNumber(b[3])<<24})
	}
}

func (r *replayer) check(rec *wal.Record, blk *wal.Block, made map[pg.PageKey]bool) {
	r.t.Helper()
	page := r.pages[blk.PageKey]
	if page == nil || r.damaged[blk.PageKey] != nil || !made[blk.PageKey] {
		return
	}
	name := fmt.Sprintf("%s/%s", rec.Rmgr, redo.RecordName(rec.Major, rec.Rmgr, rec.Info))
	c, err := redo.CheckImage(rec, blk, page, &r.scratch)
	if err != nil {
		r.t.Fatal(err)
	}
	switch c.Outcome {
	case redo.CheckEqual:
		r.compared[name]++
		if blk.Fork == pg.VMFork {
			r.vmCompared++
		}
	case redo.CheckVMBits:
		r.compared[name]++
		r.vmCompared++
		r.vmMissing += len(c.Missing)
		if len(c.Missing) > 0 && r.initial[blk.DB] {
			r.mismatch("%s at %s: %s lacks bits of %d heap blocks", name, rec.Start, blk.PageKey, len(c.Missing))
		}
		for _, b := range c.Extra {
			at := vmBit{blk.RelFileLocator, b.Heap}
			if r.extra[at] == "" {
				r.extra[at] = fmt.Sprintf("%s at %s: bits %d of heap block %d of %s are set, the primary has them clear", name, rec.Start, b.Bits, b.Heap, blk.RelFileLocator)
			}
		}
	case redo.CheckDiffers:
		r.compared[name]++
		at := c.FirstDiff &^ 15
		r.mismatch("%s at %s, block %d (%s), differs from byte %d on:\nours    % x\nprimary % x", name, rec.Start, blk.ID, blk.PageKey, c.FirstDiff,
			r.scratch.Ours[at:min(at+48, pg.BlockSize)], r.scratch.Image[at:min(at+48, pg.BlockSize)])
	}
}

// finish reports what can only be told at the end of the WAL.
func (r *replayer) finish() {
	for k, at := range r.invalid {
		r.mismatch("%s, referenced by %s, does not exist", k, at)
	}
	for _, s := range r.extra {
		r.mismatch("%s, and nothing clears them later", s)
	}
}

// compareFinal holds the pages that heap redo made last, and all of the visibility map, against a cleanly stopped data directory.
func (r *replayer) compareFinal(dir string) (compared int) {
	pages, _ := loadRelations(r.t, dir)
	for key, page := range r.pages {
		theirs := pages[key]
		if theirs == nil || r.damaged[key] != nil {
			continue
		}
		switch {
		case key.Fork == pg.VMFork:
			for i := pg.PageHeaderSize; i < pg.BlockSize; i++ {
				if page[i]&^theirs[i] != 0 {
					r.mismatch("%s at the end: byte %d is %02x, the primary has %02x", key, i, page[i], theirs[i])
				}
			}
			if page.LSN() != theirs.LSN() {
				r.mismatch("%s at the end: LSN %s, the primary has %s", key, page.LSN(), theirs.LSN())
			}
			compared++
		case r.owner[key] == wal.RmHeap || r.owner[key] == wal.RmHeap2:
			ours, theirs := slices.Clone(page), slices.Clone(theirs)
			for _, p := range []pg.Page{ours, theirs} {
				if err := redo.Mask(wal.RmHeap, p, key); err != nil {
					r.t.Fatal(err)
				}
			}
			if !slices.Equal(ours, theirs) {
				r.mismatch("%s at the end differs from the primary's", key)
			}
			// The masks hide these, but only records change them.
			if theirs := pages[key]; page.LSN() != theirs.LSN() || (page.Flags()^theirs.Flags())&pg.PageAllVisible != 0 {
				r.mismatch("%s at the end: LSN %s, flags %d, the primary has %s, %d", key, page.LSN(), page.Flags(), theirs.LSN(), theirs.Flags())
			}
			compared++
		}
	}
	return compared
}

func (r *replayer) report() {
	total := 0
	for _, name := range slices.Sorted(maps.Keys(r.compared)) {
		r.t.Logf("%8d %s", r.compared[name], name)
		total += r.compared[name]
	}
	r.t.Logf("%d records, %d pages compared, %d of them visibility map pages; %d map bits missing; %d pages damaged",
		r.records, total, r.vmCompared, r.vmMissing, len(r.damaged))
}

func corpus(t *testing.T, major pg.Major, settings map[string]string, o workload.Options, initdbArgs ...string) *workload.Files {
	t.Helper()
	o.Seed = 1
	f, err := workload.Cached(t.Context(), int(major), settings, workload.Mixed, o, initdbArgs...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// small is a run that has every type of record, but few of each.
var small = workload.Options{Rows: 100, Transactions: 20, Burn: 1000}

// What redo makes of a real server's WAL equals what the server itself had after each record, and at the end.
func TestOracle(t *testing.T) {
	for _, major := range pg.Majors() {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			o := small
			if major == pgtest.DefaultMajor {
				o = workload.Options{}
			}
			testOracle(t, corpus(t, major, nil, o))
		})
	}
	t.Run("15_with_checksums", func(t *testing.T) {
		// Images are packed, and records carry what logical decoding wants.
		settings := map[string]string{"wal_level": "logical", "wal_compression": "lz4"}
		testOracle(t, corpus(t, 15, settings, small, "--data-checksums"))
	})
	t.Run("15_without_full_page_writes", func(t *testing.T) {
		// Nothing but redo makes pages.
		testOracle(t, corpus(t, 15, map[string]string{"full_page_writes": "off"}, small))
	})
}

func testOracle(t *testing.T, f *workload.Files) {
	r := newReplayer(t, pg.Major(f.Major), f.Base)
	r.replay(f.WAL)
	r.finish()
	t.Logf("%d pages compared at the end", r.compareFinal(f.Final))
	t.Logf("%d pages of B-trees compared at the end", r.compareIndexes(f.Final, wal.RmBtree))
	r.secondOpinion(f.Final)
	requireCompared(t, r.compared, wal.RmBtree)
	r.report()
	for i, m := range r.mismatches {
		if i == 20 {
			t.Errorf("… %d mismatches in all", len(r.mismatches))
			break
		}
		t.Error(m)
	}
	names := []string{"Heap/INSERT", "Heap/INSERT+INIT", "Heap/DELETE", "Heap/UPDATE", "Heap/HOT_UPDATE", "Heap/LOCK", "Heap/INPLACE", "Heap/HEAP_CONFIRM",
		"Heap2/VISIBLE", "Heap2/MULTI_INSERT", "Heap2/MULTI_INSERT+INIT", "Heap2/LOCK_UPDATED", "Sequence/LOG", "Btree/INSERT_LEAF", "Btree/SPLIT_R"}
	for op := uint8(0x10); op <= 0x30; op += 0x10 {
		names = append(names, "Heap2/"+redo.RecordName(pg.Major(f.Major), wal.RmHeap2, op))
	}
	for _, name := range names {
		if r.compared[name] == 0 {
			t.Errorf("no page of %s was compared", name)
		}
	}
}

// A redo that is wrong in one way for one manager is found out.
func TestOracleFindsFaults(t *testing.T) {
	f := corpus(t, pgtest.DefaultMajor, nil, workload.Options{})
	for name, fault := range map[string]func(c *redo.PageChange){
		"Heap": func(c *redo.PageChange) {
			if d := &c.Delta; d.Rmgr == wal.RmHeap && d.Info&0x70 == 0x10 && c.Kind == redo.KindDelta && d.Part == 0 {
				d.Main = slices.Clone(d.Main)
				d.Main[6] ^= 0x10 // keys updated
			}
		},
		"Heap2": func(c *redo.PageChange) {
			if d := &c.Delta; d.Rmgr == wal.RmHeap2 && d.Info&0x70 == 0x20 && c.Kind == redo.KindDelta {
				d.Main, d.Data = []byte{0, 0}, nil
			}
		},
		"visibility map": func(c *redo.PageChange) {
			if d := &c.Delta; d.Part == redo.PartVMClear && c.Kind == redo.KindDelta {
				d.Main = slices.Clone(d.Main)
				d.Main[0] ^= 4 // another block
			}
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			r := newReplayer(t, pg.Major(f.Major), f.Base)
			r.fault = fault
			r.replay(f.WAL)
			r.finish()
			r.compareFinal(f.Final)
			if len(r.mismatches) == 0 {
				t.Error("the fault went unnoticed")
			}
		})
	}
}
