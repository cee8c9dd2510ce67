package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// options say what is injected.
type options struct {
	binary     string
	dir        string // an absent or empty directory, removed unless something failed
	seed       uint64
	kinds      []string
	injections int // of each kind
	replicas   int
	shards     int
	commit     string
	logf       func(format string, args ...any)
	each       func(outcome) // is told of each kind; nil: nobody
}

const (
	nodeCount = 3
	patience  = 2 * time.Minute
)

// outcome is what happened under one kind of fault.
type outcome struct {
	Kind                 string
	Replicas, Injections int
	Read, Compared       int
	Wrong, Errors        []string
	Gap, CommitGap       time.Duration
	Commits, Lost        int
	Final                int // pages that were held against the stopped primary's files
	Agreed, Reserved     int // observations of the map, and linearizable operations
	Seconds              float64
	Failed               string
	Seed                 uint64
	Shards               int
	Day                  string // of the run
	Commit               string // of the code, where it is known
}

// ok tells whether nothing was wrong, lost or without an answer.
func (o *outcome) ok() bool {
	return o.Failed == "" && len(o.Wrong) == 0 && len(o.Errors) == 0 && o.Lost == 0
}

type run struct {
	o       options
	random  *rand.Rand
	net     *network
	primary *pgtest.Server
	cluster *nodetest.Cluster
	readers *readers
	watch   *history
	load    *load
	acks    pg.RelFileLocator
	acked   []int
	number  int    // of the next commit's row
	branch  uint32 // that main is, and those that it was before
	left    []uint32
	moves   int // promotions
	tmpfs   string
	disk    *slowDisk
}

// chaos starts a cluster under load and injects each kind of fault. The error is of what could not be started; what the faults did is in the outcomes.
func chaos(ctx context.Context, o options) (outcomes []outcome, err error) {
	r := &run{o: o, random: rand.New(rand.NewPCG(o.seed, 0))}
	defer func() {
		err = errors.Join(err, r.close())
		for _, out := range outcomes {
			if !out.ok() {
				return
			}
		}
		if err == nil {
			err = os.RemoveAll(o.dir)
		}
	}()
	if err := r.start(ctx); err != nil {
		return nil, err
	}
	for _, kind := range o.kinds {
		out := r.one(ctx, kind)
		outcomes = append(outcomes, out)
		o.logf("%s", out.line())
		if o.each != nil {
			o.each(out)
		}
		for _, w := range append(out.Wrong, out.Errors...) {
			o.logf("  %s", w)
		}
		if out.Failed != "" {
			o.logf("  FAILED: %s", out.Failed)
			break // what follows would only fail of the same
		}
	}
	return outcomes, nil
}

func (r *run) start(ctx context.Context) (err error) {
	if r.net, err = newNetwork(ctx, os.Getpid()%10000, nodeCount); err != nil {
		return err
	}
	r.primary, err = pgtest.Start(ctx, r.server("primary"))
	if err != nil {
		return err
	}
	if _, err := r.primary.Pgbench(ctx, "-i", "-q", "-s", "1"); err != nil {
		return err
	}
	rows, err := r.primary.SQL(ctx, "postgres", "create table acks (id int, mark text)", "select pg_relation_filepath('acks')")
	if err != nil {
		return err
	}
	if r.acks, err = pg.ParseRel(rows[0][0]); err != nil {
		return err
	}
	// One node's data lies on a file system of its own, which can be filled. It must hold the history of the whole run.
	r.tmpfs = filepath.Join(r.o.dir, "nodes", "node3")
	if err := os.MkdirAll(r.tmpfs, 0o755); err != nil {
		return err
	}
	if err := command(ctx, "mount -t tmpfs -o size=3g tmpfs "+r.tmpfs); err != nil {
		r.tmpfs = ""
		return err
	}
	// Another's lies behind a file system that can be made slow.
	behind, slow := filepath.Join(r.o.dir, "behind-node2"), filepath.Join(r.o.dir, "nodes", "node2")
	for _, dir := range []string{behind, slow} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if r.disk, err = mountSlowDisk(behind, slow); err != nil {
		return err
	}
	r.branch = 1
	r.cluster, err = nodetest.StartCluster(ctx, nodeCount, nodetest.Config{
		Binary: r.o.binary, Data: filepath.Join(r.o.dir, "nodes"),
		Args: []string{"--shards", fmt.Sprint(r.o.shards), "--replicas", fmt.Sprint(r.o.replicas), "--dead-after", "30s", "--spool-keep", fmt.Sprint(128 << 20), "--run", fmt.Sprint(8 << 20)},
	}, func(i int, c *nodetest.Config) {
		c.Host = r.net.address(i)
		c.Command = []string{"ip", "netns", "exec", r.net.namespace(i)}
		if i > 0 { // these act only when the cluster is made
			c.Args = append([]string{"--dead-after", "30s", "--spool-keep", fmt.Sprint(128 << 20), "--run", fmt.Sprint(8 << 20)}, c.Args[len(c.Args)-4:]...)
		}
	})
	if err != nil {
		return err
	}
	uri := strings.Replace(r.primary.URI("postgres"), "127.0.0.1", r.net.host(), 1)
	if res := r.cluster.Nodes[0].Run(ctx, "attach", uri, "--wait", "--quiet"); res.Code != 0 {
		return fmt.Errorf("attach: exit code %d: %s", res.Code, res.Stderr)
	}
	if err := r.settled(ctx); err != nil {
		return err
	}
	_, err = r.primary.SQL(ctx, "postgres", "alter system set synchronous_standby_names = 'ANY 2 (node1, node2, node3)'", "select pg_reload_conf()")
	if err != nil {
		return err
	}
	addresses := strings.Split(r.cluster.Addresses(), ",")
	if r.readers, err = startReaders(ctx, addresses, r.o.seed); err != nil {
		return err
	}
	if err := r.relations(ctx); err != nil {
		return err
	}
	if err := r.settled(ctx); err != nil { // the first LSN for the readers
		return err
	}
	if r.watch, err = startHistory(ctx, addresses); err != nil {
		return err
	}
	r.load = startLoad(ctx, r.primary, 0)
	return nil
}

