package store

import (
	"context"
	"io"
	"sync/atomic"
)

// Usage is what was asked of a store.
type Usage struct {
	Puts, Gets, Stats, Deletes, Lists, Failures uint64
	Uploaded, Downloaded                        uint64 // bytes
}

// Requests is the number of calls.
func (u Usage) Requests() uint64 { return u.Puts + u.Gets + u.Stats + u.Deletes + u.Lists }

// Counter is a store that counts what is asked of another one. A call is one, however many requests the service needs for it.
type Counter struct {
	Store
	puts, gets, stats, deletes, lists, failures, up, down atomic.Uint64
}

// Count counts the calls to s.
func Count(s Store) *Counter { return &Counter{Store: s} }

// Usage is what was counted so far.
func (c *Counter) Usage() Usage {
	return Usage{
		Puts: c.puts.Load(), Gets: c.gets.Load(), Stats: c.stats.Load(), Deletes: c.deletes.Load(), Lists: c.lists.Load(), Failures: c.failures.Load(),
		Uploaded: c.up.Load(), Downloaded: c.down.Load(),
	}
}

func (c *Counter) failed(err error) error {
	if err != nil {
		c.failures.Add(1)
	}
	return err
}

// Put implements Store.
func (c *Counter) Put(ctx context.Context, name string, body Body) error {
	c.puts.Add(1)
	c.up.Add(uint64(body.Size()))
	return c.failed(c.Store.Put(ctx, name, body))
}

// Get implements Store.
func (c *Counter) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	c.gets.Add(1)
	r, err := c.Store.Get(ctx, name, offset, length)
	if err != nil {
		return nil, c.failed(err)
	}
	return &countedReader{ReadCloser: r, c: c}, nil
}

type countedReader struct {
	io.ReadCloser
	c *Counter
}

func (r *countedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.c.down.Add(uint64(n))
	return n, err
}

// Stat implements Store.
func (c *Counter) Stat(ctx context.Context, name string) (Info, error) {
	c.stats.Add(1)
	i, err := c.Store.Stat(ctx, name)
	return i, c.failed(err)
}

// Delete implements Store.
func (c *Counter) Delete(ctx context.Context, name string) error {
	c.deletes.Add(1)
	return c.failed(c.Store.Delete(ctx, name))
}

// List implements Store.
func (c *Counter) List(ctx context.Context, prefix string, fn func(Info) error) error {
	c.lists.Add(1)
	return c.failed(c.Store.List(ctx, prefix, fn))
}
