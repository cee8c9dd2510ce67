package chunk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// A node decodes all WAL and keeps of every branch all that is small; of pages it keeps those of the shards that it owns. Coverage says what is there
// of a branch's shard, or of one chunk where that differs from its shard. It changes in the order that keeps reads right: data first when it grows,
// coverage first when it shrinks. A read takes its iterator between two looks at the same coverage.

// Coverage is what a store has of one shard or chunk of a branch.
type Coverage struct {
	Owned bool // versions are kept as WAL is ingested
	// Complete: all that reads from From on need is here. Else only the versions beyond From are.
	Complete bool
	From     pg.LSN
}

// answers tells whether reads at an LSN find all they need here.
func (c Coverage) answers(at pg.LSN) bool { return c.Owned && c.Complete && at >= c.From }

// limit is the LSN at or below which a read must not trust what it finds here; 0: it may trust everything.
func (c Coverage) limit(at pg.LSN) pg.LSN {
	if c.answers(at) {
		return 0
	}
	if !c.Owned {
		return at
	}
	return min(at, c.From)
}

// cover is the coverage of a branch. It never changes: a change makes another one.
type cover struct {
	rest   Coverage   // of all shards, where shards is nil
	shards []Coverage // by shard
	chunks map[placement.Chunk]Coverage
}

// everything is the coverage of a branch that nobody restricted.
var everything = &cover{rest: Coverage{Owned: true, Complete: true}}

func (c *cover) shard(s placement.Shard) Coverage {
	if c.shards == nil {
		return c.rest
	}
	return c.shards[s]
}

func (c *cover) chunk(chunk placement.Chunk, s placement.Shard) Coverage {
	if len(c.chunks) > 0 {
		if k, ok := c.chunks[chunk]; ok {
			return k
		}
	}
	return c.shard(s)
}

// keeps tells whether versions of a shard's pages are stored.
func (c *cover) keeps(s placement.Shard) bool { return c.shard(s).Owned }

func (c *cover) clone(shards uint32) *cover {
	n := &cover{rest: c.rest, shards: slices.Clone(c.shards), chunks: maps.Clone(c.chunks)}
	if n.shards == nil {
		n.shards = slices.Repeat([]Coverage{c.rest}, int(shards))
	}
	if n.chunks == nil {
		n.chunks = map[placement.Chunk]Coverage{}
	}
	return n
}

// forget drops what is said of single chunks of a shard.
func (c *cover) forget(s placement.Shard, shards uint32, changed map[coverKey]bool) {
	for k := range c.chunks {
		if placement.ShardOf(k, shards) == s {
			delete(c.chunks, k)
			changed[coverKey{chunk: k, one: true}] = true
		}
	}
}

// NotHereError says that a store doesn't have what a read needs.
type NotHereError struct {
	Branch uint32
	Key    pg.PageKey
	Shard  placement.Shard
	At     pg.LSN
	Have   Coverage // of the page's chunk
}

// Error names page, shard, LSN and what is there.
func (e *NotHereError) Error() string {
	what := "this node does not keep that shard"
	switch {
	case e.Have.Owned && e.Have.Complete:
		what = fmt.Sprintf("its versions are here from %s on", e.Have.From)
	case e.Have.Owned:
		what = fmt.Sprintf("only its changes beyond %s are here yet", e.Have.From)
	}
	return fmt.Sprintf("branch %d at %s: %s of shard %d: %v: %s", e.Branch, e.At, e.Key, e.Shard, ErrNotHere, what)
}

// Is makes it an ErrNotHere.
func (e *NotHereError) Is(target error) bool { return target == ErrNotHere }

// Coverage is what the store has of a branch's shard.
func (s *Store) Coverage(branch uint32, shard placement.Shard) Coverage {
	if uint32(shard) >= s.opt.Shards {
		return Coverage{}
	}
	if b, ok := s.branches.Load(branch); ok {
		return b.(*branchState).cover.Load().shard(shard)
	}
	return Coverage{}
}

// ChunkCoverage is what the store has of one chunk.
func (s *Store) ChunkCoverage(branch uint32, chunk placement.Chunk) Coverage {
	if b, ok := s.branches.Load(branch); ok {
		return b.(*branchState).cover.Load().chunk(chunk, placement.ShardOf(chunk, s.opt.Shards))
	}
	return Coverage{}
}

func (s *Store) checkShards(shards []placement.Shard) error {
	for _, k := range shards {
		if uint32(k) >= s.opt.Shards {
			return fmt.Errorf("shard %d: there are %d shards", k, s.opt.Shards)
		}
	}
	return nil
}

