// Command chaos kills, stops, cuts off and fills up the nodes of real clusters that follow a real PostgreSQL under load, and looks on: readers hold every page
// against what it was and against what the stopped primary has, a client's log says which commits returned, and what nodes agree on is checked for
// contradictions. It needs root, for networks of its own; nothing of the machine's own is touched.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	binary := flag.String("binary", "bin/everpage", "the everpage binary")
	injections := flag.Int("injections", 20, "of each kind of fault")
	fewer := flag.Int("fewer", 5, "of each kind with two replicas")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()%1_000_000), "of all that is random")
	kinds := flag.String("kinds", "", "only these, separated by commas")
	shards := flag.Int("shards", 64, "of each cluster")
	results := flag.String("results", "", "file to write the summary to")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := runAll(ctx, *binary, *seed, *shards, *injections, *fewer, *kinds, *results); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		stop()
		os.Exit(1)
	}
}

func runAll(ctx context.Context, binary string, seed uint64, shards, injections, fewer int, only, results string) error {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	var all []outcome
	for _, c := range []struct{ replicas, injections int }{{3, injections}, {2, fewer}} {
		var kinds []string
		for _, k := range kindsFor(c.replicas) {
			if only == "" || strings.Contains(","+only+",", ","+k+",") {
				kinds = append(kinds, k)
			}
		}
		if len(kinds) == 0 || c.injections == 0 {
			continue
		}
		dir, err := os.MkdirTemp("", "everpage-chaos-")
		if err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o755); err != nil { // the server runs as another user
			return err
		}
		fmt.Printf("%d replicas, seed %d, in %s\n", c.replicas, seed, dir)
		out, err := chaos(ctx, options{binary: binary, dir: dir, seed: seed, kinds: kinds, injections: c.injections, replicas: c.replicas, shards: shards,
			logf: func(format string, args ...any) { fmt.Printf(format+"\n", args...) }})
		all = append(all, out...)
		if err != nil {
			return err
		}
	}
	if results != "" {
		if err := os.WriteFile(results, []byte(summary(all, shards)), 0o644); err != nil {
			return err
		}
	}
	bad := 0
	for _, o := range all {
		if !o.ok() {
			bad++
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d kinds of fault were not survived as they should be", bad, len(all))
	}
	return nil
}
