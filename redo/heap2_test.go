package redo

import (
	"fmt"
	"slices"
	"testing"

	"everpage/redo/page"
	"everpage/wal"
	"everpage/wal/pg"
)

func lpLayout(p pg.Page) string {
	s := ""
	for off := 1; off <= p.ItemCount(); off++ {
		switch id := p.Item(pg.OffsetNumber(off)); id.Flags() {
		case pg.LPUnused:
			s += "- "
		case pg.LPRedirect:
			s += fmt.Sprintf("->%d ", id.Offset())
		case pg.LPDead:
			s += "dead "
		default:
			s += fmt.Sprintf("%d+%d ", id.Offset(), id.Length())
		}
	}
	return s
}

func rows(n int) (tuples [][]byte) {
	for i := range n {
		tuples = append(tuples, tuple(600, 0, 5, uint16(i+1), 2, 0x0902, fmt.Sprintf("row %d", i+1)))
	}
	return tuples
}

// pruneRecord prunes as every major says it: 1 redirects to 3, 2 is dead, 5 and 6 are unused.
func pruneRecord(major pg.Major, key pg.PageKey) *wal.Record {
	if major >= 17 {
		data := le(uint16(1), uint16(1), uint16(3), uint16(1), uint16(2), uint16(2), uint16(5), uint16(6))
		main := le(uint8(0), uint8(pruneCleanupLock|pruneHasConflictHorizon|pruneHasRedirections|pruneHasDeadItems|pruneHasNowUnusedItems), uint32(650))
		return heapRecord(major, wal.RmHeap2, 0x10, main, heapBlockRef(0, key, data))
	}
	main := le(uint32(650), uint16(1), uint16(1))
	if major == 16 {
		main = append(main, 1) // isCatalogRel
	}
	return heapRecord(major, wal.RmHeap2, 0x10, main, heapBlockRef(0, key, le(uint16(1), uint16(3), uint16(2), uint16(5), uint16(6))))
}

// Pruning packs what is left in line pointer order. 14 keeps unused line pointers at the end, later majors cut them.
func TestHeap2Prune(t *testing.T) {
	eachMajor(t, func(t *testing.T, major pg.Major) {
		p := heapPage(t, rows(6)...)
		redoAll(t, pruneRecord(major, heapKey(5)), ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p})
		want := "->3 dead 8160+29 8128+29 "
		if major == 14 {
			want += "- - "
		}
		if got := lpLayout(p); got != want || p.Upper() != 8128 {
			t.Errorf("items %q upper %d, want %q", got, p.Upper(), want)
		}
		if hint := p.Flags()&pg.PageHasFreeLines != 0; hint != (major == 14) {
			t.Errorf("PD_HAS_FREE_LINES is %v", hint)
		}
		wantTuple(t, p, 3, rows(3)[2], 9)
		wantTuple(t, p, 4, rows(4)[3], 9)
		wantLSN(t, p, heapTestLSN)
	})
}

func vacuumRecord(major pg.Major, offs ...uint16) *wal.Record {
	data, main := le(), le(uint16(len(offs)))
	info := uint8(0x20)
	if major >= 17 {
		data, main, info = le(uint16(len(offs))), le(uint8(0), uint8(pruneHasNowUnusedItems)), 0x30
	}
	for _, off := range offs {
		data = le(data, off)
	}
	return heapRecord(major, wal.RmHeap2, info, main, heapBlockRef(0, heapKey(5), data))
}

// Vacuum's second pass moves nothing and cuts line pointers in every major, but never the last one.
func TestHeap2Vacuum(t *testing.T) {
	dead := pg.NewItemID(0, pg.LPDead, 0)
	eachMajor(t, func(t *testing.T, major pg.Major) {
		p := heapPage(t, rows(5)...)
		p.SetItem(1, dead)
		p.SetItem(4, dead)
		p.SetItem(5, dead)
		upper := p.Upper()
		redoAll(t, vacuumRecord(major, 1, 4, 5), ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p})
		if got := lpLayout(p); got != "- 8128+29 8096+29 " || p.Upper() != upper {
			t.Errorf("items %q, upper %d", got, p.Upper())
		}
		p = heapPage(t, rows(2)...)
		p.SetItem(1, dead)
		p.SetItem(2, dead)
		redoAll(t, vacuumRecord(major, 1, 2), ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p})
		if got := lpLayout(p); got != "- " || p.Flags()&pg.PageHasFreeLines == 0 {
			t.Errorf("items %q, flags %d: one line pointer must stay", got, p.Flags())
		}
		p = heapPage(t, rows(2)...)
		if _, err := tryRedo(t, vacuumRecord(major, 1), ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p}); err == nil {
			t.Error("an item in use was vacuumed away")
		}
	})
}

