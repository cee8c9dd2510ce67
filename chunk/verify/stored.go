package verify

import (
	"context"

	"everpage/chunk"
	"everpage/chunk/ingest"
	"everpage/redo"
	"everpage/wal/pg"
)

// stored is the store of a verification at one LSN.
type stored struct {
	store *chunk.Store
	base  pg.ControlFile // what of pg_control no record changes
	at    pg.LSN
	lost  *lostBits
}

var _ Pages = stored{}

func (s stored) Control(context.Context) (pg.ControlFile, error) {
	control := s.base
	state, err := ingest.LoadState(s.store, branch, s.at)
	if err != nil {
		return control, err
	}
	state.Fill(&control)
	return control, nil
}

func (s stored) Size(_ context.Context, fork pg.RelFork) (uint32, bool, error) {
	return s.store.Size(branch, fork, s.at)
}

func (s stored) Page(ctx context.Context, key pg.PageKey, dst pg.Page) error {
	return s.store.Page(ctx, branch, key, s.at, dst)
}

func (s stored) Relations(ctx context.Context, fn func(pg.RelFork, uint32) error) error {
	return s.store.Relations(ctx, branch, s.at, pg.RelFork{}, fn)
}

func (s stored) SLRUSegments(_ context.Context, slru pg.SLRU) (map[uint32]uint32, error) {
	segments := map[uint32]uint32{}
	return segments, s.store.SLRUSegments(branch, slru, s.at, func(segment, pages uint32) error {
		segments[segment] = pages
		return nil
	})
}

func (s stored) Objects(_ context.Context, kind redo.MetaKind, fn func([2]uint32, []byte) error) error {
	return s.store.MetaAll(branch, kind, s.at, func(id [2]uint32, _ pg.LSN, value []byte) error { return fn(id, value) })
}

func (s stored) Lost(ctx context.Context, key pg.PageKey, missing []redo.VMBits) (bool, error) {
	return s.lost.explained(ctx, key, s.at, missing)
}
