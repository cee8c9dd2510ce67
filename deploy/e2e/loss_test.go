package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"everpage/deploy/losstest"
)

// TestNodesAreLost is the short form of `make loss`.
func TestNodesAreLost(t *testing.T) {
	t.Parallel()
	random := dice(t)
	r, err := losstest.Run(t.Context(), losstest.Options{
		Binary: everpage, Dir: filepath.Join(t.TempDir(), "loss"), Seed: random.Uint64(), Scale: 1, Load: 3 * time.Second, LSNs: 3, Stock: 1, Logf: t.Logf,
		Args: []string{"--run", "2000000"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.LSNs < 3 || r.Stock < 1 || r.Commits == 0 || r.LostCommits == 0 {
		t.Errorf("only %+v", r)
	}
	t.Logf("%+v", r)
}
