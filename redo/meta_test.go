package redo

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

var someRel = pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}

func TestStorageCreate(t *testing.T) {
	ch := touched(t, record(15, wal.RmStorage, 0x10, 700, someRel, int32(3)), &ControlState{})
	if len(ch.Sizes) != 1 || ch.Sizes[0] != (SizeChange{Op: SizeCreate, Fork: pg.RelFork{RelFileLocator: someRel, Fork: pg.InitFork}}) {
		t.Errorf("%+v", ch.Sizes)
	}
	if err := Touch(record(15, wal.RmStorage, 0x10, 700, someRel, int32(4)), &ControlState{}, ch); err == nil {
		t.Error("fork 4 exists")
	}
}

// The sizes expected are those of files that a server left after cutting a relation to so many blocks (fsm_logical_to_physical, 32672 heap
// blocks in a page of the visibility map, 4069 in a leaf page of the free space map).
func TestStorageTruncate(t *testing.T) {
	for _, tt := range []struct {
		blocks, fsm, vm     uint32
		fsmPartly, vmPartly bool
	}{
		{0, 2, 0, false, false},
		{1, 3, 1, true, true},
		{4068, 3, 1, true, true},
		{4069, 3, 1, false, true},
		{4070, 4, 1, true, true},
		{32671, 11, 1, true, true},
		{32672, 11, 1, true, false},
		{32673, 11, 2, true, true},
		{4069 * 4069, 4069 + 3, 507, false, true}, // a second page of the middle level comes first
		{4069*4069 + 1, 4069 + 4, 507, true, true},
	} {
		rec := record(15, wal.RmStorage, 0x20, 700, tt.blocks, someRel, int32(7))
		ch := touched(t, rec, &ControlState{})
		size := func(f pg.ForkNumber) uint32 {
			for _, s := range ch.Sizes {
				if s.Op == SizeTruncate && s.Fork == (pg.RelFork{RelFileLocator: someRel, Fork: f}) {
					return s.Blocks
				}
			}
			return 1 << 31
		}
		if size(pg.MainFork) != tt.blocks || size(pg.FSMFork) != tt.fsm || size(pg.VMFork) != tt.vm {
			t.Errorf("%d blocks: main %d, fsm %d, vm %d; want %+v", tt.blocks, size(pg.MainFork), size(pg.FSMFork), size(pg.VMFork), tt)
		}
		parts := map[uint8]uint32{}
		for _, p := range ch.Pages {
			if !p.Optional || binary.LittleEndian.Uint32(p.Delta.Main) != tt.blocks {
				t.Errorf("%+v", p)
			}
			parts[p.Delta.Part] = p.Key.Block + 1
		}
		if _, ok := parts[PartFSMTrunc]; ok != tt.fsmPartly || ok && parts[PartFSMTrunc] != tt.fsm {
			t.Errorf("%d blocks: free space map change of size %d", tt.blocks, parts[PartFSMTrunc])
		}
		if _, ok := parts[PartVMTruncate]; ok != tt.vmPartly || ok && parts[PartVMTruncate] != tt.vm {
			t.Errorf("%d blocks: visibility map change of size %d", tt.blocks, parts[PartVMTruncate])
		}
	}
	// pg_truncate_visibility_map cuts that fork only.
	ch := touched(t, record(15, wal.RmStorage, 0x20, 700, uint32(0), someRel, int32(2)), &ControlState{})
	if len(ch.Sizes) != 2 || ch.Sizes[0].Op != SizeCreate || ch.Sizes[1] != (SizeChange{Op: SizeTruncate, Fork: pg.RelFork{RelFileLocator: someRel, Fork: pg.VMFork}}) {
		t.Errorf("%+v", ch.Sizes)
	}
}

