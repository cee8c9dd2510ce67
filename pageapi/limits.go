package pageapi

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/mem"

	"everpage/wal/pg"
)

// What a server has under way is bounded, so that a thousand clients that ask for the largest batches, or that don't read their answers, cost a
// bounded amount of memory.
const (
	maxStreamsOfConnection = 1024
	maxStreams             = 4096     // of page requests, all connections together
	maxPagesUnderWay       = 64 << 20 // bytes of pages that are read or were read and wait to be sent
)

// pagePool hands out the buffers of answers, up to a bound. A buffer counts until gRPC has written it.
type pagePool struct {
	limit int64
	bytes atomic.Int64
	pools [10]sync.Pool // by size: 1, 2, 4 … pages
}

func sizeClass(n int) int { return bits.Len(uint(n-1) / pg.BlockSize) }

// take is a buffer of n bytes; nil if as much is under way as may be. Its content is whatever was in it.
func (p *pagePool) take(n int) *[]byte {
	if p.bytes.Add(int64(n)) > p.limit {
		p.bytes.Add(int64(-n))
		return nil
	}
	b, _ := p.pools[sizeClass(n)].Get().(*[]byte)
	if b == nil {
		b = new([]byte)
		*b = make([]byte, pg.BlockSize<<sizeClass(n))
	}
	*b = (*b)[:n]
	return b
}

// Get implements mem.BufferPool. gRPC only gives buffers back.
func (p *pagePool) Get(n int) *[]byte {
	b := make([]byte, n)
	return &b
}

// Put implements mem.BufferPool: take's buffers come back.
func (p *pagePool) Put(b *[]byte) {
	p.bytes.Add(int64(-len(*b)))
	p.pools[sizeClass(len(*b))].Put(b)
}

var _ mem.BufferPool = (*pagePool)(nil)
