package chunk

import (
	"context"
	"fmt"

	"everpage/wal/pg"
)

// Version is one entry of a page's history.
type Version struct {
	LSN    pg.LSN
	Kind   VersionKind
	Origin Origin // the record that made it
	Bytes  int    // of content, as stored before compression
	Reason string // of damage
}

// VersionKind tells what a version is.
type VersionKind uint8

// The kinds of version. The numbers are part of the store's format.
const (
	KindImage    VersionKind = 1 // the whole page
	KindDelta    VersionKind = 2 // needs the version before
	KindInit     VersionKind = 3 // a delta that starts from zeros
	KindOptional VersionKind = 4 // a delta that is a no-op on a missing page
	KindZeroed   VersionKind = 5 // a delta that makes a missing page of zeros
	KindDamaged  VersionKind = 6 // content unknown
	KindMissing  VersionKind = 7 // an invalid-page reference: a delta for a page that was not there
)

// String names the kind as a page's history prints it.
func (k VersionKind) String() string {
	switch k {
	case KindImage:
		return "image"
	case KindDelta, KindOptional, KindZeroed:
		return "delta"
	case KindInit:
		return "init"
	case KindDamaged:
		return "damaged"
	case KindMissing:
		return "missing"
	}
	return fmt.Sprintf("kind%d", uint8(k))
}

// History calls fn for each version of a page that the store holds, newest first, also for those that a truncation cut off (see Sizes) and those that
// the base import brought. Versions of a copied database's pages are those of the copy only.
func (s *Store) History(ctx context.Context, branch uint32, key pg.PageKey, fn func(v Version) error) error {
	hi, err := s.readable(branch)
	if err != nil {
		return err
	}
	r, view, err := s.view(ctx, s.branch(branch))
	if err != nil {
		return err
	}
	defer r.release()
	if err := r.history(view.cover, branch, key, hi, fn); err != nil {
		return err
	}
	for _, a := range view.up {
		if err := r.history(a.cover, a.b.num, key, a.at, fn); err != nil {
			return err
		}
	}
	return nil
}

// history is that of one branch.
func (r *reader) history(cover *cover, branch uint32, key pg.PageKey, hi pg.LSN, fn func(v Version) error) error {
	have, shard := r.s.coverageOf(cover, key)
	if !have.answers(hi) {
		return &NotHereError{Branch: branch, Key: key, Shard: shard, At: hi, Have: have}
	}
	p := r.s.pagePrefix(branch, key)
	r.seek(&p, hi)
	for based := false; ; {
		v, ok, err := r.next()
		if err != nil || !ok || based {
			return err
		}
		based = v.lsn <= have.From && ends(v.value[0]) // what lies below is not of this history, should it be here
		h := Version{LSN: v.lsn, Kind: VersionKind(v.value[0]), Origin: originOf(v.value), Bytes: len(body(v.value))}
		if h.Kind == KindDamaged || h.Kind == KindMissing {
			h.Reason = damaged(branch, key, v).Reason
		}
		if err := fn(h); err != nil {
			return err
		}
	}
}
