package redo

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

func brPage(t testing.TB, typ uint16, items ...[]byte) pg.Page {
	t.Helper()
	p := btZero()
	brinInit(p, typ)
	for i, item := range items {
		if err := addItem(p, item, pg.OffsetNumber(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func brDelta(info, part uint8, main, data []byte, tags ...Tag) *Delta {
	return &Delta{Major: 15, LSN: 0x100, Rmgr: wal.RmBRIN, Info: info, Part: part, Key: pg.PageKey{Block: 70000}, Main: main, Data: data, Tags: tags}
}

// brShow prints a page: its type, metadata or the set pointers of a range map, then each item's first byte and distance from the page's end.
func brShow(p pg.Page) string {
	if !p.Valid() {
		return "invalid"
	}
	switch brinPageType(p) {
	case brinMeta:
		s := fmt.Sprintf("meta lower=%d:", p.Lower())
		for at := 24; at < 40; at += 4 {
			s += fmt.Sprintf(" %x", binary.LittleEndian.Uint32(p[at:]))
		}
		return s
	case brinRevmap:
		s := fmt.Sprintf("map lower=%d:", p.Lower())
		for i := range brinMapItems {
			if tid := p[24+6*i:][:6]; !bytes.Equal(tid, make([]byte, 6)) {
				s += fmt.Sprintf(" %d=(%d,%d)", i, int32(blockID(tid)), binary.LittleEndian.Uint16(tid[4:]))
			}
		}
		return s
	}
	s := fmt.Sprintf("regular upper=%d:", p.Upper())
	for i := 1; i <= p.ItemCount(); i++ {
		if id := p.Item(pg.OffsetNumber(i)); id.Length() == 0 {
			s += " -"
		} else {
			s += fmt.Sprintf(" %c%d@%d", p[id.Offset()], id.Length(), brinSpecial-id.Offset())
		}
	}
	return s
}

func TestBRINRecords(t *testing.T) {
	item := func(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }
	insert := slices.Concat(u32(2722, 2), u16(2)) // range 1361 is the second map page's number 1
	update := slices.Concat(u16(1, 0xEEEE), insert)
	gap := brPage(t, brinRegular, item('a', 16), item('b', 16), item('c', 16))
	if err := brinDelete(gap, 2); err != nil {
		t.Fatal(err)
	}
	set := brPage(t, brinRevmap)
	if err := brinSetPointer(set, 1, 3, makeTID(5, 6)); err != nil {
		t.Fatal(err)
	}
	regular := Tag{ID: 0, Block: 70001}
	for _, tc := range []struct {
		name string
		page pg.Page
		d    *Delta
		want string
	}{
		{"CREATE_INDEX", btZero(), brDelta(brinCreateIndex, 0, slices.Concat(u32(128), u16(1)), nil), "meta lower=40: a8109cfa 1 80 0"},
		{"INSERT", brPage(t, brinRegular, item('a', 16)), brDelta(brinInsert, 0, insert, item('b', 20)), "regular upper=8144: a16@16 b20@40"},
		{"INSERT into a free line pointer", gap, brDelta(brinInsert, 0, insert, item('d', 24)), "regular upper=8128: a16@16 d24@56 c16@32"},
		{"INSERT+INIT", btZero(), brDelta(brinInsert|initBit, 0, slices.Concat(u32(0, 1), u16(1)), item('a', 16)), "regular upper=8168: a16@16"},
		{"INSERT map", brPage(t, brinRevmap), brDelta(brinInsert, 1, insert, nil, regular), "map lower=24: 1=(70001,2)"},
		{"UPDATE", brPage(t, brinRegular, item('a', 16)), brDelta(brinUpdate, 0, update, item('b', 20)), "regular upper=8144: a16@16 b20@40"},
		{"UPDATE map", brPage(t, brinRevmap), brDelta(brinUpdate, 1, update, nil, regular), "map lower=24: 1=(70001,2)"},
		{"UPDATE old page", brPage(t, brinRegular, item('a', 16), item('b', 16)), brDelta(brinUpdate, 2, update, nil), "regular upper=8168: - b16@16"},
		{"SAMEPAGE_UPDATE", brPage(t, brinRegular, item('a', 16), item('b', 16)), brDelta(brinSamepageUpdate, 0, u16(1), item('c', 30)),
			"regular upper=8136: c30@32 b16@48"},
		{"REVMAP_EXTEND meta", func() pg.Page {
			p := brPage(t, brinMeta)
			copy(p[24:], u32(1, 2, 3, 4))
			return p
		}(), brDelta(brinRevmapExtend, 0, u32(5), nil), "meta lower=40: 1 2 3 5"},
		{"REVMAP_EXTEND map", brPage(t, brinRegular, item('a', 16)), brDelta(brinRevmapExtend, 1, u32(5), nil), "map lower=24:"},
		{"DESUMMARIZE map", set, brDelta(brinDesummarize, 0, slices.Concat(u32(1, 3), u16(2)), nil), "map lower=24: 3=(-1,0)"},
		{"DESUMMARIZE tuple", brPage(t, brinRegular, item('a', 16), item('b', 16)), brDelta(brinDesummarize, 1, slices.Concat(u32(1, 3), u16(2)), nil),
			"regular upper=8168: a16@16"},
	} {
		if err := brinManager.apply(tc.page, tc.d); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		} else if got := brShow(tc.page); got != tc.want {
			t.Errorf("%s:\n%s, want\n%s", tc.name, got, tc.want)
		}
	}
}

func TestBRINRefuses(t *testing.T) {
	a := bytes.Repeat([]byte{1}, 16)
	insert := slices.Concat(u32(0, 1), u16(2))
	for name, tc := range map[string]struct {
		page pg.Page
		d    *Delta
	}{
		"tuple into the range map":        {brPage(t, brinRevmap), brDelta(brinInsert, 0, slices.Concat(u32(0, 1), u16(1)), a)},
		"pointer into a regular page":     {brPage(t, brinRegular), brDelta(brinInsert, 1, insert, nil, Tag{})},
		"pointer without the page":        {brPage(t, brinRevmap), brDelta(brinInsert, 1, insert, nil)},
		"ranges of 0 pages":               {brPage(t, brinRevmap), brDelta(brinInsert, 1, slices.Concat(u32(0, 0), u16(2)), nil, Tag{})},
		"tuple beyond the next offset":    {brPage(t, brinRegular), brDelta(brinInsert, 0, insert, a)},
		"tuple at offset 0":               {brPage(t, brinRegular), brDelta(brinInsert, 0, slices.Concat(u32(0, 1), u16(0)), a)},
		"tuple at an offset in use":       {brPage(t, brinRegular, a, a), brDelta(brinInsert, 0, insert, a)},
		"no tuple":                        {brPage(t, brinRegular, a), brDelta(brinInsert, 0, insert, nil)},
		"update cut":                      {brPage(t, brinRegular, a), brDelta(brinUpdate, 0, slices.Concat(u16(1, 0), insert)[:13], a)},
		"old tuple beyond":                {brPage(t, brinRegular, a), brDelta(brinUpdate, 2, slices.Concat(u16(2, 0), insert), nil)},
		"insert has no third page":        {brPage(t, brinRegular, a), brDelta(brinInsert, 2, insert, nil)},
		"update beyond":                   {brPage(t, brinRegular, a), brDelta(brinSamepageUpdate, 0, u16(2), a)},
		"update that doesn't fit":         {brPage(t, brinRegular, a), brDelta(brinSamepageUpdate, 0, u16(1), make([]byte, 8170))},
		"extension of what is no index":   {brPage(t, brinRevmap), brDelta(brinRevmapExtend, 0, u32(5), nil)},
		"create cut":                      {btZero(), brDelta(brinCreateIndex, 0, u32(5), nil)},
		"desummarize cut":                 {brPage(t, brinRevmap), brDelta(brinDesummarize, 0, u32(5, 1), nil)},
		"a type that there never was":     {brPage(t, brinRegular), brDelta(0x60, 0, u32(5, 1), nil)},
		"another index method's page":     {btPage(t, 0, 0, 0, btpLeaf), brDelta(brinInsert, 0, slices.Concat(u32(0, 1), u16(1)), a)},
		"a page whose pointers are wrong": {func() pg.Page { p := brPage(t, brinRegular); p.SetLower(9000); return p }(), brDelta(brinUpdate, 2, slices.Concat(u16(1, 0), insert), nil)},
	} {
		if err := brinManager.apply(tc.page, tc.d); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestBRINMask(t *testing.T) {
	a := bytes.Repeat([]byte{1}, 16)
	p, q := brPage(t, brinRegular, a), brPage(t, brinRegular, a)
	p.SetLSN(9)
	p.SetFlags(pg.PageHasFreeLines)
	p[pg.BlockSize-4] = brinEvacuate
	p[100] = 7
	brinMask(p, pg.PageKey{})
	brinMask(q, pg.PageKey{})
	if !bytes.Equal(p, q) {
		t.Error("hints, the hole or the evacuation of a regular page aren't masked")
	}
	// A range map lies where other pages have their hole.
	p, q = brPage(t, brinRevmap), brPage(t, brinRevmap)
	p[100] = 7
	brinMask(p, pg.PageKey{})
	brinMask(q, pg.PageKey{})
	if bytes.Equal(p, q) {
		t.Error("a range map is masked")
	}
}

func brSeeds(t testing.TB) (seeds []func() (pg.Page, *Delta)) {
	a := bytes.Repeat([]byte{1}, 16)
	insert := slices.Concat(u32(2722, 2), u16(4))
	update := slices.Concat(u16(2, 0), insert)
	for _, d := range []*Delta{
		brDelta(brinInsert, 0, insert, a), brDelta(brinInsert|initBit, 0, insert, a), brDelta(brinUpdate, 2, update, nil),
		brDelta(brinSamepageUpdate, 0, u16(2), a[:7]), brDelta(brinDesummarize, 1, slices.Concat(u32(1, 3), u16(2)), nil),
		brDelta(brinInsert, 1, insert, nil, Tag{Block: 3}), brDelta(brinDesummarize, 0, slices.Concat(u32(1, 3), u16(2)), nil),
		brDelta(brinRevmapExtend, 0, u32(7), nil), brDelta(brinCreateIndex, 0, slices.Concat(u32(128), u16(1)), nil),
	} {
		for _, p := range []pg.Page{brPage(t, brinRegular, a, a, a), brPage(t, brinRevmap), brPage(t, brinMeta)} {
			seeds = append(seeds, func() (pg.Page, *Delta) { c := *d; return slices.Clone(p), &c })
		}
	}
	return seeds
}

func TestBRINDamaged(t *testing.T) { mutate(t, &brinManager, brSeeds(t)...) }

func FuzzBRINApply(f *testing.F) { fuzzApply(f, &brinManager, wal.RmBRIN, brSeeds(f)...) }
