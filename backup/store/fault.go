package store

import (
	"context"
	"errors"
	"io"
	"time"
)

// Fault is what goes wrong with one call. The zero value: nothing.
type Fault struct {
	Delay    time.Duration
	Err      error // what the call fails with, without anything done
	After    error // what the call fails with although it was done: its answer was lost
	Truncate bool  // half of a body is read, then it ends
	Flip     bool  // one bit of a body that is read is another
}

// Faulty is a store that fails on purpose, for tests and drills. Decide is asked before every call; calls are counted from 0.
type Faulty struct {
	Store
	Decide func(op, name string) Fault
}

// ErrInjected is what a call fails with on purpose.
var ErrInjected = errors.New("injected fault")

func (f *Faulty) before(ctx context.Context, op, name string) (Fault, error) {
	fault := f.Decide(op, name)
	if fault.Delay > 0 {
		t := time.NewTimer(fault.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fault, &Error{Op: op, Name: name, Err: ctx.Err()}
		}
	}
	return fault, fault.Err
}

// Put implements Store.
func (f *Faulty) Put(ctx context.Context, name string, body Body) error {
	fault, err := f.before(ctx, "put", name)
	if err != nil {
		return err
	}
	if err := f.Store.Put(ctx, name, body); err != nil {
		return err
	}
	return fault.After
}

// Get implements Store.
func (f *Faulty) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	fault, err := f.before(ctx, "get", name)
	if err != nil {
		return nil, err
	}
	r, err := f.Store.Get(ctx, name, offset, length)
	if err != nil || !fault.Truncate && !fault.Flip {
		return r, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	body := &faultyBody{rest: b, name: name}
	if fault.Truncate {
		body.rest, body.short = b[:len(b)/2], true
	}
	if fault.Flip && len(body.rest) > 0 {
		body.rest[len(body.rest)/2] ^= 0x10
	}
	return body, nil
}

type faultyBody struct {
	rest  []byte
	name  string
	short bool
}

func (b *faultyBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		if b.short {
			return 0, &Error{Op: "get", Name: b.name, Kind: ErrTruncated, Err: ErrInjected}
		}
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *faultyBody) Close() error { return nil }

// Stat implements Store.
func (f *Faulty) Stat(ctx context.Context, name string) (Info, error) {
	fault, err := f.before(ctx, "stat", name)
	if err != nil {
		return Info{}, err
	}
	i, err := f.Store.Stat(ctx, name)
	return i, errors.Join(err, fault.After)
}

// Delete implements Store.
func (f *Faulty) Delete(ctx context.Context, name string) error {
	fault, err := f.before(ctx, "delete", name)
	if err != nil {
		return err
	}
	if err := f.Store.Delete(ctx, name); err != nil {
		return err
	}
	return fault.After
}

// List implements Store.
func (f *Faulty) List(ctx context.Context, prefix string, fn func(Info) error) error {
	fault, err := f.before(ctx, "list", prefix)
	if err != nil {
		return err
	}
	if err := f.Store.List(ctx, prefix, fn); err != nil {
		return err
	}
	return fault.After
}
