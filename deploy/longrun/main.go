// Command longrun proves replay over and over: it makes fresh workloads on real servers, each with its own seed and configuration, and verifies each
// one's WAL and final data directory offline, until so many pages were compared or the time is up. Its log tells each corpus by what it needs to be
// made again, and a run that goes on with a log counts what stands there.
//
//	longrun -pages 1000000 -log deploy/longrun/verify-15.log
//	longrun -budget 8m
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"everpage/chunk/verify"
	"everpage/deploy/workload"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "longrun:", err)
		os.Exit(1)
	}
}

type options struct {
	major  int
	pages  uint64
	count  uint64
	budget time.Duration
	seed   uint64
	log    string
	dir    string
	only   string
}

func command(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "restore" {
		return restoreCommand(ctx, args[1:], out)
	}
	if len(args) > 0 && args[0] == "loss" {
		return lossCommand(ctx, args[1:], out)
	}
	if len(args) > 0 && args[0] == "kills" {
		return killsCommand(ctx, args[1:], out)
	}
	var o options
	f := flag.NewFlagSet("longrun", flag.ContinueOnError)
	f.IntVar(&o.major, "major", 15, "PostgreSQL major")
	f.Uint64Var(&o.pages, "pages", 0, "stop when so many pages were compared, those in the log included; 0: when the budget is used up")
	f.Uint64Var(&o.count, "corpora", 0, "stop when so many corpora were right, those in the log included: five are one of each workload")
	f.DurationVar(&o.budget, "budget", 0, "start no corpus that would not be done by then; 0: no limit")
	f.StringVar(&o.only, "only", "", "workload of every corpus, large too, which is none of the others; empty: they take turns")
	f.Uint64Var(&o.seed, "seed", 0, "seed of all seeds; 0: a fresh one, which is printed")
	f.StringVar(&o.log, "log", "", "file that a line for each corpus is appended to")
	f.StringVar(&o.dir, "dir", "", "where corpora are made and removed; one that fails is kept. Empty: a temporary directory")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.pages == 0 && o.count == 0 && o.budget == 0 {
		return errors.New("none of -pages, -corpora and -budget says when to end")
	}
	if o.seed == 0 {
		o.seed = rand.Uint64() >> 1
	}
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "everpage-longrun-")
		if err != nil {
			return err
		}
		o.dir = dir
		defer os.Remove(dir) // empty unless a corpus failed
	}
	log, err := openJournal(o.log, o.major, out)
	if err != nil {
		return err
	}
	defer log.close()
	if err := log.note("seed %d, PostgreSQL %d, %s, %d CPUs, %d pages before", o.seed, o.major, runtime.Version(), runtime.NumCPU(), log.pages); err != nil {
		return err
	}
	return run(ctx, o, log)
}

func run(ctx context.Context, o options, log *journal) error {
	began := time.Now()
	random := rand.New(rand.NewPCG(o.seed, uint64(o.major)))
	var longest time.Duration
	for i := int(log.corpora); (o.pages == 0 || log.pages < o.pages) && (o.count == 0 || log.corpora < o.count); i++ {
		if o.budget > 0 && longest > 0 && time.Since(began)+longest > o.budget {
			break
		}
		start := time.Now()
		t := draw(random, i, o)
		line, err := t.verify(ctx, o)
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), os.RemoveAll(t.dir(o)), log.note("interrupted"))
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", t, err), log.note("FAILED %s: %v", t, err))
		}
		longest = max(longest, time.Since(start))
		if err := log.corpus(line, time.Since(start)); err != nil {
			return err
		}
	}
	return log.note("%d pages compared in %d corpora, no mismatch", log.pages, log.corpora)
}

// hot is a corpus whose base is a base backup taken under load.
const hot workload.Which = "hot"

// trial is one corpus and how it is verified.
type trial struct {
	which    workload.Which
	options  workload.Options
	settings map[string]string
	initdb   []string
	blocks   uint32 // verify.Options.SegmentBlocks
	run      int64  // verify.Options.RunBytes
	text     string
}

func (t trial) String() string { return t.text }

