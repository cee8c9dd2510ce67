package chunk

import (
	"log/slog"

	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

// Options say where a store lives and how much it may use. The zero value of a field is the default that its comment names.
type Options struct {
	Dir    string
	FS     vfs.FS // vfs.Default
	Redoer Redoer // how deltas are applied; required
	Logger *slog.Logger

	CacheBytes     int64  // of Pebble's block cache; 80 MiB
	RunBytes       int64  // size at which a run in memory is frozen and becomes a table; 32 MiB. Up to 3 runs exist at a time
	PageCacheBytes int64  // of pages as they were read, kept for the next read; 48 MiB, negative for none
	DepthBytes     int64  // of the table that knows how many deltas lie over a page's last image; 16 MiB
	ReserveBytes   int64  // of disk space kept back for the database's own needs when the disk is full; 32 MiB, negative for none
	DiskBytes      int64  // that the directory is to fit into: compactions, which take space beside what they replace, are kept small enough for it. 0: they are not
	QueueBytes     int64  // of tables that are kept for the backup until Release; the oldest are given up beyond that. 0: none are kept
	SegmentBlocks  uint32 // blocks in one chunk of a relation fork; pg.SegmentBlocks. A store keeps the number that it was made with
	Shards         uint32 // that chunks hash into; placement.DefaultShards, at most MaxShards. A store keeps the number that it was made with
	MaxChain       int    // deltas over an image before another image is added; 400, whose redo takes about 30 µs. Shorter chains make ingest slower, which pays for each image with a read
	MaxChainBytes  int    // bytes of deltas over an image before another image is added; 32 KiB
	// Checksum computes pd_checksum for the pages of branches whose Progress says DataChecksums (pg.Checksum). nil: a read of such a branch fails.
	Checksum func(page pg.Page, block pg.BlockNumber) uint16
	// Fatal is called where the database can't go on, as when its manifest can't be written; it must end the process. What was committed is
	// fed again after the next Open. nil: panic.
	Fatal func(msg string)

	testCompression *block.CompressionProfile
	testBlockSize   int
	testBatch       int // versions in a writer's full batch
	testForward     func(b *branchState, key pg.PageKey, lsn pg.LSN, page pg.Page)
}

// Redoer changes page, which holds the version before, into the version that delta makes, and sets its LSN.
//
// init tells that page is all zero and that delta starts from that. Otherwise page is never new (its pd_upper is not 0), unless key is an SLRU page.
// A delta whose LSN is not beyond the page's own is left out, where the kind of change respects page LSNs; changed is false then.
// page's content is undefined after an error.
type Redoer interface {
	Redo(page pg.Page, key pg.PageKey, lsn pg.LSN, init bool, delta []byte) (changed bool, err error)
}

// Origin names the WAL record that made a version, for a page's history.
type Origin struct {
	Rmgr uint8
	Info uint8
}

// Base says what a delta needs under it.
type Base uint8

// What a delta may need.
const (
	// BaseRequired: the page must exist and not be new. If it doesn't, the delta is an invalid-page reference (log_invalid_page): the fork does not
	// grow, and the page is damaged until an image or an initialising delta replaces it, or a truncation or drop takes it away.
	BaseRequired Base = iota
	// BaseInit: the delta starts from a page of zeros whatever was there (WILL_INIT). The fork grows to hold it.
	BaseInit
	// BaseOptional: on a missing or new page the delta is a no-op.
	BaseOptional
	// BaseZeroed: a missing page is made of zeros, and the fork grows to hold it (RBM_ZERO_ON_ERROR). Redoer gets init for a new page.
	// Every delta of an SLRU page that is not BaseInit behaves like this, except that Redoer gets no init.
	BaseZeroed
)

// Progress is where a branch stands. It becomes durable together with the data that it covers.
type Progress struct {
	Start      pg.LSN // where the base import's pages lie: the backup's start (redo) LSN
	Consistent pg.LSN // the backup's end: reads below are refused. 0: not reached yet, every read is refused
	Readable   pg.LSN // all WAL up to here was received and every record ending at or before it is in the store
	Resume     pg.LSN // where the WAL reader must start again after a crash: the start of the first record not wholly in the store

	// Parent and Fork, where Fork is not 0: at and below Fork the branch is what its parent is. See Store.Fork.
	Parent uint32 `json:",omitempty"`
	Fork   pg.LSN `json:",omitempty"`

	// Horizon is the first LSN that is answered where versions were collected, 0 if none were; Pins are LSNs below it that are answered all the same.
	// See Store.Collect.
	Horizon pg.LSN   `json:",omitempty"`
	Pins    []pg.LSN `json:",omitempty"`

	// Copied is the Resume with which the branch came from another store (Store.ImportSmall): nothing of its WAL before that was relied on here. 0: it did not.
	Copied pg.LSN `json:",omitempty"`

	Timeline      pg.TimelineID
	DataChecksums bool // pages are read with pd_checksum set

	// Unproven is the LSN from which on nobody knows all that the WAL changed, and why; 0 if none.
	Unproven       pg.LSN
	UnprovenReason string

	// Note is the writer's own: it comes back from Progress as it was committed.
	Note []byte
}