// freezeRecord freezes items 1 and 3 with one plan and item 2 with another, as every major says it.
func freezeRecord(major pg.Major) *wal.Record {
	main := le(uint32(650), uint16(3))
	var data []byte
	plan := func(xmax uint32, mask2, mask uint16, flags uint8, n uint16) []byte {
		return le(xmax, mask2, mask, flags, uint8(0), n)
	}
	switch {
	case major <= 15:
		for _, f := range []struct {
			off   uint16
			xmax  uint32
			mask  uint16
			flags uint8
		}{{1, 0, 0x0B02, 0}, {2, 77, 0x0302, 2}, {3, 0, 0x0B02, 0}} {
			data = le(data, f.xmax, f.off, uint16(2), f.mask, f.flags, uint8(0))
		}
	case major == 16:
		main = le(uint32(650), uint16(2), uint8(0))
		data = le(plan(0, 2, 0x0B02, 0, 2), plan(77, 2, 0x0302, 2, 1), uint16(1), uint16(3), uint16(2))
	default:
		main = le(uint8(0), uint8(pruneCleanupLock|pruneHasConflictHorizon|pruneHasFreezePlans|pruneHasDeadItems), uint32(650))
		data = le(uint16(2), uint16(0), plan(0, 2, 0x0B02, 0, 2), plan(77, 2, 0x0302, 2, 1), uint16(1), uint16(4), uint16(1), uint16(3), uint16(2))
		return heapRecord(major, wal.RmHeap2, 0x20, main, heapBlockRef(0, heapKey(5), data))
	}
	return heapRecord(major, wal.RmHeap2, 0x30, main, heapBlockRef(0, heapKey(5), data))
}

func TestHeap2Freeze(t *testing.T) {
	eachMajor(t, func(t *testing.T, major pg.Major) {
		p := heapPage(t, rows(4)...)
		redoAll(t, freezeRecord(major), ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p})
		wantTuple(t, p, 1, tuple(600, 0, 5, 1, 2, 0x0B02, "row 1"), 9)
		wantTuple(t, p, 2, tuple(600, 77, 5, 2, 2, 0x0302, "row 2"), pg.FrozenXID) // XLH_FREEZE_XVAC
		wantTuple(t, p, 3, tuple(600, 0, 5, 3, 2, 0x0B02, "row 3"), 9)
		want := "8160+29 8128+29 8096+29 8064+29 "
		if major >= 17 {
			want = "8160+29 8128+29 8096+29 dead "
		}
		if got := lpLayout(p); got != want {
			t.Errorf("items %q", got)
		}
		rec := freezeRecord(major)
		rec.Blocks[0].Data = rec.Blocks[0].Data[:len(rec.Blocks[0].Data)-1]
		if _, err := tryRedo(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): heapPage(t, rows(4)...)}); err == nil {
			t.Error("truncated block data went unnoticed")
		}
	})
}

// 17's pruning without a cleanup lock must not move anything.
func TestHeap2PruneWithoutCleanupLock(t *testing.T) {
	rec := pruneRecord(17, heapKey(5))
	rec.Main[1] &^= pruneCleanupLock
	if _, err := tryRedo(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): heapPage(t, rows(6)...)}); err == nil {
		t.Error("no error")
	}
}

func visibleRecord(major pg.Major, block pg.BlockNumber, flags uint8) *wal.Record {
	return heapRecord(major, wal.RmHeap2, 0x40, le(uint32(650), flags), heapBlockRef(0, vmKey(block/vmBlocksPerPage), nil), heapBlockRef(1, heapKey(block), nil))
}

