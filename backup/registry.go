package backup

import (
	"context"
	"errors"
	"time"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// ErrConflict means that a manifest was not made the current one: another is by now, the shard has changed hands, or the upload took so long that its objects were
// taken for garbage.
var ErrConflict = errors.New("the shard's manifest or owner has changed meanwhile, or its objects may be gone")

// Current is what the cluster has agreed on of a shard's backup.
type Current struct {
	Ref   string // "": nothing was uploaded yet
	LSN   pg.LSN // up to which the manifest's layers go
	Epoch uint64 // of the shard
}

// Next is a manifest that is to be the current one.
type Next struct {
	Ref string
	LSN pg.LSN // up to which its layers go
	// Oldest is when the first of the objects that the current manifest doesn't need was written, by the store's clock. Zero: there is none.
	Oldest time.Time
}

// Registry is where the names of manifests are agreed on: Raft.
type Registry interface {
	// Current is what this node knows, which may be old.
	Current(branch uint32, shard placement.Shard) Current
	// Set makes a manifest the current one if old still is, the shard still has the epoch, and no garbage that is as old as its objects was collected; ErrConflict
	// if not.
	Set(ctx context.Context, branch uint32, shard placement.Shard, old Current, next Next) error
	// Collecting announces that objects which were written before then are deleted if no manifest needs them that is current by the end of the call. Later ones may
	// not need them either: Set refuses them.
	Collecting(ctx context.Context, before time.Time) error
	// Sync returns once Current is as new as the call: what is deleted after it must be deleted by what it says.
	Sync(ctx context.Context) error
	// Mine lists the shards that this node uploads: those that it is the first full replica of. Small may be one of them: the leader uploads it in any case.
	Mine(branch uint32) []placement.Shard
	// Leads tells whether this node is the one that writes root objects and deletes.
	Leads() bool
	// Term is a number that no two leaders have in common; the later one's is higher.
	Term() uint64
}
