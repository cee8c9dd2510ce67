package fsm

import (
	"bytes"
	"errors"
	"iter"
	"slices"

	"everpage/cluster/catalog"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// The inventory holds a chunk under the branch of which an owner reported it. A branch that forked off has what its parent had there, without a copy of it: only
// what happened to a chunk since is reported of the branch itself.

// inventory is the catalog, the empty one where there is none.
func (s *State) inventory() *catalog.Catalog {
	if s.Inventory == nil {
		return &catalog.Catalog{}
	}
	return s.Inventory
}

// reportChunks takes over what owners say. What they say of branches that are not there, or of chunks that went below the horizon meanwhile, is left out.
func (s *State) reportChunks(c *command.ReportChunks) error {
	reports, err := catalog.Decode(bytes.NewReader(c.Reports))
	if errors.Is(err, catalog.ErrMalformed) {
		return refuse("%v", err)
	}
	if err != nil {
		return err
	}
	have := s.inventory()
	reports = slices.DeleteFunc(reports, func(e catalog.Entry) bool {
		b := s.Branch(e.Branch)
		if e.Branch == 0 || b == nil || !b.Imported {
			return true
		}
		_, known := have.Get(e.Key)
		return !known && s.forgettable(e)
	})
	if len(reports) > 0 {
		s.Inventory = have.With(reports)
	}
	return nil
}

// forgettable tells whether nothing is left to say of a chunk: it was dropped below the horizon, and no parent's chunk would show in its place.
func (s *State) forgettable(e catalog.Entry) bool {
	if !e.Last.Dropped() || e.Last.LSN() >= s.Horizon(e.Branch).Applied {
		return false
	}
	_, inherited := s.inherited(e.Branch, e.Chunk)
	return !inherited
}

// forgetDropped takes the chunks out that were dropped below a branch's horizon.
func (s *State) forgetDropped(branch uint32) {
	if s.Inventory != nil {
		s.Inventory = s.Inventory.Without(func(e catalog.Entry) bool { return e.Branch == branch && s.forgettable(e) })
	}
}

// forgetUnfinished takes the chunks of branches out that are not there, or are imported again.
func (s *State) forgetUnfinished() {
	if s.Inventory != nil {
		s.Inventory = s.Inventory.Without(func(e catalog.Entry) bool {
			b := s.Branch(e.Branch)
			return b == nil || !b.Imported
		})
	}
}

// at tells whether an entry says what a chunk was at an LSN: nothing happened to it since.
func at(e catalog.Entry, lsn pg.LSN) bool { return e.Last.LSN() <= lsn }

// inherited is what a branch has of a chunk from its parent.
func (s *State) inherited(branch uint32, c placement.Chunk) (catalog.Entry, bool) {
	b := s.Branch(branch)
	if b == nil || b.Parent == 0 {
		return catalog.Entry{}, false
	}
	e, ok := s.Chunk(b.Parent, c)
	return e, ok && at(e, b.Fork)
}

// Chunk is what is known of a branch's chunk, be it from its parent.
func (s *State) Chunk(branch uint32, c placement.Chunk) (catalog.Entry, bool) {
	own, ok := s.inventory().Get(catalog.Key{Branch: branch, Chunk: c})
	old, inherited := s.inherited(branch, c)
	switch {
	case !ok:
		return old, inherited
	case inherited:
		return own.Merge(old), true
	}
	return own, true
}

// ChunksOf walks what is known of a branch's chunks from one on, in their order, those that are dropped too.
func (s *State) ChunksOf(branch uint32, from placement.Chunk) iter.Seq[catalog.Entry] {
	b := s.Branch(branch)
	own := func(yield func(catalog.Entry) bool) {
		for e := range s.inventory().All(catalog.Key{Branch: branch, Chunk: from}) {
			if e.Branch != branch || !yield(e) {
				return
			}
		}
	}
	if b == nil || b.Parent == 0 {
		return own
	}
	return func(yield func(catalog.Entry) bool) {
		next, stop := iter.Pull(own)
		defer stop()
		e, ok := next()
		for old := range s.ChunksOf(b.Parent, from) {
			for ok && e.Chunk.Compare(old.Chunk) < 0 {
				if !yield(e) {
					return
				}
				e, ok = next()
			}
			switch {
			case ok && e.Chunk == old.Chunk:
				e, _ = s.Chunk(branch, e.Chunk)
				if !yield(e) {
					return
				}
				e, ok = next()
			case at(old, b.Fork):
				if !yield(old) {
					return
				}
			}
		}
		for ok {
			if !yield(e) {
				return
			}
			e, ok = next()
		}
	}
}
