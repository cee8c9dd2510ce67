// Command coverage runs workloads on servers of every major under a pairwise covering array of settings, each server's WAL bearing the after-images of all
// that it changed, holds what redo makes of that WAL against those images and against the data directories of the stopped servers, and writes what was
// covered by record type. A corpus is removed once it was verified. The journal tells what was done: a run that is in it, and was right, is not done again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"everpage/chunk/verify"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "coverage:", err)
		os.Exit(1)
	}
}

type options struct {
	majors  []int
	runs    int
	budget  time.Duration
	journal string
	table   string
	dir     string
	only    bool
	verbose bool
	seed    int64
}

func command(ctx context.Context, args []string, out io.Writer) error {
	o := options{}
	f := flag.NewFlagSet("coverage", flag.ContinueOnError)
	majors := f.String("majors", "14,15,16,17,18", "PostgreSQL majors")
	f.IntVar(&o.runs, "runs", 0, "runs of each major, those in the journal included; 0: one for each row of its array")
	f.DurationVar(&o.budget, "budget", 0, "start no run that would not be done by then; 0: no limit")
	f.StringVar(&o.journal, "journal", "deploy/coverage/journal.jsonl", "file that a line for each run is appended to")
	f.StringVar(&o.table, "table", "redo/COVERAGE.md", "file that is generated from the journal")
	f.StringVar(&o.dir, "dir", "", "where corpora are made and removed; one that fails is kept. Empty: a temporary directory")
	f.BoolVar(&o.only, "table-only", false, "run nothing")
	f.Int64Var(&o.seed, "seed", 0, "do this one run, also if it is in the journal")
	f.BoolVar(&o.verbose, "v", false, "tell each step")
	if err := f.Parse(args); err != nil {
		return err
	}
	for _, m := range strings.Split(*majors, ",") {
		n, err := strconv.Atoi(m)
		if err != nil {
			return fmt.Errorf("majors: %w", err)
		}
		o.majors = append(o.majors, n)
	}
	if !o.only {
		if err := runAll(ctx, o, out); err != nil {
			return err
		}
	}
	return writeTable(o)
}

func writeTable(o options) error {
	entries, err := readJournal(o.journal)
	if err != nil {
		return err
	}
	return os.WriteFile(o.table, []byte(render(entries)), 0o644)
}

// runAll goes through the plans of all majors side by side. It goes on after a run that went wrong, and says so in the end.
func runAll(ctx context.Context, o options, out io.Writer) error {
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "everpage-coverage-")
		if err != nil {
			return err
		}
		o.dir = dir
		defer os.Remove(dir) // empty unless a run went wrong
	}
	entries, err := readJournal(o.journal)
	if err != nil {
		return err
	}
	began := time.Now()
	var longest time.Duration
	var wrong []string
	for _, p := range plans(o) {
		if o.seed == 0 && slices.ContainsFunc(entries, func(e *entry) bool { return e.Seed == p.Seed && e.ok() }) {
			continue
		}
		if o.budget > 0 && time.Since(began)+longest > o.budget {
			fmt.Fprintln(out, "the budget is used up")
			break
		}
		start := time.Now()
		e, err := p.execute(ctx, filepath.Join(o.dir, strconv.FormatInt(p.Seed, 10)), func(step string) {
			if o.verbose {
				fmt.Fprintf(out, "%s %d: %s\n", time.Now().UTC().Format(time.TimeOnly), p.Seed, step)
			}
		})
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), os.RemoveAll(filepath.Join(o.dir, strconv.FormatInt(p.Seed, 10))))
		}
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v", p, err))
			fmt.Fprintf(out, "FAILED %s: %v\n", p, err)
		}
		if e == nil {
			continue
		}
		longest = max(longest, time.Since(start))
		e.Seconds = int(time.Since(start).Seconds())
		fmt.Fprintf(out, "%s: %d records, %d pages with images, %d in %d directories, %d mismatches, %d s\n",
			p, e.Records, e.Compared, e.Final, e.Stops, e.Mismatches, e.Seconds)
		if err := errors.Join(appendJournal(o.journal, e), writeTable(o)); err != nil {
			return err
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d runs went wrong: %s", len(wrong), strings.Join(wrong, "; "))
	}
	return nil
}

// plans are the runs of all majors: that of states of each and the large one, then the first of the workloads of each, then the second.
func plans(o options) []plannedRun {
	if o.seed != 0 {
		return []plannedRun{plan(int(o.seed/seedsPerMajor), int(o.seed%seedsPerMajor))}
	}
	var all []plannedRun
	for _, major := range o.majors {
		all = append(all, plan(major, statesFrom), plan(major, largeFrom))
	}
	for i := 0; ; i++ {
		before := len(all)
		for _, major := range o.majors {
			n := o.runs
			if n == 0 {
				n = len(array(factors(major)))
			}
			if i < n {
				all = append(all, plan(major, i))
			}
		}
		if len(all) == before {
			return all
		}
	}
}

// execute makes the corpus and verifies it. The entry is nil if there was nothing to verify. What went wrong stays in dir.
func (p plannedRun) execute(ctx context.Context, dir string, log func(step string)) (*entry, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	c, err := makeCorpus(ctx, dir, p, log)
	if err != nil {
		return nil, fmt.Errorf("corpus: %w (kept in %s)", err, dir)
	}
	o := verify.Options{Base: c.base, WAL: c.wal, Final: c.final, Store: filepath.Join(dir, "store")}
	for _, s := range c.stops {
		o.Stops = append(o.Stops, verify.Stop{Dir: s})
	}
	log("verify")
	report, err := verify.Run(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("verify: %w (kept in %s)", err, dir)
	}
	e := newEntry(p, c, report)
	if !e.ok() {
		return e, fmt.Errorf("%s (kept in %s)", e.Failed, dir)
	}
	return e, os.RemoveAll(dir)
}

func newEntry(p plannedRun, c *corpus, r *verify.Report) *entry {
	e := &entry{
		Major: p.Major, Seed: p.Seed, Settings: p.settings(), Server: c.version,
		Records: r.Records, Compared: r.Compared, Mismatches: r.Mismatches, Types: map[string]typeEntry{}, Forms: map[string]typeEntry{},
	}
	for _, f := range append(r.Stops, r.Final) {
		if f != nil {
			e.Final += f.Pages
			e.Objects += f.Objects
			e.Stops++
		}
	}
	for name, t := range r.Types {
		e.Types[name] = typeEntry{Records: t.Records, Pages: t.Pages, Mismatches: t.Mismatches, Stops: t.Stops}
	}
	for name, t := range r.Forms {
		e.Forms[name] = typeEntry{Records: t.Records, Pages: t.Pages, Mismatches: t.Mismatches, Stops: t.Stops}
	}
	if !r.OK() {
		text := fmt.Sprintf("%d mismatches, %d damaged pages, damaged in the base %q, unknown %q, broken invariants %q", r.Mismatches, r.Damaged,
			r.DamagedInBase, r.Unknown, r.Violations)
		for _, m := range r.Found[:min(len(r.Found), 5)] {
			text += fmt.Sprintf("; %+v", m)
		}
		e.Failed = text
	}
	return e
}
