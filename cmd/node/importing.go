package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"everpage/chunk/importer"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// pendingImport is a base backup whose pages are in the store, and which waits for the checkpoint record that it began with.
type pendingImport struct {
	im         *importer.Importer
	start, end pg.LSN
	checkpoint pg.LSN
	closed     atomic.Bool
}

func (p *pendingImport) close() {
	if p != nil && p.closed.CompareAndSwap(false, true) {
		p.im.Close()
	}
}

// backupName is the application_name of a base backup's connections. It is not the node's: where synchronous_standby_names lists the node, a backup
// must not count as a standby.
const backupName = "everpage base backup"

// needsImport tells whether the branch has no complete import.
func (f *follower) needsImport() bool {
	p, ok := f.n.store.Progress(mainBranch)
	return !ok || importer.Unfinished(p.Note)
}

// runImport takes one base backup into the store. What an interrupted one left is dropped first.
func (f *follower) runImport(ctx context.Context, st *state) (pending *pendingImport, err error) {
	f.set(stateImporting, "")
	if err := f.n.dropHistory(); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(filepath.Join(f.n.cfg.Data, spoolDir)); err != nil {
		return nil, err
	}
	if err := f.ensureSlot(ctx, st.Conninfo, st.Slot); err != nil {
		return nil, err
	}
	conn, err := stream.Connect(ctx, st.Conninfo, stream.Replication, backupName)
	if err != nil {
		return nil, err
	}
	var im *importer.Importer
	defer func() {
		if err != nil && im != nil {
			im.Close()
		}
	}()
	result, err := stream.Backup(ctx, conn, stream.BackupOptions{
		Label:         "everpage " + st.Cluster + " " + st.Node,
		SkipChecksums: true, // the importer checks, and goes on with the pages that are right
		Warn:          f.warn,
		Progress: func(done, total int64) {
			f.mu.Lock()
			f.imported, f.importTotal = done, total
			f.mu.Unlock()
		},
		Begin: func(b stream.BackupStart) error {
			if err := f.adopt(ctx, st, b); err != nil {
				return err
			}
			var err error
			im, err = importer.New(f.n.store, importer.Options{
				Branch: mainBranch, Major: b.Server.Major, Start: b.Start, DataChecksums: b.Server.DataChecksums,
			})
			if err != nil {
				return err
			}
			f.log.Info("base backup", "start", b.Start, "timeline", b.Timeline, "bytes", b.Total)
			return im.Tablespaces(b.Tablespaces)
		},
	}, func(file stream.BackupFile) error { return im.File(file) })
	if err != nil {
		return nil, err
	}
	for _, d := range im.Damaged {
		f.warn(d + ": the primary's own page has a wrong checksum; it can't be read until WAL replaces it")
	}
	f.log.Info("base backup imported", "start", result.Start, "end", result.End, "files", result.Files, "bytes", result.Bytes)
	return &pendingImport{im: im, start: result.Start, end: result.End, checkpoint: result.Label.Checkpoint}, nil
}

// adopt records what the backup's server is, before anything of it is stored.
func (f *follower) adopt(ctx context.Context, st *state, b stream.BackupStart) error {
	history := wal.History{Timeline: b.Timeline}
	if b.Timeline > 1 {
		c, err := stream.Connect(ctx, st.Conninfo, stream.Replication, backupName)
		if err != nil {
			return err
		}
		defer c.Close()
		if history, err = stream.TimelineHistory(ctx, c, b.Timeline); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.st.SystemIdentifier != 0 && f.st.SystemIdentifier != b.Server.SystemID {
		return fmt.Errorf("%w: its system identifier is %d, %d was attached", stream.ErrSystem, b.Server.SystemID, f.st.SystemIdentifier)
	}
	next := f.st
	next.SystemIdentifier, next.Major, next.WALSegmentSize = b.Server.SystemID, b.Server.Major, uint32(b.Server.SegmentSize)
	next.Timeline, next.Branch, next.Hole = b.Timeline, mainBranch, ""
	next.History = history
	next.NextTimeline = max(next.NextTimeline, b.Timeline+1)
	if err := next.save(f.n.cfg.Data); err != nil {
		return err
	}
	f.st, *st = next, next
	f.n.redoer.set(next.Major)
	return nil
}

// finishImport waits for the checkpoint record that the backup began with: the control state starts from it.
func (f *follower) finishImport(ctx context.Context, spool *wal.Spool, p *pendingImport) error {
	defer p.close()
	f.mu.Lock()
	st := f.st
	f.mu.Unlock()
	r, err := newSpoolReader(spool, st)
	if err != nil {
		return err
	}
	r.Seek(p.checkpoint)
	for {
		rec, err := r.Next()
		if errors.Is(err, wal.ErrMore) {
			if err := spool.WaitDurable(ctx, max(r.Received(), p.checkpoint)); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		body, err := importer.CheckPointOf(rec)
		if err != nil {
			return err
		}
		if err := p.im.Finish(p.checkpoint, body, p.end); err != nil {
			return err
		}
		return f.n.store.Flush() // a crash from here on needs no other base backup
	}
}
