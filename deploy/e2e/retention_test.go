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
	for _, bad := range []string{"7", "0h", "10 days"} {
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
	w := windowOf(t, n)
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
	n.Must(t, "retention", "set", "forever")
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
