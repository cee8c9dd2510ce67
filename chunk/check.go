package chunk

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"everpage/wal/pg"
)

// Violation is a broken invariant that Check found.
type Violation struct {
	Branch uint32
	Key    string // what it is about
	LSN    pg.LSN
	Text   string
}

// Walked is what Check looked at.
type Walked struct {
	Keys     uint64
	Versions uint64 // in them, repetitions included
	Bytes    uint64 // of keys and values
	Pages    uint64 // distinct
}

// Check flushes and walks the whole store and reports every broken invariant: shape and order of keys, checksums, lists of truncations, bases under
// deltas, versions beyond their fork's size, the commit index, progress. Its error is that of the walk itself; a table that can't be read is a violation.
// Writers may go on meanwhile.
func (s *Store) Check(ctx context.Context, report func(Violation)) (Walked, error) {
	if err := s.Flush(); err != nil {
		return Walked{}, err
	}
	r, it, covers, err := s.checkView()
	if err != nil {
		return Walked{}, err
	}
	defer r.release()
	defer it.Close()
	c := &checker{
		r: r, it: it, report: report, high: map[uint32]pg.LSN{}, readable: map[uint32]pg.LSN{}, progress: map[uint32]bool{}, covers: covers,
		horizon: map[uint32]pg.LSN{},
	}
	s.mu.Lock()
	s.branches.Range(func(_, v any) bool {
		b := v.(*branchState)
		if p := b.current(); p != nil {
			c.high[b.num], c.readable[b.num], c.horizon[b.num] = max(b.high, b.reach), p.Readable, p.Horizon
			c.checkProgress(b.num, p, b.durable)
		}
		return true
	})
	s.mu.Unlock()
	for it.First(); it.Valid(); it.Next() {
		if err := ctx.Err(); err != nil {
			return c.walked, err
		}
		c.visit(it)
	}
	c.endGroup()
	if err := it.Error(); err != nil {
		report(Violation{Key: fmt.Sprintf("key beyond %x", c.lastKey), Text: fmt.Sprintf("can't be read: %v", err)})
	}
	for b := range c.high {
		if !c.progress[b] {
			report(Violation{Branch: b, Key: "progress", Text: "is missing"})
		}
	}
	return c.walked, nil
}

// checkView takes what Check walks between two looks at the same coverage of all branches.
func (s *Store) checkView() (*reader, *pebble.Iterator, map[uint32]*cover, error) {
	for {
		covers := map[uint32]*cover{}
		s.branches.Range(func(k, v any) bool {
			covers[k.(uint32)] = v.(*branchState).cover.Load()
			return true
		})
		r, err := s.reader()
		if err != nil {
			return nil, nil, nil, err
		}
		it, err := s.db.NewIter(nil)
		if err != nil {
			r.release()
			return nil, nil, nil, err
		}
		same := true
		s.branches.Range(func(k, v any) bool {
			same = covers[k.(uint32)] == v.(*branchState).cover.Load()
			return same
		})
		if same {
			return r, it, covers, nil
		}
		r.release()
		it.Close()
	}
}

type checker struct {
	r        *reader
	it       *pebble.Iterator
	report   func(Violation)
	walked   Walked
	high     map[uint32]pg.LSN
	readable map[uint32]pg.LSN
	progress map[uint32]bool
	covers   map[uint32]*cover
	horizon  map[uint32]pg.LSN // what lies at or below was collected: much of it is missing
	lastKey  []byte

	// The object being walked, newest version first.
	p        prefix
	any      bool
	open     []*openPack // pairs whose versions were not all looked at
	sizes    []sizeEntry
	versions []pageVersion
	commit   commitEntry // the next newer entry of the commit index
	commits  bool
}

type pageVersion struct {
	lsn  pg.LSN
	kind VersionKind
}

func (c *checker) violation(lsn pg.LSN, format string, args ...any) {
	c.report(Violation{Branch: c.p.branch(), Key: c.p.String(), LSN: lsn, Text: fmt.Sprintf(format, args...)})
}

