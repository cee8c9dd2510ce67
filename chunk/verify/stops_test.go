package verify_test

import (
	"strings"
	"testing"

	"everpage/chunk/verify"
	"everpage/deploy/workload"
	"everpage/redo"
	"everpage/wal"
)

// Directories that the primary left on the way are compared, each as of its own shutdown checkpoint.
func TestStops(t *testing.T) {
	files := corpus(t, 15, workload.Concurrent)
	o := verify.Options{Base: files.Base, WAL: files.WAL, Final: files.Final, Stops: []verify.Stop{{Dir: files.Base}, {Dir: files.Final}}}
	report, err := verify.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK() {
		t.Fatalf("%d mismatches: %+v", report.Mismatches, report.Found)
	}
	if len(report.Stops) != 2 || report.Stops[0].Pages == 0 || report.Stops[1].Pages != report.Final.Pages {
		t.Errorf("stops %+v, final %+v", report.Stops, report.Final)
	}
	// The base has been read at the first record, the final directory was given twice.
	if n := report.Types["MultiXact/CREATE_ID"].Stops; n != 1 {
		t.Errorf("multixacts were compared at %d stops", n)
	}

	// A commit that goes unnoticed shows at the stop that follows it.
	o.Final, o.FaultChanges = "", func(rec *wal.Record, ch *redo.Changes) {
		if rec.Rmgr == wal.RmCommitTs || rec.Rmgr == wal.RmTransaction {
			ch.Pages = ch.Pages[:0]
		}
	}
	found := caught(t, o)
	for page := range found {
		if !strings.HasPrefix(page, "final pg_") {
			t.Errorf("a mismatch on %s", page)
		}
	}
	expect(t, found, "final pg_xact", "final pg_commit_ts")
	o.Stops = o.Stops[:1]
	o.FaultChanges = nil
	if report, err := verify.Run(t.Context(), o); err != nil || !report.OK() || len(report.Stops) != 1 {
		t.Errorf("%v, %+v", err, report.Found)
	}
}
