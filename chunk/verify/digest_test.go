package verify_test

import (
	"testing"

	"everpage/chunk/verify"
	"everpage/deploy/workload"
	"everpage/redo"
	"everpage/wal"
)

// However a corpus is kept, and whether or not its records bore check images, every reader sees the same.
func TestDigestDependsOnTheWALOnly(t *testing.T) {
	files := corpus(t, 15, workload.Mixed)
	options := verify.Options{Base: files.Base, WAL: files.WAL, Final: files.Final, Digest: true}
	digests := map[string]string{}
	for name, change := range map[string]func(o *verify.Options){
		"as it is":                              func(*verify.Options) {},
		"without check images":                  func(o *verify.Options) { o.Strip = true },
		"chunks of 16 blocks and runs of 1 MiB": func(o *verify.Options) { o.SegmentBlocks, o.RunBytes = 16, 1<<20 },
	} {
		o := options
		change(&o)
		report, err := verify.Run(t.Context(), o)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, m := range report.Found {
			t.Errorf("%s: %+v", name, m)
		}
		if !report.OK() {
			t.Errorf("%s: damaged %d, %q, unknown %q, violations %q", name, report.Damaged, report.DamagedInBase, report.Unknown, report.Violations)
		}
		if (report.Compared == 0) != o.Strip {
			t.Errorf("%s: %d images were compared", name, report.Compared)
		}
		if report.Final.Pages < 10_000 {
			t.Errorf("%s: only %d final pages were compared", name, report.Final.Pages)
		}
		t.Logf("%s: %d records, %d images, final %+v, digest %s", name, report.Records, report.Compared, report.Final, report.Digest)
		digests[name] = report.Digest
	}
	for name, d := range digests {
		if d == "" || d != digests["as it is"] {
			t.Errorf("%s: digest %q, want %q", name, d, digests["as it is"])
		}
	}
}

// A digest that no fault changes would prove nothing.
func TestDigestShowsFaults(t *testing.T) {
	files := tpcb(t)
	want := ""
	// One alone may be one that an image follows before the next LSN that the digest looks at.
	n := 0
	drop := func(_ *wal.Record, ch *redo.Changes) {
		if n++; n > 5000 && n%100 == 0 && n < 8000 {
			ch.Pages = ch.Pages[:0]
		}
	}
	for i, o := range []verify.Options{{}, {FaultChanges: drop}} {
		o.Base, o.WAL, o.Digest, o.Strip = files.Base, files.WAL, true, true
		report, err := verify.Run(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			want = report.Digest
		} else if report.Digest == want {
			t.Error("the digest is the same without some of the versions")
		}
	}
}
