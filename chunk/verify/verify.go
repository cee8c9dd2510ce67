// Package verify proves, without a server, that what Everpage makes of WAL is what PostgreSQL made of it: it imports a cold data directory,
// ingests a directory of segments through the same reader, redo, store and read path that serve pages, and holds every page against the
// after-images that a primary with wal_consistency_checking logs, and against a data directory that was stopped at the end.
package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/chunk"
	"everpage/chunk/importer"
	"everpage/chunk/ingest"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// branch is the one that a verification writes.
const branch = 1

// Options say what is verified.
type Options struct {
	Base  string // a data directory that was stopped, or an unpacked base backup
	WAL   string // directory with all segments from the base's redo LSN on
	Final string // a data directory that was stopped where the WAL ends; "" for none
	Store string // empty or absent directory for the versions; "" for a temporary one, which is removed

	SegmentBlocks uint32 // blocks in a chunk; 0: 131072
	RunBytes      int64  // of the store; 0: its default
	Strip         bool   // leave the check images out, as if the primary had not logged them: pages are then compared with Final only
	Digest        bool   // make Report.Digest
	// Fault spoils redo's work, for negative controls: it is called before each delta is applied and may change it.
	Fault    func(d *redo.Delta)
	Progress func(at pg.LSN, records uint64)
	Logger   *slog.Logger
}

// Run verifies. The report is valid, as far as it got, even with an error; a mismatch is in the report and no error.
func Run(ctx context.Context, o Options) (report *Report, err error) {
	report = &Report{Types: map[string]*TypeReport{}}
	if o.Store == "" {
		dir, err := os.MkdirTemp("", "everpage-verify-")
		if err != nil {
			return report, err
		}
		defer os.RemoveAll(dir)
		o.Store = dir
	}
	control, err := readControl(o.Base)
	if err != nil {
		return report, err
	}
	report.Major = control.Major
	store, err := chunk.Open(chunk.Options{
		Dir: filepath.Join(o.Store, "store"), FS: vfs.Default, Redoer: &faulty{redo.Redoer{Major: control.Major}, o.Fault}, Logger: o.Logger,
		RunBytes: o.RunBytes, SegmentBlocks: o.SegmentBlocks, Checksum: pg.Checksum,
	})
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	r := &run{o: o, report: report, store: store, control: control}
	return report, r.run(ctx)
}

func readControl(dir string) (pg.ControlFile, error) {
	b, err := os.ReadFile(filepath.Join(dir, "global", "pg_control"))
	if err != nil {
		return pg.ControlFile{}, fmt.Errorf("base: %w", err)
	}
	c, err := pg.ReadControl(b)
	if err != nil {
		return c, fmt.Errorf("base %s: %w", dir, err)
	}
	return c, nil
}

// faulty is redo with a deliberate fault, if there is one.
type faulty struct {
	redo.Redoer
	fault func(d *redo.Delta)
}

func (f *faulty) Redo(page pg.Page, key pg.PageKey, lsn pg.LSN, init bool, delta []byte) (bool, error) {
	if f.fault == nil {
		return f.Redoer.Redo(page, key, lsn, init, delta)
	}
	var d redo.Delta
	if err := redo.DecodeDelta(delta, &d); err != nil {
		return false, err
	}
	d.Major, d.LSN, d.Key = f.Major, lsn, key
	f.fault(&d)
	return redo.Apply(page, &d, init)
}

// run is one verification.
type run struct {
	o       Options
	report  *Report
	store   *chunk.Store
	control pg.ControlFile // of the base

	history wal.History
	size    wal.SegmentSize
	images  images
}

// start is where replay begins, and the checkpoint record that says so.
type start struct {
	redo, checkpoint, end pg.LSN
	timeline              pg.TimelineID
}

