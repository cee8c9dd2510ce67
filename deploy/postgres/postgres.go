// Package postgres provides the server binaries of each PostgreSQL major that tests, the demo and the benchmark run.
package postgres

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// Oldest and Newest bound the majors that Fetch knows.
const (
	Oldest = 14
	Newest = 18
)

// script is carried in the binary so that it is found whatever the working directory and however the caller was built.
//
//go:embed fetch.sh
var script string

// Fetch returns the bin directory of a major's server, installing the server first when it is absent. The first call
// for a major may take a minute, later ones a few milliseconds. Concurrent calls, also of other processes, are safe.
func Fetch(ctx context.Context, major int) (string, error) {
	bin, err := run(ctx, strconv.Itoa(major))
	if err != nil {
		return "", fmt.Errorf("fetch PostgreSQL %d: %w", major, err)
	}
	return bin, nil
}

// CacheDir returns the directory outside the repository in which fetched servers and generated corpora are kept. It
// need not exist yet.
func CacheDir(ctx context.Context) (string, error) {
	dir, err := run(ctx, "--cache-dir")
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	return dir, nil
}

func run(ctx context.Context, arg string) (string, error) {
	// -c, not standard input: what the script starts would read the rest of the script.
	cmd := exec.CommandContext(ctx, "bash", "-c", script, "fetch.sh", arg)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
