package chunk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"everpage/wal/pg"
)

// ingestDir holds tables that are being written.
const ingestDir = "ingest"

// room finds the run that takes a branch's version at lsn. Under s.mu; it may wait, with the lock given up meanwhile.
func (s *Store) room(b *branchState, lsn pg.LSN) (*run, error) {
	for {
		if s.closing {
			return nil, ErrClosed
		}
		// Commit freezes full runs, where possible between records. A run is frozen here if a batch is large or if the branch goes back.
		if a := s.active; a.size.Load() < s.opt.RunBytes+s.opt.RunBytes/4 && !a.full() && (b.run != a || lsn >= b.runLSN) {
			break
		}
		if err := s.freeze(); err != nil {
			return nil, err
		}
	}
	if b.run != s.active {
		b.run, b.before = s.active, b.high
	}
	if lsn <= b.before {
		s.active.overlapping.Store(true)
	}
	b.runLSN = lsn
	b.high = max(b.high, lsn)
	return s.active, nil
}

// freeze makes the active run one that becomes a table, with the progress that was committed so far. Under s.mu. It waits while there are too many
// such runs; if they can't be written it returns the error of a fresh attempt.
func (s *Store) freeze() error {
	if err := s.await(func() bool { return len(s.frozen) < maxFrozen }); err != nil {
		return err
	}
	s.branches.Range(func(_, v any) bool {
		if b := v.(*branchState); !b.dropped {
			if p := b.current(); p != nil {
				s.active.progress = append(s.active.progress, branchProgress{b: b, p: p, high: max(b.high, b.reach), after: b.over})
				b.over = b.high > p.Readable
				s.active.cover = append(s.active.cover, b.cover.Load().sortedPairs(b.num, b.coverDirty)...)
				clear(b.coverDirty)
			}
			b.dirty = false
		}
		return true
	})
	slices.SortFunc(s.active.cover, func(x, y pair) int { return x.p.compare(&y.p) })
	if s.early > 0 {
		s.early--
	}
	s.frozen = append(s.frozen, s.active)
	s.frozenN++
	s.active = newRun(s.opt.RunBytes, s.memory)
	s.publish()
	s.cond.Broadcast()
	return nil
}

// await waits until ok or until an attempt to write a run has failed that began no earlier than now. Under s.mu.
func (s *Store) await(ok func() bool) error {
	failures := s.failures
	for !ok() {
		if s.failures > failures {
			return fmt.Errorf("%w: %w", ErrFull, s.writeErr)
		}
		if s.stop {
			return ErrClosed
		}
		if s.writeErr != nil {
			select {
			case s.retry <- struct{}{}:
			default:
			}
		}
		s.cond.Wait()
	}
	return nil
}

// Flush makes everything that was committed durable. With it Progress.Resume of every branch is durable.
func (s *Store) Flush() error { return s.flush(true) }

func (s *Store) flush(open bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open && s.closing {
		return ErrClosed
	}
	dirty := !s.active.empty()
	s.branches.Range(func(_, v any) bool {
		dirty = dirty || v.(*branchState).dirty
		return !dirty
	})
	if dirty {
		if err := s.freeze(); err != nil {
			return err
		}
	}
	want := s.frozenN
	return s.await(func() bool { return s.flushedN >= want })
}

// flushLoop writes frozen runs, oldest first. A failed attempt is repeated when someone waits, or after a second.
func (s *Store) flushLoop() {
	defer s.flusher.Done()
	for {
		s.mu.Lock()
		for len(s.frozen) == 0 && !s.stop {
			s.cond.Wait()
		}
		if s.stop {
			s.mu.Unlock()
			return
		}
		r := s.frozen[0]
		s.mu.Unlock()

		err := s.writeRun(r)

		s.mu.Lock()
		if err == nil {
			s.writeErr = nil
			s.frozen = s.frozen[1:]
			s.flushedN++
			s.gen++
			for _, p := range r.progress {
				p.b.durable = p.p
			}
			s.publish()
		} else {
			s.writeErr = err
			s.failures++
		}
		s.cond.Broadcast()
		s.mu.Unlock()
		if err == nil {
			s.dropIdle(false)
			continue
		}
		s.log.Error("can't write a table", "err", err)
		t := time.NewTimer(retryEvery)
		select {
		case <-t.C:
		case <-s.retry:
		case <-s.quit:
		}
		t.Stop()
	}
}

// writeRun makes a run tables of the database, atomically with the progress that it carries.
func (s *Store) writeRun(r *run) error {
	if err := s.spare.room(2 * r.size.Load()); err != nil {
		return err
	}
	if err := s.awaitCompactions(); err != nil {
		return err
	}
	paths, err := s.writeTables(r)
	if err != nil {
		return errors.Join(err, s.discard(paths...))
	}
	queued := s.enqueue(r, paths)
	s.tables.Lock()
	defer s.tables.Unlock()
	if err := s.db.Ingest(context.Background(), paths); err != nil {
		s.Release(queued)
		return errors.Join(fmt.Errorf("ingest table: %w", err), s.discard(paths...))
	}
	return nil
}

func (s *Store) discard(paths ...string) (err error) {
	for _, path := range paths {
		if _, serr := s.fs.Stat(path); serr == nil {
			err = errors.Join(err, s.fs.Remove(path))
		}
	}
	return err
}

// awaitCompactions holds a new table back while too many lie over each other and something is done about it. The database compacts by how many lie over one key,
// which can be few though there are many sublevels: tables like steps of a stair, each over an end of the one before, need no compaction, and none would come.
func (s *Store) awaitCompactions() error {
	for {
		m := s.db.Metrics()
		if m.Levels[0].Sublevels < int32(s.most) || m.Compact.NumInProgress == 0 {
			return nil
		}
		t := time.NewTimer(retryEvery)
		select {
		case <-s.compacted:
		case <-t.C:
		case <-s.quit:
			t.Stop()
			return ErrClosed
		}
		t.Stop()
	}
}

// idleLoop lets go of the tables that idle iterators pin whenever a compaction has replaced some.
func (s *Store) idleLoop() {
	defer s.flusher.Done()
	for {
		select {
		case <-s.replaced:
			s.dropIdle(false)
		case <-s.quit:
			return
		}
	}
}
