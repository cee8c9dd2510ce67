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

func sgPage(t testing.TB, flags uint16, items ...[]byte) pg.Page {
	t.Helper()
	p := btZero()
	spgInit(p, flags, false)
	o := spgOpaque(p[spgSpecial:])
	for i, item := range items {
		if err := addItem(p, item, pg.OffsetNumber(i+1)); err != nil {
			t.Fatal(err)
		}
		if flags&spgLeaf != 0 || item[0]&3 != 0 {
			o.count(item[0] & 3)
		}
	}
	return p
}

// sgLeaf makes a leaf tuple of a key and the offset of the next one.
func sgLeaf(key string, next int) []byte {
	b := slices.Concat(u32(0), u16(next), make([]byte, 6), make([]byte, 4), []byte(key))
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b))<<2)
	return b
}

// sgInner makes an inner tuple of a prefix and nodes, which lead to blocks.
func sgInner(prefix string, nodes ...int) []byte {
	for len(prefix)%8 != 0 {
		prefix += "\x00"
	}
	b := slices.Concat(u32(len(nodes)<<3|len(prefix)<<16), u16(0, 0), []byte(prefix))
	for _, n := range nodes {
		b = append(b, btTuple("n", btTID{pg.BlockNumber(n), 1})...)
	}
	binary.LittleEndian.PutUint16(b[4:], uint16(len(b)))
	return b
}

func sgDead(state byte, block pg.BlockNumber, off pg.OffsetNumber, xid pg.TransactionID) []byte {
	b := spgDeadTuple(state, makeTID(block, off), xid)
	return b[:]
}

func sgDelta(info, part uint8, block pg.BlockNumber, main []byte, tags ...Tag) *Delta {
	return &Delta{Major: 15, LSN: 0x100, Rmgr: wal.RmSPGist, Info: info, Part: part, Key: pg.PageKey{Block: block}, Main: main, Tags: tags}
}

// sgShow prints a page: opaque, then its tuples: leaves as key>next, inner ones as prefix[where the nodes lead], the others by their state.
func sgShow(p pg.Page) string {
	if !p.Valid() {
		return "invalid"
	}
	o := spgOpaque(p[spgSpecial:])
	flags := binary.LittleEndian.Uint16(o)
	s := fmt.Sprintf("flags=%x redirects=%d placeholders=%d", flags, o.redirects(), o.placeholders())
	for i := 1; i <= p.ItemCount(); i++ {
		id := p.Item(pg.OffsetNumber(i))
		b := p[id.Offset() : id.Offset()+id.Length()]
		to := fmt.Sprintf("%d.%d", int32(blockID(b[6:])), binary.LittleEndian.Uint16(b[10:]))
		switch b[0] & 3 {
		case spgRedirect:
			s += fmt.Sprintf(" redirect(%s xid %d)", to, binary.LittleEndian.Uint32(b[12:]))
			continue
		case spgDead:
			s += " dead(" + to + ")"
			continue
		case spgPlaceholder:
			s += " -"
			continue
		}
		if flags&spgLeaf != 0 {
			s += fmt.Sprintf(" %s>%d", bytes.TrimRight(b[16:], "\x00"), binary.LittleEndian.Uint16(b[4:])&0x3FFF)
			continue
		}
		bits := binary.LittleEndian.Uint32(b)
		s += fmt.Sprintf(" %s[", bytes.TrimRight(b[8:8+bits>>16], "\x00"))
		for rest := b[8+bits>>16:]; len(rest) > 0; rest = rest[indexTupleLength(rest):] {
			s += fmt.Sprintf(" %d.%d", blockID(rest), binary.LittleEndian.Uint16(rest[4:]))
		}
		s += " ]"
	}
	return s
}

func sgState(xid int, build byte) []byte { return slices.Concat(u32(xid), []byte{build, 0, 0, 0}) }

func sgAddLeafMain(fresh byte, nulls byte, off, head, parent, node int, tuple []byte) []byte {
	return slices.Concat([]byte{fresh, nulls}, u16(off, head, parent, node), tuple)
}

