package verify

import (
	"bytes"
	"context"
	"testing"

	"everpage/wal/pg"
	"everpage/wal/stream"
)

// slruPages has one page of pg_xact.
type slruPages struct {
	Pages
	page []byte
}

func (s slruPages) Page(_ context.Context, _ pg.PageKey, dst pg.Page) error {
	copy(dst, s.page)
	return nil
}

// A byte of pg_xact has four transactions: what is beyond the next one doesn't count, what is before it does.
func TestLastTransactionsAreCompared(t *testing.T) {
	const next = 4*100 + 2 // two of byte 100 are given out
	for _, c := range []struct {
		name   string
		at     int
		theirs byte
		same   bool
	}{
		{"as ours", 100, 0b0101, true}, {"the last one", 100, 0b1001, false}, {"the one before", 100, 0b0110, false}, {"the next one", 100, 0b01_0101, true},
		{"one behind it", 100, 0b1000_0101, true}, {"the last and the next one", 100, 0b1111, false}, {"of the byte before", 99, 1, false}, {"of the byte behind", 101, 1, true},
	} {
		ours, theirs := make([]byte, pg.BlockSize), make([]byte, pg.BlockSize)
		ours[100], theirs[100] = 0b0101, 0b0101
		theirs[c.at] = c.theirs
		f := &final{ctx: t.Context(), pages: slruPages{page: ours}, report: &Report{Types: map[string]*TypeReport{}}, rep: &FinalReport{Tolerated: map[string]uint64{}},
			slrus: map[slruSegment]bool{}, sizes: map[pg.SLRU]map[uint32]uint32{pg.Xact: {0: 1}}, buf: make([]byte, pg.BlockSize)}
		f.ourCtl.Copy.NextXID = next
		if err := f.slru(stream.BackupFile{Name: "pg_xact/0000", Size: pg.BlockSize, Reader: bytes.NewReader(theirs)}, pg.File{SLRU: pg.Xact}); err != nil {
			t.Fatal(err)
		}
		if f.report.OK() != c.same {
			t.Errorf("%s differs: found right %t, want %t", c.name, f.report.OK(), c.same)
		}
	}
}
