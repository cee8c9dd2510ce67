package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

// File is a store in a directory, such as a mounted file system that several nodes share.
type File struct{ root string }

// temporary is the directory for what is being written.
const temporary = ".new"

// OpenFile opens a directory, making it if it is absent.
func OpenFile(dir string) (*File, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, temporary), 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return &File{root: dir}, syncTo(dir, filepath.Dir(dir))
}

func (f *File) String() string { return "file://" + f.root }

func (f *File) path(name string) string { return filepath.Join(f.root, filepath.FromSlash(name)) }

func fileError(op, name string, err error) error {
	e := &Error{Op: op, Name: name, Err: err}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrName):
		return &Error{Op: op, Name: name, Kind: ErrName}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		e.Kind = ErrNotExist
	case errors.Is(err, fs.ErrExist):
		e.Kind = ErrExists
	case errors.Is(err, fs.ErrPermission):
		e.Kind = ErrAuth
	default:
		e.Kind = ErrUnavailable
	}
	return e
}

// Put implements Store: a file that is written and fsynced elsewhere gets its name by a link, which fails where the name is taken.
func (f *File) Put(ctx context.Context, name string, body Body) error {
	return fileError("put", name, f.put(ctx, name, body))
}

func (f *File) put(ctx context.Context, name string, body Body) (err error) {
	if err := CheckName(name); err != nil {
		return err
	}
	if _, err := os.Lstat(f.path(name)); err == nil {
		return fs.ErrExist
	}
	var id [12]byte
	rand.Read(id[:])
	tmp := filepath.Join(f.root, temporary, hex.EncodeToString(id[:]))
	w, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	_, err = io.Copy(w, &contextReader{ctx: ctx, r: io.NewSectionReader(body, 0, body.Size())})
	if err == nil {
		err = w.Sync()
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	dir := filepath.Dir(f.path(name))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Link(tmp, f.path(name)); err != nil {
		return err
	}
	return syncTo(dir, f.root)
}

// syncTo fsyncs a directory and those above it, up to root.
func syncTo(dir, root string) error {
	for {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
		if dir == root || len(dir) <= len(root) {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// contextReader ends a long copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Get implements Store.
func (f *File) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	r, err := f.get(ctx, name, offset, length)
	if err != nil {
		return nil, fileError("get", name, err)
	}
	return r, nil
}

func (f *File) get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := errors.Join(CheckName(name), ctx.Err()); err != nil {
		return nil, err
	}
	if err := checkRange(offset, length); err != nil {
		return nil, err
	}
	r, err := os.Open(f.path(name))
	if err != nil {
		return nil, err
	}
	if info, err := r.Stat(); err != nil || info.IsDir() {
		return nil, errors.Join(err, r.Close(), fs.ErrNotExist)
	}
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	body := struct {
		io.Reader
		io.Closer
	}{&contextReader{ctx: ctx, r: r}, r}
	return &exactly{ReadCloser: body, name: name, length: length, wrap: func(err error) error { return fileError("get", name, err) }}, nil
}

// Stat implements Store.
func (f *File) Stat(ctx context.Context, name string) (Info, error) {
	if err := errors.Join(CheckName(name), ctx.Err()); err != nil {
		return Info{}, fileError("stat", name, err)
	}
	i, err := os.Stat(f.path(name))
	if err == nil && i.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Info{}, fileError("stat", name, err)
	}
	return Info{Name: name, Size: i.Size(), Modified: i.ModTime()}, nil
}

// Delete implements Store.
func (f *File) Delete(ctx context.Context, name string) error {
	err := errors.Join(CheckName(name), ctx.Err())
	if err == nil {
		if err = os.Remove(f.path(name)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return fileError("delete", name, err)
}

// List implements Store.
func (f *File) List(ctx context.Context, prefix string, fn func(Info) error) error {
	// The walk begins at the deepest directory that the prefix names: all others hold nothing of it.
	dir := f.root
	if i := strings.LastIndexByte(prefix, '/'); i > 0 {
		dir = f.path(prefix[:i])
	}
	var found []Info
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile, or nothing has that prefix
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == temporary {
				return fs.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(f.root, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		if !strings.HasPrefix(name, prefix) {
			return nil
		}
		i, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		found = append(found, Info{Name: name, Size: i.Size(), Modified: i.ModTime()})
		return nil
	})
	if err != nil {
		return fileError("list", prefix, err)
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Name < found[j].Name })
	for _, i := range found {
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}
