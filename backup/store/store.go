// Package store keeps objects for good: in a bucket of an S3 service or in a directory. Objects are written once, read by ranges and deleted; nothing
// is ever written over.
package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// Store is a place for objects. All calls may be made from any goroutine, take as long as ctx allows and return *Error for what went wrong.
//
// Names are relative paths of a-z, A-Z, 0-9, '.', '_' and '-' between single slashes.
type Store interface {
	// Put writes an object that must not exist yet: ErrExists if it does, and what is there stays as it was. A call that returned no error has made the
	// object durable, whole and readable for everyone. After any other error it may be there as a whole or not at all. body is read from its start,
	// more than once where an attempt is repeated.
	Put(ctx context.Context, name string, body Body) error
	// Get reads length bytes from an offset on; a length below 0 means the rest. The reader fails with ErrTruncated where fewer bytes come than were asked for.
	Get(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error)
	// Stat tells an object's size.
	Stat(ctx context.Context, name string) (Info, error)
	// Delete removes an object. One that doesn't exist is no error.
	Delete(ctx context.Context, name string) error
	// List calls fn for every object whose name starts with prefix, in name order. It is for inventories and recovery, never for the everyday.
	List(ctx context.Context, prefix string, fn func(Info) error) error
	// String is the place for messages, without secrets.
	String() string
}

// Body is what Put writes.
type Body interface {
	io.ReaderAt
	Size() int64
}

// Bytes is a Body in memory.
func Bytes(b []byte) Body { return bytes.NewReader(b) }

// Info is what is known of an object.
type Info struct {
	Name     string
	Size     int64
	Modified time.Time
}

// What a call can fail for.
var (
	ErrNotExist    = errors.New("object does not exist")
	ErrExists      = errors.New("object exists already")
	ErrThrottled   = errors.New("the store asks for fewer requests")
	ErrAuth        = errors.New("the store denies access")
	ErrCorrupt     = errors.New("object is corrupt")
	ErrTruncated   = errors.New("object ends early")
	ErrUnavailable = errors.New("the store can't be reached")
	ErrName        = errors.New("invalid object name")
)

// Error is why a call failed: one of the errors above, where it is known, and what the service said.
type Error struct {
	Op   string // put, get, stat, delete, list
	Name string
	Kind error // one of the errors above, or nil
	Err  error // the cause
}

// Error names call, object, kind and cause.
func (e *Error) Error() string {
	switch {
	case e.Kind == nil:
		return fmt.Sprintf("store: %s %s: %v", e.Op, e.Name, e.Err)
	case e.Err == nil:
		return fmt.Sprintf("store: %s %s: %v", e.Op, e.Name, e.Kind)
	}
	return fmt.Sprintf("store: %s %s: %v: %v", e.Op, e.Name, e.Kind, e.Err)
}

// Unwrap gives kind and cause.
func (e *Error) Unwrap() []error {
	var all []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// Temporary tells whether a call that failed with err may succeed when it is made again later. Denied access counts: keys are mended without us.
func Temporary(err error) bool {
	for _, permanent := range []error{ErrNotExist, ErrExists, ErrCorrupt, ErrName} {
		if errors.Is(err, permanent) {
			return false
		}
	}
	return true
}

const maxName = 900 // a key of S3 has at most 1024 bytes, prefix included

// CheckName refuses names that not every store can hold.
func CheckName(name string) error {
	bad := name == "" || len(name) > maxName || name[0] == '/' || name[len(name)-1] == '/'
	last := byte('/')
	for i := 0; i < len(name) && !bad; i++ {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
		case c == '.':
			bad = last == '/' // neither . nor .. nor what listings hide
		case c == '/':
			bad = last == '/'
		default:
			bad = true
		}
		last = c
	}
	if bad {
		return fmt.Errorf("%w: %q", ErrName, name)
	}
	return nil
}

func checkRange(offset, length int64) error {
	if offset < 0 || length == 0 {
		return fmt.Errorf("invalid range: %d bytes at %d", length, offset)
	}
	return nil
}

// ReadAll reads an object, or length bytes of it from an offset on, into memory.
func ReadAll(ctx context.Context, s Store, name string, offset, length int64) ([]byte, error) {
	r, err := s.Get(ctx, name, offset, length)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if length < 0 {
		return io.ReadAll(r)
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return b, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is the CRC-32C of a part of a body.
func sum(body io.ReaderAt, offset, length int64) (uint32, error) {
	h := crc32.New(castagnoli)
	n, err := io.Copy(h, io.NewSectionReader(body, offset, length))
	if err == nil && n != length {
		err = io.ErrUnexpectedEOF
	}
	return h.Sum32(), err
}

// exactly is a reader that must give length bytes, or any number if length is below 0.
type exactly struct {
	io.ReadCloser
	name   string
	length int64
	wrap   func(error) error
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.length == 0 {
		return 0, io.EOF
	}
	if e.length > 0 {
		p = p[:min(int64(len(p)), e.length)]
	}
	n, err := e.ReadCloser.Read(p)
	if e.length > 0 {
		e.length -= int64(n)
	}
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF) && e.length <= 0:
		return n, io.EOF
	case errors.Is(err, io.EOF):
		return n, &Error{Op: "get", Name: e.name, Kind: ErrTruncated, Err: fmt.Errorf("%d bytes are missing", e.length)}
	}
	return n, e.wrap(err)
}
