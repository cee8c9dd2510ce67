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

// scaled is what a cluster of some nodes, each on a part of a core, reads.
type scaled struct {
	pagesPerSecond float64
	cpuMicros      float64 // of all nodes, a page
	capped         bool
}

const (
	capPercent  = 20
	scaleClient = 8 // of the pipelined reads
	// 128 MB of pages of a database of 240 MB: the nodes of one machine share its processor's caches, where three copies of less would find less room than one.
	scalePages  = 16384
	scaleFactor = 15 // of pgbench
)

// scale measures whether three nodes read more than one when each has the same small part of a core. Where control groups can't be written it tells the CPU time of
// a page alone.
func (b *bench) scale(ctx context.Context) (err error) {
	dir := filepath.Join(b.work, "scale")
	if !b.keep {
		defer os.RemoveAll(dir)
	}
	s, err := pgtest.Start(ctx, pgtest.Config{Dir: filepath.Join(dir, "primary"), Settings: nodeSettings()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := s.Pgbench(ctx, "-i", "-q", "-s", strconv.Itoa(scaleFactor)); err != nil {
		return err
	}
	if _, err := s.Pgbench(ctx, "-n", "-c", "2", "-t", "2000"); err != nil {
		return err
	}
	var of1, of3 scaled
	if of1, err = b.scaleOf(ctx, s, filepath.Join(dir, "one"), 1); err != nil {
		return err
	}
	if of3, err = b.scaleOf(ctx, s, filepath.Join(dir, "three"), 3); err != nil {
		return err
	}
	if !of1.capped || !of3.capped {
		b.report.add("CPU of a page, three nodes", "", true, of3.cpuMicros/of1.cpuMicros, "control groups can't be written here, so that throughput was not compared",
			of("three nodes", "µs", of3.cpuMicros), of("one node", "µs", of1.cpuMicros))
		return nil
	}
	ratio := of3.pagesPerSecond / of1.pagesPerSecond
	b.report.add("pages read, three nodes", "≥ 2×", ratio >= 2, ratio, fmt.Sprintf("each node on %d %% of a core, three replicas, %d pages of all relations, %d clients with %d pages under way each; CPU of a page, single reads included, %.1f µs in three nodes, %.1f in one",
		capPercent, scalePages, scaleClient, readBatch, of3.cpuMicros, of1.cpuMicros), of("three nodes", "pages/s", of3.pagesPerSecond), of("one node", "pages/s", of1.pagesPerSecond))
	return nil
}

func (b *bench) scaleOf(ctx context.Context, s *pgtest.Server, dir string, nodes int) (found scaled, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return found, err
	}
	c, err := nodetest.StartCluster(ctx, nodes, nodetest.Config{Binary: b.everpage, Data: dir}, nil)
	if err != nil {
		return found, err
	}
	var caps []cpuCap
	defer func() {
		err = errors.Join(err, c.Close())
		for _, p := range caps {
			err = errors.Join(err, p.remove())
		}
	}()
	first := c.Nodes[0]
	if r := first.Run(ctx, "attach", s.URI("postgres"), "--wait", "--quiet"); r.Code != 0 {
		return found, fmt.Errorf("attach: exit code %d: %s", r.Code, r.Stderr)
	}
	target, err := quiet(ctx, s)
	if err != nil {
		return found, err
	}
	const shards = 64
	bounded, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := errors.Join(c.Settled(bounded, shards*nodes), c.Readable(bounded, target)); err != nil {
		return found, err
	}
	read := func(d time.Duration) (r getPageResult, err error) {
		err = b.command(ctx, &r, "bench", "getpage", "--server", c.Addresses(), "--duration", d.String(), "--clients", strconv.Itoa(scaleClient), "--batch", strconv.Itoa(readBatch), "--pages", strconv.Itoa(scalePages),
			"--seed", strconv.FormatInt(b.seed, 10))
		return r, err
	}
	if _, err := read(time.Second); err != nil { // warms up
		return found, err
	}
	found.capped = true
	for _, n := range c.Nodes {
		p, err := capCPU(n.Pid(), capPercent)
		if err != nil {
			progress("the node can't be capped: %v", err)
			found.capped = false
			break
		}
		caps = append(caps, p)
	}
	used := func() (sum float64, err error) {
		for _, n := range c.Nodes {
			v, err := cpuSeconds(n.Pid())
			if err != nil {
				return 0, err
			}
			sum += v
		}
		return sum, nil
	}
	before, err := used()
	if err != nil {
		return found, err
	}
	pages := 0.0
	var rates []float64
	for range b.runs {
		r, err := read(time.Duration(b.readSeconds) * time.Second)
		if err != nil {
			return found, err
		}
		rates = append(rates, r.PagesPerSecond)
		pages += float64(r.Pages+r.Latency.N) + r.PagesPerSecond*float64(b.readSeconds)
	}
	after, err := used()
	if err != nil {
		return found, err
	}
	found.pagesPerSecond = of("", "", rates...).Median
	found.cpuMicros = (after - before) / pages * 1e6
	return found, nil
}
