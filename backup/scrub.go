package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	for _, i := range inv.Orphans(s.Grace, time.Now()) {
		s.Note(fmt.Sprintf("orphan: %s, %d bytes; gc removes it", i.Name, i.Size))
	}
	for _, name := range inv.Strange {
		s.Note("not ours: " + name)
	}
	resume := map[uint32]pg.LSN{}
	for _, m := range inv.Lists {
		if m.Shard == Small {
			resume[m.Branch] = m.Hi
		}
		for _, l := range m.Layers {
			if err := s.layer(ctx, m, l); err != nil {
				return err
			}
		}
	}
	for _, m := range inv.Lists {
		if m.Hi < resume[m.Branch] {
			s.Report(fmt.Sprintf("hole: shard %d of branch %d ends at %s, what is small at %s", m.Shard, m.Branch, m.Hi, resume[m.Branch]))
		}
	}
	return s.wal(ctx, resume)
}

func (s *Scrub) layer(ctx context.Context, m *Manifest, l Layer) error {
	r := newLayerReader(ctx, s.Store, l)
	defer r.close()
	n, err := io.Copy(io.Discard, r)
	s.Layers++
	if err == nil && n == l.Length {
		return nil
	}
	if err != nil && store.Temporary(err) && !errors.Is(err, store.ErrTruncated) {
		return err
	}
	s.Report(fmt.Sprintf("corrupt: layer of shard %d of branch %d from %s to %s in %s at %d: %v", m.Shard, m.Branch, l.Lo, l.Hi, l.Object, l.Offset, err))
	return nil
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
		for b, at := range resume {
			if end := inv.End(root.History, s.ID.SegmentSize.Floor(at)); end < at {
				s.Report(fmt.Sprintf("hole: the WAL of branch %d ends at %s, its layers at %s", b, end, at))
			}
		}
	}
	bad, err := inv.Scrub(ctx, s.Store)
	for _, d := range bad {
		s.Report("corrupt: " + d.Err.Error())
	}
	return err
}