func sgMoveMain(fresh, replaceDead, build byte, gone, come []int, tuples ...[]byte) []byte {
	return slices.Concat(u16(len(gone)), []byte{fresh, replaceDead, 0, 0}, u16(2, 1, 0xEEEE), sgState(55, build), u16(gone...), u16(come...),
		slices.Concat(tuples...))
}

func sgAddNodeMain(off, newOff int, fresh, parentBlock byte, build byte, tuple []byte) []byte {
	return slices.Concat(u16(off, newOff), []byte{fresh, parentBlock}, u16(2, 1, 0xEEEE), sgState(55, build), tuple)
}

// sgPickMain is a split whose inner tuple goes to offset 3, under node 1 of the parent at offset 2.
func sgPickMain(root, initSrc, initDest, initInner, innerIsParent, build byte, gone, come []int, selected []byte, inner []byte, leaves ...[]byte) []byte {
	return slices.Concat([]byte{root, 0xEE}, u16(len(gone), len(come)), []byte{initSrc, initDest}, u16(3), []byte{initInner, 0, innerIsParent, 0xEE},
		u16(2, 1, 0xEEEE), sgState(55, build), u16(gone...), u16(come...), selected, inner, slices.Concat(leaves...))
}

func TestSPGistRecords(t *testing.T) {
	a, b, c, d := sgLeaf("a", 2), sgLeaf("b", 0), sgLeaf("c", 1), sgLeaf("d", 0)
	hole := sgDead(spgPlaceholder, 0, 0, 0)
	inner, more := sgInner("in", 10, 11), sgInner("", 20, 21, 22)
	parents := func(items ...[]byte) pg.Page { return sgPage(t, 0, append([][]byte{more, inner}, items...)...) }
	to := func(blocks ...int) (tags []Tag) {
		for i, b := range blocks {
			if b != 0 {
				tags = append(tags, Tag{ID: uint8(i), Block: pg.BlockNumber(b)})
			}
		}
		return tags
	}
	split := func(same byte) []byte { return slices.Concat(u16(2, 3), []byte{0, same}, more, inner) }
	vacuum := slices.Concat(u16(1, 1, 1, 1), sgState(55, 0), u16(1), u16(3), u16(4), u16(2), u16(5), u16(2))
	for _, tc := range []struct {
		name string
		page pg.Page
		d    *Delta
		want string
	}{
		{"ADD_LEAF to a chain", sgPage(t, spgLeaf, a, b), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 3, 1, 0, 0, sgLeaf("n", 2))),
			"flags=4 redirects=0 placeholders=0 a>3 b>0 n>2"},
		{"ADD_LEAF as a chain", sgPage(t, spgLeaf, a, hole), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 2, 0, 2, 1, d)),
			"flags=4 redirects=0 placeholders=0 a>2 d>0"},
		{"ADD_LEAF over a dead one", sgPage(t, spgLeaf, sgDead(spgDead, 0, 0, 0), b), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 1, 1, 0, 0, d)),
			"flags=4 redirects=0 placeholders=0 d>0 b>0"},
		{"ADD_LEAF to a new page of nulls", btZero(), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(1, 1, 1, 0, 2, 1, d)), "flags=c redirects=0 placeholders=0 d>0"},
		{"ADD_LEAF parent", parents(), sgDelta(spgAddLeaf, 1, 8, sgAddLeafMain(1, 0, 9, 0, 2, 1, nil), to(70000)...),
			"flags=0 redirects=0 placeholders=0 [ 20.1 21.1 22.1 ] in[ 10.1 70000.9 ]"},
		{"MOVE_LEAFS source", sgPage(t, spgLeaf, a, b, d), sgDelta(spgMoveLeafs, 0, 7, sgMoveMain(0, 0, 0, []int{2, 1}, []int{1, 2, 4}), to(0, 70000)...),
			"flags=4 redirects=1 placeholders=1 - redirect(70000.4 xid 55) d>0"},
		{"MOVE_LEAFS source in a build", sgPage(t, spgLeaf, a, b, d), sgDelta(spgMoveLeafs, 0, 7, sgMoveMain(0, 0, 1, []int{2, 1}, []int{1, 2, 4}), to(0, 70000)...),
			"flags=4 redirects=0 placeholders=2 - - d>0"},
		{"MOVE_LEAFS destination", sgPage(t, spgLeaf, a, hole, b), sgDelta(spgMoveLeafs, 1, 7, sgMoveMain(0, 0, 0, []int{2, 1}, []int{4, 2, 5}, c, d, a)),
			"flags=4 redirects=0 placeholders=0 a>2 d>0 b>0 c>1 a>2"},
		{"MOVE_LEAFS of a dead one to a new page", btZero(), sgDelta(spgMoveLeafs, 1, 7, sgMoveMain(1, 1, 0, []int{2}, []int{1}, d)),
			"flags=4 redirects=0 placeholders=0 d>0"},
		{"MOVE_LEAFS of a dead one, source", sgPage(t, spgLeaf, a, sgDead(spgDead, 0, 0, 0)), sgDelta(spgMoveLeafs, 0, 7, sgMoveMain(1, 1, 0, []int{2}, []int{1}), to(0, 5)...),
			"flags=4 redirects=1 placeholders=0 a>2 redirect(5.1 xid 55)"},
		{"MOVE_LEAFS parent", parents(), sgDelta(spgMoveLeafs, 2, 8, sgMoveMain(0, 0, 0, []int{2, 1}, []int{1, 2, 4}), to(3, 70000)...),
			"flags=0 redirects=0 placeholders=0 [ 20.1 21.1 22.1 ] in[ 10.1 70000.4 ]"},
		{"ADD_NODE in place", sgPage(t, 0, inner, inner), sgDelta(spgAddNode, 0, 8, sgAddNodeMain(1, 0, 0, 0xFF, 0, more)),
			"flags=0 redirects=0 placeholders=0 [ 20.1 21.1 22.1 ] in[ 10.1 11.1 ]"},
		{"ADD_NODE elsewhere, old page, parent there", sgPage(t, 0, inner, more), sgDelta(spgAddNode, 0, 8, sgAddNodeMain(1, 6, 0, 0, 0, nil), to(0, 9)...),
			"flags=0 redirects=1 placeholders=0 redirect(9.6 xid 55) [ 20.1 9.6 22.1 ]"},
		{"ADD_NODE elsewhere, old page, in a build", sgPage(t, 0, inner, more), sgDelta(spgAddNode, 0, 8, sgAddNodeMain(1, 6, 0, 2, 1, nil), to(0, 9, 4)...),
			"flags=0 redirects=0 placeholders=1 - [ 20.1 21.1 22.1 ]"},
		{"ADD_NODE elsewhere, new page, parent there", parents(), sgDelta(spgAddNode, 1, 9, sgAddNodeMain(1, 3, 0, 1, 0, more), to(8)...),
			"flags=0 redirects=0 placeholders=0 [ 20.1 21.1 22.1 ] in[ 10.1 9.3 ] [ 20.1 21.1 22.1 ]"},
		{"ADD_NODE elsewhere, fresh page", btZero(), sgDelta(spgAddNode, 1, 9, sgAddNodeMain(1, 1, 1, 2, 0, more), to(8, 0, 4)...),
			"flags=0 redirects=0 placeholders=0 [ 20.1 21.1 22.1 ]"},
		{"ADD_NODE elsewhere, parent", parents(), sgDelta(spgAddNode, 2, 4, sgAddNodeMain(1, 6, 0, 2, 0, nil), to(8, 9)...),
			"flags=0 redirects=0 placeholders=0 [ 20.1 21.1 22.1 ] in[ 10.1 9.6 ]"},
		{"SPLIT_TUPLE", sgPage(t, 0, inner, inner), sgDelta(spgSplitTuple, 0, 8, split(0), to(0, 9)...),
			"flags=0 redirects=0 placeholders=0 in[ 10.1 11.1 ] [ 20.1 21.1 22.1 ]"},
		{"SPLIT_TUPLE on one page", sgPage(t, 0, inner, inner), sgDelta(spgSplitTuple, 0, 8, split(1)),
			"flags=0 redirects=0 placeholders=0 in[ 10.1 11.1 ] [ 20.1 21.1 22.1 ] in[ 10.1 11.1 ]"},
		{"SPLIT_TUPLE postfix", sgPage(t, 0, more, inner, hole), sgDelta(spgSplitTuple, 1, 9, split(0), to(8)...),
			"flags=0 redirects=0 placeholders=0 [ 20.1 21.1 22.1 ] in[ 10.1 11.1 ] in[ 10.1 11.1 ]"},
		{"PICKSPLIT source", sgPage(t, spgLeaf, a, b, c),
			sgDelta(spgPickSplit, 0, 7, sgPickMain(0, 0, 0, 0, 0, 0, []int{1, 2}, []int{2, 5}, []byte{0, 1}, inner, d, a), to(0, 6, 5, 4)...),
			"flags=4 redirects=1 placeholders=0 redirect(5.3 xid 55) d>0 c>1"},
		{"PICKSPLIT source anew", btZero(),
			sgDelta(spgPickSplit, 0, 7, sgPickMain(0, 1, 0, 0, 0, 0, []int{1, 2}, []int{1, 5}, []byte{0, 1}, inner, d, a), to(0, 6, 5, 4)...),
			"flags=4 redirects=0 placeholders=0 d>0"},
		{"PICKSPLIT destination", sgPage(t, spgLeaf, a, b),
			sgDelta(spgPickSplit, 1, 6, sgPickMain(0, 0, 0, 0, 0, 0, []int{1, 2}, []int{2, 3}, []byte{0, 1}, inner, d, c), to(7, 0, 5, 4)...),
			"flags=4 redirects=0 placeholders=0 a>2 b>0 c>1"},
		{"PICKSPLIT inner page with the parent", parents(), sgDelta(spgPickSplit, 2, 5, sgPickMain(0, 0, 0, 0, 1, 0, nil, []int{2}, []byte{0}, more, d), to(7)...),
			"flags=0 redirects=0 placeholders=0 [ 20.1 21.1 22.1 ] in[ 10.1 5.3 ] [ 20.1 21.1 22.1 ]"},
		{"PICKSPLIT parent", parents(), sgDelta(spgPickSplit, 3, 4, sgPickMain(0, 0, 0, 0, 0, 0, nil, nil, nil, nil), to(7, 0, 5)...),
			"flags=0 redirects=0 placeholders=0 [ 20.1 21.1 22.1 ] in[ 10.1 5.3 ]"},
		{"VACUUM_LEAF", sgPage(t, spgLeaf, a, a, b, c, d), sgDelta(spgVacuumLeaf, 0, 7, vacuum),
			"flags=4 redirects=0 placeholders=2 dead(-1.0) c>1 - - d>2"},
		{"VACUUM_ROOT", sgPage(t, spgLeaf, a, b, c, d), sgDelta(spgVacuumRoot, 0, 1, slices.Concat(u16(3, 0xEEEE), sgState(55, 0), u16(1, 3, 4))),
			"flags=4 redirects=0 placeholders=0 b>0"},
		{"VACUUM_REDIRECT", sgPage(t, spgLeaf, sgDead(spgRedirect, 5, 1, 9), a, hole, sgDead(spgRedirect, 5, 1, 9)),
			sgDelta(spgVacuumRedirect, 0, 7, slices.Concat(u16(2, 3), u32(9), u16(1, 4))), "flags=4 redirects=0 placeholders=1 - a>2"},
		{"VACUUM_REDIRECT that removes none", sgPage(t, spgLeaf, sgDead(spgRedirect, 5, 1, 9), a),
			sgDelta(spgVacuumRedirect, 0, 7, slices.Concat(u16(1, 0), u32(9), u16(1))), "flags=4 redirects=0 placeholders=1 - a>2"},
	} {
		if err := spgistManager.apply(tc.page, tc.d); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		} else if got := sgShow(tc.page); got != tc.want {
			t.Errorf("%s:\n%s, want\n%s", tc.name, got, tc.want)
		}
	}
}

