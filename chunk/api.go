package chunk

import (
	"context"
	"errors"

	"everpage/redo"
	"everpage/wal/pg"
)

// SKELETON: signatures published ahead of their bodies.
var errSkeleton = errors.New("chunk: not built")

// Store is an open version store. Its methods may be called from any goroutine.
type Store struct{}

// Open opens the store in opt.Dir, making it if the directory is empty or absent.
// It fails with ErrLocked (naming the pid) if another process has it open, with ErrFormat if a newer release wrote it.
func Open(opt Options) (*Store, error) { return nil, errSkeleton }

// Close makes everything that was committed durable and closes the store. Writers must be closed before.
func (s *Store) Close() error { return errSkeleton }

// Flush makes everything that was committed durable. With it Progress.Resume of every branch is durable.
func (s *Store) Flush() error { return errSkeleton }

// Branches lists the branches that have progress, in number order.
func (s *Store) Branches() []uint32 { return nil }

// Progress is what the last Commit of the branch said; after Open, what the last table says. ok is false if nothing was ever committed.
func (s *Store) Progress(branch uint32) (p Progress, ok bool) { return Progress{}, false }

// Durable is the Progress that a crash now would leave.
func (s *Store) Durable(branch uint32) (p Progress, ok bool) { return Progress{}, false }

// Wait returns once Progress.Readable of the branch has reached lsn, or with ctx's error, or ErrClosed. The branch may be unknown as yet.
func (s *Store) Wait(ctx context.Context, branch uint32, lsn pg.LSN) error { return errSkeleton }

// DropBranch forgets a branch with all that it holds, durably. It must have no writer.
func (s *Store) DropBranch(branch uint32) error { return errSkeleton }

// Writer opens the branch for writing. A branch has one writer at a time (else ErrBusy). It may start anywhere at or below Progress.Resume
// and must then be fed everything in WAL order.
func (s *Store) Writer(branch uint32) (*Writer, error) { return nil, errSkeleton }

// Writer puts versions into a branch, in WAL order: LSNs never decrease, and all changes of one record stand together. All arguments are copied.
// An error is final for the writer: close it and start another at Progress.Resume.
type Writer struct{}

// Close gives up the branch. What was not committed is not visible, and must be fed again.
func (w *Writer) Close() {}

// Image is a version that is the whole page. The fork grows to hold it.
func (w *Writer) Image(key pg.PageKey, lsn pg.LSN, origin Origin, page pg.Page) error {
	return errSkeleton
}

// Delta is a version that Redoer makes from the one before.
func (w *Writer) Delta(key pg.PageKey, lsn pg.LSN, origin Origin, base Base, delta []byte) error {
	return errSkeleton
}

// Damaged says that the page's content is unknown from lsn on. The fork grows to hold it.
func (w *Writer) Damaged(key pg.PageKey, lsn pg.LSN, origin Origin, reason string) error {
	return errSkeleton
}

// Create makes the fork exist with no block; one that exists is left alone (smgrcreate).
func (w *Writer) Create(fork pg.RelFork, lsn pg.LSN) error { return errSkeleton }

// Extend makes the fork exist with at least so many blocks; new ones are zero. Only the import needs it: growth otherwise follows from page keys.
func (w *Writer) Extend(fork pg.RelFork, lsn pg.LSN, blocks uint32) error { return errSkeleton }

// Truncate cuts the fork to blocks; it never grows it.
func (w *Writer) Truncate(fork pg.RelFork, lsn pg.LSN, blocks uint32) error { return errSkeleton }

// Drop makes the fork absent.
func (w *Writer) Drop(fork pg.RelFork, lsn pg.LSN) error { return errSkeleton }

// CopyDatabase makes directory to what from is just before lsn: every fork with its pages (their page LSNs kept), relation map and PG_VERSION.
// What was in to before is replaced whole.
func (w *Writer) CopyDatabase(from, to redo.DatabaseDir, lsn pg.LSN) error { return errSkeleton }

// DropDatabase drops every fork in the directory, its relation map and PG_VERSION.
func (w *Writer) DropDatabase(dir redo.DatabaseDir, lsn pg.LSN) error { return errSkeleton }

// TruncateSLRU forgets those existing segments of an SLRU for which remove is true. Segments come into being with the first page in them.
func (w *Writer) TruncateSLRU(slru pg.SLRU, lsn pg.LSN, remove func(segment uint32) bool) error {
	return errSkeleton
}

// Meta is a new version of a small object; a nil value deletes it (an empty one does not).
func (w *Writer) Meta(kind redo.MetaKind, id [2]uint32, lsn pg.LSN, value []byte) error {
	return errSkeleton
}

// Transaction enters a commit or an abort into the commit index. start and lsn are the record's start and end.
func (w *Writer) Transaction(end redo.TransactionEnd, start, lsn pg.LSN) error { return errSkeleton }

// RestorePoint enters a named restore point. start and lsn are the record's start and end.
func (w *Writer) RestorePoint(name string, time pg.Timestamp, start, lsn pg.LSN) error {
	return errSkeleton
}

// Commit makes everything up to p.Readable visible. Readable, Resume and Start never go back, Consistent and Unproven stay as first set.
// It blocks while the runs in memory are full, and returns an error that wraps ErrFull if they can't be written.
func (w *Writer) Commit(p Progress) error { return errSkeleton }

// Page reads a page as it is at an LSN into dst, which holds pg.BlockSize bytes.
//
// Errors wrap ErrNotFound (no such fork, or the block is past its end), ErrBelowHorizon, ErrNotYet, ErrNotConsistent, ErrNoBranch, or are a
// *CorruptError or a *DamagedError. dst is undefined after an error.
func (s *Store) Page(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN, dst pg.Page) error {
	return errSkeleton
}

