package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Patient is a store whose calls are made again for as long as they fail for a reason that may pass, with longer and longer waits in between. Bodies that end
// early are read on from where they ended. It is for what can't go on without an answer, as a recovery can't. One of its puts may find what an attempt of its
// own wrote, whose answer was lost: ErrExists.
type Patient struct {
	Store
	// For bounds how long one call is tried; 0: until its ctx ends.
	For time.Duration
	// Told is called before each wait.
	Told func(err error, wait time.Duration)
	// Least and Most bound the waits; 0: 200 ms and 15 s.
	Least, Most time.Duration
}

// persist repeats fn.
func (p *Patient) persist(ctx context.Context, fn func() error) error {
	least, most := p.Least, p.Most
	if least == 0 {
		least, most = 200*time.Millisecond, 15*time.Second
	}
	began := time.Now()
	for wait := least; ; wait = min(2*wait, most) {
		err := fn()
		if err == nil || ctx.Err() != nil || !passing(err) || p.For > 0 && time.Since(began)+wait > p.For {
			return err
		}
		if p.Told != nil {
			p.Told(err, wait)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// errCut is a body that ended early.
var errCut = errors.New("cut off")

// passing tells whether it was the store that failed, for a reason that may pass. Denied access counts: keys are mended without us.
func passing(err error) bool {
	for _, kind := range []error{ErrUnavailable, ErrThrottled, ErrAuth, errCut} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// Put implements Store.
func (p *Patient) Put(ctx context.Context, name string, body Body) error {
	return p.persist(ctx, func() error { return p.Store.Put(ctx, name, body) })
}

// Get implements Store.
func (p *Patient) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	r := &patientReader{p: p, ctx: ctx, name: name, at: offset, left: length}
	if err := p.persist(ctx, r.open); err != nil {
		return nil, err
	}
	return r, nil
}

// patientReader reads on where it was cut off.
type patientReader struct {
	p    *Patient
	ctx  context.Context
	name string
	at   int64
	left int64 // -1: the rest
	body io.ReadCloser
	cuts int // at this place
}

// maxCuts is how often a body may end at one place until it is believed that the object does.
const maxCuts = 8

func (r *patientReader) open() (err error) {
	r.body, err = r.p.Store.Get(r.ctx, r.name, r.at, r.left)
	return err
}

// Read implements io.Reader.
func (r *patientReader) Read(b []byte) (n int, err error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	err = r.p.persist(r.ctx, func() (err error) {
		if r.body == nil {
			if err := r.open(); err != nil {
				return err
			}
		}
		n, err = r.body.Read(b)
		if n > 0 {
			r.cuts = 0
		}
		if err == nil || errors.Is(err, io.EOF) {
			return err
		}
		err = errors.Join(err, r.Close())
		if n > 0 {
			return nil // the next call goes on
		}
		if r.cuts++; r.cuts >= maxCuts {
			return err
		}
		return fmt.Errorf("%w: %w", errCut, err)
	})
	r.at += int64(n)
	if r.left > 0 {
		r.left -= int64(n)
	}
	return n, err
}

// Close implements io.Closer.
func (r *patientReader) Close() error {
	if r.body == nil {
		return nil
	}
	body := r.body
	r.body = nil
	return body.Close()
}

// Stat implements Store.
func (p *Patient) Stat(ctx context.Context, name string) (i Info, err error) {
	err = p.persist(ctx, func() (err error) {
		i, err = p.Store.Stat(ctx, name)
		return err
	})
	return i, err
}

// Delete implements Store.
func (p *Patient) Delete(ctx context.Context, name string) error {
	return p.persist(ctx, func() error { return p.Store.Delete(ctx, name) })
}

// List implements Store. What is listed is held in memory until all of it has come.
func (p *Patient) List(ctx context.Context, prefix string, fn func(Info) error) error {
	var list []Info
	if err := p.persist(ctx, func() error {
		list = list[:0]
		return p.Store.List(ctx, prefix, func(i Info) error {
			list = append(list, i)
			return nil
		})
	}); err != nil {
		return err
	}
	for _, i := range list {
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}
