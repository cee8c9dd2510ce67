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

func gnPage(t testing.TB, flags uint16, items ...[]byte) pg.Page {
	t.Helper()
	p := btZero()
	ginInit(p, flags)
	for i, item := range items {
		if err := addItem(p, item, pg.OffsetNumber(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// gnTree makes a posting tree's inner page: children with keys (child, 1).
func gnTree(children ...int) pg.Page {
	p := btZero()
	ginInit(p, ginData)
	for i, c := range children {
		copy(p[ginDataStart+ginPostingItem*i:], gnItem(c))
	}
	ginOpaque(p[ginSpecial:]).setMaxOff(uint16(len(children)))
	ginSetDataSize(p, ginPostingItem*len(children))
	return p
}

func gnItem(child int) []byte {
	b := make([]byte, 4)
	putBlockID(b, pg.BlockNumber(child))
	tid := makeTID(pg.BlockNumber(child), 1)
	return append(b, tid[:]...)
}

func gnLeaf(segments ...[]byte) pg.Page {
	p := btZero()
	ginInit(p, ginData|ginLeaf|ginCompressed)
	ginSetDataSize(p, copy(p[ginDataStart:], slices.Concat(segments...)))
	return p
}

func gnDelta(info, part uint8, main, data []byte) *Delta {
	return &Delta{Major: 15, LSN: 0x100, Rmgr: wal.RmGin, Info: info, Part: part, Main: main, Data: data}
}

// gnShow prints a page: opaque, then its items' first bytes, posting items or posting lists.
func gnShow(p pg.Page) string {
	if !p.Valid() {
		return "invalid"
	}
	o := ginOpaque(p[ginSpecial:])
	s := fmt.Sprintf("flags=%02x right=%d max=%d", o.flags(), int32(binary.LittleEndian.Uint32(o)), o.maxOff())
	switch {
	case o.flags()&ginDeleted != 0:
		s += fmt.Sprintf(" xid=%d", p.PruneXID())
	case o.flags()&ginMeta != 0:
		s += fmt.Sprintf(" %x", p[24:p.Lower()])
	case o.flags()&(ginData|ginLeaf) == ginData:
		for b := p[ginDataStart:p.Lower()]; len(b) > 0; b = b[ginPostingItem:] {
			s += fmt.Sprintf(" (%d,%d)->%d", blockID(b[4:]), binary.LittleEndian.Uint16(b[8:]), blockID(b))
		}
	case o.flags()&ginData != 0:
		for _, list := range gnLists(p) {
			s += fmt.Sprintf(" %v", list)
		}
	default:
		for i := 1; i <= p.ItemCount(); i++ {
			item := p[p.Item(pg.OffsetNumber(i)).Offset():]
			s += fmt.Sprintf(" %s", bytes.TrimRight(item[8:16], "\x00"))
			if o.flags()&(ginLeaf|ginList) == 0 {
				s += fmt.Sprintf("->%d.%d", blockID(item), binary.LittleEndian.Uint16(item[4:]))
			}
		}
	}
	return s
}

func TestGinRecords(t *testing.T) {
	a, b, c := btTuple("a", btTID{1, 7}), btTuple("b", btTID{2, 7}), btTuple("c", btTID{3, 7})
	meta := bytes.Repeat([]byte{0xAB}, ginMetaSize)
	update := func(prevTail, right, tuples int) []byte {
		return slices.Concat(make([]byte, 16), meta, u32(prevTail, right, tuples, 0))
	}
	children := func(left, right int) []byte {
		b := make([]byte, 8)
		putBlockID(b, pg.BlockNumber(left))
		putBlockID(b[4:], pg.BlockNumber(right))
		return b
	}
	entry := func(off int, replace byte, tuple []byte) []byte {
		return slices.Concat(u16(off), []byte{replace, 0xEE}, tuple)
	}
	lists := slices.Concat(gnSegment(1, 2, 3), gnSegment(9000, 9001))
	for _, tc := range []struct {
		name string
		page pg.Page
		d    *Delta
		want string
	}{
		{"CREATE_PTREE", btZero(), gnDelta(ginCreatePTree, 0, slices.Concat(u32(len(lists)), lists), nil), "flags=83 right=-1 max=0 [1 2 3] [9000 9001]"},
		{"INSERT entry leaf", gnPage(t, ginLeaf, a, c), gnDelta(ginInsert, 0, u16(ginInsertIsLeaf), entry(2, 0, b)), "flags=02 right=-1 max=0 a b c"},
		{"INSERT entry leaf, replacing", gnPage(t, ginLeaf, a, c), gnDelta(ginInsert, 0, u16(ginInsertIsLeaf), entry(2, 1, b)), "flags=02 right=-1 max=0 a b"},
		{"INSERT entry inner", gnPage(t, 0, a, c), gnDelta(ginInsert, 0, slices.Concat(u16(0), children(2, 70000)), entry(2, 0, b)),
			"flags=00 right=-1 max=0 a->1.7 b->2.7 c->70000.0"},
		{"INSERT child", gnPage(t, ginLeaf|ginIncompleteSplit, a), gnDelta(ginInsert, 1, slices.Concat(u16(0), children(2, 70000)), nil), "flags=02 right=-1 max=0 a"},
		{"INSERT data inner", gnTree(5, 6, 7), gnDelta(ginInsert, 0, slices.Concat(u16(ginInsertIsData), children(2, 70000)), slices.Concat(u16(2), gnItem(80000))),
			"flags=01 right=-1 max=4 (5,1)->5 (80000,1)->80000 (6,1)->70000 (7,1)->7"},
		{"INSERT data leaf", gnLeaf(gnSegment(1, 2), gnSegment(10, 20)), gnDelta(ginInsert, 0, u16(ginInsertIsData|ginInsertIsLeaf), gnActions(gnAdd(1, 15, 300))),
			"flags=83 right=-1 max=0 [1 2] [10 15 20 300]"},
		{"SPLIT child", gnTree(5), gnDelta(ginSplit, 3, make([]byte, 28), nil), "flags=01 right=-1 max=1 (5,1)->5"},
		{"VACUUM_DATA_LEAF_PAGE", gnLeaf(gnSegment(1, 2), gnSegment(10, 20)), gnDelta(ginVacuumDataLeafPage, 0, nil, gnActions([]byte{0, ginSegmentDelete})),
			"flags=83 right=-1 max=0 [10 20]"},
		{"DELETE_PAGE", gnLeaf(), gnDelta(ginDeletePage, 0, slices.Concat(u16(2, 0xEEEE), u32(8, 777)), nil), "flags=87 right=-1 max=0 xid=777"},
		{"DELETE_PAGE parent", gnTree(5, 6, 7), gnDelta(ginDeletePage, 1, slices.Concat(u16(2, 0xEEEE), u32(8, 777)), nil), "flags=01 right=-1 max=2 (5,1)->5 (7,1)->7"},
		{"DELETE_PAGE left", gnLeaf(gnSegment(1)), gnDelta(ginDeletePage, 2, slices.Concat(u16(2, 0xEEEE), u32(8, 777)), nil), "flags=83 right=8 max=0 [1]"},
		{"UPDATE_META_PAGE", btZero(), gnDelta(ginUpdateMetaPage, 0, update(1, 2, 0), nil), fmt.Sprintf("flags=08 right=-1 max=0 %x", meta)},
		{"UPDATE_META_PAGE tuples", gnPage(t, ginList, a), gnDelta(ginUpdateMetaPage, 1, update(-1, -1, 2), slices.Concat(b, c)), "flags=10 right=-1 max=1 a b c"},
		{"UPDATE_META_PAGE tail", gnPage(t, ginList, a), gnDelta(ginUpdateMetaPage, 1, update(1, 2, 0), nil), "flags=10 right=2 max=0 a"},
		{"INSERT_LISTPAGE last", btZero(), gnDelta(ginInsertListPage, 0, u32(-1, 2), slices.Concat(a, b)), "flags=30 right=-1 max=1 a b"},
		{"INSERT_LISTPAGE", btZero(), gnDelta(ginInsertListPage, 0, u32(9, 1), a), "flags=10 right=9 max=0 a"},
		{"DELETE_LISTPAGE meta", btZero(), gnDelta(ginDeleteListPage, 0, slices.Concat(meta, u32(2, 0)), nil), fmt.Sprintf("flags=08 right=-1 max=0 %x", meta)},
		{"DELETE_LISTPAGE", gnPage(t, ginList, a), gnDelta(ginDeleteListPage, 2, slices.Concat(meta, u32(2, 0)), nil), "flags=04 right=-1 max=0 xid=0"},
	} {
		if err := ginManager.apply(tc.page, tc.d); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		} else if got := gnShow(tc.page); got != tc.want {
			t.Errorf("%s:\n%s, want\n%s", tc.name, got, tc.want)
		}
	}
}

func TestGinRefuses(t *testing.T) {
	a := btTuple("a", btTID{1, 7})
	inner := slices.Concat(u16(0), make([]byte, 8))
	dataInner := slices.Concat(u16(ginInsertIsData), make([]byte, 8))
	entry := slices.Concat(u16(1, 0), a)
	full := make([]int, 815)
	for name, tc := range map[string]struct {
		page pg.Page
		d    *Delta
	}{
		"not a gin page":                   {btPage(t, 0, 0, 0, btpLeaf), gnDelta(ginInsert, 0, u16(ginInsertIsLeaf), entry)},
		"entry into a list page":           {gnPage(t, ginList), gnDelta(ginInsert, 0, u16(ginInsertIsLeaf), entry)},
		"entry into a posting tree":        {gnLeaf(), gnDelta(ginInsert, 0, u16(ginInsertIsLeaf), entry)},
		"leaf entry into an inner page":    {gnPage(t, 0), gnDelta(ginInsert, 0, u16(ginInsertIsLeaf), entry)},
		"inner entry into a leaf":          {gnPage(t, ginLeaf, a), gnDelta(ginInsert, 0, inner, entry)},
		"downlink of an item beyond":       {gnPage(t, 0), gnDelta(ginInsert, 0, inner, entry)},
		"children cut":                     {gnPage(t, 0, a), gnDelta(ginInsert, 0, inner[:9], entry)},
		"tuple cut":                        {gnPage(t, ginLeaf), gnDelta(ginInsert, 0, u16(ginInsertIsLeaf), entry[:15])},
		"tuple longer than it says":        {gnPage(t, ginLeaf), gnDelta(ginInsert, 0, u16(ginInsertIsLeaf), append(slices.Clone(entry), 0))},
		"replaced tuple above the leaves":  {gnPage(t, 0, a), gnDelta(ginInsert, 0, inner, slices.Concat(u16(1, 1), a))},
		"posting item 0":                   {gnTree(5), gnDelta(ginInsert, 0, dataInner, slices.Concat(u16(0), gnItem(1)))},
		"posting item beyond":              {gnTree(5), gnDelta(ginInsert, 0, dataInner, slices.Concat(u16(2), gnItem(1)))},
		"posting item cut":                 {gnTree(5), gnDelta(ginInsert, 0, dataInner, slices.Concat(u16(1), gnItem(1)[:9]))},
		"posting item on a full page":      {gnTree(full...), gnDelta(ginInsert, 0, dataInner, slices.Concat(u16(1), gnItem(1)))},
		"posting item into a leaf":         {gnLeaf(gnSegment(1)), gnDelta(ginInsert, 0, dataInner, slices.Concat(u16(1), gnItem(1)))},
		"split without image":              {gnPage(t, 0), gnDelta(ginSplit, 0, make([]byte, 28), nil)},
		"vacuum without image":             {gnPage(t, 0), gnDelta(ginVacuumPage, 0, nil, nil)},
		"tree of more than it bears":       {btZero(), gnDelta(ginCreatePTree, 0, u32(8), nil)},
		"tree that doesn't fit":            {btZero(), gnDelta(ginCreatePTree, 0, slices.Concat(u32(8153), make([]byte, 8153)), nil)},
		"deleted page of the entry tree":   {gnPage(t, ginLeaf), gnDelta(ginDeletePage, 0, make([]byte, 12), nil)},
		"downlink 0 deleted":               {gnTree(5), gnDelta(ginDeletePage, 1, make([]byte, 12), nil)},
		"downlink beyond deleted":          {gnTree(5), gnDelta(ginDeletePage, 1, slices.Concat(u16(2, 0), u32(1, 1)), nil)},
		"fewer pending tuples than said":   {gnPage(t, ginList), gnDelta(ginUpdateMetaPage, 1, slices.Concat(make([]byte, 80), u32(2, 0)), a)},
		"pending tuples into another page": {gnPage(t, ginLeaf), gnDelta(ginUpdateMetaPage, 1, slices.Concat(make([]byte, 80), u32(1, 0)), a)},
		"many pending tuples":              {btZero(), gnDelta(ginInsertListPage, 0, u32(-1, -1), a)},
		"neither tuples nor a new tail":    {gnPage(t, ginList), gnDelta(ginUpdateMetaPage, 1, slices.Concat(make([]byte, 72), u32(-1, 5, 0, 0)), nil)},
		"metadata cut":                     {btZero(), gnDelta(ginUpdateMetaPage, 0, make([]byte, 83), nil)},
		"more pages deleted than said":     {btZero(), gnDelta(ginDeleteListPage, 3, slices.Concat(make([]byte, 56), u32(2, 0)), nil)},
		"a type that there never was":      {btZero(), gnDelta(0xA0, 0, nil, nil)},
	} {
		if err := ginManager.apply(tc.page, tc.d); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestGinMask(t *testing.T) {
	a := btTuple("a", btTID{1, 7})
	mask := func(p pg.Page) pg.Page { ginMask(p, pg.PageKey{}); return p }
	p := gnPage(t, ginLeaf, a)
	p.SetLSN(5)
	p[1000] = 1 // in the hole
	if !bytes.Equal(mask(p), mask(gnPage(t, ginLeaf, a))) {
		t.Error("the LSN or the hole isn't masked")
	}
	if !bytes.Equal(mask(gnPage(t, ginDeleted, a)), mask(gnPage(t, ginDeleted))) {
		t.Error("a deleted page's content isn't masked")
	}
	if bytes.Equal(mask(gnPage(t, ginLeaf|ginIncompleteSplit, a)), mask(gnPage(t, ginLeaf, a))) {
		t.Error("flags are masked")
	}
	// Before 9.4 pd_lower was not set on pages of posting trees, so what seems their hole is compared.
	old, other := gnPage(t, ginData), gnPage(t, ginData)
	old[1000] = 1
	if bytes.Equal(mask(old), mask(other)) {
		t.Error("the data of a page without pd_lower are masked")
	}
}

func gnSeeds(t testing.TB) (seeds []func() (pg.Page, *Delta)) {
	a, b := btTuple("a", btTID{1, 7}), btTuple("b", btTID{1, 7})
	pages := map[string]pg.Page{"leaf": gnPage(t, ginLeaf, a, b), "inner": gnPage(t, 0, a, b), "tree": gnTree(5, 6, 7), "list": gnPage(t, ginList, a),
		"data": gnLeaf(gnSegment(1, 2), gnSegment(1000, 2000, 30000))}
	old := btZero()
	ginInit(old, ginData|ginLeaf)
	for i := range 5 {
		tid := makeTID(pg.BlockNumber(i), 3)
		copy(old[ginDataStart+6*i:], tid[:])
	}
	ginOpaque(old[ginSpecial:]).setMaxOff(5)
	pages["old"] = old
	dataLeaf := gnActions(gnAdd(0, 5), gnPut(1, ginSegmentReplace, 1001, 1002), gnPut(2, ginSegmentInsert, 40000))
	for _, s := range []struct {
		page string
		d    *Delta
	}{
		{"leaf", gnDelta(ginInsert, 0, u16(ginInsertIsLeaf), slices.Concat(u16(2, 1), b))},
		{"inner", gnDelta(ginInsert, 0, slices.Concat(u16(0), make([]byte, 8)), slices.Concat(u16(2, 0), b))},
		{"tree", gnDelta(ginInsert, 0, slices.Concat(u16(ginInsertIsData), make([]byte, 8)), slices.Concat(u16(2), gnItem(9)))},
		{"data", gnDelta(ginInsert, 0, u16(ginInsertIsData|ginInsertIsLeaf), dataLeaf)},
		{"old", gnDelta(ginVacuumDataLeafPage, 0, nil, gnActions(gnAdd(0, 5)))},
		{"data", gnDelta(ginVacuumDataLeafPage, 0, nil, gnActions([]byte{0, ginSegmentDelete}))},
		{"tree", gnDelta(ginDeletePage, 1, slices.Concat(u16(2, 0), u32(1, 1)), nil)},
		{"data", gnDelta(ginDeletePage, 0, slices.Concat(u16(2, 0), u32(1, 1)), nil)},
		{"list", gnDelta(ginUpdateMetaPage, 1, slices.Concat(make([]byte, 80), u32(2, 0)), slices.Concat(a, b))},
		{"list", gnDelta(ginInsertListPage, 0, u32(-1, 2), slices.Concat(a, b))},
		{"leaf", gnDelta(ginDeleteListPage, 0, slices.Concat(make([]byte, 56), u32(2, 0)), nil)},
		{"leaf", gnDelta(ginCreatePTree, 0, slices.Concat(u32(14), gnSegment(1, 2, 500, 7000)), nil)},
	} {
		seeds = append(seeds, func() (pg.Page, *Delta) { c := *s.d; return slices.Clone(pages[s.page]), &c })
	}
	return seeds
}

func TestGinDamaged(t *testing.T) { mutate(t, &ginManager, gnSeeds(t)...) }

func FuzzGinApply(f *testing.F) { fuzzApply(f, &ginManager, wal.RmGin, gnSeeds(f)...) }
