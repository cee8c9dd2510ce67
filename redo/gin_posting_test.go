package redo

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"everpage/wal/pg"
)

// gnSegment encodes TIDs, as numbers, the plain way. Offset number 0 doesn't exist.
func gnSegment(tids ...uint64) []byte {
	b := gnTID(tids[0])
	b = append(b, 0, 0)
	for i, v := range tids[1:] {
		b = binary.AppendUvarint(b, v-tids[i])
	}
	binary.LittleEndian.PutUint16(b[6:], uint16(len(b)-8))
	if len(b)%2 != 0 {
		b = append(b, 0)
	}
	return b
}

func gnTID(v uint64) []byte {
	tid := makeTID(pg.BlockNumber(v>>11), pg.OffsetNumber(v&0x7FF))
	return tid[:]
}

// gnLists decodes the posting lists of a leaf.
func gnLists(p pg.Page) (lists [][]uint64) {
	for b := p[ginDataStart:p.Lower()]; len(b) > 0; {
		list := []uint64{uint64(blockID(b))<<11 | uint64(binary.LittleEndian.Uint16(b[4:]))}
		n := int(binary.LittleEndian.Uint16(b[6:]))
		for rest := b[8 : 8+n]; len(rest) > 0; {
			delta, size := binary.Uvarint(rest)
			list = append(list, list[len(list)-1]+delta)
			rest = rest[size:]
		}
		lists = append(lists, list)
		b = b[8+(n+1)&^1:]
	}
	return lists
}

// gnActions is the data of a record that changes a leaf.
func gnActions(actions ...[]byte) []byte {
	return slices.Concat(u16(len(actions)), slices.Concat(actions...))
}

func gnAdd(segment byte, tids ...uint64) []byte {
	b := slices.Concat([]byte{segment, ginSegmentAddItems}, u16(len(tids)))
	for _, v := range tids {
		b = append(b, gnTID(v)...)
	}
	return b
}

// gnPut inserts a segment, or replaces one.
func gnPut(segment, action byte, tids ...uint64) []byte {
	return append([]byte{segment, action}, gnSegment(tids...)...)
}

func gnValid(v uint64) uint64 {
	if v&0x7FF == 0 {
		v++
	}
	return v
}

// TestGinRecompress holds changed leaves against lists of TIDs changed the plain way.
func TestGinRecompress(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 3000 {
		// Segments with ascending TIDs, room between them, differences of every length.
		var lists [][]uint64
		var segments [][]byte
		next := uint64(r.IntN(5000) + 1)
		step := func() uint64 {
			next = gnValid(next + 1 + r.Uint64N(1<<r.IntN(34)))
			return next
		}
		for range r.IntN(12) {
			var list []uint64
			for range 1 + r.IntN(60) {
				list = append(list, step())
			}
			lists = append(lists, list)
			segments = append(segments, gnSegment(list...))
		}
		p := gnLeaf(segments...)

		var want [][]uint64
		var actions [][]byte
		for i, list := range lists {
			for r.IntN(8) == 0 {
				added := []uint64{gnValid(r.Uint64N(1 << 40)), gnValid(1<<41 + r.Uint64N(1<<40))}
				actions = append(actions, gnPut(byte(i), ginSegmentInsert, added...))
				want = append(want, added)
			}
			switch r.IntN(7) {
			case 0:
				actions = append(actions, []byte{byte(i), ginSegmentDelete})
			case 1:
				list = []uint64{gnValid(r.Uint64N(1 << 43)), 1<<43 - 1}
				actions = append(actions, gnPut(byte(i), ginSegmentReplace, list...))
				want = append(want, list)
			case 2:
				var added []uint64
				for range r.IntN(10) {
					added = append(added, gnValid(list[0]-min(list[0]-1, 50)+r.Uint64N(list[len(list)-1]-list[0]+100)))
				}
				if r.IntN(3) == 0 {
					added = append(added, list[r.IntN(len(list))]) // one that is there already
				}
				slices.Sort(added)
				added = slices.Compact(added)
				actions = append(actions, gnAdd(byte(i), added...))
				merged := slices.Concat(list, added)
				slices.Sort(merged)
				want = append(want, slices.Compact(merged))
			default:
				want = append(want, list)
			}
		}
		if r.IntN(3) == 0 {
			actions = append(actions, gnPut(byte(len(lists)), ginSegmentInsert, 1, 2))
			want = append(want, []uint64{1, 2})
		}
		var encoded []byte
		for _, list := range want {
			encoded = append(encoded, gnSegment(list...)...)
		}

		err := ginRecompress(p, ginOpaque(p[ginSpecial:]), gnActions(actions...))
		if err != nil {
			t.Fatalf("%v\n%v\n% x", err, lists, actions)
		}
		if got := p[ginDataStart:p.Lower()]; !bytes.Equal(got, encoded) {
			t.Fatalf("lists are\n%v, want\n%v", gnLists(p), want)
		}
	}
}

