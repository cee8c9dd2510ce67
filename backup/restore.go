package backup

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"everpage/backup/store"
	"everpage/chunk"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Target is the version store that is filled from the backup: *chunk.Store.
type Target interface {
	ImportSmall(ctx context.Context, branch uint32, parts ...io.Reader) (chunk.Progress, error)
	Own(branch uint32, shards ...placement.Shard) (pg.LSN, error)
	Import(branch uint32, shard placement.Shard, chunk *placement.Chunk) (*chunk.Import, error)
	Coverage(branch uint32, shard placement.Shard) chunk.Coverage
	ChunkCoverage(branch uint32, k placement.Chunk) chunk.Coverage
	Evict(ctx context.Context, branch uint32, list ...chunk.Eviction) error
	EvictShards(ctx context.Context, branch uint32, first placement.Shard, upTo []pg.LSN) error
	Branches() []uint32
	Shards() uint32
	SegmentBlocks() uint32
}

// layerReader reads one layer's stream and holds it against its checksum. It gives the end only where all was right.
type layerReader struct {
	ctx   context.Context
	store store.Store
	l     Layer
	body  io.ReadCloser
	read  int64
	sum   hash.Hash32
	part  bool // of a layer, which has no checksum of its own
}

func newLayerReader(ctx context.Context, s store.Store, l Layer) *layerReader {
	return &layerReader{ctx: ctx, store: s, l: l, sum: crc32.New(castagnoli)}
}

const layerRetries = 5

