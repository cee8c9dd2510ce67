package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/restoretest"
	"everpage/deploy/workload"
	"everpage/wal/pg"
)

// restoreOptions say how long restores are tried. Each history serves PerHistory LSNs, so that a long run sees several workloads.
type restoreOptions struct {
	major      int
	count      int
	perHistory int
	budget     time.Duration
	seed       uint64
	dir        string
	binary     string
}

// restoreCommand is the long run of restores: histories of the mixed workload, each restored at random LSNs, every directory held against a stock
// server that was recovered to the same LSN, crashed, followed by a standby and checked by pg_amcheck.
//
//	longrun restore -count 20 -log deploy/longrun/restore-15.log
func restoreCommand(ctx context.Context, args []string, out io.Writer) (err error) {
	var o restoreOptions
	var log string
	f := flag.NewFlagSet("longrun restore", flag.ContinueOnError)
	f.IntVar(&o.major, "major", 15, "PostgreSQL major")
	f.IntVar(&o.count, "count", 0, "restores to make; 0: until the budget is used up")
	f.IntVar(&o.perHistory, "per-history", 20, "restores of one workload")
	f.DurationVar(&o.budget, "budget", 0, "start nothing that would not be done by then; 0: no limit")
	f.Uint64Var(&o.seed, "seed", 0, "seed of all seeds; 0: a fresh one, which is printed")
	f.StringVar(&o.binary, "binary", "", "the everpage to run; empty: it is built")
	f.StringVar(&log, "log", "", "file that a line for each restore is appended to")
	f.StringVar(&o.dir, "dir", "", "where all is made and removed; what fails is kept. Empty: a temporary directory")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.count == 0 && o.budget == 0 || o.perHistory < 1 {
		return errors.New("neither -count nor -budget says when to end, or -per-history is below 1")
	}
	if o.seed == 0 {
		o.seed = rand.Uint64() >> 1
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "everpage-longrun-"); err != nil {
			return err
		}
		defer os.Remove(o.dir) // empty unless something failed
	}
	if log != "" {
		file, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer file.Close()
		out = io.MultiWriter(out, file)
	}
	return runRestores(ctx, o, out)
}

// runRestores makes histories and restores from them until the count or the budget is reached. It ends at the first thing that is wrong.
func runRestores(ctx context.Context, o restoreOptions, out io.Writer) error {
	began := time.Now()
	fmt.Fprintf(out, "# seed %d, PostgreSQL %d, %s, %d CPUs\n", o.seed, o.major, runtime.Version(), runtime.NumCPU())
	if o.binary == "" {
		bin, err := os.MkdirTemp("", "everpage-bin-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(bin)
		if o.binary, err = nodetest.Build(ctx, bin); err != nil {
			return err
		}
	}
	random := rand.New(rand.NewPCG(o.seed, uint64(o.major)))
	var longest time.Duration // from making a history to its first restore
	for i, done := 0, 0; o.count == 0 || done < o.count; i++ {
		if o.budget > 0 && i > 0 && time.Since(began)+longest > o.budget {
			break
		}
		start := time.Now()
		r := restoreRun{o: o, dir: filepath.Join(o.dir, fmt.Sprintf("history-%d", i)), random: random, began: began, out: out}
		n, first, err := r.history(ctx, i, done)
		done += n
		if err != nil {
			fmt.Fprintf(out, "# FAILED after %d restores: %v\n", done, err)
			return err
		}
		longest = max(longest, first.Sub(start))
	}
	fmt.Fprintf(out, "# seed %d: nothing was wrong, %.0f s\n", o.seed, time.Since(began).Seconds())
	return nil
}

// restoreRun is one history under way.
type restoreRun struct {
	o      restoreOptions
	dir    string
	random *rand.Rand
	began  time.Time
	out    io.Writer
}

// history makes the i-th history and restores from it. It returns how many restores were made and when the first was done.
func (r *restoreRun) history(ctx context.Context, i, before int) (n int, first time.Time, err error) {
	o := restoretest.Options{Binary: r.o.binary, Major: r.o.major,
		Workload: workload.Options{Seed: r.random.Int64N(1 << 31), Rows: 200 + r.random.IntN(400), Transactions: 1000 + r.random.IntN(1000)}}
	if i%2 == 0 {
		o.InitdbArgs = []string{"--data-checksums"}
	}
	start := time.Now()
	h, err := restoretest.Make(ctx, r.dir, o)
	if err != nil {
		return 0, first, err
	}
	defer h.Close()
	count := r.o.perHistory
	if r.o.count > 0 {
		count = min(count, r.o.count-before)
	}
	lsns, err := h.Boundaries(r.random, count)
	if err != nil {
		return 0, first, err
	}
	fmt.Fprintf(r.out, "# history %d: workload seed %d, %d rows, %d transactions, initdb %q, %s to %s, made in %.0f s\n", i, o.Workload.Seed, o.Workload.Rows,
		o.Workload.Transactions, o.InitdbArgs, h.From, h.To, time.Since(start).Seconds())
	// In another order than the WAL's, so that a budget cuts off no part of the workload always.
	r.random.Shuffle(len(lsns), func(a, b int) { lsns[a], lsns[b] = lsns[b], lsns[a] })
	var longest time.Duration
	for _, lsn := range lsns {
		if r.o.budget > 0 && n > 0 && time.Since(r.began)+longest > r.o.budget {
			break
		}
		start := time.Now()
		res, err := h.Check(ctx, lsn, restoretest.Checks{Amcheck: true, Stock: true, Crash: true, Standby: true})
		if err != nil {
			return n, first, err
		}
		n++
		fmt.Fprintf(r.out, "%s after=%q seconds=%.0f\n", res, section(h, lsn), time.Since(start).Seconds())
		if longest = max(longest, time.Since(start)); n == 1 {
			first = time.Now()
		}
	}
	h.Close()
	return n, first, os.RemoveAll(r.dir)
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
