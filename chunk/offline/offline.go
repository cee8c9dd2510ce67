// Package offline opens a data directory that was stopped, or an unpacked base backup, together with a directory of WAL segments: what a running
// node gets from a primary, without one.
package offline

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"everpage/chunk"
	"everpage/chunk/importer"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// Source is a base and the WAL that follows it.
type Source struct {
	base, wal string

	Control pg.ControlFile // of the base
	History wal.History    // the line of timelines that the WAL goes along

	Redo       pg.LSN // where replay begins
	Checkpoint pg.LSN // the checkpoint record that says so
	End        pg.LSN // from where on reads are answered: the end of the backup, or Redo

	size wal.SegmentSize
}

// Open finds out where the base begins: backup_label says it for a base backup, else pg_control. walDir must hold all segments from there on.
func Open(base, walDir string) (*Source, error) {
	s := &Source{base: base, wal: walDir}
	control, err := ReadControl(base)
	if err != nil {
		return nil, fmt.Errorf("base: %w", err)
	}
	s.Control, s.size = control, wal.SegmentSize(control.WALSegmentSize)
	s.Redo, s.Checkpoint = control.Copy.Redo, control.CheckPoint
	timeline := control.Copy.Timeline
	b, err := os.ReadFile(filepath.Join(base, "backup_label"))
	labelled := err == nil
	if labelled {
		l, err := stream.ParseBackupLabel(b)
		if err != nil {
			return nil, err
		}
		s.Redo, s.Checkpoint, timeline = l.Start, l.Checkpoint, l.Timeline
	} else if control.State != pg.DBShutdowned && control.State != pg.DBShutdownedInRecovery {
		return nil, fmt.Errorf("base %s was not stopped cleanly and has no backup_label: its pages are of no one moment", base)
	}
	if s.History, err = newestHistory(walDir, s.size, timeline); err != nil {
		return nil, err
	}
	s.End = s.Redo
	if labelled {
		s.End, err = s.findBackupEnd()
	}
	return s, err
}

// ReadControl reads a data directory's pg_control.
func ReadControl(dir string) (pg.ControlFile, error) {
	b, err := os.ReadFile(filepath.Join(dir, "global", "pg_control"))
	if err != nil {
		return pg.ControlFile{}, fmt.Errorf("no data directory: %w", err)
	}
	c, err := pg.ReadControl(b)
	if err != nil {
		return c, fmt.Errorf("data directory %s: %w", dir, err)
	}
	return c, nil
}

// newestHistory is the history of the newest timeline in the directory that descends from the base's.
func newestHistory(dir string, size wal.SegmentSize, base pg.TimelineID) (wal.History, error) {
	h := wal.History{Timeline: base}
	_, timelines, err := wal.ListDir(dir, size)
	if err != nil {
		return h, err
	}
	for _, t := range append(timelines, base) {
		if t < h.Timeline || t == 1 {
			continue
		}
		candidate, err := wal.ReadHistory(dir, t)
		if err != nil {
			return h, err
		}
		if candidate.Member(base) {
			h = candidate
		}
	}
	return h, nil
}

// Reader reads the WAL from an LSN on, where a record starts. The caller closes the directory.
func (s *Source) Reader(from pg.LSN) (*wal.Reader, *wal.Dir, error) {
	src, err := wal.OpenDir(s.wal, s.size, s.History)
	if err != nil {
		return nil, nil, err
	}
	reader, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: s.size, Major: s.Control.Major, SystemID: s.Control.SystemID, History: &s.History})
	if err != nil {
		src.Close()
		return nil, nil, err
	}
	reader.Seek(from)
	return reader, src, nil
}

// xlogBackupEnd is XLOG_BACKUP_END: its main data is the start LSN of the backup that ended.
const xlogBackupEnd = 0x50

// findBackupEnd looks for the record that ends the backup.
func (s *Source) findBackupEnd() (pg.LSN, error) {
	reader, src, err := s.Reader(s.Redo)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	for {
		rec, err := reader.Next()
		if err != nil {
			return 0, fmt.Errorf("the WAL has no end of the base backup that started at %s: %w", s.Redo, err)
		}
		if rec.Rmgr == wal.RmXLOG && rec.Op() == xlogBackupEnd && backupStart(rec.Main) == s.Redo {
			return rec.End, nil
		}
	}
}

// backupStart is what an XLOG_BACKUP_END record says: where the backup started.
func backupStart(main []byte) pg.LSN {
	if len(main) < 8 {
		return 0
	}
	return pg.LSN(binary.LittleEndian.Uint64(main))
}

// Import writes the base into a branch of a store, ready for an ingest.Pipeline. The branch must be empty.
func (s *Source) Import(ctx context.Context, store *chunk.Store, branch uint32) (*importer.Importer, error) {
	im, err := importer.New(store, importer.Options{
		Branch: branch, Major: s.Control.Major, Start: s.Redo, DataChecksums: s.Control.DataChecksumVersion != 0,
	})
	if err != nil {
		return nil, err
	}
	defer im.Close()
	info, err := stream.Directory(ctx, s.base, im.File)
	if err != nil {
		return im, err
	}
	if err := im.Tablespaces(info.Tablespaces); err != nil {
		return im, err
	}
	reader, src, err := s.Reader(s.Checkpoint)
	if err != nil {
		return im, err
	}
	defer src.Close()
	rec, err := reader.Next()
	if err != nil {
		return im, fmt.Errorf("checkpoint record at %s: %w", s.Checkpoint, err)
	}
	body, err := importer.CheckPointOf(rec)
	if err != nil {
		return im, err
	}
	return im, im.Finish(s.Checkpoint, body, s.End)
}
