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

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Import takes layers of one shard or chunk into a store that owns it: a base layer, then delta layers that follow it. Its methods are for one goroutine.
//
// What the store has itself it keeps: only versions at or below the LSN beyond which it does are taken, so that the intervals meet. Coverage grows in the
// same ingested table as the data that makes it true: chunk by chunk while the base layer goes on, if that reaches far enough, and as a whole at the end.
//
// A base layer that begins later than what the store has itself doesn't meet that: where the layer has an image, as what was collected leaves it, the store
// has a delta, and nothing of what that delta needs is in either. Shards and chunks like that must be given up and owned anew first.
type Import struct {
	s      *Store
	b      *branchState
	l      Layer  // branch, shard, chunk or small; Lo and Hi of what was added
	shrunk uint64 // branchState.shrunk of the shard when it began
	resume pg.LSN // from where WAL is read again after a crash, at the earliest
	parts  int
	last   prefix // of the layer that is being added

	progress *Progress // small only
	err      error
}

// Import begins to fill a shard, or one chunk of it, that the store owns.
func (s *Store) Import(branch uint32, shard placement.Shard, chunk *placement.Chunk) (*Import, error) {
	if chunk != nil {
		shard = placement.ShardOf(*chunk, s.opt.Shards)
	}
	if err := s.checkShards([]placement.Shard{shard}); err != nil {
		return nil, err
	}
	im := &Import{s: s, b: s.branch(branch), l: Layer{Branch: branch, Shard: shard, Chunk: chunk}}
	if err := im.begin(); err != nil {
		return nil, fmt.Errorf("import of %s: %w", im.l.what(), err)
	}
	// What Own has said must be durable, lest it come to the tables after what is said here.
	if err := s.flush(true); err != nil {
		return nil, err
	}
	if !im.have(im.b.cover.Load()).Owned {
		return nil, fmt.Errorf("import of %s: %w: own it first", im.l.what(), ErrNotHere)
	}
	durable, _ := s.Durable(branch)
	im.resume = durable.Resume
	return im, nil
}

// begin takes note of what is being given up, or was before.
func (im *Import) begin() error {
	s := im.s
	s.covering.Lock()
	defer s.covering.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	im.shrunk = im.b.shrunk[im.l.Shard]
	switch {
	case s.closing:
		return ErrClosed
	case im.b.current() == nil:
		return ErrNoBranch
	case s.dropping[shardOf{im.l.Branch, im.l.Shard}]:
		return fmt.Errorf("something of its shard is just being given up: %w", ErrBusy)
	}
	return nil
}

// have is what the store has of what is imported.
func (im *Import) have(c *cover) Coverage {
	if im.l.Chunk != nil {
		return c.chunk(*im.l.Chunk, im.l.Shard)
	}
	return c.shard(im.l.Shard)
}

// ImportLayer takes one base layer that reaches far enough.
func (s *Store) ImportLayer(ctx context.Context, r io.Reader) (Layer, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	l, err := readLayer(in)
	if err != nil {
		return l, err
	}
	if l.Small {
		return l, fmt.Errorf("import of %s: it is not of a shard", l.what())
	}
	im, err := s.Import(l.Branch, l.Shard, l.Chunk)
	if err != nil {
		return l, err
	}
	if err := im.add(ctx, l, in); err != nil {
		return l, err
	}
	return l, im.Finish()
}