// server says how a primary runs, and what may become one.
func (r *run) server(name string) pgtest.Config {
	return pgtest.Config{
		Dir: filepath.Join(r.o.dir, name), InitdbArgs: []string{"--data-checksums"}, Args: []string{"-c", "listen_addresses=127.0.0.1," + r.net.host()},
		HBA: []string{"host all all " + r.net.subnet + ".0/24 trust", "host replication all " + r.net.subnet + ".0/24 trust"},
		Settings: map[string]string{"wal_level": "replica", "max_wal_senders": "20", "max_replication_slots": "20", "shared_buffers": "32MB", "max_wal_size": "256MB",
			"autovacuum_naptime": "1s", "wal_sender_timeout": "5s"},
	}
}

// relations tells the readers what to read: pgbench's tables and indexes.
func (r *run) relations(ctx context.Context) error {
	rows, err := r.primary.SQL(ctx, "postgres", "select pg_relation_filepath(oid) from pg_class where relname ~ '^pgbench|^acks' and relkind in ('r', 'i')")
	if err != nil {
		return err
	}
	for _, row := range rows {
		rel, err := pg.ParseRel(row[0])
		if err != nil {
			return err
		}
		r.readers.mu.Lock()
		r.readers.rels = append(r.readers.rels, pg.RelFork{RelFileLocator: rel, Fork: pg.MainFork})
		r.readers.mu.Unlock()
	}
	return nil
}

func (r *run) close() error {
	var errs []error
	if r.load != nil {
		r.load.stop()
	}
	if r.watch != nil {
		errs = append(errs, r.watch.stop())
	}
	if r.readers != nil {
		errs = append(errs, r.readers.stop())
	}
	if r.cluster != nil {
		for _, n := range r.cluster.Nodes {
			n.Signal(syscall.SIGCONT) // it may be gone
		}
		errs = append(errs, r.cluster.Close())
	}
	if r.primary != nil {
		errs = append(errs, r.primary.Close())
	}
	if r.disk != nil {
		r.disk.delay.Store(0)
		errs = append(errs, r.disk.close())
	}
	if r.tmpfs != "" {
		errs = append(errs, syscall.Unmount(r.tmpfs, 0))
	}
	if r.net != nil {
		errs = append(errs, r.net.close())
	}
	return errors.Join(errs...)
}

// one injects one kind of fault, and holds all that can be known afterwards against the primary.
func (r *run) one(ctx context.Context, kind string) (out outcome) {
	began := time.Now()
	out = outcome{Kind: kind, Replicas: r.o.replicas, Seed: r.o.seed, Shards: r.o.shards, Day: time.Now().UTC().Format(time.DateOnly), Commit: r.o.commit}
	r.readers.tally()
	r.load.acknowledged()
	inject := faults[kind]
	for range r.o.injections {
		err := r.pause(ctx, r.between(300, 1500))
		if err == nil {
			err = inject(r, ctx)
		}
		out.Injections++
		if err == nil {
			err = r.settled(ctx)
		}
		if err != nil {
			out.Failed = fmt.Sprintf("injection %d: %v%s", out.Injections, err, r.logs())
			break
		}
	}
	t := r.readers.tally()
	out.Read, out.Compared, out.Wrong, out.Errors, out.Gap = t.read, t.compared, t.wrong, t.errors, t.longest
	_, out.CommitGap = r.load.acknowledged()
	if out.Failed == "" {
		if err := r.compare(ctx, &out); err != nil {
			out.Failed = fmt.Sprintf("after all injections: %v%s", err, r.logs())
		}
	}
	wrong, seen, done := r.watch.judge()
	out.Wrong, out.Agreed, out.Reserved = append(out.Wrong, wrong...), seen, done
	out.Seconds = time.Since(began).Seconds()
	return out
}

