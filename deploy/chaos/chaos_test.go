package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"everpage/deploy/nodetest"
)

// TestChaos injects a few faults of the kinds that are over quickly. `make chaos` does all of them, many times.
func TestChaos(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("partitions are made in network namespaces, which only root may make: run the tests as root")
	}
	if out, err := exec.CommandContext(t.Context(), "./tools.sh").CombinedOutput(); err != nil {
		t.Fatalf("tools.sh: %v\n%s", err, out)
	}
	binary, err := nodetest.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		replicas int
		kinds    []string
	}{
		{3, []string{"kill", "partition-out", "primary"}},
		{2, []string{"leader-in-move"}},
	} {
		dir, err := os.MkdirTemp("", "everpage-chaos-")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil { // the server runs as another user
			t.Fatal(err)
		}
		const seed = 1
		outcomes, err := chaos(t.Context(), options{binary: binary, dir: filepath.Clean(dir), seed: seed, kinds: c.kinds, injections: 1, replicas: c.replicas, shards: 16, logf: t.Logf})
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		for _, o := range outcomes {
			if !o.ok() {
				t.Errorf("seed %d: %s with %d replicas: not survived as it should be; files in %s", seed, o.Kind, c.replicas, dir)
			}
		}
	}
}
