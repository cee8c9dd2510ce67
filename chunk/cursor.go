package chunk

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"everpage/wal/pg"
)

// state is what readers see: runs, newest first, over the tables. A run leaves it only after its table is in the database, and a reader takes the
// state before it opens its iterator, so it never misses a version; it may meet one twice.
type state struct {
	runs []*run
	gen  uint64 // grows when a run has left

	// Under iterators.mu. The runs' memory is used again when they are part of no state that anyone looks at.
	readers int
	gone    bool // another one has followed
}

// succeed makes a state the one that is read.
func (s *Store) succeed(st *state) {
	s.iters.mu.Lock()
	defer s.iters.mu.Unlock()
	for _, r := range st.runs {
		r.states++
	}
	if old := s.state.Swap(st); old != nil {
		old.gone = true
		s.letGo(old)
	}
}

// enter takes the state that is read, until leave. Under iterators.mu.
func (s *Store) enter() *state {
	st := s.state.Load()
	st.readers++
	return st
}

// leave ends enter: nothing that lies in the state's runs is looked at after it.
func (s *Store) leave(st *state) {
	s.iters.mu.Lock()
	defer s.iters.mu.Unlock()
	st.readers--
	s.letGo(st)
}

// letGo gives back the memory of runs that only a state had that nobody reads any more. Under iterators.mu.
func (s *Store) letGo(st *state) {
	if !st.gone || st.readers > 0 {
		return
	}
	for _, r := range st.runs {
		if r.states--; r.states == 0 {
			s.memory.give(r)
		}
	}
}

// reader is one read's means. It is pooled: nothing of it may be kept after release.
type reader struct {
	s     *Store
	st    *state
	lines lineage
	it    *pebble.Iterator
	gen   uint64 // it sees all that had left the runs at this generation
	cur   cursor
	key   [keyLen]byte
	stack []layer
	bytes []byte      // copies of what iterators lend
	open  []*openPack // by the walk; behind its length are those to use again

	version pg.LSN // of the page made last: its newest version; 0 if it has none of its own
}

// openPack is a pack that a walk has reached: a copy, since the iterator moves on.
type openPack struct {
	pack
	i   int // the next version
	buf []byte
}

// take opens a copy of a stored pair.
func (o *openPack) take(key []byte, hi pg.LSN, value []byte) (err error) {
	o.buf = append(o.buf[:0], value...)
	o.i = 0
	o.pack, err = openPair(key, hi, o.buf)
	return err
}

// better tells whether the next version needs nothing under it, unlike that of another pack.
func (o *openPack) better(other *openPack) bool {
	return endsWalk(o.value(o.i)) && !endsWalk(other.value(other.i))
}

// endsWalk tells whether a read needs nothing under a sealed value. One that is malformed does not: that shows when it is taken.
func endsWalk(sealed []byte) bool { return len(sealed) > 0 && ends(sealed[0]) }

// iterators keeps idle Pebble iterators: making one costs more than a seek. Each pins the tables that it was made over, so those that are out of
// date are closed when a run or a compaction ends.
type iterators struct {
	mu     sync.Mutex
	idle   []*reader
	stale  uint64 // readers below this generation are closed on return
	closed bool
}

const maxIdle = 16

// maxOpen is how many packs' buffers an idle reader keeps. More than two are open only where WAL was ingested more than once.
const maxOpen = 8

func (s *Store) reader() (*reader, error) {
	s.iters.mu.Lock()
	if s.iters.closed {
		s.iters.mu.Unlock()
		return nil, ErrClosed
	}
	s.readers.Add(1)
	st := s.enter()
	var r *reader
	for n := len(s.iters.idle); n > 0; n = len(s.iters.idle) {
		r = s.iters.idle[n-1]
		s.iters.idle = s.iters.idle[:n-1]
		if r.gen >= st.gen {
			break
		}
		r.it.Close()
		r = nil
	}
	s.iters.mu.Unlock()
	if r == nil {
		r = &reader{s: s, gen: st.gen}
		it, err := s.db.NewIter(nil)
		if err != nil {
			s.leave(st)
			s.readers.Done()
			return nil, err
		}
		r.it = it
	}
	r.st, r.lines = st, s.lines()
	return r, nil
}

