// Command demo shows Everpage's main job on a real PostgreSQL 15 of its own: follow it, have an accident, look into the past, and start a stock
// server from the moment before. It installs what it needs and leaves nothing running.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

func main() {
	binary := flag.String("binary", "bin/everpage", "the everpage binary")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	d := &demo{ctx: ctx, began: time.Now()}
	err := d.run(*binary)
	d.cleanUp()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	ctx     context.Context
	began   time.Time
	step    time.Time
	cleanup []func() error

	dir     string
	primary *pgtest.Server
	cluster *nodetest.Cluster
	node    *nodetest.Node // that is asked
	calm    string         // LSN when the last pgbench transaction had committed
}

// say starts a step.
func (d *demo) say(format string, args ...any) {
	d.step = time.Now()
	fmt.Printf("\n\033[1m%s\033[0m\n", fmt.Sprintf(format, args...))
}

// took ends a step.
func (d *demo) took(format string, args ...any) {
	fmt.Printf("  %s  [%.1f s]\n", fmt.Sprintf(format, args...), time.Since(d.step).Seconds())
}

func (d *demo) cleanUp() {
	for i := len(d.cleanup) - 1; i >= 0; i-- {
		if err := d.cleanup[i](); err != nil {
			fmt.Fprintln(os.Stderr, "demo: clean up:", err)
		}
	}
}

func (d *demo) run(binary string) error {
	if err := d.start(binary); err != nil {
		return err
	}
	if err := d.work(); err != nil {
		return err
	}
	xid, err := d.accident()
	if err != nil {
		return err
	}
	d.loseNode()
	before, err := d.look(xid)
	if err != nil {
		return err
	}
	if err := d.restore(before); err != nil {
		return err
	}
	fmt.Printf("\nAll of it took %.0f s. Servers, nodes and files of the demo are gone again.\n", time.Since(d.began).Seconds())
	return nil
}

