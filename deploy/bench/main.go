// Command bench measures Everpage beside its peers in one run, on this machine: PostgreSQL's own crash recovery of the same WAL, a TCP echo of the
// same bytes, pgBackRest's restore of the same database. It prints a table and writes the same as JSON.
//
//	go run ./deploy/bench [-quick] [-out DIR]
//
// It leaves nothing running, and nothing on the disk but the results.
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

// sizes are what the two modes differ in. Bytes of WAL are lower bounds.
type sizes struct {
	runs         int // of everything that is repeated; medians are reported
	smallScale   int // pgbench's, of the database whose WAL is mostly small records
	smallWAL     int64
	imageScale   int // of the one whose WAL is mostly images
	imageWAL     int64
	nodeScale    int // of the database that a node follows
	nodeWAL      int64
	lostScale    int // of the database whose node is lost
	storeScale   int // of the database that is backed up to S3
	storeSeconds int // of load on it
	readSeconds  int // each measurement of page reads
}

var (
	full  = sizes{runs: 5, smallScale: 5, smallWAL: 512 << 20, imageScale: 40, imageWAL: 1 << 30, nodeScale: 140, nodeWAL: 2 << 30, lostScale: 70, storeScale: 80, storeSeconds: 150, readSeconds: 5}
	quick = sizes{runs: 3, smallScale: 2, smallWAL: 96 << 20, imageScale: 10, imageWAL: 192 << 20, nodeScale: 10, nodeWAL: 160 << 20, lostScale: 10, storeScale: 10, storeSeconds: 20, readSeconds: 2}
)

// part is what can be measured for itself.
type part struct {
	name string
	run  func(*bench, context.Context) error
}

// parts of a run, in their order.
var parts = []part{
	{"redo", (*bench).redo},
	{"small", func(b *bench, ctx context.Context) error { return b.recovery(ctx, smallRecords) }},
	{"images", func(b *bench, ctx context.Context) error { return b.recovery(ctx, imageHeavy) }},
	{"node", (*bench).node},
	{"scale", (*bench).scale},
	{"rereplicate", (*bench).rereplicate},
	{"backup", (*bench).backup},
	{"collect", (*bench).collect},
}

type bench struct {
	sizes
	work     string // directory for everything big
	everpage string // the binary under test
	self     string // this program, for the other end of the echo
	report   report
	seed     int64
	keep     bool // leave databases and WAL
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == echoArg {
		exit(serveEcho(os.Args[2]))
	}
	if len(os.Args) == 2 && os.Args[1] == streamArg {
		exit(serveStream())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context) (err error) {
	isQuick := flag.Bool("quick", false, "small sizes and 3 runs: about 3 minutes instead of 25")
	runs := flag.Int("runs", 0, "how often each measurement is repeated (default 5, 3 with -quick)")
	out := flag.String("out", "", "directory for results.json and RESULTS.md (default: only print); with -only the other parts' lines there stay")
	work := flag.String("dir", "", "directory for databases and WAL, tens of GB in a full run (default: a temporary one)")
	only := flag.String("only", "", "parts to run, comma separated: redo, small, images, node, scale, rereplicate, collect, backup (default: all)")
	keep := flag.Bool("keep", false, "leave the databases and the WAL in -dir")
	seed := flag.Int64("seed", time.Now().UnixNano()%1_000_000, "of pgbench and of the choice of pages")
	flag.Parse()
	b := &bench{sizes: full, seed: *seed, keep: *keep}
	if *isQuick {
		b.sizes = quick
	}
	if *runs > 0 {
		b.runs = *runs
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if *work == "" {
		*work = os.TempDir()
	}
	if b.work, err = os.MkdirTemp(*work, "everpage-bench-"); err != nil {
		return err
	}
	if *keep {
		fmt.Fprintln(os.Stderr, "databases and WAL stay in", b.work)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	}
	if err := os.Chmod(b.work, 0o755); err != nil { // servers run as another user
		return err
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	b.report = newReport(ctx, b)
	chosen := parts
	if *only != "" {
		if chosen, err = choose(strings.Split(*only, ",")); err != nil {
			return err
		}
	}
	failed := b.measure(ctx, chosen)
	b.report.finish()
	if *only != "" && *out != "" {
		old, err := readReport(*out)
		if err != nil {
			return err
		}
		if old != nil {
			b.report.onto(old, chosen)
		}
	}
	err = b.report.write(os.Stdout)
	if *out != "" {
		err = errors.Join(err, b.report.save(*out))
	}
	return errors.Join(err, failed)
}

// choose picks parts by their names, in the order of a whole run.
func choose(names []string) (chosen []part, err error) {
	for _, p := range parts {
		if slices.Contains(names, p.name) {
			chosen = append(chosen, p)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			err = errors.Join(err, fmt.Errorf("-only %s: there is no such part", name))
		}
	}
	return chosen, err
}

// measure runs parts. One that fails takes nothing from what the others measured, nor from what it had measured itself: the report names it.
func (b *bench) measure(ctx context.Context, parts []part) (failed error) {
	for _, p := range parts {
		began := time.Now()
		err := p.run(b, ctx)
		if ctx.Err() != nil {
			return errors.Join(failed, fmt.Errorf("%s: %w", p.name, context.Cause(ctx)))
		}
		took := time.Since(began).Round(time.Second)
		if err != nil {
			err = fmt.Errorf("%s: %w", p.name, err)
			b.report.Failed = append(b.report.Failed, err.Error())
			failed = errors.Join(failed, err)
			progress("%s failed after %s: %v", p.name, took, err)
			continue
		}
		progress("%s took %s", p.name, took)
	}
	return failed
}

// build compiles the binary under test, so that what is measured is this source.
func (b *bench) build(ctx context.Context) error {
	b.everpage = filepath.Join(b.work, "everpage")
	if text, err := exec.CommandContext(ctx, "go", "build", "-o", b.everpage, "everpage/cmd/everpage").CombinedOutput(); err != nil {
		return fmt.Errorf("build everpage: %w: %s", err, text)
	}
	return nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}
