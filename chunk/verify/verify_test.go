package verify_test

import (
	"testing"

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
