package page

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"testing"

	"everpage/wal/pg"
)

func newPage(special int) pg.Page {
	p := pg.Page(make([]byte, pg.BlockSize))
	p.Init(special)
	return p
}

func item(seed, n int) []byte {
	return bytes.Repeat([]byte{byte(seed)}, n)
}

func mustAdd(t *testing.T, p pg.Page, it []byte, off pg.OffsetNumber, f Flags) pg.OffsetNumber {
	t.Helper()
	got, err := Add(p, it, off, f)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func layout(p pg.Page) string {
	s := fmt.Sprintf("lower %d upper %d flags %d:", p.Lower(), p.Upper(), p.Flags())
	for i := 1; i <= p.ItemCount(); i++ {
		id := p.Item(pg.OffsetNumber(i))
		s += fmt.Sprintf(" %d/%d/%d", id.Offset(), id.Flags(), id.Length())
		if id.Length() > 0 {
			s += fmt.Sprintf("=%02x", p[id.Offset()])
		}
	}
	return s
}

func wantLayout(t *testing.T, p pg.Page, want string) {
	t.Helper()
	if got := layout(p); got != want {
		t.Errorf("page is\n%s, want\n%s", got, want)
	}
}

func TestAdd(t *testing.T) {
	p := newPage(0)
	for i := 1; i <= 3; i++ {
		if off := mustAdd(t, p, item(i, 20), 0, 0); int(off) != i {
			t.Fatalf("item %d got offset %d", i, off)
		}
	}
	wantLayout(t, p, "lower 36 upper 8120 flags 0: 8168/1/20=01 8144/1/20=02 8120/1/20=03")
	mustAdd(t, p, item(9, 8), 2, 0) // shuffles
	wantLayout(t, p, "lower 40 upper 8112 flags 0: 8168/1/20=01 8112/1/8=09 8144/1/20=02 8120/1/20=03")
	if _, err := Add(p, item(1, 8), 2, Overwrite); !errors.Is(err, ErrOffset) {
		t.Errorf("overwriting a used item: %v", err)
	}
	if _, err := Add(p, item(1, 8), 6, Overwrite); !errors.Is(err, ErrOffset) {
		t.Errorf("adding beyond the next offset: %v", err)
	}
	p.SetItem(3, 0)
	if off := mustAdd(t, p, item(7, 8), 0, 0); off != 5 {
		t.Errorf("without the hint the free line pointer was taken: %d", off)
	}
	p.SetFlags(pg.PageHasFreeLines)
	if off := mustAdd(t, p, item(8, 8), 0, 0); off != 3 {
		t.Errorf("with the hint offset %d was taken, want 3", off)
	}
	if off := mustAdd(t, p, item(8, 8), 0, 0); off != 6 || p.Flags() != 0 {
		t.Errorf("a wrong hint must be reset: offset %d, flags %d", off, p.Flags())
	}
}

func TestAddFull(t *testing.T) {
	p := newPage(16)
	for i := 0; ; i++ {
		if _, err := Add(p, item(1, 100), 0, Heap); err != nil {
			if !errors.Is(err, ErrSpace) || i != (pg.BlockSize-24-16)/(104+4) {
				t.Errorf("%d items: %v", i, err)
			}
			break
		}
	}
	p = newPage(0)
	for i := 1; i <= MaxHeapTuples; i++ {
		mustAdd(t, p, item(1, 8), 0, Heap)
	}
	if _, err := Add(p, item(1, 8), 0, Heap); !errors.Is(err, ErrOffset) {
		t.Errorf("a heap page took %d items: %v", MaxHeapTuples+1, err)
	}
	mustAdd(t, p, item(1, 8), 0, 0)
}

// 14's pruning leaves unused line pointers at the end, 15's cuts them.
func TestRepairFragmentation(t *testing.T) {
	for _, major := range pg.Majors() {
		p := newPage(0)
		for i := 1; i <= 6; i++ {
			mustAdd(t, p, item(i, 20), 0, Heap)
		}
		p.SetItem(1, pg.NewItemID(3, pg.LPRedirect, 0))
		p.SetItem(2, 0)
		p.SetItem(4, pg.NewItemID(0, pg.LPDead, 0))
		p.SetItem(5, 0)
		p.SetItem(6, 0)
		if err := RepairFragmentation(p, major); err != nil {
			t.Fatal(err)
		}
		want := "lower 40 upper 8168 flags 1: 3/2/0 0/0/0 8168/1/20=03 0/3/0"
		if major == 14 {
			want = "lower 48 upper 8168 flags 1: 3/2/0 0/0/0 8168/1/20=03 0/3/0 0/0/0 0/0/0"
		}
		wantLayout(t, p, want)
	}
}

// From 15 on repairing may leave no line pointer, truncating always leaves one.
func TestEmptiedPage(t *testing.T) {
	p := newPage(0)
	mustAdd(t, p, item(1, 20), 0, Heap)
	mustAdd(t, p, item(1, 20), 0, Heap)
	p.SetItem(1, 0)
	p.SetItem(2, 0)
	q := slices.Clone(p)
	if err := RepairFragmentation(p, 15); err != nil {
		t.Fatal(err)
	}
	wantLayout(t, p, "lower 24 upper 8192 flags 0:")
	if err := TruncateLinePointers(q); err != nil {
		t.Fatal(err)
	}
	wantLayout(t, q, "lower 28 upper 8144 flags 1: 0/0/0")
}

func TestTruncateLinePointers(t *testing.T) {
	p := newPage(0)
	for i := 1; i <= 5; i++ {
		mustAdd(t, p, item(i, 8), 0, Heap)
	}
	p.SetItem(4, 0)
	p.SetItem(5, 0)
	if err := TruncateLinePointers(p); err != nil {
		t.Fatal(err)
	}
	wantLayout(t, p, "lower 36 upper 8152 flags 0: 8184/1/8=01 8176/1/8=02 8168/1/8=03")
	p.SetItem(1, 0)
	if err := TruncateLinePointers(p); err != nil {
		t.Fatal(err)
	}
	if p.ItemCount() != 3 || p.Flags() != pg.PageHasFreeLines {
		t.Error(layout(p))
	}
}

func TestIndexDelete(t *testing.T) {
	p := newPage(16)
	for i := 1; i <= 4; i++ {
		mustAdd(t, p, item(i, 12), 1, 0) // each before the others
	}
	if err := IndexDelete(p, 2); err != nil { // item 3
		t.Fatal(err)
	}
	wantLayout(t, p, "lower 36 upper 8128 flags 0: 8128/1/12=04 8144/1/12=02 8160/1/12=01")
	if err := IndexDeleteNoCompact(p, 2); err != nil {
		t.Fatal(err)
	}
	wantLayout(t, p, "lower 36 upper 8144 flags 0: 8144/1/12=04 0/0/0 8160/1/12=01")
	if err := IndexDeleteNoCompact(p, 3); err != nil {
		t.Fatal(err)
	}
	wantLayout(t, p, "lower 32 upper 8160 flags 0: 8160/1/12=04 0/0/0")
	if err := IndexDelete(p, 2); !errors.Is(err, ErrItem) {
		t.Errorf("deleting an item without storage: %v", err)
	}
	if err := IndexDelete(p, 3); !errors.Is(err, ErrOffset) {
		t.Errorf("deleting an item that is not there: %v", err)
	}
}

func TestIndexOverwrite(t *testing.T) {
	p := newPage(16)
	for i := 1; i <= 3; i++ {
		mustAdd(t, p, item(i, 16), 0, 0)
	}
	p.SetItem(2, pg.NewItemID(p.Item(2).Offset(), pg.LPDead, 16))
	if err := IndexOverwrite(p, 2, item(9, 33)); err != nil {
		t.Fatal(err)
	}
	wantLayout(t, p, "lower 36 upper 8104 flags 0: 8160/1/16=01 8120/3/33=09 8104/1/16=03")
	if err := IndexOverwrite(p, 2, item(8, 7)); err != nil {
		t.Fatal(err)
	}
	wantLayout(t, p, "lower 36 upper 8136 flags 0: 8160/1/16=01 8152/3/7=08 8136/1/16=03")
	if err := IndexOverwrite(p, 1, item(1, 8200)); !errors.Is(err, ErrSpace) {
		t.Errorf("overwriting with an item that doesn't fit: %v", err)
	}
}

// Whatever order items lie in, repacking puts them down from the special area in line pointer order.
func TestRepackRandom(t *testing.T) {
	seed := rand.Int63()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewSource(seed))
	for range 2000 {
		heap := r.Intn(2) == 0
		special := 0
		if !heap {
			special = 8 * r.Intn(4)
		}
		p := newPage(special)
		n := 4 + r.Intn(60)
		for i := 1; i <= n; i++ {
			off := pg.OffsetNumber(0)
			if r.Intn(3) > 0 {
				off = pg.OffsetNumber(1 + r.Intn(p.ItemCount()+1))
			}
			mustAdd(t, p, item(i, 1+r.Intn(100)), off, 0)
		}
		var kill []pg.OffsetNumber
		var keep [][]byte
		for i := pg.OffsetNumber(1); int(i) <= n; i++ {
			if r.Intn(3) == 0 {
				kill = append(kill, i)
				continue
			}
			tup, err := Tuple(p, i)
			if err != nil {
				t.Fatal(err)
			}
			keep = append(keep, slices.Clone(tup))
		}
		var err error
		if heap {
			for _, off := range kill {
				p.SetItem(off, 0)
			}
			err = RepairFragmentation(p, 14)
		} else {
			err = IndexMultiDelete(p, kill)
		}
		if err != nil {
			t.Fatal(err)
		}
		at, k := int(p.Special()), 0
		for i := pg.OffsetNumber(1); int(i) <= p.ItemCount(); i++ {
			if p.Item(i).Length() == 0 {
				continue
			}
			tup, err := Tuple(p, i)
			if err != nil {
				t.Fatal(err)
			}
			at -= pg.MaxAlign(len(tup))
			if !bytes.Equal(tup, keep[k]) {
				t.Fatalf("item %d changed", i)
			}
			if (heap || len(kill) > 2) && p.Item(i).Offset() != at {
				t.Fatalf("item %d lies at %d, want %d", i, p.Item(i).Offset(), at)
			}
			k++
		}
		if k != len(keep) || int(p.Upper()) != at {
			t.Fatalf("%d items of %d are left, upper %d, want %d", k, len(keep), p.Upper(), at)
		}
	}
}

