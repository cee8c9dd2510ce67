package chunk

import (
	"context"
	"errors"

	"everpage/wal/pg"
)

// mend makes a page once more with the source's versions where the read met something corrupt: all of its versions that a read needs, or, where the source
// does not reach so far up, those from the corrupt one down. The read's own outcome stands where there is no source, or where that can't help: then it is an
// error, as before. Small objects are not mended.
func (s *Store) mend(ctx context.Context, b *branchState, key pg.PageKey, at pg.LSN, dst pg.Page, version pg.LSN, err error) (pg.LSN, error) {
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		return version, err
	}
	s.decay(corrupt)
	errs := []error{err}
	limits := []pg.LSN{^pg.LSN(0)}
	if corrupt.LSN < at {
		limits = append(limits, corrupt.LSN)
	}
	for _, limit := range limits {
		r, v, err := s.view(ctx, b)
		if err != nil {
			return 0, err
		}
		if v.src == nil {
			r.release()
			break
		}
		v.distrust = limit
		if err = s.still(b, at); err == nil {
			err = r.page(v, b, key, at, dst)
		}
		version := r.version
		r.release()
		if err == nil {
			s.mended.Add(1)
			return version, nil
		}
		var damage *DamagedError
		if errors.Is(err, ErrNotFound) || errors.As(err, &damage) || errors.Is(err, ErrBelowHorizon) {
			return 0, err // an answer
		}
		errs = append(errs, err)
	}
	return 0, errors.Join(errs...)
}