// ImportSmall makes a branch of what is small in it, as ExportSmall wrote it: whole, then deltas that follow. The store owns none of its shards.
func (s *Store) ImportSmall(ctx context.Context, branch uint32, parts ...io.Reader) (p Progress, err error) {
	im := &Import{s: s, b: s.branch(branch), l: Layer{Branch: branch, Small: true}}
	s.mu.Lock()
	switch {
	case s.closing:
		err = ErrClosed
	case im.b.current() != nil:
		err = fmt.Errorf("import of %s: the branch is here already", im.l.what())
	case im.b.writing || im.b.dropped:
		err = fmt.Errorf("import of %s: it is %w", im.l.what(), ErrBusy)
	default:
		im.b.writing = true
	}
	s.mu.Unlock()
	if err != nil {
		return p, err
	}
	defer func() {
		s.mu.Lock()
		im.b.writing = false
		s.mu.Unlock()
	}()
	if err := s.dropBranch(branch); err != nil { // what an interrupted one left
		return p, err
	}
	for _, r := range parts {
		if _, err := im.Add(ctx, r); err != nil {
			return p, errors.Join(err, s.dropBranch(branch)) // nobody would know what it belongs to
		}
	}
	if err := im.finishSmall(); err != nil {
		return p, errors.Join(fmt.Errorf("import of %s: %w", im.l.what(), err), s.dropBranch(branch))
	}
	return *im.progress, nil
}

// readLayer reads a layer's beginning.
func readLayer(in *bufio.Reader) (l Layer, err error) {
	magic := make([]byte, len(layerMagic))
	if _, err := io.ReadFull(in, magic); err != nil {
		return l, fmt.Errorf("layer: %w", truncated(err))
	}
	if string(magic) != layerMagic {
		return l, fmt.Errorf("layer: %w: it begins with %q", ErrFormat, magic)
	}
	if err := readJSON(in, &l); err != nil {
		return l, fmt.Errorf("layer: %w", err)
	}
	return l, nil
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func readJSON(in *bufio.Reader, v any) error {
	n, err := readLength(in, maxLayerJSON)
	if err != nil {
		return err
	}
	b := make([]byte, int64(n)+crcBytes)
	if _, err := io.ReadFull(in, b); err != nil {
		return truncated(err)
	}
	return openJSON(b, v)
}

// openJSON reads JSON that its checksum follows.
func openJSON(b []byte, v any) error {
	body, sum := b[:len(b)-crcBytes], b[len(b)-crcBytes:]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(sum) {
		return fmt.Errorf("%w: a checksum is wrong", errShape)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", errShape, err)
	}
	return nil
}

func readLength(in *bufio.Reader, most uint32) (uint32, error) {
	var b [4]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return 0, truncated(err)
	}
	n := binary.BigEndian.Uint32(b[:])
	if n > most {
		return 0, fmt.Errorf("%w: a piece of %d bytes", errShape, n)
	}
	return n, nil
}

// Add takes the next layer: the base, or a delta layer that begins no later than where the one before ended.
func (im *Import) Add(ctx context.Context, r io.Reader) (Layer, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	l, err := readLayer(in)
	if err != nil {
		return l, err
	}
	return l, im.add(ctx, l, in)
}

func (im *Import) add(ctx context.Context, l Layer, in *bufio.Reader) error {
	if im.err != nil {
		return im.err
	}
	err := im.accept(l)
	if err == nil {
		im.last = prefix{}
		im.parts++
		im.l.Hi = max(im.l.Hi, l.Hi)
		err = im.tables(ctx, l, in)
	}
	if err != nil {
		im.err = fmt.Errorf("import of %s: %w", im.l.what(), err)
	}
	return im.err
}

// accept compares a layer with what was begun.
func (im *Import) accept(l Layer) error {
	sameChunk := im.l.Chunk == nil && l.Chunk == nil || im.l.Chunk != nil && l.Chunk != nil && *im.l.Chunk == *l.Chunk
	switch {
	case l.Shards != im.s.opt.Shards || l.SegmentBlocks != im.s.opt.SegmentBlocks:
		return fmt.Errorf("the layer is of %d shards and chunks of %d blocks, this store has %d and %d", l.Shards, l.SegmentBlocks, im.s.opt.Shards,
			im.s.opt.SegmentBlocks)
	case l.Branch != im.l.Branch || l.Small != im.l.Small || l.Shard != im.l.Shard || !sameChunk:
		return fmt.Errorf("the layer is of %s", l.what())
	case im.parts == 0 && l.Delta:
		return fmt.Errorf("the first layer is a delta from %s on", l.Lo)
	case im.parts > 0 && (!l.Delta || l.Lo > im.l.Hi):
		return fmt.Errorf("a layer from %s on doesn't follow one that ends at %s", l.Lo, im.l.Hi)
	case l.Small && l.Progress == nil:
		return errors.New("the layer says nothing of the branch's progress")
	}
	if im.parts == 0 {
		im.l.Lo, im.l.Pins = l.Lo, l.Pins
	}
	im.progress = l.Progress
	return nil
}

