package chunk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"everpage/wal/pg"
)

// DamagedPages calls fn for each page that can't be read at an LSN because of a record that can't be replayed or a reference to a missing page, in its
// own database or in one that its database was copied from; and for those whose deltas can't be applied, as far as a read before saw that: it is not
// told by what is stored. Pages whose shards this store doesn't own are not told.
func (s *Store) DamagedPages(ctx context.Context, branch uint32, at pg.LSN, fn func(e *DamagedError) error) error {
	b, _, err := s.open(branch, at)
	if err != nil {
		return err
	}
	r, err := s.readerAt(b, at)
	if err != nil {
		return err
	}
	defer r.release()
	pages, view, err := s.view(ctx, b) // each lends its reader's iterator
	if err != nil {
		return err
	}
	defer pages.release()
	keys, err := s.suspects(r, branch, at)
	if err != nil {
		return err
	}
	buf := make(pg.Page, pg.BlockSize)
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := pages.page(view, b, key, at, buf)
		var damage *DamagedError
		var away *NotHereError
		switch {
		case errors.As(err, &damage):
			err = fn(damage.of(key))
		case errors.Is(err, ErrNotFound), errors.As(err, &away) && !away.Have.Owned:
			err = nil // cut off since, or another node's
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// suspects are the pages that were damaged at some time up to an LSN and those that may have become copies of them, each before its copies.
func (s *Store) suspects(r *reader, branch uint32, at pg.LSN) (keys []pg.PageKey, err error) {
	seen := map[pg.PageKey]bool{}
	add := func(key pg.PageKey) {
		if !seen[key] {
			seen[key] = true
			keys = append(keys, key)
		}
	}
	lo, hi := makePrefix(classDamage, branch, 0, 0, 0, 0, 0), makePrefix(classDamage, branch+1, 0, 0, 0, 0, 0)
	err = r.each(lo, hi, at, func(p *prefix, _ version) error {
		add(p.pageKey())
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, key := range s.broken.of(branch) {
		add(key)
	}
	type directory struct{ spc, db uint32 }
	copies := map[directory][]directory{}
	for i := 0; i < len(keys); i++ {
		key := keys[i]
		from := directory{key.Spc, key.DB}
		to, ok := copies[from]
		if !ok && from.spc != 0 {
			p := copyPrefix(branch, from.spc, from.db)
			for r.seek(&p, at); ; {
				v, ok, err := r.next()
				if err != nil {
					return nil, err
				}
				if !ok {
					break
				}
				body := body(v.value)
				if len(body) != copyBody {
					return nil, r.corrupt(&p, v.lsn, errShape)
				}
				to = append(to, directory{binary.LittleEndian.Uint32(body), binary.LittleEndian.Uint32(body[4:])})
			}
			copies[from] = to
		}
		for _, d := range to {
			key.Spc, key.DB = d.spc, d.db
			add(key)
		}
	}
	return keys, nil
}

// Kept tells whether a page is kept as it is at an LSN however far its branch is collected, wherever its chunk is whole and in base layers: a database that it is
// of was copied just behind, or a branch forked off there.
func (s *Store) Kept(branch uint32, key pg.PageKey, at pg.LSN) (bool, error) {
	r, err := s.reader()
	if err != nil {
		return false, err
	}
	defer r.release()
	copies, err := r.copies(branch, key.Spc, key.DB)
	return slices.Contains(copies, at+1) || slices.Contains(r.lines.children(branch), at), err
}

// of is the error as it concerns a page that may have been copied from the one that is damaged.
func (e *DamagedError) of(key pg.PageKey) *DamagedError {
	if e.Key == key {
		return e
	}
	c := *e
	c.Key, c.Reason = key, fmt.Sprintf("%s, which it is a copy of: %s", e.Key, e.Reason)
	return &c
}
