package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"everpage/deploy/killtest"
	"everpage/deploy/nodetest"
)

// killsOptions say how much is killed.
type killsOptions struct {
	major  int
	kills  int
	budget time.Duration
	seed   uint64
	dir    string
	binary string
}

// killsCommand is the long run of kills: one node and primary after the other, killed at random moments under load, each pair compared page by page at the end.
// A log that exists is gone on with: its kills count.
//
//	longrun kills -kills 200 -log deploy/longrun/kills-15.log
func killsCommand(ctx context.Context, args []string, out io.Writer) (err error) {
	var o killsOptions
	var log string
	f := flag.NewFlagSet("longrun kills", flag.ContinueOnError)
	f.IntVar(&o.major, "major", 15, "PostgreSQL major")
	f.IntVar(&o.kills, "kills", 0, "stop when so many were made, those in the log included; 0: when the budget is used up")
	f.DurationVar(&o.budget, "budget", 0, "start no run that would not be done by then; 0: no limit")
	f.Uint64Var(&o.seed, "seed", 0, "seed of all seeds; 0: a fresh one, which is printed")
	f.StringVar(&o.binary, "binary", "", "the everpage to run; empty: it is built")
	f.StringVar(&log, "log", "", "file that a line for each run is appended to")
	f.StringVar(&o.dir, "dir", "", "where all is made and removed; what fails is kept. Empty: a temporary directory")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.kills == 0 && o.budget == 0 {
		return errors.New("neither -kills nor -budget says when to end")
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
	before := 0
	if log != "" {
		if before, err = killsIn(log); err != nil {
			return err
		}
		file, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer file.Close()
		out = io.MultiWriter(out, file)
	}
	return runKills(ctx, o, before, out)
}

// killsFormat begins a line of the log.
const killsFormat = "kills=%d node=%d primary=%d both=%d"

// killsIn counts the kills that a log tells of.
func killsIn(path string) (int, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sum := 0
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		var kills, node, primary, both int
		if _, err := fmt.Sscanf(lines.Text(), killsFormat, &kills, &node, &primary, &both); err != nil {
			return 0, fmt.Errorf("%s: line %d: %w", path, n, err)
		}
		sum += kills
	}
	return sum, lines.Err()
}

// runKills makes runs until the count or the budget is reached. It ends at the first thing that is wrong.
func runKills(ctx context.Context, o killsOptions, done int, out io.Writer) error {
	began := time.Now()
	fmt.Fprintf(out, "# seed %d, PostgreSQL %d, %s, %d CPUs, %d kills before\n", o.seed, o.major, runtime.Version(), runtime.NumCPU(), done)
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
	var longest time.Duration
	for i := 0; o.kills == 0 || done < o.kills; i++ {
		if o.budget > 0 && i > 0 && time.Since(began)+longest > o.budget {
			break
		}
		start := time.Now()
		k := drawKills(random, i, o)
		r, err := killtest.Run(ctx, k)
		if ctx.Err() != nil {
			fmt.Fprintln(out, "# interrupted")
			return errors.Join(context.Cause(ctx), os.RemoveAll(k.Dir))
		}
		if err != nil {
			fmt.Fprintf(out, "# FAILED: seed=%d args=%q: %v\n", k.Seed, k.Args, err)
			return err
		}
		longest = max(longest, time.Since(start))
		kills := r.NodeKills + r.PrimaryKills + 2*r.BothKills
		done += kills
		fmt.Fprintf(out, killsFormat+" seed=%d args=%q commits=%d pages=%d objects=%d mismatches=0 seconds=%.0f total=%d\n", kills, r.NodeKills, r.PrimaryKills, r.BothKills,
			k.Seed, k.Args, r.Commits, r.Final.Final.Pages, r.Final.Final.Objects, time.Since(start).Seconds(), done)
	}
	fmt.Fprintf(out, "# %d kills, nothing was lost and nothing was wrong, %.0f s\n", done, time.Since(began).Seconds())
	return nil
}

// drawKills chooses the i-th run: large and small tables, chunks and spools.
func drawKills(random *rand.Rand, i int, o killsOptions) killtest.Options {
	pick := func(values ...string) string { return values[random.IntN(len(values))] }
	return killtest.Options{
		Binary: o.binary, Major: o.major, Dir: filepath.Join(o.dir, fmt.Sprintf("run-%d", i)), Seed: random.Uint64(),
		NodeKills: 8 + random.IntN(8), PrimaryKills: 2 + random.IntN(3), BothKills: 1 + random.IntN(3),
		Args: []string{"--segment-blocks", pick("16", "16", "131072"), "--run", pick("300000", "1000000", "5000000", "25000000"), "--spool-keep", pick("1", "20000000", "1000000000")},
	}
}
