package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"everpage/cluster/placement"
)

// Local is a registry of a single node: a file.
type Local struct {
	path   string
	shards uint32

	mu     sync.Mutex
	m      map[string]Current // by localKey
	before time.Time          // what Collecting said last
}

func localKey(branch uint32, shard placement.Shard) string {
	return fmt.Sprintf("%d/%d", branch, shard)
}

// OpenLocal reads the file, if there is one.
func OpenLocal(path string, shards uint32) (*Local, error) {
	l := &Local{path: path, shards: shards, m: map[string]Current{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &l.m); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return l, nil
}

// Restore takes what a root says, in place of all that was known.
func (l *Local) Restore(root *Root) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := map[string]Current{}
	for _, b := range root.Branches {
		for _, m := range b.Manifests {
			next[localKey(b.Branch, m.Shard)] = Current{Ref: m.Ref, LSN: m.LSN, Epoch: 1}
		}
	}
	return l.save(next)
}

// Forget takes back all that is known of a branch: what was uploaded of it is an orphan.
func (l *Local) Forget(branch uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := map[string]Current{}
	for k, c := range l.m {
		var b, shard uint32
		if _, err := fmt.Sscanf(k, "%d/%d", &b, &shard); err != nil || b != branch {
			next[k] = c
		}
	}
	return l.save(next)
}

// save replaces the file. The caller holds mu.
func (l *Local) save(next map[string]Current) error {
	b, err := json.MarshalIndent(next, "", " ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(l.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", l.path, err)
	}
	if err := os.Rename(l.path+".new", l.path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(l.path))
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return err
	}
	l.m = next
	return nil
}

// Current implements Registry.
func (l *Local) Current(branch uint32, shard placement.Shard) Current {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.m[localKey(branch, shard)]
	c.Epoch = max(c.Epoch, 1)
	return c
}

// Set implements Registry.
func (l *Local) Set(_ context.Context, branch uint32, shard placement.Shard, old Current, n Next) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := localKey(branch, shard)
	if have := l.m[key]; have.Ref != old.Ref {
		return fmt.Errorf("%w: %q, not %q", ErrConflict, have.Ref, old.Ref)
	}
	if !n.Oldest.IsZero() && n.Oldest.Before(l.before) {
		return fmt.Errorf("%w: written %s, collected up to %s", ErrConflict, n.Oldest, l.before)
	}
	next := make(map[string]Current, len(l.m)+1)
	for k, c := range l.m {
		next[k] = c
	}
	next[key] = Current{Ref: n.Ref, LSN: n.LSN, Epoch: 1}
	return l.save(next)
}

// Collecting implements Registry.
func (l *Local) Collecting(_ context.Context, before time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if before.After(l.before) {
		l.before = before
	}
	return nil
}

// Term implements Registry.
func (l *Local) Term() uint64 { return 1 }

// Sync implements Registry.
func (l *Local) Sync(context.Context) error { return nil }

// Mine implements Registry.
func (l *Local) Mine(uint32) []placement.Shard { return allShards(l.shards) }

// Leads implements Registry.
func (l *Local) Leads() bool { return true }
