package losstest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/deploy/nodetest"
	"everpage/pageapi"
	"everpage/wal"
	"everpage/wal/pg"
)

// leads is the node that archives. On a busy machine there may be none for a moment.
func (x *run) leads(ctx context.Context) (*nodetest.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		list, err := x.cluster.Nodes[0].Members(ctx)
		for i, m := range list {
			if m.Leader && m.Name == name(i) {
				return x.cluster.Nodes[i], nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no node leads: %+v, error %w", list, errors.Join(err, ctx.Err()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// leader is what the node that archives says of the backup.
func (x *run) leader(ctx context.Context) (nodetest.Backups, error) {
	n, err := x.leads(ctx)
	if err != nil {
		return nodetest.Backups{}, err
	}
	b, err := n.Backups(ctx)
	if err == nil && b.Archive == nil {
		err = fmt.Errorf("the leader archives nothing: %+v", b)
	}
	return b, err
}

// infoLag is the archive lag that `info` shows.
func (x *run) infoLag(ctx context.Context) (uint64, error) {
	n, err := x.leads(ctx)
	if err != nil {
		return 0, err
	}
	var v struct {
		Branches []struct {
			Backup *struct {
				Archive uint64 `json:"archive_lag_bytes"`
			}
		}
	}
	if err := n.JSON(ctx, &v, "info"); err != nil {
		return 0, err
	}
	if len(v.Branches) != 1 || v.Branches[0].Backup == nil {
		return 0, errors.New("info shows no backup")
	}
	return v.Branches[0].Backup.Archive, nil
}

// digest is that of all pages at an LSN. On a busy machine a node may be silent for longer than clients wait, or without a leader: then it is asked again.
func digest(ctx context.Context, n *nodetest.Node, at pg.LSN) (sum uint64, pages int, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		sum, pages, err = n.Digest(ctx, at)
		if err == nil || pageapi.CodeOf(err) != pageapi.Unavailable || ctx.Err() != nil {
			return sum, pages, err
		}
	}
}

// evened waits until all nodes have the same WAL on disk, once the primary is gone: what it sent to some of them only the others get from those.
func (x *run) evened(ctx context.Context) (pg.LSN, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		list, err := x.cluster.Nodes[0].Members(ctx)
		if err == nil && len(list) == len(x.cluster.Nodes) && !slices.ContainsFunc(list, func(m nodetest.Member) bool { return m.Durable != list[0].Durable }) {
			return pg.ParseLSN(list[0].Durable)
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("the nodes don't have the same WAL: %+v, error %w", list, errors.Join(err, ctx.Err()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// cutOff ends the store under load, and lets the load go on for a while.
func (x *run) cutOff(ctx context.Context) error {
	const tries = 20
	for try := 1; ; try++ {
		leader, err := x.leads(ctx)
		if err != nil {
			return err
		}
		x.s3.Kill()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(x.o.Load / 4):
		}
		now, err := x.leads(ctx)
		if err != nil {
			return err
		}
		b, err := x.leader(ctx)
		if err != nil {
			return err
		}
		stored, err := x.stored(ctx)
		if err != nil {
			return err
		}
		// A new leader, which can't see what the store has, can't tell the lag. An object that got there without an answer makes less be lost than is shown, and a whole
		// segment may end with the beginning of a record. Then it is done anew: what is lost is to be held against what is shown to the byte.
		if now == leader && stored == b.Archive.End && stored%wal.DefaultSegmentSize != 0 {
			return nil
		}
		if try == tries {
			return fmt.Errorf("the store ends at %s, the archiver says %s, for the %d. time; the leader is %s, it was %s", stored, b.Archive.End, try, now.Address(), leader.Address())
		}
		x.o.Logf("cut off again: the store ends at %s, the archiver says %s; the leader is another one: %t", stored, b.Archive.End, now != leader)
		if err := x.s3.StartAgain(ctx); err != nil {
			return err
		}
		if r := x.cluster.Nodes[0].Run(ctx, "backup", "now"); r.Code != 0 {
			return fmt.Errorf("backup now: %s", r.Stderr)
		}
	}
}

// stored is where the WAL ends in the store, which does not run, by a copy of its files.
func (x *run) stored(ctx context.Context) (pg.LSN, error) {
	rows, err := x.primary.SQL(ctx, "postgres", "select system_identifier from pg_control_system()")
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseUint(rows[0][0], 10, 64)
	if err != nil {
		return 0, err
	}
	dir := filepath.Join(x.o.Dir, "stored")
	if err := os.RemoveAll(dir); err != nil {
		return 0, err
	}
	if err := os.CopyFS(filepath.Join(dir, "wal"), os.DirFS(x.s3.Path("history", "cluster/wal"))); err != nil {
		return 0, err
	}
	files, err := store.OpenFile(dir)
	if err != nil {
		return 0, err
	}
	inv, err := archive.List(ctx, files, archive.ID{SystemID: system, SegmentSize: wal.DefaultSegmentSize})
	if err != nil {
		return 0, err
	}
	const timeline = 1
	first, ok := inv.First(timeline)
	if !ok {
		return 0, errors.New("the store has no WAL")
	}
	return inv.End(wal.History{Timeline: timeline}, first), nil
}
