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

	"everpage/deploy/losstest"
	"everpage/deploy/nodetest"
)

// lossCommand is the long form of the loss test: clusters of three nodes whose data is deleted, two of three, all, and all with the primary.
//
//	longrun loss -count 3 -log deploy/longrun/loss-15.log
func lossCommand(ctx context.Context, args []string, out io.Writer) (err error) {
	o := losstest.Options{LSNs: 50, Stock: 5}
	var count int
	var log, dir string
	f := flag.NewFlagSet("longrun loss", flag.ContinueOnError)
	f.IntVar(&count, "count", 1, "clusters to lose")
	f.IntVar(&o.Scale, "scale", 2, "of pgbench's database")
	f.DurationVar(&o.Load, "load", 20*time.Second, "under load before the first loss")
	f.Uint64Var(&o.Seed, "seed", 0, "seed of the first cluster; 0: a fresh one, which is printed")
	f.StringVar(&o.Binary, "binary", "", "the everpage to run; empty: it is built")
	f.StringVar(&log, "log", "", "file that a line for each cluster is appended to")
	f.StringVar(&dir, "dir", "", "where all is made and removed; what fails is kept. Empty: a temporary directory")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64() >> 1
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "everpage-longrun-"); err != nil {
			return err
		}
		defer os.Remove(dir) // empty unless something failed
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	if o.Binary == "" {
		bin, err := os.MkdirTemp("", "everpage-bin-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(bin)
		if o.Binary, err = nodetest.Build(ctx, bin); err != nil {
			return err
		}
	}
	if log != "" {
		file, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer file.Close()
		out = io.MultiWriter(out, file)
	}
	fmt.Fprintf(out, "# seed %d, %s, %d CPUs\n", o.Seed, runtime.Version(), runtime.NumCPU())
	for range count {
		o.Dir = filepath.Join(dir, fmt.Sprintf("loss-%d", o.Seed))
		o.Logf = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
		began := time.Now()
		r, err := losstest.Run(ctx, o)
		if err != nil {
			return errors.Join(fmt.Errorf("seed %d: %w (kept in %s)", o.Seed, err, o.Dir), note(out, "FAILED seed=%d: %v", o.Seed, err))
		}
		if err := note(out, "seed=%d lsns=%d pages=%d stock=%d commits=%d up=%.2fs fetched=%d lost=%d lag=%d lost_commits=%d took=%.0fs", o.Seed, r.LSNs, r.Pages, r.Stock, r.Commits,
			r.Up.Seconds(), r.Fetched, r.Lost, r.Lag, r.LostCommits, time.Since(began).Seconds()); err != nil {
			return err
		}
		o.Seed++
	}
	return nil
}

func note(out io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintf(out, format+"\n", args...)
	return err
}
