package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"everpage/deploy/pgtest"
)

// collectTransactions are what each run makes history of.
const collectTransactions = 6000

// collect measures page reads while the node collects what lies below the horizon, beside the same reads while it doesn't, by turns.
func (b *bench) collect(ctx context.Context) (err error) {
	dir := filepath.Join(b.work, "collect")
	if !b.keep {
		defer os.RemoveAll(dir)
	}
	s, err := pgtest.Start(ctx, pgtest.Config{Dir: filepath.Join(dir, "primary"), Settings: nodeSettings()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := s.Pgbench(ctx, "-i", "-q", "-s", strconv.Itoa(b.nodeScale)); err != nil {
		return err
	}
	n, err := b.serve(ctx, filepath.Join(dir, "node"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	if err := n.call(ctx, nil, "attach", s.URI("postgres"), "--wait"); err != nil {
		return err
	}
	var idle, during, freed []float64
	for i := range b.runs {
		// Checkpoints in between make images, of which most go.
		for range 3 {
			if out, err := s.Pgbench(ctx, "-n", "-c", "4", "-t", strconv.Itoa(collectTransactions/12)); err != nil {
				return fmt.Errorf("pgbench: %w\n%s", err, out)
			}
			if _, err := s.SQL(ctx, "postgres", "checkpoint"); err != nil {
				return err
			}
		}
		target, err := quiet(ctx, s)
		if err != nil {
			return err
		}
		if _, err := n.waitReadable(ctx, target); err != nil {
			return err
		}
		before, err := b.readRate(ctx, n, i)
		if err != nil {
			return err
		}
		if err := n.call(ctx, nil, "retention", "set", "64kB"); err != nil {
			return err
		}
		was, err := n.waitCollecting(ctx)
		if err != nil {
			return err
		}
		rate, gone, err := b.readRateWhile(ctx, n, i, was)
		if err != nil {
			return err
		}
		if err := n.call(ctx, nil, "retention", "set", "forever"); err != nil {
			return err
		}
		if rate == 0 {
			progress("collection, run %d: it was over before the reads were; left out", i+1)
			continue
		}
		idle, during, freed = append(idle, before), append(during, rate), append(freed, float64(gone)/1e6)
		progress("collection, run %d: %.0f pages/s before, %.0f meanwhile, until %d bytes had gone", i+1, before, rate, gone)
	}
	if len(idle) == 0 {
		return errors.New("no collection took long enough to be measured")
	}
	ours, peer := of("while it collects", "pages/s", during...), of("while it doesn't", "pages/s", idle...)
	ratio := ours.Median / peer.Median
	b.report.add("GetPage, warm, pipelined, while versions below the horizon are collected", "≥ 0.8×", ratio >= 0.8, ratio,
		fmt.Sprintf("a pass over a store of %d times 15 MB of accounts and their history, at the default of 32 MiB/s; about %s MB had gone when the reads ended", b.nodeScale, number(of("", "", freed...).Median)),
		ours, peer)
	return nil
}

// readRate is one measurement of pipelined reads.
func (b *bench) readRate(ctx context.Context, n *served, i int) (float64, error) {
	var r getPageResult
	err := n.call(ctx, &r, "bench", "getpage", "--duration", (time.Duration(b.readSeconds) * time.Second).String(), "--clients", strconv.Itoa(readClients), "--batch",
		strconv.Itoa(readBatch), "--seed", strconv.FormatInt(b.seed+int64(i), 10))
	return r.PagesPerSecond, err
}

// readRateWhile reads until the pass that is under way has taken something away, and returns the mean rate and what has gone. The rate is 0 if the pass ended within
// the first measurement; one within which it ends later does not count.
func (b *bench) readRateWhile(ctx context.Context, n *served, i int, was collecting) (rate float64, gone uint64, err error) {
	for k := 0; ; k++ {
		r, err := b.readRate(ctx, n, i)
		if err != nil {
			return 0, 0, err
		}
		now, err := n.collectingNow(ctx)
		if err != nil {
			return 0, 0, err
		}
		if now.Passes != was.Passes {
			return rate, now.Gone, nil
		}
		rate += (r - rate) / float64(k+1)
		if now.Gone > was.Gone {
			return rate, now.Gone, nil
		}
	}
}

// collecting is what status says of collection.
type collecting struct {
	Running bool   `json:"running"`
	Passes  uint64 `json:"passes"`
	Gone    uint64 `json:"gone_bytes"`
}

func (n *served) collectingNow(ctx context.Context) (collecting, error) {
	var st struct {
		Nodes []struct {
			Collecting collecting `json:"collecting"`
		} `json:"nodes"`
	}
	if err := n.call(ctx, &st, "status"); err != nil {
		return collecting{}, err
	}
	if len(st.Nodes) != 1 {
		return collecting{}, fmt.Errorf("status tells of %d nodes", len(st.Nodes))
	}
	return st.Nodes[0].Collecting, nil
}

// waitCollecting waits until a pass is under way.
func (n *served) waitCollecting(ctx context.Context) (collecting, error) {
	for end := time.Now().Add(2 * time.Minute); ; {
		c, err := n.collectingNow(ctx)
		if err != nil || c.Running {
			return c, err
		}
		select {
		case <-ctx.Done():
			return c, context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			return c, errors.New("no collection began")
		}
	}
}
