package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
)

// rereplicate measures how long a cluster takes to have all replicas again once a node is gone for good.
func (b *bench) rereplicate(ctx context.Context) (err error) {
	dir := filepath.Join(b.work, "rereplicate")
	if !b.keep {
		defer os.RemoveAll(dir)
	}
	s, err := pgtest.Start(ctx, pgtest.Config{Dir: filepath.Join(dir, "primary"), Settings: nodeSettings()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := s.Pgbench(ctx, "-i", "-q", "-s", strconv.Itoa(b.lostScale)); err != nil {
		return err
	}
	const shards, replicas, nodes, deadAfter = 64, 2, 3, 5 * time.Second
	if err := os.MkdirAll(filepath.Join(dir, "nodes"), 0o755); err != nil {
		return err
	}
	c, err := nodetest.StartCluster(ctx, nodes, nodetest.Config{Binary: b.everpage, Data: filepath.Join(dir, "nodes"), Args: []string{"--dead-after", deadAfter.String()}},
		func(i int, c *nodetest.Config) {
			if i == 0 { // these act only when the cluster is made
				c.Args = append(c.Args, "--shards", strconv.Itoa(shards), "--replicas", strconv.Itoa(replicas))
			}
		})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	first := c.Nodes[0]
	if r := first.Run(ctx, "attach", s.URI("postgres"), "--wait", "--quiet"); r.Code != 0 {
		return fmt.Errorf("attach: exit code %d: %s", r.Code, r.Stderr)
	}
	target, err := quiet(ctx, s)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	if err := errors.Join(c.Settled(bounded, shards*replicas), c.Readable(bounded, target)); err != nil {
		return err
	}
	size, err := databaseSize(ctx, s)
	if err != nil {
		return err
	}
	list, err := first.Members(ctx)
	if err != nil {
		return err
	}
	lost := list[nodes-1].Full
	progress("re-replication: node%d with %d of %d replicas is killed for good", nodes, lost, shards*replicas)
	c.Nodes[nodes-1].Kill9()
	began := time.Now()
	took, seen, err := restored(bounded, first, nodes, shards*replicas)
	if err != nil {
		return err
	}
	moved := size * float64(lost) / shards
	b.report.add("all replicas again after a node is lost", "", true, 0,
		fmt.Sprintf("a database of %.0f MB with two replicas in three nodes; %d of %d replicas, about %.0f MB of pages, were made again beginning %s after the kill; up to %d at a time were seen on their way by node list",
			size/1e6, lost, shards*replicas, moved/1e6, deadAfter, seen),
		of("from the kill", "s", time.Since(began).Seconds()), of("of which moving", "s", took.Seconds()), of("rate", "MB/s", moved/1e6/took.Seconds()))
	return nil
}

// restored waits until one of the nodes is given up and the others have so many full replicas, and tells since the first was seen on its way, and how many at once.
func restored(ctx context.Context, n *nodetest.Node, nodes, replicas int) (took time.Duration, seen int, err error) {
	var since time.Time
	for {
		list, err := n.Members(ctx)
		full, joining, alive := 0, 0, 0
		for _, m := range list {
			if m.Alive {
				full, joining, alive = full+m.Full, joining+m.Joining, alive+1
			}
		}
		if joining > 0 && since.IsZero() {
			since = time.Now()
		}
		seen = max(seen, joining)
		if err == nil && full == replicas && joining == 0 && alive < nodes {
			if since.IsZero() {
				return 0, 0, errors.New("no replica was seen on its way")
			}
			return time.Since(since), seen, nil
		}
		select {
		case <-ctx.Done():
			return 0, seen, fmt.Errorf("%d of %d replicas are there, %d on their way: %w", full, replicas, joining, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// databaseSize is that of all databases, bytes.
func databaseSize(ctx context.Context, s *pgtest.Server) (float64, error) {
	v, err := s.Value(ctx, "postgres", "select sum(pg_database_size(oid)) from pg_database")
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(v, 64)
}
