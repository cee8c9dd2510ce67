package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/deploy/s3test"
	"everpage/wal/pg"
)

// backedUp is a node whose history goes to a real S3 server.
type backedUp struct {
	s3   *s3test.Server
	node *nodetest.Node
	url  string
	args []string
}

func newBackedUp(t *testing.T, args ...string) *backedUp {
	t.Helper()
	b := &backedUp{s3: s3test.New(t, t.TempDir())}
	if err := b.s3.Bucket("history"); err != nil {
		t.Fatal(err)
	}
	b.url = b.s3.URL("history", "cluster")
	b.args = append([]string{"--store", b.url, "--archive-every", "300ms", "--backup-every", "2s", "--run", "2000000", "--gc-grace", "1s"}, args...)
	b.node = nodetest.New(t, nodetest.Config{Binary: everpage, Data: filepath.Join(t.TempDir(), "node"), Env: b.s3.Env(), Args: append([]string{"--segment-blocks", "64"}, b.args...)})
	return b
}

// recovered is a new node made of nothing but the store, under a name of its own.
func (b *backedUp) recovered(t *testing.T) *nodetest.Node {
	t.Helper()
	return nodetest.New(t, nodetest.Config{Binary: everpage, Data: filepath.Join(t.TempDir(), "recovered"), Env: b.s3.Env(), Args: append([]string{"--recover", "--node", "recovered"}, b.args...)})
}

// restored waits until a node that was made of the store has all shards itself.
func restored(t *testing.T, n *nodetest.Node) {
	t.Helper()
	eventually(t, "all shards are restored", func() (bool, string) {
		l := backupList(t, n)
		return l.ToRestore == 0 && l.RestoreError == "", fmt.Sprintf("%+v", l)
	})
}

