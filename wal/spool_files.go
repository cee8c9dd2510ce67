package wal

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

func (s *Spool) path(number uint64) string {
	return s.fs.PathJoin(s.opts.Dir, Segment{Timeline: s.Timeline(), Number: number}.Name(s.opts.SegmentSize))
}

// startSegment makes the next segment's file the tail. All before it is made durable first, so that a crash can tear the last segment only.
// The caller holds appending.
func (s *Spool) startSegment(number uint64) error {
	if s.tail != nil {
		if _, err := s.Sync(); err != nil {
			return err
		}
	}
	if s.Written() == 0 {
		s.syncing.Lock()
		err := s.newChecker()
		if err == nil {
			s.checker.Find(s.opts.SegmentSize.Start(number))
		}
		s.syncing.Unlock()
		if err != nil {
			return err
		}
	}
	path := s.path(number)
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("creating WAL segment %s: %w", path, err)
	}
	made := &spoolFile{File: f, number: number}
	if err := s.reserve(made, 1); err != nil {
		return errors.Join(err, f.Close(), s.fs.Remove(path))
	}
	f.Close()
	if f, err = s.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified); err != nil {
		return fmt.Errorf("opening WAL segment %s: %w", path, err)
	}
	if err := syncDir(s.fs, s.opts.Dir); err != nil {
		f.Close()
		return s.fail(err)
	}
	made.File = f
	s.hold(made, true)
	return nil
}

// reserve takes disk space for a segment's bytes up to an offset, and for those behind it that go with them.
func (s *Spool) reserve(f *spoolFile, to int64) error {
	if to <= f.reserved {
		return nil
	}
	size := int64(s.opts.SegmentSize)
	piece := size
	if s.opts.Reserve > 0 {
		piece = min(s.opts.Reserve, size)
	}
	end := min((to+piece-1)/piece*piece, size)
	if err := f.Preallocate(f.reserved, end-f.reserved); err != nil && !unsupported(err) {
		return fmt.Errorf("reserving %d bytes for WAL segment %s: %w", end-f.reserved, s.path(f.number), err)
	}
	f.reserved = end
	return nil
}

// unsupported tells whether a file system just doesn't know how to preallocate.
func unsupported(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EINVAL)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("opening directory %s: %w", dir, err)
	}
	if err := d.Sync(); err != nil {
		d.Close()
		return fmt.Errorf("fsync of directory %s: %w", dir, err)
	}
	return d.Close()
}

// hold takes in an open file and closes the one least recently read where there are too many.
func (s *Spool) hold(f *spoolFile, tail bool) {
	f.used.Store(s.clock.Add(1))
	s.mu.Lock()
	defer s.mu.Unlock()
	if tail {
		s.tail = f
	}
	if old := s.files[f.number]; old != nil && old != f {
		old.Close()
	}
	s.files[f.number] = f
	for len(s.files) > maxSpoolFiles {
		var oldest *spoolFile
		for _, o := range s.files {
			if o != s.tail && o != f && (oldest == nil || o.used.Load() < oldest.used.Load()) {
				oldest = o
			}
		}
		oldest.Close()
		delete(s.files, oldest.number)
	}
}

// ReadWAL implements Source: bytes up to Written can be read while others are appended. Any number of goroutines may call it.
func (s *Spool) ReadWAL(p []byte, at pg.LSN) (int, error) { return s.readUpTo(p, at, s.Written()) }

// DurableWAL shows the spool up to Durable only: whole records that are checked, fsynced and will be found again after a crash. Who keeps what it made
// of WAL must read this, or hold it back until the spool is durable as far, so as never to be ahead of its own log. WaitDurable tells of more.
func (s *Spool) DurableWAL() Source { return durableSource{s} }

type durableSource struct{ s *Spool }

func (d durableSource) ReadWAL(p []byte, at pg.LSN) (int, error) {
	return d.s.readUpTo(p, at, d.s.Durable())
}

