package redo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

func haPage(t testing.TB, prev, next, bucket uint32, flags uint16, items ...[]byte) pg.Page {
	t.Helper()
	p := pg.Page(make([]byte, pg.BlockSize))
	hashInit(p, prev, bucket, flags)
	hashOpaque(p[hashSpecial:]).setNext(next)
	for i, item := range items {
		if err := addItem(p, item, pg.OffsetNumber(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// haMeta makes the metapage of a new index with four buckets.
func haMeta(t testing.TB) pg.Page {
	t.Helper()
	p := btZero()
	d := haDelta(hashInitMetaPage, 0, slices.Concat(f64(1000), u32(449), u16(307)), nil)
	if err := hashManager.apply(p, d); err != nil {
		t.Fatal(err)
	}
	return p
}

func haDelta(info, part uint8, main, data []byte, tags ...Tag) *Delta {
	return &Delta{Major: 15, LSN: 0x100, Rmgr: wal.RmHash, Info: info, Part: part, Main: main, Data: data, Tags: tags}
}

func f64(v float64) []byte { return binary.LittleEndian.AppendUint64(nil, math.Float64bits(v)) }

// haShow prints a page: opaque, then each item's first bytes, or the metapage's fields.
func haShow(p pg.Page) string {
	if !p.Valid() {
		return "invalid"
	}
	o := p[hashSpecial:]
	s := fmt.Sprintf("prev=%d next=%d bucket=%d flags=%02x", int32(binary.LittleEndian.Uint32(o)), int32(binary.LittleEndian.Uint32(o[4:])),
		int32(binary.LittleEndian.Uint32(o[8:])), binary.LittleEndian.Uint16(o[12:]))
	if m, err := hashMetaOf(p); err == nil {
		s += fmt.Sprintf(" tuples=%v max=%d high=%d low=%d point=%d free=%d spares=", m.tuples(), m.maxBucket(), m.get(hashMetaHighMask),
			m.get(hashMetaLowMask), m.get(hashMetaSplitPoint), m.get(hashMetaFirstFree))
		for i := range 8 {
			s += fmt.Sprintf("%d,", m.get(hashMetaSpares+4*i))
		}
		for i := range m.get(hashMetaBitmaps) {
			s += fmt.Sprintf(" map=%d", m.get(hashMetaMap+4*int(i)))
		}
		return s
	}
	if o[12]&lhBitmapPage != 0 {
		return s + fmt.Sprintf(" bits=%x", p[pg.PageHeaderSize:p.Lower()])
	}
	for i := 1; i <= p.ItemCount(); i++ {
		s += " " + string(bytes.TrimRight(p[p.Item(pg.OffsetNumber(i)).Offset()+8:][:8], "\x00"))
	}
	return s
}

func TestHashRecords(t *testing.T) {
	a, b, c := btTuple("a", btTID{1, 1}), btTuple("b", btTID{1, 2}), btTuple("c", btTID{1, 3})
	bitmap := func() pg.Page {
		p := btZero()
		if err := hashInitBitmap(p, 4); err != nil {
			t.Fatal(err)
		}
		copy(p[24:], []byte{0x0F, 0, 0, 0x80})
		return p
	}
	const bucket = lhBucketPage
	squeeze := func(tuples int, prevIsWritten byte) []byte {
		return slices.Concat(u32(7, 9), u16(tuples), []byte{0, prevIsWritten})
	}
	allocate := func(flags byte) []byte { return slices.Concat(u32(4), u16(0x22, 0x12), []byte{flags}) }
	for _, tc := range []struct {
		name  string
		page  pg.Page
		d     *Delta
		want  string
		image bool // the change is made to a restored image too, and by it alone
	}{
		{name: "INIT_META_PAGE", page: btZero(), d: haDelta(hashInitMetaPage, 0, slices.Concat(f64(0), u32(449), u16(307)), nil),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=1 high=3 low=1 point=1 free=0 spares=0,1,0,0,0,0,0,0,"},
		{name: "INIT_META_PAGE of some tuples", page: btZero(), d: haDelta(hashInitMetaPage, 0, slices.Concat(f64(1000), u32(449), u16(307)), nil),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=3 high=7 low=3 point=2 free=0 spares=0,0,1,0,0,0,0,0,"},
		{name: "INIT_BITMAP_PAGE", page: btZero(), d: haDelta(hashInitBitmapPage, 0, u16(4), nil),
			want: "prev=-1 next=-1 bucket=-1 flags=04 bits=ffffffff"},
		{name: "INIT_BITMAP_PAGE meta", page: haMeta(t), d: haDelta(hashInitBitmapPage, 1, u16(4096), nil),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=3 high=7 low=3 point=2 free=0 spares=0,0,1,0,0,0,0,0, map=5"},
		{name: "INSERT", page: haPage(t, 1, 2, 3, bucket, a, c), d: haDelta(hashInsert, 0, u16(2), b), want: "prev=1 next=2 bucket=3 flags=02 a b c"},
		{name: "INSERT meta", page: haMeta(t), d: haDelta(hashInsert, 1, u16(2), nil),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=1 max=3 high=7 low=3 point=2 free=0 spares=0,0,1,0,0,0,0,0,"},
		{name: "ADD_OVFL_PAGE", page: btZero(), d: haDelta(hashAddOvflPage, 0, []byte{0, 16, 1}, u32(6), Tag{ID: 1, Block: 44}),
			want: "prev=44 next=-1 bucket=6 flags=01"},
		{name: "ADD_OVFL_PAGE before", page: haPage(t, 1, 2, 3, bucket, a), d: haDelta(hashAddOvflPage, 1, []byte{0, 16, 1}, nil, Tag{ID: 0, Block: 45}),
			want: "prev=1 next=45 bucket=3 flags=02 a"},
		{name: "ADD_OVFL_PAGE bitmap", page: bitmap(), d: haDelta(hashAddOvflPage, 2, []byte{0, 16, 1}, u32(13)),
			want: "prev=-1 next=-1 bucket=-1 flags=04 bits=0f200080"},
		{name: "ADD_OVFL_PAGE new bitmap", page: btZero(), d: haDelta(hashAddOvflPage, 3, []byte{2, 0, 0}, nil),
			want: "prev=-1 next=-1 bucket=-1 flags=04 bits=ffff"},
		{name: "ADD_OVFL_PAGE meta, page reused", page: haMeta(t), d: haDelta(hashAddOvflPage, 4, []byte{0, 16, 1}, u32(8)),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=3 high=7 low=3 point=2 free=8 spares=0,0,1,0,0,0,0,0,"},
		{name: "ADD_OVFL_PAGE meta, page new", page: haMeta(t), d: haDelta(hashAddOvflPage, 4, []byte{0, 16, 0}, u32(8)),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=3 high=7 low=3 point=2 free=8 spares=0,0,2,0,0,0,0,0,"},
		{name: "ADD_OVFL_PAGE meta, bitmap new", page: haMeta(t), d: haDelta(hashAddOvflPage, 4, []byte{0, 16, 0}, u32(8), Tag{ID: 3, Block: 99}),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=3 high=7 low=3 point=2 free=8 spares=0,0,3,0,0,0,0,0, map=99"},
		{name: "SPLIT_ALLOCATE_PAGE old", page: haPage(t, 1, 2, 3, bucket, a), d: haDelta(hashSplitAllocatePage, 0, allocate(0), nil),
			want: "prev=4 next=2 bucket=3 flags=22 a", image: true},
		{name: "SPLIT_ALLOCATE_PAGE new", page: btZero(), d: haDelta(hashSplitAllocatePage, 1, allocate(0), nil), want: "prev=4 next=-1 bucket=4 flags=12"},
		{name: "SPLIT_ALLOCATE_PAGE meta", page: haMeta(t), d: haDelta(hashSplitAllocatePage, 2, allocate(0), nil),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=4 high=7 low=3 point=2 free=0 spares=0,0,1,0,0,0,0,0,"},
		{name: "SPLIT_ALLOCATE_PAGE meta, masks", page: haMeta(t), d: haDelta(hashSplitAllocatePage, 2, allocate(1), u32(7, 15)),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=4 high=15 low=7 point=2 free=0 spares=0,0,1,0,0,0,0,0,"},
		{name: "SPLIT_ALLOCATE_PAGE meta, split point", page: haMeta(t), d: haDelta(hashSplitAllocatePage, 2, allocate(2), u32(3, 5)),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=4 high=7 low=3 point=3 free=0 spares=0,0,1,5,0,0,0,0,"},
		{name: "SPLIT_ALLOCATE_PAGE meta, both", page: haMeta(t), d: haDelta(hashSplitAllocatePage, 2, allocate(3), u32(7, 15, 3, 5)),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=4 high=15 low=7 point=3 free=0 spares=0,0,1,5,0,0,0,0,"},
		{name: "SPLIT_COMPLETE old", page: haPage(t, 1, 2, 3, 0x22, a), d: haDelta(hashSplitComplete, 0, u16(0x42, 0x02), nil),
			want: "prev=1 next=2 bucket=3 flags=42 a", image: true},
		{name: "SPLIT_COMPLETE new", page: haPage(t, 1, 2, 3, 0x12, a), d: haDelta(hashSplitComplete, 1, u16(0x42, 0x02), nil),
			want: "prev=1 next=2 bucket=3 flags=02 a", image: true},
		{name: "MOVE_PAGE_CONTENTS to", page: haPage(t, 1, 2, 3, bucket, b), d: haDelta(hashMovePageContents, 1, slices.Concat(u16(2), []byte{0}),
			slices.Concat(u16(1, 3), a, c)), want: "prev=1 next=2 bucket=3 flags=02 a b c"},
		{name: "MOVE_PAGE_CONTENTS from", page: haPage(t, 1, 2, 3, bucket, a, b, c), d: haDelta(hashMovePageContents, 2, slices.Concat(u16(2), []byte{0}), u16(1, 3)),
			want: "prev=1 next=2 bucket=3 flags=02 b"},
		{name: "SQUEEZE_PAGE to", page: haPage(t, 1, 2, 3, bucket, b), d: haDelta(hashSqueezePage, 1, squeeze(1, 0), slices.Concat(u16(1), a)),
			want: "prev=1 next=2 bucket=3 flags=02 a b"},
		{name: "SQUEEZE_PAGE to the page before", page: haPage(t, 1, 2, 3, bucket, b), d: haDelta(hashSqueezePage, 1, squeeze(1, 1), slices.Concat(u16(1), a)),
			want: "prev=1 next=9 bucket=3 flags=02 a b"},
		{name: "SQUEEZE_PAGE freed", page: haPage(t, 1, 2, 3, lhOverflowPage, b), d: haDelta(hashSqueezePage, 2, squeeze(1, 1), nil),
			want: "prev=-1 next=-1 bucket=-1 flags=00"},
		{name: "SQUEEZE_PAGE before", page: haPage(t, 1, 2, 3, bucket, b), d: haDelta(hashSqueezePage, 3, squeeze(1, 0), nil),
			want: "prev=1 next=9 bucket=3 flags=02 b"},
		{name: "SQUEEZE_PAGE behind", page: haPage(t, 1, 2, 3, bucket, b), d: haDelta(hashSqueezePage, 4, squeeze(1, 0), nil),
			want: "prev=7 next=2 bucket=3 flags=02 b"},
		{name: "SQUEEZE_PAGE bitmap", page: bitmap(), d: haDelta(hashSqueezePage, 5, squeeze(1, 0), u32(31)),
			want: "prev=-1 next=-1 bucket=-1 flags=04 bits=0f000000"},
		{name: "SQUEEZE_PAGE meta", page: haMeta(t), d: haDelta(hashSqueezePage, 6, squeeze(1, 0), u32(31)),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=0 max=3 high=7 low=3 point=2 free=31 spares=0,0,1,0,0,0,0,0,"},
		{name: "DELETE", page: haPage(t, 1, 2, 3, bucket|lhPageHasDeadTuples, a, b, c), d: haDelta(hashDelete, 1, []byte{0, 1}, u16(1, 3)),
			want: "prev=1 next=2 bucket=3 flags=82 b"},
		{name: "DELETE of the dead", page: haPage(t, 1, 2, 3, bucket|lhPageHasDeadTuples, a, b), d: haDelta(hashDelete, 1, []byte{1, 1}, u16(1)),
			want: "prev=1 next=2 bucket=3 flags=02 b"},
		{name: "SPLIT_CLEANUP", page: haPage(t, 1, 2, 3, bucket|lhBucketNeedsSplitCleanup, a), d: haDelta(hashSplitCleanup, 0, nil, nil),
			want: "prev=1 next=2 bucket=3 flags=02 a"},
		{name: "UPDATE_META_PAGE", page: haMeta(t), d: haDelta(hashUpdateMetaPage, 0, f64(77), nil),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=77 max=3 high=7 low=3 point=2 free=0 spares=0,0,1,0,0,0,0,0,"},
		{name: "VACUUM_ONE_PAGE", page: haPage(t, 1, 2, 3, bucket|lhPageHasDeadTuples, a, b, c), d: haDelta(hashVacuumOnePage, 0, slices.Concat(u32(5, 2), u16(1, 2)), nil),
			want: "prev=1 next=2 bucket=3 flags=02 c"},
		{name: "VACUUM_ONE_PAGE meta", page: haMeta(t), d: haDelta(hashVacuumOnePage, 1, slices.Concat(u32(5, 2), u16(1, 2)), nil),
			want: "prev=-1 next=-1 bucket=-1 flags=08 tuples=-2 max=3 high=7 low=3 point=2 free=0 spares=0,0,1,0,0,0,0,0,"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			restored := slices.Clone(tc.page)
			before := slices.Clone(tc.page)
			if err := hashManager.apply(tc.page, tc.d); err != nil {
				t.Fatal(err)
			}
			if got := haShow(tc.page); got != tc.want {
				t.Fatalf("the page is\n%s, want\n%s", got, tc.want)
			}
			if err := hashManager.afterImage(restored, tc.d); err != nil {
				t.Fatal(err)
			}
			want := before
			if tc.image {
				want = tc.page
			}
			if !bytes.Equal(restored, want) {
				t.Fatalf("a restored page is\n%s, want\n%s", haShow(restored), haShow(want))
			}
		})
	}
}

// TestHashLayouts holds what differs between majors.
func TestHashLayouts(t *testing.T) {
	a, b := btTuple("a", btTID{1, 1}), btTuple("b", btTID{1, 2})
	for _, major := range pg.Majors() {
		// From 16 on the count has two bytes, and a flag and any padding lie where its upper half was.
		main := slices.Concat(u32(5, 1), u16(1))
		if major >= 16 {
			main[6], main[7] = 1, 0xEE
		}
		p := haPage(t, 1, 2, 3, lhBucketPage, a, b)
		d := haDelta(hashVacuumOnePage, 0, main, nil)
		d.Major = major
		if err := hashManager.apply(p, d); err != nil || haShow(p) != "prev=1 next=2 bucket=3 flags=02 b" {
			t.Errorf("%d: VACUUM_ONE_PAGE: %v, %s", major, err, haShow(p))
		}

		// A squeeze that writes nothing: from 17 on the page stays as it is, before its LSN moves.
		for _, prevIsWritten := range []byte{0, 1} {
			p = haPage(t, 1, 2, 3, lhBucketPage, a)
			before := slices.Clone(p)
			d = haDelta(hashSqueezePage, 1, slices.Concat(u32(7, 9), u16(0), []byte{1, prevIsWritten}), nil)
			d.Major = major
			err := hashManager.apply(p, d)
			if unchanged := major >= 17 && prevIsWritten == 0; unchanged != errors.Is(err, errNoChange) || !unchanged && err != nil {
				t.Errorf("%d: SQUEEZE_PAGE without tuples, page before written %d: %v", major, prevIsWritten, err)
			}
			if (prevIsWritten == 0) != bytes.Equal(before, p) {
				t.Errorf("%d: SQUEEZE_PAGE without tuples, page before written %d: %s", major, prevIsWritten, haShow(p))
			}
		}
	}
}

// TestHashLockedPages tells that pages which a record only locks are left out of what it changes, but not their images.
func TestHashLockedPages(t *testing.T) {
	key := func(b pg.BlockNumber) pg.PageKey {
		return pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}}, Block: b}
	}
	img := haPage(t, 1, 2, 3, lhBucketPage)
	for _, op := range []uint8{hashMovePageContents, hashSqueezePage, hashDelete} {
		for _, image := range []bool{false, true} {
			rec := &wal.Record{Major: 15, Rmgr: wal.RmHash, Info: op, End: 0x100, Main: make([]byte, 12),
				Blocks: []wal.Block{{ID: 0, PageKey: key(3)}, {ID: 1, PageKey: key(4)}}}
			want := 1
			if image {
				rec.Blocks[0].HasImage, rec.Blocks[0].Image = true, wal.Image{Apply: true, Data: img}
				want = 2
			}
			var ch Changes
			if err := Touch(rec, &ControlState{}, &ch); err != nil {
				t.Fatal(err)
			}
			if len(ch.Pages) != want || ch.Pages[want-1].Key != key(4) {
				t.Errorf("%s, image %v: %d pages change, want %d", hashNames.of(15, op), image, len(ch.Pages), want)
			}
		}
		if err := hashManager.apply(haPage(t, 1, 2, 3, lhBucketPage), haDelta(op, 0, make([]byte, 12), nil)); !errors.Is(err, errNoChange) {
			t.Errorf("%s of a locked page: %v, want %v", hashNames.of(15, op), err, errNoChange)
		}
	}
}

// TestHashBuckets holds the split points against their definition: ten that double the buckets at once, then four phases for each doubling.
func TestHashBuckets(t *testing.T) {
	total, phase := uint32(1), uint32(0)
	for ; total < 0x40000000; phase++ {
		if got := hashTotalBuckets(phase); got != total {
			t.Fatalf("%d buckets up to phase %d, want %d", got, phase, total)
		}
		if got := hashSpareIndex(total); got != phase {
			t.Fatalf("phase %d for %d buckets, want %d", got, total, phase)
		}
		if total > 1 && hashSpareIndex(total+1) != phase+1 {
			t.Fatalf("phase %d for %d buckets, want %d", hashSpareIndex(total+1), total+1, phase+1)
		}
		if phase < 9 {
			total *= 2
		} else {
			step := uint32(512) << ((phase - 9) / 4) / 4
			total += step
		}
	}
}

func TestHashRefuses(t *testing.T) {
	a := btTuple("a", btTID{1, 1})
	bucket := func(items ...[]byte) pg.Page { return haPage(t, 1, 2, 3, lhBucketPage, items...) }
	full := haMeta(t)
	fm, _ := hashMetaOf(full)
	fm.set(hashMetaBitmaps, hashMaxBitmaps)
	astray := haMeta(t)
	am, _ := hashMetaOf(astray)
	am.set(hashMetaSplitPoint, hashMaxSplitPoints)
	heap := btZero()
	heap.Init(0)
	for name, tc := range map[string]struct {
		page pg.Page
		d    *Delta
	}{
		"not a hash page":            {heap, haDelta(hashInsert, 0, u16(1), a)},
		"not a metapage":             {bucket(), haDelta(hashInsert, 1, u16(1), nil)},
		"offset beyond":              {bucket(), haDelta(hashInsert, 0, u16(2), a)},
		"tuple cut":                  {bucket(), haDelta(hashInsert, 0, u16(1), a[:12])},
		"main data cut":              {bucket(), haDelta(hashInsert, 0, nil, a)},
		"no fill factor":             {btZero(), haDelta(hashInitMetaPage, 0, make([]byte, 14), nil)},
		"bitmap too large":           {btZero(), haDelta(hashInitBitmapPage, 0, u16(9000), nil)},
		"bitmap list full":           {full, haDelta(hashInitBitmapPage, 1, u16(9000), nil)},
		"overflow page alone":        {btZero(), haDelta(hashAddOvflPage, 0, []byte{0, 16, 1}, u32(6))},
		"bit beyond the bitmap":      {haPage(t, 0, 0, 0, lhBitmapPage), haDelta(hashAddOvflPage, 2, []byte{0, 16, 1}, u32(1<<31))},
		"split point out of range":   {astray, haDelta(hashAddOvflPage, 4, []byte{0, 16, 0}, u32(1))},
		"new split point too large":  {haMeta(t), haDelta(hashSplitAllocatePage, 2, slices.Concat(u32(4), u16(1, 1), []byte{2}), u32(98, 1))},
		"masks cut":                  {haMeta(t), haDelta(hashSplitAllocatePage, 2, slices.Concat(u32(4), u16(1, 1), []byte{1}), u32(98))},
		"split page without image":   {bucket(), haDelta(hashSplitPage, 0, nil, nil)},
		"fewer tuples than said":     {bucket(), haDelta(hashMovePageContents, 1, slices.Concat(u16(2), []byte{0}), slices.Concat(u16(1, 2), a))},
		"more tuples than said":      {bucket(), haDelta(hashMovePageContents, 1, slices.Concat(u16(1), []byte{0}), slices.Concat(u16(1), a, a))},
		"odd list of offsets":        {bucket(a), haDelta(hashMovePageContents, 2, slices.Concat(u16(2), []byte{0}), []byte{1})},
		"before, but it was written": {bucket(a), haDelta(hashSqueezePage, 3, slices.Concat(u32(1, 2), u16(0), []byte{0, 1}), nil)},
		"delete beyond":              {bucket(a), haDelta(hashDelete, 1, []byte{0, 0}, u16(2))},
		"vacuum of more than listed": {bucket(a), haDelta(hashVacuumOnePage, 0, u32(1, 1), nil)},
		"vacuum of a negative count": {bucket(a), haDelta(hashVacuumOnePage, 0, u32(1, -1), nil)},
		"no such block":              {bucket(a), haDelta(hashSplitComplete, 2, u16(1, 1), nil)},
		"unknown type":               {bucket(a), haDelta(0xD0, 0, nil, nil)},
	} {
		if err := hashManager.apply(tc.page, tc.d); err == nil || errors.Is(err, errNoChange) {
			t.Errorf("%s: %v, want an error", name, err)
		}
	}
}

func TestHashMask(t *testing.T) {
	a := btTuple("a", btTID{1, 1})
	dead := haPage(t, 1, 2, 3, lhBucketPage|lhPageHasDeadTuples, a)
	dead.SetItem(1, pg.NewItemID(dead.Item(1).Offset(), pg.LPDead, dead.Item(1).Length()))
	live := haPage(t, 1, 2, 3, lhBucketPage, a)
	other := haPage(t, 1, 2, 4, lhBucketPage, a)
	for _, p := range []pg.Page{dead, live, other} {
		hashManager.mask(p, pg.PageKey{})
	}
	if !bytes.Equal(dead, live) {
		t.Error("the mark of a dead tuple isn't masked")
	}
	if bytes.Equal(live, other) {
		t.Error("the mask hides the bucket")
	}
	unused := haPage(t, 1, 2, 3, lhUnusedPage, a)
	hashManager.mask(unused, pg.PageKey{})
	if !bytes.Equal(unused[pg.PageHeaderSize:], make([]byte, pg.BlockSize-pg.PageHeaderSize)) {
		t.Error("an unused page's content isn't masked")
	}
}

func haSeeds(t testing.TB) (seeds []func() (pg.Page, *Delta)) {
	a, b := btTuple("a", btTID{1, 1}), btTuple("b", btTID{1, 2})
	add := func(meta bool, d *Delta) {
		seeds = append(seeds, func() (pg.Page, *Delta) {
			c := *d
			if meta {
				return haMeta(t), &c
			}
			return haPage(t, 1, 2, 3, lhBucketPage, a, b, a, b), &c
		})
	}
	tags := []Tag{{ID: 0, Block: 1}, {ID: 1, Block: 2}, {ID: 3, Block: 3}}
	add(false, haDelta(hashInitMetaPage, 0, slices.Concat(f64(1e6), u32(449), u16(307)), nil))
	add(false, haDelta(hashInitBitmapPage, 0, u16(4096), nil))
	add(true, haDelta(hashInitBitmapPage, 1, u16(4096), nil))
	add(false, haDelta(hashInsert, 0, u16(2), a))
	add(true, haDelta(hashAddOvflPage, 4, []byte{0, 16, 0}, u32(8), tags...))
	add(false, haDelta(hashAddOvflPage, 2, []byte{0, 16, 0}, u32(8), tags...))
	add(true, haDelta(hashSplitAllocatePage, 2, slices.Concat(u32(4), u16(1, 1), []byte{3}), u32(7, 15, 3, 5)))
	add(false, haDelta(hashMovePageContents, 1, slices.Concat(u16(2), []byte{0}), slices.Concat(u16(1, 3), a, b)))
	add(false, haDelta(hashSqueezePage, 1, slices.Concat(u32(7, 9), u16(1), []byte{0, 1}), slices.Concat(u16(1), a)))
	add(false, haDelta(hashDelete, 1, []byte{1, 1}, u16(1, 2, 3)))
	add(false, haDelta(hashVacuumOnePage, 0, slices.Concat(u32(5, 3), u16(1, 2, 4)), nil))
	return seeds
}

func TestHashDamaged(t *testing.T) { mutate(t, &hashManager, haSeeds(t)...) }

func FuzzHashApply(f *testing.F) { fuzzApply(f, &hashManager, wal.RmHash, haSeeds(f)...) }
