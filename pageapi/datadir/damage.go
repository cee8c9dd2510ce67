package datadir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"everpage/wal/pg"
)

// preflight gathers what cannot be read and decides about it, before anything is made.
func (b *builder) preflight(ctx context.Context) error {
	found := map[pg.RelFork]error{}
	err := b.src.Damaged(ctx, b.o.At, func(d Damage) error {
		// The free space map is not part of the tree.
		if d.Fork != pg.FSMFork && found[d.RelFork] == nil {
			found[d.RelFork] = cmp.Or(d.Err, errors.New("its content is not known"))
		}
		return nil
	})
	if err != nil || len(found) == 0 {
		return err
	}
	var all []DamagedRelation
	for f, err := range found {
		d := DamagedRelation{RelFileLocator: f.RelFileLocator, Fork: f.Fork, Err: err}
		if s, ok := (pg.PageKey{RelFork: f}).SLRU(); ok {
			d.Path = s.Dir()
		} else {
			d.Path = b.major.RelationPath(f, 0)
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(x, y DamagedRelation) int {
		return cmp.Or(cmp.Compare(x.DB, y.DB), x.RelFileLocator.Compare(y.RelFileLocator), cmp.Compare(x.Fork, y.Fork))
	})
	var refused []DamagedRelation
	for group := range chunkByDB(all) {
		refused = append(refused, b.judge(ctx, group)...)
	}
	if len(refused) > 0 {
		return &DamagedError{At: b.o.At, Relations: refused}
	}
	return nil
}

// chunkByDB yields runs of relations of one database.
func chunkByDB(all []DamagedRelation) func(func([]DamagedRelation) bool) {
	return func(yield func([]DamagedRelation) bool) {
		for len(all) > 0 {
			n := 1
			for n < len(all) && all[n].DB == all[0].DB && all[n].Spc != 0 {
				n++
			}
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}

// judge names the damaged relations of one database and returns those that must not be left out. The others are noted in the tree.
func (b *builder) judge(ctx context.Context, group []DamagedRelation) []DamagedRelation {
	k, rows, names, err := b.names(ctx, group[0])
	if err != nil {
		if b.o.AllowMissing {
			for i := range group {
				group[i].Err = fmt.Errorf("%w; whether it is an index cannot be told: %w", group[i].Err, err)
			}
		}
		return group
	}
	var refused []DamagedRelation
	for _, d := range group {
		row := rowOf(rows, d.RelFileLocator)
		if row != nil {
			d.Name, d.Kind = names[row.namespace]+"."+row.name, kindName(row.kind)
		}
		if err := b.leaveOut(ctx, k, rows, row, d.RelFileLocator); err != nil {
			d.Err = fmt.Errorf("%w; %w", d.Err, err)
			refused = append(refused, d)
			continue
		}
		b.tree.Missing = append(b.tree.Missing, d)
	}
	return refused
}

// names reads pg_class and pg_namespace of a relation's database.
func (b *builder) names(ctx context.Context, d DamagedRelation) (*catalog, []classRow, map[pg.Oid]string, error) {
	if d.Spc == 0 || d.DB == 0 {
		return nil, nil, nil, errors.New("it belongs to no database")
	}
	sizes := map[pg.RelFileLocator]pg.BlockNumber{}
	err := b.src.Relations(ctx, b.o.At, func(r Relation) error {
		if r.DB == d.DB && r.Fork == pg.MainFork {
			sizes[r.RelFileLocator] = r.Blocks
		}
		return nil
	})
	if err != nil {
		return nil, nil, nil, err
	}
	k, err := openCatalog(b.src, b.o.At, b.c, d.DB, sizes)
	if err != nil {
		return nil, nil, nil, err
	}
	rows, err := k.classes(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	names, err := k.schemas(ctx, rows)
	return k, rows, names, err
}

func rowOf(rows []classRow, loc pg.RelFileLocator) *classRow {
	for i := range rows {
		if rows[i].node == loc.Rel && rows[i].spc == loc.Spc {
			return &rows[i]
		}
	}
	return nil
}

// leaveOut leaves out an index that a server can do without until it is rebuilt, or tells why not.
func (b *builder) leaveOut(ctx context.Context, k *catalog, rows []classRow, row *classRow, loc pg.RelFileLocator) error {
	switch {
	case !b.o.AllowMissing:
		return errors.New("choose another LSN, or leave out such indexes by --allow-missing")
	case row == nil && len(b.c.TwoPhase) > 0:
		return errors.New("it is of no relation that is visible, but a prepared transaction may have made it")
	case row == nil:
		// A transaction that is not committed made it: nobody will ask for it.
		b.missing[loc] = true
		return nil
	case row.kind != 'i':
		return errors.New("it is no index, so it cannot be left out")
	case row.oid < pg.FirstNormalOid || row.namespace == oidPgToast:
		return errors.New("the server needs this index, so it cannot be left out")
	case b.missing[loc]:
		return nil
	}
	fork, patches, err := k.invalidate(ctx, rows, row.oid)
	if err != nil {
		return fmt.Errorf("it cannot be marked invalid: %w", err)
	}
	b.patches[fork] = append(b.patches[fork], patches...)
	b.missing[loc] = true
	return nil
}

// kindName is what relkind means.
func kindName(kind byte) string {
	switch kind {
	case 'r':
		return "table"
	case 'i':
		return "index"
	case 'S':
		return "sequence"
	case 't':
		return "toast table"
	case 'm':
		return "materialized view"
	}
	return fmt.Sprintf("relation of kind %q", kind)
}
