package chunk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// What is corrupt on disk is remembered by shard, once a read or Scrub has met it, until the shard is evicted: then the corrupt block is in no table any more, and
// all of the shard comes again from where others have it.

// decay remembers where something corrupt was read. Small objects are not: nothing brings them again.
func (s *Store) decay(e *CorruptError) {
	if e.at == nil {
		return
	}
	shard := placement.Shard(e.at.shard())
	if _, known := s.decayed.LoadOrStore(shardOf{e.at.branch(), shard}, struct{}{}); !known {
		s.log.Error("what is stored of a shard is corrupt; its pages are read from other places, where they are", "branch", e.at.branch(), "shard", shard, "page", e.Key, "err", e.Err)
	}
}

// ShardSpan are shards in a row.
type ShardSpan struct {
	First, Last placement.Shard
}

// Decayed lists the shards of a branch of which something corrupt was read, each with those beside it that share a corrupt block: they can be evicted together
// only.
func (s *Store) Decayed(branch uint32) (spans []ShardSpan, err error) {
	var shards []placement.Shard
	s.decayed.Range(func(k, _ any) bool {
		if id := k.(shardOf); id.branch == branch {
			shards = append(shards, id.shard)
		}
		return true
	})
	slices.Sort(shards)
	var errs []error
	for _, shard := range shards {
		if n := len(spans); n > 0 && shard <= spans[n-1].Last {
			continue
		}
		span, err := s.around(branch, shard)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for n := len(spans); n > 0 && spans[n-1].Last >= span.First; n = len(spans) {
			span.First = min(span.First, spans[n-1].First)
			spans = spans[:n-1]
		}
		spans = append(spans, span)
	}
	return spans, errors.Join(errs...)
}

// around widens a shard to what can be cut out of the tables.
func (s *Store) around(branch uint32, shard placement.Shard) (ShardSpan, error) {
	span := ShardSpan{shard, shard}
	for {
		lo, _ := shardRange(branch, span.First)
		_, hi := shardRange(branch, span.Last)
		err := s.cuttable(lo, hi)
		var edge *EdgeError
		if !errors.As(err, &edge) {
			return span, err
		}
		switch {
		case !edge.After && span.First > 0:
			span.First--
		case edge.After && uint32(span.Last)+1 < s.opt.Shards:
			span.Last++
		default:
			return span, fmt.Errorf("shard %d of branch %d can't be repaired, since a block that it shares with what is not of the branch's pages is corrupt: "+
				"give the node an empty data directory; %w", shard, branch, err)
		}
	}
}

// Scrub reads all that is stored of the pages of a branch's owned shards, and reports what is corrupt, once for each shard. Decayed lists these then.
func (s *Store) Scrub(ctx context.Context, branch uint32, report func(shard placement.Shard, err error)) error {
	if err := s.flush(true); err != nil {
		return err
	}
	b := s.branch(branch)
	for shard := range placement.Shard(s.opt.Shards) {
		c := b.cover.Load()
		if _, other := c.ownsOther(shard, s.opt.Shards); !c.shard(shard).Owned && !other {
			continue
		}
		err := s.scrub(ctx, branch, shard)
		var corrupt *CorruptError
		if errors.As(err, &corrupt) {
			s.decay(corrupt)
			report(shard, err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) scrub(ctx context.Context, branch uint32, shard placement.Shard) error {
	it, r, done, err := s.walkers(nil)
	if err != nil {
		return err
	}
	defer done()
	lo, hi := shardRange(branch, shard)
	it.SetBounds(lo[:], hi[:])
	at := lo
	for ok := it.First(); ok; ok = it.Next() {
		p, lsn, known := splitKey(it.Key())
		if !known {
			return r.corrupt(&at, 0, errShape)
		}
		at = p
		v, err := it.ValueAndErr()
		if err == nil {
			err = versionsOf(it.Key(), v, func(*prefix, pg.LSN, []byte) error { return nil })
		}
		if err != nil {
			return r.corrupt(&at, lsn, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return r.corrupt(&at, 0, err)
	}
	return nil
}
