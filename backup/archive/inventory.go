package archive

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"everpage/backup/store"
	"everpage/wal"
	"everpage/wal/pg"
)

// Inventory is what an archive holds, as a listing found it.
type Inventory struct {
	ID        ID
	segments  map[key][]object // the whole segment, if there is one, then pieces in order
	histories map[pg.TimelineID]bool
	Strange   []string // objects among the WAL that are none
	Objects   int
	Bytes     int64
}

type key struct {
	timeline pg.TimelineID
	number   uint64
}

// List reads what an archive holds. It lists, so it is for starts, recovery and scrubbing.
func List(ctx context.Context, s store.Store, id ID) (*Inventory, error) {
	return list(ctx, s, id, id.dir())
}

func list(ctx context.Context, s store.Store, id ID, prefix string) (*Inventory, error) {
	inv := &Inventory{ID: id, segments: map[key][]object{}, histories: map[pg.TimelineID]bool{}}
	err := s.List(ctx, prefix, func(i store.Info) error {
		inv.Objects++
		inv.Bytes += i.Size
		if tli, err := wal.ParseHistoryName(strings.TrimPrefix(i.Name, id.dir())); err == nil {
			inv.histories[tli] = true
			return nil
		}
		o, ok := id.parse(i.Name)
		if !ok {
			inv.Strange = append(inv.Strange, i.Name)
			return nil
		}
		o.size = i.Size
		inv.add(o)
		return nil
	})
	return inv, err
}

func (inv *Inventory) add(o object) {
	k := key{o.timeline, o.number}
	l := append(inv.segments[k], o)
	slices.SortStableFunc(l, func(a, b object) int {
		if a.whole() != b.whole() {
			if a.whole() {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(b.to, a.to))
	})
	inv.segments[k] = l
}

// Timelines lists the timelines of which there is WAL or a history, in order.
func (inv *Inventory) Timelines() []pg.TimelineID {
	var out []pg.TimelineID
	for k := range inv.segments {
		out = append(out, k.timeline)
	}
	for tli := range inv.histories {
		out = append(out, tli)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// reach is where the gap-free WAL of one segment ends that begins at its start, as an offset; 0: there is none.
func (inv *Inventory) reach(k key) uint32 {
	var at uint32
	for _, o := range inv.segments[k] {
		if o.whole() {
			return uint32(inv.ID.SegmentSize)
		}
		if o.from > at {
			break
		}
		at = max(at, o.to)
	}
	return at
}

// cover lists objects that together hold a segment from its start to its reach.
func (inv *Inventory) cover(k key) []object {
	var out []object
	var at uint32
	for _, o := range inv.segments[k] {
		if o.whole() {
			return []object{o}
		}
		if o.from > at {
			break
		}
		if o.to > at {
			out = append(out, o)
			at = o.to
		}
	}
	return out
}

// First is the start of the first segment of a timeline that the archive has any WAL of.
func (inv *Inventory) First(tli pg.TimelineID) (pg.LSN, bool) {
	first, found := pg.LSN(0), false
	for k := range inv.segments {
		if at := inv.ID.SegmentSize.Start(k.number); k.timeline == tli && (!found || at < first) {
			first, found = at, true
		}
	}
	return first, found
}

// end is where a timeline's gap-free WAL ends that begins at the segment of from.
func (inv *Inventory) end(tli pg.TimelineID, from pg.LSN) pg.LSN {
	size := inv.ID.SegmentSize
	for n := size.Number(from); ; n++ {
		if r := inv.reach(key{tli, n}); r < uint32(size) {
			return size.Start(n) + pg.LSN(r)
		}
	}
}

// Gap is WAL that is missing.
type Gap struct {
	Timeline   pg.TimelineID
	Begin, End pg.LSN
}

func (g Gap) String() string {
	return fmt.Sprintf("timeline %d from %s to %s", g.Timeline, g.Begin, g.End)
}

// Gaps lists what is missing between the WAL that there is of a timeline from an LSN on.
func (inv *Inventory) Gaps(tli pg.TimelineID, from pg.LSN) []Gap {
	size := inv.ID.SegmentSize
	last, any := uint64(0), false
	for k := range inv.segments {
		if k.timeline == tli {
			last, any = max(last, k.number), true
		}
	}
	var gaps []Gap
	if !any {
		return nil
	}
	for n := size.Number(from); n <= last; n++ {
		at := size.Start(n)
		list := inv.segments[key{tli, n}]
		if len(list) > 0 && list[0].whole() {
			continue
		}
		for _, o := range list {
			if b := o.begin(size); b > at {
				gaps = append(gaps, Gap{tli, at, b})
			}
			at = max(at, o.end(size))
		}
		if end := size.Start(n + 1); n < last && at < end {
			gaps = append(gaps, Gap{tli, at, end})
		}
	}
	return mergeGaps(gaps)
}

func mergeGaps(gaps []Gap) []Gap {
	var out []Gap
	for _, g := range gaps {
		if k := len(out) - 1; k >= 0 && out[k].End == g.Begin {
			out[k].End = g.End
			continue
		}
		out = append(out, g)
	}
	return out
}

// End is where the gap-free WAL of a history ends that begins at from: what recovery can read up to. It follows the timelines of the history.
func (inv *Inventory) End(history wal.History, from pg.LSN) pg.LSN {
	at := from
	for {
		tli, end := inv.best(history, at)
		if tli == 0 || end <= at {
			return at
		}
		at = end
	}
}

// best is the timeline whose objects hold the WAL of a history at an LSN, and where they end in that segment. Of several the newest that was begun is
// preferred: its segment starts with a copy of the older one's.
func (inv *Inventory) best(history wal.History, at pg.LSN) (pg.TimelineID, pg.LSN) {
	size := inv.ID.SegmentSize
	n := size.Number(at)
	start, stop := size.Start(n), size.Start(n+1)
	members := []pg.TimelineID{history.Timeline}
	for _, e := range slices.Backward(history.Parents) {
		members = append(members, e.Timeline)
	}
	for _, tli := range members {
		begin, end, ok := history.Range(tli)
		if !ok || begin >= stop || end != 0 && start >= end {
			continue
		}
		reach := start + pg.LSN(inv.reach(key{tli, n}))
		if end != 0 {
			reach = min(reach, end)
		}
		if reach > at {
			return tli, reach
		}
	}
	return 0, 0
}