// The heap page's LSN moves only where hint bits are logged; the map's page is made from zeros, and its LSN stays where no bit is new.
func TestHeap2Visible(t *testing.T) {
	const block = 2*vmBlocksPerPage + 9 // byte 2 of its page, shift 2
	for name, c := range map[string]struct {
		st  ControlState
		lsn pg.LSN
	}{
		"plain":         {ControlState{}, heapTestStart},
		"checksums":     {ControlState{DataChecksums: true}, heapTestLSN},
		"wal_log_hints": {ControlState{WALLogHints: true}, heapTestLSN},
	} {
		t.Run(name, func(t *testing.T) {
			p, vm := heapPage(t, rows(1)...), pg.Page(make([]byte, pg.BlockSize))
			pages := map[pg.PageKey]pg.Page{heapKey(block): p, vmKey(2): vm}
			ch := redoAll(t, visibleRecord(15, block, 3), c.st, pages)
			wantAllVisible(t, p, true)
			wantLSN(t, p, c.lsn)
			wantLSN(t, vm, heapTestLSN)
			if !vm.Valid() || vm[24+2] != 0x0C {
				t.Errorf("map page valid %v, bits %02x", vm.Valid(), vm[26])
			}
			if !ch.Pages[0].Zeroed || ch.Pages[1].Zeroed || ch.Pages[0].Optional {
				t.Error("only the map's page is made of zeros where it is missing")
			}
		})
	}
	eachMajor(t, func(t *testing.T, major pg.Major) {
		vm := heapPage(t)
		vm[24+2] = 0x05
		pages := map[pg.PageKey]pg.Page{heapKey(block): heapPage(t), vmKey(2): vm}
		rec := visibleRecord(major, block, 3)
		if major >= 16 {
			rec.Main[4] |= 4 // VISIBILITYMAP_XLOG_CATALOG_REL
		}
		redoAll(t, rec, ControlState{}, pages)
		if vm[24+2] != 0x0D {
			t.Errorf("bits %02x, want 0d", vm[26])
		}
		wantLSN(t, vm, heapTestLSN)
		// Once more, later: no bit changes, so the LSN stays.
		rec.End += 0x100
		redoAll(t, rec, ControlState{}, pages)
		wantLSN(t, vm, heapTestLSN)
	})
	t.Run("wrong page", func(t *testing.T) {
		rec := visibleRecord(15, block, 3)
		rec.Blocks[0].Block = 1
		if _, err := tryRedo(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(block): heapPage(t)}); err == nil {
			t.Error("no error")
		}
	})
}

// Tuples begin at even offsets of the block data, wherever the one before ended.
func TestHeap2MultiInsert(t *testing.T) {
	head := func(n int) []byte { return le(uint16(n+1), uint16(2), uint16(0x0802), uint8(24), uint8(0)) }
	data := le(head(3), []byte("odd"), uint8(0), head(4), []byte("even"), head(1), []byte("x"))
	want := func(t *testing.T, p pg.Page, first, second, third pg.OffsetNumber) {
		t.Helper()
		wantTuple(t, p, first, tuple(heapTestXID, 0, 5, first, 2, 0x0802, "odd"), 0)
		wantTuple(t, p, second, tuple(heapTestXID, 0, 5, second, 2, 0x0802, "even"), 0)
		wantTuple(t, p, third, tuple(heapTestXID, 0, 5, third, 2, 0x0802, "x"), 0)
		wantLSN(t, p, heapTestLSN)
	}
	eachMajor(t, func(t *testing.T, major pg.Major) {
		p := heapPage(t, rows(3)...)
		p.SetItem(2, 0)
		setAllVisible(p, true)
		main := le(uint8(1), uint8(0), uint16(3), uint16(2), uint16(4), uint16(5))
		ch := redoAll(t, heapRecord(major, wal.RmHeap2, 0x50, main, heapBlockRef(0, heapKey(5), data)), ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p})
		want(t, p, 2, 4, 5)
		wantAllVisible(t, p, false)
		wantVM(t, ch, "0:5/3 ")

		blk := heapBlockRef(0, heapKey(5), data)
		blk.WillInit = true
		ch = redoAll(t, heapRecord(major, wal.RmHeap2, 0xD0, le(uint8(0x20), uint8(0), uint16(3)), blk), ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p})
		want(t, p, 1, 2, 3)
		wantAllVisible(t, p, true) // ALL_FROZEN_SET
		wantVM(t, ch, "")
	})
	for name, rec := range map[string]*wal.Record{
		"more data than tuples": heapRecord(15, wal.RmHeap2, 0x50, le(uint8(0), uint8(0), uint16(2), uint16(1), uint16(2)), heapBlockRef(0, heapKey(5), data)),
		"more tuples than data": heapRecord(15, wal.RmHeap2, 0x50, le(uint8(0), uint8(0), uint16(4), uint16(1), uint16(2), uint16(3), uint16(4)),
			heapBlockRef(0, heapKey(5), data)),
		"more tuples than offsets": heapRecord(15, wal.RmHeap2, 0x50, le(uint8(0), uint8(0), uint16(3), uint16(1)), heapBlockRef(0, heapKey(5), data)),
	} {
		if _, err := tryRedo(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): heapPage(t)}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestHeap2LockUpdated(t *testing.T) {
	p := heapPage(t, tuple(600, 0, 8, 2, heapHotUpdated|2, 0x0922, "row"))
	rec := heapRecord(15, wal.RmHeap2, 0x60, le(uint32(650), uint16(1), uint8(0x03), uint8(1)), heapBlockRef(0, heapKey(5), nil))
	ch := redoAll(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p})
	// Unlike LOCK it leaves ctid, HOT_UPDATED and the command ID.
	wantTuple(t, p, 1, tuple(600, 650, 8, 2, heapHotUpdated|2, 0x0122|heapXmaxIsMulti|heapXmaxLockOnly, "row"), 9)
	wantVM(t, ch, "0:5/2 ")
}