// Offsets lie behind a flag and its padding from 16 on.
func TestSPGistVacuumRedirectLayout(t *testing.T) {
	for _, major := range pg.Majors() {
		main := slices.Concat(u16(1, 0), u32(9))
		if major >= 16 {
			main = append(main, 1, 0xEE)
		}
		d := sgDelta(spgVacuumRedirect, 0, 7, append(main, u16(2)...))
		d.Major = major
		p := sgPage(t, spgLeaf, sgLeaf("a", 0), sgDead(spgRedirect, 5, 1, 9))
		if err := spgistManager.apply(p, d); err != nil || sgShow(p) != "flags=4 redirects=0 placeholders=1 a>0 -" {
			t.Errorf("%d: %v, %s", major, err, sgShow(p))
		}
	}
}

// What Touch leaves out of a delta is not needed: pages change as by the whole record.
func TestSPGistTouchTrims(t *testing.T) {
	a, inner := sgLeaf("a", 0), sgInner("in", 10, 11)
	for _, tc := range []struct {
		info, part uint8
		main       []byte
		page       pg.Page
		want       int
	}{
		{spgAddLeaf, 1, sgAddLeafMain(0, 0, 1, 0, 2, 1, a), sgPage(t, 0, inner, inner), 10},
		{spgMoveLeafs, 0, sgMoveMain(0, 0, 0, []int{2, 1}, []int{1, 2, 3}, a, a, a), sgPage(t, spgLeaf, a, a), 20 + 10},
		{spgMoveLeafs, 2, sgMoveMain(0, 1, 0, []int{2}, []int{4}, a), sgPage(t, 0, inner, inner), 20 + 4},
		{spgAddNode, 0, sgAddNodeMain(1, 2, 0, 2, 0, inner), sgPage(t, 0, inner, inner), 20},
		{spgAddNode, 2, sgAddNodeMain(1, 2, 0, 2, 0, inner), sgPage(t, 0, inner, inner), 20},
		{spgPickSplit, 3, sgPickMain(0, 0, 0, 0, 0, 0, []int{1}, []int{1}, []byte{1}, inner, a), sgPage(t, 0, inner, inner), 28},
	} {
		rec := &wal.Record{Major: 15, Rmgr: wal.RmSPGist, Info: tc.info, End: 0x100, Main: tc.main}
		for id := range uint8(4) {
			rec.Blocks = append(rec.Blocks, wal.Block{ID: id, PageKey: pg.PageKey{Block: pg.BlockNumber(10 + id)}})
		}
		var ch Changes
		if err := Touch(rec, &ControlState{}, &ch); err != nil {
			t.Fatal(err)
		}
		d := &ch.Pages[tc.part].Delta
		if len(d.Main) != tc.want {
			t.Errorf("%s part %d keeps %d bytes of %d, want %d", spgNames[tc.info>>4], tc.part, len(d.Main), len(tc.main), tc.want)
		}
		whole := *d
		whole.Main = tc.main
		p, q := slices.Clone(tc.page), slices.Clone(tc.page)
		if err := spgistManager.apply(p, &whole); err != nil {
			t.Errorf("%s part %d: %v", spgNames[tc.info>>4], tc.part, err)
		}
		if err := spgistManager.apply(q, d); err != nil || !bytes.Equal(p, q) || bytes.Equal(p, tc.page) {
			t.Errorf("%s part %d: %v, or another page", spgNames[tc.info>>4], tc.part, err)
		}
	}
}

