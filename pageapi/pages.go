// Package pageapi serves pages at any LSN over gRPC, and has the client that routes each page to a node that keeps it.
package pageapi

import (
	"context"
	"time"

	"everpage/cluster/placement"
	"everpage/pageapi/datadir"
	"everpage/wal/pg"
)

// Position is a branch and an LSN on it. Branch 0 is main, LSN 0 the newest readable one.
type Position struct {
	Branch uint32
	LSN    pg.LSN
	// Main tells that main is meant, and Branch is what the client takes it to be. A node that knows main to be another branch there by now refuses with
	// MainMoved, and one that has not heard of Branch yet waits until it has.
	Main bool
}

// Pages is what a server answers from. Its errors carry codes (Errorf).
type Pages interface {
	// Position waits until the LSN is answerable, at most for wait; the error then names the link that is behind.
	// The returned position has both fields set, and may be read as often as wanted.
	Position(ctx context.Context, at Position, wait time.Duration) (Position, error)
	// Page reads one page into dst, 8192 bytes.
	Page(ctx context.Context, at Position, key pg.PageKey, dst []byte) error
	// Size is the number of blocks of a fork.
	Size(ctx context.Context, at Position, fork pg.RelFork) (pg.BlockNumber, error)
	// Relations calls fn for every fork that exists, in key order.
	Relations(ctx context.Context, at Position, fn func(pg.RelFork, pg.BlockNumber) error) error
	// SLRUSegments lists the existing segments of an SLRU.
	SLRUSegments(ctx context.Context, at Position, slru pg.SLRU) ([]SLRUSegment, error)
	// SLRUSegment is the content of one segment, as long as its file would be.
	SLRUSegment(ctx context.Context, at Position, slru pg.SLRU, segment uint32) ([]byte, error)
	// History calls fn for the versions of a page at or below the position, newest first.
	History(ctx context.Context, at Position, key pg.PageKey, fn func(Version) error) error
	// State is all that is not a page.
	State(ctx context.Context, at Position) (*ClusterState, error)
	// Resolve turns a target into an LSN.
	Resolve(ctx context.Context, t Target) (*Resolution, error)
	// Map is the newest shard map.
	Map() *placement.Map
	// Main is the number of the branch that main is, as far as this node has heard; 0 if there is none yet.
	Main() uint32
	// Readable is the newest LSN that can be read of a branch (0: main); 0 if none.
	Readable(branch uint32) pg.LSN
}

// Leases pins LSNs against garbage collection.
type Leases interface {
	// Lease makes a lease, renews one (l.ID is not 0), or ends one (d is 0). The answer has the id, and when it expires.
	Lease(ctx context.Context, l Lease, d time.Duration) (Lease, error)
}

// Lease keeps an LSN of a branch readable until it expires.
type Lease struct {
	ID      uint64
	Pos     Position
	Holder  string // told to people who ask what holds history back
	Expires time.Time
}

// SLRUSegment is one existing segment and the number of pages that its file has.
type SLRUSegment struct {
	Number uint32
	Pages  uint32
}

// Version is one stored version of a page.
type Version struct {
	LSN    pg.LSN `json:"lsn"`
	Kind   string `json:"kind"`   // image, init, delta, damaged
	Record string `json:"record"` // resource manager and record type, or "import"
	Bytes  int    `json:"bytes"`
}

// ClusterState is all that a data directory needs beside pages.
type ClusterState struct {
	Branch          uint32 // that the LSN is of; set by the server
	LSN             pg.LSN
	Cluster         datadir.Cluster
	Damage          []Damage // at most a few hundred, else the first
	TimelineHistory []byte   // the .history file of the LSN's timeline, empty for 1
}

// Damage is a page that can't be read.
type Damage struct {
	Key    pg.PageKey
	Since  pg.LSN
	Reason string
}

// Target names a point in a branch's history: one of LSN, Time, XID and Name, or none of them for the newest readable LSN.
type Target struct {
	Branch uint32
	LSN    pg.LSN
	Time   *pg.Timestamp
	XID    *pg.TransactionID
	Name   string
	Before bool // leave the target itself out
}

// Resolution is a target's LSN.
type Resolution struct {
	LSN    pg.LSN        `json:"lsn"`
	Note   string        `json:"note,omitempty"` // that the target was clamped, for example
	Around []CommitEntry `json:"around"`
	// Branch is the number of the branch that the LSN is of. Main moves when the primary fails over: whoever reads more than once asks for the number.
	Branch uint32 `json:"branch,omitempty"`
}

// CommitEntry is a commit, an abort or a restore point.
type CommitEntry struct {
	Start pg.LSN           `json:"start"`
	End   pg.LSN           `json:"end"`
	Kind  string           `json:"kind"`
	XID   pg.TransactionID `json:"xid,omitempty"`
	Time  pg.Timestamp     `json:"time"`
	Name  string           `json:"name,omitempty"`
}
