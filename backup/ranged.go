package backup

import (
	"context"
	"io"
	"sync"
	"time"

	"everpage/backup/store"
)

// maxExtents bounds the bytes of objects that are kept.
const maxExtents = 16 << 20

// extents keeps what of objects was read last, by where it begins and how long it is: whoever reads a layer asks for the same parts again and again.
type extents struct {
	mu    sync.Mutex
	clock uint64
	bytes int64
	m     map[extentKey]*extent
}

type extentKey struct {
	object string
	start  int64
	length int64
}

type extent struct {
	once sync.Once
	b    []byte
	err  error
	used uint64
}

func newExtents() *extents { return &extents{m: map[extentKey]*extent{}} }

func (c *extents) get(key extentKey, read func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	c.clock++
	e := c.m[key]
	if e == nil {
		e = &extent{}
		c.m[key] = e
		c.bytes += key.length
	}
	e.used = c.clock
	for c.bytes > maxExtents && len(c.m) > 1 {
		c.evict()
	}
	c.mu.Unlock()
	e.once.Do(func() { e.b, e.err = read() })
	if e.err != nil {
		c.mu.Lock()
		if c.m[key] == e {
			c.drop(key)
		}
		c.mu.Unlock()
	}
	return e.b, e.err
}

// has tells whether an extent is kept or being read.
func (c *extents) has(key extentKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m[key] != nil
}

// drop forgets an extent. The caller holds mu.
func (c *extents) drop(key extentKey) {
	delete(c.m, key)
	c.bytes -= key.length
}

// forget drops all of a part of an object.
func (c *extents) forget(object string, offset, length int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.m {
		if key.object == object && key.start >= offset && key.start < offset+length {
			c.drop(key)
		}
	}
}

// evict lets go of the extent that was used longest ago. The caller holds mu.
func (c *extents) evict() {
	var oldest extentKey
	var used uint64
	for k, e := range c.m {
		if used == 0 || e.used < used {
			oldest, used = k, e.used
		}
	}
	c.drop(oldest)
}

// ranged reads a layer within an object as a file.
type ranged struct {
	store        store.Store
	extents      *extents
	name         string
	offset, size int64

	mu      sync.Mutex
	streams [maxStreams]stream // those used last come first
}

// stream is a part of the layer that is read one block after the other, as whoever reads all pages of a relation does. Each block as a request of its own would cost
// them more than all else.
type stream struct {
	last, before span  // what was read of it last: a block is asked for again when the one behind it was looked at
	ahead        int64 // how much is read at once; 0: not known to be a stream yet
}

// span is from where to where in a layer.
type span struct{ start, end int64 }

func (s span) holds(x span) bool { return x.start >= s.start && x.end <= s.end }

const (
	// maxStreams is how many streams a layer may have at once: as many as a restore writes files at a time.
	maxStreams = 4
	// How much is read at once of a stream, from its second block on and at most: all that are read at once must fit into extents.
	minAhead = 64 << 10
	maxAhead = 256 << 10
)

// rangedTimeout bounds one request for a part of an object.
const rangedTimeout = 30 * time.Second

// ReadAt implements io.ReaderAt. It reads exactly what is asked for, since a layer's reader knows what lies side by side, until it sees one block asked for
// behind the other.
func (r *ranged) ReadAt(p []byte, at int64) (n int, err error) {
	want := p
	if left := r.size - at; int64(len(want)) > left {
		want = want[:max(left, 0)]
	}
	if len(want) > 0 {
		x := span{at, at + int64(len(want))}
		if !r.extents.has(r.key(x)) {
			x = r.follow(x)
		}
		b, err := r.extents.get(r.key(x), func() ([]byte, error) { return r.read(x.start, x.end-x.start) })
		if err != nil {
			return 0, err
		}
		n = copy(want, b[at-x.start:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (r *ranged) key(x span) extentKey {
	return extentKey{r.name, r.offset + x.start, x.end - x.start}
}

// follow is what to read at once where a block is needed: more than the block, where it follows another one.
func (r *ranged) follow(block span) span {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, s := range r.streams {
		var read span
		switch {
		case s.last.end == 0:
			continue
		case s.last.holds(block):
			read = s.last
		case s.before.holds(block):
			read = s.before
		case block.start >= s.last.start && block.start <= s.last.end+s.ahead:
			s.ahead = min(max(2*s.ahead, minAhead), maxAhead)
			read = span{block.start, min(max(block.end, block.start+s.ahead), r.size)}
			s.before, s.last = s.last, read
		default:
			continue
		}
		r.use(i, s)
		return read
	}
	r.use(maxStreams-1, stream{last: block})
	return block
}

// use has a stream come first, in the place of the one at i. The caller holds mu.
func (r *ranged) use(i int, s stream) {
	copy(r.streams[1:i+1], r.streams[:i])
	r.streams[0] = s
}

func (r *ranged) read(at, length int64) (b []byte, err error) {
	for range layerRetries {
		ctx, cancel := context.WithTimeout(context.Background(), rangedTimeout)
		b, err = store.ReadAll(ctx, r.store, r.name, r.offset+at, length)
		cancel()
		if err == nil || !store.Temporary(err) {
			return b, err
		}
	}
	return nil, err
}
