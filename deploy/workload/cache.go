package workload

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"everpage/deploy/pgtest"
	"everpage/deploy/postgres"
)

// sources are what a corpus depends on beside its options: another text makes another corpus.
//
//go:embed workload.go concurrent.go corpus.go sql
var sources embed.FS

// keepUnused is how long a cached corpus that nobody asks for stays: one takes 700 MB, and every change of the scripts
// makes new ones.
const keepUnused = 12 * time.Hour

// Cached returns the corpus that Make would make, from the cache directory if one with the same major, settings, options
// and scripts is there. Concurrent calls, also of other processes, make it once. It must not be changed.
func Cached(ctx context.Context, major int, settings map[string]string, which Which, o Options, initdbArgs ...string) (*Files, error) {
	cache, err := postgres.CacheDir(ctx)
	if err != nil {
		return nil, err
	}
	o.Dir = ""
	key, err := cacheKey(major, pgtest.Merge(pgtest.OracleSettings(major), settings), which, o.withDefaults(), initdbArgs)
	if err != nil {
		return nil, fmt.Errorf("corpus cache: %w", err)
	}
	root := filepath.Join(cache, "corpus")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("corpus cache: %w", err)
	}
	dir := filepath.Join(root, fmt.Sprintf("%d-%s-%d-%s", major, which, o.Seed, key))
	unlock, err := lockFile(ctx, dir+".lock")
	if err != nil {
		return nil, fmt.Errorf("corpus cache: %w", err)
	}
	defer unlock()
	if files, err := Load(dir); err == nil {
		now := time.Now()
		return files, os.Chtimes(filepath.Join(dir, manifest), now, now)
	}
	// Without its manifest it is the work of a process that was killed.
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("corpus cache: %w", err)
	}
	if err := prune(root); err != nil {
		return nil, fmt.Errorf("corpus cache: %w", err)
	}
	files, err := Make(ctx, dir, major, settings, which, o, initdbArgs...)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return files, nil
}

// cacheKey hashes all that a corpus depends on.
func cacheKey(major int, settings map[string]string, which Which, o Options, initdbArgs []string) (string, error) {
	h := sha256.New()
	err := json.NewEncoder(h).Encode(map[string]any{"major": major, "settings": settings, "which": which, "options": o, "initdb": initdbArgs})
	if err != nil {
		return "", err
	}
	err = fs.WalkDir(sources, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := sources.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:8]), err
}

// prune removes corpora that nobody asked for in a long time, and what is left of unfinished ones.
func prune(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(root, e.Name())
		info, err := os.Stat(filepath.Join(dir, manifest))
		if errors.Is(err, fs.ErrNotExist) {
			info, err = os.Stat(dir)
		}
		if errors.Is(err, fs.ErrNotExist) || err == nil && time.Since(info.ModTime()) < keepUnused {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(dir+".lock")); err != nil {
			return err
		}
	}
	return nil
}

// lockFile waits for an exclusive lock on a file, which it creates.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, context.Cause(ctx)), f.Close())
		case <-tick.C:
		}
	}
}
