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
	var gone []object
	for _, o := range objects {
		err := read(ctx, io.Discard, s, inv.ID, o)
		if errors.Is(err, store.ErrNotExist) {
			gone = append(gone, o)
			continue
		}
		if err != nil && store.Temporary(err) && !errors.Is(err, store.ErrTruncated) {
			return found, err
		}
		if err != nil {
			found = append(found, Damage{o.name, err})
		}
	}
	if len(gone) > 0 {
		lost, err := inv.lost(ctx, s, gone)
		if found = append(found, lost...); err != nil {
			return found, err
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

// lost judges objects that went while others were read. Pieces go when their segment is whole, and what lies before all the rest was collected.
func (inv *Inventory) lost(ctx context.Context, s store.Store, gone []object) (found []Damage, err error) {
	now, err := List(ctx, s, inv.ID)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, o := range gone {
		if now.beginsBehind(o) {
			continue
		}
		k := key{o.timeline, o.number}
		if !now.covers(k, o) {
			found = append(found, Damage{o.name, &store.Error{Op: "get", Name: o.name, Kind: store.ErrNotExist}})
			continue
		}
		for _, n := range now.segments[k] {
			if seen[n.name] || slices.ContainsFunc(inv.segments[k], func(old object) bool { return old.name == n.name }) {
				continue
			}
			seen[n.name] = true
			if err := read(ctx, io.Discard, s, inv.ID, n); err != nil {
				if store.Temporary(err) && !errors.Is(err, store.ErrTruncated) {
					return found, err
				}
				found = append(found, Damage{n.name, err})
			}
		}
	}
	return found, nil
}

// beginsBehind tells whether all WAL of an object's timeline, or of all of them where there is none of it, begins behind the object.
func (inv *Inventory) beginsBehind(o object) bool {
	timelines := []pg.TimelineID{o.timeline}
	if _, ok := inv.First(o.timeline); !ok {
		timelines = inv.Timelines()
	}
	any := false
	for _, tli := range timelines {
		if first, ok := inv.First(tli); ok {
			if first < o.end(inv.ID.SegmentSize) {
				return false
			}
			any = true
		}
	}
	return any
}

// covers tells whether there is all of an object's WAL in other objects.
func (inv *Inventory) covers(k key, o object) bool {
	at, end := o.from, o.to
	if o.whole() {
		end = uint32(inv.ID.SegmentSize)
	}
	for _, p := range inv.segments[k] {
		if p.whole() {
			return true
		}
		if p.from <= at {
			at = max(at, p.to)
		}
	}
	return at >= end
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

// Before lists the objects of segments that lie before the one with the last byte before an LSN, and obsolete pieces, all older than a time. Whoever goes on at the
// LSN, which may be where a segment ends, shows by that byte's page that the primary is the same.
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
		if o.end(id.SegmentSize) <= id.SegmentSize.Floor(max(lsn, 1)-1) && i.Modified.Before(older) {
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