func FuzzOperations(f *testing.F) {
	f.Add([]byte{28, 0, 0xF8, 0x1F, 0, 0x20, 4, 0x20, 0, 0, 0, 0, 0xF8, 0x9F, 0x10, 0}, uint8(1), uint16(1), uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, op uint8, x, y uint16) {
		p := pg.Page(make([]byte, pg.BlockSize))
		copy(p[12:], b)
		offs := []pg.OffsetNumber{x, y, x + y, x + y + 1}
		// Only that nothing panics, and that the header stays sound where an operation succeeds.
		var err error
		switch op % 8 {
		case 0:
			_, err = Add(p, make([]byte, y%9000), x, Flags(op>>3&3))
			if err == nil {
				return // adding doesn't look at the special area's alignment
			}
		case 1:
			err = RepairFragmentation(p, 15)
		case 2:
			err = TruncateLinePointers(p)
		case 3:
			err = IndexDelete(p, x)
		case 4:
			err = IndexDeleteNoCompact(p, x)
		case 5:
			err = IndexMultiDelete(p, offs[:op>>3&3+1])
		case 6:
			err = IndexOverwrite(p, x, make([]byte, y%9000))
		case 7:
			_, err = Tuple(p, x)
			if err == nil {
				return
			}
		}
		if err == nil {
			if err := CheckHeader(p); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestNoAllocation(t *testing.T) {
	p := newPage(0)
	it := item(1, 40)
	kill := []pg.OffsetNumber{1, 3, 5, 7}
	if n := testing.AllocsPerRun(100, func() {
		p.Init(0)
		for range 100 {
			if _, err := Add(p, it, 1, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := IndexMultiDelete(p, kill); err != nil {
			t.Fatal(err)
		}
		p.SetItem(3, 0)
		if err := RepairFragmentation(p, 15); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