// release ends the read. A reader whose iterator failed is not kept.
func (r *reader) release() {
	s, st := r.s, r.st
	r.st = nil
	r.cur = cursor{}
	r.open = r.open[:0]
	if cap(r.open) > maxOpen {
		r.open = nil
	}
	r.bytes = r.bytes[:0]
	if cap(r.bytes) > 1<<20 {
		r.bytes = nil
	}
	clear(r.stack)
	r.stack = r.stack[:0]
	if cap(r.stack) > 1<<14 {
		r.stack = nil
	}
	keep := r.it.Error() == nil
	s.iters.mu.Lock()
	st.readers--
	s.letGo(st)
	keep = keep && !s.iters.closed && r.gen >= s.iters.stale && len(s.iters.idle) < maxIdle
	if keep {
		s.iters.idle = append(s.iters.idle, r)
	}
	s.iters.mu.Unlock()
	if !keep {
		r.it.Close()
	}
	s.readers.Done()
}

// dropIdle closes the idle iterators, so that the tables that they pin can go.
func (s *Store) dropIdle(closed bool) {
	s.iters.mu.Lock()
	idle := s.iters.idle
	s.iters.idle = nil
	s.iters.stale = s.state.Load().gen
	s.iters.closed = s.iters.closed || closed
	s.iters.mu.Unlock()
	for _, r := range idle {
		r.it.Close()
	}
}

// cursor walks the versions of one object from newest to oldest, each LSN once, through runs and tables. A reader has one: seeking again ends
// the walk before.
type cursor struct {
	prefix prefix
	pos    [maxRuns]uint32
	merge  bool   // tables may hold versions newer than those in the runs
	table  int8   // the iterator: 0 not yet positioned, 1 on a pair, 2 at the end
	from   pg.LSN // where the walk starts
	last   pg.LSN // of the last version told; versions at or beyond it are repetitions
	any    bool
	tlsn   pg.LSN    // of the newest version in the pair that the iterator is on
	single bool      // that pair is one version
	next   *openPack // the pack with the tables' next version; nil: it is the iterator's pair
}

// wanted tells whether a version has not been passed yet.
func (c *cursor) wanted(lsn pg.LSN) bool {
	if c.any {
		return lsn < c.last
	}
	return lsn <= c.from
}

// seek starts a walk at the object's newest version at or below lsn.
func (r *reader) seek(p *prefix, lsn pg.LSN) {
	c := &r.cur
	if len(r.lines) > 0 && p.inherited() {
		own := *p
		for f, ok := r.lines[own.branch()]; ok && lsn <= f.at; f, ok = r.lines[own.branch()] {
			own = own.inParent(f.parent)
		}
		p = &own
	}
	c.prefix, c.from, c.table, c.any, c.merge = *p, lsn, 0, false, false
	r.open = r.open[:0]
	if len(r.st.runs) == 0 {
		return
	}
	h := p.hash()
	for i, run := range r.st.runs {
		c.pos[i] = run.seek(p, h, lsn)
	}
	for _, run := range r.st.runs {
		if run.overlapping.Load() {
			c.merge = true
		}
	}
}

// version is one version of an object. value is the sealed value; it is valid until the walk goes on or the reader seeks.
type version struct {
	lsn   pg.LSN
	value []byte
	lent  bool // value belongs to the iterator: it changes when the walk goes on
}