func (im *Import) tables(ctx context.Context, l Layer, in *bufio.Reader) error {
	tables, versions := 0, uint64(0)
	for {
		tag, err := in.ReadByte()
		if err != nil {
			return truncated(err)
		}
		switch tag {
		case tagTable:
			n, err := im.table(ctx, l, in)
			if err != nil {
				return err
			}
			tables++
			versions += n
		case tagEnd:
			var want layerEnd
			if err := readJSON(in, &want); err != nil {
				return err
			}
			foot := make([]byte, 4+len(layerFoot))
			if _, err := io.ReadFull(in, foot); err != nil {
				return truncated(err)
			}
			if len(want.Tables) != tables || want.Versions != versions || string(foot[4:]) != layerFoot {
				return fmt.Errorf("%w: the layer has %d versions in %d tables, its end says %d in %d", errShape, versions, tables, want.Versions, len(want.Tables))
			}
			return nil
		default:
			return fmt.Errorf("%w: tag %#x", errShape, tag)
		}
	}
}

// AddFile takes the next layer, one of the whole shard that lies where it is read at random, into the import of a chunk: those of its tables that the chunk is in.
// read gives the bytes of one.
func (im *Import) AddFile(ctx context.Context, f *LayerFile, read func(offset, length int64) io.ReadCloser) error {
	if im.err != nil {
		return im.err
	}
	l := f.Layer
	err := errors.New("it is not of a chunk, or the layer is not of a shard")
	if im.l.Chunk != nil && l.Chunk == nil {
		l.Chunk = im.l.Chunk
		err = im.accept(l)
	}
	if err == nil {
		im.last = prefix{}
		im.parts++
		im.l.Hi = max(im.l.Hi, l.Hi)
		lo, hi := im.s.chunkRange(im.l.Branch, *im.l.Chunk)
		for _, p := range f.partsOf(*im.l.Chunk) {
			in := read(p.Offset, p.Length)
			_, err = im.take(ctx, &trimmer{im: im, l: l, lo: lo[:], hi: hi[:]}, p.Length, in, func() error { return nil })
			if err = errors.Join(err, in.Close()); err != nil {
				break
			}
		}
	}
	if err != nil {
		im.err = fmt.Errorf("import of %s: %w", im.l.what(), err)
	}
	return im.err
}

// partsOf are the tables that a chunk may be in.
func (f *LayerFile) partsOf(chunk placement.Chunk) (list []layerPart) {
	lo, hi := chunks{f.SegmentBlocks, f.Shards}.chunkRange(f.Branch, chunk)
	for _, p := range f.parts {
		if bytes.Compare(p.Last, lo[:]) >= 0 && bytes.Compare(p.First, hi[:]) < 0 {
			list = append(list, p)
		}
	}
	return list
}

// ChunkBytes is how many bytes of the layer are to be read for a chunk.
func (f *LayerFile) ChunkBytes(chunk placement.Chunk) (n int64) {
	for _, p := range f.partsOf(chunk) {
		n += p.Length
	}
	return n
}

// table takes one table of a layer's stream.
func (im *Import) table(ctx context.Context, l Layer, in *bufio.Reader) (versions uint64, err error) {
	n, err := readLength(in, maxTableBytes)
	if err != nil {
		return 0, err
	}
	t := &trimmer{im: im, l: l}
	return im.take(ctx, t, int64(n), in, func() error {
		tag, err := in.ReadByte()
		t.whole = tag == tagWhole
		return truncated(err)
	})
}

