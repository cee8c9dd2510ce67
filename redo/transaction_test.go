package redo

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

func subxids(from, n uint32) []byte {
	b := main(int32(n))
	for i := range n {
		x := from + i
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

func TestCommitPlain(t *testing.T) {
	for _, m := range pg.Majors() {
		s, st := slruStore{}, ControlState{NextXID: 700}
		rec := record(m, wal.RmTransaction, 0x00, 701, int64(1234))
		ch := touched(t, rec, &st)
		if len(ch.Pages) != 1 || len(ch.Transactions) != 1 || ch.Transactions[0] != (TransactionEnd{Commit: true, XID: 701, Time: 1234}) {
			t.Errorf("%d: %+v", m, ch)
		}
		s.run(t, &st, rec, record(m, wal.RmTransaction, 0x20, 702, int64(1235)))
		if s.xact(701) != 1 || s.xact(702) != 2 || s.xact(700) != 0 || s.xact(703) != 0 {
			t.Errorf("%d: status %d %d %d %d", m, s.xact(700), s.xact(701), s.xact(702), s.xact(703))
		}
		if st.NextXID != 703 {
			t.Errorf("%d: next xid %d", m, st.NextXID)
		}
	}
}

// Every part of the body at once: each must be skipped with its right length for what follows it to be found.
func TestCommitEverything(t *testing.T) {
	for _, m := range pg.Majors() {
		xinfo := uint32(0xE0000000 | 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20 | 0x40 | 0x80)
		stats := []byte(nil)
		if m >= 15 {
			xinfo |= 0x100
			size := 12
			if m >= 18 {
				size = 16
			}
			stats = main(int32(3), make([]byte, 3*size))
		}
		rec := record(m, wal.RmTransaction, 0x30|0x80, 0, int64(99), xinfo,
			uint32(5), uint32(1663), // database
			subxids(901, 2),
			int32(2), uint32(1663), uint32(5), uint32(16384), uint32(1664), uint32(0), uint32(16385),
			stats,
			int32(1), make([]byte, 16), // invalidation
			uint32(900), "gid\x00",
			uint64(0x1234567), int64(555))
		rec.Origin = 7
		st := ControlState{NextXID: 700, TrackCommitTimestamp: true, OldestCommitTs: 3, NewestCommitTs: 3}
		ch := touched(t, rec, &st)
		s := slruStore{}
		s.run(t, &st, rec)
		for x := pg.TransactionID(900); x <= 902; x++ {
			ts, origin := s.commitTs(x)
			if s.xact(x) != 1 || ts != 555 || origin != 7 {
				t.Errorf("%d: xid %d has status %d, commit time %d, origin %d", m, x, s.xact(x), ts, origin)
			}
		}
		if st.NextXID != 903 || st.NewestCommitTs != 902 {
			t.Errorf("%d: next %d, newest commit time %d", m, st.NextXID, st.NewestCommitTs)
		}
		if len(ch.Sizes) != 8 || ch.Sizes[2] != (SizeChange{Op: SizeDrop, Fork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}, Fork: pg.VMFork}}) ||
			ch.Sizes[7].Fork != (pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1664, DB: 0, Rel: 16385}, Fork: pg.InitFork}) {
			t.Errorf("%d: drops %v", m, ch.Sizes)
		}
		if len(ch.Meta) != 2 || ch.Meta[0].Kind != MetaTwoPhase || ch.Meta[0].ID != [2]uint32{900} || ch.Meta[0].Value != nil ||
			ch.Meta[1].Kind != MetaOrigin || ch.Meta[1].ID != [2]uint32{7} || binary.LittleEndian.Uint64(ch.Meta[1].Value) != 0x1234567 || !ch.Meta[1].IfGreater {
			t.Errorf("%d: meta %+v", m, ch.Meta)
		}
		if ch.Transactions[0] != (TransactionEnd{Commit: true, XID: 900, Time: 99, Origin: 7}) {
			t.Errorf("%d: %+v", m, ch.Transactions)
		}
		for n := range rec.Main {
			short := *rec
			short.Main = rec.Main[:n]
			before := st
			if err := Touch(&short, &st, ch); err == nil {
				t.Errorf("%d: a commit cut to %d bytes passes", m, n)
			}
			if _, err := st.Redo(&short); err == nil || st != before {
				t.Errorf("%d: a commit cut to %d bytes: %v, control state changed: %v", m, n, err, st != before)
			}
		}
	}
}

// An abort has no invalidations even where the bit is set.
func TestAbortParts(t *testing.T) {
	rec := record(16, wal.RmTransaction, 0x20|0x80, 50, int64(1), uint32(0x02|0x04|0x100), subxids(51, 1),
		int32(1), uint32(1663), uint32(5), uint32(7), int32(1), make([]byte, 12))
	st := ControlState{NextXID: 50, TrackCommitTimestamp: true, OldestCommitTs: 3, NewestCommitTs: 3}
	ch := touched(t, rec, &st)
	s := slruStore{}
	s.run(t, &st, rec)
	if s.xact(50) != 2 || s.xact(51) != 2 || len(ch.Pages) != 1 || len(ch.Sizes) != 4 || st.NewestCommitTs != 3 || ch.Transactions[0].Commit {
		t.Errorf("%d %d, %+v", s.xact(50), s.xact(51), ch)
	}
}

