package chunk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// A layer carries versions between stores: of one shard, of one chunk, or all that is small of a branch. Its form is a stream: layerMagic, the length
// (uint32, big-endian) and JSON of the Layer with its CRC-32C, then tables, then tagEnd with length, JSON and CRC of a layerEnd, that length once more, and
// layerFoot. Whoever reads at random goes by what the two say, and would find nothing in the wrong place: hence their checksums. A table
// is tagTable, the length and the bytes of an sstable, and tagWhole if the chunks in it end there, tagPart if the last one goes on in the next table. Keys
// ascend throughout. The end lists the tables, so that a layer that lies in a file or an object is also read page by page.
const (
	layerMagic = "everpage layer 2\n"
	layerFoot  = "EPL2"
	crcBytes   = 4
	tagTable   = 'T'
	tagWhole   = 'W'
	tagPart    = 'P'
	tagEnd     = 'E'

	layerTable    = 4 << 20  // bytes of values from which on a table ends where a chunk does
	layerTableMax = 16 << 20 // and where a page does
	maxLayerJSON  = 64 << 20
	maxTableBytes = 1 << 30
)

// Layer says what a layer holds.
type Layer struct {
	Branch        uint32
	Shard         placement.Shard
	Chunk         *placement.Chunk // only this one of the shard's chunks
	Small         bool             // all that is small, of all shards
	Shards        uint32
	SegmentBlocks uint32

	// A base layer has all that reads in [Lo, Hi] need; a delta layer has the versions in (Lo, Hi].
	Delta  bool
	Lo, Hi pg.LSN

	Pins   []pg.LSN    `json:",omitempty"` // LSNs below Lo that a base layer serves, too: what branches that forked off need
	Copies []LayerCopy `json:",omitempty"` // and those that it serves for the pages of one directory: what copies of databases need

	Progress *Progress `json:",omitempty"` // small only: as of Hi
}

// LayerCopy is the LSN just before a database directory was copied.
type LayerCopy struct {
	Spc, DB uint32
	At      pg.LSN
}

// Serves tells whether a base layer has all that a read of a page at an LSN needs of it.
func (l *Layer) Serves(key pg.PageKey, at pg.LSN) bool {
	return !l.Delta && at <= l.Hi && (at >= l.Lo || slices.Contains(l.Pins, at) || slices.Contains(l.Copies, LayerCopy{key.Spc, key.DB, at}))
}

// LayerSpec says what is to be exported.
type LayerSpec struct {
	Branch uint32
	Shard  placement.Shard
	Chunk  *placement.Chunk // only this chunk; Shard is found from it
	From   pg.LSN           // of a base layer: at least; 0: as far down as the store goes. Of a delta layer: Lo
	To     pg.LSN           // at most; 0: the newest that is durable
	Delta  bool
}

// layerEnd is what a layer's end says.
type layerEnd struct {
	Tables   []layerPart
	Versions uint64
}

// layerPart is one table of a layer.
type layerPart struct {
	Offset, Length int64
	First, Last    []byte // prefixes of the objects
}

