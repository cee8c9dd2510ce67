package chunk

import (
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"everpage/wal/pg"
)

// What is cut out of the middle of a table leaves the disk only when the rest of the table is written anew. The database does that by itself in its upper
// levels, where tables are merged all the time, and never in the lowest.

// Reclaim writes the rests of those tables of the lowest level anew of which less than half is left.
func (s *Store) Reclaim(ctx context.Context) error {
	levels, err := s.db.SSTables()
	if err != nil {
		return err
	}
	type rest struct {
		left   uint64
		ranges []evictRange
	}
	rests := map[uint64]*rest{}
	for level := 1; level < len(levels); level++ {
		for _, t := range levels[level] {
			if !t.Virtual || t.BackingType != pebble.BackingTypeLocal {
				continue
			}
			lo, _, first := splitKey(t.Smallest.UserKey)
			hi, _, last := splitKey(t.Largest.UserKey)
			if !first || !last || lo.class() != classPage || hi.class() != classPage || lo.branch() != hi.branch() {
				continue
			}
			r := rests[uint64(t.BackingSSTNum)]
			if r == nil {
				r = &rest{}
				rests[uint64(t.BackingSSTNum)] = r
			}
			r.left += t.Size
			r.ranges = append(r.ranges, evictRange{lo: lo, hi: hi.next()})
		}
	}
	for number, r := range rests {
		st, err := s.fs.Stat(s.fs.PathJoin(s.opt.Dir, "pebble", fmt.Sprintf("%06d.sst", number)))
		if err != nil || 2*r.left >= uint64(st.Size()) {
			continue // it has gone meanwhile, or is worth its space
		}
		for _, k := range r.ranges {
			e := &evictor{s: s, ctx: ctx, upTo: func(*prefix) pg.LSN { return 0 }}
			for from := k.lo; from.compare(&k.hi) < 0; {
				if from, err = e.piece(from, k.hi); err != nil {
					return fmt.Errorf("reclaim: %w", err)
				}
			}
		}
	}
	return nil
}
