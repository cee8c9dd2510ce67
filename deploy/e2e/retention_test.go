package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"everpage/deploy/nodetest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// window is the part of `retention show` and `info` that tests look at.
type window struct {
	Oldest  pg.LSN `json:"oldest_lsn"`
	Newest  pg.LSN `json:"newest_lsn"`
	Horizon pg.LSN `json:"horizon_lsn"`
	Planned pg.LSN `json:"planned_lsn"`
}

func windowOf(t *testing.T, n *nodetest.Node) window {
	t.Helper()
	var v struct{ Branches []window }
	if err := n.JSON(t.Context(), &v, "info"); err != nil {
		t.Fatal(err)
	}
	if len(v.Branches) != 1 {
		t.Fatalf("info: %+v", v)
	}
	return v.Branches[0]
}

// outside makes sure that reads below a window are refused with its beginning in the message.
func outside(t *testing.T, n *nodetest.Node, random *rand.Rand, rel string, from, oldest pg.LSN) {
	t.Helper()
	for range 3 {
		at := from + pg.LSN(random.Uint64N(uint64(oldest-from)))
		refused(t, n, 4, []string{oldest.String()}, "page", "get", rel, "0", "--lsn", at.String())
		refused(t, n, 4, []string{oldest.String()}, "rel", "size", rel, "--lsn", at.String())
	}
}

// TestRetention: what retention keeps reads as before, what it doesn't is refused, leases hold it, and the node's disk space comes back.
func TestRetention(t *testing.T) {
	t.Parallel()
	random := dice(t)
	s := newPrimary(t)
	pgbench(t, s, "-i", "-s", "2")
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('pgbench_branches')")[0][0]
	n := newNode(t, "--run", "2000000")
	attach(t, n, s)
	first := caughtUp(t, n, s)
	for _, bad := range []string{"7", "0d", "10 days"} {
		refused(t, n, 2, []string{"7d"}, "retention", "set", bad)
	}
	pgbench(t, s, "-c", "4", "-t", "500")
	s.MustSQL(t, "postgres", "create table gone as select i, repeat('g', 200) from generate_series(1, 20000) i", "truncate pgbench_history", "drop table gone")
	pgbench(t, s, "-c", "4", "-t", "500")
	middle := caughtUp(t, n, s)
	want := recordedDigests(t, n, random, middle, middle, 1)

	// A lease keeps its LSN readable, and with it all that is newer.
	c := newClient(t, n)
	leased := lease(t, c, middle)
	pgbench(t, s, "-c", "4", "-t", "1000")
	end := caughtUp(t, n, s)
	for at, sum := range recordedDigests(t, n, random, middle, end, 6) {
		want[at] = sum
	}
	n.Must(t, "retention", "set", fmt.Sprintf("%dkB", uint64(end-middle)/2048))
	eventually(t, "the horizon has come to the lease", func() (bool, string) {
		w := windowOf(t, n)
		return w.Oldest == middle && w.Horizon == middle, fmt.Sprintf("%+v, leased %s\n%s", w, middle, n.Must(t, "retention", "show"))
	})
	outside(t, n, random, rel, first, middle)
	compareDigests(t, n, want)
	if text := n.Must(t, "retention", "show"); !strings.Contains(text, "lease") {
		t.Errorf("retention show does not tell of the lease:\n%s", text)
	}

	release(t, c, leased)
	eventually(t, "the horizon has passed where the lease was", func() (bool, string) {
		w := windowOf(t, n)
		return w.Oldest > middle, fmt.Sprintf("%+v", w)
	})
	eventually(t, "a pass has ended", func() (bool, string) {
		text := n.Must(t, "status")
		return strings.Contains(text, "has collected below"), text
	})
	w := held(t, n)
	outside(t, n, random, rel, first, w.Oldest)
	for at := range want {
		if at < w.Oldest {
			delete(want, at)
		}
	}
	for at, sum := range recordedDigests(t, n, random, w.Oldest, w.Oldest, 1) {
		want[at] = sum
	}
	compareDigests(t, n, want)
	refused(t, n, 4, nil, "lsn", "--time", "2001-01-01 00:00:00Z")
	n.Kill9()
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, n, s)
	if again := windowOf(t, n); again.Oldest < w.Oldest {
		t.Errorf("after a restart history begins at %s, it was %s", again.Oldest, w.Oldest)
	}
	compareDigests(t, n, want)
	n.Must(t, "check")
	compareStopped(t, n, s)
}

