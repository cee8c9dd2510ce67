package backup

import (
	"context"
	"errors"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// ErrConflict means that a manifest was not made the current one: another is by now, or the shard has changed hands.
var ErrConflict = errors.New("the shard's manifest or owner has changed meanwhile")

// Current is what the cluster has agreed on of a shard's backup.
type Current struct {
	Ref   string // "": nothing was uploaded yet
	LSN   pg.LSN // up to which the manifest's layers go
	Epoch uint64 // of the shard
}

// Registry is where the names of manifests are agreed on: Raft.
type Registry interface {
	// Current is what this node knows, which may be old.
	Current(branch uint32, shard placement.Shard) Current
	// Set makes a manifest the current one if old still is and the shard still has the epoch; ErrConflict if not.
	Set(ctx context.Context, branch uint32, shard placement.Shard, old Current, ref string, lsn pg.LSN) error
	// Sync returns once Current is as new as the call: what is deleted after it must be deleted by what it says.
	Sync(ctx context.Context) error
	// Mine lists the shards that this node uploads: those that it is the first full replica of. Small may be one of them: the leader uploads it in any case.
	Mine(branch uint32) []placement.Shard
	// Leads tells whether this node is the one that writes root objects and deletes.
	Leads() bool
}