func (r *run) logs() string {
	var b strings.Builder
	for i, n := range r.cluster.Nodes {
		fmt.Fprintf(&b, "\nlog of node%d:\n%s", i+1, n.Log())
	}
	return b.String()
}

func (r *run) between(from, to int) time.Duration {
	return time.Duration(from+r.random.IntN(to-from)) * time.Millisecond
}

func (r *run) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d): // the random moment, no waiting for a condition
		return nil
	}
}

// settled waits until all nodes have all shards again, follow, and answer for what the primary has by now; the readers read there from then on.
func (r *run) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for i, n := range r.cluster.Nodes {
		select {
		case <-n.Done():
			r.o.logf("  node%d had ended: it is started again", i+1)
			if err := n.StartAgain(ctx); err != nil {
				return fmt.Errorf("node%d does not start again: %w", i+1, err)
			}
		default:
		}
	}
	at, err := r.primary.CurrentLSN(ctx)
	if err != nil {
		return err
	}
	want, err := pg.ParseLSN(at)
	if err != nil {
		return err
	}
	if err := r.cluster.Settled(ctx, r.o.shards*r.o.replicas); err != nil {
		return err
	}
	for {
		list, err := r.cluster.Nodes[0].Members(ctx)
		behind := 0
		for _, m := range list {
			if have, err := pg.ParseLSN(m.Readable); err != nil || have < want {
				behind++
			}
		}
		if err == nil && behind == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d nodes do not reach %s: %+v, error %v", behind, at, list, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if r.readers != nil {
		r.readers.at(pageapi.Position{Branch: r.branch, LSN: want})
	}
	return nil
}

// compare ends the load, looks for every commit that returned, stops the primary cleanly, compares every page with its files, and goes on.
func (r *run) compare(ctx context.Context, out *outcome) error {
	r.load.stop()
	acked, _ := r.load.acknowledged()
	r.acked = append(r.acked, acked...)
	if n := len(r.acked); n > 0 {
		r.number = r.acked[n-1] + 10
	}
	if err := r.settled(ctx); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	lost, err := missing(bounded, r.readers.client, r.acks, r.acked, append([]uint32{0}, r.left...)...)
	if err != nil {
		return fmt.Errorf("look for commits: %w", err)
	}
	out.Commits, out.Lost = len(r.acked), lost
	if err := r.invariant(bounded); err != nil {
		return err
	}
	if err := r.primary.Stop(ctx, pgtest.Fast); err != nil {
		return err
	}
	final, err := nodetest.CompareStopped(bounded, r.cluster.Nodes[r.random.IntN(nodeCount)].Address(), r.primary.DataDir())
	if err != nil {
		return err
	}
	out.Final = int(final.Final.Pages)
	if !final.OK() {
		out.Wrong = append(out.Wrong, fmt.Sprintf("the stopped primary differs: %d mismatches, %d damaged; the first: %+v", final.Mismatches, final.Damaged, final.Found[:min(3, len(final.Found))]))
	}
	if err := r.primary.StartAgain(ctx); err != nil {
		return err
	}
	r.load = startLoad(ctx, r.primary, r.number)
	return nil
}

// invariant restores a random LSN that the readers know and asks a stock server for pgbench's four sums.
func (r *run) invariant(ctx context.Context) error {
	r.readers.mu.Lock()
	at := r.readers.ats[r.random.IntN(len(r.readers.ats))]
	r.readers.mu.Unlock()
	dir := filepath.Join(r.o.dir, "restored")
	defer os.RemoveAll(dir)
	if res := r.cluster.Nodes[r.random.IntN(nodeCount)].Run(ctx, "restore", filepath.Join(dir, "data"), "--lsn", at.LSN.String(), "--branch", fmt.Sprint(at.Branch), "--quiet"); res.Code != 0 {
		return fmt.Errorf("restore at %s: exit code %d: %s", at.LSN, res.Code, res.Stderr)
	}
	s, err := pgtest.Open(ctx, filepath.Join(dir, "data"), pgtest.Config{Dir: filepath.Join(dir, "server")})
	if err != nil {
		return fmt.Errorf("start what was restored at %s: %w", at.LSN, err)
	}
	defer s.Close()
	rows, err := s.SQL(ctx, "postgres", "select sum(abalance), (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history) from pgbench_accounts")
	if err != nil {
		return fmt.Errorf("ask what was restored at %s: %w", at.LSN, err)
	}
	for _, v := range rows[0] {
		if v != rows[0][0] {
			return fmt.Errorf("restored at %s the sums of accounts, tellers, branches and history differ: %v", at.LSN, rows[0])
		}
	}
	return nil
}