func lease(t *testing.T, c *pageapi.Client, at pg.LSN) pageapi.Lease {
	t.Helper()
	l, err := c.Lease(t.Context(), pageapi.Lease{Pos: pageapi.Position{LSN: at}, Holder: "test"}, patience)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func release(t *testing.T, c *pageapi.Client, l pageapi.Lease) {
	t.Helper()
	if _, err := c.Lease(t.Context(), l, 0); err != nil {
		t.Fatal(err)
	}
}

// held has the horizon move no more, and returns the window as it is then.
func held(t *testing.T, n *nodetest.Node) (w window) {
	t.Helper()
	n.Must(t, "retention", "set", "forever")
	eventually(t, "the horizon stands still", func() (bool, string) {
		w = windowOf(t, n)
		return w.Planned == w.Horizon && w.Oldest == w.Horizon, fmt.Sprintf("%+v", w)
	})
	return w
}

// TestGarbage: gc tells what would go, does it, and a node made of nothing but the store after that gives right pages inside the window and none outside.
func TestGarbage(t *testing.T) {
	t.Parallel()
	random := dice(t)
	s, b := newPrimary(t), newBackedUp(t)
	pgbench(t, s, "-i", "-s", "2")
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('pgbench_branches')")[0][0]
	attach(t, b.node, s)
	first := caughtUp(t, b.node, s)
	backupList(t, b.node, "backup", "now")
	var at []pg.LSN
	for range 6 {
		pgbench(t, s, "-c", "4", "-t", "150")
		s.MustSQL(t, "postgres", "vacuum pgbench_branches", "checkpoint")
		at = append(at, caughtUp(t, b.node, s))
		backupList(t, b.node, "backup", "now")
	}
	end := at[len(at)-1]
	retention := fmt.Sprintf("%dkB", uint64(end-at[3])/1024)
	b.node.Must(t, "retention", "set", retention)
	type garbage struct {
		Local []struct {
			Gone uint64 `json:"gone_bytes"`
		}
		Horizon pg.LSN `json:"horizon_lsn"`
		Objects []string
	}
	var dry, done garbage
	if err := b.node.JSON(t.Context(), &dry, "gc", "--dry-run"); err != nil {
		t.Fatal(err)
	}
	if len(dry.Local) != 1 || dry.Local[0].Gone == 0 || dry.Horizon <= first {
		t.Errorf("gc --dry-run: %+v", dry)
	}
	if err := b.node.JSON(t.Context(), &done, "gc"); err != nil {
		t.Fatal(err)
	}
	w := held(t, b.node)
	if len(done.Local) != 1 || w.Oldest < done.Horizon || done.Horizon < dry.Horizon {
		t.Errorf("gc: %+v after %+v, the window is %+v", done, dry, w)
	}
	want := recordedDigests(t, b.node, random, w.Oldest, end, 4)
	want[w.Oldest] = recordedDigests(t, b.node, random, w.Oldest, w.Oldest, 1)[w.Oldest]
	outside(t, b.node, random, rel, first, w.Oldest)

	var du struct {
		Relations []struct {
			Name    string
			History uint64 `json:"history_bytes"`
			Current uint64 `json:"current_bytes"`
		}
		Store uint64 `json:"store_bytes"`
		WAL   uint64 `json:"store_wal_bytes"`
	}
	if err := b.node.JSON(t.Context(), &du, "du", "--top", "5"); err != nil {
		t.Fatal(err)
	}
	if len(du.Relations) != 5 || du.Relations[0].History == 0 || du.Relations[0].Current == 0 || du.Store == 0 || du.WAL == 0 {
		t.Errorf("du: %+v", du)
	}
	// New bases are made, and what they take the place of goes.
	b.node.Must(t, "retention", "set", retention)
	for range 4 {
		pgbench(t, s, "-c", "4", "-t", "50")
		end = caughtUp(t, b.node, s)
		backupList(t, b.node, "backup", "now")
		b.node.Must(t, "gc")
	}
	w = held(t, b.node)
	for l := range want {
		if l < w.Oldest {
			delete(want, l)
		}
	}
	for l, sum := range recordedDigests(t, b.node, random, w.Oldest, end, 3) {
		want[l] = sum
	}
	want[w.Oldest] = recordedDigests(t, b.node, random, w.Oldest, w.Oldest, 1)[w.Oldest]
	backupList(t, b.node, "backup", "now") // the root says where history begins
	b.node.Must(t, "verify")
	b.node.Kill9()
	n := b.recovered(t)
	waitReadable(t, n, end)
	compareDigests(t, n, want)
	eventually(t, "the recovered node's window begins where it did", func() (bool, string) {
		again := windowOf(t, n)
		return again.Oldest >= w.Oldest, fmt.Sprintf("%+v, it was %+v", again, w)
	})
	outside(t, n, random, rel, first, windowOf(t, n).Oldest)
	n.Must(t, "check")
}
