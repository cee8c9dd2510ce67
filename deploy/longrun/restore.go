package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"everpage/deploy/restoretest"
	"everpage/deploy/workload"
	"everpage/wal/pg"
)

// restoreRun is what a long run of restores was asked for. Each history serves perHistory LSNs, so that a long run sees several workloads.
type restoreRun struct {
	frame
	major      int
	count      int
	perHistory int
}

// restoreCommand is the long run of restores: histories of the mixed workload, each restored at random LSNs, every directory held against a stock
// server that was recovered to the same LSN, crashed, followed by a standby and checked by pg_amcheck.
//
//	longrun restore -count 20 -log deploy/longrun/restore-15.log
func restoreCommand(ctx context.Context, args []string, out io.Writer) error {
	var r restoreRun
	f := flag.NewFlagSet("longrun restore", flag.ContinueOnError)
	f.IntVar(&r.major, "major", 15, "PostgreSQL major")
	f.IntVar(&r.count, "count", 0, "restores to make; 0: until the budget is used up")
	f.IntVar(&r.perHistory, "per-history", 20, "restores of one workload")
	return r.frame.run(ctx, f, args, out, r.make)
}

// make makes histories and restores from them until the count or the budget is reached. It ends at the first thing that is wrong.
func (r *restoreRun) make(ctx context.Context) error {
	if r.count == 0 && r.budget == 0 || r.perHistory < 1 {
		return errors.New("neither -count nor -budget says when to end, or -per-history is below 1")
	}
	if err := r.head(r.major, ""); err != nil {
		return err
	}
	done := 0
	err := r.turns(func() bool { return r.count == 0 || done < r.count }, func(i int) (time.Duration, error) {
		start := time.Now()
		n, first, err := r.history(ctx, i, done)
		done += n
		if err != nil {
			return 0, errors.Join(err, r.note("# FAILED after %d restores: %v", done, err))
		}
		return first.Sub(start), nil
	})
	if err != nil {
		return err
	}
	return r.note("# seed %d: nothing was wrong, %.0f s", r.seed, time.Since(r.began).Seconds())
}

// history makes the i-th history and restores from it. It returns how many restores were made and when the first was done.
func (r *restoreRun) history(ctx context.Context, i, before int) (n int, first time.Time, err error) {
	dir := filepath.Join(r.dir, fmt.Sprintf("history-%d", i))
	o := restoretest.Options{Binary: r.binary, Major: r.major,
		Workload: workload.Options{Seed: r.random.Int64N(1 << 31), Rows: 200 + r.random.IntN(400), Transactions: 1000 + r.random.IntN(1000)}}
	if i%2 == 0 {
		o.InitdbArgs = []string{"--data-checksums"}
	}
	start := time.Now()
	h, err := restoretest.Make(ctx, dir, o)
	if err != nil {
		return 0, first, err
	}
	defer h.Close()
	count := r.perHistory
	if r.count > 0 {
		count = min(count, r.count-before)
	}
	lsns, err := h.Boundaries(r.random, count)
	if err != nil {
		return 0, first, err
	}
	if err := r.note("# history %d: workload seed %d, %d rows, %d transactions, initdb %q, %s to %s, made in %.0f s", i, o.Workload.Seed, o.Workload.Rows,
		o.Workload.Transactions, o.InitdbArgs, h.From, h.To, time.Since(start).Seconds()); err != nil {
		return 0, first, err
	}
	// In another order than the WAL's, so that a budget cuts off no part of the workload always.
	r.random.Shuffle(len(lsns), func(a, b int) { lsns[a], lsns[b] = lsns[b], lsns[a] })
	var longest time.Duration
	for _, lsn := range lsns {
		if r.budget > 0 && n > 0 && time.Since(r.began)+longest > r.budget {
			break
		}
		start := time.Now()
		res, err := h.Check(ctx, lsn, restoretest.Checks{Amcheck: true, Stock: true, Crash: true, Standby: true})
		if err != nil {
			return n, first, err
		}
		n++
		if err := r.note("%s after=%q seconds=%.0f", res, section(h, lsn), time.Since(start).Seconds()); err != nil {
			return n, first, err
		}
		if longest = max(longest, time.Since(start)); n == 1 {
			first = time.Now()
		}
	}
	h.Close()
	return n, first, os.RemoveAll(dir)
}

// section is the last part of the workload that was done at an LSN.
func section(h *restoretest.History, lsn pg.LSN) string {
	name := "begin"
	for _, m := range h.Marks {
		if at, err := pg.ParseLSN(m.LSN); err == nil && at <= lsn {
			name = m.Name
		}
	}
	return name
}
