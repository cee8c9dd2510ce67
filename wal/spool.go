package wal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

// SpoolOptions describe a spool. All but FS, From, Reserve, AtLeast and History.Parents must be given.
type SpoolOptions struct {
	FS          vfs.FS // nil: the disk
	Dir         string // made if absent; spools of other timelines may share it
	SegmentSize SegmentSize
	Major       pg.Major
	SystemID    uint64
	History     History // the spool's own timeline and its descent: every page must be of the timeline that this has there

	From    pg.LSN // record boundary from which the WAL held is checked when the spool is opened. 0: all of it
	Reserve int64  // bytes of a segment whose disk space is taken together, before they are written. 0: all of the segment
	AtLeast pg.LSN // an end that the spool must still have, or opening fails: up to there its WAL was relied on
}

// Spool is a node's own WAL of one timeline: segment files that are fsynced before anything is acknowledged, with the server's own names
// and contents. One goroutine may Append while others read, Sync and Trim.
//
// What Sync has returned is found again after any crash. To that end each segment is fsynced before the next is created, so only the
// last one can be torn; opening cuts the WAL behind the last record that is complete, with nothing behind it trusted. An fsync that fails poisons the
// spool: every later call fails, because what the kernel still holds of the file is unknown.
type Spool struct {
	opts SpoolOptions
	fs   vfs.FS

	appending sync.Mutex // one Append at a time
	syncing   sync.Mutex // one Sync at a time; taken behind appending
	checker   *Reader    // verifies what was fsynced; under syncing, nil while empty

	first   atomic.Uint64 // start of the oldest segment held
	written atomic.Uint64 // end of the bytes appended, 0: empty
	synced  atomic.Uint64 // end of the bytes fsynced
	durable atomic.Uint64 // end of the last complete record of these

	mu     sync.RWMutex // the fields below; held for reading while a file is read
	files  map[uint64]*spoolFile
	tail   *spoolFile // segment being written
	clock  atomic.Int64
	failed error // why every call fails: poisoned or closed

	waiting sync.Mutex
	grown   chan struct{} // closed at the next change; nil while nobody waits
}

// spoolFile is a segment file held open.
type spoolFile struct {
	vfs.File
	number   uint64
	used     atomic.Int64
	reserved int64 // so much of it has disk space. For who appends
}

// maxSpoolFiles bounds the segment files held open for reading.
const maxSpoolFiles = 16

// TrimmedError says that WAL asked for is older than what a spool still has.
type TrimmedError struct {
	LSN   pg.LSN
	First pg.LSN // start of what is left
}

func (e *TrimmedError) Error() string {
	return fmt.Sprintf("WAL at %s was trimmed from the spool, which starts at %s", e.LSN, e.First)
}

// GapError says that WAL was offered which doesn't join what a spool has.
type GapError struct {
	Want pg.LSN // 0: the start of any segment
	Got  pg.LSN
}

func (e *GapError) Error() string {
	if e.Want == 0 {
		return fmt.Sprintf("WAL offered to an empty spool starts at %s, not at the start of a segment", e.Got)
	}
	return fmt.Sprintf("WAL offered to the spool starts at %s, but is held up to %s only", e.Got, e.Want)
}

// DivergedError says that WAL was offered which differs from the same WAL held already: the sender's history is another one.
type DivergedError struct{ LSN pg.LSN }

func (e *DivergedError) Error() string {
	return fmt.Sprintf("WAL offered to the spool differs at %s from what was received before", e.LSN)
}

// ErrSpoolClosed is what calls of a closed spool return.
var ErrSpoolClosed = errors.New("the WAL spool is closed")

// Timeline is the spool's own timeline.
func (s *Spool) Timeline() pg.TimelineID { return s.opts.History.Timeline }

// SegmentSize is the size of its segments.
func (s *Spool) SegmentSize() SegmentSize { return s.opts.SegmentSize }

// First is the start of the WAL held, 0 if there is none.
func (s *Spool) First() pg.LSN {
	if s.Written() == 0 {
		return 0
	}
	return pg.LSN(s.first.Load())
}

// Written is the end of the bytes appended, 0 if there are none. They may end inside a record and may not survive a crash.
func (s *Spool) Written() pg.LSN { return pg.LSN(s.written.Load()) }

// Durable is the end of the last record that is complete, valid and fsynced, or the spool's start if there is none yet; 0 if the spool is
// empty. It never moves back, not even over a crash, and is what may be acknowledged.
func (s *Spool) Durable() pg.LSN { return pg.LSN(s.durable.Load()) }

// Err is why every call fails, nil while they don't.
func (s *Spool) Err() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.failed
}

// fail makes every later call return err. The first reason stays.
func (s *Spool) fail(err error) error {
	s.mu.Lock()
	if s.failed == nil {
		s.failed = err
	}
	err = s.failed
	s.mu.Unlock()
	s.announce()
	return err
}

