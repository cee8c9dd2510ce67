package chunk

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/objstorage"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"

	"everpage/wal/pg"
)

// A run of at least so many bytes becomes several tables, written side by side.
const (
	splitRun  = 4 << 20
	maxTables = 2
)

// flat is one version of a run in table order.
type flat struct {
	lsn   pg.LSN
	value valueRef
}

// ordered is a run in table order: objects in key order, each one's versions newest first.
type ordered struct {
	nodes    []*node
	starts   []uint32 // of each object's versions; one more at the end
	versions []flat
	pages    int // so many of the objects are pages; they come first

	items []orderItem // scratch
	next  []uint32
}

type orderItem struct {
	a, b, c uint64
	number  uint32
}

// order puts a run in table order. Entries lie in the order in which they came, far from their neighbours in a table, so they are dealt out to their
// objects in one pass: following each object's chain would wait for memory at every step.
func (o *ordered) order(r *run) {
	o.nodes, o.starts = o.nodes[:0], o.starts[:0]
	pages, small := r.pages.n.Load(), r.small.n.Load()
	o.next = slices.Grow(o.next[:0], int(pages+small))[:pages+small]
	total := uint32(0)
	add := func(t *table, n, offset uint32) {
		o.items = slices.Grow(o.items[:0], int(n))[:n]
		for i := range o.items {
			p := &t.node(uint32(i) + 1).prefix
			o.items[i] = orderItem{binary.BigEndian.Uint64(p[0:]), binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint64(p[prefixLen-8:]), uint32(i) + 1}
		}
		slices.SortFunc(o.items, func(x, y orderItem) int {
			if x.a != y.a {
				return cmp.Compare(x.a, y.a)
			}
			if x.b != y.b {
				return cmp.Compare(x.b, y.b)
			}
			return cmp.Compare(x.c, y.c)
		})
		for i := range o.items {
			n := t.node(o.items[i].number)
			o.nodes, o.starts = append(o.nodes, n), append(o.starts, total)
			o.next[offset+o.items[i].number-1] = total
			total += n.count
		}
	}
	add(&r.pages, pages, 0)
	add(&r.small, small, pages)
	o.starts = append(o.starts, total)
	o.pages = int(pages)
	o.versions = slices.Grow(o.versions[:0], int(total))[:total]
	for i := r.nentries; i > 0; i-- {
		e := r.entry(i)
		n := e.node - 1
		if e.node&smallNode != 0 {
			n = pages + e.node&^smallNode - 1
		}
		o.versions[o.next[n]] = flat{e.lsn, e.value}
		o.next[n]++
	}
}

// of lists the versions of object i, newest first, each LSN once: the last written.
func (o *ordered) of(i int) []flat {
	v := o.versions[o.starts[i]:o.starts[i+1]]
	for k := 1; k < len(v); k++ {
		if v[k].lsn == v[k-1].lsn {
			return slices.CompactFunc(v, func(x, y flat) bool { return x.lsn == y.lsn })
		}
	}
	return v
}

// split cuts the objects into n ranges of about the same number of bytes and returns where they end.
func (o *ordered) split(n int) []int {
	if n == 1 {
		return []int{len(o.nodes)}
	}
	cost := func(i int) (sum int64) {
		for _, v := range o.versions[o.starts[i]:o.starts[i+1]] {
			sum += int64(v.value.length()) + 100
		}
		return sum
	}
	total := int64(0)
	for i := range o.nodes {
		total += cost(i)
	}
	var ends []int
	sum := int64(0)
	for i := range o.nodes {
		sum += cost(i)
		if k := len(ends) + 1; k < n && sum >= total*int64(k)/int64(n) && i+1 < len(o.nodes) {
			ends = append(ends, i+1)
		}
	}
	return append(ends, len(o.nodes))
}

// writeTables writes a run as one table or several whose keys don't overlap, the last of which has the run's progress. The paths are told even if it fails.
func (s *Store) writeTables(r *run) (paths []string, err error) {
	o := &s.order
	o.order(r)
	defer func() { clear(o.nodes) }() // they are the run's
	n := 1
	if r.size.Load() >= splitRun {
		n = maxTables
	}
	var g errgroup.Group
	from := 0
	ends := o.split(n)
	for i, to := range ends {
		path := s.fs.PathJoin(s.opt.Dir, ingestDir, fmt.Sprintf("run-%d.sst", i))
		paths = append(paths, path)
		lo := from
		g.Go(func() error { return s.writeTable(path, r, o, lo, to, i == len(ends)-1) })
		from = to
	}
	return paths, g.Wait()
}

