package redo

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

// traps are what the headers of PostgreSQL's records don't tell, each with the test that holds it. The last ones are rare: real servers write them too (the
// coverage table), by hand they are made there.
var traps = []struct{ trap, dir, test string }{
	{"14 names an image's flags by other bits", "../wal", "TestImageFlagsOfEachMajor"},
	{"the data of a block whose image is restored may be there, and is ignored", ".", "TestTouchImage"},
	{"the visibility map is cleared where the record's own page is an image", ".", "TestTouchImage"},
	{"a restored page of zeros gets no LSN", ".", "TestTouchImageOfNewPage"},
	{"an image of a consistency check restores nothing", ".", "TestTouchCheckImage"},
	{"GiST updates and splits go on after a restored image", ".", "TestGistRecords"},
	{"hash split allocation and completion go on after a restored image", ".", "TestHashRecords"},
	{"pages that hash records only lock don't change", ".", "TestHashLockedPages"},
	{"17 leaves the page of a hash squeeze alone where nothing moves to it", ".", "TestHashLayouts"},
	{"16 counts the items of hash VACUUM_ONE_PAGE in two bytes", ".", "TestHashLayouts"},
	{"16 has GiST DELETE's items in the main data", ".", "TestGistDeleteLayout"},
	{"16 adds a flag to SP-GiST VACUUM_REDIRECT", ".", "TestSPGistVacuumRedirectLayout"},
	{"18 clears the vacuum cycle of a B-tree page", ".", "TestBtreeVacuumCycle"},
	{"14's prune cuts no line pointers", ".", "TestHeap2Prune"},
	{"vacuum cuts line pointers but the last one", ".", "TestHeap2Vacuum"},
	{"17 prunes without a cleanup lock, and moves nothing then", ".", "TestHeap2PruneWithoutCleanupLock"},
	{"16 has freeze plans, 17 has them in the prune record", ".", "TestHeap2Freeze"},
	{"VISIBLE moves the heap page's LSN only with checksums or wal_log_hints", ".", "TestHeap2Visible"},
	{"a lock clears the map's frozen bit only", ".", "TestHeapLock"},
	{"an update takes its prefix from the old version, which lies on the same page", ".", "TestHeapUpdatePrefixBehindBitmap"},
	{"18 writes invalidations behind an in-place update", ".", "TestHeapInplace"},
	{"truncation clears the tails of the maps' last pages, without an LSN", ".", "TestStorageTruncateClearsMaps"},
	{"clearing the map looks at no LSN and moves none", ".", "TestVMClear"},
	{"a page of the multixact log that CREATE_ID began must not be wiped by ZERO_OFF_PAGE", ".", "TestZeroOffsetsOrder"},
	{"members go over pages and around the end of their numbers", ".", "TestMembersOverPagesAndWraparound"},
	{"multixact numbers go around their end", ".", "TestMultiIDWraparound"},
	{"segments of members go around their end", ".", "TestMembersSegmentsWrapAround"},
	{"transaction numbers go on in the next epoch", ".", "TestAdvancePast"},
	{"an online checkpoint says nothing of the next OID", ".", "TestCheckpoints"},
	{"17 names pages of logs in eight bytes", ".", "TestCLOGTruncate"},
	{"commit times are switched off and on by a change of parameters", ".", "TestCommitTsTruncateAndTurnOff"},
	{"a commit's time may be that of its origin, 15 and 18 have other dropped statistics", ".", "TestCommitEverything"},
	{"subtransactions lie on several pages of a log", ".", "TestSubtransactionsOverPages"},
	{"16 has other relation maps", ".", "TestRelMap"},
	{"a database is copied as a whole, or only begun", ".", "TestDatabase"},
	{"a tablespace may have no location", ".", "TestTablespace"},
	{"17 names two-phase states by 16 digits", "../wal/pg", "TestTwoPhaseName"},
	{"17 has wal_level where checkpoints had nothing", "../wal/pg", "TestCheckPointLayout"},
	{"SWITCH ends with its segment", "../wal", "TestSwitchEndsWithItsSegment"},
	{"a record that ends with a page ends there, not behind the next header", "../wal", "TestRecordThatEndsAtPageBoundary"},
	{"a custom resource manager's record damages what it names", ".", "TestTouchUnknownRecord"},

	{"an image for a hint may be missing", ".", "TestHintWithoutImage"},
	{"promotion, change of parameters", ".", "TestControlRecords"},
	{"an overwritten continuation record", "../wal", "TestAbandonedRecord"},
	{"truncation of the commit log", ".", "TestCLOGTruncate"},
	{"truncation of commit times", ".", "TestCommitTsTruncateAndTurnOff"},
	{"truncation of multixacts", ".", "TestTruncateMulti"},
	{"deletion of dead items from GiST and hash pages", ".", "TestGistDeleteLayout"},
	{"blocks behind the first gigabyte", ".", "TestSecondSegment"},
	{"a posting tree's inner page gets a child, and its split ends", ".", "TestGinRecords"},
	{"what no followed server writes", ".", "TestUnreachableRecordsChangeNothing"},
}

