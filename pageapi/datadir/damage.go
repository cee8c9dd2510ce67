package datadir

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"everpage/wal/pg"
)

// preflight gathers what cannot be read and decides about it, before anything is made.
func (b *builder) preflight(ctx context.Context) error {
	found := map[pg.RelFork]error{}
	err := b.src.Damaged(ctx, b.o.At, func(d Damage) error {
		// The free space map is not part of the tree.
		if d.Fork != pg.FSMFork && found[d.RelFork] == nil {
			found[d.RelFork] = d.Err
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return nil
	}
	damaged := &DamagedError{At: b.o.At}
	for f, err := range found {
		d := DamagedRelation{RelFileLocator: f.RelFileLocator, Fork: f.Fork, Err: cmp.Or(err, errors.New("damaged"))}
		if s, ok := (pg.PageKey{RelFork: f}).SLRU(); ok {
			d.Path = s.Dir()
		} else {
			d.Path = b.major.RelationPath(f, 0)
		}
		damaged.Relations = append(damaged.Relations, d)
	}
	slices.SortFunc(damaged.Relations, func(x, y DamagedRelation) int {
		return cmp.Or(x.RelFileLocator.Compare(y.RelFileLocator), cmp.Compare(x.Fork, y.Fork))
	})
	return damaged
}
