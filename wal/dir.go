package wal

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"everpage/wal/pg"
)

// Dir is a Source over a directory of finished segment files, such as pg_wal or an archive. It holds one file open at a time and is not
// safe for concurrent use. Close it.
type Dir struct {
	path    string
	size    SegmentSize
	history History
	files   map[uint64]string // path by segment number

	open   *os.File
	number uint64
	length int64
}

// ListDir reads which segments and histories a directory holds. Other files are left out; a file whose name is that of no segment of this size is
// an error, as is a segment file longer than that.
func ListDir(path string, size SegmentSize) (segments []Segment, histories []pg.TimelineID, err error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, nil, fmt.Errorf("listing WAL segments: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		if tli, err := ParseHistoryName(name); err == nil {
			histories = append(histories, tli)
			continue
		}
		if !isSegmentName(strings.TrimSuffix(name, ".partial")) {
			continue
		}
		g, err := ParseSegmentName(name, size)
		if err != nil {
			return nil, nil, fmt.Errorf("directory %s: %w", path, err)
		}
		info, err := e.Info()
		if err != nil {
			return nil, nil, fmt.Errorf("listing WAL segments: %w", err)
		}
		if !info.Mode().IsRegular() || info.Size() > int64(size) {
			return nil, nil, fmt.Errorf("%s is no regular file of at most %d bytes, as a WAL segment must be", filepath.Join(path, name), size)
		}
		segments = append(segments, g)
	}
	slices.SortFunc(segments, func(a, b Segment) int { return cmp.Or(cmp.Compare(a.Number, b.Number), compareAt(a, b)) })
	return segments, histories, nil
}

// compareAt orders files of one segment number by preference: newest timeline first, whole files before .partial ones.
func compareAt(a, b Segment) int {
	partial := func(g Segment) int {
		if g.Partial {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(b.Timeline, a.Timeline), cmp.Compare(partial(a), partial(b)))
}

// DetectSegmentSize finds a directory's segment size in the first header of any of its segments that bears one.
func DetectSegmentSize(path string) (SegmentSize, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return 0, fmt.Errorf("listing WAL segments: %w", err)
	}
	err = fmt.Errorf("directory %s holds no WAL segments", path)
	for _, e := range entries {
		if !isSegmentName(strings.TrimSuffix(e.Name(), ".partial")) {
			continue
		}
		h, herr := ReadSegmentHeader(filepath.Join(path, e.Name()))
		if herr == nil {
			return h.SegmentSize, nil
		}
		err = herr
	}
	return 0, err
}

// ReadSegmentHeader reads the long header that a segment file starts with.
func ReadSegmentHeader(file string) (PageHeader, error) {
	f, err := os.Open(file)
	if err != nil {
		return PageHeader{}, err
	}
	defer f.Close()
	var b [LongPageHeaderSize]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		return PageHeader{}, fmt.Errorf("reading the header of WAL segment %s: %w", file, err)
	}
	h := parseShort(b[:])
	h.parseLong(b[:])
	if _, err := pg.MajorOfMagic(h.Magic); err != nil {
		return PageHeader{}, fmt.Errorf("%s: %w", file, err)
	}
	if !h.Long() || !h.SegmentSize.Valid() {
		return PageHeader{}, fmt.Errorf("%s does not start with a WAL segment's header", file)
	}
	return h, nil
}

// ReadHistory reads a timeline's .history file from a directory. Timeline 1 needs none; another one's must be there.
func ReadHistory(path string, tli pg.TimelineID) (History, error) {
	b, err := os.ReadFile(filepath.Join(path, HistoryName(tli)))
	if errors.Is(err, os.ErrNotExist) && tli == 1 {
		return History{Timeline: 1}, nil
	}
	if err != nil {
		return History{}, fmt.Errorf("history of timeline %d: %w", tli, err)
	}
	return ParseHistory(tli, b)
}

// OpenDir opens a directory of segments for reading along a history. For one timeline without its file give History{Timeline: n}.
func OpenDir(path string, size SegmentSize, history History) (*Dir, error) {
	if !size.Valid() {
		return nil, fmt.Errorf("WAL segment size %d is not a power of 2 from 1 MB to 1 GB", size)
	}
	segments, _, err := ListDir(path, size)
	if err != nil {
		return nil, err
	}
	d := &Dir{path: path, size: size, history: history, files: make(map[uint64]string)}
	for _, g := range segments {
		// Of several files with one number the first is the best: the newest timeline's starts with a copy of the older one.
		if d.files[g.Number] == "" && d.belongs(g) {
			d.files[g.Number] = filepath.Join(path, g.Name(size))
		}
	}
	if len(d.files) == 0 {
		return nil, fmt.Errorf("directory %s holds no WAL segments of timeline %d", path, history.Timeline)
	}
	return d, nil
}