// ExportLayer writes the layer of a shard or chunk to w, as of one moment, in bounded memory.
func (s *Store) ExportLayer(ctx context.Context, spec LayerSpec, w io.Writer) (Layer, error) {
	if spec.Chunk != nil {
		spec.Shard = placement.ShardOf(*spec.Chunk, s.opt.Shards)
	}
	l := Layer{
		Branch: spec.Branch, Shard: spec.Shard, Chunk: spec.Chunk, Delta: spec.Delta, Shards: s.opt.Shards, SegmentBlocks: s.opt.SegmentBlocks,
	}
	if err := s.checkShards([]placement.Shard{spec.Shard}); err != nil {
		return l, err
	}
	after := pg.LSN(0)
	if spec.Delta {
		after = spec.From
	}
	x, err := s.export(ctx, spec.Branch, spec.To, after)
	if err != nil {
		return l, fmt.Errorf("export of %s: %w", l.what(), err)
	}
	defer x.close()
	have, err := x.have(spec)
	if err != nil {
		return l, fmt.Errorf("export of %s: %w", l.what(), err)
	}
	// Asked after the iterators were made: they have all from there on.
	horizon := *s.branch(spec.Branch).current()
	l.Hi, l.Lo = x.hi, max(spec.From, x.progress.Start, horizon.Horizon)
	if have.Complete {
		l.Lo = max(l.Lo, have.From)
	}
	switch {
	case spec.Delta && (spec.From == 0 || l.Lo != spec.From || !have.Owned || have.From > l.Lo):
		return l, fmt.Errorf("export of %s: %w: its versions are here beyond %s, %s is asked for", l.what(), ErrNotHere, max(l.Lo, have.From), spec.From)
	case !spec.Delta && !have.answers(l.Hi):
		return l, fmt.Errorf("export of %s: %w: it is not complete here", l.what(), ErrNotHere)
	case l.Lo > l.Hi:
		return l, fmt.Errorf("export of %s: it would reach from %s to %s", l.what(), l.Lo, l.Hi)
	}
	if !spec.Delta {
		for _, at := range append(x.r.lines.children(spec.Branch), horizon.Pins...) {
			if at < l.Lo {
				l.Pins = append(l.Pins, at)
			}
		}
		if l.Copies, err = x.allCopies(l.Lo); err != nil {
			return l, fmt.Errorf("export of %s: %w", l.what(), err)
		}
	}
	lo, hi := shardRange(spec.Branch, spec.Shard)
	if spec.Chunk != nil {
		lo, hi = s.chunkRange(spec.Branch, *spec.Chunk)
	}
	x.begin(w, &l)
	x.walk(lo, hi)
	return l, x.end()
}

// allCopies lists where directories were copied at or below an LSN.
func (x *exporter) allCopies(below pg.LSN) (list []LayerCopy, err error) {
	var dirs [][2]uint32
	lo, hi := branchRange(classCopy, x.branch)
	if err := x.r.each(lo, hi, ^pg.LSN(0), func(p *prefix, _ version) error {
		dirs = append(dirs, [2]uint32{p.num(0), p.num(1)})
		return nil
	}); err != nil {
		return nil, err
	}
	for _, d := range dirs {
		copies, err := x.r.copies(x.branch, d[0], d[1])
		if err != nil {
			return nil, err
		}
		for _, c := range copies {
			if c-1 < below {
				list = append(list, LayerCopy{d[0], d[1], c - 1})
			}
		}
	}
	return list, nil
}

func (l *Layer) what() string {
	switch {
	case l.Small:
		return fmt.Sprintf("the small objects of branch %d", l.Branch)
	case l.Chunk != nil:
		return fmt.Sprintf("chunk %s of branch %d", l.Chunk, l.Branch)
	}
	return fmt.Sprintf("shard %d of branch %d", l.Shard, l.Branch)
}

// chunkRange is where the pages of a chunk lie.
func (c chunks) chunkRange(branch uint32, k placement.Chunk) (lo, hi prefix) {
	blocks := c.segmentBlocks
	if k.Spc == 0 {
		blocks = pg.SLRUPagesPerSegment
	}
	key := pg.PageKey{RelFork: k.RelFork, Block: k.Segment * blocks}
	lo = c.pagePrefix(branch, key)
	key.Block += blocks - 1
	hi = c.pagePrefix(branch, key)
	return lo, hi.next()
}

// ExportSmall writes all that is small of a branch, as of To (0: the newest that is durable), from the beginning or, beyond From, as a delta.
func (s *Store) ExportSmall(ctx context.Context, branch uint32, from, to pg.LSN, w io.Writer) (Layer, error) {
	l := Layer{Branch: branch, Small: true, Shards: s.opt.Shards, SegmentBlocks: s.opt.SegmentBlocks, Lo: from, Delta: from != 0}
	x, err := s.export(ctx, branch, to, from)
	if err != nil {
		return l, fmt.Errorf("export of %s: %w", l.what(), err)
	}
	defer x.close()
	l.Hi = x.hi
	p := x.progress
	p.Readable, p.Resume = min(p.Readable, l.Hi), min(p.Resume, l.Hi)
	if p.Consistent > l.Hi {
		p.Consistent = 0
	}
	if p.Unproven > l.Hi {
		p.Unproven, p.UnprovenReason = 0, ""
	}
	p.Copied = 0 // it says of this store how the branch came here
	l.Progress = &p
	if l.Lo > l.Hi {
		return l, fmt.Errorf("export of %s: it would reach from %s to %s", l.what(), l.Lo, l.Hi)
	}
	if now := s.branch(branch).current(); now == nil || l.Delta && from < now.Horizon || l.Hi < now.Horizon {
		return l, fmt.Errorf("export of %s: %w", l.what(), ErrBelowHorizon)
	} else {
		p.Horizon, p.Pins = now.Horizon, now.Pins
	}
	x.begin(w, &l)
	for class := uint8(classSize); class < classProgress; class++ {
		lo, hi := branchRange(class, branch)
		x.walk(lo, hi)
	}
	return l, x.end()
}