func (r *run) run(ctx context.Context) error {
	s, err := r.findStart()
	if err != nil {
		return err
	}
	if err := r.importBase(ctx, s); err != nil {
		return err
	}
	p, err := ingest.Open(r.store, ingest.Options{
		Branch: branch, Major: r.control.Major, BatchBytes: 256 << 10, Watch: r.watch, Committed: func() error { return r.images.compare(ctx, r) },
	})
	if err != nil {
		return err
	}
	src, reader, err := r.reader()
	if err != nil {
		p.Close()
		return err
	}
	defer src.Close()
	reader.Seek(s.redo)
	err = p.Drain(ctx, reader)
	progress := p.Progress()
	p.Close()
	r.report.Records, r.report.Start, r.report.End = p.Records, s.redo, progress.Readable
	if !wal.IsEnd(err) {
		return err
	}
	r.report.EndReason = err.Error()
	if progress.Unproven != 0 {
		r.report.unknown(fmt.Sprintf("from %s on: %s", progress.Unproven, progress.UnprovenReason))
	}
	r.images.finish(r)
	if err := r.check(ctx); err != nil {
		return err
	}
	if r.o.Final == "" {
		return nil
	}
	f := &final{run: r, at: progress.Readable, ctx: ctx}
	return f.compare()
}

// findStart reads where the base begins: backup_label says it for a base backup, else pg_control.
func (r *run) findStart() (start, error) {
	s := start{redo: r.control.Copy.Redo, checkpoint: r.control.CheckPoint, timeline: r.control.Copy.Timeline}
	b, err := os.ReadFile(filepath.Join(r.o.Base, "backup_label"))
	labelled := err == nil
	if labelled {
		l, err := stream.ParseBackupLabel(b)
		if err != nil {
			return s, err
		}
		s = start{redo: l.Start, checkpoint: l.Checkpoint, timeline: l.Timeline}
	} else if r.control.State != pg.DBShutdowned && r.control.State != pg.DBShutdownedInRecovery {
		return s, fmt.Errorf("base %s was not stopped cleanly and has no backup_label: its pages are of no one moment", r.o.Base)
	}
	r.size = wal.SegmentSize(r.control.WALSegmentSize)
	if r.history, err = newestHistory(r.o.WAL, r.size, s.timeline); err != nil {
		return s, err
	}
	s.end = s.redo
	if labelled {
		s.end, err = r.findBackupEnd(s)
	}
	return s, err
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

func (r *run) reader() (*wal.Dir, *wal.Reader, error) {
	src, err := wal.OpenDir(r.o.WAL, r.size, r.history)
	if err != nil {
		return nil, nil, err
	}
	reader, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: r.size, Major: r.control.Major, SystemID: r.control.SystemID, History: &r.history})
	if err != nil {
		src.Close()
		return nil, nil, err
	}
	return src, reader, nil
}

// xlogBackupEnd is XLOG_BACKUP_END: its main data is the start LSN of the backup that ended.
const xlogBackupEnd = 0x50

// findBackupEnd looks for the record that ends the backup.
func (r *run) findBackupEnd(s start) (pg.LSN, error) {
	src, reader, err := r.reader()
	if err != nil {
		return 0, err
	}
	defer src.Close()
	reader.Seek(s.redo)
	for {
		rec, err := reader.Next()
		if err != nil {
			return 0, fmt.Errorf("the WAL has no end of the base backup that started at %s: %w", s.redo, err)
		}
		if rec.Rmgr == wal.RmXLOG && rec.Op() == xlogBackupEnd && backupStart(rec.Main) == s.redo {
			return rec.End, nil
		}
	}
}

// importBase imports the base and finishes it with its checkpoint record.
func (r *run) importBase(ctx context.Context, s start) error {
	im, err := importer.New(r.store, importer.Options{
		Branch: branch, Major: r.control.Major, Start: s.redo, DataChecksums: r.control.DataChecksumVersion != 0,
	})
	if err != nil {
		return err
	}
	defer im.Close()
	info, err := stream.Directory(ctx, r.o.Base, im.File)
	if err != nil {
		return err
	}
	if err := im.Tablespaces(info.Tablespaces); err != nil {
		return err
	}
	r.report.DamagedInBase = im.Damaged
	src, reader, err := r.reader()
	if err != nil {
		return err
	}
	defer src.Close()
	reader.Seek(s.checkpoint)
	rec, err := reader.Next()
	if err != nil {
		return fmt.Errorf("checkpoint record at %s: %w", s.checkpoint, err)
	}
	body, err := importer.CheckPointOf(rec)
	if err != nil {
		return err
	}
	return im.Finish(s.checkpoint, body, s.end)
}

// check walks the store's own invariants.
func (r *run) check(ctx context.Context) error {
	_, err := r.store.Check(ctx, func(v chunk.Violation) {
		r.report.violation(fmt.Sprintf("%s at %s: %s", v.Key, v.LSN, v.Text))
	})
	return err
}
