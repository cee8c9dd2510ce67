package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"everpage/backup"
	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// agreed is the registry of manifests that the cluster agrees on.
type agreed struct {
	n *Node

	mu    sync.Mutex
	moved map[shardOf]movedTo
	away  map[string]verdict // of other nodes, by id
}

// verdict is whether a node failed to write to the store, when it was asked last.
type verdict struct {
	away bool
	at   time.Time
}

type shardOf struct {
	branch uint32
	shard  placement.Shard
}

// movedTo is up to where a shard's layers go, and since when.
type movedTo struct {
	lsn pg.LSN
	at  time.Time
}

func newAgreed(n *Node) *agreed {
	return &agreed{n: n, moved: map[shardOf]movedTo{}, away: map[string]verdict{}}
}

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
func (a *agreed) Set(ctx context.Context, branch uint32, shard placement.Shard, old backup.Current, next backup.Next) error {
	c := &command.SetManifest{Branch: branch, Shard: shard, Epoch: old.Epoch, Old: old.Ref, New: next.Ref, LSN: next.LSN}
	if !next.Oldest.IsZero() {
		c.OldestUS = next.Oldest.UnixMicro()
	}
	_, err := a.n.cluster.Propose(ctx, c)
	var refused *cluster.Refused
	if errors.As(err, &refused) {
		return fmt.Errorf("%w: %w", backup.ErrConflict, err)
	}
	return err
}

// Collecting implements backup.Registry.
func (a *agreed) Collecting(ctx context.Context, before time.Time) error {
	_, err := a.n.cluster.Propose(ctx, &command.CollectObjects{BeforeUS: before.UnixMicro()})
	return err
}

// Sync implements backup.Registry.
func (a *agreed) Sync(ctx context.Context) error { return a.n.cluster.Sync(ctx) }

// deputyAfter is how many times the interval of uploads a shard's layers may stand still until the next of its replicas uploads them.
const deputyAfter = 5

// Mine implements backup.Registry. A shard's first full replica uploads it; where its layers stand still and that node doesn't reach the store, the next one
// does, at a slower pace. Should both, one of them is told that the other was faster.
func (a *agreed) Mine(branch uint32) []placement.Shard {
	var out []placement.Shard
	s, now := a.n.cluster.State(), time.Now()
	for shard, x := range s.Map {
		shard, full := placement.Shard(shard), x.Full()
		place := slices.Index(full, a.n.cluster.ID())
		// What a delta behind the manifest's layers needs is enough.
		have, m := a.n.store.Coverage(branch, shard), a.Current(branch, shard)
		if place < 0 || !have.Complete && (!have.Owned || m.Ref == "" || have.From > m.LSN) {
			continue
		}
		if place == 0 || a.stands(shardOf{branch, shard}, now) > a.patience() && !slices.ContainsFunc(full[:place], func(id string) bool { return !a.isAway(id, now) }) {
			out = append(out, shard)
		}
	}
	if a.n.cluster.IsLeader() {
		out = append(out, backup.Small)
	}
	return out
}

// patience is how long a shard's layers may stand still until it is asked why.
func (a *agreed) patience() time.Duration { return deputyAfter * a.n.cfg.BackupEvery }

// isAway tells whether a node does not reach the store. One that does is busy, with a first backup perhaps, which may take hours.
func (a *agreed) isAway(id string, now time.Time) bool {
	a.mu.Lock()
	v, ok := a.away[id]
	a.mu.Unlock()
	if ok && now.Sub(v.at) < a.patience() {
		return v.away
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	c, err := a.n.peers.backup(a.n.cluster.PageAddress(id))
	if err == nil {
		_, err = c.ProbeStore(ctx, &pb.ProbeStoreRequest{})
	}
	if err != nil {
		a.n.cfg.Logger.Warn("a node does not get its layers to the store; this one uploads shards that it has too", "of", id, "error", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.away[id] = verdict{err != nil, now}
	return err != nil
}

// stands is for how long a shard's layers have stood still, as this node saw it, while there was more to upload.
func (a *agreed) stands(key shardOf, now time.Time) time.Duration {
	current := a.Current(key.branch, key.shard)
	p, _ := a.n.store.Progress(key.branch)
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.moved[key]
	if !ok || m.lsn != current.LSN || p.Readable <= current.LSN {
		m = movedTo{current.LSN, now}
		a.moved[key] = m
	}
	return now.Sub(m.at)
}

// Leads implements backup.Registry.
func (a *agreed) Leads() bool { return a.n.cluster.IsLeader() }

// Term implements backup.Registry.
func (a *agreed) Term() uint64 { return a.n.cluster.Term() }

// Restore takes what a root says.
func (a *agreed) Restore(ctx context.Context, root *backup.Root) error {
	for _, b := range root.Branches {
		if a.n.cluster.State().Branch(b.Branch) == nil {
			continue // its import was never complete
		}
		for _, m := range b.Manifests {
			if err := a.Set(ctx, b.Branch, m.Shard, a.Current(b.Branch, m.Shard), backup.Next{Ref: m.Ref, LSN: m.LSN}); err != nil {
				return err
			}
		}
	}
	return nil
}
