package chunk

import (
	"context"
	"fmt"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Evict gives up what the store has of one chunk up to now, and its disk space; the shard stays owned, what WAL brings from here on is kept. Reads that need
// what was given up ask the source. It is for the caller to know that another place has it.
func (s *Store) Evict(branch uint32, chunk placement.Chunk) error {
	shard := placement.ShardOf(chunk, s.opt.Shards)
	b := s.branch(branch)
	fail := func(err error) error { return fmt.Errorf("evict chunk %s of branch %d: %w", chunk, branch, err) }
	set := func(from func() pg.LSN) error {
		s.covering.Lock()
		defer s.covering.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closing {
			return ErrClosed
		}
		n := b.cover.Load().clone(s.opt.Shards)
		if b.current() == nil || !n.shard(shard).Owned {
			return ErrNotHere
		}
		at := from()
		n.chunks[chunk] = Coverage{Owned: true, From: at}
		b.reached(at)
		b.coverDirty[coverKey{one: true, chunk: chunk}] = true
		b.shrunk.Add(1)
		b.cover.Store(n)
		b.dirty = true
		return nil
	}
	// Nothing is claimed before the data goes, and durably so; what comes to the tables after that stays.
	if err := set(func() pg.LSN { return ^pg.LSN(0) }); err != nil {
		return fail(err)
	}
	if err := s.flush(true); err != nil {
		return fail(err)
	}
	if err := s.excise(s.chunkRange(branch, chunk)); err != nil {
		return fail(err)
	}
	if err := set(func() pg.LSN {
		p := b.current()
		return max(b.high, pg.LSN(b.at.Load()), p.Readable, p.Resume)
	}); err != nil {
		return fail(err)
	}
	return nil
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
