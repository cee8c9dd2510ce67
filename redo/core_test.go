package redo

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

func imageBlock(id uint8, key pg.PageKey, p pg.Page, apply bool) wal.Block {
	return wal.Block{ID: id, PageKey: key, HasImage: true, Image: wal.Image{Apply: apply, Data: p}}
}

func deleteMain(flags uint8) []byte { return le(uint32(650), uint16(1), uint8(0x14), flags) }

// An image wins over the record's change, but the map's bits go nevertheless.
func TestTouchImage(t *testing.T) {
	img := heapPage(t, rows(2)...)
	blk := imageBlock(0, heapKey(5), img, true)
	blk.Data, blk.HasData = []byte("kept for logical decoding"), true
	rec := heapRecord(15, wal.RmHeap, 0x10, deleteMain(1), blk)
	pages := map[pg.PageKey]pg.Page{}
	ch := redoAll(t, rec, ControlState{}, pages)
	if c := ch.Pages[0]; c.Kind != KindImage || c.Delta.Data != nil {
		t.Errorf("%+v", c)
	}
	want := bytes.Clone(img)
	pg.Page(want).SetLSN(heapTestLSN)
	if !bytes.Equal(pages[heapKey(5)], want) {
		t.Error("the image was not restored with the record's LSN")
	}
	wantVM(t, ch, "0:5/3 ")
}

func TestTouchImageOfNewPage(t *testing.T) {
	ch := redoAll(t, heapRecord(15, wal.RmXLOG, 0xB0, nil, imageBlock(0, heapKey(5), make(pg.Page, pg.BlockSize), true)), ControlState{}, map[pg.PageKey]pg.Page{})
	if !pg.Page(ch.Pages[0].Image).IsZero() {
		t.Error("a page of zeros got an LSN")
	}
}

// A consistency check's image never replaces a page.
func TestTouchCheckImage(t *testing.T) {
	p := heapPage(t, rows(1)...)
	rec := heapRecord(15, wal.RmHeap, 0x10, deleteMain(0), imageBlock(0, heapKey(5), heapPage(t), false))
	ch := redoAll(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p})
	if ch.Pages[0].Kind != KindDelta {
		t.Errorf("kind %d", ch.Pages[0].Kind)
	}
	wantTuple(t, p, 1, tuple(600, 650, 5, 1, 0x2000|2, 0x0102|heapXmaxExclLock, "row 1"), 0)
}

func TestTouchBrokenImage(t *testing.T) {
	rec := heapRecord(15, wal.RmXLOG, 0xB0, nil, imageBlock(0, heapKey(5), make(pg.Page, 100), true))
	if err := Touch(rec, &ControlState{}, &Changes{}); err == nil {
		t.Error("no error")
	}
}

func TestTouchUnknownRecord(t *testing.T) {
	blocks := []wal.Block{heapBlockRef(0, heapKey(5), nil), imageBlock(1, heapKey(6), heapPage(t), true)}
	for name, rec := range map[string]*wal.Record{
		"custom manager":        heapRecord(15, 130, 0x00, nil),
		"unknown manager":       heapRecord(15, 22, 0x00, nil),
		"unknown heap record":   heapRecord(15, wal.RmHeap, 0x90, deleteMain(0)), // DELETE has no variant that initialises
		"unsupported manager":   heapRecord(15, wal.RmLogicalMessage, 0x00, nil),
		"record of later major": heapRecord(15, wal.RmXLOG, 0xE0, nil),
	} {
		t.Run(name, func(t *testing.T) {
			var ch Changes
			rec.Blocks = blocks
			if err := Touch(rec, &ControlState{}, &ch); err != nil {
				t.Fatal(err)
			}
			var unknown *UnknownRecordError
			if len(ch.Pages) != 0 || len(ch.Damaged) != 2 || !errors.As(ch.Damaged[0].Err, &unknown) || ch.Damaged[1].Key != heapKey(6) || ch.Unproven != nil {
				t.Errorf("%+v", ch)
			}
			if text := ch.Damaged[0].Err.Error(); name == "custom manager" && !strings.Contains(text, "custom resource manager 130") {
				t.Errorf("the extension is not named: %s", text)
			}
			rec.Blocks = nil
			if err := Touch(rec, &ControlState{}, &ch); err != nil {
				t.Fatal(err)
			}
			// A record that is known by name and names no page changes none.
			if known := name == "unsupported manager"; (ch.Unproven == nil) != known || len(ch.Damaged) != 0 {
				t.Errorf("%+v", ch)
			}
		})
	}
}

