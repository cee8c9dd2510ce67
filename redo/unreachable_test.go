package redo

import (
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

// Records that no followed server writes: they are known, and change nothing.
func TestUnreachableRecordsChangeNothing(t *testing.T) {
	eachMajor(t, func(t *testing.T, major pg.Major) {
		for name, rec := range map[string]*wal.Record{
			"NOOP":       heapRecord(major, wal.RmXLOG, 0x20, []byte{0}),
			"ASSIGN_LSN": heapRecord(major, wal.RmGist, 0x70, make([]byte, 4)),
		} {
			if got := RecordName(major, rec.Rmgr, rec.Info); got != name {
				t.Errorf("%s is called %s", name, got)
			}
			ch := redoAll(t, rec, ControlState{}, nil)
			if len(ch.Pages)+len(ch.Damaged)+len(ch.Sizes) != 0 || ch.Unproven != nil {
				t.Errorf("%s changes %+v", name, ch)
			}
		}
	})
}

// A HOT update's page holds the old version: a record that says that the new one is alone on it is refused, not guessed at.
func TestUnreachableHotUpdateOfNewPage(t *testing.T) {
	data := le(uint16(2), uint16(0x2802), uint8(24), uint8(0), []byte("new row"))
	for _, info := range []uint8{0x40, 0xC0} {
		p := heapPage(t, tuple(600, 0, 3, 1, 2, 0x0802, "old row"))
		_, err := tryRedo(t, heapRecord(15, wal.RmHeap, info, updateMain(0, 5, 2), heapBlockRef(0, heapKey(3), data)), ControlState{}, map[pg.PageKey]pg.Page{heapKey(3): p})
		if (err != nil) != (info == 0xC0) {
			t.Errorf("%02x: %v", info, err)
		}
	}
}
