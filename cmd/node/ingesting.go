package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"everpage/chunk"
	"everpage/chunk/ingest"
	"everpage/wal"
	"everpage/wal/pg"
)

// errIngest marks WAL that can't be ingested, whatever is tried.
var errIngest = errors.New("WAL can't be ingested")

// ingest feeds the store from the spool until ctx ends or something fails. A pending import is finished first, as soon as its checkpoint record is there.
func (f *follower) ingest(ctx context.Context, spool *wal.Spool, st state, pending *pendingImport, notify func()) error {
	if pending != nil {
		if err := f.finishImport(ctx, spool, st, pending); err != nil {
			return err
		}
	}
	for {
		err := f.ingestFrom(ctx, spool, st, notify)
		if !errors.Is(err, chunk.ErrFull) {
			return err
		}
		// The disk is full or fails, which status tells as long as it lasts. What is stored is still read; the WAL waits in the spool.
		f.log.Error("the store can't write", "error", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

func (f *follower) ingestFrom(ctx context.Context, spool *wal.Spool, st state, notify func()) error {
	p, err := ingest.Open(f.n.store, ingest.Options{Branch: st.Branch, Major: st.Major})
	if err != nil {
		return err
	}
	defer p.Close()
	r, err := newSpoolReader(spool, st)
	if err != nil {
		return err
	}
	r.Seek(p.Progress().Resume)
	last, records := p.Progress().Readable, uint64(0)
	for {
		if err := p.Drain(ctx, r); err != nil {
			if ctx.Err() != nil || errors.Is(err, chunk.ErrFull) || errors.Is(err, wal.ErrSpoolClosed) {
				return err
			}
			if errors.Is(err, ingest.ErrRestartImport) {
				f.log.Warn("the import starts again", "reason", err)
				p.Close()
				return errors.Join(err, f.n.store.DropBranch(st.Branch))
			}
			return fmt.Errorf("%w: %w", errIngest, err)
		}
		now := p.Progress().Readable
		f.rate.add(uint64(now - last))
		f.records.Add(p.Records - records)
		last, records = now, p.Records
		notify()
		if !st.Imported && p.Progress().Consistent != 0 {
			if err := f.announceImport(ctx, st); err != nil {
				return err
			}
			st.Imported = true
		}
		if st.Until != 0 && now >= st.Until {
			return errReached
		}
		if err := spool.WaitDurable(ctx, r.Received()); err != nil {
			return err
		}
	}
}

// newSpoolReader reads what is durable only: the store must never be ahead of its own log.
func newSpoolReader(spool *wal.Spool, st state) (*wal.Reader, error) {
	return wal.NewReader(spool.DurableWAL(), wal.ReaderOptions{
		SegmentSize: wal.SegmentSize(st.WALSegmentSize), Major: st.Major, SystemID: st.SystemIdentifier, History: &st.History, Growing: true,
	})
}

// tendEvery is how often the store and the spool are looked after.
const tendEvery = 10 * time.Second

// tend makes the store durable while nothing is written, since a run in memory leaves it by itself only when it is full, and removes WAL that the store has
// made durable from the spool, but for the last Config.SpoolKeep bytes.
func (f *follower) tend(ctx context.Context, spool *wal.Spool, branch uint32) error {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	var seen pg.LSN
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		progress, ok := f.n.store.Progress(branch)
		if !ok || progress.Consistent == 0 {
			continue
		}
		durable, _ := f.n.store.Durable(branch)
		if progress.Resume == seen && durable.Resume < seen {
			if err := f.n.store.Flush(); err != nil {
				f.log.Error("the store can't write", "error", err) // status tells as long as it lasts
				continue
			}
			durable, _ = f.n.store.Durable(branch)
		}
		seen = progress.Resume
		done := min(durable.Resume, f.n.backups.archived(branch))
		if uint64(done) <= f.n.cfg.SpoolKeep {
			continue
		}
		if _, err := spool.Trim(done - pg.LSN(f.n.cfg.SpoolKeep)); err != nil {
			return err
		}
	}
}
