package chunk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage"
	"github.com/cockroachdb/pebble/v2/sstable"

	"everpage/wal/pg"
)

// LayerFile is a layer that is read at random, from a file or an object. Its methods may be called from any goroutine.
type LayerFile struct {
	Layer
	Versions uint64 // that it holds

	src   io.ReaderAt
	parts []layerPart

	mu   sync.Mutex
	open map[int]*sstable.Reader
}

// tableOptions are those of a table that belongs to no open database.
var tableOptions = sync.OnceValue(func() sstable.ReaderOptions {
	o := &pebble.Options{Comparer: comparer}
	o.EnsureDefaults()
	return o.MakeReaderOptions()
})

// OpenLayer opens a layer of size bytes. It reads its beginning and its end.
func OpenLayer(src io.ReaderAt, size int64) (*LayerFile, error) {
	f := &LayerFile{src: src, open: map[int]*sstable.Reader{}}
	if err := f.header(size); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	return f, nil
}

func (f *LayerFile) header(size int64) error {
	n := min(size, layerEdge)
	head := make([]byte, n)
	if _, err := f.src.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	b, ok := bytes.CutPrefix(head, []byte(layerMagic))
	if !ok || len(b) < 4 {
		return ErrFormat
	}
	at := int64(len(layerMagic)) + 4
	k := int64(binary.BigEndian.Uint32(b)) + crcBytes
	if b = b[4:]; k > int64(len(b)) {
		if k > maxLayerHead || at+k > size {
			return errShape
		}
		b = make([]byte, k)
		if _, err := f.src.ReadAt(b, at); err != nil {
			return err
		}
	}
	if err := openJSON(b[:k], &f.Layer); err != nil {
		return err
	}
	n = min(size, layerEdge)
	tail := make([]byte, n)
	if _, err := f.src.ReadAt(tail, size-n); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	b, ok = bytes.CutSuffix(tail, []byte(layerFoot))
	if !ok || len(b) < 4 {
		return fmt.Errorf("%w: its end is missing", errShape)
	}
	k = int64(binary.BigEndian.Uint32(b[len(b)-4:])) + crcBytes
	if b = b[:len(b)-4]; k > int64(len(b)) {
		if k > maxLayerJSON || k > size {
			return errShape
		}
		b = make([]byte, k)
		if _, err := f.src.ReadAt(b, size-k-4-int64(len(layerFoot))); err != nil {
			return err
		}
	}
	var end layerEnd
	if err := openJSON(b[int64(len(b))-k:], &end); err != nil {
		return err
	}
	for i, p := range end.Tables {
		if len(p.First) != prefixLen || len(p.Last) != prefixLen || p.Offset < 0 || p.Length < 0 || p.Offset+p.Length > size ||
			bytes.Compare(p.First, p.Last) > 0 || i > 0 && bytes.Compare(end.Tables[i-1].Last, p.First) >= 0 {
			return errShape
		}
	}
	f.parts, f.Versions = end.Tables, end.Versions
	return nil
}

// Close lets go of what was opened; the layer's source stays open.
func (f *LayerFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	for i, t := range f.open {
		err = errors.Join(err, t.Close())
		delete(f.open, i)
	}
	return err
}

// Each read of a layer's source may be a request to a service far away. So little is read as will do, mostly: of a layer's beginning and end, and of a table's
// end, where footer, index and filter lie.
const (
	layerEdge    = 4 << 10
	maxLayerHead = 64 << 10
	tableEnd     = 16 << 10
)

// part is a range of the source as a table's file.
type part struct {
	src  io.ReaderAt
	off  int64
	size int64
}

// ReadAt implements objstorage.Readable, as do the others.
func (p *part) ReadAt(_ context.Context, b []byte, off int64) error {
	if off < 0 || off+int64(len(b)) > p.size {
		return io.ErrUnexpectedEOF
	}
	if end := max(p.size-tableEnd, 0); off >= end && len(b) > 0 {
		// What is asked for piece by piece is read at once; the source remembers it.
		all := make([]byte, p.size-end)
		n, err := p.src.ReadAt(all, p.off+end)
		if n < len(all) {
			return truncated(err)
		}
		copy(b, all[off-end:])
		return nil
	}
	n, err := p.src.ReadAt(b, p.off+off)
	if n == len(b) {
		return nil
	}
	return truncated(err)
}

