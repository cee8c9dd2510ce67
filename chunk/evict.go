package chunk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Eviction gives up versions at or below an LSN up to which another place has them; what is newer stays, and is kept as WAL brings it. So a backup goes on
// with the layer behind that LSN, and a read asks the source for what lies below only. Coverage says so durably before anything goes. A read that has its
// iterator already goes on with it to its end.

// Eviction is what is to be given up of a chunk.
type Eviction struct {
	Chunk placement.Chunk
	UpTo  pg.LSN // versions at or below it
}

// Evict gives up versions of chunks, and their disk space. It is for the caller to know that another place answers at those LSNs.
func (s *Store) Evict(ctx context.Context, branch uint32, list ...Eviction) error {
	var ranges []evictRange
	for _, x := range list {
		lo, hi := s.chunkRange(branch, x.Chunk)
		ranges = append(ranges, evictRange{lo, hi, []pg.LSN{x.UpTo}})
	}
	err := s.evict(ctx, branch, ranges, func(n *cover, changed map[coverKey]bool) error {
		for _, x := range list {
			have := n.chunk(x.Chunk, placement.ShardOf(x.Chunk, s.opt.Shards))
			if err := have.givesUp(x.UpTo); err != nil {
				return fmt.Errorf("chunk %s up to %s: %w", x.Chunk, x.UpTo, err)
			}
			if have.Complete || have.From < x.UpTo {
				n.chunks[x.Chunk] = Coverage{Owned: true, From: x.UpTo}
				changed[coverKey{one: true, chunk: x.Chunk}] = true
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("evict chunks of branch %d: %w", branch, err)
	}
	return nil
}

// EvictShards is Evict for whole shards in a row, each with an LSN of its own. What isn't owned of them goes altogether.
func (s *Store) EvictShards(ctx context.Context, branch uint32, first placement.Shard, upTo []pg.LSN) error {
	last := first + placement.Shard(len(upTo)) - 1
	fail := func(err error) error {
		return fmt.Errorf("evict shards %d to %d of branch %d: %w", first, last, branch, err)
	}
	if len(upTo) == 0 {
		return nil
	}
	if err := s.checkShards([]placement.Shard{last}); err != nil {
		return fail(err)
	}
	lo, _ := shardRange(branch, first)
	_, hi := shardRange(branch, last)
	upTo = slices.Clone(upTo)
	err := s.evict(ctx, branch, []evictRange{{lo, hi, upTo}}, func(n *cover, changed map[coverKey]bool) error {
		for i, at := range upTo {
			shard := first + placement.Shard(i)
			if k, any := n.ownsOther(shard, s.opt.Shards); any && !n.shard(shard).Owned {
				return fmt.Errorf("this node owns chunk %s without its shard", k)
			}
			if !n.shard(shard).Owned {
				upTo[i] = ^pg.LSN(0)
				continue
			}
			if err := n.shard(shard).givesUp(at); err != nil {
				return err
			}
			for k, have := range n.chunks {
				if placement.ShardOf(k, s.opt.Shards) != shard {
					continue
				}
				if err := have.givesUp(at); err != nil {
					return err
				}
			}
			n.forget(shard, s.opt.Shards, changed)
			n.shards[shard] = Coverage{Owned: true, From: at}
			changed[coverKey{shard: shard}] = true
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	for i := range upTo {
		s.decayed.Delete(shardOf{branch, first + placement.Shard(i)})
	}
	return nil
}

// givesUp tells whether what is here may shrink to what lies beyond an LSN.
func (c Coverage) givesUp(upTo pg.LSN) error {
	switch {
	case !c.Owned:
		return ErrNotHere
	case c.From > upTo:
		return fmt.Errorf("%w: what is here begins at %s", ErrNotHere, c.From)
	}
	return nil
}

// evictRange is a range of keys of pages, with an LSN for each shard from the one of lo on: what lies at or below goes.
type evictRange struct {
	lo, hi prefix
	upTo   []pg.LSN
}

func (r *evictRange) shards(branch uint32) (ids []shardOf) {
	for i := range r.upTo {
		ids = append(ids, shardOf{branch, placement.Shard(r.lo.shard()) + placement.Shard(i)})
	}
	return ids
}

// evict changes the coverage, then takes the versions away, a range of keys at a time. change may set what goes.
func (s *Store) evict(ctx context.Context, branch uint32, ranges []evictRange, change func(n *cover, changed map[coverKey]bool) error) error {
	b := s.branch(branch)
	// While it lasts nothing is imported there, nor owned anew: that would go, too.
	var ids []shardOf
	for i := range ranges {
		r := &ranges[i]
		if err := s.cuttable(r.lo, r.hi); err != nil {
			return err
		}
		ids = append(ids, r.shards(branch)...)
	}
	begin := func() error {
		s.covering.Lock()
		defer s.covering.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closing {
			return ErrClosed
		}
		if b.current() == nil || b.dropped {
			return ErrNoBranch
		}
		for _, id := range ids {
			if s.dropping[id] {
				return ErrBusy
			}
		}
		n, changed := b.cover.Load().clone(s.opt.Shards), map[coverKey]bool{}
		if err := change(n, changed); err != nil {
			return err
		}
		for _, r := range ranges {
			for _, at := range r.upTo {
				if at != ^pg.LSN(0) && (b.durable == nil || at > b.durable.Resume) {
					return fmt.Errorf("%w: WAL from before %s would be read again after a crash", ErrNotYet, at)
				}
			}
		}
		for _, r := range ranges {
			for _, at := range r.upTo {
				b.reached(at)
			}
		}
		for _, id := range ids {
			s.dropping[id] = true
			b.shrink(id.shard)
		}
		if len(changed) > 0 {
			maps.Copy(b.coverDirty, changed)
			b.cover.Store(n)
			b.dirty = true
		}
		return nil
	}
	if err := begin(); err != nil {
		return err
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range ids {
			delete(s.dropping, id)
		}
	}()
	// That less is here is durable before it goes, and nothing that goes is in memory.
	if err := s.flush(true); err != nil {
		return err
	}
	for _, r := range ranges {
		e := &evictor{s: s, ctx: ctx, least: slices.Min(r.upTo), upTo: func(p *prefix) pg.LSN { return r.upTo[p.shard()-r.lo.shard()] }}
		for from := r.lo; from.compare(&r.hi) < 0; {
			next, err := e.piece(from, r.hi)
			if err != nil {
				return err
			}
			from = next
		}
	}
	return nil
}

// shrink counts that something of a shard was given up. Under Store.covering.
func (b *branchState) shrink(shard placement.Shard) {
	b.shrunk[shard]++
}

// evictor writes what stays of a range of keys anew, in place of all of it.
type evictor struct {
	s     *Store
	ctx   context.Context
	upTo  func(p *prefix) pg.LSN // what is at or below goes
	least pg.LSN                 // of all upTo
	bytes int64
	path  string
	out   *sstable.Writer
	pairs pairWriter
}

// piece does so from lo on, up to next.
func (e *evictor) piece(lo, hi prefix) (next prefix, err error) {
	s := e.s
	e.path, e.bytes, e.out = s.fs.PathJoin(s.opt.Dir, ingestDir, "evict.sst"), 0, nil
	// No table may come in between: it would go with the range.
	s.tables.Lock()
	defer s.tables.Unlock()
	defer func() { err = errors.Join(err, s.discard(e.path)) }()
	next, err = e.write(lo, hi)
	if e.out != nil {
		if err == nil {
			err = e.pairs.finish()
		}
		if cerr := e.out.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return hi, err
	}
	if err := s.edges(lo, next); err != nil {
		return hi, err
	}
	span := pebble.KeyRange{Start: lo[:], End: next[:]}
	if e.out != nil {
		_, err = s.db.IngestAndExcise(context.Background(), []string{e.path}, nil, nil, span)
	} else {
		err = s.db.Excise(context.Background(), span)
	}
	if err != nil {
		return hi, fmt.Errorf("take what is evicted away: %w", err)
	}
	s.changed()
	return next, nil
}

// write writes the versions that stay, as many as make a table.
func (e *evictor) write(lo, hi prefix) (next prefix, err error) {
	s := e.s
	it, r, done, err := s.walkers(newerThan(e.least))
	if err != nil {
		return hi, err
	}
	defer done()
	for ok := it.SeekGE(lo[:]); ok; ok = it.NextPrefix() {
		p, _, known := splitKey(it.Key())
		if !known {
			return hi, r.corrupt(&lo, 0, errShape)
		}
		if p.compare(&hi) >= 0 {
			return hi, nil
		}
		if e.bytes >= pieceBytes {
			return p, nil
		}
		if err := e.ctx.Err(); err != nil {
			return hi, err
		}
		if err := e.object(r, &p); err != nil {
			return hi, err
		}
	}
	if err := it.Error(); err != nil {
		return hi, r.corrupt(&lo, 0, err)
	}
	return hi, nil
}

func (e *evictor) object(r *reader, p *prefix) error {
	upTo := e.upTo(p)
	for r.seek(p, ^pg.LSN(0)); ; {
		v, ok, err := r.next()
		if err != nil || !ok || v.lsn <= upTo {
			return err
		}
		if e.out == nil {
			if err := e.s.spare.room(2 * pieceBytes); err != nil {
				return fmt.Errorf("%w: %w", ErrFull, err)
			}
			f, err := e.s.fs.Create(e.path, vfs.WriteCategoryUnspecified)
			if err != nil {
				return err
			}
			e.out = e.s.newTable(&tableFile{f: f})
			e.pairs = pairWriter{set: e.out.Set}
		}
		e.bytes += int64(len(v.value))
		if err := e.pairs.add(p, v.lsn, v.value); err != nil {
			return err
		}
	}
}

// walkers are an iterator over the tables that finds objects, and a reader of their versions: without runs, and without the branch's parents.
func (s *Store) walkers(opt *pebble.IterOptions) (it *pebble.Iterator, r *reader, done func(), err error) {
	s.iters.mu.Lock()
	if s.iters.closed {
		s.iters.mu.Unlock()
		return nil, nil, nil, ErrClosed
	}
	s.readers.Add(1)
	s.iters.mu.Unlock()
	r = &reader{s: s, st: &state{}}
	if r.it, err = s.db.NewIter(opt); err != nil {
		s.readers.Done()
		return nil, nil, nil, err
	}
	if it, err = s.db.NewIter(opt); err != nil {
		r.it.Close()
		s.readers.Done()
		return nil, nil, nil, err
	}
	return it, r, func() {
		it.Close()
		r.it.Close()
		s.readers.Done()
	}, nil
}

// edges makes sure that the database can read what lies around the ends of a range that is to be cut out of tables. Where it can't, it would take that for
// the end of the table, and what lies beyond would be gone.
func (s *Store) edges(lo, hi prefix) error {
	it, r, done, err := s.walkers(nil)
	if err != nil {
		return err
	}
	defer done()
	it.SeekLT(lo[:])
	if err := it.Error(); err != nil {
		return &EdgeError{Err: r.corrupt(&lo, 0, err)}
	}
	it.SeekGE(hi[:])
	if err := it.Error(); err != nil {
		return &EdgeError{After: true, Err: r.corrupt(&hi, 0, err)}
	}
	return nil
}

// cuttable is edges, while no table comes in.
func (s *Store) cuttable(lo, hi prefix) error {
	s.tables.Lock()
	defer s.tables.Unlock()
	return s.edges(lo, hi)
}

// EdgeError says that a range can't be taken out of the tables, since what lies just before or after it is corrupt.
type EdgeError struct {
	After bool
	Err   error
}

// Error says which side.
func (e *EdgeError) Error() string {
	side := "before"
	if e.After {
		side = "after"
	}
	return fmt.Sprintf("what lies just %s it is corrupt: %v", side, e.Err)
}

// Unwrap is what was found.
func (e *EdgeError) Unwrap() error { return e.Err }

// Since is from where on the store has all versions of an owned shard's pages; whole tells that it has all that reads from there on need.
func (s *Store) Since(branch uint32, shard placement.Shard) (from pg.LSN, whole bool) {
	b, ok := s.branches.Load(branch)
	if !ok {
		return 0, false
	}
	c := b.(*branchState).cover.Load()
	have := c.shard(shard)
	for k, one := range c.chunks {
		if placement.ShardOf(k, s.opt.Shards) == shard {
			have.From = max(have.From, one.From)
			have.Complete = have.Complete && one.Complete
		}
	}
	return have.From, have.Owned && have.Complete
}

// Evicted lists the chunks of a branch of which less is here than of their shard, in no order.
func (s *Store) Evicted(branch uint32) (list []placement.Chunk) {
	if b, ok := s.branches.Load(branch); ok {
		c := b.(*branchState).cover.Load()
		for k, have := range c.chunks {
			if have.Owned && !have.Complete && c.shard(placement.ShardOf(k, s.opt.Shards)).Complete {
				list = append(list, k)
			}
		}
	}
	return list
}

// ChunkUsage is what a chunk takes on disk with all its versions.
type ChunkUsage struct {
	Chunk placement.Chunk
	Shard placement.Shard
	Bytes uint64 // about, as compressed
}

// Usage calls fn for each chunk of a branch that the store has something of, shard by shard in key order. What is in memory is not counted.
func (s *Store) Usage(ctx context.Context, branch uint32, fn func(u ChunkUsage) error) error {
	it, err := s.db.NewIter(nil)
	if err != nil {
		return err
	}
	defer it.Close()
	lo, hi := branchRange(classPage, branch)
	for ok := it.SeekGE(lo[:]); ok; {
		p, _, known := splitKey(it.Key())
		if !known {
			return fmt.Errorf("usage of branch %d: %w: key %x", branch, errShape, it.Key())
		}
		if p.compare(&hi) >= 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		u := ChunkUsage{Chunk: placement.ChunkOf(p.pageKey(), s.opt.SegmentBlocks), Shard: placement.Shard(p.shard())}
		from, to := s.chunkRange(branch, u.Chunk)
		if u.Bytes, err = s.db.EstimateDiskUsage(from[:], to[:]); err != nil {
			return err
		}
		if err := fn(u); err != nil {
			return err
		}
		ok = it.SeekGE(to[:])
	}
	return it.Error()
}
