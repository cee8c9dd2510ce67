package wal

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

// OpenSpool opens a timeline's spool, empty or as a crash left it: it finds the last complete record behind opts.From, cuts off what is behind, and fails where
// WAL that was durable is missing or damaged.
func OpenSpool(opts SpoolOptions) (*Spool, error) {
	if opts.FS == nil {
		opts.FS = vfs.Default
	}
	switch {
	case !opts.SegmentSize.Valid():
		return nil, fmt.Errorf("WAL segment size %d is not a power of 2 from 1 MB to 1 GB", opts.SegmentSize)
	case opts.Major.PageMagic() == 0:
		return nil, fmt.Errorf("PostgreSQL %d is not supported: want %d to %d", opts.Major, pg.MajorFirst, pg.MajorLast)
	case opts.SystemID == 0 || opts.Dir == "":
		return nil, errors.New("a spool needs a directory and a system identifier")
	}
	if err := opts.History.Check(); err != nil {
		return nil, err
	}
	s := &Spool{opts: opts, fs: opts.FS, files: make(map[uint64]*spoolFile)}
	if err := s.makeDir(); err != nil {
		return nil, err
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the spool in %s: %w", opts.Dir, err), s.closeFiles())
	}
	return s, nil
}

// makeDir makes the directory and fsyncs those that name it, so that it survives a crash as its files do. The one above is fsynced in any case:
// whoever made the directory may have been killed before.
func (s *Spool) makeDir() error {
	parents := []string{s.fs.PathDir(s.opts.Dir)}
	for dir := s.opts.Dir; ; {
		if _, err := s.fs.Stat(dir); err == nil {
			break
		}
		parent := s.fs.PathDir(dir)
		if parent == dir {
			break
		}
		if dir != s.opts.Dir {
			parents = append(parents, parent)
		}
		dir = parent
	}
	if err := s.fs.MkdirAll(s.opts.Dir, 0o700); err != nil {
		return fmt.Errorf("making spool directory: %w", err)
	}
	for _, dir := range parents {
		if err := syncDir(s.fs, dir); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spool) closeFiles() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// recover finds what the spool holds.
func (s *Spool) recover() error {
	numbers, stale, err := s.run()
	if err != nil {
		return err
	}
	if err := s.removeSegments(stale); err != nil {
		return err
	}
	end, prev := pg.LSN(0), pg.LSN(0)
	if len(numbers) > 0 {
		if err := s.rewrite(numbers[len(numbers)-1]); err != nil {
			return err
		}
		if end, prev, err = s.findEnd(numbers); err != nil {
			return err
		}
	} else if s.opts.From != 0 {
		return &CorruptError{LSN: s.opts.From, Reason: "the spool is empty, but its WAL was known up to here"}
	}
	if end < s.opts.AtLeast {
		return &CorruptError{LSN: end, Reason: fmt.Sprintf("the spool's WAL ends here, but was relied on up to %s", s.opts.AtLeast)}
	}
	if end == 0 {
		// Not one whole record: nothing was acknowledged, so nothing is lost.
		return s.removeSegments(numbers)
	}
	// The segment that holds the last byte is there: findEnd has read it.
	keep, _ := slices.BinarySearch(numbers, s.opts.SegmentSize.Number(end-1)+1)
	if err := s.cut(numbers[keep-1], end); err != nil {
		return err
	}
	if err := s.removeSegments(numbers[keep:]); err != nil {
		return err
	}
	s.first.Store(uint64(s.opts.SegmentSize.Start(numbers[0])))
	s.written.Store(uint64(end))
	s.synced.Store(uint64(end))
	s.durable.Store(uint64(end))
	if err := s.newChecker(); err != nil {
		return err
	}
	s.checker.Seek(end)
	s.checker.prev = prev
	return nil
}

// rewrite writes a segment's bytes again as they are and fsyncs them, before anything in it is trusted. After an fsync that failed the kernel may take
// the bytes for written: they are read well, the next fsync has nothing to do and succeeds, and a power loss takes them away. Only the last segment
// can be so, as each was fsynced before the next was made.
func (s *Spool) rewrite(number uint64) (err error) {
	path := s.path(number)
	f, err := s.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("opening WAL segment: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	for at := int64(0); at < info.Size(); {
		b := buf[:min(int64(len(buf)), info.Size()-at)]
		if n, err := f.ReadAt(b, at); n < len(b) {
			return fmt.Errorf("reading WAL segment %s at %d: %w", path, at, err)
		}
		if _, err := f.WriteAt(b, at); err != nil {
			return fmt.Errorf("writing WAL segment %s again: %w", path, err)
		}
		at += int64(len(b))
	}
	if err := f.SyncData(); err != nil {
		return fmt.Errorf("fsync of %s: %w", path, err)
	}
	return syncDir(s.fs, s.opts.Dir)
}

// run lists the spool's segments, which must join. Where From is given, those before a gap below it are stale: an interrupted Trim leaves them.
func (s *Spool) run() (numbers, stale []uint64, err error) {
	names, err := s.fs.List(s.opts.Dir)
	if err != nil {
		return nil, nil, fmt.Errorf("listing segments: %w", err)
	}
	for _, name := range names {
		if !isSegmentName(name) {
			continue
		}
		g, err := ParseSegmentName(name, s.opts.SegmentSize)
		if err != nil {
			return nil, nil, err
		}
		if g.Timeline == s.Timeline() {
			numbers = append(numbers, g.Number)
		}
	}
	slices.Sort(numbers)
	for i := len(numbers) - 1; i > 0; i-- {
		if numbers[i] == numbers[i-1]+1 {
			continue
		}
		if s.opts.From < s.opts.SegmentSize.Start(numbers[i]) {
			return nil, nil, &CorruptError{LSN: s.opts.SegmentSize.Start(numbers[i-1] + 1), Reason: fmt.Sprintf("segment file %s is missing", s.path(numbers[i-1]+1))}
		}
		return numbers[i:], numbers[:i], nil
	}
	return numbers, nil, nil
}

// findEnd decodes all records from the known boundary on. prev is the start of the last one, 0 if there is none; end is then the boundary.
func (s *Spool) findEnd(numbers []uint64) (end, prev pg.LSN, err error) {
	first := s.opts.SegmentSize.Start(numbers[0])
	if s.opts.From != 0 && s.opts.From < first {
		return 0, 0, &TrimmedError{LSN: s.opts.From, First: first}
	}
	src := &recoverySource{s: s, numbers: numbers}
	history := s.opts.History
	r, err := NewReader(src, ReaderOptions{SegmentSize: s.opts.SegmentSize, Major: s.opts.Major, SystemID: s.opts.SystemID, History: &history})
	if err != nil {
		return 0, 0, err
	}
	defer src.close()
	if s.opts.From != 0 {
		// The byte before the boundary must be there. That it is valid is what giving From says.
		var last [1]byte
		if _, err := src.ReadWAL(last[:], s.opts.From-1); err != nil {
			return 0, 0, &CorruptError{LSN: s.opts.From, Reason: fmt.Sprintf("the spool's WAL was known up to here, but ends before: %v", err)}
		}
		r.Seek(s.opts.From)
	} else {
		r.Find(first)
	}
	end = s.opts.From
	for {
		rec, err := r.Next()
		if IsEnd(err) {
			return end, prev, nil
		}
		if err != nil {
			return 0, 0, err
		}
		end, prev = rec.End, rec.Start
	}
}

// cut makes the WAL end at end, in segment number: what the file holds behind it becomes zeros.
func (s *Spool) cut(number uint64, end pg.LSN) error {
	path := s.path(number)
	f, err := s.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("opening WAL segment: %w", err)
	}
	s.hold(&spoolFile{File: f, number: number}, true)
	info, err := f.Stat()
	if err != nil {
		return err
	}
	zeros := make([]byte, 64<<10)
	at := int64(end - s.opts.SegmentSize.Start(number))
	for at < info.Size() {
		n := min(int64(len(zeros)), info.Size()-at)
		if _, err := f.WriteAt(zeros[:n], at); err != nil {
			return fmt.Errorf("clearing the torn end of %s: %w", path, err)
		}
		at += n
	}
	if err := f.SyncData(); err != nil {
		return fmt.Errorf("fsync of %s: %w", path, err)
	}
	return nil
}