// take takes one table of size bytes into the store. read is called once it was read.
func (im *Import) take(ctx context.Context, t *trimmer, size int64, in io.Reader, read func() error) (versions uint64, err error) {
	s := im.s
	name := s.fs.PathJoin(s.opt.Dir, ingestDir, fmt.Sprintf("layer-%d", s.imports.Add(1)))
	defer func() { err = errors.Join(err, s.discard(name+".in"), s.discard(name+".sst")) }()
	if err := s.spool(ctx, name+".in", in, size); err != nil {
		return 0, err
	}
	if err := read(); err != nil {
		return 0, err
	}
	if err := s.spare.room(2 * size); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrFull, err)
	}
	if err := t.run(ctx, name+".in", name+".sst"); err != nil {
		return t.versions, err
	}
	if err := s.awaitCompactions(); err != nil {
		return t.versions, err
	}
	return t.versions, im.commit(name+".sst", t.kept, func(n *cover, changed map[coverKey]bool) {
		for _, k := range t.chunks {
			im.complete(n, changed, k)
		}
	})
}

// spool writes a table to a file.
func (s *Store) spool(ctx context.Context, path string, in io.Reader, size int64) (err error) {
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := io.CopyN(f, in, min(1<<20, size))
		if size -= k; err != nil {
			return truncated(err)
		}
	}
	return nil
}

// trimmer writes what a store lacks of one table of a layer into a table of its own.
type trimmer struct {
	im       *Import
	l        Layer
	lo, hi   []byte // only what lies between; nil: all
	whole    bool
	versions uint64
	kept     uint64
	chunk    placement.Chunk
	any      bool
	limit    pg.LSN
	chunks   []placement.Chunk // that are complete with this table
}

