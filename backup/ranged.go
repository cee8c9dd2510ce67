package backup

import (
	"context"
	"io"
	"sync"
	"time"

	"everpage/backup/store"
)

// Objects are read in blocks of this size: a table's footer, index and filter lie side by side, so that they come with one request.
const blockSize = 64 << 10

// maxBlocks bounds the blocks that are kept.
const maxBlocks = 256

// blockCache keeps the blocks of objects that were read last.
type blockCache struct {
	mu     sync.Mutex
	clock  uint64
	blocks map[blockKey]*cachedBlock
}

type blockKey struct {
	object string
	start  int64
}

type cachedBlock struct {
	once sync.Once
	b    []byte
	err  error
	used uint64
}

func newBlockCache() *blockCache { return &blockCache{blocks: map[blockKey]*cachedBlock{}} }

func (c *blockCache) get(key blockKey, read func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	c.clock++
	b := c.blocks[key]
	if b == nil {
		b = &cachedBlock{}
		c.blocks[key] = b
		if len(c.blocks) > maxBlocks {
			c.evict()
		}
	}
	b.used = c.clock
	c.mu.Unlock()
	b.once.Do(func() { b.b, b.err = read() })
	if b.err != nil {
		c.mu.Lock()
		if c.blocks[key] == b {
			delete(c.blocks, key)
		}
		c.mu.Unlock()
	}
	return b.b, b.err
}

// evict lets go of the block that was used longest ago. The caller holds mu.
func (c *blockCache) evict() {
	var oldest blockKey
	var used uint64
	for k, b := range c.blocks {
		if b.used != 0 && (used == 0 || b.used < used) {
			oldest, used = k, b.used
		}
	}
	delete(c.blocks, oldest)
}

// ranged reads a layer within an object as a file.
type ranged struct {
	store        store.Store
	blocks       *blockCache
	name         string
	offset, size int64
}

// rangedTimeout bounds one request for a block.
const rangedTimeout = 30 * time.Second

// ReadAt implements io.ReaderAt.
func (r *ranged) ReadAt(p []byte, at int64) (n int, err error) {
	for n < len(p) {
		if at >= r.size {
			return n, io.EOF
		}
		start := at / blockSize * blockSize
		b, err := r.blocks.get(blockKey{r.name, r.offset + start}, func() ([]byte, error) { return r.read(start) })
		if err != nil {
			return n, err
		}
		m := copy(p[n:], b[at-start:])
		n, at = n+m, at+int64(m)
	}
	return n, nil
}

func (r *ranged) read(start int64) (b []byte, err error) {
	for range layerRetries {
		ctx, cancel := context.WithTimeout(context.Background(), rangedTimeout)
		b, err = store.ReadAll(ctx, r.store, r.name, r.offset+start, min(blockSize, r.size-start))
		cancel()
		if err == nil || !store.Temporary(err) {
			return b, err
		}
	}
	return nil, err
}
