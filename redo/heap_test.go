package redo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"everpage/redo/page"
	"everpage/wal"
	"everpage/wal/pg"
)

var heapRel = pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}}

func heapKey(block pg.BlockNumber) pg.PageKey { return pg.PageKey{RelFork: heapRel, Block: block} }

func vmKey(block pg.BlockNumber) pg.PageKey {
	k := heapKey(block)
	k.Fork = pg.VMFork
	return k
}

const (
	heapTestXID   = 700
	heapTestLSN   = pg.LSN(0x2000)
	heapTestStart = pg.LSN(0x1F00) // LSN of the pages before
)

// le packs numbers: uint8, uint16 and uint32 as themselves, bytes as they are.
func le(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch v := p.(type) {
		case uint8:
			b = append(b, v)
		case uint16:
			b = binary.LittleEndian.AppendUint16(b, v)
		case uint32:
			b = binary.LittleEndian.AppendUint32(b, v)
		case []byte:
			b = append(b, v...)
		default:
			panic(fmt.Sprintf("%T", p))
		}
	}
	return b
}

// tuple is a whole heap tuple with its data at byte 24.
func tuple(xmin, xmax uint32, ctidBlock pg.BlockNumber, ctidOff, infomask2, infomask uint16, body string) []byte {
	return le(xmin, xmax, uint32(9), uint16(ctidBlock>>16), uint16(ctidBlock), ctidOff, infomask2, infomask, uint8(24), uint8(0), []byte(body))
}

