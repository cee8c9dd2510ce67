package redo

import (
	"reflect"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

func TestAdvancePast(t *testing.T) {
	for _, tt := range []struct {
		next pg.FullTransactionID
		xid  pg.TransactionID
		want pg.FullTransactionID
	}{
		{700, 0, 700},
		{700, 699, 700},
		{700, 700, 701},
		{700, 800, 801},
		{700, 1, 700},
		{0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF},
		{0xFFFFFFFF, 0xFFFFFFFF, 1<<32 | 3},
		{0xFFFFFFF0, 5, 1<<32 | 6},
		{1<<32 | 3, 0xFFFFFFFF, 1<<32 | 3},
		{5<<32 | 0x80000000, 0x80000001, 5<<32 | 0x80000002},
		{5<<32 | 0x90000000, 3, 6<<32 | 4}, // nearer forwards
		{5<<32 | 0x70000000, 0xF0000000 - 1, 5<<32 | 0xF0000000},
		{5<<32 | 0x70000000, 0xF0000001, 5<<32 | 0x70000000}, // nearer backwards
	} {
		s := ControlState{NextXID: tt.next}
		g, err := s.Redo(record(15, wal.RmHeap, 0, tt.xid))
		if err != nil || s.NextXID != tt.want || g.Has(ControlXID) != (tt.next != tt.want) {
			t.Errorf("%x past %x: %x, groups %b, %v; want %x", tt.next, tt.xid, s.NextXID, g, err, tt.want)
		}
	}
	s := ControlState{NextXID: 700}
	rec := record(15, wal.RmHeap, 0, 0)
	rec.TopLevelXID = 705
	if g, _ := s.Redo(rec); s.NextXID != 706 || g != 1<<ControlXID {
		t.Errorf("top-level xid: %d, %b", s.NextXID, g)
	}
}

func checkpoint(major pg.Major, info uint8, cp pg.CheckPoint) *wal.Record {
	return record(major, wal.RmXLOG, info, 0, cp.Encode(major))
}

func TestCheckpoints(t *testing.T) {
	cp := pg.CheckPoint{
		Redo: 0xF00, Timeline: 2, PrevTimeline: 1, FullPageWrites: true, WALLevel: 1, NextXID: 900, NextOid: 17000, NextMulti: 20, NextMultiOffset: 40,
		OldestXID: 720, OldestXIDDB: 5, OldestMulti: 4, OldestMultiDB: 6, Time: 1700000000, OldestCommitTs: 730, NewestCommitTs: 890, OldestActiveXID: 899,
	}
	start := ControlState{
		NextXID: 950, NewestCommitTs: 940, NextMulti: 25, NextMultiOffset: 50, NextOid: 18000, OldestXID: 710, OldestXIDDB: 1, OldestMulti: 3,
		OldestMultiDB: 1, OldestCommitTs: 725, Timeline: 1, PrevTimeline: 1, WALLevel: 2, TrackCommitTimestamp: true,
	}
	for _, m := range pg.Majors() {
		s := start
		if g, err := s.Redo(checkpoint(m, 0x10, cp)); err != nil || g != 1<<ControlRest {
			t.Errorf("%d: online: groups %b, %v", m, g, err)
		}
		want := start
		want.OldestXID, want.OldestXIDDB, want.OldestMulti, want.OldestMultiDB, want.OldestCommitTs = 720, 5, 4, 6, 730
		want.Timeline, want.PrevTimeline, want.FullPageWrites = 2, 1, true
		want.CheckPointRedo, want.CheckPoint, want.CheckPointTime = 0xF00, 0x1000, 1700000000
		if s != want {
			t.Errorf("%d: online: %+v, want %+v", m, s, want)
		}
		s = start
		if g, err := s.Redo(checkpoint(m, 0x00, cp)); err != nil || g != AllControlGroups {
			t.Errorf("%d: shutdown: groups %b, %v", m, g, err)
		}
		want.NextXID, want.NextOid, want.NextMulti, want.NextMultiOffset = 900, 17000, 20, 40
		if s != want {
			t.Errorf("%d: shutdown: %+v, want %+v", m, s, want)
		}
	}
	// Where the checkpoint is ahead, an online one moves the counters too, across an epoch and a wraparound of multixacts.
	s := start
	s.NextXID, s.NextMulti, s.NextMultiOffset = 0xFFFFFFF0, 0xFFFFFFF0, 0xFFFFFFF0
	ahead := cp
	ahead.NextXID, ahead.NextMulti, ahead.NextMultiOffset = 1<<32|5, 7, 9
	if g, err := s.Redo(checkpoint(15, 0x10, ahead)); err != nil || g != AllControlGroups || s.NextXID != 1<<32|5 || s.NextMulti != 7 || s.NextMultiOffset != 9 {
		t.Errorf("groups %b, %v, %+v", g, err, s)
	}
	// Oldest ids only move forwards at an online checkpoint; oldestXid may be set back by a shutdown one.
	back := cp
	back.OldestXID, back.OldestMulti = 705, 2
	s = start
	if _, err := s.Redo(checkpoint(15, 0x10, back)); err != nil || s.OldestXID != 710 || s.OldestMulti != 3 {
		t.Errorf("%v, %+v", err, s)
	}
	if _, err := s.Redo(checkpoint(15, 0x00, back)); err != nil || s.OldestXID != 705 || s.OldestMulti != 3 {
		t.Errorf("%v, %+v", err, s)
	}
	// The databases of the oldest ids change without an advance when vacuum has passed or dropped the ones before.
	same := cp
	same.OldestXID, same.OldestMulti = start.OldestXID, start.OldestMulti
	for _, info := range []uint8{0x10, 0x00} {
		s = start
		if _, err := s.Redo(checkpoint(15, info, same)); err != nil || s.OldestXIDDB != 5 || s.OldestMultiDB != 6 {
			t.Errorf("%v, %+v", err, s)
		}
	}
	short := checkpoint(15, 0x00, cp)
	short.Main = short.Main[:87]
	if _, err := s.Redo(short); err == nil {
		t.Error("a cut checkpoint passes")
	}
}

func TestControlRecords(t *testing.T) {
	s := ControlState{NextXID: 700, NextOid: 16384, Timeline: 1, PrevTimeline: 1}
	params := main(int32(100), int32(8), int32(10), int32(2), int32(64), int32(2), uint8(1), uint8(1), uint16(0))
	for _, rec := range []*wal.Record{
		record(15, wal.RmXLOG, 0x30, 0, uint32(24576)),
		record(15, wal.RmXLOG, 0x60, 0, params),
		record(15, wal.RmXLOG, 0x80, 0, uint8(1)),
		record(15, wal.RmXLOG, 0x90, 0, int64(5), uint32(4), uint32(3)),
	} {
		if g, err := s.Redo(rec); err != nil || !g.Has(ControlRest) {
			t.Errorf("info %02X: groups %b, %v", rec.Info, g, err)
		}
		for n := range len(rec.Main) - 2 {
			short := *rec
			short.Main = rec.Main[:n]
			if _, err := s.Redo(&short); err == nil && rec.Info != 0x80 {
				t.Errorf("info %02X cut to %d bytes passes", rec.Info, n)
			}
		}
	}
	want := ControlState{
		NextXID: 700, NextOid: 24576, Timeline: 4, PrevTimeline: 3, FullPageWrites: true, MaxConnections: 100, MaxWorkerProcesses: 8, MaxWALSenders: 10,
		MaxPreparedXacts: 2, MaxLocksPerXact: 64, WALLevel: 2, WALLogHints: true, TrackCommitTimestamp: true, OldestCommitTs: 700, NewestCommitTs: 700,
	}
	if s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	if g, err := s.Redo(record(15, wal.RmXLOG, 0x60, 0, params)); err != nil || g != 0 {
		t.Errorf("no change: %b, %v", g, err)
	}
	if _, err := s.Redo(record(15, wal.RmXLOG, 0x80, 0, []byte{})); err == nil {
		t.Error("FPW_CHANGE without its value passes")
	}
}

// Every field has another value, so that one left out or swapped shows.
func distinctState() ControlState {
	var s ControlState
	v := reflect.ValueOf(&s).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		switch {
		case f.Kind() == reflect.Bool:
			f.SetBool(true)
		case f.CanInt():
			f.SetInt(int64(-1000 - i))
		default:
			f.SetUint(uint64(0x80000000 + i))
		}
	}
	return s
}

