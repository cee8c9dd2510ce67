package stream

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"everpage/wal/pg"
)

// BackupFile is one regular file of a base backup or data directory. Reader gives exactly Size bytes and is valid until the function
// that got the file returns; what it leaves unread is skipped.
type BackupFile struct {
	Tablespace pg.Oid // 0 for files of PGDATA itself
	Path       string // below PGDATA, or below the tablespace's PG_<major>_<catalog> directory
	Name       string // below PGDATA in every case: a tablespace's files are pg_tblspc/OID/PG_…/Path
	Mode       fs.FileMode
	Size       int64
	io.Reader
}

// Tablespace is a tablespace of a base backup or data directory.
type Tablespace struct {
	Oid      pg.Oid `json:"oid"`
	Location string `json:"location"` // on the server, or the link's target; empty for one that lies in pg_tblspc itself
	Size     int64  `json:"size"`     // bytes, an estimate; 0 if unknown
}

// locate fills in Tablespace and Path by Name.
func (f *BackupFile) locate(major pg.Major) error {
	f.Path = f.Name
	rest, ok := strings.CutPrefix(f.Name, "pg_tblspc/")
	if !ok {
		return nil
	}
	oid, below, ok := strings.Cut(rest, "/")
	n, err := strconv.ParseUint(oid, 10, 32)
	if err != nil || n == 0 || !ok {
		return nil // not of a tablespace: PGDATA's own, unknown
	}
	dir, file, ok := strings.Cut(below, "/")
	if !ok || dir != major.TablespaceVersionDir() {
		return fmt.Errorf("file %s is not in the tablespace's directory %s", f.Name, major.TablespaceVersionDir())
	}
	f.Tablespace, f.Path = pg.Oid(n), file
	return nil
}

// readArchive reads a tar archive and hands each regular file on. prefix is put before the names: pg_tblspc/OID/ or nothing.
func readArchive(r io.Reader, prefix string, major pg.Major, fn func(BackupFile) error) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		switch h.Typeflag {
		case tar.TypeDir, tar.TypeSymlink:
			continue // made anew on restore; tablespaces are named in the backup's header and in tablespace_map
		case tar.TypeReg:
		default:
			return fmt.Errorf("archive: %s: entry of type %q", h.Name, h.Typeflag)
		}
		name := path.Clean(h.Name)
		if !fs.ValidPath(name) {
			return fmt.Errorf("archive: %q is not a path below the data directory", h.Name)
		}
		f := BackupFile{Name: prefix + name, Mode: h.FileInfo().Mode(), Size: h.Size, Reader: tr}
		if err := f.locate(major); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		if err := fn(f); err != nil {
			return err
		}
	}
}