func backupList(t *testing.T, n *nodetest.Node, args ...string) nodetest.Backups {
	t.Helper()
	b, err := n.Backups(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	if b.Archive == nil {
		b.Archive = new(nodetest.Archive)
	}
	return b
}

// recordedDigests are the digests of some LSNs between two.
func recordedDigests(t *testing.T, n *nodetest.Node, random *rand.Rand, from, to pg.LSN, count int) map[pg.LSN]uint64 {
	t.Helper()
	out := map[pg.LSN]uint64{}
	for i := range count {
		at := from + pg.LSN(random.Uint64N(uint64(to-from)+1))
		if i == 0 {
			at = to
		}
		sum, _, err := n.Digest(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		out[at] = sum
	}
	return out
}

func compareDigests(t *testing.T, n *nodetest.Node, want map[pg.LSN]uint64) {
	t.Helper()
	pages := 0
	for at, sum := range want {
		got, count, err := n.Digest(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		if got != sum {
			t.Errorf("at %s all pages have the digest %x, it was %x", at, got, sum)
		}
		pages += count
	}
	t.Logf("%d pages at %d LSNs are as they were", pages, len(want))
}

func pgbench(t *testing.T, s *pgtest.Server, args ...string) {
	t.Helper()
	if out, err := s.Pgbench(t.Context(), args...); err != nil {
		t.Fatalf("pgbench %v: %v\n%s", args, err, out)
	}
}

// TestRecoverFromTheStoreAlone loses the data directory, with the primary alive and then without.
func TestRecoverFromTheStoreAlone(t *testing.T) {
	t.Parallel()
	random := dice(t)
	s, b := newPrimary(t), newBackedUp(t, "--slot-grace", "15s")
	pgbench(t, s, "-i", "-s", "2")
	attach(t, b.node, s)
	first := caughtUp(t, b.node, s)
	pgbench(t, s, "-c", "4", "-t", "400")
	backupList(t, b.node, "backup", "now")
	pgbench(t, s, "-c", "4", "-t", "300")
	s.MustSQL(t, "postgres", "create table more as select i, repeat('m', 100) from generate_series(1, 20000) i", "truncate pgbench_history", "create database copied strategy file_copy")
	end := caughtUp(t, b.node, s)
	state := backupList(t, b.node, "backup", "now")
	if state.Error != "" || state.Archive.Error != "" || len(state.Archive.Gaps) > 0 || len(state.Branches) != 1 || state.Branches[0].Newest < end {
		t.Fatalf("after backup now at %s: %+v", end, state)
	}
	want := recordedDigests(t, b.node, random, first, end, 8)
	b.node.Must(t, "verify")

	pgbench(t, s, "-c", "4", "-t", "200") // beyond the layers: this comes back from WAL
	last := caughtUp(t, b.node, s)
	eventually(t, "the WAL is archived", func() (bool, string) {
		l := backupList(t, b.node)
		return l.Archive.End >= last, fmt.Sprintf("%+v", l)
	})
	sum, _, err := b.node.Digest(t.Context(), last)
	if err != nil {
		t.Fatal(err)
	}
	want[last] = sum
	b.node.Kill9()
	if err := os.RemoveAll(b.node.Data()); err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	n := b.recovered(t)
	t.Logf("up after %s: %+v", time.Since(began), backupList(t, n))
	waitReadable(t, n, last)
	if f, err := n.Status(t.Context()); err != nil || !strings.Contains(fmt.Sprint(f.Warnings), slotName+" of the cluster that this one was recovered from") {
		t.Errorf("the old node's slot is not named: %q %v", f.Warnings, err)
	}
	compareDigests(t, n, want)
	// With the primary alive streaming goes on, without a hole.
	pgbench(t, s, "-c", "2", "-t", "100")
	caughtUp(t, n, s)
	restored(t, n)
	compareDigests(t, n, want)
	n.Must(t, "check")
	backupList(t, n, "backup", "now")
	n.Must(t, "verify")
	eventually(t, "the old node's slot goes", func() (bool, string) {
		rows := s.MustSQL(t, "postgres", "select slot_name from pg_replication_slots where slot_name = '"+slotName+"'")
		f, err := n.Status(t.Context())
		return len(rows) == 0 && err == nil && len(f.Warnings) == 0, fmt.Sprint(rows, f.Warnings, err)
	})
	compareStopped(t, n, s)

	// And without it: nothing but the store.
	want[last] = sum
	n.Kill9()
	if err := os.RemoveAll(n.Data()); err != nil {
		t.Fatal(err)
	}
	again := b.recovered(t)
	waitReadable(t, again, last)
	compareDigests(t, again, want)
}

// TestStoreAway: while the store is gone, reads and commits go on, the primary and the spool keep what the store lacks, and afterwards nothing is missing.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	s, b := newPrimary(t), newBackedUp(t, "--spool-keep", "1")
	pgbench(t, s, "-i", "-s", "1")
	attach(t, b.node, s)
	backupList(t, b.node, "backup", "now")
	b.s3.Kill()
	pgbench(t, s, "-c", "2", "-t", "300")
	for range 3 {
		s.MustSQL(t, "postgres", "select pg_switch_wal()", "create table if not exists filler(v text)", "insert into filler select repeat('f', 1000) from generate_series(1, 2000)")
	}
	end := caughtUp(t, b.node, s)
	if r := b.node.Run(t.Context(), "backup", "now"); r.Code == 0 {
		t.Errorf("backup now without a store: %s", r.Stdout)
	}
	away := backupList(t, b.node)
	if away.Archive.Lag == 0 || away.Archive.Error == "" {
		t.Errorf("without the store backup list tells %+v", away.Archive)
	}
	held := s.MustSQL(t, "postgres", "select restart_lsn from pg_replication_slots where slot_name = 'everpage_main_hold'")
	if len(held) != 1 || parseLSN(t, held[0][0]) > away.Archive.End {
		t.Errorf("the primary keeps WAL from %v, the store has it up to %s", held, away.Archive.End)
	}
	if err := b.s3.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store has all again", func() (bool, string) {
		l := backupList(t, b.node)
		return l.Archive.End >= end && l.Archive.Error == "" && l.Error == "" && l.Branches[0].Newest >= end && len(l.Archive.Gaps) == 0, fmt.Sprintf("%+v", l)
	})
	b.node.Must(t, "verify")
	sum, _, err := b.node.Digest(t.Context(), end)
	if err != nil {
		t.Fatal(err)
	}
	n := b.recovered(t)
	compareDigests(t, n, map[pg.LSN]uint64{end: sum})
}