func TestControlGroups(t *testing.T) {
	s := distinctState()
	var got ControlState
	for _, g := range []ControlGroup{ControlXID, ControlMulti, ControlRest} {
		b := s.AppendGroup(nil, g)
		if err := got.DecodeGroup(g, b); err != nil {
			t.Error(err)
		}
		for _, bad := range [][]byte{nil, b[:len(b)-1], append(b[:len(b):len(b)], 0), append([]byte{2}, b[1:]...)} {
			if err := got.DecodeGroup(g, bad); err == nil {
				t.Errorf("group %d of %d bytes decodes", g, len(bad))
			}
		}
	}
	if got != s {
		t.Errorf("%+v, want %+v", got, s)
	}
	if err := got.DecodeGroup(3, []byte{1}); err == nil {
		t.Error("group 3 exists")
	}
	b := s.AppendGroup(nil, ControlRest)
	for i := range 4 { // each switch has a bit of its own
		c := append([]byte(nil), b...)
		c[len(c)-1] = 1 << i
		if err := got.DecodeGroup(ControlRest, c); err != nil {
			t.Error(err)
		}
		if set := []bool{got.FullPageWrites, got.WALLogHints, got.TrackCommitTimestamp, got.DataChecksums}; !set[i] || set[(i+1)%4] || set[(i+2)%4] || set[(i+3)%4] {
			t.Errorf("bit %d: %v", i, set)
		}
	}
	b[len(b)-1] = 0x10
	if err := got.DecodeGroup(ControlRest, b); err == nil {
		t.Error("an unknown bit decodes")
	}
}

