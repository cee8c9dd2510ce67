package chunk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// LayerSource is where versions come from that a store has not got yet, or no more: another node, or the backup store.
type LayerSource interface {
	// Versions are all of a page's versions that a read at an LSN needs: from the newest at or below it down to the first that needs none under it,
	// or to where the page begins. Complete, or an error.
	Versions(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN) ([]PageVersion, error)
}

// PageVersion is one version as it is stored and travels: its checksum binds it to page and LSN.
type PageVersion struct {
	LSN   pg.LSN
	Value []byte
}

type sourceBox struct{ LayerSource }

// SetSource says where owned pages come from whose versions are not here; nil: nowhere, reads of them fail with ErrNotHere.
func (s *Store) SetSource(src LayerSource) { s.source.Store(&sourceBox{src}) }

// view is what a read may use: the coverage as it was before and after its reader was taken, and a source for what isn't covered.
type view struct {
	ctx   context.Context
	cover *cover
	up    []ancestor
	src   LayerSource

	distrust pg.LSN // what is here of pages at or below it is not looked at, whatever is covered: some of it is corrupt
}

// changed tells whether something of the coverage is another by now.
func (v *view) changed(b *branchState) bool {
	if b.cover.Load() != v.cover {
		return true
	}
	for i := range v.up {
		if v.up[i].b.cover.Load() != v.up[i].cover {
			return true
		}
	}
	return false
}

// view takes a reader between two looks at the same coverage, so that all that is covered is in it.
func (s *Store) view(ctx context.Context, b *branchState) (*reader, view, error) {
	for {
		v := view{ctx: ctx, cover: b.cover.Load()}
		if box := s.source.Load(); box != nil {
			v.src = box.LayerSource
		}
		if lines := s.lines(); len(lines) > 0 {
			v.up = s.ancestors(lines, b.num)
		}
		r, err := s.reader()
		if err != nil {
			return nil, v, err
		}
		if !v.changed(b) {
			return r, v, nil
		}
		r.release()
	}
}

// of is the coverage of a page.
func (s *Store) coverageOf(c *cover, key pg.PageKey) (Coverage, placement.Shard) {
	if c == everything {
		return c.rest, 0
	}
	chunk := placement.ChunkOf(key, s.opt.SegmentBlocks)
	shard := placement.ShardOf(chunk, s.opt.Shards)
	return c.chunk(chunk, shard), shard
}

// fetch gets the versions of a page at or below an LSN from the source.
func (r *reader) fetch(v view, branch uint32, key pg.PageKey, have Coverage, at, asked pg.LSN) ([]PageVersion, error) {
	notHere := &NotHereError{Branch: branch, Key: key, Shard: r.s.shard(key), At: asked, Have: have}
	if v.src == nil || !have.Owned {
		return nil, notHere
	}
	list, err := v.src.Versions(v.ctx, branch, key, at)
	if err != nil {
		return nil, errors.Join(notHere, err)
	}
	r.s.fetched.Add(1)
	p := r.s.pagePrefix(branch, key)
	last := at + 1
	for i, x := range list {
		if x.LSN >= last || i > 0 && ends(list[i-1].Value[0]) {
			return nil, errors.Join(notHere, fmt.Errorf("the source's versions are out of order at %s", x.LSN))
		}
		if last = x.LSN; !sealed(p.appendKey(r.key[:0], x.LSN), x.Value) {
			return nil, errors.Join(notHere, &CorruptError{Branch: branch, Key: key.String(), LSN: x.LSN, Err: errChecksum})
		}
	}
	return list, nil
}

// ends tells whether a read needs nothing under a version of this kind.
func ends(kind byte) bool { return starts(kind) }

// Versions answers what a LayerSource is asked for, from what is here.
func (s *Store) Versions(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN) ([]PageVersion, error) {
	b := s.branch(branch)
	pr := b.current()
	if pr == nil {
		return nil, fmt.Errorf("branch %d: %w", branch, ErrNoBranch)
	}
	if at > pr.Readable {
		return nil, fmt.Errorf("branch %d at %s: %w: the last LSN that is answered is %s", branch, at, ErrNotYet, pr.Readable)
	}
	r, v, err := s.view(ctx, b)
	if err != nil {
		return nil, err
	}
	defer r.release()
	have, shard := s.coverageOf(v.cover, key)
	above := s.above(b.current(), at)
	answers := have.answers(at) && above
	if !answers && have.Complete { // what copies of its database need is here all the same
		copies, err := r.copies(branch, key.Spc, key.DB)
		if err != nil {
			return nil, err
		}
		answers = slices.Contains(copies, at+1) || slices.Contains(r.lines.children(branch), at)
	}
	if !answers && !above {
		return nil, s.belowHorizon(branch, b.current(), at)
	}
	if !answers {
		return nil, &NotHereError{Branch: branch, Key: key, Shard: shard, At: at, Have: have}
	}
	var out []PageVersion
	p := s.pagePrefix(branch, key)
	r.seek(&p, at)
	for {
		v, ok, err := r.next()
		if err != nil || !ok {
			return out, err // a branch that has a parent goes on there
		}
		out = append(out, PageVersion{v.lsn, append([]byte{}, v.value...)})
		if ends(v.value[0]) {
			return out, nil
		}
	}
}