func (s *Spool) readUpTo(p []byte, at, end pg.LSN) (int, error) {
	size := s.opts.SegmentSize
	number, offset := size.Number(at), size.Offset(at)
	for {
		s.mu.RLock()
		if err := s.failed; err != nil {
			s.mu.RUnlock()
			return 0, err
		}
		if first := pg.LSN(s.first.Load()); end != 0 && at < first {
			s.mu.RUnlock()
			return 0, &TrimmedError{LSN: at, First: first}
		}
		if at >= end {
			s.mu.RUnlock()
			return 0, ErrMore
		}
		f := s.files[number]
		if f == nil {
			s.mu.RUnlock()
			if err := s.openForReading(number); err != nil {
				return 0, err
			}
			continue
		}
		p = p[:min(uint64(len(p)), uint64(end-at), uint64(uint32(size)-offset))]
		f.used.Store(s.clock.Add(1))
		n, err := f.ReadAt(p, int64(offset))
		s.mu.RUnlock()
		if n > 0 {
			return n, nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, fmt.Errorf("reading WAL at %s from %s: %w", at, s.path(number), err)
	}
}

func (s *Spool) openForReading(number uint64) error {
	f, err := s.fs.Open(s.path(number))
	if err != nil {
		if first := pg.LSN(s.first.Load()); s.opts.SegmentSize.Start(number) < first {
			return &TrimmedError{LSN: s.opts.SegmentSize.Start(number), First: first}
		}
		return fmt.Errorf("opening WAL segment: %w", err)
	}
	s.hold(&spoolFile{File: f, number: number}, false)
	return nil
}

// LastPage is the page that holds the end of the durable WAL, from its start up to that end: what a server that claims to go on
// from here must have too. It is nil if nothing is durable yet.
func (s *Spool) LastPage() (at pg.LSN, page []byte, err error) {
	end := s.Durable()
	if end == 0 || end == s.First() {
		return 0, nil, s.Err()
	}
	at = (end - 1) &^ (pg.BlockSize - 1)
	page = make([]byte, end-at)
	for n := 0; n < len(page); {
		m, err := s.readUpTo(page[n:], at+pg.LSN(n), end)
		if err != nil {
			return 0, nil, err
		}
		n += m
	}
	return at, page, nil
}

// Trim removes the segments that end at or before LSN before, oldest first, and returns how many. What is durable last always stays.
func (s *Spool) Trim(before pg.LSN) (int, error) {
	if err := s.Err(); err != nil {
		return 0, err
	}
	size := s.opts.SegmentSize
	// The segment where the durable WAL ends, and the one before if that end is a boundary, bear the last page.
	keep := size.Floor(max(s.Durable(), 1) - 1)
	limit := min(size.Floor(before), keep)
	removed := 0
	for {
		s.mu.Lock()
		first := pg.LSN(s.first.Load())
		if first >= limit {
			s.mu.Unlock()
			break
		}
		number := size.Number(first)
		s.first.Store(uint64(first) + uint64(size))
		if f := s.files[number]; f != nil {
			f.Close()
			delete(s.files, number)
		}
		s.mu.Unlock()
		if err := s.fs.Remove(s.path(number)); err != nil {
			return removed, fmt.Errorf("trimming the spool: %w", err)
		}
		removed++
	}
	if removed == 0 {
		return 0, nil
	}
	if err := syncDir(s.fs, s.opts.Dir); err != nil {
		return removed, s.fail(err)
	}
	return removed, nil
}

// Close ends all waits and closes the files. It does not sync: what was not acknowledged may be lost.
func (s *Spool) Close() error {
	_ = s.fail(ErrSpoolClosed)
	s.appending.Lock()
	defer s.appending.Unlock()
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for n, f := range s.files {
		errs = append(errs, f.Close())
		delete(s.files, n)
	}
	s.tail = nil
	return errors.Join(errs...)
}
