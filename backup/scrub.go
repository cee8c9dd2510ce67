package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/wal/pg"
)

// Scrub is a walk through all of a backup.
type Scrub struct {
	Store    store.Store
	Registry Registry
	Branches []uint32
	Shards   uint32
	ID       archive.ID
	Root     *Root // nil: the store's newest
	Grace    time.Duration
	Report   func(problem string)
	Note     func(text string) // garbage, and what isn't ours

	Objects int
	Bytes   int64
	Layers  int
}

// Run reads every object that is needed, holds it against its checksums, and holds what is there against what is needed, both ways. The error says that the
// walk did not end; what is wrong with the backup goes to Report.
func (s *Scrub) Run(ctx context.Context) error {
	inv, err := TakeInventory(ctx, s.Store, s.Registry, s.Branches, s.Shards)
	if err != nil {
		if store.Temporary(err) {
			return err
		}
		s.Report(err.Error())
		return nil
	}
	s.Objects, s.Bytes = len(inv.Objects), inv.Bytes
	for _, name := range inv.Missing() {
		s.Report("missing: " + name + ", which a manifest refers to")
	}
	for _, i := range inv.Orphans(time.Now().Add(-s.Grace)) {
		s.Note(fmt.Sprintf("orphan: %s, %d bytes; gc removes it", i.Name, i.Size))
	}
	for _, name := range inv.Strange {
		s.Note("not ours: " + name)
	}
	if err := s.roots(ctx); err != nil {
		return err
	}
	if err := s.layers(ctx, inv); err != nil {
		return err
	}
	resume := map[uint32]pg.LSN{}
	for _, m := range inv.Lists {
		if m.Shard == Small {
			resume[m.Branch] = m.Hi
		}
	}
	for _, m := range inv.Lists {
		if m.Hi < resume[m.Branch] {
			s.Report(fmt.Sprintf("hole: shard %d of branch %d ends at %s, what is small at %s", m.Shard, m.Branch, m.Hi, resume[m.Branch]))
		}
	}
	// The WAL is held against what is there now: what lay before was collected since.
	if err := s.Registry.Sync(ctx); err != nil {
		return err
	}
	for b := range resume {
		resume[b] = s.Registry.Current(b, Small).LSN
	}
	return s.wal(ctx, resume)
}

// scrubRounds bounds how often the layers are looked up again that took the place of those that were being read.
const scrubRounds = 4

// layers reads the layers of an inventory. Shards get new ones meanwhile, and gc takes the old ones away.
func (s *Scrub) layers(ctx context.Context, inv *Inventory) error {
	type placed struct {
		m *Manifest
		l Layer
	}
	read := map[layerKey]bool{}
	for round := 1; ; round++ {
		var gone []placed
		for _, m := range slices.Concat(inv.Lists, inv.Rooted) {
			for _, l := range m.Layers {
				key := layerKey{l.Object, l.Offset}
				if read[key] {
					continue
				}
				read[key] = true
				err := s.layer(ctx, l)
				switch {
				case err == nil:
				case errors.Is(err, store.ErrNotExist) && round < scrubRounds:
					gone = append(gone, placed{m, l})
				case store.Temporary(err) && !errors.Is(err, store.ErrTruncated):
					return err
				default:
					s.corrupt(m, l, err)
				}
			}
		}
		if len(gone) == 0 {
			return nil
		}
		var err error
		if inv, err = TakeInventory(ctx, s.Store, s.Registry, s.Branches, s.Shards); err != nil {
			if !store.Temporary(err) {
				s.Report(err.Error())
				return nil
			}
			return err
		}
		for _, g := range gone {
			if inv.Needed[g.l.Object] {
				s.corrupt(g.m, g.l, &store.Error{Op: "get", Name: g.l.Object, Kind: store.ErrNotExist})
			}
		}
	}
}

// roots reads all roots: recovery passes over a damaged one for the one before, and tells nobody.
func (s *Scrub) roots(ctx context.Context) error {
	names, err := roots(ctx, s.Store)
	if err != nil {
		return err
	}
	for _, name := range names {
		_, err := readRoot(ctx, s.Store, name)
		switch {
		case err == nil, errors.Is(err, store.ErrNotExist): // it was replaced since
		case store.Temporary(err) && !errors.Is(err, store.ErrTruncated):
			return err
		default:
			s.Report("corrupt: " + err.Error())
		}
	}
	return nil
}

func (s *Scrub) layer(ctx context.Context, l Layer) error {
	r := newLayerReader(ctx, s.Store, l)
	defer r.close()
	n, err := io.Copy(io.Discard, r)
	s.Layers++
	if err == nil && n != l.Length {
		err = &store.Error{Op: "get", Name: l.Object, Kind: store.ErrCorrupt, Err: fmt.Errorf("%d bytes of a layer of %d", n, l.Length)}
	}
	return err
}

func (s *Scrub) corrupt(m *Manifest, l Layer, err error) {
	s.Report(fmt.Sprintf("corrupt: layer of shard %d of branch %d from %s to %s in %s at %d: %v", m.Shard, m.Branch, l.Lo, l.Hi, l.Object, l.Offset, err))
}

func (s *Scrub) wal(ctx context.Context, resume map[uint32]pg.LSN) error {
	if s.ID.SystemID == 0 {
		return nil
	}
	inv, err := archive.List(ctx, s.Store, s.ID)
	if err != nil {
		return err
	}
	s.Objects += inv.Objects
	s.Bytes += inv.Bytes
	for _, name := range inv.Strange {
		s.Note("not ours: " + name)
	}
	for _, tli := range inv.Timelines() {
		first, ok := inv.First(tli)
		if !ok {
			continue
		}
		for _, gap := range inv.Gaps(tli, first) {
			s.Report("hole: WAL is missing, " + gap.String())
		}
	}
	if root := s.Root; root != nil {
		// Only main goes on from its layers' end. Where it has none yet it is made of WAL, from where it forked off.
		if root.Main != 0 {
			at, ok := resume[root.Main]
			if !ok {
				at = root.line(root.Main).Fork
			}
			resume = map[uint32]pg.LSN{root.Main: at}
		}
		for b, at := range resume {
			if end := inv.End(root.History, s.ID.SegmentSize.Floor(at)); end < at {
				s.Report(fmt.Sprintf("hole: the WAL of branch %d ends at %s, what is read of it in a recovery begins at %s", b, end, at))
			}
		}
	}
	bad, err := inv.Scrub(ctx, s.Store)
	for _, d := range bad {
		s.Report("corrupt: " + d.Err.Error())
	}
	return err
}
