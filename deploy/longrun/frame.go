package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"everpage/deploy/nodetest"
)

// frame is what the long runs of whole nodes have in common: flags, a directory, the binary, the log, and when to end.
type frame struct {
	budget time.Duration
	seed   uint64
	dir    string
	binary string
	log    string

	out    io.Writer // shown and logged
	random *rand.Rand
	began  time.Time
}

// run parses args by f, to which it adds its own flags, and lets do work with all that they say. What do leaves in the directory stays there.
func (fr *frame) run(ctx context.Context, f *flag.FlagSet, args []string, out io.Writer, do func(ctx context.Context) error) (err error) {
	f.DurationVar(&fr.budget, "budget", 0, "start nothing that would not be done by then; 0: no limit")
	f.Uint64Var(&fr.seed, "seed", 0, "seed of all seeds; 0: a fresh one, which is printed")
	f.StringVar(&fr.binary, "binary", "", "the everpage to run; empty: it is built")
	f.StringVar(&fr.log, "log", "", "file that a line for each of what is made is appended to")
	f.StringVar(&fr.dir, "dir", "", "where all is made and removed; what fails is kept. Empty: a temporary directory")
	if err := f.Parse(args); err != nil {
		return err
	}
	if fr.seed == 0 {
		fr.seed = rand.Uint64() >> 1
	}
	if fr.dir == "" {
		if fr.dir, err = os.MkdirTemp("", "everpage-longrun-"); err != nil {
			return err
		}
		defer os.Remove(fr.dir) // empty unless something failed
		if err := os.Chmod(fr.dir, 0o755); err != nil {
			return err
		}
	}
	fr.out = out
	if fr.log != "" {
		file, err := os.OpenFile(fr.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		fr.out = io.MultiWriter(out, file)
	}
	if fr.binary == "" {
		bin, err := os.MkdirTemp("", "everpage-bin-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(bin)
		if fr.binary, err = nodetest.Build(ctx, bin); err != nil {
			return err
		}
	}
	fr.began = time.Now()
	return do(ctx)
}

// head begins a run in the log. The draws of two majors with the same seed differ.
func (fr *frame) head(major int, format string, args ...any) error {
	fr.random = rand.New(rand.NewPCG(fr.seed, uint64(major)))
	return fr.note("# seed %d, PostgreSQL %d, %s, %d CPUs%s", fr.seed, major, runtime.Version(), runtime.NumCPU(), fmt.Sprintf(format, args...))
}

// turns calls turn while there is more to do and, after the first, while another one that took as long as the longest so far would end within the budget.
// A turn says how long it took at least, since one that is cut short by the budget itself says nothing.
func (fr *frame) turns(more func() bool, turn func(i int) (time.Duration, error)) error {
	var longest time.Duration
	for i := 0; more(); i++ {
		if fr.budget > 0 && i > 0 && time.Since(fr.began)+longest > fr.budget {
			return nil
		}
		took, err := turn(i)
		if err != nil {
			return err
		}
		longest = max(longest, took)
	}
	return nil
}

// note writes a line.
func (fr *frame) note(format string, args ...any) error {
	_, err := fmt.Fprintf(fr.out, format+"\n", args...)
	return err
}