func heapPage(t testing.TB, tuples ...[]byte) pg.Page {
	p := pg.Page(make([]byte, pg.BlockSize))
	p.Init(0)
	p.SetLSN(heapTestStart)
	for _, tup := range tuples {
		if _, err := page.Add(p, tup, 0, page.Heap); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func heapRecord(major pg.Major, rmgr wal.Rmgr, info uint8, main []byte, blocks ...wal.Block) *wal.Record {
	return &wal.Record{Major: major, Timeline: 1, Start: heapTestLSN - 0x80, End: heapTestLSN, Rmgr: rmgr, Info: info, XID: heapTestXID,
		Main: main, Blocks: blocks}
}

func heapBlockRef(id uint8, key pg.PageKey, data []byte) wal.Block {
	return wal.Block{ID: id, PageKey: key, HasData: data != nil, Data: data}
}

// redoAll touches rec and applies every delta to pages, through its encoding. Pages not in there are zero.
func redoAll(t *testing.T, rec *wal.Record, st ControlState, pages map[pg.PageKey]pg.Page) *Changes {
	t.Helper()
	ch, err := tryRedo(t, rec, st, pages)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func tryRedo(t *testing.T, rec *wal.Record, st ControlState, pages map[pg.PageKey]pg.Page) (*Changes, error) {
	t.Helper()
	ch := &Changes{}
	if err := Touch(rec, &st, ch); err != nil {
		return ch, err
	}
	seen := map[pg.PageKey]bool{}
	for i := range ch.Pages {
		c := &ch.Pages[i]
		if seen[c.Key] {
			t.Errorf("%s is changed twice", c.Key)
		}
		seen[c.Key] = true
		if pages[c.Key] == nil {
			pages[c.Key] = pg.Page(make([]byte, pg.BlockSize))
		}
		if c.Kind == KindImage {
			copy(pages[c.Key], c.Image)
			continue
		}
		if _, err := (Redoer{rec.Major}).Redo(pages[c.Key], c.Key, ch.LSN, c.Kind == KindInit, AppendDelta(nil, &c.Delta)); err != nil {
			return ch, err
		}
	}
	return ch, nil
}

// wantTuple compares an item with a whole tuple. The command ID of tuple() is 9; redo sets 0.
func wantTuple(t *testing.T, p pg.Page, off pg.OffsetNumber, want []byte, cid uint32) {
	t.Helper()
	got, err := page.Tuple(p, off)
	if err != nil {
		t.Fatal(err)
	}
	want = slices.Clone(want)
	binary.LittleEndian.PutUint32(want[8:], cid)
	if !bytes.Equal(got, want) {
		t.Errorf("item %d is\n% x, want\n% x", off, got, want)
	}
}

// wantVM tells what the map deltas of ch clear.
func wantVM(t *testing.T, ch *Changes, want string) {
	t.Helper()
	got := ""
	for _, c := range ch.Pages {
		if c.Delta.Part != PartVMClear {
			continue
		}
		if !c.Optional || c.Kind != KindDelta || c.Key.Fork != pg.VMFork {
			t.Errorf("map change %+v", c)
		}
		got += fmt.Sprintf("%d:", c.Key.Block)
		for b := c.Delta.Main; len(b) > 0; b = b[5:] {
			got += fmt.Sprintf("%d/%d ", binary.LittleEndian.Uint32(b), b[4])
		}
	}
	if got != want {
		t.Errorf("cleared map bits %q, want %q", got, want)
	}
}

func wantLSN(t *testing.T, p pg.Page, want pg.LSN) {
	t.Helper()
	if p.LSN() != want {
		t.Errorf("LSN %s, want %s", p.LSN(), want)
	}
}

func wantAllVisible(t *testing.T, p pg.Page, want bool) {
	t.Helper()
	if got := p.Flags()&pg.PageAllVisible != 0; got != want {
		t.Errorf("PD_ALL_VISIBLE is %v", got)
	}
}

func eachMajor(t *testing.T, f func(t *testing.T, major pg.Major)) {
	for _, m := range pg.Majors() {
		t.Run(fmt.Sprint(m), func(t *testing.T) { f(t, m) })
	}
}

func TestHeapInsert(t *testing.T) {
	eachMajor(t, func(t *testing.T, major pg.Major) {
		key := heapKey(70000)
		p := heapPage(t, tuple(1, 0, 70000, 1, 2, 0x800, "first"))
		setAllVisible(p, true)
		pages := map[pg.PageKey]pg.Page{key: p}
		data := le(uint16(2), uint16(0x0822), uint8(24), uint8(0), []byte("second!"))
		ch := redoAll(t, heapRecord(major, wal.RmHeap, 0x00, le(uint16(2), uint8(1)), heapBlockRef(0, key, data)), ControlState{}, pages)
		wantTuple(t, p, 1, tuple(1, 0, 70000, 1, 2, 0x800, "first"), 9)
		wantTuple(t, p, 2, tuple(heapTestXID, 0, 70000, 2, 2, 0x802, "second!"), 0) // the combo bit is gone
		wantLSN(t, p, heapTestLSN)
		wantAllVisible(t, p, false)
		wantVM(t, ch, "2:70000/3 ")
	})
}

func TestHeapInsertInit(t *testing.T) {
	key := heapKey(0)
	p := heapPage(t, tuple(1, 0, 0, 1, 2, 0x800, "stale"), tuple(1, 0, 0, 2, 2, 0x800, "stale"))
	p.SetLSN(heapTestLSN + 100) // initialising doesn't look at what was there
	blk := heapBlockRef(0, key, le(uint16(2), uint16(0x802), uint8(24), uint8(0), []byte("only")))
	blk.WillInit = true
	ch := redoAll(t, heapRecord(15, wal.RmHeap, 0x80, le(uint16(1), uint8(0)), blk), ControlState{}, map[pg.PageKey]pg.Page{key: p})
	if ch.Pages[0].Kind != KindInit || p.ItemCount() != 1 {
		t.Errorf("kind %d, %d items", ch.Pages[0].Kind, p.ItemCount())
	}
	wantTuple(t, p, 1, tuple(heapTestXID, 0, 0, 1, 2, 0x802, "only"), 0)
	wantLSN(t, p, heapTestLSN)
	wantVM(t, ch, "")
}

func TestHeapInsertErrors(t *testing.T) {
	key := heapKey(0)
	data := le(uint16(2), uint16(0x802), uint8(24), uint8(0), []byte("x"))
	for name, rec := range map[string]*wal.Record{
		"offset beyond the next": heapRecord(15, wal.RmHeap, 0, le(uint16(3), uint8(0)), heapBlockRef(0, key, data)),
		"offset in use":          heapRecord(15, wal.RmHeap, 0, le(uint16(1), uint8(0)), heapBlockRef(0, key, data)),
		"offset 0":               heapRecord(15, wal.RmHeap, 0, le(uint16(0), uint8(0)), heapBlockRef(0, key, data)),
		"no space":               heapRecord(15, wal.RmHeap, 0, le(uint16(2), uint8(0)), heapBlockRef(0, key, slices.Concat(data, make([]byte, 8190)))),
		"no data":                heapRecord(15, wal.RmHeap, 0, le(uint16(2), uint8(0)), heapBlockRef(0, key, nil)),
		"short main data":        heapRecord(15, wal.RmHeap, 0, le(uint16(2)), heapBlockRef(0, key, data)),
		"no block":               heapRecord(15, wal.RmHeap, 0, le(uint16(2), uint8(0))),
		"another block":          heapRecord(15, wal.RmHeap, 0, le(uint16(2), uint8(0)), heapBlockRef(0, key, data), heapBlockRef(1, heapKey(1), data)),
	} {
		t.Run(name, func(t *testing.T) {
			pages := map[pg.PageKey]pg.Page{key: heapPage(t, tuple(1, 0, 0, 1, 2, 0x800, "first")), heapKey(1): heapPage(t)}
			if _, err := tryRedo(t, rec, ControlState{}, pages); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestHeapDelete(t *testing.T) {
	const self = 7
	old := tuple(600, 0, self, 1, 0x4000|2, 0x0902|heapComboCid, "row")
	for name, c := range map[string]struct {
		flags uint8
		want  []byte
	}{
		"plain":          {0x00, tuple(600, 650, self, 1, 0x2000|2, 0x0102|heapXmaxExclLock, "row")},
		"super":          {0x08, tuple(0, 0, self, 1, 0x2000|2, 0x0102|heapXmaxExclLock, "row")},
		"partition move": {0x10, tuple(600, 650, pg.InvalidBlock, 0xFFFD, 0x2000|2, 0x0102|heapXmaxExclLock, "row")},
		"was visible":    {0x01, tuple(600, 650, self, 1, 0x2000|2, 0x0102|heapXmaxExclLock, "row")},
	} {
		t.Run(name, func(t *testing.T) {
			p := heapPage(t, old)
			setAllVisible(p, true)
			p.SetPruneXID(heapTestXID + 1)
			// The old tuple, logged for logical decoding, is not kept.
			main := le(uint32(650), uint16(1), uint8(0x14), c.flags, []byte("old tuple"))
			rec := heapRecord(15, wal.RmHeap, 0x10, main, heapBlockRef(0, heapKey(self), nil))
			ch := redoAll(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(self): p})
			if n := len(ch.Pages[0].Delta.Main); n != heapDeleteSize {
				t.Errorf("%d bytes of main data are kept", n)
			}
			wantTuple(t, p, 1, c.want, 0)
			wantAllVisible(t, p, c.flags != 1)
			if p.PruneXID() != heapTestXID {
				t.Errorf("pd_prune_xid %d", p.PruneXID())
			}
			wantVM(t, ch, map[bool]string{true: fmt.Sprintf("0:%d/3 ", self)}[c.flags == 1])
		})
	}
	t.Run("of a dead item", func(t *testing.T) {
		p := heapPage(t, old)
		p.SetItem(1, pg.NewItemID(0, pg.LPDead, 0))
		rec := heapRecord(15, wal.RmHeap, 0x10, le(uint32(650), uint16(1), uint8(0x14), uint8(0)), heapBlockRef(0, heapKey(self), nil))
		if _, err := tryRedo(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(self): p}); err == nil {
			t.Error("no error")
		}
	})
}

// updateMain is xl_heap_update: the old version at offset 1, the new one at newOff.
func updateMain(flags uint8, newXmax uint32, newOff uint16) []byte {
	return le(uint32(heapTestXID), uint16(1), uint8(0x04), flags, newXmax, newOff)
}

func TestHeapUpdateSamePage(t *testing.T) {
	old := func(body string) []byte { return tuple(600, 0, 3, 1, 2, 0x0802, body) }
	header := le(uint16(2), uint16(0x2802), uint8(24))
	for name, c := range map[string]struct {
		info  uint8
		flags uint8
		data  []byte
		body  string
	}{
		"whole":             {0x20, 0x00, le(header, uint8(0), []byte("new row")), "new row"},
		"hot":               {0x40, 0x00, le(header, uint8(0), []byte("new row")), "new row"},
		"prefix":            {0x40, 0x20, le(uint16(4), header, uint8(0), []byte("NEW")), "old NEW"},
		"suffix":            {0x40, 0x40, le(uint16(4), header, uint8(0), []byte("NEW")), "NEW row"},
		"prefix and suffix": {0x20, 0x60, le(uint16(4), uint16(3), header, uint8(0), []byte("NEW ")), "old NEW row"},
		"nothing new":       {0x20, 0x60, le(uint16(4), uint16(3), header, uint8(0)), "old row"},
	} {
		t.Run(name, func(t *testing.T) {
			p := heapPage(t, old("old row"))
			rec := heapRecord(15, wal.RmHeap, c.info, slices.Concat(updateMain(c.flags, 5, 2), []byte("old key")), heapBlockRef(0, heapKey(3), c.data))
			ch := redoAll(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(3): p})
			mask2 := uint16(2)
			if c.info == 0x40 {
				mask2 |= heapHotUpdated
			}
			wantTuple(t, p, 1, tuple(600, heapTestXID, 3, 2, mask2, 0x0002|heapXmaxExclLock, "old row"), 0)
			wantTuple(t, p, 2, tuple(heapTestXID, 5, 3, 2, 2, 0x2802, c.body), 0)
			wantLSN(t, p, heapTestLSN)
			wantVM(t, ch, "")
		})
	}
}

// A null bitmap and its padding come from the record, before the shared prefix.
func TestHeapUpdatePrefixBehindBitmap(t *testing.T) {
	p := heapPage(t, tuple(600, 0, 3, 1, 9, 0x0802, "abcdefgh"))
	bitmap := []byte{0xFB, 0x01, 0, 0, 0, 0, 0, 0, 0} // bytes 23 to 31
	data := le(uint16(2), uint16(9), uint16(0x2803), uint8(32), bitmap, []byte("XY"))
	rec := heapRecord(15, wal.RmHeap, 0x40, updateMain(0x20, 0, 2), heapBlockRef(0, heapKey(3), data))
	redoAll(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(3): p})
	got, err := page.Tuple(p, 2)
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Concat([]byte{32}, bitmap, []byte("abXY")); !bytes.Equal(got[22:], want) {
		t.Errorf("tuple % x, want % x", got[22:], want)
	}
}

func TestHeapUpdateErrors(t *testing.T) {
	header := le(uint16(2), uint16(0x2802), uint8(24))
	other := heapBlockRef(1, heapKey(9), nil)
	for name, rec := range map[string]*wal.Record{
		"prefix longer than the old version": heapRecord(15, wal.RmHeap, 0x20, updateMain(0x20, 0, 2), heapBlockRef(0, heapKey(3), le(uint16(8), header, uint8(0)))),
		"suffix longer than the old version": heapRecord(15, wal.RmHeap, 0x20, updateMain(0x40, 0, 2), heapBlockRef(0, heapKey(3), le(uint16(60), header, uint8(0)))),
		"header longer than the data":        heapRecord(15, wal.RmHeap, 0x20, updateMain(0x20, 0, 2), heapBlockRef(0, heapKey(3), le(uint16(2), uint16(2), uint16(2), uint8(90)))),
		"prefix from another page": heapRecord(15, wal.RmHeap, 0x20, updateMain(0x20, 0, 2),
			heapBlockRef(0, heapKey(3), le(uint16(2), header, uint8(0))), other),
		"new offset in use": heapRecord(15, wal.RmHeap, 0x20, updateMain(0, 0, 1), heapBlockRef(0, heapKey(3), le(header, uint8(0)))),
		"initialised but on the old page": heapRecord(15, wal.RmHeap, 0xA0, updateMain(0, 0, 1),
			wal.Block{ID: 0, PageKey: heapKey(3), WillInit: true, Data: le(header, uint8(0))}),
	} {
		t.Run(name, func(t *testing.T) {
			pages := map[pg.PageKey]pg.Page{heapKey(3): heapPage(t, tuple(600, 0, 3, 1, 2, 0x0802, "old row")), heapKey(9): heapPage(t, tuple(600, 0, 3, 1, 2, 0x0802, "old row"))}
			if _, err := tryRedo(t, rec, ControlState{}, pages); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestHeapUpdateOtherPage(t *testing.T) {
	data := le(uint16(2), uint16(0x2802), uint8(24), uint8(0), []byte("new row"))
	for name, c := range map[string]struct {
		info       uint8
		oldBlock   pg.BlockNumber
		newBlock   pg.BlockNumber
		flags      uint8
		vm         string
		vmDeltas   int
		initialise bool
	}{
		"no map bits":             {0x20, 3, 4, 0, "", 0, false},
		"bits of the old page":    {0x20, 3, 4, 1, "0:3/3 ", 1, false},
		"bits of the new page":    {0x20, 3, 4, 2, "0:4/3 ", 1, false},
		"both, one page of map":   {0x20, 3, 4, 3, "0:3/3 4/3 ", 1, false},
		"both, two pages of map":  {0x20, 3, 40000, 3, "0:3/3 1:40000/3 ", 2, false},
		"new page is initialised": {0xA0, 3, 4, 1, "0:3/3 ", 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			o, n := heapPage(t, tuple(600, 0, c.oldBlock, 1, 2, 0x0802, "old row")), heapPage(t)
			setAllVisible(o, true)
			setAllVisible(n, true)
			blk := heapBlockRef(0, heapKey(c.newBlock), data)
			blk.WillInit = c.initialise
			rec := heapRecord(15, wal.RmHeap, c.info, updateMain(c.flags, 0, 1), blk, heapBlockRef(1, heapKey(c.oldBlock), nil))
			ch := redoAll(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(c.oldBlock): o, heapKey(c.newBlock): n})
			wantTuple(t, o, 1, tuple(600, heapTestXID, c.newBlock, 1, 2, 0x0002|heapXmaxExclLock, "old row"), 0)
			wantTuple(t, n, 1, tuple(heapTestXID, 0, c.newBlock, 1, 2, 0x2802, "new row"), 0)
			wantAllVisible(t, o, c.flags&1 == 0)
			wantAllVisible(t, n, c.flags&2 == 0 && !c.initialise)
			wantVM(t, ch, c.vm)
			if len(ch.Pages) != 2+c.vmDeltas {
				t.Errorf("%d pages change", len(ch.Pages))
			}
		})
	}
}

// A speculative insertion is confirmed by its own ctid.
func TestHeapConfirm(t *testing.T) {
	p := heapPage(t, tuple(600, 0, 0, specTokenOffset, 2, 0x0802, "row"))
	rec := heapRecord(15, wal.RmHeap, 0x50, le(uint16(1)), heapBlockRef(0, heapKey(0x12345), nil))
	redoAll(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(0x12345): p})
	wantTuple(t, p, 1, tuple(600, 0, 0x12345, 1, 2, 0x0802, "row"), 9)
}

func TestHeapLock(t *testing.T) {
	old := tuple(600, 0, 8, 2, heapHotUpdated|2, 0x0902, "row")
	for name, c := range map[string]struct {
		infobits, flags uint8
		want            []byte
		vm              string
	}{
		"lock only":      {0x06, 0, tuple(600, 650, 5, 1, 2, 0x0102|heapXmaxExclLock|heapXmaxLockOnly, "row"), ""},
		"upgraded lock":  {0x04, 0, tuple(600, 650, 5, 1, 2, 0x0102|heapXmaxExclLock, "row"), ""},
		"multi, updated": {0x19, 0, tuple(600, 650, 8, 2, heapHotUpdated|heapKeysUpdated|2, 0x0102|heapXmaxIsMulti|heapXmaxKeyshrLock, "row"), ""},
		"frozen cleared": {0x06, 1, tuple(600, 650, 5, 1, 2, 0x0102|heapXmaxExclLock|heapXmaxLockOnly, "row"), "0:5/2 "},
	} {
		t.Run(name, func(t *testing.T) {
			p := heapPage(t, old)
			setAllVisible(p, true)
			rec := heapRecord(15, wal.RmHeap, 0x60, le(uint32(650), uint16(1), c.infobits, c.flags), heapBlockRef(0, heapKey(5), nil))
			ch := redoAll(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p})
			wantTuple(t, p, 1, c.want, 0)
			wantVM(t, ch, c.vm)
			wantAllVisible(t, p, true)
		})
	}
}

func TestHeapInplace(t *testing.T) {
	eachMajor(t, func(t *testing.T, major pg.Major) {
		main := le(uint16(1), uint16(0))
		if major >= 18 { // xl_heap_inplace with invalidation messages
			main = le(uint16(1), uint16(0), uint32(5), uint32(1663), uint8(1), []byte{0, 0, 0}, uint32(1), make([]byte, 16))
		}
		p := heapPage(t, tuple(600, 0, 5, 1, 2, 0x0902, "relpages"))
		rec := heapRecord(major, wal.RmHeap, 0x70, main, heapBlockRef(0, heapKey(5), []byte("RELPAGES")))
		ch := redoAll(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): p})
		wantTuple(t, p, 1, tuple(600, 0, 5, 1, 2, 0x0902, "RELPAGES"), 9)
		if n := len(ch.Pages[0].Delta.Main); n != heapOffsetSize {
			t.Errorf("%d bytes of main data are kept", n)
		}
		rec.Blocks[0].Data = []byte("longer than it was")
		if _, err := tryRedo(t, rec, ControlState{}, map[pg.PageKey]pg.Page{heapKey(5): heapPage(t, tuple(600, 0, 5, 1, 2, 0x0902, "relpages"))}); err == nil {
			t.Error("a tuple changed its length in place")
		}
	})
}

// Records for logical decoding change nothing.
func TestHeapLogicalRecords(t *testing.T) {
	eachMajor(t, func(t *testing.T, major pg.Major) {
		for _, rec := range []*wal.Record{
			heapRecord(major, wal.RmHeap, 0x30, make([]byte, 16)),
			heapRecord(major, wal.RmHeap2, 0x00, make([]byte, 36)),
			heapRecord(major, wal.RmHeap2, 0x70, make([]byte, 34)),
		} {
			ch := redoAll(t, rec, ControlState{}, nil)
			if len(ch.Pages)+len(ch.Damaged) != 0 || ch.Unproven != nil {
				t.Errorf("%s changes %+v", RecordName(major, rec.Rmgr, rec.Info), ch)
			}
		}
	})
}

func TestHeapMask(t *testing.T) {
	build := func(lsn pg.LSN, hints uint16, cid uint32, pad byte) pg.Page {
		p := heapPage(t, tuple(600, 0, 5, specTokenOffset, 2, 0x0002|hints, "odd"), tuple(2, 0, 5, 2, 2, 0x0302|hints&heapXmaxInvalid, "frozen"))
		p.SetLSN(lsn)
		p.SetPruneXID(cid)
		p.SetFlags(uint16(pad) & 7)
		p[p.Lower()] = pad
		tup, err := page.Tuple(p, 1)
		if err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint32(tup[8:], cid)
		binary.LittleEndian.PutUint32(tup[12:], cid)
		p[p.Item(1).Offset()+p.Item(1).Length()] = pad
		return p
	}
	a, b := build(1, 0x0900, 1, 7), build(2, 0x0000, 2, 0)
	for _, p := range []pg.Page{a, b} {
		if err := Mask(wal.RmHeap2, p, heapKey(5)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a, b) {
		t.Error("pages that differ in what isn't logged differ after masking")
	}
	c := build(1, 0x0900, 1, 7)
	tup, err := page.Tuple(c, 2)
	if err != nil {
		t.Fatal(err)
	}
	tup[tupleXmax] = 1
	heapMask(c, heapKey(5))
	if bytes.Equal(a, c) {
		t.Error("masking hides another xmax")
	}
	if err := Mask(wal.RmXLOG, a, heapKey(5)); !errors.Is(err, errNoMask) {
		t.Errorf("a manager without a mask: %v", err)
	}
}