func TestSubtransactionsOverPages(t *testing.T) {
	const n = 3*pg.XactsPerPage + 17
	tests := []struct {
		name   string
		xid    pg.TransactionID
		from   uint32
		first  pg.FullTransactionID
		last   pg.FullTransactionID
		shuffe bool
	}{
		{"ascending", 32000, 32001, 32000, 32001 + n, false},
		{"wraparound", 0xFFFFFF00, 0xFFFFFF01, 0xFFFFFF00, 1<<32 | (n - 255), false},
		{"reverse", 32000, 32001, 32000, 32001 + n, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list := subxids(tt.from, n)
			if tt.shuffe {
				ids := list[4:]
				for i, j := 0, len(ids)-4; i < j; i, j = i+4, j-4 {
					a, b := binary.LittleEndian.Uint32(ids[i:]), binary.LittleEndian.Uint32(ids[j:])
					binary.LittleEndian.PutUint32(ids[i:], b)
					binary.LittleEndian.PutUint32(ids[j:], a)
				}
			}
			rec := record(15, wal.RmTransaction, 0x80, tt.xid, int64(8), uint32(2), list)
			st := ControlState{NextXID: tt.first, TrackCommitTimestamp: true, OldestCommitTs: 3, NewestCommitTs: 3}
			s := slruStore{}
			s.run(t, &st, rec) // fails if a page is changed twice
			for i := range uint32(n) {
				x := tt.from + i
				if ts, _ := s.commitTs(x); s.xact(x) != 1 || ts != 8 {
					t.Fatalf("xid %d: status %d, time %d", x, s.xact(x), ts)
				}
			}
			if s.xact(tt.xid) != 1 || s.xact(tt.xid-1) != 0 || s.xact(tt.from+n) != 0 {
				t.Error("the tree's edges are wrong")
			}
			if st.NextXID != tt.last {
				t.Errorf("next xid %x, want %x", st.NextXID, tt.last)
			}
		})
	}
}

func TestPrepare(t *testing.T) {
	for _, m := range pg.Majors() {
		var counts []byte
		if m >= 15 {
			counts = make([]byte, 8)
		}
		head := func(total uint32) []byte {
			b := main(uint32(0x57F94534), total, uint32(800), uint32(5), int64(77), uint32(10), int32(3), int32(0), int32(0), counts, int32(0),
				uint8(0), uint8(0), uint16(4), uint64(0xABC), int64(1), "gid\x00\x00\x00\x00\x00", uint32(801), uint32(802), uint32(805), uint32(0))
			return append(b, make([]byte, 24)...)
		}
		body := head(uint32(len(head(0)) + 4))
		rec := record(m, wal.RmTransaction, 0x10, 800, body)
		rec.Origin = 3
		st := ControlState{NextXID: 800}
		ch := touched(t, rec, &st)
		want := binary.LittleEndian.AppendUint32(bytes.Clone(body), crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
		if len(ch.Meta) != 2 || ch.Meta[0].Kind != MetaTwoPhase || ch.Meta[0].ID != [2]uint32{800} || !bytes.Equal(ch.Meta[0].Value, want) {
			t.Errorf("%d: %+v", m, ch.Meta)
		}
		if o := ch.Meta[1]; o.Kind != MetaOrigin || o.ID != [2]uint32{3} || binary.LittleEndian.Uint64(o.Value) != 0xABC {
			t.Errorf("%d: origin %+v", m, o)
		}
		if len(ch.Pages) != 0 || len(ch.Transactions) != 0 {
			t.Errorf("%d: a prepared transaction has not ended: %+v", m, ch)
		}
		if _, err := st.Redo(rec); err != nil || st.NextXID != 806 {
			t.Errorf("%d: next xid %d, %v", m, st.NextXID, err)
		}
		bad := *rec
		bad.Main = body[:len(body)-8]
		if err := Touch(&bad, &st, ch); err == nil {
			t.Errorf("%d: a cut state file passes", m)
		}
	}
}

func TestTransactionRefusals(t *testing.T) {
	var ch Changes
	st := ControlState{NextXID: 10}
	for name, rec := range map[string]*wal.Record{
		"no xid":                      record(15, wal.RmTransaction, 0x00, 0, int64(1)),
		"unknown bit":                 record(15, wal.RmTransaction, 0x80, 9, int64(1), uint32(0x200)),
		"statistics in 14":            record(14, wal.RmTransaction, 0x80, 9, int64(1), uint32(0x100), int32(0)),
		"prepared without info":       record(15, wal.RmTransaction, 0x30, 9, int64(1)),
		"prepared without its xid":    record(15, wal.RmTransaction, 0x30|0x80, 9, int64(1), uint32(0)),
		"prepared with xid 0":         record(15, wal.RmTransaction, 0x40|0x80, 9, int64(1), uint32(0x10), uint32(0)),
		"more subtransactions than b": record(15, wal.RmTransaction, 0x80, 9, int64(1), uint32(2), int32(1<<30), uint32(1)),
	} {
		if err := Touch(rec, &st, &ch); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	rec := record(15, wal.RmTransaction, 0x70, 9)
	if err := Touch(rec, &st, &ch); err != nil || ch.Unproven == nil {
		t.Errorf("unknown type: %v, %v", err, ch.Unproven)
	}
}

func TestCommitAllocates(t *testing.T) {
	rec := record(15, wal.RmTransaction, 0x80, 700, int64(1), uint32(2), subxids(701, 3))
	st := ControlState{NextXID: 700, TrackCommitTimestamp: true, OldestCommitTs: 3, NewestCommitTs: 3}
	var ch Changes
	if n := testing.AllocsPerRun(100, func() {
		if err := Touch(rec, &st, &ch); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Redo(rec); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per commit", n)
	}
}