// next tells the next older version, its checksum verified; ok is false at the end.
func (r *reader) next() (v version, ok bool, err error) {
	c := &r.cur
	best := -1
	for i, run := range r.st.runs {
		for c.pos[i] != 0 && c.any && run.entry(c.pos[i]).lsn >= c.last {
			c.pos[i] = run.entry(c.pos[i]).older
		}
		if c.pos[i] == 0 {
			continue
		}
		if l := run.entry(c.pos[i]).lsn; best < 0 || l > v.lsn {
			best, v.lsn = i, l
		}
		if !c.merge {
			break
		}
	}
	if best < 0 || c.merge {
		lsn, ok, err := r.tableVersion()
		if err != nil {
			return v, false, err
		}
		if ok && (best < 0 || lsn > v.lsn || lsn == v.lsn && r.better(r.st.runs[best].value(r.st.runs[best].entry(c.pos[best]).value))) {
			best = maxRuns
			v.lsn = lsn
		}
	}
	switch {
	case best < 0:
		if len(r.lines) > 0 && c.prefix.inherited() {
			if f, ok := r.lines[c.prefix.branch()]; ok {
				p := c.prefix.inParent(f.parent)
				r.seek(&p, f.at)
				return r.next()
			}
		}
		return v, false, nil
	case best == maxRuns:
		v.lent = true
		if c.next != nil {
			v.value = c.next.value(c.next.i)
		} else if v.value, err = r.it.ValueAndErr(); err != nil {
			return v, false, r.corrupt(&c.prefix, v.lsn, err)
		}
	default:
		run := r.st.runs[best]
		v.value = run.value(run.entry(c.pos[best]).value)
	}
	c.last, c.any = v.lsn, true
	// What is still in a run was sealed by this process and has not left its memory.
	if v.lent && !sealed(c.prefix.appendKey(r.key[:0], v.lsn), v.value) {
		return v, false, r.corrupt(&c.prefix, v.lsn, errChecksum)
	}
	return v, true, nil
}

// better tells whether the tables' next version needs nothing under it, unlike another one of the same LSN. Where something was collected here or where it
// came from, an image stands for what is elsewhere a delta, and what that delta needs may be gone.
func (r *reader) better(other []byte) bool {
	return !endsWalk(other) && endsWalk(r.table())
}

// table is the value of the tables' next version; nil if it can't be read, which shows when it is taken.
func (r *reader) table() []byte {
	if o := r.cur.next; o != nil {
		return o.value(o.i)
	}
	v, err := r.it.ValueAndErr()
	if err != nil {
		return nil
	}
	return v
}

// tableVersion finds the tables' newest version that the walk has not passed: pack.go tells why none can be missed. Of several of one LSN it is one that
// needs nothing under it, if there is one.
func (r *reader) tableVersion() (lsn pg.LSN, ok bool, err error) {
	c := &r.cur
	c.next = nil
	for i := 0; i < len(r.open); {
		o := r.open[i]
		for o.i < o.n && !c.wanted(o.lsn(o.i)) {
			o.i++
		}
		if o.i == o.n {
			n := len(r.open) - 1
			r.open[i], r.open[n] = r.open[n], o
			r.open = r.open[:n]
			continue
		}
		if l := o.lsn(o.i); c.next == nil || l > lsn || l == lsn && o.better(c.next) {
			c.next, lsn = o, l
		}
		i++
	}
	if c.table == 0 {
		at := c.from
		if c.any {
			at = c.last - 1
		}
		if err := r.pair(r.it.SeekPrefixGE(c.prefix.appendKey(r.key[:0], bucketEnd(at)))); err != nil {
			return 0, false, err
		}
	}
	for c.table == 1 && (c.next == nil || c.tlsn >= lsn) {
		whole, err := r.whole()
		if err != nil {
			return 0, false, err
		}
		if whole {
			if c.wanted(c.tlsn) && (c.next == nil || c.tlsn > lsn || !endsWalk(c.next.value(c.next.i))) {
				c.next = nil
				return c.tlsn, true, nil
			}
		} else {
			o, err := r.unpack()
			if err != nil {
				return 0, false, err
			}
			if o != nil && (c.next == nil || o.lsn(o.i) > lsn || o.lsn(o.i) == lsn && o.better(c.next)) {
				c.next, lsn = o, o.lsn(o.i)
			}
		}
		if err := r.pair(r.it.Next()); err != nil {
			return 0, false, err
		}
	}
	return lsn, c.next != nil, nil
}

// whole tells whether the pair that the iterator is on is one version that needs nothing under it: no other of its LSN can be better.
func (r *reader) whole() (bool, error) {
	if !r.cur.single {
		return false, nil
	}
	v, err := r.it.ValueAndErr()
	if err != nil {
		return false, r.corrupt(&r.cur.prefix, r.cur.tlsn, err)
	}
	return endsWalk(v), nil
}