// OpenFile opens one segment file for reading. Its header says where it belongs; a segment's name must agree.
func OpenFile(file string) (*Dir, error) {
	h, err := ReadSegmentHeader(file)
	if err != nil {
		return nil, err
	}
	number := h.SegmentSize.Number(h.Address)
	if g, err := ParseSegmentName(filepath.Base(file), h.SegmentSize); err == nil && g.Number != number {
		return nil, fmt.Errorf("segment file %s holds the WAL at %s still: it was recycled and not yet written", file, h.Address)
	}
	return &Dir{
		path: filepath.Dir(file), size: h.SegmentSize, history: History{Timeline: max(h.Timeline, 1)}, files: map[uint64]string{number: file},
	}, nil
}

// belongs tells whether a segment file is of the history: its timeline is a member that had begun by the segment's end
// and was not left before its start (XLogFileReadAnyTLI).
func (d *Dir) belongs(g Segment) bool {
	begin, end, ok := d.history.Range(g.Timeline)
	start := d.size.Start(g.Number)
	return ok && begin < start+pg.LSN(d.size) && (end == 0 || start < end)
}

// SegmentSize is the size of the directory's segments.
func (d *Dir) SegmentSize() SegmentSize { return d.size }

// Bounds are the starts of the first segment and of the one behind the last. Gaps may lie between.
func (d *Dir) Bounds() (first, end pg.LSN) {
	lo, hi := ^uint64(0), uint64(0)
	for n := range d.files {
		lo, hi = min(lo, n), max(hi, n)
	}
	return d.size.Start(lo), d.size.Start(hi + 1)
}

// ReadWAL implements Source.
func (d *Dir) ReadWAL(p []byte, at pg.LSN) (int, error) {
	if err := d.openSegment(at); err != nil {
		return 0, err
	}
	offset := int64(d.size.Offset(at))
	if offset >= d.length {
		return 0, &EndError{LSN: at, Reason: fmt.Sprintf("segment file %s has only %d bytes", d.open.Name(), d.length)}
	}
	p = p[:min(int64(len(p)), d.length-offset)]
	n, err := d.open.ReadAt(p, offset)
	if n > 0 {
		return n, nil
	}
	return 0, fmt.Errorf("reading WAL at %s from %s: %w", at, d.open.Name(), err)
}

// openSegment makes d.open the file of the segment that holds at.
func (d *Dir) openSegment(at pg.LSN) error {
	number := d.size.Number(at)
	if d.open != nil && d.number == number {
		return nil
	}
	if err := d.Close(); err != nil {
		return err
	}
	path, ok := d.files[number]
	if !ok {
		name := Segment{Timeline: d.history.TimelineAt(d.size.Start(number)), Number: number}.Name(d.size)
		return &EndError{LSN: at, Reason: fmt.Sprintf("there is no segment file %s in %s", name, d.path)}
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	d.open, d.number, d.length = f, number, info.Size()
	return nil
}

// Close closes the file that is open.
func (d *Dir) Close() error {
	if d.open == nil {
		return nil
	}
	f := d.open
	d.open = nil
	return f.Close()
}

// WALFollows implements Follower: it looks at the rest of the segment that holds after, then at the first pages of all later ones.
func (d *Dir) WALFollows(after pg.LSN) (pg.LSN, bool, error) {
	segment := d.size.Floor(after)
	for page := after&^(pg.BlockSize-1) + pg.BlockSize; page < segment+pg.LSN(d.size); page += pg.BlockSize {
		if ok, err := d.validPage(page); ok || err != nil {
			return page, ok, err
		}
	}
	var later []uint64
	for n := range d.files {
		if d.size.Start(n) > after {
			later = append(later, n)
		}
	}
	slices.Sort(later)
	for _, n := range later {
		if ok, err := d.validPage(d.size.Start(n)); ok || err != nil {
			return d.size.Start(n), ok, err
		}
	}
	return 0, false, nil
}

func (d *Dir) validPage(page pg.LSN) (bool, error) {
	var b [ShortPageHeaderSize]byte
	_, err := d.ReadWAL(b[:], page)
	if IsEnd(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	h := parseShort(b[:])
	_, err = pg.MajorOfMagic(h.Magic)
	return err == nil && h.Address == page && h.Info&^pageAllFlags == 0, nil
}
