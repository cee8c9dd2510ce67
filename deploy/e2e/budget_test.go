//go:build long

package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

// highWater watches what a file system holds, unlinked files among it, until it is stopped, and returns the most.
func highWater(t *testing.T, dir string) (stop func() int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var most int64
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			var fs syscall.Statfs_t
			if err := syscall.Statfs(dir, &fs); err != nil {
				t.Error(err)
				return
			}
			most = max(most, int64(fs.Blocks-fs.Bfree)*fs.Bsize)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	stop = sync.OnceValue(func() int64 { cancel(); done.Wait(); return most })
	t.Cleanup(func() { stop() })
	return stop
}

// updateSlowly changes part of table f, again and again, each time when the node's store has all that was written before: what it has not is never evicted.
func updateSlowly(ctx context.Context, s *pgtest.Server, n *nodetest.Node, bytes string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for i := range 6 {
		if _, err := s.SQL(ctx, "postgres", fmt.Sprintf("update f set v = %s || 'x' where i between %d and %d", bytes, i*16000, i*16000+2000)); err != nil {
			return err
		}
		text, err := s.CurrentLSN(ctx)
		if err != nil {
			return err
		}
		at, err := pg.ParseLSN(text)
		if err != nil {
			return err
		}
		for {
			l, err := n.Backups(ctx)
			if err == nil && l.Archive != nil && l.Archive.End >= at && len(l.Branches) == 1 && l.Branches[0].Newest >= at {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("the store does not get what was written: %+v %w", l, errors.Join(err, context.Cause(ctx)))
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	return nil
}

// TestDiskBudget: a node that may take a fraction of the history answers all of it as one that has all, takes what is written meanwhile, and at no moment takes
// more disk space than it may.
func TestDiskBudget(t *testing.T) {
	t.Parallel()
	const budget = 16 << 20
	random := dice(t)
	s := pgtest.New(t, pgtest.Config{Settings: primarySettings(map[string]string{"min_wal_size": "5MB"}), InitdbArgs: []string{"--wal-segsize=1"}})
	b := newBackedUp(t)
	bytes := "sha256(i::text::bytea) || sha256((-i)::text::bytea) || sha256((i + 0.5)::text::bytea) || sha256((i + 0.25)::text::bytea)"
	s.MustSQL(t, "postgres", "create table f as select i, "+bytes+" v from generate_series(1, 100000) i", "create index on f(i)")
	pgbench(t, s, "-i", "-s", "1")
	attach(t, b.node, s)
	first := caughtUp(t, b.node, s)
	pgbench(t, s, "-c", "2", "-t", "300")
	s.MustSQL(t, "postgres", "update f set v = "+bytes+" || 'x' where i % 20 = 0")
	end := caughtUp(t, b.node, s)
	if l := backupList(t, b.node, "backup", "now"); l.Error != "" || len(l.Branches) != 1 || l.Branches[0].Newest < end {
		t.Fatalf("after backup now at %s: %+v", end, l)
	}
	want := recordedDigests(t, b.node, random, first, end, 1)
	b.node.Kill9()

	data := filepath.Join(t.TempDir(), "small")
	smallDisk(t, data, 1<<30)
	stop := highWater(t, data)
	n := nodetest.New(t, nodetest.Config{Binary: everpage, Data: filepath.Join(data, "node"), Env: b.s3.Env(),
		Args: append([]string{"--recover", "--node", "recovered", "--disk-budget", fmt.Sprint(budget)}, b.args...)})
	waitReadable(t, n, end)
	updated := make(chan error, 1)
	go func() { updated <- updateSlowly(t.Context(), s, n, bytes) }() // while the node reads what it has not got
	compareDigests(t, n, want)
	if err := <-updated; err != nil {
		t.Fatal(err)
	}
	caughtUp(t, n, s)
	compareStopped(t, n, s)
	n.Must(t, "check")
	most := stop()
	var st struct {
		Nodes []struct {
			Budget struct{ Evictions, Fills uint64 } `json:"budget"`
		}
	}
	if err := n.JSON(t.Context(), &st, "status"); err != nil || len(st.Nodes) != 1 || st.Nodes[0].Budget.Evictions == 0 {
		t.Errorf("nothing was evicted: %+v %v", st, err)
	}
	t.Logf("at most %.1f MB of %.1f MB were taken", float64(most)/1e6, float64(budget)/1e6)
	if most > budget {
		t.Errorf("%d bytes were taken, may be %d", most, budget)
	}
}