// No server writes a record that names a page twice, and no store could keep two versions at one LSN.
func TestTouchPageTwice(t *testing.T) {
	rec := heapRecord(15, wal.RmXLOG, 0xB0, nil, imageBlock(0, heapKey(5), heapPage(t), true), imageBlock(1, heapKey(6), heapPage(t), true))
	var ch Changes
	if err := Touch(rec, &ControlState{}, &ch); err != nil {
		t.Fatal(err)
	}
	rec.Blocks[1].PageKey = rec.Blocks[0].PageKey
	if err := Touch(rec, &ControlState{}, &ch); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a page that is named twice: %v", err)
	}
}

// A delta that a manager without redo has left damages its page.
func TestTouchDeltaWithoutRedo(t *testing.T) {
	var ch Changes
	rec := heapRecord(15, wal.RmXLOG, 0xB0, nil, heapBlockRef(0, heapKey(5), nil), imageBlock(1, heapKey(6), heapPage(t), true))
	if err := Touch(rec, &ControlState{}, &ch); err != nil {
		t.Fatal(err)
	}
	if len(ch.Damaged) != 1 || ch.Damaged[0].Key != heapKey(5) || len(ch.Pages) != 1 || ch.Pages[0].Key != heapKey(6) {
		t.Errorf("%+v", ch)
	}
}

func TestApplyLSN(t *testing.T) {
	d := Delta{Major: 15, LSN: heapTestLSN, Rmgr: wal.RmHeap, Info: 0x10, XID: heapTestXID, Key: heapKey(5), Main: deleteMain(0)}
	for _, c := range []struct {
		page    pg.LSN
		changed bool
	}{{heapTestLSN - 8, true}, {heapTestLSN, false}, {heapTestLSN + 8, false}} {
		p := heapPage(t, rows(1)...)
		p.SetLSN(c.page)
		before := bytes.Clone(p)
		changed, err := Apply(p, &d, false)
		if err != nil || changed != c.changed || changed == bytes.Equal(p, before) {
			t.Errorf("page at %s: changed %v, %v", c.page, changed, err)
		}
		wantLSN(t, p, max(c.page, heapTestLSN))
	}
	if _, err := Apply(make(pg.Page, pg.BlockSize), &d, false); !errors.Is(err, ErrNewPage) {
		t.Errorf("a page of zeros: %v", err)
	}
	if _, err := Apply(make(pg.Page, 100), &d, false); err == nil {
		t.Error("a short page was accepted")
	}
	d.Main[4] = 9
	if _, err := Apply(heapPage(t), &d, false); err == nil || !strings.Contains(err.Error(), "Heap/DELETE") || !strings.Contains(err.Error(), d.Key.String()) {
		t.Errorf("the error should name record and page: %v", err)
	}
	for _, part := range []uint8{33, 63, 68, 255} {
		d.Part = part
		if _, err := Apply(heapPage(t), &d, false); err == nil {
			t.Errorf("part %d was accepted", part)
		}
	}
}

func TestVMTruncate(t *testing.T) {
	p := heapPage(t)
	for i := pg.PageHeaderSize; i < pg.BlockSize; i++ {
		p[i] = 0xFF
	}
	d := Delta{LSN: heapTestLSN, Rmgr: wal.RmStorage, Part: PartVMTruncate, Key: vmKey(1), Main: le(uint32(vmBlocksPerPage + 4*10 + 3))}
	changed, err := Apply(p, &d, false)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if p[24+9] != 0xFF || p[24+10] != 0x3F || bytes.Count(p[24+11:], []byte{0}) != pg.BlockSize-24-11 {
		t.Errorf("bytes % x", p[24+8:24+13])
	}
	wantLSN(t, p, heapTestStart)
	if changed, err := Apply(p, &d, false); changed || err != nil {
		t.Errorf("twice: %v, %v", changed, err)
	}
	if changed, err := Apply(make(pg.Page, pg.BlockSize), &d, false); changed || err != nil {
		t.Errorf("a page of zeros: %v, %v", changed, err)
	}
	d.Key.Block = 0
	if _, err := Apply(p, &d, false); err == nil {
		t.Error("another page of the map was accepted")
	}
}

