package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"everpage/deploy/killtest"
)

// killsRun is what a long run of kills was asked for.
type killsRun struct {
	frame
	major int
	kills int
}

// killsCommand is the long run of kills: one node and primary after the other, killed at random moments under load, each pair compared page by page at the end.
// A log that exists is gone on with: its kills count.
//
//	longrun kills -kills 200 -log deploy/longrun/kills-15.log
func killsCommand(ctx context.Context, args []string, out io.Writer) error {
	var r killsRun
	f := flag.NewFlagSet("longrun kills", flag.ContinueOnError)
	f.IntVar(&r.major, "major", 15, "PostgreSQL major")
	f.IntVar(&r.kills, "kills", 0, "stop when so many were made, those in the log included; 0: when the budget is used up")
	return r.frame.run(ctx, f, args, out, r.make)
}

// killsFormat begins a line of the log.
const killsFormat = "kills=%d node=%d primary=%d both=%d"

// killsIn counts the kills that a log tells of; no path is no log.
func killsIn(path string) (int, error) {
	if path == "" {
		return 0, nil
	}
	f, err := os.Open(path)
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

// make makes runs until the count or the budget is reached. It ends at the first thing that is wrong.
func (r *killsRun) make(ctx context.Context) error {
	if r.kills == 0 && r.budget == 0 {
		return errors.New("neither -kills nor -budget says when to end")
	}
	done, err := killsIn(r.log)
	if err != nil {
		return err
	}
	if err := r.head(r.major, ", %d kills before", done); err != nil {
		return err
	}
	err = r.turns(func() bool { return r.kills == 0 || done < r.kills }, func(i int) (time.Duration, error) {
		start := time.Now()
		k := r.draw(i)
		res, err := killtest.Run(ctx, k)
		if ctx.Err() != nil {
			return 0, errors.Join(context.Cause(ctx), os.RemoveAll(k.Dir), r.note("# interrupted"))
		}
		if err != nil {
			return 0, errors.Join(err, r.note("# FAILED: seed=%d args=%q: %v", k.Seed, k.Args, err))
		}
		kills := res.NodeKills + res.PrimaryKills + 2*res.BothKills
		done += kills
		return time.Since(start), r.note(killsFormat+" seed=%d args=%q commits=%d pages=%d objects=%d mismatches=0 seconds=%.0f total=%d", kills, res.NodeKills, res.PrimaryKills,
			res.BothKills, k.Seed, k.Args, res.Commits, res.Final.Final.Pages, res.Final.Final.Objects, time.Since(start).Seconds(), done)
	})
	if err != nil {
		return err
	}
	return r.note("# %d kills, nothing was lost and nothing was wrong, %.0f s", done, time.Since(r.began).Seconds())
}

// draw chooses the i-th run: large and small tables, chunks and spools.
func (r *killsRun) draw(i int) killtest.Options {
	pick := func(values ...string) string { return values[r.random.IntN(len(values))] }
	return killtest.Options{
		Binary: r.binary, Major: r.major, Dir: filepath.Join(r.dir, fmt.Sprintf("run-%d", i)), Seed: r.random.Uint64(),
		NodeKills: 8 + r.random.IntN(8), PrimaryKills: 2 + r.random.IntN(3), BothKills: 1 + r.random.IntN(3),
		Args: []string{"--segment-blocks", pick("16", "16", "131072"), "--run", pick("300000", "1000000", "5000000", "25000000"), "--spool-keep", pick("1", "20000000", "1000000000")},
	}
}
