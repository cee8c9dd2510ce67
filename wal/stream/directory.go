package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"everpage/wal/pg"
)

// DirectoryInfo is what a data directory is.
type DirectoryInfo struct {
	Major       pg.Major
	Tablespaces []Tablespace
	Label       *BackupLabel // of an unpacked base backup; nil for the directory of a server that was stopped
}

// Directory walks the data directory of a stopped server, or an unpacked base backup, and hands its files to fn in the order and choice of
// Backup: tablespaces first (the links in pg_tblspc are followed), then PGDATA with backup_label first and global/pg_control last; no WAL,
// no temporary files and nothing of unlogged relations but their init forks. Within a directory names ascend.
func Directory(ctx context.Context, dir string, fn func(BackupFile) error) (DirectoryInfo, error) {
	d := &directory{ctx: ctx, root: dir, fn: fn}
	if err := d.run(); err != nil {
		return DirectoryInfo{}, fmt.Errorf("data directory %s: %w", dir, err)
	}
	return d.info, nil
}

type directory struct {
	ctx  context.Context
	root string
	fn   func(BackupFile) error
	info DirectoryInfo
}

// Directories of PGDATA whose contents a base backup leaves out (excludeDirContents, and pg_wal).
var skippedDirs = map[string]bool{"pg_wal": true, "pg_replslot": true, "pg_dynshmem": true, "pg_notify": true, "pg_serial": true,
	"pg_snapshots": true, "pg_stat_tmp": true, "pg_subtrans": true}

// Files that a base backup leaves out wherever they lie (excludeFiles).
var skippedFiles = map[string]bool{"postgresql.auto.conf.tmp": true, "current_logfiles.tmp": true, "backup_manifest": true, "postmaster.pid": true,
	"postmaster.opts": true}

// Directories in which a link would hide data from us, as it does from a base backup.
var dataDirs = map[string]bool{"base": true, "global": true, "pg_xact": true, "pg_multixact": true, "pg_commit_ts": true, "pg_twophase": true, "pg_logical": true}

