package archive

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"everpage/backup/store"
	"everpage/wal"
	"everpage/wal/pg"
)

// Damage is an object that can't be read as what its name says.
type Damage struct {
	Name string
	Err  error
}

// Scrub reads every object of an inventory and holds it against its checksums and name. The error is of the store or of ctx: the scrub didn't end.
func (inv *Inventory) Scrub(ctx context.Context, s store.Store) ([]Damage, error) {
	var objects []object
	for _, l := range inv.segments {
		objects = append(objects, l...)
	}
	slices.SortFunc(objects, func(a, b object) int { return strings.Compare(a.name, b.name) })
	var found []Damage
	for _, o := range objects {
		err := read(ctx, io.Discard, s, inv.ID, o)
		if err != nil && store.Temporary(err) && !errors.Is(err, store.ErrTruncated) {
			return found, err
		}
		if err != nil {
			found = append(found, Damage{o.name, err})
		}
	}
	for tli := range inv.histories {
		name := inv.ID.historyName(tli)
		b, err := store.ReadAll(ctx, s, name, 0, -1)
		if err != nil && store.Temporary(err) {
			return found, err
		}
		if err == nil {
			_, err = wal.ParseHistory(tli, b)
		}
		if err != nil {
			found = append(found, Damage{name, err})
		}
	}
	return found, nil
}

// Obsolete names the objects that nobody reads any more: pieces of segments that are there as a whole.
func (inv *Inventory) Obsolete() []string {
	var out []string
	for _, l := range inv.segments {
		if !l[0].whole() {
			continue
		}
		for _, o := range l[1:] {
			out = append(out, o.name)
		}
	}
	slices.Sort(out)
	return out
}

// Before lists the objects whose WAL ends at or before an LSN, and obsolete pieces, all older than a time.
func Before(ctx context.Context, s store.Store, id ID, lsn pg.LSN, older time.Time) (list []store.Info, err error) {
	inv := &Inventory{ID: id, segments: map[key][]object{}, histories: map[pg.TimelineID]bool{}}
	infos := map[string]store.Info{}
	err = s.List(ctx, id.dir(), func(i store.Info) error {
		o, ok := id.parse(i.Name)
		if !ok {
			return nil
		}
		inv.add(o)
		infos[i.Name] = i
		if o.end(id.SegmentSize) <= id.SegmentSize.Floor(lsn) && i.Modified.Before(older) {
			list = append(list, i)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, name := range inv.Obsolete() {
		if i := infos[name]; i.Modified.Before(older) && !slices.ContainsFunc(list, func(have store.Info) bool { return have.Name == name }) {
			list = append(list, i)
		}
	}
	return list, nil
}