// TestTrapsHaveTests keeps the list true.
func TestTrapsHaveTests(t *testing.T) {
	sources := map[string]string{}
	for _, x := range traps {
		if _, ok := sources[x.dir]; !ok {
			files, err := filepath.Glob(filepath.Join(x.dir, "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				sources[x.dir] += string(b)
			}
		}
		if !regexp.MustCompile(`(?m)^func ` + x.test + `\(t \*testing\.T\)`).MatchString(sources[x.dir]) {
			t.Errorf("%s: there is no %s in %s", x.trap, x.test, x.dir)
		}
	}
}

// Block numbers count on over the files of a relation: the second begins with block 131072, whose map bits lie in the map's fifth page.
func TestSecondSegment(t *testing.T) {
	const first = pg.SegmentBlocks
	eachMajor(t, func(t *testing.T, major pg.Major) {
		p := heapPage(t, rows(2)...)
		pages := map[pg.PageKey]pg.Page{heapKey(first + 7): p}
		ch := redoAll(t, heapRecord(major, wal.RmHeap, 0x10, deleteMain(1), heapBlockRef(0, heapKey(first+7), nil)), ControlState{}, pages)
		wantVM(t, ch, "4:131079/3 ")
		if len(ch.Pages) != 2 || ch.Pages[0].Key != heapKey(first+7) {
			t.Errorf("%+v", ch.Pages)
		}
		wantLSN(t, p, heapTestLSN)

		// Cut off in the first file: the map keeps five pages, the last one's bits are cleared from the cut on.
		ch = touched(t, record(major, wal.RmStorage, 0x20, 700, uint32(first-70), someRel, int32(7)), &ControlState{})
		for _, s := range ch.Sizes {
			if s.Op == SizeTruncate && s.Fork.Fork == pg.VMFork && s.Blocks != 5 {
				t.Errorf("the map keeps %d pages", s.Blocks)
			}
		}
		for i := range ch.Pages {
			if d := &ch.Pages[i].Delta; d.Part == PartVMTruncate {
				vm := make(pg.Page, pg.BlockSize)
				vm.Init(0)
				for k := 24; k < len(vm); k++ {
					vm[k] = 0xFF
				}
				if _, err := Apply(vm, d, false); err != nil || ch.Pages[i].Key.Block != 4 {
					t.Fatalf("%+v: %v", ch.Pages[i].Key, err)
				}
				const kept = first - 70 - 4*32672 // blocks of this page, four a byte
				if vm[24+kept/4-1] != 0xFF || vm[24+kept/4] != 0x0F || vm[24+kept/4+1] != 0 {
					t.Errorf("kept %d: % x", kept, vm[24+kept/4-1:24+kept/4+2])
				}
			}
		}
	})
}