// Own makes the store keep all versions of these shards' pages from here on; the largest of the LSNs beyond which they are kept is returned. Shards that
// it owns already are left as they are. Like data this is durable with the next table: after a crash it may have to be said again.
func (s *Store) Own(branch uint32, shards ...placement.Shard) (from pg.LSN, err error) {
	if err := s.checkShards(shards); err != nil {
		return 0, err
	}
	b := s.branch(branch)
	s.covering.Lock()
	defer s.covering.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := b.current()
	switch {
	case s.closing:
		return 0, ErrClosed
	case p == nil || b.dropped:
		return 0, fmt.Errorf("branch %d: %w", branch, ErrNoBranch)
	}
	old := b.cover.Load()
	var fresh []placement.Shard
	for _, k := range shards {
		if c := old.shard(k); c.Owned {
			from = max(from, c.From)
			continue
		}
		if s.dropping[shardOf{branch, k}] {
			return 0, fmt.Errorf("branch %d: shard %d is being dropped: %w", branch, k, ErrBusy)
		}
		fresh = append(fresh, k)
	}
	if len(fresh) == 0 {
		return from, nil
	}
	// The writer may be inside a record that it filters by the old coverage. Whatever record it is in once the new one stands is the last of these.
	set := func(at pg.LSN) {
		n := old.clone(s.opt.Shards)
		for _, k := range fresh {
			n.shards[k] = Coverage{Owned: true, From: at}
			b.coverDirty[coverKey{shard: k}] = true
		}
		b.cover.Store(n)
	}
	set(^pg.LSN(0))
	at := max(b.high, pg.LSN(b.at.Load()), p.Readable, p.Resume)
	set(at)
	b.reached(at)
	b.dirty = true
	return max(from, at), nil
}

// reached notes that imports bring versions up to at. They begin with a flush, so that what a table says of the branch's highest LSN is never below what
// is in the tables, although the writer, which didn't keep these shards, may have stored nothing so far up. Under Store.mu.
func (b *branchState) reached(at pg.LSN) {
	if at > b.reach && at != ^pg.LSN(0) {
		b.reach = at
		b.dirty = b.dirty || b.current() != nil
	}
}

// Disown makes the store keep no more versions of these shards' pages, and answer no reads of them. DropShard then frees their space.
func (s *Store) Disown(branch uint32, shards ...placement.Shard) error {
	if err := s.checkShards(shards); err != nil {
		return err
	}
	b := s.branch(branch)
	s.covering.Lock()
	defer s.covering.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrClosed
	}
	if b.current() == nil || b.dropped {
		return fmt.Errorf("branch %d: %w", branch, ErrNoBranch)
	}
	n := b.cover.Load().clone(s.opt.Shards)
	for _, k := range shards {
		n.forget(k, s.opt.Shards, b.coverDirty)
		n.shards[k] = Coverage{}
		b.coverDirty[coverKey{shard: k}] = true
	}
	for _, k := range shards {
		b.shrink(k)
	}
	b.cover.Store(n)
	b.dirty = true
	return nil
}

type shardOf struct {
	branch uint32
	shard  placement.Shard
}

// DropShard frees what a shard that is not owned takes on disk.
func (s *Store) DropShard(branch uint32, shard placement.Shard) error {
	if err := s.checkShards([]placement.Shard{shard}); err != nil {
		return err
	}
	b := s.branch(branch)
	id := shardOf{branch, shard}
	s.mu.Lock()
	switch {
	case s.closing:
		s.mu.Unlock()
		return ErrClosed
	case s.dropping[id]:
		s.mu.Unlock()
		return fmt.Errorf("drop of shard %d of branch %d: it is being dropped: %w", shard, branch, ErrBusy)
	case b.current() != nil && b.cover.Load().shard(shard).Owned:
		s.mu.Unlock()
		return fmt.Errorf("drop of shard %d of branch %d: this node owns it: disown it first", shard, branch)
	}
	if b.current() != nil {
		if k, any := b.cover.Load().ownsOther(shard, s.opt.Shards); any {
			s.mu.Unlock()
			return fmt.Errorf("drop of shard %d of branch %d: this node owns chunk %s of it: drop that first", shard, branch, k)
		}
	}
	s.dropping[id] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.dropping, id)
		s.mu.Unlock()
	}()
	// That it is not owned must be durable before the data goes; what is in memory of it goes to tables, so that the deletion covers it.
	if err := s.flush(true); err != nil {
		return err
	}
	lo, hi := shardRange(branch, shard)
	if err := s.excise(lo, hi); err != nil {
		return fmt.Errorf("drop of shard %d of branch %d: %w", shard, branch, err)
	}
	return nil
}

