package pgtest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// Tablespaces returns the directories that the links in pg_tblspc name, by tablespace OID.
func (s *Server) Tablespaces() (map[string]string, error) { return tablespaces(s.data) }

func tablespaces(data string) (map[string]string, error) {
	dir := filepath.Join(data, "pg_tblspc")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("tablespaces: %w", err)
	}
	spaces := map[string]string{}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("tablespaces: %w", err)
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		spaces[e.Name()] = target
	}
	return spaces, nil
}

// CopyCold copies the data directory of a stopped server to dst, which must not exist. Tablespaces are copied to
// dst.tablespaces/OID and the copy's links in pg_tblspc point there, relative, so the two can be moved together.
func (s *Server) CopyCold(dst string) error {
	if s.Running() {
		return errors.New("cold copy: the server runs")
	}
	if err := copyDataDir(s.data, dst, false); err != nil {
		return err
	}
	return s.handOver(dst)
}

// spacesOf is where the tablespaces of a copied data directory lie.
func spacesOf(data string) string { return filepath.Clean(data) + ".tablespaces" }

// copyDataDir copies a data directory with its tablespaces. What a server removes meanwhile, if one runs, is left out, as WAL removes it again.
func copyDataDir(src, dst string, running bool) error {
	spaces, err := tablespaces(src)
	if err != nil {
		return err
	}
	if err := copyTree(src, dst, running); err != nil {
		return err
	}
	for oid, path := range spaces {
		if err := os.MkdirAll(spacesOf(dst), 0o755); err != nil {
			return err
		}
		if err := copyTree(path, filepath.Join(spacesOf(dst), oid), running); err != nil {
			return err
		}
		link := filepath.Join(dst, "pg_tblspc", oid)
		relative := filepath.Join("..", "..", filepath.Base(spacesOf(dst)), oid)
		if err := errors.Join(os.Remove(link), os.Symlink(relative, link)); err != nil {
			return err
		}
	}
	return nil
}

// copyTree copies a directory, with links as they are and without sockets. dst must not exist. Files may go while they are copied only where running is set.
func copyTree(src, dst string, running bool) error {
	err := filepath.WalkDir(src, func(path string, e fs.DirEntry, err error) error {
		if running && path != src && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		target := filepath.Join(dst, rel)
		switch e.Type() {
		case fs.ModeDir:
			info, err := e.Info()
			if running && errors.Is(err, fs.ErrNotExist) {
				return fs.SkipDir
			}
			if err != nil {
				return err
			}
			return os.Mkdir(target, info.Mode().Perm())
		case fs.ModeSymlink:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case 0:
			err := copyFile(path, target)
			if running && errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		default:
			return nil
		}
	})
	if err != nil {
		return fmt.Errorf("copy %s: %w", src, err)
	}
	return nil
}

func copyFile(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// KeepWAL copies every segment and history file of the server's pg_wal that dst does not hold yet to dst, and the newest
// segment again, as it was unfinished. With OracleSettings pg_wal holds all since the cluster was made. The server should be
// stopped, or the end of the newest segment is whatever was written at that moment.
func (s *Server) KeepWAL(dst string) error {
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.WALDir())
	if err != nil {
		return fmt.Errorf("keep WAL: %w", err)
	}
	kept, err := os.ReadDir(dst)
	if err != nil {
		return fmt.Errorf("keep WAL: %w", err)
	}
	newest := ""
	have := map[string]bool{}
	for _, e := range kept {
		have[e.Name()] = true
		if isSegment(e.Name()) && e.Name() > newest {
			newest = e.Name()
		}
	}
	for _, e := range entries {
		name := e.Name()
		history := strings.HasSuffix(name, ".history")
		if !history && !isSegment(name) || have[name] && name != newest {
			continue
		}
		fresh := filepath.Join(dst, "."+name+".new")
		if err := errors.Join(removeIfExists(fresh), copyFile(filepath.Join(s.WALDir(), name), fresh)); err != nil {
			return fmt.Errorf("keep WAL: %w", err)
		}
		if err := os.Rename(fresh, filepath.Join(dst, name)); err != nil {
			return fmt.Errorf("keep WAL: %w", err)
		}
	}
	return errors.Join(s.account.reach(dst), s.account.own(dst))
}

// MoveWAL does for a stopped server what KeepWAL does, without copying: the server keeps the last three segments only,
// enough to start again, and dst gets all.
func (s *Server) MoveWAL(dst string) error {
	if s.Running() {
		return errors.New("move WAL: the server runs")
	}
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	names, err := Segments(s.WALDir())
	if err != nil {
		return fmt.Errorf("move WAL: %w", err)
	}
	// The newest may be one that was made ahead, and the last checkpoint's record may begin in the one before.
	const last = 3
	for _, name := range names[:max(0, len(names)-last)] {
		if err := os.Rename(filepath.Join(s.WALDir(), name), filepath.Join(dst, name)); err != nil {
			return fmt.Errorf("move WAL: %w", err)
		}
	}
	return s.KeepWAL(dst)
}

func removeIfExists(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// isSegment tells whether a file's name is that of a WAL segment: 24 upper-case hexadecimal digits.
func isSegment(name string) bool {
	return len(name) == 24 && strings.Trim(name, "0123456789ABCDEF") == ""
}

// Segments returns the WAL segments in a directory in the order of their names.
func Segments(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if isSegment(e.Name()) {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}
