package store

import (
	"context"
	"io"
	"sync"
	"time"
)

// Limited is a store whose uploads and downloads together take no more than a number of bytes a second, on average over a few seconds.
type Limited struct {
	Store
	rate float64

	mu   sync.Mutex
	free float64 // bytes that may go at once
	at   time.Time
}

// limitBurst is for how long a limited store may save up what it didn't use.
const limitBurst = time.Second

// Limit caps what goes to s and comes from it; 0: it doesn't.
func Limit(s Store, bytesPerSecond int64) Store {
	if bytesPerSecond <= 0 {
		return s
	}
	return &Limited{Store: s, rate: float64(bytesPerSecond)}
}

// Put implements Store.
func (l *Limited) Put(ctx context.Context, name string, body Body) error {
	return l.Store.Put(ctx, name, &limitedBody{Body: body, l: l, ctx: ctx})
}

// Get implements Store.
func (l *Limited) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	r, err := l.Store.Get(ctx, name, offset, length)
	if err != nil {
		return nil, err
	}
	return &limitedReader{ReadCloser: r, l: l, ctx: ctx}, nil
}

type limitedReader struct {
	io.ReadCloser
	l   *Limited
	ctx context.Context
}

func (r *limitedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p[:min(len(p), max(int(r.l.rate), 1))])
	if n > 0 {
		if err := r.l.take(r.ctx, n); err != nil {
			return 0, err
		}
	}
	return n, err
}

// take waits until n bytes may go.
func (l *Limited) take(ctx context.Context, n int) error {
	l.mu.Lock()
	now := time.Now()
	if l.at.IsZero() {
		l.free = l.rate * limitBurst.Seconds()
	} else {
		l.free = min(l.free+l.rate*now.Sub(l.at).Seconds(), l.rate*limitBurst.Seconds())
	}
	l.at = now
	l.free -= float64(n)
	wait := time.Duration(-l.free / l.rate * float64(time.Second))
	l.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// limitedBody is paid for where it is read the first time: its checksum is made of it before it is sent.
type limitedBody struct {
	Body
	l   *Limited
	ctx context.Context

	mu   sync.Mutex
	paid int64
}

func (b *limitedBody) ReadAt(p []byte, at int64) (int, error) {
	n, err := b.Body.ReadAt(p, at)
	b.mu.Lock()
	pay := at + int64(n) - b.paid
	b.paid = max(b.paid, at+int64(n))
	b.mu.Unlock()
	if pay > 0 {
		if err := b.l.take(b.ctx, int(pay)); err != nil {
			return 0, err
		}
	}
	return n, err
}
