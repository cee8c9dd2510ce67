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
	"everpage/chunk/ingest"
	"everpage/chunk/offline"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// branch is the one that a verification writes.
const branch = 1

// Options say what is verified.
type Options struct {
	Base  string // a data directory that was stopped, or an unpacked base backup
	WAL   string // directory with all segments from the base's redo LSN on
	Final string // a data directory that was stopped where the WAL ends; "" for none
	Store string // empty or absent directory for the versions; "" for a temporary one, which is removed
	Stops []Stop // where else the primary was stopped on the way

	SegmentBlocks uint32 // blocks in a chunk; 0: 131072
	RunBytes      int64  // of the store; 0: its default
	Strip         bool   // leave the check images out, as if the primary had not logged them: pages are then compared with Final only
	Digest        bool   // make Report.Digest
	// The faults spoil our work, for negative controls. Fault is called before each delta is applied and may change it; it may be called by several
	// goroutines and many times for one delta, and must do the same each time. FaultChanges may change what a record was understood to change,
	// FaultRecord the record itself. None may write to the bytes that it is given: it puts others in their place.
	Fault        func(d *redo.Delta)
	FaultChanges func(rec *wal.Record, ch *redo.Changes)
	FaultRecord  func(rec *wal.Record)

	Found    func(m Mismatch) // is called for each mismatch; the report keeps the first ones only
	Progress func(at pg.LSN, records uint64)
	Logger   *slog.Logger
}

// Run verifies. The report is valid, as far as it got, even with an error; a mismatch is in the report and no error.
func Run(ctx context.Context, o Options) (report *Report, err error) {
	report = &Report{Types: map[string]*TypeReport{}, Forms: map[string]*TypeReport{}, found: o.Found}
	if o.Store == "" {
		dir, err := os.MkdirTemp("", "everpage-verify-")
		if err != nil {
			return report, err
		}
		defer os.RemoveAll(dir)
		o.Store = dir
	}
	source, err := offline.Open(o.Base, o.WAL)
	if err != nil {
		return report, err
	}
	control := source.Control
	report.Major = control.Major
	store, err := chunk.Open(chunk.Options{
		Dir: filepath.Join(o.Store, "store"), FS: vfs.Default, Redoer: &faulty{redo.Redoer{Major: control.Major}, o.Fault}, Logger: o.Logger,
		RunBytes: o.RunBytes, SegmentBlocks: o.SegmentBlocks, Checksum: pg.Checksum,
	})
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	r := &run{o: o, report: report, store: store, source: source}
	r.images.lost.store = store
	return report, r.run(ctx)
}

// run is one verification.
type run struct {
	o      Options
	report *Report
	store  *chunk.Store
	source *offline.Source
	images images

	shutdown pg.LSN // the start of the final directory's last checkpoint
	stopped  pg.LSN // that record's end, once it was read
	stops    []stop
}

func (r *run) run(ctx context.Context) error {
	if r.o.Final != "" {
		control, err := offline.ReadControl(r.o.Final)
		if err != nil {
			return fmt.Errorf("final: %w", err)
		}
		r.shutdown = control.CheckPoint
	}
	if err := r.openStops(); err != nil {
		return err
	}
	if _, err := r.source.Import(ctx, r.store, branch); err != nil {
		return err
	}
	p, err := ingest.Open(r.store, ingest.Options{
		Branch: branch, Major: r.source.Control.Major, BatchBytes: 256 << 10, Watch: r.watch, Committed: func() error { return r.images.compare(ctx, r) },
		Touch: r.touch,
	})
	if err != nil {
		return err
	}
	reader, src, err := r.source.Reader(r.source.Redo)
	if err != nil {
		p.Close()
		return err
	}
	defer src.Close()
	err = p.Drain(ctx, &filtered{reader, r.o})
	progress := p.Progress()
	p.Close()
	r.report.Records, r.report.Start, r.report.End = p.Records, r.source.Redo, progress.Readable
	if !wal.IsEnd(err) {
		return err
	}
	r.report.EndReason = err.Error()
	if progress.Unproven != 0 {
		r.report.unknown(fmt.Sprintf("from %s on: %s", progress.Unproven, progress.UnprovenReason))
	}
	r.images.finish(r)
	if err := r.damaged(ctx, progress.Consistent); err != nil {
		return err
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	if err := r.compareStops(ctx); err != nil {
		return err
	}
	if r.o.Final != "" {
		if err := r.final(ctx, progress.Readable); err != nil {
			return err
		}
	}
	if r.o.Digest {
		if r.report.Digest, err = Digest(ctx, r.store, branch, digestLSNs(progress.Consistent, progress.Readable)); err != nil {
			return err
		}
	}
	return nil
}

// final compares with the data directory that was stopped, as of the end of its shutdown checkpoint.
func (r *run) final(ctx context.Context, end pg.LSN) error {
	if r.stopped == 0 {
		r.report.mismatch(Mismatch{LSN: end, Record: "final", Page: "pg_control", Text: fmt.Sprintf(
			"nothing was compared: %s, and the directory's shutdown checkpoint at %s is not in it", r.report.EndReason, r.shutdown)})
		return nil
	}
	pages := stored{store: r.store, base: r.source.Control, at: r.stopped, lost: &r.images.lost}
	f := &final{ctx: ctx, dir: r.o.Final, at: pages.at, pages: pages, report: r.report}
	return f.compare()
}

// damaged lists the pages that can't be made where reads begin. WAL up to there may have replaced what was wrong or missing in the base; what is left is
// an error to PostgreSQL, too (XLogCheckInvalidPages).
func (r *run) damaged(ctx context.Context, consistent pg.LSN) error {
	if consistent == 0 {
		return fmt.Errorf("the WAL ends before the end of the base backup at %s: %s", r.source.End, r.report.EndReason)
	}
	return r.store.DamagedPages(ctx, branch, consistent, func(e *chunk.DamagedError) error {
		if len(r.report.DamagedInBase) < maxFound {
			r.report.DamagedInBase = append(r.report.DamagedInBase, fmt.Sprintf("%s: %s", e.Key, e.Reason))
		}
		return nil
	})
}

// check walks the store's own invariants.
func (r *run) check(ctx context.Context) error {
	_, err := r.store.Check(ctx, func(v chunk.Violation) {
		r.report.violation(fmt.Sprintf("%s at %s: %s", v.Key, v.LSN, v.Text))
	})
	return err
}