func (c *checker) visit(it *pebble.Iterator) {
	key := it.Key()
	if c.lastKey != nil && bytes.Compare(key, c.lastKey) <= 0 {
		c.report(Violation{Key: fmt.Sprintf("key %x", key), Text: fmt.Sprintf("stands after key %x", c.lastKey)})
	}
	c.lastKey = append(c.lastKey[:0], key...)
	p, lsn, ok := splitKey(key)
	if !ok || p.class() < classPage || p.class() >= classEnd {
		c.report(Violation{Key: fmt.Sprintf("key %x", key), Text: "is none of the store's"})
		return
	}
	if !c.any || p != c.p {
		c.endGroup()
		c.p, c.any = p, true
	}
	c.drain(lsn + 1)
	v, err := it.ValueAndErr()
	if err != nil {
		c.violation(lsn, "can't be read: %v", err)
		return
	}
	c.walked.Keys++
	c.walked.Bytes += uint64(len(key) + len(v))
	high, known := c.high[p.branch()]
	if !known {
		c.violation(lsn, "belongs to a branch without progress")
		return
	}
	if p.class() < classProgress && lsn > high {
		c.violation(lsn, "lies beyond the last LSN of its branch, %s", high)
	}
	o := &openPack{}
	n := 0
	err = versionsOf(key, v, func(*prefix, pg.LSN, []byte) error { n++; return nil })
	if err == nil {
		err = o.take(key, lsn, v)
	}
	if err != nil {
		c.violation(lsn, "%v", err)
		return
	}
	c.walked.Versions += uint64(n)
	c.open = append(c.open, o)
}

// drain looks at the versions at or beyond from in the pairs that were opened, newest first and each LSN once: pairs that follow have none there.
func (c *checker) drain(from pg.LSN) {
	for {
		var next *openPack
		for _, o := range c.open {
			if o.i < o.n && o.lsn(o.i) >= from && (next == nil || o.lsn(o.i) > next.lsn(next.i)) {
				next = o
			}
		}
		if next == nil {
			break
		}
		lsn := next.lsn(next.i)
		c.value(c.p, lsn, next.value(next.i))
		for _, o := range c.open {
			if o.i < o.n && o.lsn(o.i) == lsn {
				o.i++
			}
		}
	}
	c.open = slices.DeleteFunc(c.open, func(o *openPack) bool { return o.i == o.n })
}

// value looks at one value's shape and gathers what endGroup compares.
func (c *checker) value(p prefix, lsn pg.LSN, v []byte) {
	switch p.class() {
	case classPage:
		kind := VersionKind(v[0])
		if kind < KindImage || kind > KindMissing {
			c.violation(lsn, "has unknown kind %d", kind)
			return
		}
		if kind == KindImage {
			if err := getImage(make(pg.Page, pg.BlockSize), body(v)); err != nil {
				c.violation(lsn, "%v", err)
			}
		}
		if key := p.pageKey(); key.Block == pg.InvalidBlock || key.Spc == 0 && (key.Rel != 0 || key.Fork != 0) {
			c.violation(lsn, "is no page")
		} else if want := c.r.s.shard(key); uint16(want) != p.shard() {
			c.violation(lsn, "lies in shard %d, but belongs to %d", p.shard(), want)
		}
		c.versions = append(c.versions, pageVersion{lsn, kind})
	case classSize:
		e, err := getSize(lsn, v)
		if err != nil {
			c.violation(lsn, "%v", err)
			return
		}
		if f := p.pageKey(); f.Spc == 0 && e.blocks > pg.SLRUPagesPerSegment {
			c.violation(lsn, "an SLRU segment has %d pages", e.blocks)
		}
		c.sizes = append(c.sizes, e)
	case classMeta:
		if v[0] != metaSet && v[0] != metaGone {
			c.violation(lsn, "has unknown kind %d", v[0])
		}
	case classCommit:
		e, err := getCommit(lsn, v)
		if err != nil {
			c.violation(lsn, "%v", err)
			return
		}
		if c.commits {
			c.checkCommit(e)
		}
		if e.XID != 0 && lsn > c.horizon[p.branch()] && lsn <= c.readable[p.branch()] {
			x := xidPrefix(p.branch(), e.XID)
			if d, ok, err := c.r.newest(&x, lsn); err != nil || !ok || d.lsn != lsn {
				c.violation(lsn, "transaction %d can't be found by its number: %v", e.XID, err)
			}
		}
		c.commit, c.commits = e, true
	case classXID:
		e, err := getCommit(lsn, v)
		if err != nil {
			c.violation(lsn, "%v", err)
			return
		}
		i, ok, err := c.r.commitAt(p.branch(), lsn)
		if err != nil || !ok || i.End != lsn || i.XID/xidsTogether != p.num(0) || i != e {
			c.violation(lsn, "differs from the commit index: %v", err)
		}
	case classRestore:
		if b := body(v); len(b) < restoreBody || restorePrefix(p.branch(), string(b[restoreBody:])) != p {
			c.violation(lsn, "%v", errShape)
		}
	case classDamage:
		if have := c.coverage(p.branch(), p.pageKey()); !have.Owned || lsn <= max(have.From, c.horizon[p.branch()]) {
			return
		}
		page := c.r.s.pagePrefix(p.branch(), p.pageKey())
		d, ok, err := c.r.newest(&page, lsn)
		if err != nil || !ok || d.lsn != lsn || VersionKind(d.value[0]) != KindDamaged && VersionKind(d.value[0]) != KindMissing {
			c.violation(lsn, "the page has no damaged version there: %v", err)
		}
	case classCopy:
		if len(body(v)) != copyBody {
			c.violation(lsn, "%v", errShape)
		}
	case classCoverage:
		if _, _, err := getCoverage(v); err != nil || lsn != 0 {
			c.violation(lsn, "%v", errShape)
		}
	case classProgress:
		var sp storedProgress
		if err := json.Unmarshal(body(v), &sp); err != nil || lsn != 0 {
			c.violation(lsn, "%v", errShape)
			return
		}
		c.progress[p.branch()] = true
	}
}

