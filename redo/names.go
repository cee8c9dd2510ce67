package redo

import (
	"fmt"

	"everpage/wal"
	"everpage/wal/pg"
)

// initBit is the bit of xl_info by which Heap, Heap2 and BRIN say that a page is initialised (XLOG_HEAP_INIT_PAGE, XLOG_BRIN_INIT_PAGE).
const initBit = 0x80

// RecordName is the record's name as pg_waldump prints it (rm_identify), "+INIT" included.
func RecordName(major pg.Major, rmgr wal.Rmgr, info uint8) string {
	info &= 0xF0
	name := ""
	if m := managerOf(rmgr); m != nil && m.name != nil {
		name = m.name(major, info)
	}
	if name == "" {
		return fmt.Sprintf("UNKNOWN (%x)", info)
	}
	if info&initBit != 0 && (rmgr == wal.RmHeap || rmgr == wal.RmHeap2 || rmgr == wal.RmBRIN) {
		return name + "+INIT"
	}
	return name
}

// names are one manager's record names, by the upper four bits of xl_info.
type names [16]string

func (n names) of(_ pg.Major, info uint8) string { return n[info>>4] }
