package pageapi

import (
	"context"
	"sync"

	"everpage/pageapi/datadir"
	"everpage/wal/pg"
)

// scanBlocks are read by one call: a mebibyte.
const scanBlocks = 128

// Scan reads every page that a data directory has, so that Damaged also tells what only shows when pages are made: that a node knows of damage where a
// record could not be replayed, not of a record whose redo fails. It costs as much as a restore. progress, where
// set, is told the bytes read so far, by one goroutine at a time.
func (s *Snapshot) Scan(ctx context.Context, workers int, progress func(bytes int64)) error {
	var forks []datadir.Relation
	if err := s.Relations(ctx, s.pos.LSN, func(r datadir.Relation) error {
		if r.Fork != pg.FSMFork {
			forks = append(forks, r)
		}
		return nil
	}); err != nil {
		return err
	}
	var told sync.Mutex
	var sum int64
	count := func(bytes int) {
		told.Lock()
		defer told.Unlock()
		if sum += int64(bytes); progress != nil {
			progress(sum)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan datadir.Relation)
	var wg sync.WaitGroup
	for range max(workers, 1) {
		wg.Go(func() {
			buf := make([]byte, scanBlocks*pg.BlockSize)
			for r := range work {
				if err := s.scan(ctx, r, buf, count); err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for _, r := range forks {
		select {
		case work <- r:
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

// scan reads a fork up to the first page that can't be read.
func (s *Snapshot) scan(ctx context.Context, r datadir.Relation, buf []byte, count func(bytes int)) error {
	for first := pg.BlockNumber(0); first < r.Blocks; first += scanBlocks {
		dst := buf[:min(r.Blocks-first, scanBlocks)*pg.BlockSize]
		err := s.ReadBlocks(ctx, r.RelFork, first, s.pos.LSN, dst)
		if CodeOf(err) == Corrupt {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.found = append(s.found, datadir.Damage{RelFork: r.RelFork, Err: err})
			return nil
		}
		if err != nil {
			return err
		}
		count(len(dst))
	}
	return nil
}
