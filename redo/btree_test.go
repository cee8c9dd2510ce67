package redo

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"everpage/wal"
	"everpage/wal/pg"
)

// btTID is a heap TID that tests can compare.
type btTID struct {
	block pg.BlockNumber
	off   pg.OffsetNumber
}

func (t btTID) bytes() []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(t.block>>16))
	b = binary.LittleEndian.AppendUint16(b, uint16(t.block))
	return binary.LittleEndian.AppendUint16(b, t.off)
}

// btTuple makes a leaf tuple of key (padded to 8 bytes) with one TID, or a posting list of several.
func btTuple(key string, tids ...btTID) []byte {
	b := make([]byte, 8, 64)
	b = append(b, key...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	info := uint16(0)
	if len(tids) == 1 {
		copy(b, tids[0].bytes())
	} else {
		binary.LittleEndian.PutUint16(b[2:], uint16(len(b)))
		binary.LittleEndian.PutUint16(b[4:], uint16(len(tids))|btIsPosting)
		info = indexAMReservedBit
		for _, t := range tids {
			b = append(b, t.bytes()...)
		}
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
	}
	binary.LittleEndian.PutUint16(b[6:], uint16(len(b))|info)
	return b
}

// btPivot makes a pivot tuple with a downlink.
func btPivot(key string, child pg.BlockNumber) []byte {
	b := btTuple(key, btTID{child, 1})
	info := binary.LittleEndian.Uint16(b[6:])
	binary.LittleEndian.PutUint16(b[6:], info|indexAMReservedBit)
	return b
}

// btPage makes a page whose items are added in order.
func btPage(t testing.TB, prev, next pg.BlockNumber, level uint32, flags uint16, items ...[]byte) pg.Page {
	t.Helper()
	p := pg.Page(make([]byte, pg.BlockSize))
	o := btreeInit(p)
	o.setPrev(prev)
	o.setNext(next)
	o.setLevel(level)
	o.setFlags(flags)
	o.setCycle(7)
	for i, item := range items {
		if err := addItem(p, item, pg.OffsetNumber(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// btShow prints a page: opaque, then each item's key and TIDs.
func btShow(p pg.Page) string {
	if !p.Valid() {
		return "invalid"
	}
	o := p[btreeSpecial:]
	var sb strings.Builder
	fmt.Fprintf(&sb, "prev=%d next=%d level=%d flags=%03x cycle=%d", binary.LittleEndian.Uint32(o), binary.LittleEndian.Uint32(o[4:]),
		binary.LittleEndian.Uint32(o[8:]), binary.LittleEndian.Uint16(o[12:]), binary.LittleEndian.Uint16(o[14:]))
	for i := 1; i <= p.ItemCount(); i++ {
		id := p.Item(pg.OffsetNumber(i))
		item := p[id.Offset() : id.Offset()+id.Length()]
		if binary.LittleEndian.Uint16(item[6:])&indexAMReservedBit != 0 && binary.LittleEndian.Uint16(item[4:])&btIsPosting == 0 {
			fmt.Fprintf(&sb, " [%s ->%d]", bytes.TrimRight(item[8:], "\x00"), btBlock(item))
			continue
		}
		key, tids, err := btreePosting(item)
		if err != nil {
			return err.Error()
		}
		fmt.Fprintf(&sb, " %s", bytes.TrimRight(key[8:], "\x00"))
		for ; len(tids) > 0; tids = tids[tidSize:] {
			fmt.Fprintf(&sb, "(%d,%d)", btBlock(tids), binary.LittleEndian.Uint16(tids[4:]))
		}
	}
	return sb.String()
}

func btBlock(tid []byte) int {
	return int(binary.LittleEndian.Uint16(tid))<<16 | int(binary.LittleEndian.Uint16(tid[2:]))
}

func u16(vs ...int) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint16(b, uint16(v))
	}
	return b
}

func u32(vs ...int) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return b
}

func btDelta(info, part uint8, main, data []byte, tags ...Tag) *Delta {
	return &Delta{Major: 15, LSN: 0x100, Rmgr: wal.RmBtree, Info: info, Part: part, Main: main, Data: data, Tags: tags}
}

func btZero() pg.Page { return pg.Page(make([]byte, pg.BlockSize)) }

func TestBtreeRecords(t *testing.T) {
	tid := func(b, o int) btTID { return btTID{pg.BlockNumber(b), pg.OffsetNumber(o)} }
	a, b, c, d := btTuple("a", tid(1, 1)), btTuple("b", tid(1, 2)), btTuple("c", tid(1, 3)), btTuple("d", tid(1, 4))
	posting := btTuple("p", tid(5, 1), tid(5, 3), tid(70000, 9))
	meta := slices.Concat(u32(4, 3, 1, 2, 0, 17), []byte{1, 0xEE, 0xEE, 0xEE})
	metaPage := func() pg.Page {
		p := btPage(t, 0, 0, 0, btpMeta)
		p.SetLower(72)
		copy(p[24:], slices.Concat(u32(0x053162, 4, 3, 1, 2, 0, 17, 0), []byte{0, 0, 0, 0, 0, 0, 0xF0, 0xBF, 1}))
		btreeOpaque(p[btreeSpecial:]).setCycle(0)
		return p
	}()

	for _, tc := range []struct {
		name string
		page pg.Page
		d    *Delta
		want string
		raw  pg.Page // whole page, instead of want
	}{
		{name: "INSERT_LEAF", page: btPage(t, 0, 0, 0, btpLeaf|btpRoot, a, c),
			d: btDelta(btreeInsertLeaf, 0, u16(2), b), want: "prev=0 next=0 level=0 flags=003 cycle=7 a(1,1) b(1,2) c(1,3)"},
		{name: "INSERT_UPPER", page: btPage(t, 0, 0, 1, btpRoot, btPivot("", 1), btPivot("m", 2)),
			d: btDelta(btreeInsertUpper, 0, u16(3), btPivot("t", 9)), want: "prev=0 next=0 level=1 flags=002 cycle=7 [ ->1] [m ->2] [t ->9]"},
		{name: "INSERT_UPPER child", page: btPage(t, 0, 2, 0, btpLeaf|btpIncompleteSplit, a),
			d: btDelta(btreeInsertUpper, 1, u16(3), nil), want: "prev=0 next=2 level=0 flags=001 cycle=7 a(1,1)"},
		{name: "INSERT_META child", page: btPage(t, 0, 2, 0, btpLeaf|btpIncompleteSplit, a),
			d: btDelta(btreeInsertMeta, 1, u16(3), nil), want: "prev=0 next=2 level=0 flags=001 cycle=7 a(1,1)"},
		{name: "INSERT_META meta", page: btZero(), d: btDelta(btreeInsertMeta, 2, u16(3), meta), raw: metaPage},
		{name: "META_CLEANUP", page: btZero(), d: btDelta(btreeMetaCleanup, 0, nil, meta), raw: metaPage},
		{name: "INSERT_POST", page: btPage(t, 0, 0, 0, btpLeaf, a, posting, btTuple("z", tid(2, 2))),
			d:    btDelta(btreeInsertPost, 0, u16(3), slices.Concat(u16(1), btTuple("p", tid(5, 2)))),
			want: "prev=0 next=0 level=0 flags=001 cycle=7 a(1,1) p(5,1)(5,2)(5,3) p(70000,9) z(2,2)"},
		{name: "SPLIT_L left leaf", page: btPage(t, 4, 6, 0, btpLeaf|btpSplitEnd|btpHasGarbage, btTuple("x", tid(9, 9)), a, b, d),
			d: btDelta(btreeSplitL, 0, slices.Concat(u32(0), u16(4, 4, 0)), slices.Concat(c, btPivot("d", 0)), Tag{ID: 1, Block: 12}, Tag{ID: 2, Block: 6}),
			// new item 4 is where d was; first right item is 4 (d) so c ends the left page
			want: "prev=4 next=12 level=0 flags=081 cycle=0 [d ->0] a(1,1) b(1,2) c(1,3)"},
		{name: "SPLIT_L in the middle", page: btPage(t, 4, 0, 0, btpLeaf, a, c, d),
			d:    btDelta(btreeSplitL, 0, slices.Concat(u32(0), u16(3, 2, 0)), slices.Concat(b, btPivot("d", 0)), Tag{ID: 1, Block: 12}),
			want: "prev=4 next=12 level=0 flags=081 cycle=0 [d ->0] a(1,1) b(1,2) c(1,3)"},
		{name: "SPLIT_L internal", page: btPage(t, 0, 0, 1, btpRoot, btPivot("", 1), btPivot("g", 2), btPivot("m", 3)),
			d:    btDelta(btreeSplitL, 0, slices.Concat(u32(1), u16(2, 2, 0)), slices.Concat(btPivot("c", 8), btPivot("g", 0)), Tag{ID: 1, Block: 12}, Tag{ID: 3, Block: 1}),
			want: "prev=0 next=12 level=1 flags=080 cycle=0 [g ->0] [ ->1] [c ->8]"},
		{name: "SPLIT_L posting", page: btPage(t, 4, 0, 0, btpLeaf, a, posting, d),
			d:    btDelta(btreeSplitL, 0, slices.Concat(u32(0), u16(3, 3, 2)), slices.Concat(btTuple("p", tid(6, 1)), btPivot("q", 0)), Tag{ID: 1, Block: 12}),
			want: "prev=4 next=12 level=0 flags=081 cycle=0 [q ->0] a(1,1) p(5,1)(5,3)(6,1) p(70000,9)"},
		{name: "SPLIT_R left", page: btPage(t, 4, 6, 0, btpLeaf, btTuple("x", tid(9, 9)), a, b, d),
			d:    btDelta(btreeSplitR, 0, slices.Concat(u32(0), u16(3, 4, 0)), btPivot("b", 0), Tag{ID: 1, Block: 12}, Tag{ID: 2, Block: 6}),
			want: "prev=4 next=12 level=0 flags=081 cycle=0 [b ->0] a(1,1)"},
		{name: "SPLIT_R posting ends left", page: btPage(t, 4, 0, 0, btpLeaf, a, posting, d),
			d:    btDelta(btreeSplitR, 0, slices.Concat(u32(0), u16(3, 3, 1)), slices.Concat(btTuple("p", tid(5, 2)), btPivot("p", 0)), Tag{ID: 1, Block: 12}),
			want: "prev=4 next=12 level=0 flags=081 cycle=0 [p ->0] a(1,1) p(5,1)(5,2)(5,3)"},
		{name: "SPLIT_R right leaf", page: btZero(),
			d:    btDelta(btreeSplitR, 1, slices.Concat(u32(0), u16(3, 4, 0)), slices.Concat(d, c, btPivot("x", 0)), Tag{ID: 0, Block: 5}, Tag{ID: 2, Block: 6}),
			want: "prev=5 next=6 level=0 flags=001 cycle=0 [x ->0] c(1,3) d(1,4)"},
		{name: "SPLIT_L right internal, rightmost", page: btZero(),
			d:    btDelta(btreeSplitL, 1, slices.Concat(u32(2), u16(3, 4, 0)), slices.Concat(btPivot("z", 8), btPivot("", 7)), Tag{ID: 0, Block: 5}, Tag{ID: 3, Block: 1}),
			want: "prev=5 next=0 level=2 flags=000 cycle=0 [ ->7] [z ->8]"},
		{name: "SPLIT next", page: btPage(t, 5, 0, 0, btpLeaf, a),
			d:    btDelta(btreeSplitL, 2, slices.Concat(u32(0), u16(3, 4, 0)), nil, Tag{ID: 0, Block: 5}, Tag{ID: 1, Block: 12}),
			want: "prev=12 next=0 level=0 flags=001 cycle=7 a(1,1)"},
		{name: "SPLIT child", page: btPage(t, 5, 0, 0, btpLeaf|btpIncompleteSplit, a),
			d: btDelta(btreeSplitR, 3, slices.Concat(u32(1), u16(3, 4, 0)), nil), want: "prev=5 next=0 level=0 flags=001 cycle=7 a(1,1)"},
		{name: "DEDUP", page: btPage(t, 0, 3, 0, btpLeaf|btpHasGarbage, btPivot("q", 0), a, btTuple("k", tid(2, 1)), btTuple("k", tid(2, 2)), b,
			btTuple("p", tid(4, 1)), posting, d),
			d:    btDelta(btreeDedup, 0, u16(2), u16(3, 2, 6, 2)),
			want: "prev=0 next=3 level=0 flags=001 cycle=7 [q ->0] a(1,1) k(2,1)(2,2) b(1,2) p(4,1)(5,1)(5,3)(70000,9) d(1,4)"},
		{name: "DEDUP of a posting list first", page: btPage(t, 0, 0, 0, btpLeaf, posting, btTuple("p", tid(70000, 10))),
			d: btDelta(btreeDedup, 0, u16(1), u16(1, 2)), want: "prev=0 next=0 level=0 flags=001 cycle=7 p(5,1)(5,3)(70000,9)(70000,10)"},
		{name: "VACUUM", page: btPage(t, 0, 0, 0, btpLeaf|btpHasGarbage, a, posting, b, posting, c, d),
			d: btDelta(btreeVacuum, 0, u16(3, 2), slices.Concat(u16(1, 3, 6), u16(2, 4), u16(1, 1), u16(2, 0, 1))),
			// item 2 loses its second TID, item 4 its first two
			want: "prev=0 next=0 level=0 flags=001 cycle=7 p(5,1)(70000,9) p(70000,9) c(1,3)"},
		{name: "DELETE", page: btPage(t, 0, 0, 0, btpLeaf|btpHasGarbage, a, posting, b),
			d:    btDelta(btreeDelete, 0, slices.Concat(u32(99), u16(1, 1)), slices.Concat(u16(3), u16(2), u16(1, 2))),
			want: "prev=0 next=0 level=0 flags=001 cycle=7 a(1,1) p(5,1)(5,3)"},
		{name: "MARK_PAGE_HALFDEAD leaf", page: btZero(),
			d:    btDelta(btreeMarkPageHalfDead, 0, slices.Concat(u16(2, 0), u32(8, 7, 9, 0x123456)), nil),
			want: "prev=7 next=9 level=0 flags=011 cycle=0 [ ->1193046]"},
		{name: "MARK_PAGE_HALFDEAD parent", page: btPage(t, 0, 0, 1, btpRoot, btPivot("", 1), btPivot("g", 8), btPivot("m", 0x70009), btPivot("t", 4)),
			d:    btDelta(btreeMarkPageHalfDead, 1, slices.Concat(u16(2, 0), u32(8, 7, 9, -1)), nil),
			want: "prev=0 next=0 level=1 flags=002 cycle=7 [ ->1] [g ->458761] [t ->4]"},
		{name: "UNLINK_PAGE left", page: btPage(t, 1, 8, 0, btpLeaf, a),
			d: btDelta(btreeUnlinkPage, 1, btUnlinkMain(0), nil), want: "prev=1 next=9 level=0 flags=001 cycle=7 a(1,1)"},
		{name: "UNLINK_PAGE right", page: btPage(t, 8, 1, 0, btpLeaf, a),
			d: btDelta(btreeUnlinkPage, 2, btUnlinkMain(0), nil), want: "prev=7 next=1 level=0 flags=001 cycle=7 a(1,1)"},
		{name: "UNLINK_PAGE leaf", page: btZero(),
			d: btDelta(btreeUnlinkPage, 3, btUnlinkMain(2), nil), want: "prev=20 next=21 level=0 flags=011 cycle=0 [ ->22]"},
		{name: "UNLINK_PAGE_META", page: btZero(), d: btDelta(btreeUnlinkPageMeta, 4, btUnlinkMain(0), meta), raw: metaPage},
		{name: "NEWROOT leaf", page: btZero(), d: btDelta(btreeNewRoot, 0, u32(3, 0), nil), want: "prev=0 next=0 level=0 flags=003 cycle=0"},
		{name: "NEWROOT", page: btZero(), d: btDelta(btreeNewRoot, 0, u32(3, 1), slices.Concat(btPivot("m", 2), btPivot("", 1))),
			want: "prev=0 next=0 level=1 flags=002 cycle=0 [ ->1] [m ->2]"},
		{name: "NEWROOT child", page: btPage(t, 0, 2, 0, btpLeaf|btpIncompleteSplit, a),
			d: btDelta(btreeNewRoot, 1, u32(3, 1), nil), want: "prev=0 next=2 level=0 flags=001 cycle=7 a(1,1)"},
		{name: "NEWROOT meta", page: btZero(), d: btDelta(btreeNewRoot, 2, u32(3, 1), meta), raw: metaPage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := btreeManager.apply(tc.page, tc.d); err != nil {
				t.Fatal(err)
			}
			if tc.raw != nil {
				if !bytes.Equal(tc.page, tc.raw) {
					t.Fatalf("the page is %x, want %x", tc.page[:96], tc.raw[:96])
				}
			} else if got := btShow(tc.page); got != tc.want {
				t.Fatalf("the page is\n%s, want\n%s", got, tc.want)
			}
		})
	}
}

func btUnlinkMain(level int) []byte {
	return slices.Concat(u32(7, 9, level, 0, 0x0A0B0C0D, 5), u32(20, 21, 22))
}

func TestBtreeUnlinkTarget(t *testing.T) {
	for level, flags := range map[int]uint16{0: btpDeleted | btpHasFullXID | btpLeaf, 2: btpDeleted | btpHasFullXID} {
		p := btPage(t, 1, 2, 0, btpLeaf, btTuple("a", btTID{1, 1}))
		if err := btreeManager.apply(p, btDelta(btreeUnlinkPage, 0, btUnlinkMain(level), nil)); err != nil {
			t.Fatal(err)
		}
		want := btPage(t, 7, 9, uint32(level), flags)
		btreeOpaque(want[btreeSpecial:]).setCycle(0)
		want.SetLower(32)
		binary.LittleEndian.PutUint64(want[24:], 5<<32|0x0A0B0C0D)
		if !bytes.Equal(p, want) {
			t.Errorf("level %d: the deleted page differs", level)
		}
	}
}

// TestBtreeVacuumCycle holds the one difference between majors: from 18 on redo of VACUUM resets the vacuum cycle.
func TestBtreeVacuumCycle(t *testing.T) {
	for _, major := range pg.Majors() {
		for _, op := range []uint8{btreeVacuum, btreeDelete} {
			p := btPage(t, 0, 0, 0, btpLeaf, btTuple("a", btTID{1, 1}))
			d := btDelta(op, 0, u16(1, 0), u16(1))
			if op == btreeDelete {
				d.Main = slices.Concat(u32(99), d.Main, []byte{0, 0}) // 16 and later: a flag behind, and its padding
			}
			d.Major = major
			if err := btreeManager.apply(p, d); err != nil {
				t.Fatal(err)
			}
			want := "prev=0 next=0 level=0 flags=001 cycle=7"
			if op == btreeVacuum && major >= 18 {
				want = "prev=0 next=0 level=0 flags=001 cycle=0"
			}
			if got := btShow(p); got != want {
				t.Errorf("%d, op %02X: %s, want %s", major, op, got, want)
			}
		}
	}
}

// TestBtreeRefuses gives each record something that doesn't fit: the page, the data, the main data or the block.
func TestBtreeRefuses(t *testing.T) {
	a, post := btTuple("a", btTID{1, 1}), btTuple("p", btTID{1, 1}, btTID{1, 2})
	leaf := func(items ...[]byte) pg.Page { return btPage(t, 0, 0, 0, btpLeaf, items...) }
	heap := pg.Page(make([]byte, pg.BlockSize))
	heap.Init(0)
	split := slices.Concat(u32(0), u16(2, 2, 0))
	for name, tc := range map[string]struct {
		page pg.Page
		d    *Delta
	}{
		"not a btree page":             {heap, btDelta(btreeInsertLeaf, 0, u16(1), a)},
		"no main data":                 {leaf(), btDelta(btreeInsertLeaf, 0, nil, a)},
		"offset 0":                     {leaf(), btDelta(btreeInsertLeaf, 0, u16(0), a)},
		"offset beyond":                {leaf(), btDelta(btreeInsertLeaf, 0, u16(2), a)},
		"no tuple":                     {leaf(), btDelta(btreeInsertLeaf, 0, u16(1), nil)},
		"a tuple longer than its data": {leaf(), btDelta(btreeInsertLeaf, 0, u16(1), a[:12])},
		"bytes behind the tuple":       {leaf(), btDelta(btreeInsertLeaf, 0, u16(1), append(slices.Clone(a), 0))},
		"posting of a plain tuple":     {leaf(a, a), btDelta(btreeInsertPost, 0, u16(2), slices.Concat(u16(1), a))},
		"posting split at 0":           {leaf(post), btDelta(btreeInsertPost, 0, u16(2), slices.Concat(u16(0), a))},
		"posting split at its end":     {leaf(post), btDelta(btreeInsertPost, 0, u16(2), slices.Concat(u16(2), a))},
		"posting before the first":     {leaf(post), btDelta(btreeInsertPost, 0, u16(1), slices.Concat(u16(1), a))},
		"split without right page":     {leaf(a), btDelta(btreeSplitR, 0, split, btPivot("b", 0))},
		"split beyond the items":       {leaf(a), btDelta(btreeSplitR, 0, slices.Concat(u32(0), u16(9, 2, 0)), btPivot("b", 0), Tag{ID: 1})},
		"split without high key":       {leaf(a), btDelta(btreeSplitR, 0, split, nil, Tag{ID: 1})},
		"split with too much":          {leaf(a), btDelta(btreeSplitR, 0, split, slices.Concat(a, a), Tag{ID: 1})},
		"split's new item elsewhere":   {leaf(a), btDelta(btreeSplitL, 0, slices.Concat(u32(0), u16(2, 7, 0)), slices.Concat(a, a), Tag{ID: 1})},
		"split's posting elsewhere":    {leaf(a), btDelta(btreeSplitR, 0, slices.Concat(u32(0), u16(2, 7, 1)), slices.Concat(a, a), Tag{ID: 1})},
		"split's posting before all":   {leaf(a), btDelta(btreeSplitL, 0, slices.Concat(u32(0), u16(2, 1, 1)), slices.Concat(a, a), Tag{ID: 1})},
		"right page too full":          {btZero(), btDelta(btreeSplitR, 1, split, bytes.Repeat(a, 600), Tag{ID: 0})},
		"dedup without items":          {leaf(), btDelta(btreeDedup, 0, u16(0), nil)},
		"dedup of fewer items":         {leaf(a, a), btDelta(btreeDedup, 0, u16(1), u16(1, 3))},
		"dedup of none":                {leaf(a, a), btDelta(btreeDedup, 0, u16(1), u16(7, 2))},
		"dedup data cut":               {leaf(a, a), btDelta(btreeDedup, 0, u16(1), u16(1))},
		"dedup of a pivot":             {leaf(a, btPivot("a", 1)), btDelta(btreeDedup, 0, u16(1), u16(1, 2))},
		"vacuum data cut":              {leaf(a), btDelta(btreeVacuum, 0, u16(1, 0), nil)},
		"vacuum beyond":                {leaf(a), btDelta(btreeVacuum, 0, u16(1, 0), u16(2))},
		"vacuum update cut":            {leaf(post), btDelta(btreeVacuum, 0, u16(0, 1), u16(1, 2, 0))},
		"vacuum of all TIDs":           {leaf(post), btDelta(btreeVacuum, 0, u16(0, 1), u16(1, 2, 0, 1))},
		"vacuum of TIDs out of order":  {leaf(btTuple("p", btTID{1, 1}, btTID{1, 2}, btTID{1, 3})), btDelta(btreeVacuum, 0, u16(0, 1), u16(1, 2, 1, 0))},
		"half-dead's last downlink":    {btPage(t, 0, 0, 1, 0, btPivot("", 1)), btDelta(btreeMarkPageHalfDead, 1, slices.Concat(u16(1, 0), u32(1, 1, 1, 1)), nil)},
		"metadata cut":                 {btZero(), btDelta(btreeMetaCleanup, 0, nil, u32(1, 2, 3))},
		"no such block":                {leaf(a), btDelta(btreeInsertLeaf, 1, u16(1), a)},
		"reuse changes nothing":        {leaf(a), btDelta(btreeReusePage, 0, nil, nil)},
		"unknown type":                 {leaf(a), btDelta(0xF0, 0, nil, nil)},
	} {
		if err := btreeManager.apply(tc.page, tc.d); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestBtreeMask(t *testing.T) {
	p := btPage(t, 1, 2, 0, btpLeaf|btpHasGarbage|btpSplitEnd, btTuple("a", btTID{1, 1}))
	q := btPage(t, 1, 2, 0, btpLeaf, btTuple("a", btTID{1, 1}))
	btreeOpaque(q[btreeSpecial:]).setCycle(0)
	p.SetLSN(77)
	p.SetStoredChecksum(5)
	p.SetFlags(pg.PageHasFreeLines)
	p[100] = 1
	p.SetItem(1, pg.NewItemID(p.Item(1).Offset(), pg.LPDead, p.Item(1).Length()))
	for _, m := range []pg.Page{p, q} {
		btreeManager.mask(m, pg.PageKey{})
	}
	if !bytes.Equal(p, q) {
		t.Error("pages that differ in what WAL doesn't say differ after the mask")
	}
	btreeOpaque(q[btreeSpecial:]).setNext(3)
	if bytes.Equal(p, q) {
		t.Error("the mask hides a sibling link")
	}
	for _, bad := range []pg.Page{btZero(), bytes.Repeat([]byte{0xFF}, pg.BlockSize)} {
		btreeManager.mask(bad, pg.PageKey{}) // must not panic
	}
}

func TestBtreeNames(t *testing.T) {
	for info, want := range map[uint8]string{0x00: "INSERT_LEAF", 0x5F: "INSERT_POST", 0xB0: "MARK_PAGE_HALFDEAD", 0xE1: "META_CLEANUP", 0xF0: ""} {
		if got := btreeManager.name(15, info); got != want {
			t.Errorf("%02X is %q, want %q", info, got, want)
		}
	}
}

// btSplitCase is a full page whose split moves half of its tuples.
func btFullPage(t testing.TB) pg.Page {
	p := btPage(t, 0, 0, 0, btpLeaf)
	for i := 0; ; i++ {
		if err := addItem(p, btTuple(fmt.Sprintf("%08d", i), btTID{1, pg.OffsetNumber(i + 1)}), pg.OffsetNumber(i+1)); err != nil {
			return p
		}
	}
}

func TestBtreeAllocations(t *testing.T) {
	full := btFullPage(t)
	half := pg.OffsetNumber(full.ItemCount() / 2)
	p := pg.Page(make([]byte, pg.BlockSize))
	tags := []Tag{{ID: 0, Block: 1}, {ID: 1, Block: 2}}
	for name, d := range map[string]*Delta{
		"SPLIT_L": btDelta(btreeSplitL, 0, slices.Concat(u32(0), u16(int(half), int(half), 0)), slices.Concat(btTuple("n", btTID{1, 1}), btPivot("x", 0)), tags...),
		"DEDUP":   btDelta(btreeDedup, 0, u16(1), u16(2, 20)),
		"VACUUM":  btDelta(btreeVacuum, 0, u16(4, 0), u16(1, 2, 5, 9)),
	} {
		if n := testing.AllocsPerRun(20, func() {
			copy(p, full)
			if err := btreeManager.apply(p, d); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkBtreeInsertLeaf(b *testing.B) {
	base := btPage(b, 0, 0, 0, btpLeaf)
	for i := range 200 {
		if err := addItem(base, btTuple(fmt.Sprintf("%08d", i), btTID{1, pg.OffsetNumber(i + 1)}), pg.OffsetNumber(i+1)); err != nil {
			b.Fatal(err)
		}
	}
	p := slices.Clone(base)
	d := btDelta(btreeInsertLeaf, 0, u16(100), btTuple("00000100", btTID{2, 2}))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%100 == 0 {
			copy(p, base)
		}
		if err := btreeManager.apply(p, d); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBtreeSplitLeft(b *testing.B) {
	base := btFullPage(b)
	half := base.ItemCount() / 2
	p := slices.Clone(base)
	d := btDelta(btreeSplitL, 0, slices.Concat(u32(0), u16(half, half, 0)), slices.Concat(btTuple("n", btTID{1, 1}), btPivot("x", 0)), Tag{ID: 1, Block: 2})
	b.ReportAllocs()
	for b.Loop() {
		copy(p, base)
		if err := btreeManager.apply(p, d); err != nil {
			b.Fatal(err)
		}
	}
}

// fuzzApply feeds a manager any record over any page: it may refuse, but never panic, and what it accepts must have a page header in order.
func fuzzApply(f *testing.F, m *manager, rm wal.Rmgr, seeds ...func() (pg.Page, *Delta)) {
	for _, seed := range seeds {
		p, d := seed()
		f.Add([]byte(p), uint8(15), d.Info, d.Part, d.Main, d.Data)
	}
	f.Fuzz(func(t *testing.T, raw []byte, major, info, part uint8, main, data []byte) {
		p := pg.Page(make([]byte, pg.BlockSize))
		copy(p, raw)
		for _, tags := range [][]Tag{nil, {{ID: 0, Block: 1}, {ID: 1, Block: 2}, {ID: 2, Block: 3}}} {
			q := slices.Clone(p)
			d := &Delta{Major: 14 + pg.Major(major)%5, LSN: 1, Rmgr: rm, Info: info, Part: part, Main: main, Data: data, Tags: tags}
			if m.apply(q, d) == nil && len(q) != pg.BlockSize {
				t.Fatalf("the page has %d bytes now", len(q))
			}
			if m.afterImage != nil {
				q = slices.Clone(p)
				_ = m.afterImage(q, d)
			}
			m.mask(q, pg.PageKey{})
		}
	})
}

// mutate is the fuzz target's quick brother: it damages pages and records that fit each other, in many random ways.
func mutate(t *testing.T, m *manager, seeds ...func() (pg.Page, *Delta)) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	damage := func(b []byte) []byte {
		b = slices.Clone(b)
		for n := r.IntN(3); n > 0 && len(b) > 0; n-- {
			i := r.IntN(len(b))
			switch r.IntN(4) {
			case 0:
				b[i] ^= 1 << r.IntN(8)
			case 1:
				b[i] = byte(r.Uint32())
			case 2:
				b[i] = 0xFF
			case 3:
				if len(b) != pg.BlockSize {
					b = b[:i]
				}
			}
		}
		return b
	}
	for range 20000 {
		p, d := seeds[r.IntN(len(seeds))]()
		d.Main, d.Data = damage(d.Main), damage(d.Data)
		if r.IntN(4) == 0 {
			d.Tags = nil
		}
		// Damage where it matters: header, line pointers, special area, now and then anywhere.
		for range r.IntN(3) {
			at := []int{10 + r.IntN(60), pg.BlockSize - 1 - r.IntN(200), r.IntN(pg.BlockSize)}[r.IntN(3)]
			p[at] = byte(r.Uint32())
		}
		clean := slices.Clone(p)
		if err := m.apply(p, d); err == nil && clean.Valid() && !p.Valid() {
			t.Fatalf("info %02X, part %d: a page in order isn't any more, and nothing was said", d.Info, d.Part)
		}
		if m.afterImage != nil {
			_ = m.afterImage(clean, d)
		}
		m.mask(p, pg.PageKey{})
	}
}

// btSeeds are records that fit their pages.
func btSeeds(t testing.TB) (seeds []func() (pg.Page, *Delta)) {
	tags := []Tag{{ID: 0, Block: 1}, {ID: 1, Block: 2}, {ID: 2, Block: 3}}
	a, post := btTuple("a", btTID{1, 1}), btTuple("p", btTID{1, 1}, btTID{1, 2}, btTID{1, 3})
	for _, d := range []*Delta{
		btDelta(btreeInsertLeaf, 0, u16(2), a),
		btDelta(btreeInsertPost, 0, u16(3), slices.Concat(u16(1), a)),
		btDelta(btreeSplitL, 0, slices.Concat(u32(0), u16(3, 3, 1)), slices.Concat(a, btPivot("q", 0)), tags...),
		btDelta(btreeSplitR, 1, slices.Concat(u32(0), u16(3, 3, 1)), slices.Concat(a, btPivot("q", 0)), tags...),
		btDelta(btreeDedup, 0, u16(1), u16(2, 2)),
		btDelta(btreeVacuum, 0, u16(1, 1), slices.Concat(u16(1), u16(2), u16(1, 1))),
		btDelta(btreeDelete, 0, slices.Concat(u32(9), u16(1, 1)), slices.Concat(u16(1), u16(2), u16(1, 1))),
		btDelta(btreeMarkPageHalfDead, 1, slices.Concat(u16(1, 0), u32(8, 7, 9, -1)), nil),
		btDelta(btreeUnlinkPage, 0, btUnlinkMain(0), nil),
		btDelta(btreeNewRoot, 0, u32(3, 1), slices.Concat(a, a)),
		btDelta(btreeMetaCleanup, 0, nil, make([]byte, 28)),
	} {
		seeds = append(seeds, func() (pg.Page, *Delta) { c := *d; return btPage(t, 0, 0, 0, btpLeaf, a, post, a, a), &c })
	}
	return seeds
}

func TestBtreeDamaged(t *testing.T) { mutate(t, &btreeManager, btSeeds(t)...) }

func FuzzBtreeApply(f *testing.F) { fuzzApply(f, &btreeManager, wal.RmBtree, btSeeds(f)...) }
