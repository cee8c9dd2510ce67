package datadir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// WriteOptions say how a directory is written.
type WriteOptions struct {
	// Workers is how many files are written at a time; 0 means 4. Each has a buffer of 1 MiB.
	Workers int
	// Progress is called now and then, and at the end, by one goroutine at a time.
	Progress func(Progress)
	// Every is the least time between two calls of Progress; 0 means a second.
	Every time.Duration
	// Owner is whom all that is made belongs to; nil: whoever runs this. Only root may name another.
	Owner *Owner
}

// Owner is an account.
type Owner struct{ UID, GID int }

// IncompleteError says that a directory was begun and not finished: it has no pg_control, so no server starts on it.
type IncompleteError struct {
	Dir string
	Err error
}

func (e *IncompleteError) Error() string {
	return fmt.Sprintf("%v; %s is incomplete and no server starts on it: remove it and what its pg_tblspc links to", e.Err, e.Dir)
}

func (e *IncompleteError) Unwrap() error { return e.Err }

// Progress tells how far a directory is written.
type Progress struct {
	Files, TotalFiles int
	Bytes, TotalBytes int64
	Elapsed           time.Duration
	// Left is the time that the rest takes at the speed so far; negative while that is not known.
	Left time.Duration
}

const writeBuffer = 1 << 20

// Write writes a tree to a directory, which must be absent or empty, and to the targets of its tablespaces' links, which must be so too. All is
// on disk when it returns. pg_control comes last: after an error, or when ctx ends, no server starts on the directory, and the error is an
// *IncompleteError if anything was written.
func Write(ctx context.Context, t *Tree, dir string, o WriteOptions) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := CheckEmpty(dir); err != nil {
		return err
	}
	for _, e := range t.entries {
		if e.Mode.Type() == fs.ModeSymlink {
			if err := CheckEmpty(e.Link); err != nil {
				return fmt.Errorf("tablespace: %w", err)
			}
		}
	}
	if err := enoughSpace(t, dir); err != nil {
		return err
	}
	w := &writer{tree: t, dir: dir, o: o, started: time.Now()}
	if w.o.Workers <= 0 {
		w.o.Workers = 4
	}
	if w.o.Every <= 0 {
		w.o.Every = time.Second
	}
	if err := w.write(ctx); err != nil {
		return &IncompleteError{dir, err}
	}
	return nil
}

// CheckEmpty checks that a path is absent or an empty directory.
func CheckEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty: name a directory that is absent or empty", dir)
	}
	return nil
}

type writer struct {
	tree    *Tree
	dir     string
	o       WriteOptions
	started time.Time

	mu       sync.Mutex
	files    int
	bytes    int64
	reported time.Time
}

func (w *writer) path(e *Entry) string { return filepath.Join(w.dir, filepath.FromSlash(e.Path)) }

func (w *writer) write(ctx context.Context) error {
	if err := w.makeAll(w.dir); err != nil {
		return err
	}
	var control *Entry
	var files []*Entry
	dirs := []string{w.dir}
	for _, e := range w.tree.entries {
		switch e.Mode.Type() {
		case fs.ModeDir:
			if err := errors.Join(os.Mkdir(w.path(e), e.Mode.Perm()), w.own(w.path(e))); err != nil {
				return err
			}
			dirs = append(dirs, w.path(e))
		case fs.ModeSymlink:
			if err := errors.Join(w.makeAll(e.Link), os.Symlink(e.Link, w.path(e)), w.own(w.path(e))); err != nil {
				return err
			}
			dirs = append(dirs, e.Link, filepath.Dir(e.Link))
		case 0:
			if e.Path == ControlPath {
				control = e
			} else {
				files = append(files, e)
			}
		default:
			return fmt.Errorf("%s: mode %v is none that a data directory has", e.Path, e.Mode)
		}
	}
	if control == nil {
		return fmt.Errorf("the tree has no %s", ControlPath)
	}
	// Large files first keep all workers busy to the end.
	slices.SortStableFunc(files, func(x, y *Entry) int { return cmp.Compare(y.Size, x.Size) })
	if err := w.parallel(ctx, files); err != nil {
		return err
	}
	for _, d := range dirs {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	if err := w.file(ctx, control, make([]byte, control.Size)); err != nil {
		return err
	}
	w.report(true)
	return errors.Join(syncDir(filepath.Join(w.dir, "global")), syncDir(filepath.Dir(w.dir)))
}

// makeAll makes a directory, for the owner alone, and those above it that are absent, which others may pass: root may hand over the directory alone
// later. A directory that exists is handed to the owner; those above it stay as they are.
func (w *writer) makeAll(dir string) error {
	var absent []string
	for p := filepath.Dir(dir); ; p = filepath.Dir(p) {
		_, err := os.Stat(p)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || p == filepath.Dir(p) {
			return err
		}
		absent = append(absent, p)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, p := range absent {
		if err := errors.Join(w.own(p), syncDir(filepath.Dir(p))); err != nil {
			return err
		}
	}
	if o := w.o.Owner; o != nil { // where dir is a link its directory is meant
		if err := os.Chown(dir, o.UID, o.GID); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o700)
}

// own hands a path to the owner. Links are handed over, not followed.
func (w *writer) own(path string) error {
	if w.o.Owner == nil {
		return nil
	}
	return os.Lchown(path, w.o.Owner.UID, w.o.Owner.GID)
}

// parallel writes files with several workers, until the first error.
func (w *writer) parallel(ctx context.Context, files []*Entry) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan *Entry)
	var wg sync.WaitGroup
	for range min(w.o.Workers, max(len(files), 1)) {
		wg.Go(func() {
			buf := make([]byte, writeBuffer)
			for e := range work {
				if err := w.file(ctx, e, buf); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
feed:
	for _, e := range files {
		select {
		case work <- e:
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

// file writes one file and syncs it.
func (w *writer) file(ctx context.Context, e *Entry, buf []byte) error {
	f, err := os.OpenFile(w.path(e), os.O_WRONLY|os.O_CREATE|os.O_EXCL, e.Mode.Perm())
	if err != nil {
		return err
	}
	if o := w.o.Owner; o != nil {
		err = f.Chown(o.UID, o.GID)
	}
	if err == nil {
		err = w.fill(ctx, f, e, buf)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (w *writer) fill(ctx context.Context, f *os.File, e *Entry, buf []byte) error {
	for offset := int64(0); offset < e.Size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := buf[:min(int64(len(buf)), e.Size-offset)]
		if _, err := e.ReadAt(ctx, part, offset); err != nil {
			return err
		}
		if _, err := f.Write(part); err != nil {
			return err
		}
		offset += int64(len(part))
		w.count(int64(len(part)), 0)
	}
	w.count(0, 1)
	return nil
}

func (w *writer) count(bytes int64, files int) {
	w.mu.Lock()
	w.bytes += bytes
	w.files += files
	w.mu.Unlock()
	w.report(false)
}

// report calls Progress if it is time, or at the end.
func (w *writer) report(end bool) {
	if w.o.Progress == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if !end && now.Sub(w.reported) < w.o.Every {
		return
	}
	w.reported = now
	p := Progress{Files: w.files, TotalFiles: w.tree.Files, Bytes: w.bytes, TotalBytes: w.tree.Bytes, Elapsed: now.Sub(w.started), Left: -1}
	if w.bytes > 0 {
		p.Left = time.Duration(float64(p.Elapsed) / float64(w.bytes) * float64(w.tree.Bytes-w.bytes))
	}
	w.o.Progress(p)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