// The longest chain a page can have in practice: 200 changes of one page.
func BenchmarkRedo200(b *testing.B) {
	key := heapKey(5)
	var deltas [][]byte
	for i := range 200 {
		d := Delta{Rmgr: wal.RmHeap, XID: heapTestXID, Main: le(uint16(i+1), uint8(0)), Data: le(uint16(2), uint16(0x0802), uint8(24), uint8(0), []byte("short"))}
		deltas = append(deltas, AppendDelta(nil, &d))
	}
	base := heapPage(b)
	p := slices.Clone(base)
	r := Redoer{15}
	b.ReportAllocs()
	for b.Loop() {
		copy(p, base)
		for i, d := range deltas {
			if _, err := r.Redo(p, key, heapTestLSN+pg.LSN(8*i), false, d); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkRedoInsert(b *testing.B) {
	base := heapPage(b, rows(20)...)
	d := Delta{Rmgr: wal.RmHeap, XID: heapTestXID, Main: le(uint16(21), uint8(0)), Data: le(uint16(2), uint16(0x0802), uint8(24), uint8(0), make([]byte, 80))}
	encoded := AppendDelta(nil, &d)
	p := slices.Clone(base)
	lower, upper := p.Lower(), p.Upper()
	r := Redoer{15}
	b.ReportAllocs()
	for b.Loop() {
		p.SetLower(lower)
		p.SetUpper(upper)
		p.SetLSN(heapTestStart)
		if _, err := r.Redo(p, heapKey(5), heapTestLSN, false, encoded); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRedoPrune(b *testing.B) {
	base := heapPage(b)
	for i := range 100 {
		if _, err := page.Add(base, rows(1)[0], pg.OffsetNumber(i+1), page.Overwrite|page.Heap); err != nil {
			b.Fatal(err)
		}
	}
	main := le(uint32(650), uint16(0), uint16(0))
	var data []byte
	for off := uint16(1); off < 100; off += 3 {
		data = le(data, off)
	}
	encoded := AppendDelta(nil, &Delta{Rmgr: wal.RmHeap2, Info: 0x10, Main: main, Data: data})
	p := slices.Clone(base)
	r := Redoer{15}
	b.ReportAllocs()
	for b.Loop() {
		copy(p, base)
		if _, err := r.Redo(p, heapKey(5), heapTestLSN, false, encoded); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTouchInsert(b *testing.B) {
	data := le(uint16(2), uint16(0x0802), uint8(24), uint8(0), make([]byte, 80))
	rec := heapRecord(15, wal.RmHeap, 0x00, le(uint16(2), uint8(1)), heapBlockRef(0, heapKey(5), data))
	var ch Changes
	var st ControlState
	var encoded []byte
	b.ReportAllocs()
	for b.Loop() {
		if err := Touch(rec, &st, &ch); err != nil {
			b.Fatal(err)
		}
		encoded = encoded[:0]
		for i := range ch.Pages {
			encoded = AppendDelta(encoded, &ch.Pages[i].Delta)
		}
	}
}
