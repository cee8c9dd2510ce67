package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"everpage/chunk/importer"
	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/fsm"
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
func (f *follower) needsImport(branch uint32) bool {
	p, ok := f.n.store.Progress(branch)
	return !ok || importer.Unfinished(p.Note)
}

// runImport takes one base backup into the store. What an interrupted one left is dropped first.
func (f *follower) runImport(ctx context.Context, st *state) (pending *pendingImport, err error) {
	f.set(stateImporting, "")
	f.use(0)
	for _, b := range f.n.store.Branches() { // of an import that was interrupted
		if b == st.Branch && f.needsImport(b) {
			if err := f.n.store.DropBranch(b); err != nil {
				return nil, err
			}
		}
	}
	if err := os.RemoveAll(filepath.Join(f.n.cfg.Data, spoolDir)); err != nil {
		return nil, err
	}
	if err := f.ensureSlot(ctx, *st); err != nil {
		return nil, err
	}
	conn, err := stream.ConnectOne(ctx, st.Conninfo, stream.Replication, backupName, st.line())
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
		Label:         "everpage " + f.n.cfg.Cluster + " " + st.Node,
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
				Branch: st.Branch, Major: b.Server.Major, Start: b.Start, DataChecksums: b.Server.DataChecksums,
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
		c, err := stream.ConnectOne(ctx, st.Conninfo, stream.Replication, backupName, stream.Line{SystemID: b.Server.SystemID, Timeline: b.Timeline})
		if err != nil {
			return err
		}
		defer c.Close()
		if history, err = stream.TimelineHistory(ctx, c, b.Timeline); err != nil {
			return err
		}
	}
	if st.SystemIdentifier != b.Server.SystemID {
		return fmt.Errorf("%w: its system identifier is %d, %d was attached", stream.ErrSystem, b.Server.SystemID, st.SystemIdentifier)
	}
	if st.Major != b.Server.Major || st.WALSegmentSize != uint32(b.Server.SegmentSize) {
		return fmt.Errorf("%w: it is PostgreSQL %d with segments of %d bytes, %d with %d was attached", stream.ErrMajor, b.Server.Major, b.Server.SegmentSize, st.Major, st.WALSegmentSize)
	}
	// Every import has a branch of its own, so that nobody takes the remains of one for another.
	// Behind a hole the old one is main until this one can be read.
	cmd := &command.SetBranch{Timeline: b.Timeline, Start: b.Start, Importer: f.n.cluster.ID(), Main: !st.Imported}
	if b.Timeline > 1 {
		cmd.History = history.Format()
	}
	number, err := cluster.ProposeFor[uint32](ctx, f.n.cluster, cmd)
	if err != nil {
		return err
	}
	st.Timeline, st.Branch, st.History, st.Start = b.Timeline, number, history, b.Start
	st.Newest, st.Imported, st.Parent, st.Fork = b.Timeline, false, 0, 0
	f.use(number)
	return nil
}

// announceImport tells the cluster that the base backup is complete and consistent: from now on other nodes may have copies of it.
func (f *follower) announceImport(ctx context.Context, st state) error {
	if err := f.n.store.Flush(); err != nil {
		return err
	}
	f.restarts.Store(0)
	cmd := &command.SetBranch{Number: st.Branch, Timeline: st.Timeline, Start: st.Start, Importer: f.n.cluster.ID(), Imported: true, Main: true}
	if st.Timeline > 1 {
		cmd.History = st.History.Format()
	}
	_, err := f.n.cluster.Propose(ctx, cmd)
	return err
}

// awaitImport waits while another node takes the base backup.
func (f *follower) awaitImport(ctx context.Context, st state) error {
	who := "another node"
	if n := f.n.cluster.State().Node(st.Importer); n != nil {
		who = "node " + n.Name
	}
	f.set(stateWaiting, who+" takes the base backup")
	<-ctx.Done() // the state changes when it has
	return context.Cause(ctx)
}

// dropStale removes branches that the cluster no longer has: a number is never given again.
func (f *follower) dropStale(ctx context.Context) error {
	stale := func(s *cluster.State) []uint32 {
		return slices.DeleteFunc(f.n.store.Branches(), func(b uint32) bool {
			return slices.ContainsFunc(s.Branches, func(x fsm.Branch) bool { return x.Number == b })
		})
	}
	f.dropping.Lock()
	defer f.dropping.Unlock()
	if len(stale(f.n.cluster.State())) == 0 {
		return nil
	}
	if err := f.n.cluster.Sync(ctx); err != nil { // what this node knew last may be old
		return err
	}
	s := f.n.cluster.State()
	for _, b := range slices.Backward(stale(s)) { // a branch after those that forked off it
		f.log.Info("history that the cluster no longer has is removed", "branch", b)
		if err := f.n.store.DropBranch(b); err != nil {
			return err
		}
	}
	if len(s.Branches) == 0 {
		f.mu.Lock()
		f.imported, f.importTotal, f.warnings = 0, 0, nil
		f.mu.Unlock()
		return os.RemoveAll(filepath.Join(f.n.cfg.Data, spoolDir))
	}
	return nil
}

// finishImport waits for the checkpoint record that the backup began with: the control state starts from it.
func (f *follower) finishImport(ctx context.Context, spool *wal.Spool, st state, p *pendingImport) error {
	defer p.close()
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
