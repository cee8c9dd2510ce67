package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"everpage/backup"
	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/chunk"
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
		return nil, &ConfigError{errors.New("--recover needs --store: the place to recover from")}
	}
	_, marked := os.Stat(filepath.Join(n.cfg.Data, recoveringFile))
	if _, err := os.Stat(filepath.Join(n.cfg.Data, clusterDir)); err == nil && marked != nil {
		n.cfg.Logger.Info("the data directory is there already, nothing is recovered", "data", n.cfg.Data)
		return nil, nil
	}
	// Whoever gave a wrong address or keys is to learn it soon; a store that is away for a moment is waited for.
	root, err := backup.ReadRoot(ctx, n.patient(recoverPatience))
	if err != nil {
		return nil, fmt.Errorf("nothing is recovered: %w", err)
	}
	n.cfg.Shards, n.cfg.SegmentBlocks, n.cfg.Cluster = root.Shards, root.SegmentBlocks, root.Cluster
	// What is made from here on must not be taken for whole after a power loss.
	return root, errors.Join(os.WriteFile(filepath.Join(n.cfg.Data, recoveringFile), nil, 0o600), syncDir(n.cfg.Data))
}

// recoverPatience is how long a recovery waits for the first answer of the store. Once it had one it waits for as long as it takes.
const recoverPatience = time.Minute