// show runs an everpage command and prints it with some lines of what it printed.
func (d *demo) show(lines int, args ...string) (string, error) {
	fmt.Printf("  $ everpage %s\n", strings.Join(args, " "))
	r := d.node.Run(d.ctx, args...)
	if r.Code != 0 {
		return "", fmt.Errorf("everpage %s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	all := strings.Split(strings.TrimRight(r.Stdout, "\n"), "\n")
	for i, l := range all {
		if i == lines {
			fmt.Printf("    … %d more lines\n", len(all)-lines)
			break
		}
		fmt.Println("    " + l)
	}
	return r.Stdout, nil
}

func (d *demo) start(binary string) error {
	d.say("1. A stock PostgreSQL 15, and three Everpage nodes beside it")
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "everpage-demo-"); err != nil {
		return err
	}
	d.cleanup = append(d.cleanup, func() error { return os.RemoveAll(d.dir) })
	if err := os.Chmod(d.dir, 0o755); err != nil { // the server runs as another user
		return err
	}
	if d.primary, err = pgtest.Start(d.ctx, pgtest.Config{Major: 15, Settings: map[string]string{"max_wal_size": "2GB"}}); err != nil {
		return err
	}
	d.cleanup = append(d.cleanup, d.primary.Close)
	if _, err := d.primary.Pgbench(d.ctx, "-i", "-s", "10", "-q", "postgres"); err != nil {
		return err
	}
	if d.cluster, err = nodetest.StartCluster(d.ctx, 3, nodetest.Config{Binary: binary, Data: d.dir}, nil); err != nil {
		return err
	}
	d.cleanup = append(d.cleanup, d.cluster.Close)
	d.node = d.cluster.Nodes[0]
	d.took("running, with pgbench's tables of a million accounts")

	d.say("2. Follow it: one base backup, then its WAL")
	if _, err := d.show(3, "attach", d.primary.URI("postgres"), "--wait"); err != nil {
		return err
	}
	if err := d.cluster.Settled(d.ctx, 3*64); err != nil {
		return err
	}
	if _, err := d.show(4, "node", "list"); err != nil {
		return err
	}
	d.took("every LSN from here on can be read, from each of the three")
	return nil
}

func (d *demo) work() error {
	d.say("3. Work: pgbench with 4 clients for 15 seconds")
	from, err := d.primary.FlushedLSN(d.ctx)
	if err != nil {
		return err
	}
	out, err := d.primary.Pgbench(d.ctx, "-c", "4", "-T", "15", "postgres")
	if err != nil {
		return err
	}
	for l := range strings.Lines(out) {
		if strings.HasPrefix(l, "tps") {
			fmt.Print("    " + l)
		}
	}
	to, err := d.caughtUp()
	if err != nil {
		return err
	}
	d.calm = to
	n, err := distance(from, to)
	if err != nil {
		return err
	}
	d.took("%d MB of WAL ingested while it was written (%.1f MB/s)", n>>20, float64(n)/1e6/time.Since(d.step).Seconds())
	return nil
}

// caughtUp waits until all that the primary has written can be read from each node, and returns up to where.
func (d *demo) caughtUp() (string, error) {
	lsn, err := d.primary.CurrentLSN(d.ctx)
	if err != nil {
		return "", err
	}
	at, err := pg.ParseLSN(lsn)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(d.ctx, time.Minute)
	defer cancel()
	return lsn, d.cluster.Readable(ctx, at)
}

func distance(from, to string) (int64, error) {
	a, err := pg.ParseLSN(from)
	if err != nil {
		return 0, err
	}
	b, err := pg.ParseLSN(to)
	return int64(b - a), err
}

func (d *demo) accident() (string, error) {
	d.say("4. The accident: a DELETE without WHERE")
	rows, err := d.primary.SQL(d.ctx, "postgres", "begin", "delete from pgbench_accounts", "select pg_current_xact_id()::xid", "commit",
		"select count(*) from pgbench_accounts")
	if err != nil {
		return "", err
	}
	fmt.Printf("    transaction %s committed; accounts left: %s\n", rows[0][0], rows[1][0])
	if _, err := d.primary.SQL(d.ctx, "postgres", "vacuum pgbench_accounts"); err != nil {
		return "", err
	}
	if _, err := d.caughtUp(); err != nil {
		return "", err
	}
	d.took("and a VACUUM has cut the table to nothing")
	return rows[0][0], nil
}

// loseNode kills the node that took the base backup. Whoever is asked from now on does without it.
func (d *demo) loseNode() {
	d.say("5. One more accident: kill -9 of the node that took the base backup")
	d.cluster.Nodes[0].Kill9()
	d.node = d.cluster.Nodes[1]
	d.took("two of three are left, and go on")
}

func (d *demo) look(xid string) (string, error) {
	d.say("6. Look into the past")
	out, err := d.show(4, "lsn", "--xid", xid, "--before")
	if err != nil {
		return "", err
	}
	before, _, _ := strings.Cut(out, "\n")
	table, err := d.primary.Value(d.ctx, "postgres", "select pg_relation_filepath('pgbench_accounts')")
	if err != nil {
		return "", err
	}
	now, err := d.primary.FlushedLSN(d.ctx)
	if err != nil {
		return "", err
	}
	fmt.Println("\n  The same heap page before the accident, and after it:")
	if _, err := d.show(6, "page", "get", table, "0", "--lsn", d.calm); err != nil {
		return "", err
	}
	after := d.node.Run(d.ctx, "page", "get", table, "0", "--lsn", now)
	fmt.Printf("  $ everpage page get %s 0 --lsn %s\n    %s\n", table, now, strings.TrimSpace(after.Stdout+after.Stderr)) // exit code 3: gone
	fmt.Println("\n  Versions of that page, the newest first:")
	if _, err := d.show(6, "page", "history", table, "0"); err != nil {
		return "", err
	}
	fmt.Println("\n  The table's size over time:")
	for _, lsn := range []string{d.calm, now} {
		if _, err := d.show(2, "rel", "size", table, "--lsn", lsn); err != nil {
			return "", err
		}
	}
	d.took("all read from the nodes that are left, at LSNs of the past")
	return before, nil
}

func (d *demo) restore(lsn string) error {
	d.say("7. Start a stock server from the moment before")
	dir := filepath.Join(d.dir, "restored")
	if _, err := d.show(8, "restore", dir, "--lsn", lsn, "--quiet"); err != nil {
		return err
	}
	d.took("restored")
	d.step = time.Now()
	s, err := pgtest.Open(d.ctx, dir, pgtest.Config{Major: 15})
	if err != nil {
		return err
	}
	d.cleanup = append(d.cleanup, s.Close)
	count, err := s.Value(d.ctx, "postgres", "select count(*) from pgbench_accounts")
	if err != nil {
		return err
	}
	sums, err := s.SQL(d.ctx, "postgres", "select sum(abalance), (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history) from pgbench_accounts")
	if err != nil {
		return err
	}
	d.took("started without recovery, and asked")
	fmt.Printf("\n  accounts that are back: %s\n  sums of accounts, tellers, branches, history: %s\n", count, strings.Join(sums[0], ", "))
	for _, v := range sums[0] {
		if v != sums[0][0] {
			return fmt.Errorf("the sums differ: %v", sums[0])
		}
	}
	if count != "1000000" {
		return fmt.Errorf("%s accounts are back, want 1000000", count)
	}
	return nil
}