// exporter writes one layer.
type exporter struct {
	s        *Store
	ctx      context.Context
	r        *reader
	it       *pebble.Iterator // finds the objects; r walks their versions
	cover    *cover
	branch   uint32
	progress Progress
	hi       pg.LSN

	l      *Layer
	out    *bufio.Writer
	at     int64 // bytes written
	err    error
	buf    bytes.Buffer // the table that is being made
	first  prefix       // of it
	table  *sstable.Writer
	pairs  pairWriter
	bytes  int
	chunk  placement.Chunk // of the last version
	needs  []pg.LSN        // the LSNs, newest first, at which the object is to be readable beside those from Lo on
	fork   pg.RelFork      // that copies is of
	copies []pg.LSN
	last   prefix
	count  layerEnd
}

// export takes what a layer is made of: all versions up to hi are in tables by then. Objects without a version beyond LSN after need not be found.
func (s *Store) export(ctx context.Context, branch uint32, to, after pg.LSN) (*exporter, error) {
	if d, ok := s.Durable(branch); !ok || to == 0 || d.Readable < to {
		if err := s.flush(true); err != nil {
			return nil, err
		}
	}
	p, ok := s.Durable(branch)
	if !ok {
		return nil, fmt.Errorf("branch %d: %w", branch, ErrNoBranch)
	}
	hi := p.Readable
	if to != 0 {
		if to > hi {
			return nil, fmt.Errorf("branch %d at %s: %w: the last LSN that is durable is %s", branch, to, ErrNotYet, hi)
		}
		hi = to
	}
	b := s.branch(branch)
	for {
		r, v, err := s.view(ctx, b)
		if err != nil {
			return nil, err
		}
		it, err := s.db.NewIter(newerThan(after))
		if err != nil {
			r.release()
			return nil, err
		}
		if b.cover.Load() == v.cover {
			return &exporter{s: s, ctx: ctx, r: r, it: it, cover: v.cover, branch: branch, progress: p, hi: hi}, nil
		}
		it.Close()
		r.release()
	}
}

func (x *exporter) close() {
	x.it.Close()
	x.r.release()
}

// have is the coverage of all that is asked for.
func (x *exporter) have(spec LayerSpec) (Coverage, error) {
	if spec.Chunk != nil {
		return x.cover.chunk(*spec.Chunk, spec.Shard), nil
	}
	have := x.cover.shard(spec.Shard)
	for k, c := range x.cover.chunks {
		if placement.ShardOf(k, x.s.opt.Shards) != spec.Shard || !have.Complete {
			continue
		}
		if !c.Complete && !spec.Delta {
			return have, fmt.Errorf("%w: of chunk %s only what is beyond %s is", ErrNotHere, k, c.From)
		}
		have.From = max(have.From, c.From)
	}
	return have, nil
}

func (x *exporter) begin(w io.Writer, l *Layer) {
	x.l, x.out = l, bufio.NewWriterSize(w, 64<<10)
	x.write([]byte(layerMagic))
	x.json(l)
}

func (x *exporter) write(b []byte) {
	if x.err == nil {
		_, x.err = x.out.Write(b)
		x.at += int64(len(b))
	}
}

func (x *exporter) json(v any) {
	b, err := json.Marshal(v)
	if err != nil && x.err == nil {
		x.err = err
	}
	x.write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
	x.write(b)
	x.write(binary.BigEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli)))
}

// tableBytes gathers a table in memory.
type tableBytes struct{ *bytes.Buffer }