func (s *Spool) removeSegments(numbers []uint64) error {
	if len(numbers) == 0 {
		return nil
	}
	for _, n := range slices.Backward(numbers) { // newest first, so that what is left joins
		if err := s.fs.Remove(s.path(n)); err != nil {
			return fmt.Errorf("removing a segment behind the end: %w", err)
		}
	}
	return syncDir(s.fs, s.opts.Dir)
}

// recoverySource reads whatever the files of a spool hold, valid or not.
type recoverySource struct {
	s       *Spool
	numbers []uint64
	open    vfs.File
	number  uint64
}

func (c *recoverySource) close() {
	if c.open != nil {
		c.open.Close()
		c.open = nil
	}
}

func (c *recoverySource) ReadWAL(p []byte, at pg.LSN) (int, error) {
	number := c.s.opts.SegmentSize.Number(at)
	if c.open == nil || c.number != number {
		c.close()
		if _, ok := slices.BinarySearch(c.numbers, number); !ok {
			return 0, &EndError{LSN: at, Reason: "the spool has no segment there"}
		}
		f, err := c.s.fs.Open(c.s.path(number))
		if err != nil {
			return 0, fmt.Errorf("opening WAL segment: %w", err)
		}
		c.open, c.number = f, number
	}
	offset := c.s.opts.SegmentSize.Offset(at)
	p = p[:min(len(p), int(uint32(c.s.opts.SegmentSize)-offset))]
	n, err := c.open.ReadAt(p, int64(offset))
	switch {
	case n > 0:
		return n, nil
	case errors.Is(err, io.EOF):
		return 0, &EndError{LSN: at, Reason: "the segment file ends"}
	}
	return 0, fmt.Errorf("reading WAL at %s from %s: %w", at, c.s.path(number), err)
}

// WALFollows implements Follower: a segment was created only when all before it was durable, so what is invalid before the last one is damage.
// The last one's own tail may be torn in any way.
func (c *recoverySource) WALFollows(after pg.LSN) (pg.LSN, bool, error) {
	last := c.s.opts.SegmentSize.Start(c.numbers[len(c.numbers)-1])
	return last, after < last, nil
}