// A leaf of a server before 9.4 bears TIDs as they are.
func TestGinRecompressOldLeaf(t *testing.T) {
	for _, tids := range [][]uint64{nil, {1}, {1, 2, 1<<20 + 1, 1<<42 + 1}} {
		p := btZero()
		ginInit(p, ginData|ginLeaf)
		for i, v := range tids {
			copy(p[ginDataStart+6*i:], gnTID(v))
		}
		o := ginOpaque(p[ginSpecial:])
		o.setMaxOff(uint16(len(tids)))
		if err := ginRecompress(p, o, gnActions(gnPut(byte(min(1, len(tids))), ginSegmentInsert, 5, 6))); err != nil {
			t.Fatal(err)
		}
		want := []byte(nil)
		if tids != nil {
			want = gnSegment(tids...)
		}
		want = append(want, gnSegment(5, 6)...)
		if !bytes.Equal(p[ginDataStart:p.Lower()], want) || o.maxOff() != 0 || o.flags() != ginData|ginLeaf|ginCompressed {
			t.Errorf("%v became %v, flags %x, max %d", tids, gnLists(p), o.flags(), o.maxOff())
		}
	}
}

func TestGinRecompressRefuses(t *testing.T) {
	big := make([]uint64, 9000)
	for i := range big {
		big[i] = uint64(i/2000)<<11 + uint64(i%2000) + 1
	}
	for name, data := range map[string][]byte{
		"no count":                 {1},
		"fewer actions than said":  u16(1),
		"more than said":           slices.Concat(u16(0), []byte{0, ginSegmentDelete}),
		"backwards":                gnActions([]byte{1, ginSegmentDelete}, []byte{0, ginSegmentDelete}),
		"beyond the last":          gnActions([]byte{3, ginSegmentDelete}),
		"delete of none":           gnActions([]byte{2, ginSegmentDelete}),
		"replacement of none":      gnActions(gnPut(2, ginSegmentReplace, 1)),
		"additions to none":        gnActions(gnAdd(2, 1)),
		"unknown action":           gnActions([]byte{0, 0}),
		"action beyond":            gnActions([]byte{0, 5}),
		"segment cut":              gnActions(gnPut(0, ginSegmentInsert, 1, 2, 3)[:11]),
		"additions cut":            gnActions(gnAdd(0, 3)[:9]),
		"no number of additions":   gnActions([]byte{0, ginSegmentAddItems, 1}),
		"added TID without offset": gnActions(gnAdd(0, 2048)),
		"added TIDs out of order":  gnActions(gnAdd(0, 9, 8)),
		"no space to insert":       gnActions(gnPut(0, ginSegmentInsert, big...)),
		"no space to add":          gnActions(gnAdd(0, big...)),
		"too big a difference":     gnActions(gnAdd(1, 3)), // the second segment is corrupt
	} {
		p := gnLeaf(gnSegment(1, 2), []byte{0, 0, 0, 0, 1, 0, 7, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0})
		if err := ginRecompress(p, ginOpaque(p[ginSpecial:]), data); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestGinRecompressAllocatesNothing(t *testing.T) {
	full := gnLeaf(gnSegment(1, 2), gnSegment(1000, 2000, 30000))
	data := gnActions(gnAdd(0, 5), gnAdd(1, 1500))
	p := btZero()
	if n := testing.AllocsPerRun(20, func() {
		copy(p, full)
		if err := ginRecompress(p, ginOpaque(p[ginSpecial:]), data); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkGinAddItems(b *testing.B) {
	var segments [][]byte
	for i := range 25 {
		var list []uint64
		for j := range 250 {
			list = append(list, uint64(i*10+j/60)<<11+uint64(j%60)*3+1)
		}
		segments = append(segments, gnSegment(list...))
	}
	full := gnLeaf(segments...)
	data := gnActions(gnAdd(24, 243<<11+2))
	p := btZero()
	for b.Loop() {
		copy(p, full)
		if err := ginRecompress(p, ginOpaque(p[ginSpecial:]), data); err != nil {
			b.Fatal(err)
		}
	}
}
