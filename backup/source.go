package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"everpage/backup/store"
	"everpage/chunk"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Source answers for pages that a node has not got, out of the store: it reads the few blocks of tables that a page's versions are in. It is a
// chunk.LayerSource.
type Source struct {
	store    store.Store
	registry Registry
	// Kept, where set, tells whether a page is kept as it is at an LSN however far the history was collected, since a database was copied just behind or a branch
	// forked off there. Base layers have that, too, below where they begin.
	Kept func(branch uint32, key pg.PageKey, at pg.LSN) (bool, error)

	mu        sync.Mutex
	manifests map[shardKey]*Manifest
	refs      map[shardKey]string
	last      map[shardKey]time.Time
	layers    map[layerKey]*openLayer
	extents   *extents
	clock     uint64
	reads     uint64
}

type layerKey struct {
	object string
	offset int64
}

// openLayer is a layer whose index is in memory.
type openLayer struct {
	once sync.Once
	file *chunk.LayerFile
	err  error
	used uint64
}

// maxOpenLayers bounds the layers held open.
const maxOpenLayers = 512

// NewSource makes a source for what a registry names.
func NewSource(s store.Store, r Registry) *Source {
	return &Source{store: s, registry: r, manifests: map[shardKey]*Manifest{}, refs: map[shardKey]string{}, last: map[shardKey]time.Time{}, layers: map[layerKey]*openLayer{}, extents: newExtents()}
}

// asked is when a page of a shard was read last.
func (s *Source) asked(key shardKey) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[key]
}