// pair takes note of the pair that the iterator was moved to.
func (r *reader) pair(valid bool) error {
	c := &r.cur
	if !valid {
		c.table = 2
		if err := r.it.Error(); err != nil {
			return r.corrupt(&c.prefix, c.from, err)
		}
		return nil
	}
	key := r.it.Key()
	p, lsn, ok := splitKey(key)
	if !ok || p != c.prefix {
		return r.corrupt(&c.prefix, c.from, errShape)
	}
	c.table, c.tlsn, c.single = 1, lsn, len(key) == keyLen
	return nil
}

// unpack opens the pack that the iterator is on, at its first version that is wanted; nil if none is.
func (r *reader) unpack() (*openPack, error) {
	c := &r.cur
	v, err := r.it.ValueAndErr()
	if err != nil {
		return nil, r.corrupt(&c.prefix, c.tlsn, err)
	}
	k, err := openPair(r.it.Key(), c.tlsn, v)
	if err != nil {
		return nil, r.corrupt(&c.prefix, c.tlsn, err)
	}
	bound := c.from
	if c.any {
		bound = c.last - 1
	}
	i := k.seek(bound)
	if i == k.n {
		return nil, nil
	}
	n := len(r.open)
	if n < cap(r.open) && r.open[:n+1][n] != nil {
		r.open = r.open[:n+1]
	} else {
		r.open = append(r.open, &openPack{})
	}
	o := r.open[n]
	if err := o.take(r.it.Key(), c.tlsn, v); err != nil {
		return nil, r.corrupt(&c.prefix, c.tlsn, err)
	}
	o.i = i
	return o, nil
}

// corrupt wraps an error of the database as it concerns an object. What it can't read is as bad as what fails its checksum.
func (r *reader) corrupt(p *prefix, lsn pg.LSN, err error) error {
	e := &CorruptError{Branch: p.branch(), Key: p.String(), LSN: lsn, Err: err}
	if !p.small() {
		at := *p
		e.at = &at
	}
	return e
}

// newest is the newest version at or below lsn.
func (r *reader) newest(p *prefix, lsn pg.LSN) (version, bool, error) {
	r.seek(p, lsn)
	return r.next()
}

// each calls fn with the newest version at or below lsn of every small object with lo <= prefix < hi, in order. fn must not use the reader.
func (r *reader) each(lo, hi prefix, lsn pg.LSN, fn func(p *prefix, v version) error) error {
	branch, last := lo.branch(), hi.branch()
	lines := []uint32{branch}
	for f, ok := r.lines[branch]; ok && lo.inherited(); f, ok = r.lines[f.parent] {
		lines = append(lines, f.parent)
	}
	type line struct {
		lo, hi prefix
		heads  [][]*node
	}
	walk := make([]line, len(lines))
	for k, b := range lines {
		l := &walk[k]
		l.lo, l.hi = lo.inParent(b), hi
		if k > 0 {
			l.hi = hi.inParent(b + last - branch)
		}
		for _, run := range r.st.runs {
			l.heads = append(l.heads, run.small.within(&l.lo, &l.hi))
		}
	}
	for at := lo; ; {
		// The least prefix at or beyond at, from the runs and from the tables, of the branch itself and of those that it comes from.
		found, best := false, hi
		take := func(k int, p prefix) {
			if k > 0 {
				p = p.inParent(branch)
			}
			if p.compare(&best) < 0 {
				found, best = true, p
			}
		}
		for k := range walk {
			l, from := &walk[k], at
			if k > 0 {
				from = at.inParent(lines[k])
			}
			for i := range l.heads {
				for len(l.heads[i]) > 0 && l.heads[i][0].prefix.compare(&from) < 0 {
					l.heads[i] = l.heads[i][1:]
				}
				if len(l.heads[i]) > 0 {
					take(k, l.heads[i][0].prefix)
				}
			}
			if r.it.SeekGE(from[:]) {
				p, _, ok := splitKey(r.it.Key())
				if !ok {
					return r.corrupt(&from, 0, errShape)
				}
				if p.compare(&l.hi) < 0 {
					take(k, p)
				}
			} else if err := r.it.Error(); err != nil {
				return r.corrupt(&from, 0, err)
			}
		}
		if !found {
			return nil
		}
		v, ok, err := r.newest(&best, lsn)
		if err != nil {
			return err
		}
		if ok {
			if err := fn(&best, v); err != nil {
				return err
			}
		}
		at = best.next()
	}
}