func TestVMClear(t *testing.T) {
	p := heapPage(t)
	p[24], p[25] = 0xFF, 0xFF
	p.SetLSN(heapTestLSN + 8) // clearing looks at no LSN
	d := Delta{LSN: heapTestLSN, Rmgr: wal.RmHeap, Part: PartVMClear, Key: vmKey(0), Main: le(uint32(1), uint8(3), uint32(6), uint8(2))}
	changed, err := Apply(p, &d, false)
	if err != nil || !changed || p[24] != 0xF3 || p[25] != 0xDF {
		t.Errorf("changed %v, %v, bits % x", changed, err, p[24:26])
	}
	wantLSN(t, p, heapTestLSN+8)
	zero := make(pg.Page, pg.BlockSize)
	if changed, err := Apply(zero, &d, false); changed || err != nil || !zero.IsZero() {
		t.Errorf("a page of zeros: %v, %v", changed, err)
	}
	for _, main := range [][]byte{nil, {1, 2, 3}, le(uint32(vmBlocksPerPage), uint8(3)), le(uint32(1), uint8(4)), le(uint32(1), uint8(0))} {
		d.Main = main
		if _, err := Apply(p, &d, false); err == nil {
			t.Errorf("main data % x was accepted", main)
		}
	}
}

func TestFSMTruncate(t *testing.T) {
	key := heapKey(0)
	key.Fork = pg.FSMFork
	for _, c := range []struct {
		heap, block pg.BlockNumber
		slot        int
	}{{0, 2, 0}, {4068, 2, 4068}, {4069, 3, 0}, {4069 * 4069, 4072, 0}, {4069*4069 - 1, 4070, 4068}} {
		if block, slot := fsmAddress(c.heap); block != c.block || slot != c.slot {
			t.Errorf("heap block %d is in block %d slot %d, want %d, %d", c.heap, block, slot, c.block, c.slot)
		}
	}
	key.Block = 3
	p := heapPage(t)
	nodes := p[28:]
	for slot, v := range map[int]byte{0: 5, 9: 7, 10: 200, 4068: 100} {
		for i := fsmInnerNodes + slot; ; i = (i - 1) / 2 {
			nodes[i] = max(nodes[i], v)
			if i == 0 {
				break
			}
		}
	}
	d := Delta{LSN: heapTestLSN, Rmgr: wal.RmStorage, Part: PartFSMTrunc, Key: key, Main: le(uint32(4069 + 10))}
	if changed, err := Apply(p, &d, false); !changed || err != nil {
		t.Fatal(changed, err)
	}
	if nodes[0] != 7 || nodes[fsmInnerNodes] != 5 || nodes[fsmInnerNodes+9] != 7 || nodes[fsmInnerNodes+10] != 0 || nodes[fsmInnerNodes+4068] != 0 || nodes[2] != 0 {
		t.Errorf("root %d, leaves % d", nodes[0], nodes[fsmInnerNodes:fsmInnerNodes+12])
	}
	if changed, err := Apply(p, &d, false); changed || err != nil {
		t.Errorf("twice: %v, %v", changed, err)
	}
}

func TestDeltaRoundTrip(t *testing.T) {
	for _, d := range []Delta{
		{},
		{Rmgr: wal.RmHeap, Info: 0xA0, XID: 0xFFFFFFFF, Part: 32, HintLSN: true, Main: make([]byte, 300), Data: []byte("data"),
			Tags: []Tag{{ID: 0, Fork: pg.MainFork, Block: 0xFFFFFFFE, HasImage: true}, {ID: 31, Fork: pg.InitFork, WillInit: true}}},
		{Rmgr: wal.RmXLOG, Part: PartVMClear, Main: []byte{1}},
		{Rmgr: wal.RmBtree, Data: []byte{0}},
	} {
		b := AppendDelta([]byte("before"), &d)[6:]
		got := Delta{Tags: make([]Tag, 5), Key: heapKey(1), LSN: 9}
		if err := DecodeDelta(b, &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Tags) == 0 {
			got.Tags = nil
		}
		if !reflect.DeepEqual(got, d) {
			t.Errorf("got %+v, want %+v", got, d)
		}
		for n := range b {
			// Cut where the data begins or in it, the delta is a shorter one; anywhere before it's an error.
			if err := DecodeDelta(b[:n], &got); err == nil && n < len(b)-len(d.Data) {
				t.Errorf("%d of %d bytes were accepted", n, len(b))
			}
		}
	}
}

