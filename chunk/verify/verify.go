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
	o      Options
	report *Report
	store  *chunk.Store
	source *offline.Source
	images images
}

func (r *run) run(ctx context.Context) error {
	im, err := r.source.Import(ctx, r.store, branch)
	if err != nil {
		return err
	}
	r.report.DamagedInBase = im.Damaged
	p, err := ingest.Open(r.store, ingest.Options{
		Branch: branch, Major: r.source.Control.Major, BatchBytes: 256 << 10, Watch: r.watch, Committed: func() error { return r.images.compare(ctx, r) },
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
	err = p.Drain(ctx, reader)
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
	if err := r.check(ctx); err != nil {
		return err
	}
	if r.o.Final == "" {
		return nil
	}
	pages := stored{store: r.store, base: r.source.Control, at: progress.Readable, lost: &r.images.lost}
	f := &final{ctx: ctx, dir: r.o.Final, at: pages.at, pages: pages, report: r.report}
	return f.compare()
}

// check walks the store's own invariants.
func (r *run) check(ctx context.Context) error {
	_, err := r.store.Check(ctx, func(v chunk.Violation) {
		r.report.violation(fmt.Sprintf("%s at %s: %s", v.Key, v.LSN, v.Text))
	})
	return err
}