// Append adds the WAL p that starts at LSN at. Bytes held already must be the same (*DivergedError); a gap is refused (*GapError). The first bytes
// of an empty spool must start a segment. On any other error, such as a full disk, nothing more is held than Written says, and the call can be repeated from there.
func (s *Spool) Append(at pg.LSN, p []byte) error {
	s.appending.Lock()
	defer s.appending.Unlock()
	if err := s.Err(); err != nil {
		return err
	}
	end := s.Written()
	if end == 0 && s.opts.SegmentSize.Offset(at) != 0 {
		return &GapError{Got: at}
	}
	if end != 0 && at > end {
		return &GapError{Want: end, Got: at}
	}
	if end != 0 && at < end {
		n := min(int(end-at), len(p))
		if err := s.compare(at, p[:n]); err != nil {
			return err
		}
		at, p = at+pg.LSN(n), p[n:]
	}
	for len(p) > 0 {
		n, err := s.write(at, p)
		if err != nil {
			return err
		}
		at, p = at+pg.LSN(n), p[n:]
	}
	return nil
}

// compare holds p against the same bytes in the spool.
func (s *Spool) compare(at pg.LSN, p []byte) error {
	var b [pg.BlockSize]byte
	for len(p) > 0 {
		n, err := s.ReadWAL(b[:min(len(p), len(b))], at)
		if err != nil {
			return fmt.Errorf("comparing WAL received again: %w", err)
		}
		for i := range n {
			if b[i] != p[i] {
				return &DivergedError{LSN: at + pg.LSN(i)}
			}
		}
		at, p = at+pg.LSN(n), p[n:]
	}
	return nil
}

// write writes the part of p that lies in the segment of at, which is the end of what is held, and makes it readable.
func (s *Spool) write(at pg.LSN, p []byte) (int, error) {
	size := s.opts.SegmentSize
	number, offset := size.Number(at), size.Offset(at)
	if s.tail == nil || s.tail.number != number {
		if err := s.startSegment(number); err != nil {
			return 0, err
		}
	}
	p = p[:min(len(p), int(uint32(size)-offset))]
	if err := s.reserve(s.tail, int64(offset)+int64(len(p))); err != nil {
		return 0, err
	}
	n, err := s.tail.WriteAt(p, int64(offset))
	if err == nil && n != len(p) {
		err = fmt.Errorf("%d of %d bytes written", n, len(p))
	}
	if err != nil {
		return 0, fmt.Errorf("writing WAL at %s to the spool in %s: %w", at, s.opts.Dir, err)
	}
	if s.Written() == 0 {
		s.first.Store(uint64(at))
		s.durable.Store(uint64(at))
		s.synced.Store(uint64(at))
	}
	s.written.Store(uint64(at) + uint64(n))
	s.announce()
	return n, nil
}

// Sync makes what is written durable and checks it: it returns the new Durable. Invalid WAL is an error that poisons the spool, as a failed
// fsync does, since it was received but must never be acknowledged.
func (s *Spool) Sync() (pg.LSN, error) {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if err := s.Err(); err != nil {
		return 0, err
	}
	end := s.Written()
	if end == 0 {
		return 0, nil
	}
	if end > pg.LSN(s.synced.Load()) {
		s.mu.RLock()
		tail := s.tail // holds all that is not fsynced: startSegment has synced what came before
		s.mu.RUnlock()
		if err := tail.SyncData(); err != nil {
			return 0, s.fail(fmt.Errorf("fsync of WAL up to %s in %s failed, nothing more can be acknowledged until the node restarts: %w", end, s.opts.Dir, err))
		}
		s.synced.Store(uint64(end))
	}
	if err := s.verify(); err != nil {
		return 0, s.fail(err)
	}
	s.announce()
	return s.Durable(), nil
}

// verify decodes the records that were fsynced and moves Durable behind the last complete one.
func (s *Spool) verify() error {
	for {
		rec, err := s.checker.Next()
		if errors.Is(err, ErrMore) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("checking received WAL in %s: %w", s.opts.Dir, err)
		}
		s.durable.Store(uint64(rec.End))
	}
}

// syncedSource shows the checker what was fsynced.
type syncedSource struct{ s *Spool }

func (c syncedSource) ReadWAL(p []byte, at pg.LSN) (int, error) {
	return c.s.readUpTo(p, at, pg.LSN(c.s.synced.Load()))
}

// newChecker makes the reader that verifies what is appended, still to be positioned.
func (s *Spool) newChecker() error {
	history := s.opts.History
	var err error
	s.checker, err = NewReader(syncedSource{s}, ReaderOptions{
		SegmentSize: s.opts.SegmentSize, Major: s.opts.Major, SystemID: s.opts.SystemID, History: &history, Growing: true,
	})
	return err
}

// announce wakes those who wait.
func (s *Spool) announce() {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	if s.grown != nil {
		close(s.grown)
		s.grown = nil
	}
}

// WaitWritten waits until WAL behind LSN at is written. It ends with an error when ctx does, or when the spool is poisoned or closed.
func (s *Spool) WaitWritten(ctx context.Context, at pg.LSN) error { return s.wait(ctx, at, &s.written) }

// WaitDurable waits until Durable is behind LSN at.
func (s *Spool) WaitDurable(ctx context.Context, at pg.LSN) error { return s.wait(ctx, at, &s.durable) }

func (s *Spool) wait(ctx context.Context, at pg.LSN, mark *atomic.Uint64) error {
	for {
		s.waiting.Lock()
		if s.grown == nil {
			s.grown = make(chan struct{})
		}
		grown := s.grown
		s.waiting.Unlock()
		if err := s.Err(); err != nil {
			return err
		}
		if pg.LSN(mark.Load()) > at {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-grown:
		}
	}
}
