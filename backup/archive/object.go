// Package archive keeps a cluster's WAL in a store: each segment once, compressed, and the newest one in pieces until it is whole. Objects are named
// by system identifier, timeline and segment, pieces also by their bounds and content, so that no name ever stands for two contents, whoever
// uploads and however often.
package archive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"everpage/backup/store"
	"everpage/wal"
	"everpage/wal/pg"
)

// ID says whose WAL an archive holds.
type ID struct {
	SystemID    uint64
	SegmentSize wal.SegmentSize
}

// ErrDiverged means that the store holds other WAL under the same name: another server of the same system identifier and timeline was archived there.
var ErrDiverged = errors.New("the store holds different WAL of the same timeline")

// Every object is a head and a zstd frame. The head: magic, system identifier, timeline, segment size, first LSN, length, CRC-32C of the WAL and of the head.
const (
	magic    = "EPWAL001"
	headSize = 8 + 8 + 4 + 4 + 8 + 8 + 4 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type head struct {
	id       ID
	timeline pg.TimelineID
	start    pg.LSN
	length   uint64
	crc      uint32
}

func (h head) encode() []byte {
	b := make([]byte, 0, headSize)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint64(b, h.id.SystemID)
	b = binary.LittleEndian.AppendUint32(b, h.timeline)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.id.SegmentSize))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.start))
	b = binary.LittleEndian.AppendUint64(b, h.length)
	b = binary.LittleEndian.AppendUint32(b, h.crc)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeHead(name string, b []byte) (h head, err error) {
	bad := func(why string) (head, error) {
		return head{}, &store.Error{Op: "get", Name: name, Kind: store.ErrCorrupt, Err: errors.New(why)}
	}
	if len(b) < headSize || string(b[:8]) != magic {
		return bad("it is no archived WAL")
	}
	if crc32.Checksum(b[:headSize-4], castagnoli) != binary.LittleEndian.Uint32(b[headSize-4:]) {
		return bad("its head has a wrong checksum")
	}
	return head{
		id:       ID{SystemID: binary.LittleEndian.Uint64(b[8:]), SegmentSize: wal.SegmentSize(binary.LittleEndian.Uint32(b[20:]))},
		timeline: binary.LittleEndian.Uint32(b[16:]), start: pg.LSN(binary.LittleEndian.Uint64(b[24:])),
		length: binary.LittleEndian.Uint64(b[32:]), crc: binary.LittleEndian.Uint32(b[40:]),
	}, nil
}

// object is one object's name taken apart.
type object struct {
	name     string
	timeline pg.TimelineID
	number   uint64
	from, to uint32 // of a piece: offsets in the segment; a whole segment has from = to = 0
	size     int64  // in the store
}

func (o object) whole() bool { return o.to == 0 }

// begin and end are what the object holds.
func (o object) begin(size wal.SegmentSize) pg.LSN { return size.Start(o.number) + pg.LSN(o.from) }

func (o object) end(size wal.SegmentSize) pg.LSN {
	if o.whole() {
		return size.Start(o.number + 1)
	}
	return size.Start(o.number) + pg.LSN(o.to)
}

// The directories of all WAL, of a system's and of a timeline's.
const dir = "wal/"

func (id ID) dir() string { return fmt.Sprintf("%s%d/", dir, id.SystemID) }

func (id ID) timelineDir(tli pg.TimelineID) string { return fmt.Sprintf("%s%08X/", id.dir(), tli) }

func (id ID) historyName(tli pg.TimelineID) string { return id.dir() + wal.HistoryName(tli) }

func (id ID) segmentName(tli pg.TimelineID, number uint64) string {
	return id.timelineDir(tli) + wal.Segment{Timeline: tli, Number: number}.Name(id.SegmentSize)
}

func (id ID) pieceName(tli pg.TimelineID, number uint64, from, to, crc uint32) string {
	return fmt.Sprintf("%s.%08X-%08X-%08x", id.segmentName(tli, number), from, to, crc)
}

