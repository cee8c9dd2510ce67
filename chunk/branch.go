package chunk

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// branchState is one branch in memory.
type branchState struct {
	num      uint32
	id       uint64                     // differs from that of a dropped branch of the same number
	progress atomic.Pointer[Progress]   // nil: nothing was ever committed
	cover    atomic.Pointer[cover]      // changed under Store.mu
	at       atomic.Uint64              // the LSN of the record that the writer is in, or was in last
	shrunk   map[placement.Shard]uint64 // how often something was given up; under Store.covering
	loaded   map[placement.Shard]Coverage

	mu    sync.RWMutex
	sizes map[pg.RelFork]sizeEntry // newest size of forks that were written to lately; only the writer changes it

	// Under Store.mu:
	durable *Progress
	high    pg.LSN // the highest LSN that a writer ever stored, durable or not, committed or not
	reach   pg.LSN // the highest LSN up to which versions were or may be imported
	run     *run   // the run that took the last version
	runLSN  pg.LSN // that version's LSN
	before  pg.LSN // high when run got its first version of this branch
	writing bool
	dropped bool
	dirty   bool // progress moved since a run was frozen
	over    bool // the run that was frozen last has versions beyond its progress
	waiting []waiter

	coverDirty map[coverKey]bool // of coverage that no frozen run has yet
}

type waiter struct {
	lsn  pg.LSN
	done chan struct{}
}

type branchProgress struct {
	b    *branchState
	p    *Progress
	high pg.LSN
	// after tells that versions beyond the progress before are in the run before.
	after bool
}

// storedProgress is Progress as a table holds it.
type storedProgress struct {
	Progress
	High pg.LSN
}

func (b *branchState) current() *Progress { return b.progress.Load() }

// branch finds a branch, or makes one that nothing was committed to.
func (s *Store) branch(num uint32) *branchState {
	if b, ok := s.branches.Load(num); ok {
		return b.(*branchState)
	}
	fresh := &branchState{num: num, id: s.ids.Add(1)<<32 | uint64(num), sizes: map[pg.RelFork]sizeEntry{}, shrunk: map[placement.Shard]uint64{}, coverDirty: map[coverKey]bool{}}
	fresh.cover.Store(everything)
	b, _ := s.branches.LoadOrStore(num, fresh)
	return b.(*branchState)
}

// Branches lists the branches that have progress, in number order.
func (s *Store) Branches() []uint32 {
	var out []uint32
	s.branches.Range(func(k, v any) bool {
		if v.(*branchState).current() != nil {
			out = append(out, k.(uint32))
		}
		return true
	})
	slices.Sort(out)
	return out
}

// Progress is what the last Commit of the branch said; after Open, what the last table says. ok is false if nothing was ever committed.
func (s *Store) Progress(branch uint32) (p Progress, ok bool) {
	if b, ok := s.branches.Load(branch); ok {
		if p := b.(*branchState).current(); p != nil {
			return *p, true
		}
	}
	return Progress{}, false
}

// Durable is the Progress that a crash now would leave.
func (s *Store) Durable(branch uint32) (p Progress, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.branches.Load(branch); ok && b.(*branchState).durable != nil {
		return *b.(*branchState).durable, true
	}
	return Progress{}, false
}

// Wait returns once Progress.Readable of the branch has reached lsn, or with ctx's error, or ErrClosed. The branch may be unknown as yet.
func (s *Store) Wait(ctx context.Context, branch uint32, lsn pg.LSN) error {
	b := s.branch(branch)
	if p := b.current(); p != nil && p.Readable >= lsn {
		return nil
	}
	w := waiter{lsn: lsn, done: make(chan struct{})}
	s.mu.Lock()
	if p := b.current(); p != nil && p.Readable >= lsn {
		s.mu.Unlock()
		return nil
	}
	if s.closing || b.dropped {
		s.mu.Unlock()
		return ErrClosed
	}
	b.waiting = append(b.waiting, w)
	s.mu.Unlock()
	select {
	case <-w.done:
		if p := b.current(); p != nil && p.Readable >= lsn {
			return nil
		}
		return ErrClosed
	case <-ctx.Done():
		s.mu.Lock()
		b.waiting = slices.DeleteFunc(b.waiting, func(x waiter) bool { return x.done == w.done })
		s.mu.Unlock()
		at := pg.LSN(0)
		if p := b.current(); p != nil {
			at = p.Readable
		}
		return fmt.Errorf("wait for %s on branch %d, which has reached %s: %w", lsn, branch, at, ctx.Err())
	}
}

// wake lets those go on who wait for an LSN that has come, or all. Under s.mu.
func (b *branchState) wake(all bool) {
	if len(b.waiting) == 0 {
		return
	}
	var reached pg.LSN
	if p := b.current(); p != nil {
		reached = p.Readable
	}
	b.waiting = slices.DeleteFunc(b.waiting, func(w waiter) bool {
		if all || w.lsn <= reached {
			close(w.done)
			return true
		}
		return false
	})
}

// commit moves a branch's progress.
func (s *Store) commit(b *branchState, p Progress) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrClosed
	}
	if o := b.current(); o != nil {
		p.Start = max(p.Start, o.Start)
		p.Readable = max(p.Readable, o.Readable)
		p.Resume = max(p.Resume, o.Resume)
		if o.Consistent != 0 {
			p.Consistent = o.Consistent
		}
		p.Parent, p.Fork, p.Horizon, p.Pins, p.Copied = o.Parent, o.Fork, o.Horizon, o.Pins, o.Copied
		if o.Unproven != 0 {
			p.Unproven, p.UnprovenReason = o.Unproven, o.UnprovenReason
		}
	}
	p.Note = slices.Clone(p.Note)
	b.progress.Store(&p)
	b.dirty = true
	b.wake(false)
	if s.active.size.Load() >= s.opt.RunBytes>>s.early {
		return s.freeze()
	}
	return nil
}