func (s *Store) writeTable(path string, r *run, o *ordered, from, to int, last bool) (err error) {
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("create table: %w", err)
	}
	w := s.newTable(&tableFile{f: f})
	t := tableWriter{s: s, run: r, pairs: pairWriter{set: w.Set}}
	err = t.objects(o, from, to)
	if err == nil && last {
		err = t.progress()
	}
	if err == nil {
		err = t.pairs.finish()
	}
	if cerr := w.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

func (s *Store) newTable(out objstorage.Writable) *sstable.Writer {
	opt := s.dbOpt.MakeWriterOptions(0, s.db.TableFormat())
	opt.DisableValueBlocks = true // see pebbleOptions
	return sstable.NewWriter(out, opt)
}

// tableFile writes a table's file in large pieces.
type tableFile struct {
	f   vfs.File
	buf []byte
}

var _ objstorage.Writable = (*tableFile)(nil)

const tableBuffer = 256 << 10

// Write implements objstorage.Writable.
func (w *tableFile) Write(p []byte) error {
	for len(p) > 0 {
		if w.buf == nil {
			w.buf = make([]byte, 0, tableBuffer)
		}
		n := min(len(p), tableBuffer-len(w.buf))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
		if len(w.buf) == tableBuffer {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *tableFile) flush() error {
	_, err := w.f.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}

// Finish implements objstorage.Writable: the table is on disk afterwards.
func (w *tableFile) Finish() error {
	err := w.flush()
	if err == nil {
		err = w.f.Sync()
	}
	return errors.Join(err, w.f.Close())
}

// Abort implements objstorage.Writable.
func (w *tableFile) Abort() { w.f.Close() }

// tableWriter writes objects of one run in key order.
type tableWriter struct {
	s     *Store
	run   *run
	pairs pairWriter
	key   [keyLen]byte
	image []byte // sealed images that take deltas' places
	swaps []swap
	buf   pg.Page
	made  int // the version of the object at hand that buf is; -1: none

	fetched int // values of the run's versions before this one were touched
	touched byte
}

// fetchAhead is how many values are touched at once. Values lie in the order in which they came, so that nearly each one that a table takes must come from
// memory: asked for together, they come together.
const fetchAhead = 16

// fetch touches the values of versions, so that they are at hand when they are looked at.
func (t *tableWriter) fetch(versions []flat) {
	x := t.touched
	for _, v := range versions {
		if b := t.run.value(v.value); len(b) > 0 { // what stood twice is not there any more
			x ^= b[0] ^ b[len(b)-1]
		}
	}
	t.touched = x
}

// swap is an image that takes the place of version i.
type swap struct {
	i        int
	off, end int // of tableWriter.image
}

func (t *tableWriter) objects(o *ordered, from, to int) error {
	for i := from; i < to; i++ {
		p, versions := &o.nodes[i].prefix, o.of(i)
		t.swaps = t.swaps[:0]
		if i < o.pages {
			if err := t.bound(p, versions); err != nil {
				return err
			}
		}
		k := len(t.swaps) - 1
		for j := range versions {
			if n := int(o.starts[i]) + j; n >= t.fetched {
				t.fetched = min(n+fetchAhead, len(o.versions))
				t.fetch(o.versions[n:t.fetched])
			}
			v := t.run.value(versions[j].value)
			if k >= 0 && t.swaps[k].i == j {
				v = t.image[t.swaps[k].off:t.swaps[k].end]
				k--
			}
			if err := t.pairs.add(p, versions[j].lsn, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tableWriter) progress() error {
	ps := t.run.progress
	sortProgress(ps)
	for i := range ps {
		v, err := ps[i].encode()
		if err != nil {
			return err
		}
		p := progressPrefix(ps[i].b.num)
		if err := t.pairs.add(&p, 0, v); err != nil {
			return err
		}
	}
	for i := range t.run.cover {
		if err := t.pairs.add(&t.run.cover[i].p, 0, t.run.cover[i].value); err != nil {
			return err
		}
	}
	return nil
}