// manifest is a shard's current manifest, from memory where that is it.
func (s *Source) manifest(ctx context.Context, key shardKey) (*Manifest, error) {
	current := s.registry.Current(key.branch, key.shard)
	if current.Ref == "" {
		return nil, fmt.Errorf("shard %d of branch %d was never backed up", key.shard, key.branch)
	}
	s.mu.Lock()
	m, ref := s.manifests[key], s.refs[key]
	s.mu.Unlock()
	if m != nil && ref == current.Ref {
		return m, nil
	}
	m, err := ReadManifest(ctx, s.store, current.Ref)
	if err != nil {
		return nil, err
	}
	if m.Branch != key.branch || m.Shard != key.shard {
		return nil, &store.Error{Op: "get", Name: current.Ref, Kind: store.ErrCorrupt, Err: fmt.Errorf("it is the manifest of shard %d of branch %d", m.Shard, m.Branch)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.manifests[key], s.refs[key] = m, current.Ref
	return m, nil
}

// Versions implements chunk.LayerSource.
func (s *Source) Versions(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN) ([]chunk.PageVersion, error) {
	var versions []chunk.PageVersion
	var err error
	// A manifest that was replaced while it was read may name objects that are gone by now: then the new one is asked, once. What arrived damaged was forgotten,
	// and may arrive whole.
	for range 2 {
		versions, err = s.versions(ctx, branch, key, at)
		var damaged *damagedLayer
		if !errors.Is(err, store.ErrNotExist) && !errors.As(err, &damaged) {
			break
		}
	}
	return versions, err
}

func (s *Source) versions(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN) ([]chunk.PageVersion, error) {
	// The shard depends on how the cluster was made, which every manifest says.
	small, err := s.manifest(ctx, shardKey{branch, Small})
	if err != nil {
		return nil, err
	}
	k := shardKey{branch, placement.ShardOf(placement.ChunkOf(key, small.SegmentBlocks), small.Shards)}
	s.mu.Lock()
	s.last[k] = time.Now()
	s.reads++
	s.mu.Unlock()
	m, err := s.manifest(ctx, k)
	if err != nil {
		return nil, err
	}
	below := false
	if at < m.Lo() && s.Kept != nil {
		if below, err = s.Kept(branch, key, at); err != nil {
			return nil, err
		}
	}
	if at > m.Hi || at < m.Lo() && !below {
		return nil, fmt.Errorf("the backup of shard %d reaches from %s to %s, not to %s", k.shard, m.Lo(), m.Hi, at)
	}
	var layers []Layer // newest first
	for _, l := range slices.Backward(m.Layers) {
		if !l.Delta || l.Lo < at {
			layers = append(layers, l)
		}
	}
	var out []chunk.PageVersion
	for len(layers) > 0 {
		wave := layers[:min(waveLayers, len(layers))]
		layers = layers[len(wave):]
		for i, got := range s.wave(ctx, wave, key, at) {
			if got.err != nil {
				return nil, got.err
			}
			for _, v := range got.list {
				if len(out) > 0 && v.LSN >= out[len(out)-1].LSN {
					return nil, &store.Error{Op: "get", Name: wave[i].Object, Kind: store.ErrCorrupt, Err: fmt.Errorf("page %s: version %s is in two layers", key, v.LSN)}
				}
				out = append(out, v)
			}
			if got.based || below && !wave[i].Delta {
				return out, nil
			}
		}
	}
	return nil, fmt.Errorf("the layers of shard %d don't reach down to a base of page %s at %s", k.shard, key, at)
}

// waveLayers is how many layers are asked at once. Most pages need the newest and the oldest, and no request waits for the one before.
const waveLayers = 6

type found struct {
	list  []chunk.PageVersion
	based bool
	err   error
}

// wave asks several layers for a page's versions side by side.
func (s *Source) wave(ctx context.Context, layers []Layer, key pg.PageKey, at pg.LSN) []found {
	out := make([]found, len(layers))
	var wg sync.WaitGroup
	for i, l := range layers {
		wg.Go(func() {
			f, err := s.open(l)
			if err == nil {
				out[i].list, out[i].based, err = f.PageVersions(ctx, key, at)
			}
			if err != nil {
				out[i].err = s.failed(ctx, l, err)
			}
		})
	}
	wg.Wait()
	return out
}

// damagedLayer is what came from the store and is not what was written.
type damagedLayer struct {
	layer Layer
	err   error
}

func (e *damagedLayer) Error() string {
	return fmt.Sprintf("layer in %s at %d: %v", e.layer.Object, e.layer.Offset, e.err)
}

func (e *damagedLayer) Unwrap() error { return e.err }

// failed names the layer that could not be read. Unless the store itself tells the reason, what was read of it is forgotten: it may have been damaged on its
// way here only.
func (s *Source) failed(ctx context.Context, l Layer, err error) error {
	var told *store.Error
	if ctx.Err() != nil || errors.As(err, &told) && (store.Temporary(err) || errors.Is(err, store.ErrNotExist)) {
		return fmt.Errorf("layer in %s at %d: %w", l.Object, l.Offset, err)
	}
	s.mu.Lock()
	delete(s.layers, layerKey{l.Object, l.Offset})
	s.mu.Unlock()
	s.extents.forget(l.Object, l.Offset, l.Length)
	return &damagedLayer{l, err}
}

// open opens a layer, or finds it open.
func (s *Source) open(l Layer) (*chunk.LayerFile, error) {
	key := layerKey{l.Object, l.Offset}
	s.mu.Lock()
	s.clock++
	o := s.layers[key]
	if o == nil {
		o = &openLayer{}
		s.layers[key] = o
		s.evict()
	}
	o.used = s.clock
	s.mu.Unlock()
	o.once.Do(func() {
		o.file, o.err = chunk.OpenLayer(&ranged{store: s.store, extents: s.extents, name: l.Object, offset: l.Offset, size: l.Length}, l.Length)
		if o.err == nil && (o.file.Lo != l.Lo || o.file.Hi != l.Hi || o.file.Delta != l.Delta) {
			o.err = &store.Error{Op: "get", Name: l.Object, Kind: store.ErrCorrupt, Err: fmt.Errorf("the layer at %d is from %s to %s, its manifest says %s to %s", l.Offset, o.file.Lo, o.file.Hi, l.Lo, l.Hi)}
		}
	})
	if o.err != nil {
		s.mu.Lock()
		if s.layers[key] == o {
			delete(s.layers, key)
		}
		s.mu.Unlock()
		return nil, o.err
	}
	return o.file, nil
}

// evict lets go of the layer that was used longest ago. Whoever still reads it does so to the end: it holds nothing but memory.
func (s *Source) evict() {
	if len(s.layers) <= maxOpenLayers {
		return
	}
	var oldest layerKey
	var used uint64
	for k, o := range s.layers {
		if o.used != 0 && (used == 0 || o.used < used) {
			oldest, used = k, o.used
		}
	}
	delete(s.layers, oldest)
}
