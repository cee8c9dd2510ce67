package datadir

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"everpage/wal/pg"
)

func TestWriteIsTheTree(t *testing.T) {
	s := newFake(17)
	s.add(100, pg.MainFork, 300)
	s.add(200, pg.MainFork, 0)
	tree := plan(t, s, s.options())
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := Write(t.Context(), tree, dir, WriteOptions{Workers: 3}); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		n++
		want := find(t, tree, strings.TrimPrefix(p, dir+"/"))
		if want.Mode != info.Mode() {
			t.Errorf("%s has mode %v, want %v", p, info.Mode(), want.Mode)
		}
		if e.IsDir() {
			return nil
		}
		b, err := os.ReadFile(p)
		if err == nil && !bytes.Equal(b, contentOf(t, want)) {
			t.Errorf("%s differs", p)
		}
		return err
	})
	if err != nil || n != len(tree.Entries()) {
		t.Errorf("%d entries of %d, %v", n, len(tree.Entries()), err)
	}
	if err := Write(t.Context(), tree, dir, WriteOptions{}); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("a full directory was written to: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), tree, file, WriteOptions{}); err == nil {
		t.Error("a file was written to")
	}
}

func TestWriteThatEndsEarlyHasNoControlFile(t *testing.T) {
	s := newFake(15)
	s.add(100, pg.MainFork, 2000)
	s.add(200, pg.MainFork, 2000)
	tree := plan(t, s, s.options())
	broken := func(ctx context.Context, cause error) {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "d")
		err := Write(ctx, tree, dir, WriteOptions{})
		if !errors.Is(err, cause) || !strings.Contains(err.Error(), dir+" is incomplete") {
			t.Errorf("%v, want %v", err, cause)
		}
		if _, err := os.Stat(filepath.Join(dir, "base/5/100")); err != nil {
			t.Errorf("other files: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, ControlPath)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("pg_control is there: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.reads = cancel
	broken(ctx, context.Canceled)
	s.reads = nil
	s.failBlock = 1999
	broken(t.Context(), errRead)
}

func TestWriteNeedsSpace(t *testing.T) {
	s := newFake(15)
	for rel := range pg.Oid(8) {
		s.add(100+rel, pg.MainFork, pg.InvalidBlock-1)
	}
	tree := plan(t, s, s.options())
	dir := filepath.Join(t.TempDir(), "d")
	if err := Write(t.Context(), tree, dir, WriteOptions{}); err == nil || !strings.Contains(err.Error(), "MiB are free: nothing was written") {
		t.Errorf("256 TiB: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the directory was made")
	}
}

func TestWriteMakesDirectoriesAboveThatOthersMayPass(t *testing.T) {
	s := newFake(15)
	s.cluster.Tablespaces = []Tablespace{{Oid: 5000, Location: "/source/space"}}
	top := t.TempDir()
	dir := filepath.Join(top, "a", "b")
	o := s.options()
	o.TablespaceTarget = TablespacesBeside(dir, nil)
	owner := &Owner{os.Getuid(), os.Getgid()}
	if err := Write(t.Context(), plan(t, s, o), dir, WriteOptions{Owner: owner}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{"a": 0o755, "a/b": 0o700, "a/b.tablespaces": 0o755, "a/b.tablespaces/5000": 0o700} {
		if info, err := os.Stat(filepath.Join(top, path)); err != nil || info.Mode().Perm()|0o055 != want|0o055 || info.Mode().Perm()&^want != 0 {
			t.Errorf("%s: %v, want mode %v", path, info, want)
		}
	}
}
