package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory is a store that ends with the process: for tests, and to look at what an upload would write.
type Memory struct {
	mu      sync.Mutex
	objects map[string]memoryObject
}

type memoryObject struct {
	body []byte
	at   time.Time
}

// NewMemory makes an empty store.
func NewMemory() *Memory { return &Memory{objects: map[string]memoryObject{}} }

func (m *Memory) String() string { return "memory" }

func (m *Memory) find(ctx context.Context, op, name string) (memoryObject, error) {
	if err := errors.Join(CheckName(name), ctx.Err()); err != nil {
		return memoryObject{}, fileError(op, name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[name]
	if !ok {
		return o, &Error{Op: op, Name: name, Kind: ErrNotExist}
	}
	return o, nil
}

// Put implements Store.
func (m *Memory) Put(ctx context.Context, name string, body Body) error {
	if _, err := m.find(ctx, "put", name); !errors.Is(err, ErrNotExist) {
		if err == nil {
			err = &Error{Op: "put", Name: name, Kind: ErrExists}
		}
		return err
	}
	b := make([]byte, body.Size())
	if n, err := body.ReadAt(b, 0); n < len(b) {
		return &Error{Op: "put", Name: name, Err: err}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[name]; ok {
		return &Error{Op: "put", Name: name, Kind: ErrExists}
	}
	m.objects[name] = memoryObject{b, time.Now()}
	return nil
}

// Get implements Store.
func (m *Memory) Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	o, err := m.find(ctx, "get", name)
	if err == nil {
		err = checkRange(offset, length)
	}
	if err != nil {
		return nil, err
	}
	rest := o.body[min(offset, int64(len(o.body))):]
	return &exactly{ReadCloser: io.NopCloser(bytes.NewReader(rest)), name: name, length: length, wrap: func(err error) error { return err }}, nil
}

// Stat implements Store.
func (m *Memory) Stat(ctx context.Context, name string) (Info, error) {
	o, err := m.find(ctx, "stat", name)
	return Info{Name: name, Size: int64(len(o.body)), Modified: o.at}, err
}

// Delete implements Store.
func (m *Memory) Delete(ctx context.Context, name string) error {
	_, err := m.find(ctx, "delete", name)
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return err
}

// List implements Store.
func (m *Memory) List(ctx context.Context, prefix string, fn func(Info) error) error {
	if err := ctx.Err(); err != nil {
		return fileError("list", prefix, err)
	}
	m.mu.Lock()
	var found []Info
	for name, o := range m.objects {
		if strings.HasPrefix(name, prefix) {
			found = append(found, Info{Name: name, Size: int64(len(o.body)), Modified: o.at})
		}
	}
	m.mu.Unlock()
	slices.SortFunc(found, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	for _, i := range found {
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}

// Flip changes one bit of an object, as a medium that decays does.
func (m *Memory) Flip(name string, offset int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.objects[name]
	o.body = bytes.Clone(o.body)
	o.body[offset] ^= 1
	m.objects[name] = o
}
