package redo

import (
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

// fuzzRecord gives arbitrary main data to one manager, of all majors: whatever the bytes are, Touch, Redo of the control state and Apply answer
// with a result or an error, and what a record makes is no larger than a multiple of it.
func fuzzRecord(f *testing.F, rmgr wal.Rmgr, seeds ...*wal.Record) {
	for _, rec := range seeds {
		f.Add(uint8(rec.Major), rec.Info, uint32(rec.XID), true, rec.Main)
		f.Add(uint8(rec.Major), rec.Info, uint32(rec.XID), false, rec.Main[:len(rec.Main)/2])
	}
	page := make(pg.Page, pg.BlockSize)
	f.Fuzz(func(t *testing.T, major, info uint8, xid uint32, track bool, b []byte) {
		rec := &wal.Record{Major: 14 + pg.Major(major)%5, Rmgr: rmgr, Info: info, XID: xid, Start: 0x1000, End: 0x1080, Origin: uint16(xid), Main: b}
		st := ControlState{NextXID: 700, NextMulti: 5, TrackCommitTimestamp: track}
		before := st
		var ch Changes
		touchErr := Touch(rec, &st, &ch)
		if st != before {
			t.Fatal("Touch changed the control state")
		}
		groups, redoErr := st.Redo(rec)
		if redoErr != nil && (groups != 0 || st != before) {
			t.Fatalf("groups %b changed by a record that is malformed: %v", groups, redoErr)
		}
		if redoErr != nil && touchErr == nil && rmgr != wal.RmXLOG {
			t.Fatalf("the control state refuses what Touch takes: %v", redoErr)
		}
		if touchErr != nil {
			return
		}
		if n := len(ch.Pages) + len(ch.Meta) + len(ch.Sizes) + len(ch.SLRUTruncates) + len(ch.DropDatabases); n > len(b)+8 || len(ch.arena) > 16*len(b)+64 {
			t.Fatalf("%d bytes make %d changes of %d bytes", len(b), n, len(ch.arena))
		}
		seen := map[pg.PageKey]bool{}
		for i := range ch.Pages {
			p := &ch.Pages[i]
			if seen[p.Key] {
				t.Fatalf("%s is changed twice", p.Key)
			}
			seen[p.Key] = true
			clear(page)
			if _, err := Apply(page, &p.Delta, p.Kind == KindInit); err != nil {
				t.Fatalf("Touch makes what Apply refuses: %v", err)
			}
		}
	})
}

func FuzzTransaction(f *testing.F) {
	fuzzRecord(f, wal.RmTransaction,
		record(15, wal.RmTransaction, 0x00, 700, int64(1)),
		record(15, wal.RmTransaction, 0x80, 700, int64(1), uint32(0x1EF), uint64(0), subxids(701, 900), int32(1), someRel, int32(0), int32(0), uint32(7), "g\x00", uint64(1), int64(2)),
		record(18, wal.RmTransaction, 0xB0, 0, int64(1), uint32(0x110), int32(1), make([]byte, 16), uint32(700)),
		record(14, wal.RmTransaction, 0xA0, 700, int64(1), uint32(2), subxids(0xFFFFFF00, 900)),
		record(16, wal.RmTransaction, 0x10, 700, uint32(0x57F94534), uint32(76), uint32(700), make([]byte, 60)))
}

func FuzzMultiXact(f *testing.F) {
	fuzzRecord(f, wal.RmMultiXact, createMulti(2047, 1635, 5, 700), createMulti(0xFFFFFFFF, 0xFFFFFFFE, 9, 700), zeroOffsets(0),
		record(17, wal.RmMultiXact, 0x10, 0, int64(7)), record(15, wal.RmMultiXact, 0x30, 0, uint32(1), uint32(2), uint32(3), uint32(4), uint32(5)))
}

func FuzzXLOG(f *testing.F) {
	fuzzRecord(f, wal.RmXLOG, checkpoint(15, 0x00, pg.CheckPoint{NextXID: 900}), checkpoint(17, 0x10, pg.CheckPoint{NextXID: 900, OldestXID: 3}),
		record(15, wal.RmXLOG, 0x60, 0, make([]byte, 28)), record(15, wal.RmXLOG, 0x70, 0, int64(1), make([]byte, 64)),
		record(15, wal.RmXLOG, 0x30, 0, uint32(1)), record(15, wal.RmXLOG, 0x90, 0, int64(1), uint32(2), uint32(1)))
}

func FuzzStorage(f *testing.F) {
	fuzzRecord(f, wal.RmStorage, record(15, wal.RmStorage, 0x10, 1, someRel, int32(1)), record(15, wal.RmStorage, 0x20, 1, uint32(5000), someRel, int32(7)))
}

func FuzzDatabase(f *testing.F) {
	fuzzRecord(f, wal.RmDatabase, record(15, wal.RmDatabase, 0x00, 1, make([]byte, 16)), record(15, wal.RmDatabase, 0x10, 1, make([]byte, 8)),
		record(15, wal.RmDatabase, 0x20, 1, uint32(5), int32(2), uint64(0)), record(14, wal.RmDatabase, 0x10, 1, uint32(5), int32(2), uint64(0)))
}

func FuzzRelMap(f *testing.F) {
	fuzzRecord(f, wal.RmRelMap, record(15, wal.RmRelMap, 0, 1, uint32(5), uint32(1663), int32(512), make([]byte, 512)))
}

func FuzzSLRU(f *testing.F) {
	f.Add(uint8(1), false, []byte{1, 0, 0})
	f.Add(uint8(2), false, main(uint16(3), uint32(4)))
	f.Add(uint8(3), true, main(uint16(1634), uint32(4), uint8(1)))
	f.Add(uint8(4), false, main(int64(3), uint16(4), uint16(818)))
	page := make(pg.Page, pg.BlockSize)
	f.Fuzz(func(t *testing.T, s uint8, init bool, b []byte) {
		d := Delta{Major: 15, Rmgr: wal.RmMultiXact, Part: PartSLRU, Key: pg.SLRUPage(pg.SLRU(s), 1), Main: b}
		_, _ = Apply(page, &d, init) // must not panic
	})
}

func FuzzSmallManagers(f *testing.F) {
	f.Add(uint8(wal.RmTablespace), uint8(0), uint8(15), []byte("\x01\x00\x00\x00/a\x00"))
	f.Add(uint8(wal.RmReplicationOrigin), uint8(0), uint8(15), make([]byte, 16))
	f.Add(uint8(wal.RmCLOG), uint8(0x10), uint8(17), make([]byte, 16))
	f.Add(uint8(wal.RmCommitTs), uint8(0x10), uint8(15), make([]byte, 8))
	f.Add(uint8(wal.RmStandby), uint8(0x10), uint8(15), make([]byte, 8))
	f.Fuzz(func(t *testing.T, rmgr, info, major uint8, b []byte) {
		rec := &wal.Record{Major: 14 + pg.Major(major)%5, Rmgr: wal.Rmgr(rmgr), Info: info, Main: b}
		st := ControlState{NextXID: 700}
		var ch Changes
		touchErr := Touch(rec, &st, &ch)
		if _, err := st.Redo(rec); err != nil && touchErr == nil && rec.Rmgr != wal.RmXLOG {
			t.Fatalf("the control state refuses what Touch takes: %v", err)
		}
	})
}

func FuzzControlGroup(f *testing.F) {
	s := distinctState()
	for g := ControlXID; g <= ControlRest; g++ {
		f.Add(uint8(g), s.AppendGroup(nil, g))
	}
	f.Fuzz(func(t *testing.T, g uint8, b []byte) {
		var s ControlState
		if err := s.DecodeGroup(ControlGroup(g), b); err != nil {
			return
		}
		if again := s.AppendGroup(nil, ControlGroup(g)); string(again) != string(b) {
			t.Fatalf("%x becomes %x", b, again)
		}
	})
}