func (p *branchProgress) encode() ([]byte, error) {
	v, err := json.Marshal(storedProgress{*p.p, p.high})
	if err != nil {
		return nil, err
	}
	out := make([]byte, valueHead, len(v)+valueOver)
	out[0] = 1
	out = append(append(out, v...), 0, 0, 0, 0)
	key := progressPrefix(p.b.num)
	seal(key.appendKey(nil, 0), out)
	return out, nil
}

// loadBranches reads the progress of all branches.
func (s *Store) loadBranches() error {
	r, err := s.reader()
	if err != nil {
		return err
	}
	defer r.release()
	lo := makePrefix(classProgress, 0, 0, 0, 0, 0, 0)
	hi := makePrefix(classProgress+1, 0, 0, 0, 0, 0, 0)
	if err := r.each(lo, hi, ^pg.LSN(0), func(p *prefix, v version) error {
		var sp storedProgress
		if err := json.Unmarshal(body(v.value), &sp); err != nil {
			return r.corrupt(p, v.lsn, err)
		}
		b := s.branch(p.branch())
		b.progress.Store(&sp.Progress)
		b.durable = &sp.Progress
		b.high = sp.High
		b.over = b.high > sp.Readable
		return nil
	}); err != nil {
		return err
	}
	if err := s.loadCoverage(r); err != nil {
		return err
	}
	s.branches.Range(func(_, v any) bool {
		v.(*branchState).settleCoverage(s.opt.Shards)
		return true
	})
	s.relate(0, nil)
	return nil
}

// sweep takes away what lies there of branches that nothing was ever committed to: what was interrupted before that left it.
func (s *Store) sweep() error {
	it, _, done, err := s.walkers(nil)
	if err != nil {
		return err
	}
	var orphans []uint32
	for class := uint8(classPage); class < classEnd; class++ {
		lo, hi := makePrefix(class, 0, 0, 0, 0, 0, 0), makePrefix(class+1, 0, 0, 0, 0, 0, 0)
		for ok := it.SeekGE(lo[:]); ok; ok = it.SeekGE(lo[:]) {
			p, _, known := splitKey(it.Key())
			if !known || p.compare(&hi) >= 0 {
				break
			}
			if b, known := s.branches.Load(p.branch()); (!known || b.(*branchState).current() == nil) && !slices.Contains(orphans, p.branch()) {
				orphans = append(orphans, p.branch())
			}
			if _, lo = branchRange(class, p.branch()); lo.compare(&hi) >= 0 {
				break
			}
		}
	}
	err = it.Error()
	done()
	if err != nil {
		s.log.Warn("whether something of unknown branches was left is not known", "err", err) // reads and Check will tell
		return nil
	}
	for _, b := range orphans {
		if err := s.dropBranch(b); err != nil {
			return fmt.Errorf("what was left of branch %d: %w", b, err)
		}
		s.branches.Delete(b)
	}
	return nil
}

// DropBranch forgets a branch with all that it holds, durably. It must have no writer and no branch that forked off it. Reads that are under way may fail.
func (s *Store) DropBranch(branch uint32) error {
	b := s.branch(branch)
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	if b.writing || b.dropped {
		s.mu.Unlock()
		return fmt.Errorf("drop of branch %d: it is %w", branch, ErrBusy)
	}
	if at := s.lines().children(branch); len(at) > 0 {
		s.mu.Unlock()
		return fmt.Errorf("drop of branch %d: %w: a branch forked off it at %s", branch, ErrBusy, at[0])
	}
	b.dropped = true // no writer, no reader from here on
	old := b.progress.Swap(nil)
	b.dirty = false
	b.wake(true)
	s.mu.Unlock()

	err := s.dropBranch(branch)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		b.dropped = false
		b.progress.Store(old)
		return fmt.Errorf("drop of branch %d: %w", branch, err)
	}
	s.branches.Delete(branch)
	s.relate(0, nil)
	return nil
}

func (s *Store) dropBranch(branch uint32) error {
	// What is in memory goes to tables first, so that the deletion covers it.
	if err := s.flush(true); err != nil {
		return err
	}
	batch := s.db.NewBatch()
	for class := uint8(classPage); class < classEnd; class++ {
		lo, hi := branchRange(class, branch)
		if err := batch.DeleteRange(lo[:], hi[:], nil); err != nil {
			return err
		}
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return err
	}
	if err := s.db.Flush(); err != nil {
		return err
	}
	s.changed()
	return nil
}

// branchRange is where all keys of a class and branch lie.
func branchRange(class uint8, branch uint32) (lo, hi prefix) {
	lo, hi = makePrefix(class, branch, 0, 0, 0, 0, 0), makePrefix(class, branch+1, 0, 0, 0, 0, 0)
	if branch == ^uint32(0) {
		hi = makePrefix(class+1, 0, 0, 0, 0, 0, 0)
	}
	return lo, hi
}

// changed makes all reads from here on see what was done to the tables.
func (s *Store) changed() {
	s.mu.Lock()
	s.gen++
	s.publish()
	s.mu.Unlock()
	s.dropIdle(false)
}

// excise takes a range of keys out of the tables, durably and with its space.
func (s *Store) excise(lo, hi prefix) error {
	s.tables.Lock()
	defer s.tables.Unlock()
	if err := s.edges(lo, hi); err != nil {
		return err
	}
	if err := s.db.Excise(context.Background(), pebble.KeyRange{Start: lo[:], End: hi[:]}); err != nil {
		return err
	}
	s.changed()
	return nil
}
