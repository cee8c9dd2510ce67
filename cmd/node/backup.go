package node

import (
	"context"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"everpage/backup"
	"everpage/backup/store"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// packDir is where objects are gathered that go to the store.
const packDir = "pack"

// startBackups makes what uploads and restores, once the store and the state are open.
func (n *Node) startBackups() error {
	b := n.backups
	if b == nil {
		return nil
	}
	b.source = backup.NewSource(b.store, b.registry)
	b.source.Kept = n.store.Kept
	b.filler = &backup.Filler{Source: b.source, Store: store.Limit(b.store, n.cfg.RestoreRate), Target: n.store, Log: n.cfg.Logger}
	if n.budget != nil {
		b.filler.Room = n.budget.room
	}
	b.uploader = backup.New(backup.Options{
		Store: b.limited, Registry: b.registry, History: n.store, Root: n.follow.root, Archived: b.archivedEnd, Hurry: b.hurry, Owns: b.owner.Check, Known: n.branches,
		Dir: filepath.Join(n.cfg.Data, packDir), PackBytes: int64(n.cfg.DiskBudget / 16), Every: n.cfg.BackupEvery, Bytes: n.cfg.backupBytes(), Log: n.cfg.Logger,
	})
	return nil
}

// openRegistry makes what says which manifests are the current ones, and the data directory where it is to be recovered.
func (n *Node) openRegistry(ctx context.Context, root *backup.Root) error {
	if n.backups == nil {
		return nil
	}
	n.backups.registry = newAgreed(n)
	n.backups.owner = n.claimant(n.backups.store)
	if root == nil {
		return nil
	}
	return n.recoverFrom(ctx, root)
}

// claimant claims a store for this node's cluster.
func (n *Node) claimant(s store.Store) *backup.Owner {
	return &backup.Owner{Store: s, ID: n.cluster.State().ID, Name: "cluster " + n.cfg.Cluster + ", node " + n.cfg.Node, Former: func() []string { return n.cluster.State().Former }}
}

// backupBytes is how much WAL makes an upload worth it before its time.
const backupBytes = 256 << 20

// runBackups uploads and fills until ctx ends.
func (n *Node) runBackups(ctx context.Context) error {
	if n.backups == nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.backups.uploader.Run(ctx) })
	g.Go(func() error { return n.backups.filler.Run(ctx) })
	g.Go(func() error { return n.collect(ctx) })
	return g.Wait()
}

// archivedEnd is where the WAL in the store ends; 0 while that is not known.
func (b *backups) archivedEnd() pg.LSN {
	st, _ := b.status()
	return st.End
}

func (b *backups) hurry() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.archiver != nil {
		b.archiver.Hurry()
	}
}

// root is what this node knows of a root object; false while nothing is followed.
func (f *follower) root() (backup.Root, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.st
	if st.SystemIdentifier == 0 || st.Branch == 0 {
		return backup.Root{}, false
	}
	s := f.n.cluster.State()
	r := backup.Root{
		Cluster: f.n.cfg.Cluster, SystemID: st.SystemIdentifier, Major: st.Major, WALSegmentSize: wal.SegmentSize(st.WALSegmentSize), History: st.History,
		Conninfo: stream.WithoutPassword(st.Conninfo), Primary: st.Primary, NextTimeline: s.NextTimeline,
		Retention: s.Retention, RetentionBytes: s.RetentionBytes, Horizons: map[uint32]pg.LSN{},
	}
	for _, x := range s.Nodes {
		if slot, err := stream.NodeSlot(f.n.cfg.Cluster, x.Name); err == nil {
			r.Slots = append(r.Slots, slot)
		}
	}
	for _, l := range s.Left {
		if l.Primary == s.Follow.Primary && !slices.Contains(r.Slots, l.Slot) {
			r.Slots = append(r.Slots, l.Slot)
		}
	}
	r.Main = s.Main
	for _, b := range s.Branches {
		if b.Imported {
			r.Lines = append(r.Lines, backup.Line{Branch: b.Number, Parent: b.Parent, Fork: b.Fork, Timeline: b.Timeline, History: b.History, Start: b.Start})
		}
	}
	for _, h := range s.Horizons {
		r.Horizons[h.Branch] = h.Applied
	}
	return r, true
}

// backupLag is how far the store's layers are behind what can be read here.
func (n *Node) backupLag() (lag uint64, at pg.LSN) {
	branch := n.follow.main()
	p, ok := n.store.Progress(branch)
	if !ok {
		return 0, 0
	}
	at = n.backups.registry.Current(branch, backup.Small).LSN
	if p.Readable > at {
		lag = uint64(p.Readable - at)
	}
	return lag, at
}