func (p *part) Close() error { return nil }
func (p *part) Size() int64  { return p.size }
func (p *part) NewReadHandle(objstorage.ReadBeforeSize) objstorage.ReadHandle {
	h := objstorage.MakeNoopReadHandle(p)
	return &h
}

// table opens one of the tables, once.
func (f *LayerFile) table(ctx context.Context, i int) (*sstable.Reader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.open[i]; t != nil {
		return t, nil
	}
	t, err := sstable.NewReader(ctx, &part{f.src, f.parts[i].Offset, f.parts[i].Length}, tableOptions())
	if err != nil {
		return nil, fmt.Errorf("table %d of the layer: %w", i, err)
	}
	f.open[i] = t
	return t, nil
}

// PageVersions are the layer's versions of a page at or below an LSN, newest first, down to the first that needs none under it, or to the last one. based
// tells that nothing below the layer is needed: it is a base layer that serves reads at that LSN, or such a version was found.
func (f *LayerFile) PageVersions(ctx context.Context, key pg.PageKey, at pg.LSN) (list []PageVersion, based bool, err error) {
	if at > f.Hi {
		at = f.Hi
	}
	p := chunks{f.SegmentBlocks, f.Shards}.pagePrefix(f.Branch, key)
	i := sort.Search(len(f.parts), func(i int) bool { return bytes.Compare(f.parts[i].Last, p[:]) >= 0 })
	based = f.Serves(key, at)
	if i == len(f.parts) || bytes.Compare(f.parts[i].First, p[:]) > 0 {
		return nil, based, nil
	}
	t, err := f.table(ctx, i)
	if err != nil {
		return nil, false, err
	}
	next := p.next()
	done := false
	err = eachVersion(t, p[:], next[:], func(_ *prefix, lsn pg.LSN, sealed []byte) error {
		if done || lsn > at {
			return nil
		}
		list = append(list, PageVersion{lsn, bytes.Clone(sealed)})
		done = ends(sealed[0])
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("%s in a layer of %s: %w", key, f.what(), err)
	}
	return list, based || done, nil
}

// Walk verifies the whole layer: order and checksums of all versions. fn, where set, is called for every version.
func (f *LayerFile) Walk(ctx context.Context, fn func(key pg.PageKey, lsn pg.LSN, bytes int) error) error {
	versions := uint64(0)
	for i := range f.parts {
		t, err := f.table(ctx, i)
		if err != nil {
			return err
		}
		var last prefix
		var at pg.LSN
		err = eachVersion(t, nil, nil, func(p *prefix, lsn pg.LSN, sealed []byte) error {
			versions++
			if *p == last && lsn >= at || p.compare(&last) < 0 {
				return fmt.Errorf("%w: %s at %s is out of order", errShape, *p, lsn)
			}
			if last, at = *p, lsn; bytes.Compare(p[:], f.parts[i].First) < 0 || bytes.Compare(p[:], f.parts[i].Last) > 0 || lsn > f.Hi ||
				p.branch() != f.Branch || p.small() != f.Small {
				return fmt.Errorf("%w: %s at %s does not belong in the layer", errShape, *p, lsn)
			}
			if fn != nil && !f.Small {
				if err := fn(p.pageKey(), lsn, len(sealed)); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
		if err != nil {
			return fmt.Errorf("table %d of a layer of %s: %w", i, f.what(), err)
		}
	}
	if versions != f.Versions {
		return fmt.Errorf("a layer of %s has %d versions, its end says %d", f.what(), versions, f.Versions)
	}
	return nil
}

// eachVersion calls fn with the versions in a table, verified, in the order of its pairs.
func eachVersion(t *sstable.Reader, lo, hi []byte, fn func(p *prefix, lsn pg.LSN, sealed []byte) error) (err error) {
	it, err := t.NewIter(sstable.NoTransforms, lo, hi, sstable.AssertNoBlobHandles)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	kv := it.First()
	if lo != nil {
		kv = it.SeekGE(lo, 0)
	}
	for ; kv != nil; kv = it.Next() {
		value, _, err := kv.Value(nil)
		if err != nil {
			return err
		}
		if err := versionsOf(kv.K.UserKey, value, fn); err != nil {
			return err
		}
	}
	return it.Error()
}