// parse reads an object's name, without its size.
func (id ID) parse(name string) (o object, ok bool) {
	rest, ok := strings.CutPrefix(name, id.dir())
	if !ok {
		return o, false
	}
	_, file, ok := strings.Cut(rest, "/")
	if !ok {
		return o, false
	}
	file, piece, partial := strings.Cut(file, ".")
	g, err := wal.ParseSegmentName(file, id.SegmentSize)
	if err != nil || g.Partial {
		return o, false
	}
	o = object{name: name, timeline: g.Timeline, number: g.Number}
	if !partial {
		return o, name == id.segmentName(o.timeline, o.number)
	}
	parts := strings.Split(piece, "-")
	if len(parts) != 3 {
		return o, false
	}
	var n [3]uint64
	for i, p := range parts {
		if n[i], err = strconv.ParseUint(p, 16, 32); err != nil {
			return o, false
		}
	}
	o.from, o.to = uint32(n[0]), uint32(n[1])
	return o, o.from < o.to && o.to <= uint32(id.SegmentSize) && name == id.pieceName(o.timeline, o.number, o.from, o.to, uint32(n[2]))
}

// piece is how much WAL is in memory at a time: segments may have a gigabyte.
const piece = 256 << 10

// compress writes an object for the WAL between two LSNs into a file.
func compress(f *os.File, id ID, tli pg.TimelineID, src wal.Source, from, to pg.LSN) (size int64, h head, err error) {
	h = head{id: id, timeline: tli, start: from, length: uint64(to - from)}
	if _, err := f.Seek(headSize, io.SeekStart); err != nil {
		return 0, h, err
	}
	z, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithAllLitEntropyCompression(true),
		zstd.WithLowerEncoderMem(true))
	if err != nil {
		return 0, h, err
	}
	buf := make([]byte, min(piece, uint64(to-from)))
	for at := from; at < to && err == nil; {
		var n int
		if n, err = src.ReadWAL(buf[:min(piece, uint64(to-at))], at); err != nil {
			break
		}
		h.crc = crc32.Update(h.crc, castagnoli, buf[:n])
		at += pg.LSN(n)
		_, err = z.Write(buf[:n])
	}
	if err = errors.Join(err, z.Close()); err != nil {
		return 0, h, err
	}
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		return 0, h, err
	}
	size, err = f.Seek(0, io.SeekEnd)
	return size, h, err
}

// fileBody is an object in a file.
type fileBody struct {
	io.ReaderAt
	size int64
}

func (b fileBody) Size() int64 { return b.size }

// newScratch makes a file without a name: nothing is left over where the process ends.
func newScratch(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "wal-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// maxWindow is more than any object needs to be decompressed.
const maxWindow = 16 << 20

// decompress writes an object's WAL and holds it against its name and checksums: only where it returns nil was that what was written.
func decompress(w io.Writer, id ID, o object, r io.Reader) error {
	bad := func(err error) error {
		return &store.Error{Op: "get", Name: o.name, Kind: store.ErrCorrupt, Err: err}
	}
	var first [headSize]byte
	if _, err := io.ReadFull(r, first[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return bad(errors.New("it is no archived WAL"))
		}
		return err
	}
	h, err := decodeHead(o.name, first[:])
	if err != nil {
		return err
	}
	begin, end := o.begin(id.SegmentSize), o.end(id.SegmentSize)
	if h.id != id || h.timeline != o.timeline || h.start != begin || h.length != uint64(end-begin) {
		return bad(fmt.Errorf("it holds %d bytes at %s of timeline %d of system %d", h.length, h.start, h.timeline, h.id.SystemID))
	}
	watch := &watchedReader{r: r}
	z, err := zstd.NewReader(watch, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer z.Close()
	var crc uint32
	buf := make([]byte, min(piece, h.length))
	for left := h.length; left > 0; {
		n, err := io.ReadFull(z, buf[:min(piece, left)])
		if err != nil {
			if watch.err != nil {
				return watch.err // the store failed, not the object
			}
			return bad(err)
		}
		crc = crc32.Update(crc, castagnoli, buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		left -= uint64(n)
	}
	if crc != h.crc {
		return bad(errors.New("its WAL has a wrong checksum"))
	}
	return nil
}

// watchedReader remembers what the store failed for.
type watchedReader struct {
	r   io.Reader
	err error
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	return n, err
}
