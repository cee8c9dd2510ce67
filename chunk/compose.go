package chunk

import (
	"bytes"

	"everpage/wal/pg"
)

// Compose makes a page of its versions alone, newest first as Versions and a LayerSource give them, into dst. whole is false where they don't reach down to
// one that needs none under it, so that nobody can tell by them alone what the page is; pages of SLRUs begin as zeroes.
func (s *Store) Compose(branch uint32, key pg.PageKey, versions []PageVersion, dst pg.Page) (whole bool, err error) {
	b := s.branch(branch)
	r := &reader{s: s}
	clear(dst)
	whole = key.Spc == 0
	for _, v := range versions {
		kind := VersionKind(v.Value[0])
		if kind == KindDamaged || kind == KindMissing {
			return true, damaged(branch, key, version{lsn: v.LSN, value: v.Value})
		}
		if kind == KindImage {
			p := s.pagePrefix(branch, key)
			if err := getImage(dst, body(v.Value)); err != nil {
				return false, r.corrupt(&p, v.LSN, err)
			}
			whole = true
			break
		}
		r.stack = append(r.stack, layer{key: key, lsn: v.LSN, kind: kind, content: body(v.Value)})
		if kind == KindInit {
			whole = true
			break
		}
	}
	if !whole {
		return false, nil
	}
	return true, r.redo(b, dst)
}

// SameVersions tells whether two lists of a page's versions, as Versions and a LayerSource give them, tell the same history. They are equal, but that a chain may be
// cut short by an image in one of them, which another store has added elsewhere or could not add, since it had got the chain's beginning later.
func (s *Store) SameVersions(branch uint32, key pg.PageKey, a, b []PageVersion) (bool, error) {
	i := 0
	for i < len(a) && i < len(b) && a[i].LSN == b[i].LSN && bytes.Equal(a[i].Value, b[i].Value) {
		i++
	}
	if i == len(a) && i == len(b) {
		return true, nil
	}
	if i == len(a) || i == len(b) || a[i].LSN != b[i].LSN || (VersionKind(a[i].Value[0]) == KindImage) == (VersionKind(b[i].Value[0]) == KindImage) {
		return false, nil
	}
	one, other := make(pg.Page, pg.BlockSize), make(pg.Page, pg.BlockSize)
	wholeA, err := s.Compose(branch, key, a[i:], one)
	if err != nil {
		return false, err
	}
	wholeB, err := s.Compose(branch, key, b[i:], other)
	if err != nil {
		return false, err
	}
	return wholeA && wholeB && bytes.Equal(one, other), nil
}
