package backup

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"sync/atomic"

	"everpage/backup/store"
)

// packSize is from which size on an object is uploaded and another one begun.
const packSize = 128 << 20

// pack gathers what goes into one object, in a file.
type pack struct {
	f    *os.File
	size int64
	sum  hash.Hash
	part hash.Hash32 // of the layer or manifest that is being added
	from int64
	all  *atomic.Int64 // bytes of all packs that there are
}

func newPack(dir string, all *atomic.Int64) (*pack, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "pack-")
	if err != nil {
		return nil, err
	}
	// The file lives as long as it is open: nothing is left over where the process ends.
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &pack{f: f, sum: sha256.New(), part: crc32.New(castagnoli), all: all}, nil
}

func (p *pack) close() error {
	err := p.f.Close()
	if !errors.Is(err, os.ErrClosed) {
		p.all.Add(-p.size)
	}
	return err
}

func (p *pack) begin() {
	p.from = p.size
	p.part.Reset()
}

// Write adds to the part that was begun.
func (p *pack) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	p.sum.Write(b[:n])
	p.part.Write(b[:n])
	p.size += int64(n)
	p.all.Add(int64(n))
	return n, err
}

// length is how much the part has so far.
func (p *pack) length() int64 { return p.size - p.from }

// upload writes the object and says what it is in the store. Its name has the epoch, what it holds, and a number of this attempt's own. A name is never used twice,
// not even for the same content: whoever removes what an earlier attempt left, however late, can't hit this one.
func (p *pack) upload(ctx context.Context, s store.Store, kind string, branch uint32, epoch uint64) (store.Info, error) {
	var once [6]byte
	rand.Read(once[:]) // never fails
	name := fmt.Sprintf("%s/%d/%08x-%s-%x", kind, branch, epoch, hex.EncodeToString(p.sum.Sum(nil)[:16]), once)
	// Where it exists the answer to a request of ours was lost, and it was sent again.
	if err := s.Put(ctx, name, packBody{p.f, p.size}); err != nil && !errors.Is(err, store.ErrExists) {
		return store.Info{}, err
	}
	i, err := s.Stat(ctx, name)
	if err == nil && i.Size != p.size {
		err = &store.Error{Op: "put", Name: name, Kind: store.ErrCorrupt, Err: fmt.Errorf("it has %d bytes there, %d here", i.Size, p.size)}
	}
	return i, err
}

type packBody struct {
	io.ReaderAt
	size int64
}

func (b packBody) Size() int64 { return b.size }