func (t *trimmer) run(ctx context.Context, from, to string) (err error) {
	s := t.im.s
	in, err := s.openTable(ctx, from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	f, err := s.fs.Create(to, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	w := s.newTable(&tableFile{f: f})
	pairs := pairWriter{set: w.Set}
	err = eachVersion(in, t.lo, t.hi, func(p *prefix, lsn pg.LSN, sealed []byte) error {
		return errors.Join(t.version(&pairs, p, lsn, sealed), ctx.Err())
	})
	if err == nil {
		err = pairs.finish()
	}
	if cerr := w.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if t.any && t.whole {
		t.chunks = append(t.chunks, t.chunk)
	}
	return err
}

func (t *trimmer) version(pairs *pairWriter, p *prefix, lsn pg.LSN, sealed []byte) error {
	im := t.im
	t.versions++
	if *p != im.last {
		if p.compare(&im.last) < 0 {
			return fmt.Errorf("%w: %s comes after %s", errShape, *p, im.last)
		}
		if err := t.object(p); err != nil {
			return err
		}
		im.last = *p
	}
	if lsn > t.l.Hi || t.l.Delta && lsn <= t.l.Lo {
		return fmt.Errorf("%w: a version of %s at %s is outside of the layer, %s to %s", errShape, *p, lsn, t.l.Lo, t.l.Hi)
	}
	if lsn > t.limit {
		return nil
	}
	t.kept++
	return pairs.add(p, lsn, sealed)
}

// object finds out up to where the versions of an object are wanted.
func (t *trimmer) object(p *prefix) error {
	im := t.im
	if p.branch() != im.l.Branch || p.small() != im.l.Small || p.class() >= classProgress {
		return fmt.Errorf("%w: %s does not belong in the layer", errShape, *p)
	}
	if im.l.Small {
		t.limit = ^pg.LSN(0)
		return nil
	}
	key := p.pageKey()
	chunk := placement.ChunkOf(key, im.s.opt.SegmentBlocks)
	if im.s.pagePrefix(im.l.Branch, key) != *p || placement.Shard(p.shard()) != im.l.Shard || im.l.Chunk != nil && chunk != *im.l.Chunk {
		return fmt.Errorf("%w: %s does not belong in the layer", errShape, *p)
	}
	if t.any && chunk != t.chunk {
		t.chunks = append(t.chunks, t.chunk)
	}
	t.chunk, t.any = chunk, true
	have := im.b.cover.Load().chunk(chunk, im.l.Shard)
	if t.limit = have.From; !im.meets(have) {
		t.limit = 0
	}
	return nil
}

// meets tells whether the layers begin no later than what the store has itself, or writes again after a crash, where that is incomplete.
func (im *Import) meets(have Coverage) bool {
	return have.Complete || min(have.From, im.resume) >= im.l.Lo
}

// openTable opens a table that is not the database's.
func (s *Store) openTable(ctx context.Context, path string) (*sstable.Reader, error) {
	f, err := s.fs.Open(path)
	if err != nil {
		return nil, err
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r, err := sstable.NewReader(ctx, readable, s.dbOpt.MakeReaderOptions())
	if err != nil {
		return nil, errors.Join(err, readable.Close())
	}
	return r, nil
}

// complete says that a chunk is complete from the first layer's Lo on, if what was added reaches what the store has itself.
func (im *Import) complete(n *cover, changed map[coverKey]bool, k placement.Chunk) {
	shard := n.shard(im.l.Shard)
	have := n.chunk(k, im.l.Shard)
	if im.l.Hi < have.From || !im.meets(have) || have.Complete && have.From <= im.l.Lo {
		return
	}
	if shard.Complete && shard.From >= im.l.Lo {
		delete(n.chunks, k)
	} else {
		n.chunks[k] = Coverage{Owned: true, Complete: true, From: im.l.Lo}
	}
	changed[coverKey{one: true, chunk: k}] = true
}

// Finish says that all was added. What is here of the shard, or chunk, now begins where the first layer does.
func (im *Import) Finish() error {
	if im.err != nil {
		return im.err
	}
	im.err = errors.New("the import is finished")
	err := im.commit("", 0, func(n *cover, changed map[coverKey]bool) {
		if im.l.Chunk != nil {
			im.complete(n, changed, *im.l.Chunk)
			return
		}
		have := n.shard(im.l.Shard)
		if have.From > im.l.Hi || !im.meets(have) {
			return
		}
		if !have.Complete || have.From > im.l.Lo {
			have = Coverage{Owned: true, Complete: true, From: im.l.Lo}
			n.shards[im.l.Shard] = have
			changed[coverKey{shard: im.l.Shard}] = true
		}
		for k, c := range n.chunks {
			if placement.ShardOf(k, im.s.opt.Shards) != im.l.Shard || c.From > im.l.Hi || !im.meets(c) {
				continue
			}
			from := im.l.Lo
			if c.Complete {
				from = min(from, c.From)
			}
			if from <= have.From {
				delete(n.chunks, k)
			} else { // it was given up, and the layer begins later than the shard does
				n.chunks[k] = Coverage{Owned: true, Complete: true, From: from}
			}
			changed[coverKey{one: true, chunk: k}] = true
		}
	})
	if err != nil {
		return fmt.Errorf("import of %s: %w", im.l.what(), err)
	}
	have := im.s.Coverage(im.l.Branch, im.l.Shard)
	if im.l.Chunk != nil {
		have = im.s.ChunkCoverage(im.l.Branch, *im.l.Chunk)
	}
	if !im.meets(have) {
		return fmt.Errorf("import of %s: %w: the layers begin at %s, beyond %s, from where on the store has its own: give that up and own it anew", im.l.what(), ErrNotHere,
			im.l.Lo, have.From)
	}
	if !have.answers(max(im.l.Lo, have.From)) {
		return fmt.Errorf("import of %s: %w: the layers reach up to %s only, the store has what is beyond %s", im.l.what(), ErrNotHere, im.l.Hi, have.From)
	}
	return nil
}

// commit ingests a table together with what it does to the coverage.
func (im *Import) commit(path string, versions uint64, change func(n *cover, changed map[coverKey]bool)) error {
	s, b := im.s, im.b
	s.covering.Lock()
	defer s.covering.Unlock()
	s.tables.Lock()
	defer s.tables.Unlock()
	var paths []string
	if versions > 0 {
		paths = append(paths, path)
	}
	old := b.cover.Load()
	var n *cover
	if !im.l.Small {
		for _, at := range s.lines().children(im.l.Branch) {
			if at < im.l.Lo && !slices.Contains(im.l.Pins, at) {
				return fmt.Errorf("%w: the layer has not what the branch needs that forked off at %s", ErrNotHere, at)
			}
		}
		if !im.have(old).Owned || b.shrunk[im.l.Shard] != im.shrunk || b.current() == nil {
			return fmt.Errorf("%w: shards or chunks were given up meanwhile: import it again", ErrNotHere)
		}
		changed := map[coverKey]bool{}
		c := old.clone(s.opt.Shards)
		if change(c, changed); len(changed) > 0 {
			n = c
			cover := s.fs.PathJoin(s.opt.Dir, ingestDir, "cover.sst")
			if err := s.writePairs(cover, c.sortedPairs(im.l.Branch, changed)); err != nil {
				return err
			}
			defer s.discard(cover)
			paths = append(paths, cover)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	if err := s.db.Ingest(context.Background(), paths); err != nil {
		return fmt.Errorf("ingest table: %w", err)
	}
	s.changed()
	if n != nil {
		s.mu.Lock()
		b.cover.Store(n)
		b.reached(im.l.Lo)
		s.mu.Unlock()
	}
	return nil
}

// writePairs writes a table of a few pairs.
func (s *Store) writePairs(path string, list []pair) error {
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	w := s.newTable(&tableFile{f: f})
	pairs := pairWriter{set: w.Set}
	for i := range list {
		if err == nil {
			err = pairs.add(&list[i].p, 0, list[i].value)
		}
	}
	if err == nil {
		err = pairs.finish()
	}
	if cerr := w.Close(); err == nil && cerr != nil {
		err = cerr
	}
	return err
}

// finishSmall makes the branch known.
func (im *Import) finishSmall() error {
	s, b := im.s, im.b
	if im.progress == nil {
		return errors.New("nothing was added")
	}
	if p := im.progress; p.Fork != 0 {
		if parent := s.branch(p.Parent).current(); parent == nil || parent.Readable < p.Fork {
			return fmt.Errorf("%w: its parent, branch %d, must reach %s first", ErrNoBranch, p.Parent, p.Fork)
		}
	}
	p := *im.progress
	p.Note, p.Copied = slices.Clone(p.Note), p.Resume
	bp := branchProgress{b: b, p: &p, high: p.Readable}
	v, err := bp.encode()
	if err != nil {
		return err
	}
	n := &cover{chunks: map[placement.Chunk]Coverage{}}
	list := []pair{{progressPrefix(im.l.Branch), v}, n.pair(im.l.Branch, coverKey{rest: true})}
	s.covering.Lock()
	defer s.covering.Unlock()
	s.tables.Lock()
	defer s.tables.Unlock()
	path := s.fs.PathJoin(s.opt.Dir, ingestDir, "cover.sst")
	if err := s.writePairs(path, list); err != nil {
		return err
	}
	defer s.discard(path)
	if err := s.db.Ingest(context.Background(), []string{path}); err != nil {
		return err
	}
	s.changed()
	s.mu.Lock()
	defer s.mu.Unlock()
	b.mu.Lock()
	clear(b.sizes)
	b.mu.Unlock()
	b.cover.Store(n)
	b.high = p.Readable
	b.durable = &p
	s.relate(im.l.Branch, &p)
	b.progress.Store(&p)
	b.wake(false)
	im.progress = &p
	return nil
}