func TestStorageTruncateClearsMaps(t *testing.T) {
	const blocks = 32672 + 4*10 + 1
	ch := touched(t, record(15, wal.RmStorage, 0x20, 700, uint32(blocks), someRel, int32(7)), &ControlState{})
	for i := range ch.Pages {
		d := &ch.Pages[i].Delta
		p := make(pg.Page, pg.BlockSize)
		p.Init(0)
		for i := 24; i < len(p); i++ {
			p[i] = 0xFF
		}
		p.SetLSN(0x77)
		if changed, err := Apply(p, d, false); err != nil || !changed || p.LSN() != 0x77 {
			t.Fatalf("part %d: %v %v, LSN %s", d.Part, changed, err, p.LSN())
		}
		if d.Part == PartVMTruncate {
			if p[24+9] != 0xFF || p[24+10] != 0x03 || p[24+11] != 0 || p[8191] != 0 {
				t.Errorf("visibility map %x", p[24:40])
			}
			continue
		}
		slot := blocks % 4069
		if leaf := p[28+4095:]; leaf[slot-1] != 0xFF || leaf[slot] != 0 || leaf[4068] != 0 {
			t.Errorf("free space map %x", leaf[slot-1:slot+1])
		}
	}
}

func TestDatabase(t *testing.T) {
	st := &ControlState{}
	for _, m := range pg.Majors() {
		ch := touched(t, record(m, wal.RmDatabase, 0x00, 700, uint32(20), uint32(1663), uint32(1), uint32(1700)), st)
		if len(ch.DropDatabases) != 1 || ch.DropDatabases[0] != (DatabaseDir{Spc: 1663, DB: 20}) || len(ch.CopyDatabases) != 1 ||
			ch.CopyDatabases[0] != (DatabaseCopy{From: DatabaseDir{Spc: 1700, DB: 1}, To: DatabaseDir{Spc: 1663, DB: 20}}) {
			t.Errorf("%d: %+v", m, ch)
		}
		drop, name := uint8(0x20), "DROP"
		if m == 14 {
			drop = 0x10
		} else {
			ch := touched(t, record(m, wal.RmDatabase, 0x10, 700, uint32(20), uint32(1663)), st)
			if len(ch.Meta) != 1 || ch.Meta[0].Kind != MetaDatabase || ch.Meta[0].ID != [2]uint32{1663, 20} ||
				string(ch.Meta[0].Value) != map[pg.Major]string{15: "15\n", 16: "16\n", 17: "17\n", 18: "18\n"}[m] || len(ch.DropDatabases) != 0 {
				t.Errorf("%d: %+v", m, ch)
			}
		}
		if got := RecordName(m, wal.RmDatabase, drop); got != name {
			t.Errorf("%d: %q", m, got)
		}
		ch = touched(t, record(m, wal.RmDatabase, drop, 700, uint32(20), int32(2), uint32(1663), uint32(1700)), st)
		if !slices.Equal(ch.DropDatabases, []DatabaseDir{{Spc: 1663, DB: 20}, {Spc: 1700, DB: 20}}) || len(ch.Meta) != 4 ||
			ch.Meta[2].Kind != MetaRelMap || ch.Meta[2].ID != [2]uint32{1700, 20} || ch.Meta[3].Kind != MetaDatabase || ch.Meta[3].Value != nil {
			t.Errorf("%d: %+v", m, ch)
		}
	}
	var ch Changes
	if err := Touch(record(14, wal.RmDatabase, 0x20, 700, uint32(20), int32(0)), st, &ch); err != nil || ch.Unproven == nil {
		t.Errorf("14 has a third record: %v %v", err, ch.Unproven)
	}
	if err := Touch(record(15, wal.RmDatabase, 0x20, 700, uint32(20), int32(2), uint32(1663)), st, &ch); err == nil {
		t.Error("a drop of more tablespaces than named passes")
	}
}

func TestTablespace(t *testing.T) {
	st := &ControlState{}
	ch := touched(t, record(15, wal.RmTablespace, 0x00, 700, uint32(17000), "/srv/ts\x00"), st)
	if c := ch.Meta[0]; c.Kind != MetaTablespace || c.ID != [2]uint32{17000} || string(c.Value) != "/srv/ts" {
		t.Errorf("%+v", c)
	}
	ch = touched(t, record(15, wal.RmTablespace, 0x00, 700, uint32(17000), "\x00"), st)
	if c := ch.Meta[0]; c.Value == nil || len(c.Value) != 0 {
		t.Errorf("in-place: %#v", c.Value)
	}
	ch = touched(t, record(15, wal.RmTablespace, 0x10, 700, uint32(17000)), st)
	if c := ch.Meta[0]; c.Kind != MetaTablespace || c.ID != [2]uint32{17000} || c.Value != nil {
		t.Errorf("drop: %+v", c)
	}
	if err := Touch(record(15, wal.RmTablespace, 0x00, 700, uint32(17000), "/srv"), st, ch); err == nil {
		t.Error("a path without end passes")
	}
}

