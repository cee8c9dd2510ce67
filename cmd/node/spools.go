package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"everpage/backup"
	"everpage/backup/archive"
	"everpage/chunk/ingest"
	"everpage/wal"
	"everpage/wal/pg"
)

// openSpool opens the spool of a branch's timeline. first is where receiving starts if it holds nothing.
func (f *follower) openSpool(st state, pending *pendingImport) (*wal.Spool, pg.LSN, error) {
	opts := wal.SpoolOptions{
		Dir: filepath.Join(f.n.cfg.Data, spoolDir), SegmentSize: wal.SegmentSize(st.WALSegmentSize), Major: st.Major, SystemID: st.SystemIdentifier,
		History: st.History, Reserve: f.n.cfg.spoolReserve(),
	}
	var start pg.LSN
	if pending != nil {
		start = pending.start
	} else {
		durable, _ := f.n.store.Durable(st.Branch)
		start = durable.Resume
		opts.From, opts.AtLeast = durable.Resume, durable.Resume
		if f.copied(st.Branch, durable.Resume) {
			opts.From, opts.AtLeast = 0, 0
		}
	}
	spool, err := wal.OpenSpool(opts)
	if err != nil {
		return nil, 0, err
	}
	if st.Parent != 0 && start == st.Fork && spool.Written() == 0 {
		if err := f.seed(spool, st); err != nil {
			f.log.Info("the first segment of the new timeline comes whole from the primary", "timeline", st.Timeline, "reason", err)
		}
		if err := spool.Err(); err != nil {
			return nil, 0, errors.Join(err, spool.Close())
		}
	}
	return spool, opts.SegmentSize.Floor(start), nil
}

// seed gives the empty spool of a new timeline what its first segment shares with the timeline before: the new primary's is then compared with it.
func (f *follower) seed(spool *wal.Spool, st state) error {
	from := spool.SegmentSize().Floor(st.Fork)
	if from == st.Fork {
		return nil // it begins with a segment of its own
	}
	b := f.n.cluster.State().Branch(st.Parent)
	if b == nil {
		return fmt.Errorf("branch %d is not there", st.Parent)
	}
	history, err := historyOf(b)
	if err != nil {
		return err
	}
	src, err := wal.OpenDir(filepath.Join(f.n.cfg.Data, spoolDir), spool.SegmentSize(), history)
	if err != nil {
		return err
	}
	defer src.Close()
	shared := make([]byte, st.Fork-from)
	for n := 0; n < len(shared); {
		m, err := src.ReadWAL(shared[n:], from+pg.LSN(n))
		if err != nil {
			return err
		}
		n += m
	}
	if err := spool.Append(from, shared); err != nil {
		return err
	}
	durable, err := spool.Sync()
	if err == nil && durable != st.Fork {
		// A switch point is where a record ends, so all up to it is whole.
		err = fmt.Errorf("the WAL before the switch point %s is whole up to %s only", st.Fork, durable)
	}
	return err
}

// removeTimeline removes what the spool has of a branch's own timeline.
func removeTimeline(dir string, st state) error {
	segments, _, err := wal.ListDir(dir, wal.SegmentSize(st.WALSegmentSize))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	removed := false
	for _, g := range segments {
		if g.Timeline == st.Timeline {
			if err := os.Remove(filepath.Join(dir, g.Name(wal.SegmentSize(st.WALSegmentSize)))); err != nil {
				return err
			}
			removed = true
		}
	}
	if !removed {
		return nil
	}
	return syncDir(dir)
}

// lend lets other nodes read a spool until the returned function is called.
func (f *follower) lend(branch uint32, spool *wal.Spool) (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spools[branch] = spool
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.spools, branch)
	}
}

// spoolOf is the open spool of a branch, nil if there is none now.
func (f *follower) spoolOf(branch uint32) *wal.Spool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.spools[branch]
}

const (
	// tailEvery is how often nodes ask each other for WAL of timelines that were left.
	tailEvery = 5 * time.Second
	// tailWait bounds one such round: a node that is paused must not keep the others from it.
	tailWait = 3 * time.Second
)

// keepTails keeps the WAL of the timelines that a branch descends from: other nodes may need it, and what was received beyond a switch point may be on some nodes
// only. It is brought here and ingested into the branch that it belongs to. Nothing that goes wrong with it ends following.
func (f *follower) keepTails(ctx context.Context, st state) error {
	line, err := f.lineage(st)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	tails := line[:len(line)-1]
	for i, tail := range tails {
		go func() {
			defer func() { done <- struct{}{} }()
			if err := f.keepTail(ctx, tail, line[i+1]); err != nil && ctx.Err() == nil {
				f.log.Info("the WAL of a timeline that was left is not kept here", "timeline", tail.Timeline, "reason", err)
			}
		}()
	}
	for range tails {
		<-done
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// keepTail is keepTails for one branch; next forked off it.
func (f *follower) keepTail(ctx context.Context, tail, next state) error {
	spool, first, err := f.openSpool(tail, nil)
	if err != nil {
		return err
	}
	defer spool.Close()
	defer f.lend(tail.Branch, spool)()
	archived, end := f.archiveTail(ctx, spool, tail)
	defer end()
	tick := time.NewTicker(tailEvery)
	defer tick.Stop()
	for {
		round, cancel := context.WithTimeout(ctx, tailWait)
		err := f.fill(round, spool, tail.Branch, first)
		cancel()
		var diverged *wal.DivergedError
		if errors.As(err, &diverged) {
			f.warn("another node has other WAL of a timeline that was left: " + err.Error())
		}
		if spool.Err() != nil {
			return spool.Err()
		}
		if err := f.ingestTail(ctx, spool, tail); err != nil {
			return err
		}
		// Whoever is behind the switch point needs it, as long as the WAL behind that.
		if durable, ok := f.n.store.Durable(next.Branch); ok && uint64(durable.Resume) > f.n.cfg.SpoolKeep {
			if _, err := spool.Trim(min(durable.Resume-pg.LSN(f.n.cfg.SpoolKeep), archived())); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// archiveTail uploads what of a timeline that was left is not in the store yet, while this node leads. archived tells up to where the spool may be trimmed for it;
// end stops it.
func (f *follower) archiveTail(ctx context.Context, spool *wal.Spool, st state) (archived func() pg.LSN, end func()) {
	b := f.n.backups
	if b == nil {
		return func() pg.LSN { return ^pg.LSN(0) }, func() {}
	}
	a := archive.New(archive.Options{
		Store: b.store, ID: archive.ID{SystemID: st.SystemIdentifier, SegmentSize: wal.SegmentSize(st.WALSegmentSize)}, History: st.History,
		Every: f.n.cfg.ArchiveEvery, Log: f.log, Dir: filepath.Join(f.n.cfg.Data, packDir),
	})
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.whileLeading(ctx, func(ctx context.Context) error { return a.Run(ctx, spool) }); err != nil && ctx.Err() == nil {
			f.warn("the WAL of a timeline that was left is not backed up: " + err.Error())
		}
	}()
	archived = func() pg.LSN {
		if b.registry.Leads() {
			return a.Status().End
		}
		return b.registry.Current(st.Branch, backup.Small).LSN // as far as no recovery reads it: whoever leads next may lack it
	}
	return archived, func() { cancel(); <-done }
}

// ingestTail makes what a spool has readable.
func (f *follower) ingestTail(ctx context.Context, spool *wal.Spool, st state) error {
	if p, ok := f.n.store.Progress(st.Branch); !ok || spool.Durable() <= p.Resume {
		return nil
	}
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
	return p.Drain(ctx, r)
}
