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

func giPage(t testing.TB, nsn pg.LSN, right pg.BlockNumber, flags uint16, items ...[]byte) pg.Page {
	t.Helper()
	p := pg.Page(make([]byte, pg.BlockSize))
	p.Init(16)
	o := gistOpaque(p[gistSpecial:])
	o.setNSN(nsn)
	o.setRightLink(right)
	o.setFlags(flags)
	binary.LittleEndian.PutUint16(o[14:], gistPageID)
	for i, item := range items {
		if err := addItem(p, item, pg.OffsetNumber(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func giDelta(info, part uint8, block pg.BlockNumber, main, data []byte, tags ...Tag) *Delta {
	return &Delta{Major: 15, LSN: 0x700000100, Rmgr: wal.RmGist, Info: info, Part: part, Key: pg.PageKey{Block: block}, Main: main, Data: data, Tags: tags}
}

// giShow prints a page: opaque, then each item's first bytes in line pointer order, and the items' order in the page.
func giShow(p pg.Page) string {
	if !p.Valid() {
		return "invalid"
	}
	o := p[gistSpecial:]
	s := fmt.Sprintf("nsn=%s right=%d flags=%02x", pg.Page(o).LSN(), int32(binary.LittleEndian.Uint32(o[8:])), binary.LittleEndian.Uint16(o[12:]))
	if o[12]&gistDeleted != 0 {
		return s + fmt.Sprintf(" xid=%x", binary.LittleEndian.Uint64(p[pg.PageHeaderSize:]))
	}
	for i := 1; i <= p.ItemCount(); i++ {
		id := p.Item(pg.OffsetNumber(i))
		s += fmt.Sprintf(" %s@%d", bytes.TrimRight(p[id.Offset()+8:][:8], "\x00"), gistSpecial-id.Offset())
	}
	return s
}

func TestGistRecords(t *testing.T) {
	a, b, c := btTuple("a", btTID{1, 1}), btTuple("b", btTID{1, 2}), btTuple("c", btTID{1, 3})
	long := btTuple("long key of 24 bytes....", btTID{1, 3})
	split := func(pages int, leaf, follow byte) []byte {
		return slices.Concat(u32(77, 0, 0x55, 3), []byte{leaf, 0}, u16(pages), []byte{follow, 0, 0, 0})
	}
	tags := []Tag{{ID: 1, Block: 5}, {ID: 2, Block: 8}, {ID: 3, Block: 9}}
	rootTags := []Tag{{ID: 1, Block: 0}, {ID: 2, Block: 8}, {ID: 3, Block: 9}}
	for _, tc := range []struct {
		name  string
		page  pg.Page
		d     *Delta
		want  string
		image bool // the change is made to a restored image too, and by it alone
	}{
		{name: "PAGE_UPDATE adds", page: giPage(t, 1, 2, gistLeaf, a), d: giDelta(gistPageUpdate, 0, 5, u16(0, 2), slices.Concat(b, c)),
			want: "nsn=0/1 right=2 flags=01 a@16 b@32 c@48"},
		{name: "PAGE_UPDATE to an empty page", page: giPage(t, 1, 2, gistLeaf), d: giDelta(gistPageUpdate, 0, 5, u16(0, 1), b),
			want: "nsn=0/1 right=2 flags=01 b@16"},
		{name: "PAGE_UPDATE one for one, longer", page: giPage(t, 1, 2, gistLeaf, a, b, c), d: giDelta(gistPageUpdate, 0, 5, u16(1, 1), slices.Concat(u16(2), long)),
			want: "nsn=0/1 right=2 flags=01 a@16 long key@48 c@64"},
		{name: "PAGE_UPDATE one for two", page: giPage(t, 1, 2, 0, a, b), d: giDelta(gistPageUpdate, 0, 5, u16(1, 2), slices.Concat(u16(1), c, c)),
			want: "nsn=0/1 right=2 flags=00 b@16 c@32 c@48"},
		{name: "PAGE_UPDATE of a leaf by vacuum", page: giPage(t, 1, 2, gistLeaf, a, b, c), d: giDelta(gistPageUpdate, 0, 5, u16(2, 0), u16(1, 3)),
			want: "nsn=0/1 right=2 flags=05 b@16"},
		{name: "PAGE_UPDATE child", page: giPage(t, 1, 2, gistLeaf|gistFollowRight, a), d: giDelta(gistPageUpdate, 1, 5, u16(0, 1), nil),
			want: "nsn=7/100 right=2 flags=01 a@16", image: true},
		{name: "DELETE", page: giPage(t, 1, 2, gistLeaf|gistHasGarbage, a, b, c), d: giDelta(gistDelete, 0, 5, slices.Concat(u32(9), u16(2, 1, 2)), nil),
			want: "nsn=0/1 right=2 flags=05 c@16"},
		{name: "PAGE_SPLIT first", page: btZero(), d: giDelta(gistPageSplit, 1, 5, split(3, 1, 1), slices.Concat(u32(2), a, b), tags[1:]...),
			want: "nsn=3/55 right=8 flags=09 a@16 b@32"},
		{name: "PAGE_SPLIT first, no follow-right", page: btZero(), d: giDelta(gistPageSplit, 1, 5, split(3, 0, 0), slices.Concat(u32(2), a, b), tags[1:]...),
			want: "nsn=3/55 right=8 flags=00 a@16 b@32"},
		{name: "PAGE_SPLIT second", page: btZero(), d: giDelta(gistPageSplit, 2, 8, split(3, 1, 1), slices.Concat(u32(1), long), tags[0], tags[2]),
			want: "nsn=3/55 right=9 flags=09 long key@32"},
		{name: "PAGE_SPLIT last", page: btZero(), d: giDelta(gistPageSplit, 3, 9, split(3, 1, 1), u32(0), tags[:2]...), want: "nsn=3/55 right=77 flags=01"},
		{name: "PAGE_SPLIT of a root", page: btZero(), d: giDelta(gistPageSplit, 1, 0, split(3, 1, 1), slices.Concat(u32(1), a), rootTags[1:]...),
			want: "nsn=3/55 right=-1 flags=00 a@16"},
		{name: "PAGE_SPLIT of a root, second", page: btZero(), d: giDelta(gistPageSplit, 2, 8, split(3, 1, 1), slices.Concat(u32(1), a), rootTags[0], rootTags[2]),
			want: "nsn=3/55 right=9 flags=01 a@16"},
		{name: "PAGE_SPLIT child", page: giPage(t, 1, 2, gistFollowRight, a), d: giDelta(gistPageSplit, 0, 5, split(3, 1, 1), nil),
			want: "nsn=7/100 right=2 flags=00 a@16", image: true},
		{name: "PAGE_DELETE leaf", page: giPage(t, 1, 2, gistLeaf), d: giDelta(gistPageDelete, 0, 5, slices.Concat(u32(6, 1), u16(2)), nil),
			want: "nsn=0/1 right=2 flags=03 xid=100000006"},
		{name: "PAGE_DELETE parent", page: giPage(t, 1, 2, 0, a, b, c), d: giDelta(gistPageDelete, 1, 5, slices.Concat(u32(6, 1), u16(2)), nil),
			want: "nsn=0/1 right=2 flags=00 a@16 c@32"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			restored, before := slices.Clone(tc.page), slices.Clone(tc.page)
			if err := gistManager.apply(tc.page, tc.d); err != nil {
				t.Fatal(err)
			}
			if got := giShow(tc.page); got != tc.want {
				t.Fatalf("the page is\n%s, want\n%s", got, tc.want)
			}
			if err := gistManager.afterImage(restored, tc.d); err != nil {
				t.Fatal(err)
			}
			want := before
			if tc.image {
				want = tc.page
			}
			if !bytes.Equal(restored, want) {
				t.Fatalf("a restored page is\n%s, want\n%s", giShow(restored), giShow(want))
			}
		})
	}
}

// TestGistDeleteLayout holds that offsets lie behind a flag and its padding from 16 on.
func TestGistDeleteLayout(t *testing.T) {
	for _, major := range pg.Majors() {
		main := slices.Concat(u32(9), u16(1))
		if major >= 16 {
			main = append(main, 1, 0xEE)
		}
		d := giDelta(gistDelete, 0, 5, append(main, u16(1)...), nil)
		d.Major = major
		p := giPage(t, 1, 2, gistLeaf, btTuple("a", btTID{1, 1}), btTuple("b", btTID{1, 1}))
		if err := gistManager.apply(p, d); err != nil || giShow(p) != "nsn=0/1 right=2 flags=05 b@16" {
			t.Errorf("%d: %v, %s", major, err, giShow(p))
		}
	}
}

func TestGistRefuses(t *testing.T) {
	a := btTuple("a", btTID{1, 1})
	leaf := func(items ...[]byte) pg.Page { return giPage(t, 1, 2, gistLeaf, items...) }
	split := slices.Concat(u32(77, 0, 0x55, 3), []byte{1, 0}, u16(2), []byte{1, 0, 0, 0})
	heap := btZero()
	heap.Init(0)
	for name, tc := range map[string]struct {
		page pg.Page
		d    *Delta
	}{
		"not a gist page":             {heap, giDelta(gistPageUpdate, 0, 5, u16(0, 1), a)},
		"main data cut":               {leaf(), giDelta(gistPageUpdate, 0, 5, u16(0), a)},
		"fewer tuples than said":      {leaf(), giDelta(gistPageUpdate, 0, 5, u16(0, 2), a)},
		"more tuples than said":       {leaf(), giDelta(gistPageUpdate, 0, 5, u16(0, 0), a)},
		"offsets cut":                 {leaf(a), giDelta(gistPageUpdate, 0, 5, u16(2, 0), u16(1))},
		"replaced beyond":             {leaf(a), giDelta(gistPageUpdate, 0, 5, u16(1, 1), slices.Concat(u16(2), a))},
		"replaced by two":             {leaf(a), giDelta(gistPageUpdate, 0, 5, u16(1, 1), slices.Concat(u16(1), a, a))},
		"delete cut":                  {leaf(a), giDelta(gistDelete, 0, 5, slices.Concat(u32(9), u16(2, 1)), nil)},
		"split without the next page": {btZero(), giDelta(gistPageSplit, 1, 5, split, u32(0))},
		"split without the first":     {btZero(), giDelta(gistPageSplit, 2, 5, split, u32(0))},
		"split into fewer pages":      {btZero(), giDelta(gistPageSplit, 3, 5, split, u32(0), Tag{ID: 1})},
		"split of too many tuples":    {btZero(), giDelta(gistPageSplit, 2, 5, split, u32(-1), Tag{ID: 1})},
		"deleted page with items":     {leaf(a), giDelta(gistPageDelete, 0, 5, slices.Concat(u32(6, 1), u16(2)), nil)},
		"downlink beyond":             {leaf(a), giDelta(gistPageDelete, 1, 5, slices.Concat(u32(6, 1), u16(2)), nil)},
		"page reuse names no page":    {leaf(a), giDelta(gistPageReuse, 0, 5, nil, nil)},
		"unknown type":                {leaf(a), giDelta(0x40, 0, 5, nil, nil)},
	} {
		if err := gistManager.apply(tc.page, tc.d); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestGistMask(t *testing.T) {
	a := btTuple("a", btTID{1, 1})
	dead := giPage(t, 99, 2, gistLeaf|gistHasGarbage|gistTuplesDeleted|gistFollowRight, a)
	dead.SetItem(1, pg.NewItemID(dead.Item(1).Offset(), pg.LPDead, dead.Item(1).Length()))
	live := giPage(t, 1, 2, gistLeaf, a)
	other := giPage(t, 1, 3, gistLeaf, a)
	for _, p := range []pg.Page{dead, live, other} {
		gistManager.mask(p, pg.PageKey{})
	}
	if !bytes.Equal(dead, live) {
		t.Error("NSN, dead tuples or the flags of them aren't masked")
	}
	if bytes.Equal(live, other) {
		t.Error("the mask hides the right link")
	}
}

func giSeeds(t testing.TB) (seeds []func() (pg.Page, *Delta)) {
	a, b := btTuple("a", btTID{1, 1}), btTuple("b", btTID{1, 2})
	split := slices.Concat(u32(77, 0, 0x55, 3), []byte{1, 0}, u16(2), []byte{1, 0, 0, 0})
	tags := []Tag{{ID: 1, Block: 1}, {ID: 2, Block: 2}}
	for _, d := range []*Delta{
		giDelta(gistPageUpdate, 0, 5, u16(0, 2), slices.Concat(a, b)),
		giDelta(gistPageUpdate, 0, 5, u16(1, 1), slices.Concat(u16(2), a)),
		giDelta(gistPageUpdate, 0, 5, u16(3, 0), u16(1, 3, 4)),
		giDelta(gistPageUpdate, 1, 5, u16(3, 0), nil),
		giDelta(gistDelete, 0, 5, slices.Concat(u32(9), u16(3, 1, 2, 4)), nil),
		giDelta(gistPageSplit, 1, 5, split, slices.Concat(u32(2), a, b), tags...),
		giDelta(gistPageSplit, 2, 5, split, slices.Concat(u32(2), a, b), tags...),
		giDelta(gistPageDelete, 1, 5, slices.Concat(u32(6, 1), u16(2)), nil),
	} {
		seeds = append(seeds, func() (pg.Page, *Delta) { c := *d; return giPage(t, 1, 2, gistLeaf, a, b, a, b), &c })
	}
	return seeds
}

func TestGistDamaged(t *testing.T) { mutate(t, &gistManager, giSeeds(t)...) }

func FuzzGistApply(f *testing.F) { fuzzApply(f, &gistManager, wal.RmGist, giSeeds(f)...) }