func TestRelMap(t *testing.T) {
	for _, m := range pg.Majors() {
		size := 512
		if m >= 16 {
			size = 524
		}
		file := bytes.Repeat([]byte{7}, size)
		ch := touched(t, record(m, wal.RmRelMap, 0x00, 700, uint32(5), uint32(1663), int32(size), file), &ControlState{})
		if c := ch.Meta[0]; c.Kind != MetaRelMap || c.ID != [2]uint32{1663, 5} || !bytes.Equal(c.Value, file) {
			t.Errorf("%d: %+v", m, c)
		}
		for _, wrong := range []*wal.Record{
			record(m, wal.RmRelMap, 0x00, 700, uint32(5), uint32(1663), int32(size), file[1:]),
			record(m, wal.RmRelMap, 0x00, 700, uint32(5), uint32(1663), int32(1036-size), make([]byte, 1036-size)),
		} {
			if err := Touch(wrong, &ControlState{}, ch); err == nil {
				t.Errorf("%d: a map of a wrong size passes", m)
			}
		}
	}
}

func TestOrigin(t *testing.T) {
	ch := touched(t, record(15, wal.RmReplicationOrigin, 0x00, 0, uint64(0x500), uint16(4), uint8(1), make([]byte, 5)), &ControlState{})
	if c := ch.Meta[0]; c.Kind != MetaOrigin || c.ID != [2]uint32{4} || binary.LittleEndian.Uint64(c.Value) != 0x500 || c.IfGreater {
		t.Errorf("%+v", c)
	}
	ch = touched(t, record(15, wal.RmReplicationOrigin, 0x10, 0, uint16(4)), &ControlState{})
	if c := ch.Meta[0]; c.Kind != MetaOrigin || c.ID != [2]uint32{4} || c.Value != nil {
		t.Errorf("%+v", c)
	}
	if ch = touched(t, record(15, wal.RmReplicationOrigin, 0x00, 0, uint64(1), uint16(0xFFFF), uint8(0)), &ControlState{}); len(ch.Meta) != 0 {
		t.Errorf("an origin that is not tracked: %+v", ch.Meta)
	}
}

func TestSequence(t *testing.T) {
	tuple := bytes.Repeat([]byte{0xAB}, 53)
	rec := record(15, wal.RmSequence, 0x00, 700, someRel, tuple)
	rec.Blocks = []wal.Block{{WillInit: true, PageKey: pg.PageKey{RelFork: pg.RelFork{RelFileLocator: someRel}}}}
	ch := touched(t, rec, &ControlState{})
	if len(ch.Pages) != 1 || ch.Pages[0].Kind != KindInit {
		t.Fatalf("%+v", ch.Pages)
	}
	p := make(pg.Page, pg.BlockSize)
	for i := range p {
		p[i] = 0xFF
	}
	if _, err := Apply(p, &ch.Pages[0].Delta, true); err != nil {
		t.Fatal(err)
	}
	if p.LSN() != rec.End || p.Special() != 8184 || p.Lower() != 28 || p.Upper() != 8184-56 || p.Item(1) != pg.NewItemID(8128, pg.LPNormal, 53) ||
		binary.LittleEndian.Uint64(p[8184:]) != 0x1717 || !bytes.Equal(p[8128:8128+53], tuple) || p[8128+53] != 0 || p[28] != 0 || p.StoredChecksum() != 0 {
		t.Errorf("header %x", p[:32])
	}
	p[100] = 1
	checkSequenceMask(t, p, ch.Pages[0].Key)
	long := record(15, wal.RmSequence, 0x00, 700, someRel, make([]byte, 8192))
	long.Blocks = rec.Blocks
	if _, err := Apply(p, &touched(t, long, &ControlState{}).Pages[0].Delta, true); err == nil {
		t.Error("a tuple larger than the page fits")
	}
}