func (d *directory) run() error {
	version, err := os.ReadFile(filepath.Join(d.root, "PG_VERSION"))
	if err != nil {
		return err
	}
	if d.info.Major, err = parseMajor(strings.TrimSpace(string(version))); err != nil {
		return fmt.Errorf("PG_VERSION: %w", err)
	}
	if _, err := os.Stat(filepath.Join(d.root, "global", "pg_control")); err != nil {
		return err
	}
	first := []string{"backup_label", "tablespace_map"}
	if err := d.readLabels(); err != nil {
		return err
	}
	if err := d.tablespaces(); err != nil {
		return err
	}
	for _, name := range first {
		if err := d.file(name, filepath.Join(d.root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := d.walk(".", d.root); err != nil {
		return err
	}
	return d.file("global/pg_control", filepath.Join(d.root, "global", "pg_control"))
}

// readLabels reads backup_label and sees that tablespace_map's tablespaces are there.
func (d *directory) readLabels() error {
	b, err := os.ReadFile(filepath.Join(d.root, "backup_label"))
	if err == nil {
		var l BackupLabel
		if l, err = ParseBackupLabel(b); err == nil {
			d.info.Label = &l
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err = os.ReadFile(filepath.Join(d.root, "tablespace_map"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	spaces, err := ParseTablespaceMap(b)
	if err != nil {
		return err
	}
	for _, s := range spaces {
		link := filepath.Join(d.root, "pg_tblspc", strconv.FormatUint(uint64(s.Oid), 10))
		if _, err := os.Stat(link); err != nil {
			return fmt.Errorf("tablespace %d of tablespace_map is missing: unpack its archive and make %s a link to it: %w", s.Oid, link, err)
		}
	}
	return nil
}

func (d *directory) tablespaces() error {
	dir := filepath.Join(d.root, "pg_tblspc")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	below := map[pg.Oid]string{}
	for _, e := range entries {
		oid, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil || oid == 0 {
			continue
		}
		space, location := Tablespace{Oid: pg.Oid(oid)}, filepath.Join(dir, e.Name())
		if e.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(location)
			if err != nil {
				return err
			}
			if !filepath.IsAbs(target) {
				target = filepath.Join(dir, target)
			}
			location, space.Location = target, target
		}
		d.info.Tablespaces = append(d.info.Tablespaces, space)
		below[space.Oid] = location
	}
	sort.Slice(d.info.Tablespaces, func(i, j int) bool { return d.info.Tablespaces[i].Oid < d.info.Tablespaces[j].Oid })
	for _, s := range d.info.Tablespaces {
		version := d.info.Major.TablespaceVersionDir()
		name := fmt.Sprintf("pg_tblspc/%d/%s", s.Oid, version)
		// PostgreSQL makes the directory with the tablespace: without it there is something else behind the link.
		if err := d.walk(name, filepath.Join(below[s.Oid], version)); err != nil {
			return fmt.Errorf("tablespace %d: %w", s.Oid, err)
		}
	}
	return nil
}

// walk hands on the files below dir. name is dir's path below PGDATA, "." for PGDATA itself.
func (d *directory) walk(name, dir string) error {
	if err := d.ctx.Err(); err != nil {
		return context.Cause(d.ctx)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	unlogged := unloggedIn(name, entries)
	for _, e := range entries {
		below, file := path.Join(name, e.Name()), filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "pgsql_tmp"), name == "." && (e.Name() == "pg_tblspc" || e.Name() == "backup_label" || e.Name() == "tablespace_map"):
		case e.IsDir():
			if skippedDirs[below] {
				continue
			}
			if err := d.walk(below, file); err != nil {
				return err
			}
		case e.Type()&fs.ModeSymlink != 0:
			top, _, _ := strings.Cut(below, "/")
			if dataDirs[top] || top == "pg_tblspc" {
				return fmt.Errorf("%s is a symbolic link, which PostgreSQL does not make and a base backup leaves out", below)
			}
		case !e.Type().IsRegular(), skippedFiles[e.Name()], strings.HasPrefix(e.Name(), "pg_internal.init"), below == "global/pg_control", unlogged(e.Name()):
		default:
			if err := d.file(below, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// unloggedIn tells the files of temporary relations, and of relations with an init fork all but that fork: their contents are lost at a crash and not
// part of a backup.
func unloggedIn(name string, entries []fs.DirEntry) func(string) bool {
	inDatabase := strings.HasPrefix(name, "base/") || strings.HasPrefix(name, "pg_tblspc/")
	if !inDatabase {
		return func(string) bool { return false }
	}
	inits := map[pg.RelFileLocator]bool{}
	classify := func(file string) pg.File {
		f, err := pg.Classify(path.Join(name, file))
		if err != nil {
			return pg.File{}
		}
		return f
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "_init") {
			if f := classify(e.Name()); f.Kind == pg.FileRelation && f.Rel.Fork == pg.InitFork {
				inits[f.Rel.RelFileLocator] = true
			}
		}
	}
	return func(file string) bool {
		if file[0] == 't' {
			return classify(file).Kind == pg.FileIgnored
		}
		if len(inits) == 0 {
			return false
		}
		f := classify(file)
		return f.Kind == pg.FileRelation && f.Rel.Fork != pg.InitFork && inits[f.Rel.RelFileLocator]
	}
}

// file hands one file on.
func (d *directory) file(name, file string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	f := BackupFile{Name: name, Mode: info.Mode(), Size: info.Size(), Reader: &fullReader{r: in, left: info.Size()}}
	if err := f.locate(d.info.Major); err != nil {
		return err
	}
	if err := d.fn(f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// fullReader reads as many bytes as the file had when it was opened. Less is an error: the directory is in use.
type fullReader struct {
	r    io.Reader
	left int64
}

func (f *fullReader) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	if errors.Is(err, io.EOF) && f.left > 0 {
		return n, fmt.Errorf("file became shorter: is a server running on it? %w", io.ErrUnexpectedEOF)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