// draw makes the i-th trial's choices. The workloads take turns; every setting is drawn by itself.
func draw(r *rand.Rand, i int, o options) trial {
	turns := []workload.Which{workload.Mixed, workload.Indexes, workload.TPCB, hot, workload.Concurrent, workload.Mixed, workload.Mixed}
	t := trial{which: turns[i%len(turns)], settings: map[string]string{}}
	if o.only != "" {
		t.which = workload.Which(o.only)
	}
	t.options = workload.Options{Seed: r.Int64N(1 << 31), Rows: 200 + r.IntN(600), Transactions: 100 + r.IntN(400)}
	set := func(name string, values ...string) {
		if v := values[r.IntN(len(values))]; v != "" {
			t.settings[name] = v
		}
	}
	compression := []string{"", "pglz"}
	if o.major == 15 {
		compression = append(compression, "lz4", "zstd")
	}
	if o.major == 14 {
		compression[1] = "on"
	}
	set("wal_compression", compression...)
	set("wal_log_hints", "", "on")
	set("wal_level", "", "logical")
	set("full_page_writes", "", "", "off")
	if r.IntN(2) == 0 {
		t.initdb = append(t.initdb, "--data-checksums")
	}
	if r.IntN(3) == 0 {
		t.initdb = append(t.initdb, "--wal-segsize=1")
	}
	t.blocks = []uint32{0, 16}[r.IntN(2)]
	t.run = []int64{0, 1 << 20}[r.IntN(2)]
	if t.which == workload.Large {
		t.blocks, t.run = 0, 0
	}
	var b strings.Builder
	fmt.Fprintf(&b, "workload=%s seed=%d rows=%d transactions=%d", t.which, t.options.Seed, t.options.Rows, t.options.Transactions)
	for _, name := range []string{"wal_compression", "wal_log_hints", "wal_level", "full_page_writes"} {
		if v := t.settings[name]; v != "" {
			fmt.Fprintf(&b, " %s=%s", name, v)
		}
	}
	if len(t.initdb) > 0 {
		fmt.Fprintf(&b, " initdb=%s", strings.Join(t.initdb, ","))
	}
	if t.blocks > 0 {
		fmt.Fprintf(&b, " segment_blocks=%d", t.blocks)
	}
	if t.run > 0 {
		fmt.Fprintf(&b, " run_bytes=%d", t.run)
	}
	t.text = b.String()
	return t
}

func (t trial) dir(o options) string {
	return filepath.Join(o.dir, fmt.Sprintf("%s-%d", t.which, t.options.Seed))
}

// verify makes the corpus and removes it again if all was right.
func (t trial) verify(ctx context.Context, o options) (*result, error) {
	dir := t.dir(o)
	var files *workload.Files
	var err error
	if t.which == hot {
		files, err = workload.Hot(ctx, dir, o.major, t.settings, t.options, t.initdb...)
	} else {
		files, err = workload.Make(ctx, dir, o.major, t.settings, t.which, t.options, t.initdb...)
	}
	if err != nil {
		return nil, err
	}
	large := t.which == workload.Large // reading all its pages at several LSNs, twice, takes ten times as long as everything else
	options := verify.Options{Base: files.Base, WAL: files.WAL, Final: files.Final, Digest: !large, SegmentBlocks: t.blocks, RunBytes: t.run}
	report, err := verify.Run(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("%w (kept in %s)", err, dir)
	}
	if !report.OK() {
		err := fmt.Errorf("%d mismatches, %d damaged pages, unknown %q, broken invariants %q (kept in %s)", report.Mismatches, report.Damaged,
			report.Unknown, report.Violations, dir)
		for _, m := range report.Found[:min(len(report.Found), 5)] {
			err = fmt.Errorf("%w; %+v", err, m)
		}
		return nil, err
	}
	if large {
		return &result{t.text, report.Records, report.Compared, report.Final.Pages, report.Final.Objects}, os.RemoveAll(dir)
	}
	// Once more as if the primary had logged no check images, and kept in another way.
	options.Strip, options.Final, options.SegmentBlocks, options.RunBytes = true, "", 16-t.blocks, 3<<20-t.run
	stripped, err := verify.Run(ctx, options)
	if err == nil && stripped.Digest != report.Digest {
		err = fmt.Errorf("without check images the digest is %s, with them %s", stripped.Digest, report.Digest)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (kept in %s)", err, dir)
	}
	return &result{t.text, report.Records, report.Compared, report.Final.Pages, report.Final.Objects}, os.RemoveAll(dir)
}