func (c *checker) checkProgress(branch uint32, p, durable *Progress) {
	bad := func(format string, args ...any) {
		c.report(Violation{Branch: branch, Key: "progress", Text: fmt.Sprintf(format, args...)})
	}
	if p.Consistent != 0 && (p.Consistent < p.Start || p.Consistent > p.Readable) {
		bad("consistent at %s, started at %s, readable to %s", p.Consistent, p.Start, p.Readable)
	}
	if p.Resume > p.Readable {
		bad("resumes at %s, beyond what is readable, %s", p.Resume, p.Readable)
	}
	if durable != nil && (durable.Resume > p.Resume || durable.Readable > p.Readable || durable.Start > p.Start) {
		bad("is durable to %s and resumes at %s, more than was committed: %s and %s", durable.Readable, durable.Resume, p.Readable, p.Resume)
	}
}

// checkCommit compares an entry of the commit index with the next newer one.
func (c *checker) checkCommit(older commitEntry) {
	newer := c.commit
	if newer.End <= c.horizon[c.p.branch()] {
		return
	}
	if want := max(older.maxTime, newer.Time); newer.maxTime != want {
		c.violation(newer.End, "its running maximum of times is %d, want %d", newer.maxTime, want)
	}
	if newer.Start < older.End || newer.End <= newer.Start {
		c.violation(newer.End, "its record starts at %s, the one before ends at %s", newer.Start, older.End)
	}
}

// endGroup looks at all versions of one object together.
func (c *checker) endGroup() {
	if !c.any {
		return
	}
	c.drain(0)
	switch c.p.class() {
	case classPage:
		c.walked.Pages++
		c.endPage()
	case classSize:
		c.endSize()
	case classCommit:
		if _, ok := c.r.lines[c.p.branch()]; ok {
			break // it goes on in another branch
		}
		if c.horizon[c.p.branch()] != 0 {
			break // what came before was collected
		}
		if c.commits && c.commit.maxTime != c.commit.Time {
			c.violation(c.commit.End, "the first entry's running maximum of times is not its own time")
		}
	}
	c.any, c.commits = false, false
	c.sizes, c.versions = c.sizes[:0], c.versions[:0]
}

