package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"everpage/backup"
	"everpage/backup/archive"
	"everpage/cluster/command"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// recoveringFile is there while a data directory is being made from the store.
const recoveringFile = "recovering"

// recoverRoot reads from where this node is to be recovered, before anything is opened: it says how the data directory must be made. nil: there is nothing
// to recover, since the data directory is whole.
func (n *Node) recoverRoot(ctx context.Context) (*backup.Root, error) {
	if !n.cfg.Recover {
		if _, err := os.Stat(filepath.Join(n.cfg.Data, recoveringFile)); err == nil {
			return nil, fmt.Errorf("%s is half recovered: start with --recover again", n.cfg.Data)
		}
		return nil, nil
	}
	if n.backups == nil {
		return nil, errors.New("--recover needs --store: the place to recover from")
	}
	_, marked := os.Stat(filepath.Join(n.cfg.Data, recoveringFile))
	if _, err := os.Stat(filepath.Join(n.cfg.Data, clusterDir)); err == nil && marked != nil {
		n.cfg.Logger.Info("the data directory is there already, nothing is recovered", "data", n.cfg.Data)
		return nil, nil
	}
	root, err := backup.ReadRoot(ctx, n.backups.store)
	if err != nil {
		return nil, err
	}
	n.cfg.Shards, n.cfg.SegmentBlocks, n.cfg.Cluster = root.Shards, root.SegmentBlocks, root.Cluster
	return root, os.WriteFile(filepath.Join(n.cfg.Data, recoveringFile), nil, 0o600)
}

// recoverFrom makes a data directory out of the store: what is small, and the spool. The pages come behind, or when they are asked for.
func (n *Node) recoverFrom(ctx context.Context, root *backup.Root) error {
	for _, b := range slices.Backward(n.store.Branches()) { // what an interrupted attempt left
		if err := n.store.DropBranch(b); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(n.cfg.Data, spoolDir)); err != nil {
		return err
	}
	// From here on whoever wrote there before writes no more, should it still be there.
	if err := n.backups.owner.Take(ctx); err != nil {
		return err
	}
	resume, err := backup.RestoreSmall(ctx, n.backups.store, n.store, root)
	if err != nil {
		return err
	}
	if err := n.store.Flush(); err != nil {
		return err
	}
	main := uint32(0)
	for branch := range resume {
		main = max(main, branch)
	}
	p, ok := resume[main]
	if !ok {
		return errors.New("the store has no whole backup of any branch")
	}
	end, err := n.recoverSpool(ctx, root, p.Resume)
	if err != nil {
		return err
	}
	if err := n.recoverState(ctx, root, main, p.Start); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(n.cfg.Data, recoveringFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(n.cfg.Data); err != nil {
		return err
	}
	n.cfg.Logger.Info("recovered from the store", "layers_up_to", p.Resume, "wal_up_to", end, "written", root.Written)
	return nil
}

// recoverState has the new cluster agree on what the root says.
func (n *Node) recoverState(ctx context.Context, root *backup.Root, main uint32, start pg.LSN) error {
	branch := &command.SetBranch{Number: main, Timeline: root.History.Timeline, Start: start, Imported: true, Main: true, NextTimeline: root.NextTimeline}
	if len(root.History.Parents) > 0 {
		branch.History = root.History.Format()
	}
	if _, err := n.cluster.Propose(ctx, branch); err != nil {
		return err
	}
	if err := n.backups.registry.Restore(ctx, root); err != nil {
		return err
	}
	if err := n.recoverHorizon(ctx, root, main); err != nil {
		return err
	}
	_, err := n.cluster.Propose(ctx, &command.Attach{
		Conninfo: root.Conninfo, Primary: root.Primary, SystemIdentifier: root.SystemID, Major: root.Major, WALSegmentSize: uint32(root.WALSegmentSize), Importer: n.cluster.ID(),
	})
	return err
}

// recoverHorizon has the new cluster agree on where history begins, and on how long it is kept.
func (n *Node) recoverHorizon(ctx context.Context, root *backup.Root, main uint32) error {
	list := []command.Command{&command.SetRetention{Retention: root.Retention, Bytes: root.RetentionBytes}}
	if h := root.Horizons[main]; h != 0 {
		list = append(list, &command.PlanHorizon{Branch: main, LSN: h}, &command.ApplyHorizon{Branch: main, LSN: h})
	}
	for _, c := range list {
		if _, err := n.cluster.Propose(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// recoverSpool writes the WAL from which the store must be fed, and all behind it.
func (n *Node) recoverSpool(ctx context.Context, root *backup.Root, resume pg.LSN) (end pg.LSN, err error) {
	id := archive.ID{SystemID: root.SystemID, SegmentSize: root.WALSegmentSize}
	inv, err := archive.List(ctx, n.backups.store, id)
	if err != nil {
		return 0, err
	}
	from := id.SegmentSize.Floor(resume)
	end = inv.End(root.History, from)
	if end < resume {
		return 0, fmt.Errorf("the WAL in the store ends at %s, the pages at %s: WAL is missing", end, resume)
	}
	spool, err := wal.OpenSpool(wal.SpoolOptions{
		Dir: filepath.Join(n.cfg.Data, spoolDir), SegmentSize: id.SegmentSize, Major: root.Major, SystemID: root.SystemID, History: root.History,
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, spool.Close()) }()
	src := archive.NewSource(ctx, n.backups.store, inv, root.History, filepath.Join(n.cfg.Data, packDir))
	defer src.Close()
	buf := make([]byte, 1<<20)
	for at := from; at < end; {
		m, err := src.ReadWAL(buf[:min(uint64(len(buf)), uint64(end-at))], at)
		if err != nil {
			return 0, err
		}
		if err := spool.Append(at, buf[:m]); err != nil {
			return 0, err
		}
		at += pg.LSN(m)
	}
	durable, err := spool.Sync()
	if err != nil {
		return 0, err
	}
	if durable < resume {
		return 0, fmt.Errorf("the WAL of the store is whole up to %s only, the pages need it up to %s", durable, resume)
	}
	return durable, nil
}

// withoutPassword explains an error of a recovered node that is refused for want of a password, which the store does not keep.
func (f *follower) withoutPassword(err error) string {
	if !f.n.cfg.Recover || !errors.Is(err, stream.ErrPassword) {
		return ""
	}
	return "; the store, from which this cluster was recovered, keeps no passwords: attach again with the conninfo that has it, or give the node PGPASSWORD or a .pgpass"
}