// checkSequenceMask checks that the mask clears the page's LSN and hole and leaves its tuple.
func checkSequenceMask(t *testing.T, p pg.Page, key pg.PageKey) {
	t.Helper()
	managers[wal.RmSequence].mask(p, key)
	if p.LSN() != 0 || p[100] != 0 || p[8128] != 0xAB {
		t.Error("the mask is wrong")
	}
}

func TestHintWithoutImage(t *testing.T) {
	key := pg.PageKey{RelFork: pg.RelFork{RelFileLocator: someRel}, Block: 3}
	rec := record(15, wal.RmXLOG, 0xA0, 0)
	rec.Blocks = []wal.Block{{PageKey: key}}
	if ch := touched(t, rec, &ControlState{}); len(ch.Pages) != 0 {
		t.Errorf("FPI_FOR_HINT: %+v", ch.Pages)
	}
	rec.Info = 0xB0
	var ch Changes
	if err := Touch(rec, &ControlState{}, &ch); err != nil || len(ch.Pages) != 0 || len(ch.Damaged) != 1 || ch.Damaged[0].Key != key {
		t.Errorf("FPI: %v, %+v", err, ch)
	}
}

func TestRestorePoint(t *testing.T) {
	name := make([]byte, 64)
	copy(name, "before the accident")
	ch := touched(t, record(15, wal.RmXLOG, 0x70, 0, int64(42), name), &ControlState{})
	if ch.RestorePoint != "before the accident" || ch.RestoreTime != 42 {
		t.Errorf("%q %d", ch.RestorePoint, ch.RestoreTime)
	}
	full := strings.Repeat("x", 64)
	if ch = touched(t, record(15, wal.RmXLOG, 0x70, 0, int64(42), full, "tail"), &ControlState{}); ch.RestorePoint != full {
		t.Errorf("%q", ch.RestorePoint)
	}
}

// Records that change nothing that is kept must say so, not be unknown.
func TestSilentRecords(t *testing.T) {
	for _, m := range pg.Majors() {
		for _, rec := range []*wal.Record{
			record(m, wal.RmXLOG, 0x20, 0), record(m, wal.RmXLOG, 0x40, 0), record(m, wal.RmXLOG, 0x50, 0, uint64(1)),
			record(m, wal.RmXLOG, 0xD0, 0, uint64(1), int64(1)), record(m, wal.RmStandby, 0x00, 0), record(m, wal.RmStandby, 0x10, 0),
			record(m, wal.RmStandby, 0x20, 0), record(m, wal.RmLogicalMessage, 0x00, 0), record(m, wal.RmTransaction, 0x50, 5), record(m, wal.RmTransaction, 0x60, 5),
		} {
			ch := touched(t, rec, &ControlState{NextXID: 10})
			if len(ch.Pages)+len(ch.Meta)+len(ch.Sizes)+len(ch.SLRUTruncates)+len(ch.Transactions) != 0 {
				t.Errorf("%d: %s/%02X: %+v", m, rec.Rmgr, rec.Info, ch)
			}
		}
		var ch Changes
		if err := Touch(record(m, wal.RmXLOG, 0xE0, 0, int32(1)), &ControlState{}, &ch); err != nil || (ch.Unproven == nil) != (m >= 17) {
			t.Errorf("%d: CHECKPOINT_REDO: %v %v", m, err, ch.Unproven)
		}
	}
}

