// Command chaos kills, stops, cuts off and fills up the nodes of real clusters that follow a real PostgreSQL under load, and looks on: readers hold every page
// against what it was and against what the stopped primary has, a client's log says which commits returned, and what nodes agree on is checked for
// contradictions. It needs root, for networks of its own; nothing of the machine's own is touched.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
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
	results := flag.String("results", "", "file to write the summary to, after each kind; what it is made of is kept beside it as .json, and what this run does not inject stays in it")
	resume := flag.Bool("resume", false, "leave out the kinds that the results already have, survived, in such a number")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := runAll(ctx, options{binary: *binary, seed: *seed, shards: *shards, commit: commit(ctx)}, *injections, *fewer, *kinds, *results, *resume); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		stop()
		os.Exit(1)
	}
}

// commit names the code, "" where that is not known.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// runAll injects all kinds of fault into clusters with three and with two replicas. A cluster that did not survive one is left as it is; another goes on with the next.
func runAll(ctx context.Context, o options, injections, fewer int, only, results string, resume bool) error {
	var err error
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	journal, err := openJournal(results)
	if err != nil {
		return err
	}
	o.logf = func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	bad, all := 0, 0
	for _, replicas := range []int{nodeCount, nodeCount - 1} {
		for _, b := range plan(replicas, injections, fewer, only) {
			o.replicas, o.injections = replicas, b.injections
			o.kinds = nil
			for _, k := range b.kinds {
				if !resume || !journal.has(k, replicas, b.injections) {
					o.kinds = append(o.kinds, k)
				}
			}
			for len(o.kinds) > 0 {
				outcomes, err := oneCluster(ctx, o, journal)
				for _, out := range outcomes {
					all++
					if !out.ok() {
						bad++
					}
				}
				if err != nil {
					return err
				}
				o.kinds = o.kinds[len(outcomes):]
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
			}
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d kinds of fault were not survived as they should be", bad, all)
	}
	return nil
}

// oneCluster injects kinds into one cluster until one is not survived.
func oneCluster(ctx context.Context, o options, j *journal) ([]outcome, error) {
	dir, err := os.MkdirTemp("", "everpage-chaos-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the server runs as another user
		return nil, err
	}
	o.dir = dir
	fmt.Printf("%d replicas, seed %d, in %s\n", o.replicas, o.seed, dir)
	var kept error
	o.each = func(out outcome) { kept = errors.Join(kept, j.add(out)) }
	outcomes, err := chaos(ctx, o)
	if len(outcomes) == 0 && err == nil {
		err = errors.New("nothing was injected")
	}
	return outcomes, errors.Join(err, kept)
}

// batch is what is injected into one cluster.
type batch struct {
	injections int // of each kind
	kinds      []string
}

// plan tells which kinds are injected how often with so many replicas: those that only fewer replicas can have as often as all others, those repeated there less.
func plan(replicas, injections, fewer int, only string) []batch {
	first, again := batch{injections: injections}, batch{injections: fewer}
	for _, k := range kindsFor(replicas) {
		switch {
		case only != "" && !slices.Contains(strings.Split(only, ","), k):
		case replicas < nodeCount && slices.Contains(kindsFor(nodeCount), k):
			again.kinds = append(again.kinds, k)
		default:
			first.kinds = append(first.kinds, k)
		}
	}
	return slices.DeleteFunc([]batch{first, again}, func(b batch) bool { return b.injections == 0 || len(b.kinds) == 0 })
}