func (r *layerReader) Read(p []byte) (int, error) {
	if r.read == r.l.Length {
		return 0, io.EOF
	}
	var failed error
	for range layerRetries {
		if r.body == nil {
			// An attempt goes on where the last one broke off: large layers over bad lines come to their end.
			body, err := r.store.Get(r.ctx, r.l.Object, r.l.Offset+r.read, r.l.Length-r.read)
			if err != nil {
				if failed = err; !store.Temporary(err) || r.ctx.Err() != nil {
					return 0, err
				}
				continue
			}
			r.body = body
		}
		n, err := r.body.Read(p)
		r.read += int64(n)
		r.sum.Write(p[:n])
		if err != nil && (!errors.Is(err, io.EOF) || r.read < r.l.Length) {
			failed = err
			r.close()
			if n == 0 {
				continue
			}
			err = nil
		}
		if r.read == r.l.Length && !r.part && r.sum.Sum32() != r.l.CRC {
			return 0, &store.Error{Op: "get", Name: r.l.Object, Kind: store.ErrCorrupt, Err: fmt.Errorf("the layer at %d has a wrong checksum", r.l.Offset)}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return n, err
	}
	return 0, failed
}

func (r *layerReader) close() {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
}

// Close implements io.Closer.
func (r *layerReader) Close() error {
	r.close()
	return nil
}

// RestoreSmall makes the branches of a root in an empty version store, with all that is small in them and none of their shards' pages: those are owned,
// and come by Filler. It returns where reading WAL goes on.
func RestoreSmall(ctx context.Context, s store.Store, t Target, root *Root) (resume map[uint32]chunk.Progress, err error) {
	if t.Shards() != root.Shards || t.SegmentBlocks() != root.SegmentBlocks {
		return nil, fmt.Errorf("the backup has %d shards and chunks of %d blocks, this node %d and %d", root.Shards, root.SegmentBlocks, t.Shards(), t.SegmentBlocks())
	}
	resume = map[uint32]chunk.Progress{}
	for _, b := range root.Branches {
		if !b.whole(root.Shards) {
			continue // its import was not yet uploaded: nothing of it could be read
		}
		i := slices.IndexFunc(b.Manifests, func(m ManifestRoot) bool { return m.Shard == Small })
		if l := root.line(b.Branch); l.Parent != 0 && resume[l.Parent].Readable < l.Fork {
			continue // its parent does not reach the fork: it is made anew out of WAL
		}
		m, err := ReadManifest(ctx, s, b.Manifests[i].Ref)
		if err != nil {
			return nil, err
		}
		for _, shard := range b.Manifests {
			if shard.LSN < m.Hi {
				return nil, fmt.Errorf("the backup of branch %d is not whole: shard %d ends at %s, what is small at %s", b.Branch, shard.Shard, shard.LSN, m.Hi)
			}
		}
		var parts []io.Reader
		for _, l := range m.Layers {
			r := newLayerReader(ctx, s, l)
			defer r.close()
			parts = append(parts, r)
		}
		p, err := t.ImportSmall(ctx, b.Branch, parts...)
		if err != nil {
			return nil, err
		}
		if _, err := t.Own(b.Branch, allShards(root.Shards)...); err != nil {
			return nil, err
		}
		resume[b.Branch] = p
	}
	if len(resume) == 0 {
		return nil, fmt.Errorf("%w that is whole: its base backup was not yet uploaded", ErrNoRoot)
	}
	return resume, nil
}

func allShards(n uint32) []placement.Shard {
	list := make([]placement.Shard, n)
	for i := range list {
		list[i] = placement.Shard(i)
	}
	return list
}

// Filler fills the shards that a version store owns and has not got, behind the reads: those first that are asked for.
type Filler struct {
	Source *Source
	Store  store.Store // where layers are read: that of Source, or what limits it
	Target Target
	Log    *slog.Logger
	Room   func(bytes int64) bool // whether a shard that takes so much in the store may come; nil: all may

	mu   sync.Mutex
	left int
	err  error
}

// Status is how many shards are still to be filled, and why not.
func (f *Filler) Status() (left int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left, f.err
}

// missing lists the shards that are to be filled, those that were asked for last first.
func (f *Filler) missing() (list []shardKey) {
	for _, b := range f.Target.Branches() {
		for shard := range f.Target.Shards() {
			// What the node has itself begins at From. Where the backup ends before that, only another replica can fill the shard.
			have := f.Source.registry.Current(b, placement.Shard(shard))
			if c := f.Target.Coverage(b, placement.Shard(shard)); c.Owned && !c.Complete && have.Ref != "" && c.From <= have.LSN {
				list = append(list, shardKey{b, placement.Shard(shard)})
			}
		}
	}
	slices.SortStableFunc(list, func(a, b shardKey) int { return f.Source.asked(b).Compare(f.Source.asked(a)) })
	return list
}

// Run fills until nothing is missing, looks again from time to time, and ends with ctx.
func (f *Filler) Run(ctx context.Context) error {
	wait := minRetry
	for {
		list := f.fitting(ctx, f.missing())
		f.mu.Lock()
		f.left = len(list)
		f.mu.Unlock()
		if len(list) > 0 {
			err := f.fill(ctx, list[0])
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			f.mu.Lock()
			f.err = err
			f.mu.Unlock()
			if err == nil {
				wait = minRetry
				continue
			}
			f.Log.Warn("a shard is not restored", "branch", list[0].branch, "shard", list[0].shard, "error", err, "retry_in", wait)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
		if len(list) > 0 {
			wait = min(2*wait, maxRetry)
		}
	}
}

// fitting leaves out the shards that there is no room for.
func (f *Filler) fitting(ctx context.Context, list []shardKey) []shardKey {
	if f.Room == nil {
		return list
	}
	return slices.DeleteFunc(list, func(key shardKey) bool {
		m, err := f.Source.manifest(ctx, key)
		return err == nil && !f.Room(m.Bytes())
	})
}

// layersOf are the layers of a shard that a chunk may be in, and the bytes of them that are to be read for it.
func (f *Filler) layersOf(ctx context.Context, branch uint32, k placement.Chunk) (m *Manifest, files []*chunk.LayerFile, bytes int64, err error) {
	if m, err = f.Source.manifest(ctx, shardKey{branch, placement.ShardOf(k, f.Target.Shards())}); err != nil {
		return nil, nil, 0, err
	}
	for _, l := range m.Layers {
		file, err := f.Source.open(l)
		if err != nil {
			return nil, nil, 0, f.Source.failed(ctx, l, err)
		}
		files = append(files, file)
		bytes += file.ChunkBytes(k)
	}
	return m, files, bytes, nil
}

// ChunkBytes is how much is to be read to fill a chunk.
func (f *Filler) ChunkBytes(ctx context.Context, branch uint32, k placement.Chunk) (int64, error) {
	_, _, n, err := f.layersOf(ctx, branch, k)
	return n, err
}

// Chunk fills one chunk of which the version store has given something up.
func (f *Filler) Chunk(ctx context.Context, branch uint32, k placement.Chunk) error {
	m, files, _, err := f.layersOf(ctx, branch, k)
	if err != nil {
		return err
	}
	// What lies below the layers was collected in the store since.
	if have := f.Target.ChunkCoverage(branch, k); have.From < m.Lo() && !have.Complete {
		if err := f.Target.Evict(ctx, branch, chunk.Eviction{Chunk: k, UpTo: m.Hi}); err != nil {
			return err
		}
	}
	im, err := f.Target.Import(branch, placement.ShardOf(k, f.Target.Shards()), &k)
	if err != nil {
		return err
	}
	for i, file := range files {
		l := m.Layers[i]
		if err := im.AddFile(ctx, file, func(offset, length int64) io.ReadCloser {
			r := newLayerReader(ctx, f.Store, Layer{Object: l.Object, Offset: l.Offset + offset, Length: length})
			r.part = true // its tables have checksums of their own
			return r
		}); err != nil {
			return err
		}
	}
	return im.Finish()
}

func (f *Filler) fill(ctx context.Context, key shardKey) error {
	m, err := f.Source.manifest(ctx, key)
	if err != nil {
		return err
	}
	if have := f.Target.Coverage(key.branch, key.shard); have.From < m.Lo() { // as in Chunk
		if err := f.Target.EvictShards(ctx, key.branch, key.shard, []pg.LSN{m.Hi}); err != nil {
			return err
		}
	}
	im, err := f.Target.Import(key.branch, key.shard, nil)
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		r := newLayerReader(ctx, f.Store, l)
		_, err := im.Add(ctx, r)
		r.close()
		if err != nil {
			return err
		}
	}
	return im.Finish()
}
