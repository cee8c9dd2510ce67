// Command soak runs one node with a short retention and a store under steady load, for as long as one likes: what the node and the store take must
// reach a plateau, every read inside the window must be right, every read outside refused.
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
	"runtime"
	"syscall"
	"time"

	"everpage/deploy/pgtest"
)

func main() {
	binary := flag.String("binary", "bin/everpage", "the everpage binary")
	duration := flag.Duration("duration", 20*time.Minute, "of the load")
	retention := flag.Duration("retention", 2*time.Minute, "of history")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()%1_000_000), "of all that is random")
	log := flag.String("log", "", "file that what is found is added to, too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *duration, *retention, *seed, *log); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string, duration, retention time.Duration, seed uint64, log string) (err error) {
	out := io.Writer(os.Stdout)
	if log != "" {
		file, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer file.Close()
		out = io.MultiWriter(out, file)
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "everpage-soak-")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the server runs as another user
		return err
	}
	fmt.Fprintf(out, "# seed %d, PostgreSQL %d, %s, %d CPUs, %s with a retention of %s\n", seed, pgtest.DefaultMajor, runtime.Version(), runtime.NumCPU(), duration, retention)
	r, err := soak(ctx, options{binary: binary, dir: dir, duration: duration, retention: retention, seed: seed,
		logf: func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }})
	if err != nil {
		fmt.Fprintln(out, "# FAILED")
		return fmt.Errorf("%w (kept in %s)", err, dir)
	}
	_, err = fmt.Fprintln(out, r)
	return errors.Join(err, os.RemoveAll(dir))
}
