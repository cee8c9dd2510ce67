package verify_test

import (
	"errors"
	"strings"
	"testing"

	"everpage/chunk/verify"
	"everpage/redo"
	"everpage/wal"
)

// A record whose kind is known may still be of a form that is not, and be the first one of its kind that is.
func TestUnknownFormOfAKnownRecord(t *testing.T) {
	files := tpcb(t)
	n := 0
	report, err := verify.Run(t.Context(), verify.Options{Base: files.Base, WAL: files.WAL, Strip: true, FaultChanges: func(rec *wal.Record, ch *redo.Changes) {
		if rec.Rmgr != wal.RmHeap || rec.Info&0x70 != 0x00 || len(ch.Pages) == 0 {
			return
		}
		if n++; n == 5 || n == 6 {
			ch.Damaged = append(ch.Damaged, redo.DamagedPage{Key: ch.Pages[0].Key, Err: errors.New("an insert as nobody knows it")})
			ch.Pages = ch.Pages[1:]
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if report.OK() || len(report.Unknown) != 1 || !strings.Contains(report.Unknown[0], "Heap/INSERT") {
		t.Errorf("of %d inserts two were not understood: %q", n, report.Unknown)
	}
}