func (c *checker) endSize() {
	shrink := pg.LSN(0)
	var older sizeEntry
	if f, ok := c.r.lines[c.p.branch()]; ok {
		var err error
		if older, err = c.r.sizeAt(c.p.branch(), c.p.pageKey().RelFork, f.at); err != nil {
			c.violation(f.at, "its fork's size before the branch began can't be read: %v", err)
		}
		shrink = older.lastShrink()
	}
	for i := len(c.sizes) - 1; i >= 0; i-- {
		e := c.sizes[i]
		if e.link != shrink && !c.r.s.collected(c.p.branch(), e.link) {
			c.violation(e.lsn, "says that the fork was last cut off at %s, but it was at %s", e.link, shrink)
		}
		if e.shrinks() {
			shrink = e.lsn
		}
		if e.lsn <= c.horizon[c.p.branch()] {
			older = e
			continue
		}
		switch e.op {
		case sizeGrow:
			if !e.exists || e.blocks == 0 || older.exists && e.blocks <= older.blocks {
				c.violation(e.lsn, "grows from %d to %d blocks", older.blocks, e.blocks)
			}
		case sizeCreate:
			if !e.exists || e.blocks != 0 || older.exists {
				c.violation(e.lsn, "creates a fork of %d blocks where one of %d was", e.blocks, older.blocks)
			}
		case sizeTruncate:
			if !e.exists || e.blocks > older.blocks || e.blocks > e.left {
				c.violation(e.lsn, "truncates to %d blocks of %d", e.blocks, older.blocks)
			}
		case sizeDrop, sizeAbsent:
			if e.blocks != 0 || e.left != 0 || e.op == sizeAbsent && (e.exists || older.exists) {
				c.violation(e.lsn, "an absent fork has %d blocks", e.blocks)
			}
		case sizeCopy:
			f := c.p.pageKey().RelFork
			f.RelFileLocator = e.source
			src, err := c.r.sizeAt(c.p.branch(), f, e.lsn-1)
			if err != nil || !src.exists || src.blocks != e.blocks {
				c.violation(e.lsn, "copies %d blocks of %s, which has %d: %v", e.blocks, f, src.blocks, err)
			}
		}
		older = e
	}
}

func (c *checker) coverage(branch uint32, key pg.PageKey) Coverage {
	cover := c.covers[branch]
	if cover == nil {
		cover = everything
	}
	have, _ := c.r.s.coverageOf(cover, key)
	return have
}

func (c *checker) endPage() {
	key := c.p.pageKey()
	fork, block := forkOf(key)
	have := c.coverage(c.p.branch(), key)
	if !have.Owned {
		return // left over: DropShard takes it away
	}
	for i, v := range c.versions {
		if v.lsn > c.readable[c.p.branch()] {
			continue // of a batch that was never committed: it may lack its size
		}
		if v.lsn <= c.horizon[c.p.branch()] {
			continue // its fork's size then is not known any more
		}
		e, err := c.r.sizeAt(c.p.branch(), fork, v.lsn)
		if err != nil {
			c.violation(v.lsn, "its fork's size can't be read: %v", err)
			continue
		}
		if v.kind == KindDamaged || v.kind == KindMissing {
			mark := damagePrefix(c.p.branch(), key)
			if d, ok, err := c.r.newest(&mark, v.lsn); err != nil || !ok || d.lsn != v.lsn {
				c.violation(v.lsn, "is damaged, but not told to be: %v", err)
			}
		}
		has := e.exists && block < e.blocks
		if v.kind == KindMissing {
			if before, err := c.r.sizeAt(c.p.branch(), fork, v.lsn-1); err != nil || has && before.exists && block < before.blocks {
				c.violation(v.lsn, "is marked as missing but lies inside its fork of %d blocks: %v", e.blocks, err)
			}
			continue
		}
		if !has {
			c.violation(v.lsn, "lies beyond the end of its fork of %d blocks", e.blocks)
			continue
		}
		if v.kind != KindDelta || v.lsn <= have.From {
			continue
		}
		// There must be a base: an older version above the floor, or one in the database that was copied.
		floor, cut, err := c.r.floor(c.p.branch(), fork, e, block)
		if err != nil {
			c.violation(v.lsn, "its fork's truncations can't be read: %v", err)
			continue
		}
		if !have.Complete && floor.lsn <= have.From {
			continue // what lies under it is still to come
		}
		if f, ok := c.r.lines[c.p.branch()]; ok && floor.lsn <= f.at {
			continue // it may lie in the branch that this one comes from
		}
		if i+1 < len(c.versions) && c.versions[i+1].lsn > floor.lsn || cut && floor.op == sizeCopy && block < floor.left {
			continue
		}
		if !c.forgiven(fork, block, v.lsn) {
			c.violation(v.lsn, "has nothing under it")
		}
	}
}

// forgiven tells whether a later truncation or drop, as far as the store knows, took away a block that WAL referred to when it was new.
func (c *checker) forgiven(fork pg.RelFork, block uint32, lsn pg.LSN) bool {
	e, err := c.r.sizeAt(c.p.branch(), fork, c.high[c.p.branch()])
	if err != nil {
		return false
	}
	floor, cut, err := c.r.floor(c.p.branch(), fork, e, block)
	return err == nil && cut && floor.lsn > lsn
}
