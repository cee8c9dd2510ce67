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
}

// rangedTimeout bounds one request for a part of an object.
const rangedTimeout = 30 * time.Second

// ReadAt implements io.ReaderAt. It reads exactly what is asked for: a layer's reader knows what lies side by side.
func (r *ranged) ReadAt(p []byte, at int64) (n int, err error) {
	want := p
	if left := r.size - at; int64(len(want)) > left {
		want = want[:max(left, 0)]
	}
	if len(want) > 0 {
		b, err := r.extents.get(extentKey{r.name, r.offset + at, int64(len(want))}, func() ([]byte, error) { return r.read(at, int64(len(want))) })
		if err != nil {
			return 0, err
		}
		n = copy(want, b)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
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
