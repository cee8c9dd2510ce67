package e2e

import (
	"path/filepath"
	"testing"

	"everpage/deploy/killtest"
)

// TestKills: chunks of 16 blocks and small tables in the store, so that kills hit every stage of writing.
func TestKills(t *testing.T) {
	t.Parallel()
	random := dice(t)
	r, err := killtest.Run(t.Context(), killtest.Options{
		Binary: everpage, Dir: filepath.Join(t.TempDir(), "kills"), Seed: random.Uint64(), NodeKills: 9, PrimaryKills: 3, BothKills: 1, Logf: t.Logf,
		Args: []string{"--segment-blocks", "16", "--run", "1000000", "--spool-keep", "8000000"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.NodeKills < 9 || r.PrimaryKills < 3 || r.BothKills < 1 || r.Commits == 0 {
		t.Errorf("only %+v", r)
	}
	t.Logf("%d + %d + %d kills, %d commits, %d pages compared", r.NodeKills, r.PrimaryKills, r.BothKills, r.Commits, r.Final.Final.Pages)
}