// Keys of classCoverage: the branch's default, one for each shard, one for each chunk that differs from its shard. The byte tells them apart.
const (
	coverRest  = 0xFD
	coverShard = 0xFE
	coverGone  = 2 // a value's kind: nothing is said any more
	coverSet   = 1
	coverBody  = 1 + 8
)

func shardNumber(i int) placement.Shard { return placement.Shard(i) }

type coverKey struct {
	rest  bool
	shard placement.Shard
	one   bool // chunk
	chunk placement.Chunk
}

func (k coverKey) prefix(branch uint32) prefix {
	switch {
	case k.rest:
		return makePrefix(classCoverage, branch, 0, 0, 0, coverRest, 0)
	case k.one:
		return makePrefix(classCoverage, branch, k.chunk.Spc, k.chunk.DB, k.chunk.Rel, uint8(k.chunk.Fork), k.chunk.Segment)
	}
	return makePrefix(classCoverage, branch, 0, 0, 0, coverShard, uint32(k.shard))
}

func coverKeyOf(p *prefix) coverKey {
	k := p.pageKey()
	switch p[19] {
	case coverRest:
		return coverKey{rest: true}
	case coverShard:
		return coverKey{shard: placement.Shard(k.Block)}
	}
	return coverKey{one: true, chunk: placement.Chunk{RelFork: k.RelFork, Segment: k.Block}}
}

// pair is a key of LSN 0 with its sealed value.
type pair struct {
	p     prefix
	value []byte
}

// pair is what is stored for a key of coverage.
func (c *cover) pair(branch uint32, k coverKey) pair {
	p := k.prefix(branch)
	var e Coverage
	kind := byte(coverSet)
	switch {
	case k.rest:
		e = c.rest
	case k.one:
		var ok bool
		if e, ok = c.chunks[k.chunk]; !ok {
			kind = coverGone
		}
	default:
		e = c.shard(k.shard)
	}
	v := make([]byte, valueOver+coverBody)
	v[0] = kind
	if e.Owned {
		v[valueHead] |= 1
	}
	if e.Complete {
		v[valueHead] |= 2
	}
	binary.LittleEndian.PutUint64(v[valueHead+1:], uint64(e.From))
	seal(p.appendKey(nil, 0), v)
	return pair{p: p, value: v}
}

func getCoverage(v []byte) (c Coverage, gone bool, err error) {
	b := body(v)
	if len(b) != coverBody || b[0] > 3 || v[0] != coverSet && v[0] != coverGone {
		return c, false, errShape
	}
	return Coverage{Owned: b[0]&1 != 0, Complete: b[0]&2 != 0, From: pg.LSN(binary.LittleEndian.Uint64(b[1:]))}, v[0] == coverGone, nil
}

// sortedPairs lists the pairs of changed coverage in key order.
func (c *cover) sortedPairs(branch uint32, changed map[coverKey]bool) []pair {
	out := make([]pair, 0, len(changed))
	for k := range changed {
		out = append(out, c.pair(branch, k))
	}
	slices.SortFunc(out, func(x, y pair) int { return x.p.compare(&y.p) })
	return out
}

// loadCoverage reads the coverage of all branches.
func (s *Store) loadCoverage(r *reader) error {
	lo, hi := makePrefix(classCoverage, 0, 0, 0, 0, 0, 0), makePrefix(classCoverage+1, 0, 0, 0, 0, 0, 0)
	return r.each(lo, hi, 0, func(p *prefix, v version) error {
		e, gone, err := getCoverage(v.value)
		if err != nil {
			return r.corrupt(p, 0, err)
		}
		b := s.branch(p.branch())
		n := b.cover.Load()
		if n == everything {
			n = n.clone(s.opt.Shards)
			n.shards = nil
			b.cover.Store(n)
		}
		switch k := coverKeyOf(p); { // nobody sees it yet
		case gone:
		case k.rest:
			n.rest = e
		case k.one:
			n.chunks[k.chunk] = e
		case uint32(k.shard) < s.opt.Shards:
			if b.loaded == nil {
				b.loaded = map[placement.Shard]Coverage{}
			}
			b.loaded[k.shard] = e
		default:
			return r.corrupt(p, 0, errors.New("there is no such shard"))
		}
		return nil
	})
}

// settleCoverage lays what was loaded of single shards over the branch's default.
func (b *branchState) settleCoverage(shards uint32) {
	old := b.cover.Load()
	if len(b.loaded) == 0 && len(old.chunks) == 0 {
		return
	}
	n := old.clone(shards)
	for k, e := range b.loaded {
		n.shards[k] = e
		b.reached(e.From)
	}
	for _, c := range n.chunks {
		b.reached(c.From)
	}
	b.cover.Store(n)
	b.loaded = nil
}
