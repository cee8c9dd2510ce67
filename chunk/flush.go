package chunk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

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
				s.active.progress = append(s.active.progress, branchProgress{b, p, b.high})
			}
			b.dirty = false
		}
		return true
	})
	s.frozen = append(s.frozen, s.active)
	s.frozenN++
	s.active = newRun(s.opt.RunBytes)
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

// writeRun makes a run a table of the database, atomically with the progress that it carries.
func (s *Store) writeRun(r *run) error {
	if err := s.spare.room(2 * r.size.Load()); err != nil {
		return err
	}
	if err := s.awaitCompactions(); err != nil {
		return err
	}
	path := s.fs.PathJoin(s.opt.Dir, ingestDir, "run.sst")
	if err := s.writeTable(path, r); err != nil {
		return errors.Join(err, s.discard(path))
	}
	if err := s.db.Ingest(context.Background(), []string{path}); err != nil {
		return errors.Join(fmt.Errorf("ingest table: %w", err), s.discard(path))
	}
	return nil
}

func (s *Store) discard(path string) error {
	if _, err := s.fs.Stat(path); err != nil {
		return nil
	}
	return s.fs.Remove(path)
}

// awaitCompactions holds a new table back while too many lie over each other.
func (s *Store) awaitCompactions() error {
	for s.db.Metrics().Levels[0].Sublevels >= maxSublevels {
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
	return nil
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

func (s *Store) writeTable(path string, r *run) (err error) {
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("create table: %w", err)
	}
	opt := s.dbOpt.MakeWriterOptions(0, s.db.TableFormat())
	opt.DisableValueBlocks = true // see pebbleOptions
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), opt)
	t := tableWriter{s: s, run: r, pairs: pairWriter{set: w.Set}}
	err = t.pages()
	if err == nil {
		err = t.small()
	}
	if err == nil {
		err = t.progress()
	}
	if err == nil {
		err = t.pairs.finish()
	}
	if cerr := w.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// tableWriter writes one run in key order.
type tableWriter struct {
	s     *Store
	run   *run
	pairs pairWriter
	key   [keyLen]byte
	chain []uint32 // an object's entries, newest first
	image []byte   // sealed images that take deltas' places
	swaps []swap
	buf   pg.Page
}

// swap is an image that takes the place of chain[i].
type swap struct {
	i        int
	off, end int // of tableWriter.image
}

// collect lists an object's entries, each LSN once, the last written first.
func (t *tableWriter) collect(n *node) {
	t.chain = t.chain[:0]
	for i := n.head.Load(); i != 0; {
		e := t.run.entry(i)
		if k := len(t.chain); k == 0 || t.run.entry(t.chain[k-1]).lsn != e.lsn {
			t.chain = append(t.chain, i)
		}
		i = e.older
	}
}

func (t *tableWriter) pages() error {
	for _, n := range t.run.pages.sorted() {
		t.collect(n)
		if err := t.bound(&n.prefix); err != nil {
			return err
		}
		k := len(t.swaps) - 1
		for i, j := range t.chain {
			e := t.run.entry(j)
			v := t.run.value(e.value)
			if k >= 0 && t.swaps[k].i == i {
				v = t.image[t.swaps[k].off:t.swaps[k].end]
				k--
			}
			if err := t.pairs.add(&n.prefix, e.lsn, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tableWriter) small() error {
	for _, n := range t.run.small.sorted() {
		t.collect(n)
		for _, j := range t.chain {
			e := t.run.entry(j)
			if err := t.pairs.add(&n.prefix, e.lsn, t.run.value(e.value)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tableWriter) progress() error {
	ps := t.run.progress
	sortProgress(ps)
	for i := range ps {
		v, err := ps[i].encode()
		if err != nil {
			return err
		}
		p := progressPrefix(ps[i].b.num)
		if err := t.pairs.add(&p, 0, v); err != nil {
			return err
		}
	}
	return nil
}
