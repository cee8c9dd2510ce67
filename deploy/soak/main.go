// Command soak runs one node with a short retention and a store under steady load, for as long as one likes: what the node and the store take must
// reach a plateau, every read inside the window must be right, every read outside refused.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	binary := flag.String("binary", "bin/everpage", "the everpage binary")
	duration := flag.Duration("duration", 20*time.Minute, "of the load")
	retention := flag.Duration("retention", 2*time.Minute, "of history")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()%1_000_000), "of all that is random")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *duration, *retention, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string, duration, retention time.Duration, seed uint64) (err error) {
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
	fmt.Printf("%s with a retention of %s, seed %d, in %s\n", duration, retention, seed, dir)
	r, err := soak(ctx, options{binary: binary, dir: dir, duration: duration, retention: retention, seed: seed,
		logf: func(format string, args ...any) { fmt.Printf(format+"\n", args...) }})
	if err != nil {
		return err // what there is of it is kept
	}
	fmt.Println(r)
	return os.RemoveAll(dir)
}
