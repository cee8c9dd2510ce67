package redo

import (
	"encoding/binary"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

// main builds main data out of values of fixed width, without alignment.
func main(values ...any) []byte {
	var b []byte
	for _, v := range values {
		switch v := v.(type) {
		case []byte:
			b = append(b, v...)
		case string:
			b = append(b, v...)
		default:
			var err error
			if b, err = binary.Append(b, binary.LittleEndian, v); err != nil {
				panic(err)
			}
		}
	}
	return b
}

func record(major pg.Major, rmgr wal.Rmgr, info uint8, xid pg.TransactionID, values ...any) *wal.Record {
	return &wal.Record{Major: major, Rmgr: rmgr, Info: info, XID: xid, Start: 0x1000, End: 0x1080, Main: main(values...)}
}

// touched is Touch of a record that is well-formed and known.
func touched(t *testing.T, rec *wal.Record, st *ControlState) *Changes {
	t.Helper()
	var ch Changes
	if err := Touch(rec, st, &ch); err != nil {
		t.Fatal(err)
	}
	if ch.Unproven != nil || len(ch.Damaged) != 0 {
		t.Fatalf("unproven %v, damaged %v", ch.Unproven, ch.Damaged)
	}
	return &ch
}

// slruStore is a model of the versioned store for SLRU pages: the newest version of each, missing ones being zero.
type slruStore map[pg.PageKey]pg.Page

func (s slruStore) page(k pg.PageKey) pg.Page {
	if s[k] == nil {
		s[k] = make(pg.Page, pg.BlockSize)
	}
	return s[k]
}

// apply takes each delta through its encoding, as a store does.
func (s slruStore) apply(t testing.TB, ch *Changes) {
	t.Helper()
	seen := map[pg.PageKey]bool{}
	for i := range ch.Pages {
		p := &ch.Pages[i]
		if _, ok := p.Key.SLRU(); !ok {
			continue
		}
		if seen[p.Key] {
			t.Fatalf("%s is changed twice by one record", p.Key)
		}
		seen[p.Key] = true
		if p.Optional || p.Delta.Part != PartSLRU || p.Key != p.Delta.Key {
			t.Fatalf("%s: optional %v, part %d, key %s", p.Key, p.Optional, p.Delta.Part, p.Delta.Key)
		}
		redo := Redoer{Major: p.Delta.Major}
		if _, err := redo.Redo(s.page(p.Key), p.Key, p.Delta.LSN, p.Kind == KindInit, AppendDelta(nil, &p.Delta)); err != nil {
			t.Fatal(err)
		}
	}
}

// run gives records to the store and to the control state, in their order.
func (s slruStore) run(t *testing.T, st *ControlState, recs ...*wal.Record) {
	t.Helper()
	for _, rec := range recs {
		s.apply(t, touched(t, rec, st))
		if _, err := st.Redo(rec); err != nil {
			t.Fatal(err)
		}
	}
}

func (s slruStore) xact(xid pg.TransactionID) int {
	p := s.page(pg.SLRUPage(pg.Xact, xid/pg.XactsPerPage))
	return int(p[xid%pg.XactsPerPage/4] >> (xid % 4 * 2) & 3)
}

func (s slruStore) offset(id pg.MultiXactID) uint32 {
	return binary.LittleEndian.Uint32(s.page(pg.SLRUPage(pg.MultiXactOffsets, id/2048))[id%2048*4:])
}

func (s slruStore) member(offset uint32) (xid pg.TransactionID, status uint8) {
	p := s.page(pg.SLRUPage(pg.MultiXactMembers, offset/1636))
	in := offset % 1636
	group := p[in/4*20:]
	return binary.LittleEndian.Uint32(group[4+in%4*4:]), group[in%4]
}

func (s slruStore) commitTs(xid pg.TransactionID) (ts int64, origin uint16) {
	p := s.page(pg.SLRUPage(pg.CommitTs, xid/819))[xid%819*10:]
	return int64(binary.LittleEndian.Uint64(p)), binary.LittleEndian.Uint16(p[8:])
}

func TestBodyReader(t *testing.T) {
	r := bodyReader{b: main(uint8(1), uint16(2), uint32(3), uint64(4), int32(2), uint32(5), uint32(6), "ab\x00", uint32(7))}
	if r.u8() != 1 || r.u16() != 2 || r.u32() != 3 || r.u64() != 4 || len(r.list(4)) != 8 || string(r.cstring()) != "ab" || r.u32() != 7 || r.short {
		t.Error("fields are read wrong")
	}
	if r.u8() != 0 || !r.short {
		t.Error("reading past the end isn't noticed")
	}
	for _, count := range []int32{-1, 3, 1 << 30, -1 << 31} {
		r := bodyReader{b: main(count, uint64(0))}
		if l := r.list(4); l != nil || !r.short || r.u32() != 0 {
			t.Errorf("a list of %d items fits 8 bytes: %v", count, l)
		}
	}
	if r := (bodyReader{b: []byte("abc")}); r.cstring() != nil || !r.short {
		t.Error("a string without end is read")
	}
	if r := (bodyReader{b: main(uint64(1 << 32))}); r.slruPage(17) != 0 || !r.short {
		t.Error("an SLRU page of more than 32 bits is read")
	}
}