// patient is the store for what a recovery can't do without.
func (n *Node) patient(bound time.Duration) store.Store {
	return &store.Patient{Store: n.backups.store, For: bound, Told: func(err error, wait time.Duration) {
		n.cfg.Logger.Warn("the recovery waits for the store", "error", err, "retry_in", wait)
	}}
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
	objects := n.patient(0)
	if err := n.claimant(objects).Take(ctx); err != nil {
		return err
	}
	resume, err := backup.RestoreSmall(ctx, objects, n.store, root)
	if err != nil {
		return err
	}
	if err := n.store.Flush(); err != nil {
		return err
	}
	lines, main, err := recoverLines(root, resume)
	if err != nil {
		return err
	}
	var end pg.LSN
	for _, l := range lines {
		at, err := n.recoverLine(ctx, root, l, resume)
		if err != nil && l.Branch == main {
			return err
		} else if err != nil {
			n.cfg.Logger.Warn("the WAL of a timeline that was left could not be recovered", "branch", l.Branch, "timeline", l.Timeline, "error", err)
		}
		end = max(end, at)
	}
	if err := n.recoverState(ctx, root, lines, main); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(n.cfg.Data, recoveringFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(n.cfg.Data); err != nil {
		return err
	}
	n.cfg.Logger.Info("recovered from the store", "branch", main, "layers_up_to", resume[main].Resume, "wal_up_to", end, "written", root.Written)
	return nil
}

// recoverLines lists the branches that the store gives back, each after the one that it forked off, and which of them is main. One that forked off is made anew
// out of its parent and its WAL where its own backup was not whole.
func recoverLines(root *backup.Root, resume map[uint32]chunk.Progress) (lines []backup.Line, main uint32, err error) {
	all := root.Lines
	if len(all) == 0 { // of a release that knew one branch
		for branch := range resume {
			main = max(main, branch)
		}
		p, ok := resume[main]
		if !ok {
			return nil, 0, errors.New("the store has no whole backup of any branch")
		}
		l := backup.Line{Branch: main, Timeline: root.History.Timeline, Start: p.Start}
		if len(root.History.Parents) > 0 {
			l.History = root.History.Format()
		}
		return []backup.Line{l}, main, nil
	}
	have := map[uint32]bool{}
	for _, l := range all {
		if _, ok := resume[l.Branch]; ok || have[l.Parent] {
			have[l.Branch] = true
			lines = append(lines, l)
			if main != root.Main {
				main = l.Branch
			}
		}
	}
	if main == 0 {
		return nil, 0, errors.New("the store has no whole backup of any branch")
	}
	return lines, main, nil
}

// recoverLine brings the WAL of a branch's own timeline into the spool: that which its store must be fed from, and all behind it.
func (n *Node) recoverLine(ctx context.Context, root *backup.Root, l backup.Line, resume map[uint32]chunk.Progress) (end pg.LSN, err error) {
	history := wal.History{Timeline: l.Timeline}
	if len(l.History) > 0 {
		if history, err = wal.ParseHistory(l.Timeline, l.History); err != nil {
			return 0, err
		}
	}
	p, whole := resume[l.Branch]
	if !whole {
		p.Resume = l.Fork
	}
	begins := p.Resume == l.Fork && l.Parent != 0
	if begins { // nothing of its own timeline was relied on
		if err := markCopy(n.cfg.Data, spoolStart{l.Branch, l.Fork}); err != nil {
			return 0, err
		}
	}
	end, err = n.recoverSpool(ctx, root, spoolStart{l.Branch, p.Resume}, history, begins)
	if err != nil && !whole {
		n.cfg.Logger.Info("of a timeline that was just begun the store has no WAL", "timeline", l.Timeline, "reason", err)
		return 0, nil
	}
	return end, err
}

// recoverState has the new cluster agree on what the root says.
func (n *Node) recoverState(ctx context.Context, root *backup.Root, lines []backup.Line, main uint32) error {
	for _, l := range lines {
		if _, err := n.cluster.Propose(ctx, &command.SetBranch{
			Number: l.Branch, Parent: l.Parent, Fork: l.Fork, Timeline: l.Timeline, History: l.History, Start: l.Start, Imported: true, Main: l.Branch == main,
			NextTimeline: root.NextTimeline,
		}); err != nil {
			return err
		}
	}
	if err := n.backups.registry.Restore(ctx, root); err != nil {
		return err
	}
	if err := n.recoverHorizon(ctx, root, main); err != nil {
		return err
	}
	mine, err := stream.NodeSlot(n.cfg.Cluster, n.cfg.Node)
	if err != nil {
		return err
	}
	former := slices.DeleteFunc(slices.Clone(root.Slots), func(slot string) bool { return slot == mine })
	_, err = n.cluster.Propose(ctx, &command.Attach{
		Conninfo: root.Conninfo, Primary: root.Primary, SystemIdentifier: root.SystemID, Major: root.Major, WALSegmentSize: uint32(root.WALSegmentSize), Importer: n.cluster.ID(),
		Former: former,
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

// recoverSpool writes the WAL from which the store must be fed, and all behind it. Where the store resumes at the end of a segment, that segment is written, too: it has
// the last page, which is held against the primary's. It is not of a timeline that begins there.
func (n *Node) recoverSpool(ctx context.Context, root *backup.Root, start spoolStart, history wal.History, begins bool) (end pg.LSN, err error) {
	resume := start.At
	id := archive.ID{SystemID: root.SystemID, SegmentSize: root.WALSegmentSize}
	objects := n.patient(0)
	inv, err := archive.List(ctx, objects, id)
	if err != nil {
		return 0, err
	}
	from := id.SegmentSize.Floor(resume - 1)
	if begins || inv.End(history, from) < resume {
		from = id.SegmentSize.Floor(resume)
	}
	if from == resume { // the segment before is not there; nothing needs it
		if err := markCopy(n.cfg.Data, start); err != nil {
			return 0, err
		}
	}
	end = inv.End(history, from)
	if end < resume {
		return 0, fmt.Errorf("the WAL in the store ends at %s, the pages at %s: WAL is missing", end, resume)
	}
	spool, err := wal.OpenSpool(wal.SpoolOptions{
		Dir: filepath.Join(n.cfg.Data, spoolDir), SegmentSize: id.SegmentSize, Major: root.Major, SystemID: root.SystemID, History: history,
		Reserve: n.cfg.spoolReserve(),
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, spool.Close()) }()
	src := archive.NewSource(ctx, objects, inv, history, filepath.Join(n.cfg.Data, packDir))
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
	if durable == 0 && from == resume {
		return resume, nil // nothing came behind
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
