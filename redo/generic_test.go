package redo

import (
	"bytes"
	"slices"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

func gePage() pg.Page {
	p := btZero()
	p.Init(8)
	for i := pg.PageHeaderSize; i < pg.BlockSize; i++ {
		p[i] = byte(i)
	}
	p.SetLower(100)
	p.SetUpper(200)
	return p
}

func geFragment(at int, b ...byte) []byte { return slices.Concat(u16(at, len(b)), b) }

func geDelta(data []byte) *Delta {
	return &Delta{Major: 15, LSN: 0x100, Rmgr: wal.RmGeneric, Part: 3, Data: data}
}

func TestGeneric(t *testing.T) {
	want := gePage()
	want[30], want[31], want[8191] = 1, 2, 3
	want.SetLower(96)
	clear(want[96:200]) // what was the hole, and what became of it
	p := gePage()
	err := genericManager.apply(p, geDelta(slices.Concat(geFragment(12, 96, 0), geFragment(30, 1, 2), geFragment(150, 9), geFragment(8191, 3))))
	if err != nil || !bytes.Equal(p, want) {
		t.Errorf("%v, or the page differs", err)
	}
	for name, data := range map[string][]byte{
		"header cut":          {1, 0, 1},
		"fragment cut":        geFragment(30, 1, 2)[:5],
		"beyond the page":     geFragment(8191, 1, 2),
		"far beyond":          geFragment(0xFFFF, 1),
		"pointers crossed":    geFragment(12, 0xFF, 0x1F),
		"page no longer init": geFragment(12, make([]byte, 4)...),
	} {
		if genericManager.apply(gePage(), geDelta(data)) == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestGenericMask(t *testing.T) {
	p, q := gePage(), gePage()
	p.SetLSN(7)
	clear(p[100:200])
	genericMask(p, pg.PageKey{})
	genericMask(q, pg.PageKey{})
	if !bytes.Equal(p, q) {
		t.Error("the LSN or the hole isn't masked")
	}
	q.SetFlags(pg.PageFull)
	genericMask(q, pg.PageKey{})
	if bytes.Equal(p, q) {
		t.Error("hint bits are masked")
	}
}

func geSeeds() (seeds []func() (pg.Page, *Delta)) {
	for _, data := range [][]byte{nil, geFragment(30, 1, 2), slices.Concat(geFragment(12, 100, 0, 100, 0), geFragment(8100, 1, 2, 3, 4, 5))} {
		seeds = append(seeds, func() (pg.Page, *Delta) { return gePage(), geDelta(data) })
	}
	return seeds
}

func TestGenericDamaged(t *testing.T) { mutate(t, &genericManager, geSeeds()...) }

func FuzzGenericApply(f *testing.F) { fuzzApply(f, &genericManager, wal.RmGeneric, geSeeds()...) }
