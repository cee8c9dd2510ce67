package chunk

import (
	"bytes"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/sstable"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// queueDir holds hard links of the tables that runs became, for the backup: a run's tables have all versions of an interval of WAL, and to look for these in
// the database would mean to read all of it. An entry is its tables, N-0.sst and so on, and N.json, which is made last and removed first.
const queueDir = "queue"

// Interval is what a run has of a branch.
type Interval struct {
	Branch uint32
	Lo, Hi pg.LSN // the versions in (Lo, Hi]. A run of the base import has those at Progress.Start
	// After tells that versions of the interval may lie in the entry before: a batch was larger than a run.
	After bool
	// Progress as the run made it durable.
	Progress Progress
}

// Queued is one run that waits for the backup.
type Queued struct {
	ID        uint64
	Bytes     int64
	Intervals []Interval
	Tables    int
}

// queue is the entries, oldest first. Under Store.mu.
type queue struct {
	list  []Queued
	bytes int64
	next  uint64
	lost  uint64 // entries that were given up because the queue was full
}

func (s *Store) queuePath(id uint64, suffix string) string {
	return s.fs.PathJoin(s.opt.Dir, queueDir, fmt.Sprintf("%016d%s", id, suffix))
}

// openQueue reads what the queue has, and removes what an interrupted attempt left.
func (s *Store) openQueue() error {
	dir := s.fs.PathJoin(s.opt.Dir, queueDir)
	if err := s.fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	names, err := s.fs.List(dir)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, n := range names {
		number, ok := strings.CutSuffix(n, ".json")
		id, err := strconv.ParseUint(number, 10, 64)
		if !ok || err != nil {
			continue
		}
		s.queue.next = max(s.queue.next, id)
		b, err := readFile(s.fs, s.fs.PathJoin(dir, n))
		var q Queued
		if err != nil || json.Unmarshal(b, &q) != nil || q.ID != id || s.opt.QueueBytes <= 0 {
			continue
		}
		known[n] = true
		for i := range q.Tables {
			known[fmt.Sprintf("%016d-%d.sst", id, i)] = true
		}
		s.queue.list = append(s.queue.list, q)
		s.queue.bytes += q.Bytes
	}
	slices.SortFunc(s.queue.list, func(x, y Queued) int { return int(int64(x.ID) - int64(y.ID)) })
	for _, n := range names {
		if !known[n] {
			if err := s.fs.Remove(s.fs.PathJoin(dir, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// enqueue links a run's tables, before they go into the database: so no table is there that the queue missed, should the process end in between.
// A failure costs the entry only.
func (s *Store) enqueue(r *run, paths []string) (id uint64) {
	if s.opt.QueueBytes <= 0 || r.empty() {
		return 0
	}
	q := Queued{Tables: len(paths)}
	s.mu.Lock()
	for _, p := range r.progress {
		v := Interval{Branch: p.b.num, Lo: p.p.Start - 1, Hi: p.p.Readable, After: p.after, Progress: *p.p}
		if d := p.b.durable; d != nil && d.Readable > d.Start {
			v.Lo = d.Readable
		}
		if v.Lo < v.Hi {
			q.Intervals = append(q.Intervals, v)
		}
	}
	s.queue.next++
	q.ID = s.queue.next
	s.mu.Unlock()
	if len(q.Intervals) == 0 {
		return 0
	}
	err := func() error {
		for i, path := range paths {
			st, err := s.fs.Stat(path)
			if err != nil {
				return err
			}
			q.Bytes += st.Size()
			if err := s.fs.Link(path, s.queuePath(q.ID, fmt.Sprintf("-%d.sst", i))); err != nil {
				return err
			}
		}
		b, err := json.Marshal(q)
		if err != nil {
			return err
		}
		return writeFile(s.fs, s.fs.PathJoin(s.opt.Dir, queueDir), fmt.Sprintf("%016d.json", q.ID), string(b))
	}()
	if err != nil {
		s.log.Warn("a table can't be kept for the backup, which will read its versions from the store instead", "err", err)
		s.unlink(q)
		s.mu.Lock()
		s.queue.lost++
		s.mu.Unlock()
		return 0
	}
	s.mu.Lock()
	s.queue.list = append(s.queue.list, q)
	s.queue.bytes += q.Bytes
	var gone []Queued
	for s.queue.bytes > s.opt.QueueBytes && len(s.queue.list) > 0 {
		gone = append(gone, s.queue.list[0])
		s.queue.bytes -= s.queue.list[0].Bytes
		s.queue.list = s.queue.list[1:]
		s.queue.lost++
	}
	s.mu.Unlock()
	for _, g := range gone {
		s.unlink(g)
	}
	return q.ID
}

func (s *Store) unlink(q Queued) error {
	paths := []string{s.queuePath(q.ID, ".json")}
	for i := range q.Tables {
		paths = append(paths, s.queuePath(q.ID, fmt.Sprintf("-%d.sst", i)))
	}
	return s.discard(paths...)
}

// Queued lists what waits for the backup, oldest first.
func (s *Store) Queued() []Queued {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.queue.list)
}

// Release takes an entry out of the queue; one that is not there is no error.
func (s *Store) Release(id uint64) error {
	s.mu.Lock()
	i := slices.IndexFunc(s.queue.list, func(q Queued) bool { return q.ID == id })
	if i < 0 {
		s.mu.Unlock()
		return nil
	}
	q := s.queue.list[i]
	s.queue.list = slices.Delete(slices.Clone(s.queue.list), i, i+1)
	s.queue.bytes -= q.Bytes
	s.mu.Unlock()
	return s.unlink(q)
}

// QueueLayer writes the delta layer of a shard, or of all that is small, that consecutive entries of the queue make up: from the first one's Lo to the last
// one's Hi. It fails with ErrNotHere where they don't have all of it: then ExportLayer or ExportSmall makes the same layer of the database.
func (s *Store) QueueLayer(ctx context.Context, ids []uint64, branch uint32, shard placement.Shard, small bool, w io.Writer) (Layer, error) {
	l := Layer{Branch: branch, Small: small, Shards: s.opt.Shards, SegmentBlocks: s.opt.SegmentBlocks, Delta: true}
	if !small {
		if err := s.checkShards([]placement.Shard{shard}); err != nil {
			return l, err
		}
		l.Shard = shard
	}
	fail := func(err error) (Layer, error) { return l, fmt.Errorf("layer of %s from the queue: %w", l.what(), err) }
	var entries []Queued
	list := s.Queued()
	for _, id := range ids {
		i := slices.IndexFunc(list, func(q Queued) bool { return q.ID == id })
		if i < 0 {
			return fail(fmt.Errorf("%w: entry %d was given up", ErrNotHere, id))
		}
		entries = append(entries, list[i])
	}
	for _, q := range entries {
		for _, v := range q.Intervals {
			switch {
			case v.Branch != branch:
				continue
			case l.Hi == 0:
				l.Lo = v.Lo
				if v.After {
					return fail(fmt.Errorf("%w: some of its versions are in the entry before", ErrNotHere))
				}
			case v.Lo > l.Hi || v.Hi < l.Hi:
				return fail(fmt.Errorf("%w: nothing is between %s and %s", ErrNotHere, l.Hi, v.Lo))
			}
			l.Hi, l.Progress = v.Hi, &v.Progress
		}
	}
	if l.Hi == 0 {
		return fail(fmt.Errorf("%w: the entries have nothing of it", ErrNotHere))
	}
	b := s.branch(branch)
	p := b.current()
	if p == nil {
		return fail(ErrNoBranch)
	}
	if !small {
		if have := b.cover.Load().shard(shard); !have.Owned || have.From > l.Lo {
			return fail(&NotHereError{Branch: branch, Shard: shard, At: l.Lo, Have: have})
		}
		l.Progress = nil
	}
	m := &merger{}
	defer m.close()
	for _, q := range entries {
		for i := range q.Tables {
			if err := m.open(ctx, s, s.queuePath(q.ID, fmt.Sprintf("-%d.sst", i))); err != nil {
				return fail(err)
			}
		}
	}
	x := &exporter{s: s, ctx: ctx, l: &l}
	x.begin(w, &l)
	lo, hi := shardRange(branch, shard)
	if !small {
		x.merge(m, lo, hi)
	} else {
		for class := uint8(classSize); class < classProgress; class++ {
			lo, hi := branchRange(class, branch)
			x.merge(m, lo, hi)
		}
	}
	return l, x.end()
}

// merger walks several tables of runs side by side, object by object.
type merger struct {
	tables []*sstable.Reader
	heads  mergeHeap
}

type mergeHead struct {
	it sstable.Iterator
	p  prefix
	kv []byte // key
	v  []byte // value
}

type mergeHeap []*mergeHead

func (h mergeHeap) Len() int           { return len(h) }
func (h mergeHeap) Less(i, j int) bool { return h[i].p.compare(&h[j].p) < 0 }
func (h mergeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface, as do the others.
func (h *mergeHeap) Push(x any) { *h = append(*h, x.(*mergeHead)) }

// Pop implements heap.Interface.
func (h *mergeHeap) Pop() any {
	n := len(*h) - 1
	x := (*h)[n]
	*h = (*h)[:n]
	return x
}

func (m *merger) open(ctx context.Context, s *Store, path string) error {
	t, err := s.openTable(ctx, path)
	if err != nil {
		return err
	}
	m.tables = append(m.tables, t)
	return nil
}

func (m *merger) close() {
	for _, h := range m.heads {
		h.it.Close()
	}
	for _, t := range m.tables {
		t.Close()
	}
}

// seek puts all tables at the first object at or beyond lo.
func (m *merger) seek(lo, hi *prefix) error {
	for _, h := range m.heads {
		h.it.Close()
	}
	m.heads = m.heads[:0]
	for _, t := range m.tables {
		it, err := t.NewIter(sstable.NoTransforms, lo[:], hi[:], sstable.AssertNoBlobHandles)
		if err != nil {
			return err
		}
		h := &mergeHead{it: it}
		ok, err := h.take(true, lo)
		if err != nil || !ok {
			if err = errors.Join(err, it.Close()); err != nil {
				return err
			}
			continue
		}
		m.heads = append(m.heads, h)
	}
	heap.Init(&m.heads)
	return nil
}

// step is seek or next: their types have no name outside of the database.
func step[K, F any](first bool, lo *prefix, seek func(key []byte, flags F) K, next func() K) K {
	if first {
		var none F
		return seek(lo[:], none)
	}
	return next()
}

// take moves a table on to its next pair.
func (h *mergeHead) take(first bool, lo *prefix) (ok bool, err error) {
	kv := step(first, lo, h.it.SeekGE, h.it.Next)
	if kv == nil {
		return false, h.it.Error()
	}
	if h.p, _, ok = splitKey(kv.K.UserKey); !ok {
		return false, errShape
	}
	v, _, err := kv.Value(nil)
	if err != nil {
		return false, err
	}
	h.kv, h.v = append(h.kv[:0], kv.K.UserKey...), append(h.v[:0], v...)
	return true, nil
}

// merge exports the objects of a range from a merger's tables.
func (x *exporter) merge(m *merger, lo, hi prefix) {
	if x.err != nil {
		return
	}
	if x.err = m.seek(&lo, &hi); x.err != nil {
		return
	}
	var list []PageVersion
	for len(m.heads) > 0 && x.err == nil {
		if x.err = x.ctx.Err(); x.err != nil {
			return
		}
		p := m.heads[0].p
		list = list[:0]
		for len(m.heads) > 0 && m.heads[0].p == p {
			h := m.heads[0]
			err := versionsOf(h.kv, h.v, func(_ *prefix, lsn pg.LSN, sealed []byte) error {
				if lsn > x.l.Lo && lsn <= x.l.Hi {
					list = append(list, PageVersion{lsn, bytes.Clone(sealed)})
				}
				return nil
			})
			ok := false
			if err == nil {
				ok, err = h.take(false, nil)
			}
			switch {
			case err != nil:
				x.err = &CorruptError{Branch: p.branch(), Key: p.String(), Err: err}
				return
			case ok:
				heap.Fix(&m.heads, 0)
			default:
				heap.Pop(&m.heads)
				x.err = h.it.Close()
			}
		}
		slices.SortStableFunc(list, func(a, b PageVersion) int {
			if a.LSN > b.LSN {
				return -1
			} else if a.LSN < b.LSN {
				return 1
			}
			return 0
		})
		for i, v := range list {
			if i > 0 && v.LSN == list[i-1].LSN || x.err != nil {
				continue
			}
			x.err = x.add(&p, version{lsn: v.LSN, value: v.Value})
		}
	}
}
