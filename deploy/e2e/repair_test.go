package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"everpage/deploy/nodetest"
	"everpage/wal/pg"
)

// damageTables flips a bit in each larger table of a stopped node, where pages lie: they come first, and what is small last.
func damageTables(t *testing.T, random *rand.Rand, n *nodetest.Node) {
	t.Helper()
	tables, err := filepath.Glob(filepath.Join(n.Data(), "store", "pebble", "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for _, table := range tables {
		info, err := os.Stat(table)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() < 128<<10 {
			continue
		}
		flip(t, table, info.Size()/8+random.Int64N(info.Size()*3/8), uint8(random.IntN(8)))
		damaged++
	}
	if damaged == 0 {
		t.Fatalf("no table of %v is large enough", tables)
	}
	t.Logf("one bit was flipped in each of %d tables", damaged)
}

const takenAway = "what was corrupt on disk is taken away"

// repaired has all pages read at LSNs, again and again, until a node has repaired its shards and is whole: every answer must be right.
func repaired(t *testing.T, n *nodetest.Node, want map[pg.LSN]uint64, whole func() (bool, string)) {
	t.Helper()
	rounds := 0
	eventually(t, "what was corrupt is repaired", func() (bool, string) {
		for at, sum := range want {
			if got, _, err := n.Digest(t.Context(), at); err != nil || got != sum {
				t.Fatalf("at %s all pages have the digest %x, error %v; it was %x", at, got, err, sum)
			}
		}
		rounds++
		if !strings.Contains(n.Log(), takenAway) {
			return false, "nothing was taken away"
		}
		return whole()
	})
	t.Logf("right in %d rounds", rounds)
}

// TestRepairFromAnotherNode: bits rot on one node of three. All is read rightly all the time, and the node gets what is corrupt from the others.
func TestRepairFromAnotherNode(t *testing.T) {
	t.Parallel()
	random := dice(t)
	s := newPrimary(t, map[string]string{"autovacuum": "off"})
	nodes := newCluster(t, 3, "--run", "500000", "--dead-after", "60s")
	attach(t, nodes[0], s)
	settled(t, nodes[0], map[string]int{"node1": 8, "node2": 8, "node3": 8})
	fillTables(t, s, 4000)
	first := caughtUp(t, nodes[1], s)
	s.MustSQL(t, "postgres", "update f1 set v = md5(v) where i % 3 = 0")
	end := caughtUp(t, nodes[1], s)
	for _, n := range nodes {
		waitReadable(t, n, end)
	}
	want := recordedDigests(t, nodes[0], random, first, end, 2)
	bad := nodes[1]
	if err := bad.Stop(); err != nil {
		t.Fatal(err)
	}
	damageTables(t, random, bad)
	if err := bad.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := bad.Run(t.Context(), "check", "--quiet"); r.Code != 6 {
		t.Errorf("check after bits were flipped: %+v", r)
	}
	repaired(t, bad, want, func() (bool, string) {
		r := bad.Run(t.Context(), "check", "--quiet")
		list := nodeList(t, bad)
		full := 0
		for _, x := range list {
			full += x.Full
		}
		return r.Code == 0 && full == 24, fmt.Sprintf("%+v, %+v", r, list)
	})
	s.MustSQL(t, "postgres", "update f2 set v = md5(v) where i % 5 = 0")
	caughtUp(t, bad, s)
	nodes[0].Kill9() // the others are not asked any more
	nodes[2].Kill9()
	compareDigests(t, bad, want)
}

// TestRepairFromTheStore: bits rot on the only node. What is corrupt is read from the store, and comes from there again.
func TestRepairFromTheStore(t *testing.T) {
	t.Parallel()
	random := dice(t)
	s, b := newPrimary(t, map[string]string{"autovacuum": "off"}), newBackedUp(t, "--run", "500000")
	fillTables(t, s, 4000)
	attach(t, b.node, s)
	first := caughtUp(t, b.node, s)
	s.MustSQL(t, "postgres", "update f1 set v = md5(v) where i % 3 = 0")
	end := caughtUp(t, b.node, s)
	backupList(t, b.node, "backup", "now")
	want := recordedDigests(t, b.node, random, first, end, 2)
	b.node.Must(t, "verify")
	if err := b.node.Stop(); err != nil {
		t.Fatal(err)
	}
	damageTables(t, random, b.node)
	if err := b.node.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := b.node.Run(t.Context(), "verify"); r.Code != 6 || !strings.Contains(r.Stdout, "corrupt: shard") {
		t.Errorf("verify after bits were flipped: %+v", r)
	}
	repaired(t, b.node, want, func() (bool, string) {
		l := backupList(t, b.node)
		return l.ToRestore == 0 && l.RestoreError == "", fmt.Sprintf("%+v", l)
	})
	b.node.Must(t, "check")
	b.node.Must(t, "verify")
	b.s3.Kill()
	compareDigests(t, b.node, want)
	if err := b.s3.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	compareStopped(t, b.node, s)
}
