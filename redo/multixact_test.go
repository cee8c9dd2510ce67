package redo

import (
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

// createMulti has members with xids first, first+1, … and statuses 0 to 5 in turn.
func createMulti(id, offset, n, first uint32) *wal.Record {
	b := main(id, offset, int32(n))
	for i := range n {
		b = append(b, main(first+i, uint32(i%6))...)
	}
	return record(15, wal.RmMultiXact, 0x20, 0, b)
}

func zeroOffsets(page uint32) *wal.Record { return record(15, wal.RmMultiXact, 0x00, 0, int32(page)) }

func TestCreateMulti(t *testing.T) {
	s, st := slruStore{}, ControlState{NextXID: 600, NextMulti: 10, NextMultiOffset: 100}
	s.run(t, &st, createMulti(10, 100, 7, 1000))
	if s.offset(10) != 100 || s.offset(11) != 107 || s.offset(12) != 0 || s.offset(9) != 0 {
		t.Errorf("offsets %d %d", s.offset(10), s.offset(11))
	}
	for i := range uint32(7) {
		if x, status := s.member(100 + i); x != 1000+i || status != uint8(i%6) {
			t.Errorf("member %d: %d %d", i, x, status)
		}
	}
	if st.NextMulti != 11 || st.NextMultiOffset != 107 || st.NextXID != 1007 {
		t.Errorf("%+v", st)
	}
	// What another record wrote in the same group stays.
	s.run(t, &st, createMulti(11, 107, 2, 2000))
	if x, status := s.member(106); x != 1006 || status != 0 {
		t.Errorf("%d %d", x, status)
	}
}

func TestMembersOverPagesAndWraparound(t *testing.T) {
	s, st := slruStore{}, ControlState{NextXID: 600, NextMulti: 10, NextMultiOffset: 0xFFFFFFFD}
	const n = 2*1636 + 10
	s.run(t, &st, createMulti(10, 0xFFFFFFFD, n, 1000))
	for i := range uint32(n) {
		if x, status := s.member(0xFFFFFFFD + i); x != 1000+i || status != uint8(i%6) {
			t.Fatalf("member %d: %d %d", i, x, status)
		}
	}
	if s.offset(11) != n-3 || st.NextMultiOffset != n-3 {
		t.Errorf("next offset %d, counter %d", s.offset(11), st.NextMultiOffset)
	}
	// Offset 0 is skipped by the next multixact's start, but the counter stands there.
	s, st = slruStore{}, ControlState{NextXID: 600, NextMulti: 10, NextMultiOffset: 0xFFFFFFFD}
	s.run(t, &st, createMulti(10, 0xFFFFFFFD, 3, 1000))
	if s.offset(11) != 1 || st.NextMultiOffset != 0 {
		t.Errorf("next offset %d, counter %d", s.offset(11), st.NextMultiOffset)
	}
}

func TestMultiIDWraparound(t *testing.T) {
	s, st := slruStore{}, ControlState{NextXID: 600, NextMulti: 0xFFFFFFFF, NextMultiOffset: 50}
	s.run(t, &st, createMulti(0xFFFFFFFF, 50, 2, 1000))
	if s.offset(0xFFFFFFFF) != 50 || s.offset(1) != 52 || s.offset(0) != 0 || st.NextMulti != 0 {
		t.Errorf("%d %d %d, next %d", s.offset(0xFFFFFFFF), s.offset(1), s.offset(0), st.NextMulti)
	}
	s.run(t, &st, zeroOffsets(0))
	if s.offset(1) != 52 {
		t.Error("ZERO_OFF_PAGE wiped the entry of the first multixact after the wraparound")
	}
}

// A page's ZERO_OFF_PAGE comes before or after the CREATE_ID of the last multixact of the page before it, depending on the minor release.
func TestZeroOffsetsOrder(t *testing.T) {
	old := func() (slruStore, *ControlState) {
		s := slruStore{}
		p := s.page(pg.SLRUPage(pg.MultiXactOffsets, 1)) // an earlier round of the counter
		for i := range p {
			p[i] = 0xEE
		}
		return s, &ControlState{NextXID: 600, NextMulti: 2047, NextMultiOffset: 5000}
	}
	others := func(t *testing.T, s slruStore, from uint32) {
		t.Helper()
		for id := from; id < 4096; id++ {
			if s.offset(id) != 0 {
				t.Fatalf("entry %d of an earlier round is kept: %x", id, s.offset(id))
			}
		}
	}
	t.Run("zero, create", func(t *testing.T) {
		s, st := old()
		s.run(t, st, zeroOffsets(1))
		others(t, s, 2048)
		s.run(t, st, createMulti(2047, 5000, 3, 700))
		if s.offset(2047) != 5000 || s.offset(2048) != 5003 {
			t.Errorf("%d %d", s.offset(2047), s.offset(2048))
		}
		others(t, s, 2049)
	})
	t.Run("create, zero", func(t *testing.T) {
		s, st := old()
		s.run(t, st, createMulti(2047, 5000, 3, 700), zeroOffsets(1))
		if s.offset(2047) != 5000 || s.offset(2048) != 5003 {
			t.Errorf("%d %d", s.offset(2047), s.offset(2048))
		}
		others(t, s, 2049)
		s.run(t, st, createMulti(2049, 5005, 2, 700)) // overtakes 2048
		if s.offset(2048) != 5003 || s.offset(2049) != 5005 || s.offset(2050) != 5007 {
			t.Errorf("%d %d %d", s.offset(2048), s.offset(2049), s.offset(2050))
		}
	})
	t.Run("create, late create, zero", func(t *testing.T) {
		s, st := old()
		st.NextMulti, st.NextMultiOffset = 2046, 4998
		s.run(t, st, createMulti(2047, 5000, 3, 700), createMulti(2046, 4998, 2, 700), zeroOffsets(1))
		if s.offset(2046) != 4998 || s.offset(2047) != 5000 || s.offset(2048) != 5003 {
			t.Errorf("%d %d %d", s.offset(2046), s.offset(2047), s.offset(2048))
		}
		others(t, s, 2049)
	})
	t.Run("zero, late create", func(t *testing.T) { // old order, the last multixact's record is late
		s, st := old()
		s.run(t, st, zeroOffsets(1), createMulti(2048, 5003, 2, 700), createMulti(2047, 5000, 3, 700))
		if s.offset(2047) != 5000 || s.offset(2048) != 5003 || s.offset(2049) != 5005 {
			t.Errorf("%d %d %d", s.offset(2047), s.offset(2048), s.offset(2049))
		}
		others(t, s, 2050)
	})
	t.Run("first page of a new cluster", func(t *testing.T) {
		s, st := slruStore{}, &ControlState{NextXID: 600, NextMulti: 1}
		s.run(t, st, zeroOffsets(0))
		others(t, s, 0)
		s.run(t, st, createMulti(1, 1, 2, 700))
		if s.offset(1) != 1 || s.offset(2) != 3 {
			t.Errorf("%d %d", s.offset(1), s.offset(2))
		}
	})
	t.Run("multi and page wraparound", func(t *testing.T) {
		s, st := slruStore{}, &ControlState{NextXID: 600, NextMulti: 0xFFFFFFFF, NextMultiOffset: 0xFFFFFFFE}
		s.run(t, st, createMulti(0xFFFFFFFF, 0xFFFFFFFE, 2, 700), zeroOffsets(0))
		if s.offset(1) != 1 {
			t.Errorf("%d", s.offset(1))
		}
	})
}

func TestZeroMembers(t *testing.T) {
	for _, m := range pg.Majors() {
		rec := record(m, wal.RmMultiXact, 0x10, 0, int32(3))
		if m >= 17 {
			rec = record(m, wal.RmMultiXact, 0x10, 0, int64(3))
		}
		ch := touched(t, rec, &ControlState{})
		if len(ch.Pages) != 1 || ch.Pages[0].Kind != KindInit || ch.Pages[0].Key != pg.SLRUPage(pg.MultiXactMembers, 3) {
			t.Errorf("%d: %+v", m, ch.Pages)
		}
	}
}

func TestTruncateMulti(t *testing.T) {
	const seg = 1636 * 32
	rec := record(15, wal.RmMultiXact, 0x30, 0, uint32(5), uint32(1), uint32(2048*32*3+1), uint32(seg-1), uint32(4*seg+1))
	st := ControlState{NextXID: 600, OldestMulti: 1, OldestMultiDB: 1}
	ch := touched(t, rec, &st)
	if len(ch.SLRUTruncates) != 2 || ch.SLRUTruncates[0] != (SLRUTruncate{SLRU: pg.MultiXactMembers, Members: true, StartSegment: 0, EndSegment: 4}) ||
		ch.SLRUTruncates[1] != (SLRUTruncate{SLRU: pg.MultiXactOffsets, Page: 96}) {
		t.Errorf("%+v", ch.SLRUTruncates)
	}
	if g, err := st.Redo(rec); err != nil || g != 1<<ControlRest || st.OldestMulti != 2048*32*3+1 || st.OldestMultiDB != 5 {
		t.Errorf("%v %v %+v", g, err, st)
	}
	if got := SLRUSegmentsBefore(&ch.SLRUTruncates[1], []uint32{0, 1, 2, 3, 4, 0x8000, 0xFFFF}); len(got) != 4 || got[0] != 0 || got[1] != 1 || got[2] != 2 || got[3] != 0xFFFF {
		t.Errorf("segments %v", got)
	}
	// One step back from the first entry of a page, and from the first multixact.
	for end, page := range map[uint32]uint32{2048: 0, 1: 0x1FFFFF} {
		rec := record(15, wal.RmMultiXact, 0x30, 0, uint32(5), uint32(1), end, uint32(0), uint32(0))
		if ch := touched(t, rec, &st); ch.SLRUTruncates[1].Page != page {
			t.Errorf("end %d: page %d, want %d", end, ch.SLRUTruncates[1].Page, page)
		}
	}
}

func TestMembersSegmentsWrapAround(t *testing.T) {
	tr := SLRUTruncate{SLRU: pg.MultiXactMembers, Members: true, StartSegment: memberSegments - 2, EndSegment: 2}
	for s, want := range map[uint32]bool{memberSegments - 3: false, memberSegments - 2: true, memberSegments - 1: true, memberSegments: false, 0: true, 1: true, 2: false} {
		if tr.Deletes(s) != want {
			t.Errorf("segment %#x: %v", s, !want)
		}
	}
	if memberSegments-1 != 0x14078 {
		t.Errorf("the last segment is %#x", memberSegments-1)
	}
	none := SLRUTruncate{SLRU: pg.MultiXactMembers, Members: true, StartSegment: 7, EndSegment: 7}
	if none.Deletes(7) || none.Deletes(6) {
		t.Error("an empty range deletes")
	}
}

// The properties that slru.c's own test of PagePrecedes functions checks (SlruPagePrecedesTestOffset).
func TestPagePrecedes(t *testing.T) {
	for _, tt := range []struct {
		s       pg.SLRU
		perPage uint64
	}{{pg.Xact, pg.XactsPerPage}, {pg.CommitTs, pg.CommitTsPerPage}, {pg.MultiXactOffsets, pg.MultiXactOffsetsPerPage}, {pg.MultiXactMembers, pg.MembersPerPage}} {
		last := uint32((1<<32 - 1) / tt.perPage)
		for _, newest := range []uint64{1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1<<32 - 1<<20} {
			page := uint32(newest / tt.perPage)
			if PagePrecedes(tt.s, page, page) {
				t.Errorf("%s: page %d precedes itself", tt.s, page)
			}
			if page < last && (!PagePrecedes(tt.s, page, page+1) || PagePrecedes(tt.s, page+1, page)) {
				t.Errorf("%s: page %d and the next are not in order", tt.s, page)
			}
			oldest := uint32((newest + 1<<31) % (1 << 32) / tt.perPage) // half the circle away: the oldest that may be in use
			if PagePrecedes(tt.s, page, oldest) && PagePrecedes(tt.s, oldest, page) {
				t.Errorf("%s: pages %d and %d precede each other", tt.s, page, oldest)
			}
			if MayDeleteSegment(tt.s, page/32, oldest) {
				t.Errorf("%s: a truncation to the oldest page %d deletes the newest page %d", tt.s, oldest, page)
			}
		}
		if !PagePrecedes(tt.s, last, 1) || PagePrecedes(tt.s, 1, last) {
			t.Errorf("%s: the order does not go on after the last page", tt.s)
		}
		if !MayDeleteSegment(tt.s, 0, 32) || MayDeleteSegment(tt.s, 0, 31) || MayDeleteSegment(tt.s, 1, 32) {
			t.Errorf("%s: segments before page 32", tt.s)
		}
	}
}

func TestMultiRefusals(t *testing.T) {
	var ch Changes
	for name, rec := range map[string]*wal.Record{
		"bad status":      record(15, wal.RmMultiXact, 0x20, 0, uint32(1), uint32(1), int32(1), uint32(700), uint32(6)),
		"negative count":  record(15, wal.RmMultiXact, 0x20, 0, uint32(1), uint32(1), int32(-1), uint32(700), uint32(1)),
		"missing member":  record(15, wal.RmMultiXact, 0x20, 0, uint32(1), uint32(1), int32(2), uint32(700), uint32(1)),
		"short zero page": record(17, wal.RmMultiXact, 0x00, 0, int32(1)),
		"wide zero page":  record(17, wal.RmMultiXact, 0x10, 0, int64(1)<<32),
		"short truncate":  record(15, wal.RmMultiXact, 0x30, 0, uint32(1), uint32(1), uint32(1), uint32(1)),
	} {
		st := ControlState{NextXID: 600}
		if err := Touch(rec, &st, &ch); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