func TestNewControlState(t *testing.T) {
	cp := pg.CheckPoint{
		Redo: 1, Timeline: 2, PrevTimeline: 3, FullPageWrites: true, NextXID: 4, NextOid: 5, NextMulti: 6, NextMultiOffset: 7, OldestXID: 8,
		OldestXIDDB: 9, OldestMulti: 10, OldestMultiDB: 11, Time: 12, OldestCommitTs: 13, NewestCommitTs: 14,
	}
	ctl := pg.ControlFile{CheckPoint: 99, WALLevel: 1, WALLogHints: true, TrackCommitTimestamp: true, MaxConnections: 15, MaxWorkerProcesses: 16,
		MaxWALSenders: 17, MaxPreparedXacts: 18, MaxLocksPerXact: 19, DataChecksumVersion: 1}
	s := NewControlState(cp, 20, &ctl)
	if v := reflect.ValueOf(s); true {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("%s is not set", v.Type().Field(i).Name)
			}
		}
	}
	filled := pg.ControlFile{DataChecksumVersion: 1}
	s.Fill(&filled)
	want := ctl
	want.CheckPoint, want.Copy = 20, cp
	if filled != want {
		t.Errorf("%+v, want %+v", filled, want)
	}
	cp.OldestCommitTs, cp.NewestCommitTs = 0, 0
	if s := NewControlState(cp, 20, &ctl); s.OldestCommitTs != 4 || s.NewestCommitTs != 4 {
		t.Errorf("%+v", s)
	}
}

func BenchmarkControlRedo(b *testing.B) {
	s := ControlState{NextXID: 700}
	for name, rec := range map[string]*wal.Record{
		"heap":   record(15, wal.RmHeap, 0, 650),
		"commit": record(15, wal.RmTransaction, 0, 650, int64(1)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Redo(rec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkTouchCommit(b *testing.B) {
	st := ControlState{NextXID: 700}
	var ch Changes
	for name, rec := range map[string]*wal.Record{
		"plain":           record(15, wal.RmTransaction, 0, 650, int64(1)),
		"20 subxacts":     record(15, wal.RmTransaction, 0x80, 650, int64(1), uint32(2), subxids(651, 20)),
		"10 dropped rels": record(15, wal.RmTransaction, 0x80, 650, int64(1), uint32(4), int32(10), make([]byte, 120)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Touch(rec, &st, &ch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
