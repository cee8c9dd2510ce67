package chunk

import (
	"fmt"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// A store may own single chunks of shards that it doesn't own. What OwnChunk says is kept like what is said of shards, and ends when the shard is disowned.

// ownsOther tells whether single chunks of a shard are owned.
func (c *cover) ownsOther(s placement.Shard, shards uint32) (placement.Chunk, bool) {
	for k, have := range c.chunks {
		if have.Owned && placement.ShardOf(k, shards) == s {
			return k, true
		}
	}
	return placement.Chunk{}, false
}

// OwnChunk makes the store keep all versions of one chunk's pages from here on, as Own does for shards. It is for chunks of shards that are not owned;
// those of others are owned already.
func (s *Store) OwnChunk(branch uint32, chunk placement.Chunk) (from pg.LSN, err error) {
	shard := placement.ShardOf(chunk, s.opt.Shards)
	b := s.branch(branch)
	s.covering.Lock()
	defer s.covering.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := b.current()
	switch {
	case s.closing:
		return 0, ErrClosed
	case p == nil || b.dropped:
		return 0, fmt.Errorf("branch %d: %w", branch, ErrNoBranch)
	}
	old := b.cover.Load()
	if c := old.chunk(chunk, shard); c.Owned {
		return c.From, nil
	}
	if s.dropping[shardOf{branch, shard}] {
		return 0, fmt.Errorf("branch %d: shard %d, or a chunk of it, is being dropped: %w", branch, shard, ErrBusy)
	}
	set := func(at pg.LSN) { // twice, as in Own
		n := old.clone(s.opt.Shards)
		n.chunks[chunk] = Coverage{Owned: true, From: at}
		b.coverDirty[coverKey{one: true, chunk: chunk}] = true
		b.cover.Store(n)
	}
	set(^pg.LSN(0))
	at := max(b.high, pg.LSN(b.at.Load()), p.Readable, p.Resume)
	set(at)
	b.reached(at)
	b.dirty = true
	return at, nil
}

// DropChunk makes the store keep no more versions of a chunk that it owns without its shard, answer no reads of it, and frees what it takes on disk.
func (s *Store) DropChunk(branch uint32, chunk placement.Chunk) error {
	shard := placement.ShardOf(chunk, s.opt.Shards)
	b := s.branch(branch)
	id := shardOf{branch, shard}
	begin := func() error {
		s.covering.Lock()
		defer s.covering.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case s.closing:
			return ErrClosed
		case b.current() == nil || b.dropped:
			return ErrNoBranch
		case s.dropping[id]:
			return ErrBusy
		case b.cover.Load().shard(shard).Owned:
			return fmt.Errorf("this node owns shard %d, which it is of", shard)
		}
		s.dropping[id] = true
		n := b.cover.Load().clone(s.opt.Shards)
		delete(n.chunks, chunk)
		b.coverDirty[coverKey{one: true, chunk: chunk}] = true
		b.shrink(shard)
		b.cover.Store(n)
		b.dirty = true
		return nil
	}
	err := begin()
	if err != nil {
		return fmt.Errorf("drop of chunk %s of branch %d: %w", chunk, branch, err)
	}
	defer func() {
		s.mu.Lock()
		delete(s.dropping, id)
		s.mu.Unlock()
	}()
	// As with shards: first nothing is claimed any more, durably, then the data goes.
	if err := s.flush(true); err != nil {
		return err
	}
	if err := s.excise(s.chunkRange(branch, chunk)); err != nil {
		return fmt.Errorf("drop of chunk %s of branch %d: %w", chunk, branch, err)
	}
	return nil
}

// OwnedChunks are the chunks of a branch that are owned without their shards.
func (s *Store) OwnedChunks(branch uint32) []placement.Chunk {
	var out []placement.Chunk
	if b, ok := s.branches.Load(branch); ok {
		c := b.(*branchState).cover.Load()
		for k, have := range c.chunks {
			if have.Owned && !c.shard(placement.ShardOf(k, s.opt.Shards)).Owned {
				out = append(out, k)
			}
		}
	}
	return out
}
