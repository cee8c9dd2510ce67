package verify_test

import (
	"testing"

	"everpage/chunk/verify"
	"everpage/deploy/workload"
)

// corpus is a small one of a major, from the cache if it is there.
func corpus(t *testing.T, major int, which workload.Which) *workload.Files {
	t.Helper()
	files, err := workload.Cached(t.Context(), major, nil, which, workload.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestMixedCorpusOf15EqualsTheStoppedPrimary(t *testing.T) {
	files := corpus(t, 15, workload.Mixed)
	report, err := verify.Run(t.Context(), verify.Options{Base: files.Base, WAL: files.WAL, Final: files.Final, Digest: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range report.Found {
		t.Errorf("%+v", m)
	}
	if !report.OK() {
		t.Errorf("mismatches %d, damaged %d, unknown %q, violations %q", report.Mismatches, report.Damaged, report.Unknown, report.Violations)
	}
	if report.Compared < 10_000 || report.Final.Pages < 1_000 {
		t.Errorf("only %d images and %d final pages were compared", report.Compared, report.Final.Pages)
	}
	t.Logf("digest %s", report.Digest)
	t.Logf("%d records, %d images compared, final %+v", report.Records, report.Compared, report.Final)
}