// Write implements objstorage.Writable, as do the others.
func (w tableBytes) Write(b []byte) error {
	w.Buffer.Write(b)
	return nil
}

func (w tableBytes) Finish() error { return nil }
func (w tableBytes) Abort()        {}

// walk exports the objects with lo <= prefix < hi.
func (x *exporter) walk(lo, hi prefix) {
	for ok := x.it.SeekGE(lo[:]); ok && x.err == nil; ok = x.it.NextPrefix() {
		p, _, known := splitKey(x.it.Key())
		if !known {
			x.err = x.r.corrupt(&lo, 0, errShape)
			return
		}
		if p.compare(&hi) >= 0 {
			break
		}
		if x.err = x.ctx.Err(); x.err == nil {
			x.object(&p)
		}
	}
	if err := x.it.Error(); err != nil && x.err == nil {
		x.err = x.r.corrupt(&lo, 0, err)
	}
}

func (x *exporter) object(p *prefix) {
	x.needs = x.needs[:0]
	if !p.small() && !x.l.Delta {
		if f := p.pageKey().RelFork; f != x.fork {
			x.fork = f
			if x.copies, x.err = x.r.copies(x.l.Branch, f.Spc, f.DB); x.err != nil {
				return
			}
		}
		x.needs = append(append(x.needs, x.l.Lo), x.l.Pins...)
		for _, c := range x.copies {
			if c-1 < x.l.Lo {
				x.needs = append(x.needs, c-1)
			}
		}
		slices.Sort(x.needs)
		slices.Reverse(x.needs)
	}
	needs, needed := x.needs, false
	for x.r.seek(p, x.hi); x.err == nil; {
		v, ok, err := x.r.next()
		if err != nil {
			x.err = err
			return
		}
		if !ok || x.l.Delta && v.lsn <= x.l.Lo || v.lsn <= x.progress.Fork {
			return
		}
		for len(needs) > 0 && v.lsn <= needs[0] {
			needs, needed = needs[1:], true
		}
		if !p.small() && !needed && v.lsn <= x.l.Lo {
			continue
		}
		if x.err = x.add(p, v); x.err != nil {
			return
		}
		if ends(v.value[0]) {
			if needed = false; len(needs) == 0 && len(x.needs) > 0 {
				return
			}
		}
	}
}

func (x *exporter) add(p *prefix, v version) error {
	if *p != x.last {
		next := x.chunk
		if !p.small() {
			next = placement.ChunkOf(p.pageKey(), x.s.opt.SegmentBlocks)
		}
		switch {
		case x.table == nil:
		case x.bytes >= layerTable && next != x.chunk:
			x.endTable(tagWhole)
		case x.bytes >= layerTableMax:
			x.endTable(tagPart)
		}
		x.chunk, x.last = next, *p
	}
	if x.table == nil {
		x.buf.Reset()
		x.table = x.s.newTable(tableBytes{&x.buf})
		x.pairs = pairWriter{set: x.table.Set}
		x.bytes, x.first = 0, *p
	}
	x.bytes += len(v.value)
	x.count.Versions++
	return x.pairs.add(p, v.lsn, v.value)
}

func (x *exporter) endTable(tag byte) {
	if x.table == nil {
		return
	}
	err := errors.Join(x.pairs.finish(), x.table.Close())
	x.table = nil
	if err != nil && x.err == nil {
		x.err = err
	}
	x.write([]byte{tagTable})
	x.write(binary.BigEndian.AppendUint32(nil, uint32(x.buf.Len())))
	x.count.Tables = append(x.count.Tables, layerPart{Offset: x.at, Length: int64(x.buf.Len()), First: bytes.Clone(x.first[:]), Last: bytes.Clone(x.last[:])})
	x.write(x.buf.Bytes())
	x.write([]byte{tag})
}

func (x *exporter) end() error {
	x.endTable(tagWhole)
	x.write([]byte{tagEnd})
	start := x.at
	x.json(&x.count)
	x.write(binary.BigEndian.AppendUint32(nil, uint32(x.at-start-4-crcBytes)))
	x.write([]byte(layerFoot))
	if x.err == nil {
		x.err = x.out.Flush()
	}
	if x.err != nil {
		return fmt.Errorf("export of %s: %w", x.l.what(), x.err)
	}
	return nil
}