// Size is the number of blocks of a fork at an LSN; ok is false if it doesn't exist then.
func (s *Store) Size(branch uint32, fork pg.RelFork, at pg.LSN) (blocks uint32, ok bool, err error) {
	return 0, false, errSkeleton
}

// Relations calls fn for every fork that exists at an LSN, from the given one on, in order. An error of fn ends the walk and is returned.
func (s *Store) Relations(ctx context.Context, branch uint32, at pg.LSN, from pg.RelFork, fn func(fork pg.RelFork, blocks uint32) error) error {
	return errSkeleton
}

// SLRUSegments calls fn for every segment of an SLRU that exists at an LSN, in order, with the number of pages that its file has.
// Pages are read by Page with pg.SLRUPage; those never written inside that number are zero.
func (s *Store) SLRUSegments(branch uint32, slru pg.SLRU, at pg.LSN, fn func(segment, pages uint32) error) error {
	return errSkeleton
}

// Meta is a small object's value at an LSN and the LSN of that version; ok is false if it doesn't exist then.
func (s *Store) Meta(branch uint32, kind redo.MetaKind, id [2]uint32, at pg.LSN) (value []byte, lsn pg.LSN, ok bool, err error) {
	return nil, 0, false, errSkeleton
}

// MetaAll calls fn for every object of a kind that exists at an LSN, in order of ID.
func (s *Store) MetaAll(branch uint32, kind redo.MetaKind, at pg.LSN, fn func(id [2]uint32, lsn pg.LSN, value []byte) error) error {
	return errSkeleton
}

// Version is one entry of a page's history.
type Version struct {
	LSN    pg.LSN
	Kind   VersionKind
	Origin Origin
	Bytes  int // of content, as stored before compression
	Reason string
}

// VersionKind tells what a version is.
type VersionKind uint8

// The kinds of version. The numbers are part of the store's format.
const (
	KindImage    VersionKind = 1 // the whole page
	KindDelta    VersionKind = 2 // needs the version before
	KindInit     VersionKind = 3 // a delta that starts from zeros
	KindOptional VersionKind = 4 // a delta that is a no-op on a missing page
	KindZeroed   VersionKind = 5 // a delta that makes a missing page of zeros
	KindDamaged  VersionKind = 6 // content unknown
	KindMissing  VersionKind = 7 // an invalid-page reference: a delta for a page that was not there
)

// History calls fn for each version of a page that the store holds, newest first, also for those that a truncation cut off (see Sizes).
func (s *Store) History(ctx context.Context, branch uint32, key pg.PageKey, fn func(v Version) error) error {
	return errSkeleton
}

// SizeVersion is one entry of a fork's size history.
type SizeVersion struct {
	LSN    pg.LSN
	Op     string // grow, create, truncate, drop, copy
	Exists bool
	Blocks uint32
}

// Sizes calls fn for each version of a fork's size, newest first.
func (s *Store) Sizes(ctx context.Context, branch uint32, fork pg.RelFork, fn func(v SizeVersion) error) error {
	return errSkeleton
}

// DamagedPages calls fn for each page that can't be read at an LSN because of an unreplayable record or an invalid reference.
func (s *Store) DamagedPages(ctx context.Context, branch uint32, at pg.LSN, fn func(e *DamagedError) error) error {
	return errSkeleton
}

// Commit is one entry of the commit index: a transaction's end.
type Commit struct {
	redo.TransactionEnd
	Start, End pg.LSN // of the record
}

// RestorePoint is a named restore point.
type RestorePoint struct {
	Name       string
	Time       pg.Timestamp
	Start, End pg.LSN // of the record
}

// FirstCommitAfter is the first commit or abort in WAL order whose time is beyond t (at or beyond, if orEqual). Commit times are not monotonic.
func (s *Store) FirstCommitAfter(branch uint32, t pg.Timestamp, orEqual bool) (c Commit, ok bool, err error) {
	return Commit{}, false, errSkeleton
}

// CommitOfXID is the newest commit or abort of a transaction. Subtransactions are not in the index.
func (s *Store) CommitOfXID(branch uint32, xid pg.TransactionID) (c Commit, ok bool, err error) {
	return Commit{}, false, errSkeleton
}

// RestorePoints lists the restore points of that name in WAL order.
func (s *Store) RestorePoints(branch uint32, name string) ([]RestorePoint, error) {
	return nil, errSkeleton
}

// Neighbours are the last commit or abort that ends at or before lsn and the first one that ends after it; nil where there is none.
func (s *Store) Neighbours(branch uint32, lsn pg.LSN) (before, after *Commit, err error) {
	return nil, nil, errSkeleton
}

// Violation is a broken invariant that Check found.
type Violation struct {
	Branch uint32
	Key    string // what it is about
	LSN    pg.LSN
	Text   string
}

// Check flushes and walks the whole store and reports every broken invariant. Its error is that of the walk itself.
func (s *Store) Check(ctx context.Context, report func(Violation)) error { return errSkeleton }

// Stats is what the store uses.
type Stats struct {
	RunBytes    int64  // of versions in memory, not yet in tables
	FrozenRuns  int    // runs waiting to become tables
	Flushes     uint64 // runs that became tables
	Images      uint64 // images added to bound chains
	DiskBytes   uint64
	Tables      int64
	CacheHits   int64 // of the block cache
	CacheMisses int64
	WriteErr    error // why tables can't be written now, or nil
	ReadAmp     int
	Compacting  int64
	DebtBytes   uint64
}

// Stats tells what the store uses now.
func (s *Store) Stats() Stats { return Stats{} }