func TestRecordNames(t *testing.T) {
	for _, c := range []struct {
		major pg.Major
		rmgr  wal.Rmgr
		info  uint8
		want  string
	}{
		{15, wal.RmHeap, 0x80, "INSERT+INIT"}, {15, wal.RmHeap, 0xC2, "HOT_UPDATE+INIT"}, {15, wal.RmHeap, 0x50, "HEAP_CONFIRM"}, {15, wal.RmHeap, 0x90, "UNKNOWN (90)"},
		{16, wal.RmHeap2, 0x10, "PRUNE"}, {17, wal.RmHeap2, 0x10, "PRUNE_ON_ACCESS"}, {18, wal.RmHeap2, 0x30, "PRUNE_VACUUM_CLEANUP"}, {14, wal.RmHeap2, 0xD0, "MULTI_INSERT+INIT"},
		{15, wal.RmBRIN, 0x90, "INSERT+INIT"}, {15, wal.RmBRIN, 0x80, "UNKNOWN (80)"}, {15, wal.RmGin, 0x90, "VACUUM_DATA_LEAF_PAGE"}, {15, wal.RmSPGist, 0x80, "VACUUM_REDIRECT"},
		{15, wal.RmHash, 0xC0, "VACUUM_ONE_PAGE"}, {15, wal.RmGist, 0x60, "PAGE_DELETE"}, {15, wal.RmGist, 0x40, "UNKNOWN (40)"}, {15, wal.RmGeneric, 0, "Generic"}, {15, 128, 0x10, "UNKNOWN (10)"},
	} {
		if got := RecordName(c.major, c.rmgr, c.info); got != c.want {
			t.Errorf("%d %s %02x is %q, want %q", c.major, c.rmgr, c.info, got, c.want)
		}
	}
	for r := wal.RmXLOG; r <= wal.RmLogicalMessage; r++ {
		if m := managerOf(r); m == nil || m.name == nil {
			t.Errorf("%s has no names", r)
		}
	}
}

