package backup

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"everpage/backup/store"
)

// counted is a store that counts what is read.
type counted struct {
	store.Store
	requests int
	bytes    int64
}

func (c *counted) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	c.requests++
	c.bytes += length
	return c.Store.Get(ctx, name, offset, length)
}

// TestReadAhead reads an object in blocks: one behind the other, in as many streams as there may be, a block again once the next one was looked at, it takes few
// requests and each byte about once; at random nothing is read that wasn't asked for. It is always what was written.
func TestReadAhead(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 7))
	const offset, size, block = 1000, 8 << 20, 20_000
	object := make([]byte, offset+size+500)
	for i := range object {
		object[i] = byte(rng.Uint32())
	}
	objects := store.NewMemory()
	if err := objects.Put(t.Context(), "object", store.Bytes(object)); err != nil {
		t.Fatal(err)
	}
	open := func() (*ranged, *counted) {
		c := &counted{Store: objects}
		return &ranged{store: c, extents: newExtents(), name: "object", offset: offset, size: size}, c
	}
	read := func(r *ranged, at, length int64) {
		t.Helper()
		b := make([]byte, length)
		n, err := r.ReadAt(b, at)
		if want := min(length, size-at); int64(n) != want || (err != nil) != (want < length) || !bytes.Equal(b[:n], object[offset+at:offset+at+want]) {
			t.Fatalf("%d bytes at %d: %d were read, right %t, error %v", length, at, n, bytes.Equal(b[:n], object[offset+at:offset+at+int64(n)]), err)
		}
	}
	for streams := int64(1); streams <= maxStreams; streams++ {
		r, c := open()
		each := size / streams / block * block
		for at := int64(0); at < each; at += block {
			for s := range streams {
				read(r, s*each+at, block)
				if at > 0 {
					read(r, s*each+at-block, block)
				}
			}
		}
		read(r, size-block/2, block)
		if most := int(size/maxAhead + 5*streams + 1); c.requests > most {
			t.Errorf("%d streams: %d requests, %d would do", streams, c.requests, most)
		}
		if most := int64(size + size/8 + streams*maxAhead); c.bytes > most {
			t.Errorf("%d streams: %d bytes were read of %d", streams, c.bytes, size)
		}
	}
	r, c := open()
	var asked int64
	for range 40 {
		at := rng.Int64N(size/(10*block)) * 10 * block
		read(r, at, block)
		asked += block
	}
	if c.bytes > asked {
		t.Errorf("at random %d bytes were read, %d were asked for", c.bytes, asked)
	}
	r, _ = open()
	for range 2000 {
		at := rng.Int64N(size)
		for range 1 + rng.IntN(4) {
			length := 1 + rng.Int64N(100_000)
			read(r, at, length)
			if at += length; at >= size || rng.IntN(3) == 0 {
				break
			}
		}
	}
}
