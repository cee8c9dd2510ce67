package node

import (
	"context"
	"errors"
	"fmt"

	"everpage/backup"
	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// agreed is the registry of manifests that the cluster agrees on.
type agreed struct{ n *Node }

// Current implements backup.Registry.
func (a *agreed) Current(branch uint32, shard placement.Shard) backup.Current {
	s := a.n.cluster.State()
	m, _ := s.Manifest(branch, shard)
	c := backup.Current{Ref: m.Name, LSN: m.LSN, Epoch: 1}
	if int(shard) < len(s.Map) {
		c.Epoch = s.Map[shard].Epoch
	}
	return c
}

// Set implements backup.Registry.
func (a *agreed) Set(ctx context.Context, branch uint32, shard placement.Shard, old backup.Current, ref string, lsn pg.LSN) error {
	_, err := a.n.cluster.Propose(ctx, &command.SetManifest{Branch: branch, Shard: shard, Epoch: old.Epoch, Old: old.Ref, New: ref, LSN: lsn})
	var refused *cluster.Refused
	if errors.As(err, &refused) {
		return fmt.Errorf("%w: %w", backup.ErrConflict, err)
	}
	return err
}

// Sync implements backup.Registry.
func (a *agreed) Sync(ctx context.Context) error { return a.n.cluster.Sync(ctx) }

// Mine implements backup.Registry.
func (a *agreed) Mine(branch uint32) []placement.Shard {
	var out []placement.Shard
	s := a.n.cluster.State()
	for shard, x := range s.Map {
		if full := x.Full(); len(full) > 0 && full[0] == a.n.cluster.ID() && a.n.store.Coverage(branch, placement.Shard(shard)).Complete {
			out = append(out, placement.Shard(shard))
		}
	}
	if a.n.cluster.IsLeader() {
		out = append(out, backup.Small)
	}
	return out
}

// Leads implements backup.Registry.
func (a *agreed) Leads() bool { return a.n.cluster.IsLeader() }

// Restore takes what a root says.
func (a *agreed) Restore(ctx context.Context, root *backup.Root) error {
	for _, b := range root.Branches {
		if a.n.cluster.State().Branch(b.Branch) == nil {
			continue // its import was never complete
		}
		for _, m := range b.Manifests {
			if err := a.Set(ctx, b.Branch, m.Shard, a.Current(b.Branch, m.Shard), m.Ref, m.LSN); err != nil {
				return err
			}
		}
	}
	return nil
}
