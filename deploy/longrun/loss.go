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

	"everpage/deploy/losstest"
)

// lossMajor is that of the clusters' primary.
const lossMajor = 15

// lossRun is what a long run of losses was asked for.
type lossRun struct {
	frame
	count   int
	options losstest.Options
}

// lossCommand is the long form of the loss test: clusters of three nodes whose data is deleted, two of three, all, and all with the primary.
//
//	longrun loss -count 3 -log deploy/longrun/loss-15.log
func lossCommand(ctx context.Context, args []string, out io.Writer) error {
	r := lossRun{options: losstest.Options{LSNs: 50, Stock: 5}}
	f := flag.NewFlagSet("longrun loss", flag.ContinueOnError)
	f.IntVar(&r.count, "count", 1, "clusters to lose")
	f.IntVar(&r.options.Scale, "scale", 2, "of pgbench's database")
	f.DurationVar(&r.options.Load, "load", 20*time.Second, "under load before the first loss")
	return r.frame.run(ctx, f, args, out, r.make)
}

func (r *lossRun) make(ctx context.Context) error {
	if err := r.head(lossMajor, ""); err != nil {
		return err
	}
	done := 0
	return r.turns(func() bool { return done < r.count }, func(i int) (time.Duration, error) {
		o, start := r.options, time.Now()
		o.Binary, o.Seed = r.binary, r.seed+uint64(i)
		o.Dir = filepath.Join(r.dir, fmt.Sprintf("loss-%d", o.Seed))
		o.Logf = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
		res, err := losstest.Run(ctx, o)
		if err != nil {
			return 0, errors.Join(fmt.Errorf("seed %d: %w (kept in %s)", o.Seed, err, o.Dir), r.note("FAILED seed=%d: %v", o.Seed, err))
		}
		done++
		return time.Since(start), r.note("seed=%d lsns=%d pages=%d stock=%d commits=%d up=%.2fs fetched=%d lost=%d lag=%d lost_commits=%d took=%.0fs", o.Seed, res.LSNs, res.Pages,
			res.Stock, res.Commits, res.Up.Seconds(), res.Fetched, res.Lost, res.Lag, res.LostCommits, time.Since(start).Seconds())
	})
}