func TestCLOGTruncate(t *testing.T) {
	for _, m := range pg.Majors() {
		body := main(int32(64), uint32(64*32768), uint32(5))
		if m >= 17 {
			body = main(int64(64), uint32(64*32768), uint32(5))
		}
		rec := record(m, wal.RmCLOG, 0x10, 0, body)
		st := ControlState{NextXID: 70 * 32768, OldestXID: 3, OldestXIDDB: 1}
		ch := touched(t, rec, &st)
		if len(ch.SLRUTruncates) != 1 || ch.SLRUTruncates[0] != (SLRUTruncate{SLRU: pg.Xact, Page: 64}) {
			t.Errorf("%d: %+v", m, ch.SLRUTruncates)
		}
		if got := SLRUSegmentsBefore(&ch.SLRUTruncates[0], []uint32{0, 1, 2, 3, 0xFFF}); !slices.Equal(got, []uint32{0, 1, 0xFFF}) {
			t.Errorf("%d: %v", m, got)
		}
		if g, err := st.Redo(rec); err != nil || g != 1<<ControlRest || st.OldestXID != 64*32768 || st.OldestXIDDB != 5 {
			t.Errorf("%d: %v %v %+v", m, g, err, st)
		}
		// The page in use must not go, whatever the record says.
		if ch = touched(t, rec, &ControlState{NextXID: 60 * 32768}); len(ch.SLRUTruncates) != 0 {
			t.Errorf("%d: %+v", m, ch.SLRUTruncates)
		}
	}
}

func TestCommitTsTruncateAndTurnOff(t *testing.T) {
	rec := record(17, wal.RmCommitTs, 0x10, 0, int64(40), uint32(40*819))
	st := ControlState{NextXID: 50 * 819, TrackCommitTimestamp: true, OldestCommitTs: 900, NewestCommitTs: 40000}
	ch := touched(t, rec, &st)
	if ch.SLRUTruncates[0] != (SLRUTruncate{SLRU: pg.CommitTs, Page: 40}) {
		t.Errorf("%+v", ch.SLRUTruncates)
	}
	if _, err := st.Redo(rec); err != nil || st.OldestCommitTs != 40*819 {
		t.Errorf("%v %+v", err, st)
	}
	off := record(17, wal.RmXLOG, 0x60, 0, make([]byte, 28))
	ch = touched(t, off, &st)
	if len(ch.SLRUTruncates) != 1 || !ch.SLRUTruncates[0].All || !ch.SLRUTruncates[0].Deletes(0xFFFF) {
		t.Errorf("%+v", ch.SLRUTruncates)
	}
	if _, err := st.Redo(off); err != nil || st.OldestCommitTs != 0 || st.NewestCommitTs != 0 || st.TrackCommitTimestamp {
		t.Errorf("%v %+v", err, st)
	}
	if ch = touched(t, off, &st); len(ch.SLRUTruncates) != 0 {
		t.Errorf("it was off before: %+v", ch.SLRUTruncates)
	}
}

// A delta of an SLRU must not be taken for one of a relation, nor its indexes leave the page.
func TestSLRUPayloads(t *testing.T) {
	for s, bad := range map[pg.SLRU][][]byte{
		pg.Xact:             {main(uint8(4)), main(uint8(1), uint8(0)), main(uint8(1), uint16(32768))},
		pg.MultiXactOffsets: {main(uint16(2048), uint32(1)), main(uint16(1), uint8(1))},
		pg.MultiXactMembers: {main(uint8(0)), main(uint16(1635), uint32(1), uint8(1), uint32(1), uint8(1)), main(uint16(3), uint32(1))},
		pg.CommitTs:         {main(uint64(1)), main(uint64(1), uint16(1), uint16(819)), main(uint64(1), uint16(1), uint8(0))},
		pg.SLRU(9):          {main(uint8(1))},
	} {
		for _, b := range bad {
			d := Delta{Major: 15, Rmgr: wal.RmTransaction, Part: PartSLRU, Key: pg.SLRUPage(s, 0), Main: b}
			if _, err := Apply(make(pg.Page, pg.BlockSize), &d, false); err == nil {
				t.Errorf("%s: %x passes", s, b)
			}
		}
	}
	d := Delta{Major: 15, Rmgr: wal.RmTransaction, Part: PartSLRU, Key: pg.PageKey{RelFork: pg.RelFork{RelFileLocator: someRel}}}
	if _, err := Apply(make(pg.Page, pg.BlockSize), &d, false); err == nil {
		t.Error("an SLRU delta changes a relation's page")
	}
}