func TestCheckImage(t *testing.T) {
	var s CheckScratch
	ours := heapPage(t, rows(2)...)
	ours.SetLSN(heapTestLSN)
	theirs := heapPage(t, rows(2)...)
	theirs.SetFlags(pg.PageFull)
	rec := heapRecord(15, wal.RmHeap, 0x10, deleteMain(0))
	check := func(rmgr wal.Rmgr, blk wal.Block, p pg.Page) Check {
		t.Helper()
		rec.Rmgr = rmgr
		c, err := CheckImage(rec, &blk, p, &s)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := check(wal.RmHeap, heapBlockRef(0, heapKey(5), nil), ours); c.Outcome != CheckNone {
		t.Errorf("without an image: %+v", c)
	}
	if c := check(wal.RmHeap, imageBlock(0, heapKey(5), theirs, true), ours); c.Outcome != CheckNone {
		t.Errorf("with an image that is applied: %+v", c)
	}
	if c := check(wal.RmHeap, imageBlock(0, heapKey(5), theirs, false), ours); c.Outcome != CheckEqual {
		t.Errorf("equal: %+v", c)
	}
	ours[8188]++
	if c := check(wal.RmHeap, imageBlock(0, heapKey(5), theirs, false), ours); c.Outcome != CheckDiffers || c.FirstDiff != 8188 {
		t.Errorf("different: %+v", c)
	}
	ours.SetLSN(heapTestLSN + 8)
	if c := check(wal.RmHeap, imageBlock(0, heapKey(5), theirs, false), ours); c.Outcome != CheckSkipped {
		t.Errorf("ahead: %+v", c)
	}
	vmOurs, vmTheirs := heapPage(t), heapPage(t)
	if c := check(wal.RmHeap2, imageBlock(0, vmKey(1), vmTheirs, false), vmOurs); c.Outcome != CheckEqual {
		t.Errorf("equal maps: %+v", c)
	}
	vmOurs[24], vmTheirs[26] = 0x0C, 0x43
	vmTheirs[24] = 0x04
	c := check(wal.RmHeap2, imageBlock(0, vmKey(1), vmTheirs, false), vmOurs)
	if c.Outcome != CheckVMBits || !reflect.DeepEqual(c.Extra, []VMBits{{vmBlocksPerPage + 1, 2}}) ||
		!reflect.DeepEqual(c.Missing, []VMBits{{vmBlocksPerPage + 8, 3}, {vmBlocksPerPage + 11, 1}}) {
		t.Errorf("%+v", c)
	}
	rec.Rmgr = wal.RmXLOG
	blk := imageBlock(0, heapKey(5), theirs, false)
	ours.SetLSN(1)
	if _, err := CheckImage(rec, &blk, ours, &s); !errors.Is(err, errNoMask) {
		t.Errorf("a manager without a mask: %v", err)
	}
}

func TestNoAllocation(t *testing.T) {
	data := le(uint16(2), uint16(0x2802), uint8(24), uint8(0), []byte("new row"))
	rec := heapRecord(15, wal.RmHeap, 0x20, updateMain(3, 0, 1), heapBlockRef(0, heapKey(4), data), imageBlock(1, heapKey(3), heapPage(t, rows(1)...), true))
	var ch Changes
	var st ControlState
	var encoded []byte
	base := heapPage(t)
	p := bytes.Clone(base)
	n := testing.AllocsPerRun(100, func() {
		if err := Touch(rec, &st, &ch); err != nil {
			t.Fatal(err)
		}
		copy(p, base)
		for i := range ch.Pages {
			if c := &ch.Pages[i]; c.Delta.Part == 0 {
				encoded = AppendDelta(encoded[:0], &c.Delta)
				if _, err := (Redoer{15}).Redo(p, c.Key, ch.LSN, false, encoded); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a record", n)
	}
}

func FuzzHeapApply(f *testing.F) {
	seed := heapPage(f, rows(5)...)
	seed.SetItem(2, pg.NewItemID(0, pg.LPDead, 0))
	for _, major := range pg.Majors() {
		for _, rec := range []*wal.Record{
			pruneRecord(major, heapKey(5)), vacuumRecord(major, 2), freezeRecord(major), visibleRecord(major, 5, 3),
			heapRecord(major, wal.RmHeap, 0x40, updateMain(0x60, 0, 6), heapBlockRef(0, heapKey(5), le(uint16(2), uint16(2), uint16(2), uint16(0x802), uint8(24), uint8(0), []byte("x")))),
			heapRecord(major, wal.RmHeap2, 0x50, le(uint8(0), uint8(0), uint16(1), uint16(6)), heapBlockRef(0, heapKey(5), le(uint16(2), uint16(2), uint16(0x802), uint8(24), uint8(0), uint8('x')))),
		} {
			var ch Changes
			if err := Touch(rec, &ControlState{}, &ch); err != nil {
				f.Fatal(err)
			}
			for i := range ch.Pages {
				f.Add([]byte(seed), AppendDelta(nil, &ch.Pages[i].Delta), uint8(major))
			}
		}
	}
	f.Fuzz(func(t *testing.T, b, delta []byte, major uint8) {
		p := pg.Page(make([]byte, pg.BlockSize))
		copy(p, b)
		if len(delta) > 1 && major&0x80 == 0 {
			delta = bytes.Clone(delta)
			delta[1] = uint8(wal.RmHeap2) + delta[1]&1 // one of the two managers
		}
		p.SetLSN(0)
		_, _ = Redoer{pg.MajorFirst + pg.Major(major)%5}.Redo(p, heapKey(5), heapTestLSN, major&0x40 != 0, delta)
		heapMask(p, heapKey(5))
	})
}

func FuzzHeapTouch(f *testing.F) {
	f.Add(uint8(wal.RmHeap), uint8(0x20), updateMain(3, 0, 1), []byte("data"), uint8(2))
	f.Add(uint8(wal.RmHeap2), uint8(0x40), le(uint32(650), uint8(3)), []byte(nil), uint8(2))
	f.Fuzz(func(t *testing.T, rmgr, info uint8, main, data []byte, blocks uint8) {
		rec := heapRecord(pg.MajorFirst+pg.Major(blocks>>4)%5, wal.Rmgr(rmgr), info, main)
		for id := range blocks % 4 {
			rec.Blocks = append(rec.Blocks, heapBlockRef(id, heapKey(pg.BlockNumber(id)), data))
		}
		_ = Touch(rec, &ControlState{}, &Changes{})
	})
}

func FuzzDecodeDelta(f *testing.F) {
	f.Add(AppendDelta(nil, &Delta{Rmgr: wal.RmHeap, XID: 1, Tags: []Tag{{ID: 1}}, Main: []byte{1}, Data: []byte{2}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d, again Delta
		if DecodeDelta(b, &d) != nil {
			return
		}
		// What decodes has one meaning, which survives encoding.
		if err := DecodeDelta(AppendDelta(nil, &d), &again); err != nil {
			t.Fatal(err)
		}
		if len(d.Tags)+len(again.Tags) == 0 {
			d.Tags, again.Tags = nil, nil
		}
		if len(d.Main)+len(again.Main) == 0 {
			d.Main, again.Main = nil, nil
		}
		if !reflect.DeepEqual(d, again) {
			t.Fatalf("%+v became %+v", d, again)
		}
	})
}