func TestSPGistRefuses(t *testing.T) {
	a, inner := sgLeaf("a", 0), sgInner("in", 10, 11)
	leaf := func(items ...[]byte) pg.Page { return sgPage(t, spgLeaf, items...) }
	parent := func() pg.Page { return sgPage(t, 0, inner, inner) }
	hole := leaf(a, sgDead(spgPlaceholder, 0, 0, 0))
	spgOpaque(hole[spgSpecial:]).setPlaceholders(0)
	wide := sgInner("in", 10, 11)
	binary.LittleEndian.PutUint16(wide[6+8+8:], 4000) // a node longer than its tuple
	vacuum := func(n ...int) []byte { return slices.Concat(u16(n[:4]...), sgState(55, 0), u16(n[4:]...)) }
	for name, tc := range map[string]struct {
		page pg.Page
		d    *Delta
	}{
		"not an SP-GiST page":           {btPage(t, 0, 0, 0, btpLeaf), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 1, 0, 0, 0, a))},
		"leaf tuple cut":                {leaf(), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 1, 0, 0, 0, a[:16]))},
		"bytes behind the leaf tuple":   {leaf(), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 1, 0, 0, 0, append(slices.Clone(a), 0)))},
		"leaf tuple over a live one":    {leaf(a), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 1, 0, 0, 0, a))},
		"placeholder that isn't there":  {hole, sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 2, 0, 0, 0, a))},
		"leaf tuple beyond":             {leaf(a), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 3, 0, 0, 0, a))},
		"leaf tuple at offset 0":        {leaf(a), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 0, 0, 0, 0, a))},
		"head beyond":                   {leaf(a), sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 2, 9, 0, 0, a))},
		"parent that the record denies": {parent(), sgDelta(spgAddLeaf, 1, 8, sgAddLeafMain(0, 0, 2, 0, 0, 0, a), Tag{})},
		"link without the page":         {parent(), sgDelta(spgAddLeaf, 1, 8, sgAddLeafMain(0, 0, 2, 0, 2, 1, a))},
		"node beyond":                   {parent(), sgDelta(spgAddLeaf, 1, 8, sgAddLeafMain(0, 0, 2, 0, 2, 2, a), Tag{})},
		"node longer than its tuple":    {sgPage(t, 0, inner, wide), sgDelta(spgAddLeaf, 1, 8, sgAddLeafMain(0, 0, 2, 0, 2, 1, a), Tag{})},
		"parent beyond":                 {parent(), sgDelta(spgAddLeaf, 1, 8, sgAddLeafMain(0, 0, 2, 0, 3, 1, a), Tag{})},
		"lists of moves cut":            {leaf(a), sgDelta(spgMoveLeafs, 0, 8, sgMoveMain(0, 0, 0, []int{1}, []int{1}), Tag{ID: 1})},
		"moved tuples missing":          {leaf(), sgDelta(spgMoveLeafs, 1, 8, sgMoveMain(0, 0, 0, []int{1}, []int{1, 2}, a))},
		"more moved tuples than said":   {leaf(), sgDelta(spgMoveLeafs, 1, 8, sgMoveMain(0, 0, 0, nil, []int{1}, a, a))},
		"tuple moved twice":             {leaf(a), sgDelta(spgMoveLeafs, 0, 8, sgMoveMain(0, 0, 0, []int{1, 1}, []int{1, 2, 3}), Tag{ID: 1})},
		"moved tuple beyond":            {leaf(a), sgDelta(spgMoveLeafs, 0, 8, sgMoveMain(0, 0, 0, []int{2}, []int{1, 2}), Tag{ID: 1})},
		"moved without destination":     {leaf(a), sgDelta(spgMoveLeafs, 0, 8, sgMoveMain(0, 0, 0, []int{1}, []int{1, 2}))},
		"inner tuple cut":               {parent(), sgDelta(spgAddNode, 0, 8, sgAddNodeMain(1, 0, 0, 0xFF, 0, inner[:20]))},
		"parent not on this page":       {parent(), sgDelta(spgAddNode, 2, 8, sgAddNodeMain(1, 1, 0, 1, 0, inner), Tag{ID: 1})},
		"prefix cut":                    {parent(), sgDelta(spgSplitTuple, 0, 8, slices.Concat(u16(1, 3), []byte{0, 1}, inner[:20]))},
		"postfix on the same page":      {parent(), sgDelta(spgSplitTuple, 1, 8, slices.Concat(u16(1, 3), []byte{0, 1}, inner, inner))},
		"split of a root has no source": {leaf(a), sgDelta(spgPickSplit, 0, 8, sgPickMain(1, 0, 0, 0, 0, 0, nil, nil, nil, inner), Tag{ID: 2})},
		"split tuples missing":          {leaf(), sgDelta(spgPickSplit, 1, 8, sgPickMain(0, 0, 0, 0, 0, 0, nil, []int{1}, []byte{1}, inner))},
		"split lists cut":               {leaf(), sgDelta(spgPickSplit, 1, 8, sgPickMain(0, 0, 0, 0, 0, 0, nil, []int{1, 2, 3}, nil, nil))},
		"split inner tuple cut":         {parent(), sgDelta(spgPickSplit, 2, 8, sgPickMain(0, 0, 0, 0, 0, 0, nil, nil, nil, inner[:20]))},
		"vacuum lists cut":              {leaf(a), sgDelta(spgVacuumLeaf, 0, 8, vacuum(1, 1, 1, 1, 1, 1))},
		"moved by vacuum beyond":        {leaf(a), sgDelta(spgVacuumLeaf, 0, 8, vacuum(0, 0, 1, 0, 1, 2))},
		"relinked beyond":               {leaf(a), sgDelta(spgVacuumLeaf, 0, 8, vacuum(0, 0, 0, 1, 2, 1))},
		"root offsets cut":              {leaf(a), sgDelta(spgVacuumRoot, 0, 8, slices.Concat(u16(2, 0), sgState(5, 0), u16(1)))},
		"redirection that is none":      {leaf(a), sgDelta(spgVacuumRedirect, 0, 8, slices.Concat(u16(1, 0), u32(9), u16(1)))},
		"redirections not counted": {func() pg.Page {
			p := leaf(sgDead(spgRedirect, 5, 1, 9))
			spgOpaque(p[spgSpecial:]).setRedirects(0)
			return p
		}(), sgDelta(spgVacuumRedirect, 0, 8, slices.Concat(u16(1, 0), u32(9), u16(1)))},
		"placeholders not counted":    {leaf(a), sgDelta(spgVacuumRedirect, 0, 8, slices.Concat(u16(0, 1), u32(9)))},
		"vacuum has no second page":   {leaf(a), sgDelta(spgVacuumRoot, 1, 8, slices.Concat(u16(1, 0), sgState(5, 0), u16(1)))},
		"a type that is gone":         {leaf(a), sgDelta(0x00, 0, 8, nil)},
		"a type that there never was": {leaf(a), sgDelta(0x90, 0, 8, nil)},
	} {
		if err := spgistManager.apply(tc.page, tc.d); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSPGistMask(t *testing.T) {
	a := sgLeaf("a", 0)
	mask := func(p pg.Page) pg.Page { spgMask(p, pg.PageKey{}); return p }
	p := sgPage(t, spgLeaf, a)
	p.SetLSN(5)
	p.SetFlags(pg.PageFull)
	p[1000] = 1
	if !bytes.Equal(mask(p), mask(sgPage(t, spgLeaf, a))) {
		t.Error("the LSN, hints or the hole aren't masked")
	}
	if bytes.Equal(mask(sgPage(t, spgLeaf, sgDead(spgDead, 1, 1, 1))), mask(sgPage(t, spgLeaf, sgDead(spgPlaceholder, 1, 1, 1)))) {
		t.Error("the states of tuples are masked")
	}
}

func TestSPGistAllocatesNothing(t *testing.T) {
	a := sgLeaf("a", 0)
	var items [][]byte
	for range 20 {
		items = append(items, a)
	}
	full := sgPage(t, spgLeaf, items...)
	d := sgDelta(spgPickSplit, 0, 7, sgPickMain(0, 0, 0, 0, 0, 0, []int{9, 2, 5, 7}, []int{2, 5}, []byte{0, 1}, sgInner("", 1), a, a), Tag{ID: 2, Block: 5})
	p := btZero()
	if n := testing.AllocsPerRun(20, func() {
		copy(p, full)
		if err := spgistManager.apply(p, d); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func sgSeeds(t testing.TB) (seeds []func() (pg.Page, *Delta)) {
	a, inner := sgLeaf("a", 2), sgInner("in", 10, 11)
	hole, redirect := sgDead(spgPlaceholder, 0, 0, 0), sgDead(spgRedirect, 5, 1, 9)
	leaf, parent := sgPage(t, spgLeaf, a, a, hole, redirect, a, hole), sgPage(t, 0, inner, inner, hole)
	tags := []Tag{{ID: 0, Block: 1}, {ID: 1, Block: 2}, {ID: 2, Block: 3}}
	for _, s := range []struct {
		page pg.Page
		d    *Delta
	}{
		{leaf, sgDelta(spgAddLeaf, 0, 7, sgAddLeafMain(0, 0, 3, 1, 0, 0, a))},
		{parent, sgDelta(spgAddLeaf, 1, 8, sgAddLeafMain(0, 0, 2, 0, 2, 1, nil), tags...)},
		{leaf, sgDelta(spgMoveLeafs, 0, 7, sgMoveMain(0, 0, 0, []int{5, 1, 2}, []int{1, 2, 3, 4}), tags...)},
		{leaf, sgDelta(spgMoveLeafs, 1, 7, sgMoveMain(0, 0, 0, []int{5, 1}, []int{3, 6, 7}, a, a, a), tags...)},
		{parent, sgDelta(spgAddNode, 0, 8, sgAddNodeMain(1, 0, 0, 0xFF, 0, inner))},
		{parent, sgDelta(spgAddNode, 0, 8, sgAddNodeMain(1, 0, 0, 0, 0, inner), tags...)},
		{parent, sgDelta(spgAddNode, 1, 8, sgAddNodeMain(1, 3, 0, 1, 0, inner), tags...)},
		{parent, sgDelta(spgSplitTuple, 0, 8, slices.Concat(u16(2, 3), []byte{0, 1}, inner, inner))},
		{leaf, sgDelta(spgPickSplit, 0, 7, sgPickMain(0, 0, 0, 0, 0, 0, []int{1, 2, 5}, []int{3, 5}, []byte{0, 1}, inner, a, a), tags...)},
		{parent, sgDelta(spgPickSplit, 2, 5, sgPickMain(0, 0, 0, 0, 1, 0, nil, []int{2}, []byte{0}, inner, a), tags...)},
		{leaf, sgDelta(spgVacuumLeaf, 0, 7, slices.Concat(u16(1, 1, 1, 1), sgState(55, 0), u16(1), u16(2), u16(5), u16(2), u16(2), u16(2)))},
		{leaf, sgDelta(spgVacuumRoot, 0, 1, slices.Concat(u16(3, 0), sgState(55, 0), u16(1, 3, 4)))},
		{leaf, sgDelta(spgVacuumRedirect, 0, 7, slices.Concat(u16(1, 6), u32(9), u16(4)))},
	} {
		seeds = append(seeds, func() (pg.Page, *Delta) { c := *s.d; return slices.Clone(s.page), &c })
	}
	return seeds
}

func TestSPGistDamaged(t *testing.T) { mutate(t, &spgistManager, sgSeeds(t)...) }

func FuzzSPGistApply(f *testing.F) { fuzzApply(f, &spgistManager, wal.RmSPGist, sgSeeds(f)...) }
