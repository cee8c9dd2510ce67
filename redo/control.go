package redo

import "everpage/wal/pg"

// ControlState is what pg_control says of a cluster at an LSN, as far as WAL changes it. It is exact at every LSN, not only at checkpoints:
// a server started from it must find every counter beyond what the pages use.
type ControlState struct {
	// Group ControlXID: moves with every transaction.
	NextXID        pg.FullTransactionID
	NewestCommitTs pg.TransactionID

	// Group ControlMulti.
	NextMulti       pg.MultiXactID
	NextMultiOffset uint32

	// Group ControlRest.
	NextOid                    pg.Oid
	OldestXID                  pg.TransactionID
	OldestXIDDB                pg.Oid
	OldestMulti                pg.MultiXactID
	OldestMultiDB              pg.Oid
	OldestCommitTs             pg.TransactionID
	Timeline, PrevTimeline     pg.TimelineID
	FullPageWrites             bool
	CheckPointRedo, CheckPoint pg.LSN // of the last checkpoint record: its redo pointer and its own start
	CheckPointTime             int64  // seconds since 1970
	WALLevel                   int32
	WALLogHints                bool
	TrackCommitTimestamp       bool
	MaxConnections             int32
	MaxWorkerProcesses         int32
	MaxWALSenders              int32
	MaxPreparedXacts           int32
	MaxLocksPerXact            int32

	// Fixed by initdb.
	DataChecksums bool
}

// ControlGroup is a part of the control state that is versioned by itself. The numbers are part of the store's key format.
type ControlGroup uint8

// The groups.
const (
	ControlXID   ControlGroup = 0
	ControlMulti ControlGroup = 1
	ControlRest  ControlGroup = 2
)
