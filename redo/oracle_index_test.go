package redo_test

import (
	"encoding/binary"
	"fmt"
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

// indexRecords are the record types of each index manager that change pages otherwise than by an image.
var indexRecords = map[wal.Rmgr][]string{
	wal.RmBtree: {"INSERT_LEAF", "INSERT_UPPER", "INSERT_POST", "SPLIT_L", "SPLIT_R", "DEDUP", "DELETE", "VACUUM", "UNLINK_PAGE", "UNLINK_PAGE_META",
		"NEWROOT", "MARK_PAGE_HALFDEAD", "META_CLEANUP"},
	wal.RmHash: {"INIT_META_PAGE", "INIT_BITMAP_PAGE", "INSERT", "ADD_OVFL_PAGE", "SPLIT_ALLOCATE_PAGE", "SPLIT_COMPLETE", "MOVE_PAGE_CONTENTS",
		"SQUEEZE_PAGE", "DELETE", "SPLIT_CLEANUP", "UPDATE_META_PAGE", "VACUUM_ONE_PAGE"},
	wal.RmGist: {"PAGE_UPDATE", "DELETE", "PAGE_SPLIT", "PAGE_DELETE"},
	wal.RmGin: {"CREATE_PTREE", "INSERT", "SPLIT", "DELETE_PAGE", "UPDATE_META_PAGE", "INSERT_LISTPAGE", "DELETE_LISTPAGE",
		"VACUUM_DATA_LEAF_PAGE"},
	wal.RmSPGist:  {"ADD_LEAF", "MOVE_LEAFS", "ADD_NODE", "SPLIT_TUPLE", "PICKSPLIT", "VACUUM_LEAF", "VACUUM_ROOT", "VACUUM_REDIRECT"},
	wal.RmBRIN:    {"CREATE_INDEX", "INSERT", "INSERT+INIT", "UPDATE", "UPDATE+INIT", "SAMEPAGE_UPDATE", "REVMAP_EXTEND", "DESUMMARIZE"},
	wal.RmGeneric: {"Generic"},
}

// indexManagers are all that the index workload is there for.
var indexManagers = []wal.Rmgr{wal.RmBtree, wal.RmHash, wal.RmGin, wal.RmGist, wal.RmSPGist, wal.RmBRIN, wal.RmGeneric}

// requireCompared fails where a record type of a manager was never held against the primary.
func requireCompared(t *testing.T, compared map[string]int, rmgrs ...wal.Rmgr) {
	t.Helper()
	for _, rm := range rmgrs {
		for _, name := range indexRecords[rm] {
			if compared[fmt.Sprintf("%s/%s", rm, name)] == 0 {
				t.Errorf("no page of %s/%s was compared", rm, name)
			}
		}
	}
}

// compareIndexes holds all pages of the indexes that these managers changed against a cleanly stopped data directory: after masking, and what the
// masks hide though only records change it, the LSN, a GiST page's NSN and the transaction that a GIN page was deleted by.
func (r *replayer) compareIndexes(dir string, rmgrs ...wal.Rmgr) (compared int) {
	r.t.Helper()
	final, _ := loadRelations(r.t, dir)
	indexes := map[pg.RelFork]wal.Rmgr{}
	for key, rm := range r.owner {
		if slices.Contains(rmgrs, rm) {
			indexes[key.RelFork] = rm
		}
	}
	for key, page := range r.pages {
		rm, ok := indexes[key.RelFork]
		if !ok || page.IsNew() || r.damaged[key] != nil {
			continue
		}
		if rm == wal.RmSPGist && key.Block == 0 {
			continue // the metapage holds nothing but hints, and no record changes it
		}
		theirs := final[key]
		if theirs == nil {
			r.mismatch("%s %s is not there at the end", rm, key)
			continue
		}
		if page.LSN() != theirs.LSN() {
			r.mismatch("%s %s at the end: LSN %s, the primary has %s", rm, key, page.LSN(), theirs.LSN())
		}
		if rm == wal.RmGist {
			const followRight = 8 // F_FOLLOW_RIGHT
			ours, theirs := page[page.Special():], theirs[theirs.Special():]
			if pg.Page(ours).LSN() != pg.Page(theirs).LSN() ||
				(binary.LittleEndian.Uint16(ours[12:])^binary.LittleEndian.Uint16(theirs[12:]))&followRight != 0 {
				r.mismatch("%s %s at the end: NSN and flags % x, the primary has % x", rm, key, ours[:14], theirs[:14])
			}
		}
		if rm == wal.RmGin && page.PruneXID() != theirs.PruneXID() {
			r.mismatch("%s %s at the end: deleted by %d, on the primary by %d", rm, key, page.PruneXID(), theirs.PruneXID())
		}
		a, b := slices.Clone(page), slices.Clone(theirs)
		for _, p := range []pg.Page{a, b} {
			if err := redo.Mask(rm, p, key); err != nil {
				r.t.Fatal(err)
			}
		}
		if !slices.Equal(a, b) {
			r.mismatch("%s %s at the end differs from the primary's", rm, key)
		}
		compared++
	}
	return compared
}

func (r *replayer) failOnMismatches() {
	r.t.Helper()
	for i, m := range r.mismatches {
		if i == 20 {
			r.t.Fatalf("… %d mismatches in all", len(r.mismatches))
		}
		r.t.Error(m)
	}
}

// What redo makes of index pages equals what the server had after each record, and at the end. Without full-page writes records change pages
// that an image would replace else, as the overflow pages that a squeeze frees.
func TestOracleIndexes(t *testing.T) {
	// Over all runs: whether an insert finds items that a scan could mark dead depends on what else the server was doing.
	compared := map[string]int{}
	run := func(name string, major pg.Major, settings map[string]string) {
		t.Run(name, func(t *testing.T) {
			f := indexCorpus(t, major, settings)
			r := newReplayer(t, major, f.Base)
			r.replay(f.WAL)
			r.finish()
			t.Logf("%d pages of indexes compared at the end", r.compareIndexes(f.Final, indexManagers...))
			r.report()
			r.failOnMismatches()
			for name, n := range r.compared {
				compared[name] += n
			}
		})
	}
	for _, major := range pg.Majors() {
		run(fmt.Sprint(major), major, nil)
	}
	run("15_without_full_page_writes", 15, map[string]string{"full_page_writes": "off"})
	requireCompared(t, compared, wal.RmHash, wal.RmGin, wal.RmGist, wal.RmSPGist, wal.RmBRIN, wal.RmGeneric)
}

func indexCorpus(t *testing.T, major pg.Major, settings map[string]string) *workload.Files {
	t.Helper()
	o := small
	o.Seed = 1
	f, err := workload.Cached(t.Context(), int(major), settings, workload.Indexes, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// spoil flips a bit of the main data of all records of a type.
func spoil(rm wal.Rmgr, op, part uint8, at int) func(c *redo.PageChange) {
	return func(c *redo.PageChange) {
		if d := &c.Delta; c.Kind != redo.KindImage && d.Rmgr == rm && d.Info&0xF0 == op && d.Part == part {
			d.Main = slices.Clone(d.Main)
			d.Main[at] ^= 1
		}
	}
}

// A redo that is wrong in one way for one index manager is found out.
func TestOracleFindsIndexFaults(t *testing.T) {
	f := indexCorpus(t, pgtest.DefaultMajor, nil)
	for name, fault := range map[string]func(c *redo.PageChange){
		"B-tree split point":      spoil(wal.RmBtree, 0x40, 0, 4),
		"hash bucket flags":       spoil(wal.RmHash, 0x60, 1, 2),
		"hash squeeze right link": spoil(wal.RmHash, 0x80, 3, 4),
		"GiST split right link":   spoil(wal.RmGist, 0x30, 2, 0),
		"GiST split NSN":          spoil(wal.RmGist, 0x30, 1, 8), // only at the end
		"hash page LSN": func(c *redo.PageChange) {
			if d := &c.Delta; d.Rmgr == wal.RmHash && d.Info&0xF0 == 0x20 && d.Part == 0 {
				d.LSN++
			}
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			r := newReplayer(t, pg.Major(f.Major), f.Base)
			r.fault = fault
			r.replay(f.WAL)
			r.finish()
			seen := len(r.mismatches)
			r.compareIndexes(f.Final, indexManagers...)
			t.Logf("%d mismatches with images, %d at the end", seen, len(r.mismatches)-seen)
			if len(r.mismatches) == 0 {
				t.Error("the fault went unnoticed")
			}
		})
	}
}

// rareHash makes a hash index with more than 512 buckets, from where on split points have phases, and has vacuum meet items that a scan marked dead.
const rareHash = `
create table m(a int);
insert into m select generate_series(1, 50000);
analyze m;
delete from m where a > 2500;
create index on m using hash(a) with (fillfactor = 10);
create table d(a int);
create index on d using hash(a);
insert into d select 7 from generate_series(1, 900);
delete from d where ctid in (select ctid from d limit 700);
select txid_current();
set enable_seqscan = off; set enable_bitmapscan = off;
select count(*) from d where a = 7;
select count(*) from d where a = 7;
vacuum d;
create table c(a int);
create index on c using hash(a) with (fillfactor = 10);
insert into c select generate_series(1, 24500);`

// What the workloads leave out: these need a table of their own kind, or a server that does nothing else.
func TestOracleRareHash(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s, err := pgtest.Init(ctx, pgtest.Config{Settings: pgtest.Merge(pgtest.OracleSettings(pgtest.DefaultMajor),
		map[string]string{"autovacuum": "off", "wal_consistency_checking": "hash"})})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	base, log, final := filepath.Join(dir, "base"), filepath.Join(dir, "wal"), filepath.Join(dir, "final")
	for _, step := range []func() error{
		func() error { return s.CopyCold(base) },
		func() error { return s.StartAgain(ctx) },
		func() error { _, err := s.Psql(ctx, "postgres", rareHash, nil); return err },
		func() error { return s.Stop(ctx, pgtest.Fast) },
		func() error { return s.MoveWAL(log) },
		func() error { return s.CopyCold(final) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}

	r := newReplayer(t, pgtest.DefaultMajor, base)
	born, grown, dead := 0, 0, 0
	r.fault = func(c *redo.PageChange) { // spoils nothing
		d := &c.Delta
		if d.Rmgr != wal.RmHash {
			return
		}
		// hashm_ovflpoint
		point := func() uint32 { return binary.LittleEndian.Uint32(r.pages[c.Key][pg.PageHeaderSize+36:]) }
		switch d.Info & 0xF0 {
		case 0x10: // INIT_BITMAP_PAGE comes second, when the metapage is there
			if d.Part == 1 && point() > 9 {
				born++
			}
		case 0x40:
			if d.Part == 2 && c.Kind == redo.KindDelta && d.Main[8]&2 != 0 && point() >= 9 {
				grown++
			}
		case 0x90:
			if d.Part == 1 && c.Kind == redo.KindDelta && d.Main[0] != 0 {
				dead++
			}
		}
	}
	r.replay(log)
	r.finish()
	t.Logf("%d pages of indexes compared at the end", r.compareIndexes(final, wal.RmHash))
	r.report()
	r.failOnMismatches()
	if born == 0 || grown == 0 || dead == 0 {
		t.Errorf("%d indexes made with many buckets, %d split points begun beyond 512 buckets, %d deletions of dead items: none must be 0", born, grown, dead)
	}
}
