package chunk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Collection: of the versions at or below the horizon only those stay that reads at the horizon, at pins, at forks and just before database copies need:
// of a page one image for each of these, at the LSN of its own version. The horizon is durable before anything goes, and a read looks at it once more when it
// has its reader, so that it finds all it needs or is refused.
//
// What is collected is a range of keys at a time: its objects are written anew into a table that takes the whole range's place in one step. Ranges with
// little to collect are left alone. An entry of a fork's size that cut pages off goes where a newer one cut them off as well, as all reads see it that see the
// older one; else it stays, since layers may bring such pages again. So of a fork that was dropped one entry is left.

// CollectOptions bound what collection costs. The zero value of a field is the default that its comment names.
type CollectOptions struct {
	BytesPerSecond int64           // read at most; 32 MiB
	Worth          float64         // the part of a range's bytes that must go for it to be written anew; 0.25
	Note           func(Collected) // is told how far it is, from time to time; none
}

// Collected is what collection looked at and took away.
type Collected struct {
	Bytes, Versions uint64 // looked at
	GoneBytes       uint64 // about so many of these went, or would go
	GoneVersions    uint64
	Rewritten       int // ranges
}

const (
	pieceBytes    = 8 << 20 // of values in a range
	pieceVersions = 200_000
)

// SetHorizon makes an LSN the first that is answered, and pins the only ones below that are. Neither may lie below what was collected before.
func (s *Store) SetHorizon(branch uint32, horizon pg.LSN, pins []pg.LSN) error {
	b := s.branch(branch)
	fail := func(err error) error { return fmt.Errorf("horizon of branch %d to %s: %w", branch, horizon, err) }
	s.mu.Lock()
	defer s.mu.Unlock()
	p := b.current()
	switch {
	case s.closing:
		return fail(ErrClosed)
	case p == nil:
		return fail(ErrNoBranch)
	case b.durable == nil || horizon > b.durable.Resume || p.Consistent == 0:
		return fail(fmt.Errorf("%w: WAL from before it would be read again after a crash", ErrNotYet))
	case horizon < p.Horizon:
		return fail(fmt.Errorf("%w: it is %s already", ErrBelowHorizon, p.Horizon))
	}
	n := *p
	n.Horizon, n.Pins = horizon, nil
	for _, pin := range pins {
		if pin < p.Horizon && !slices.Contains(p.Pins, pin) {
			return fail(fmt.Errorf("pin %s: %w", pin, ErrBelowHorizon))
		}
		if pin < horizon {
			n.Pins = append(n.Pins, pin)
		}
	}
	slices.Sort(n.Pins)
	n.Pins = slices.Compact(n.Pins)
	b.progress.Store(&n)
	b.dirty = true
	return nil
}

// Collect takes away what lies below the horizon and nothing needs. Writers and readers go on meanwhile.
func (s *Store) Collect(ctx context.Context, branch uint32, opt CollectOptions) (Collected, error) {
	// The horizon must be durable, and nothing at or below it in memory.
	if err := s.flush(true); err != nil {
		return Collected{}, err
	}
	// Another one may have moved it since.
	p, ok := s.Durable(branch)
	if _, here := s.Progress(branch); !ok || !here {
		return Collected{}, fmt.Errorf("collect: branch %d: %w", branch, ErrNoBranch)
	}
	c := &collector{s: s, ctx: ctx, b: s.branch(branch), horizon: p.Horizon, pins: p.Pins, opt: opt, write: true}
	return c.run()
}

// CollectDry tells what Collect would take away at a horizon with pins.
func (s *Store) CollectDry(ctx context.Context, branch uint32, horizon pg.LSN, pins []pg.LSN) (Collected, error) {
	if err := s.flush(true); err != nil {
		return Collected{}, err
	}
	if _, ok := s.Progress(branch); !ok {
		return Collected{}, fmt.Errorf("collect: branch %d: %w", branch, ErrNoBranch)
	}
	c := &collector{s: s, ctx: ctx, b: s.branch(branch), horizon: horizon, pins: pins}
	return c.run()
}

type collector struct {
	s       *Store
	ctx     context.Context
	b       *branchState
	horizon pg.LSN
	pins    []pg.LSN
	opt     CollectOptions
	write   bool
	total   Collected
	began   time.Time

	// Of the range at hand.
	r     *reader // walks versions in tables
	pages *reader // makes pages
	it    *pebble.Iterator
	view  view
	out   *sstable.Writer
	pairs pairWriter
	any   bool
	piece Collected
	needs []pg.LSN // beside the horizon, newest first
	fork  pg.RelFork
	known bool
	extra []pg.LSN    // needs of fork, the horizon first
	sizes []sizeEntry // of fork at these
	low   uint64      // of a fork's size: the blocks from here on are cut off already, as reads see it
	buf   pg.Page
	image []byte
}

func (c *collector) run() (Collected, error) {
	if c.horizon == 0 {
		return c.total, nil
	}
	c.opt.BytesPerSecond = cmp.Or(c.opt.BytesPerSecond, 32<<20)
	c.opt.Worth = cmp.Or(c.opt.Worth, 0.25)
	c.began, c.buf = time.Now(), make(pg.Page, pg.BlockSize)
	for i := range placement.Shard(c.s.opt.Shards) {
		if have := c.b.cover.Load().shard(i); !have.Owned || !have.Complete || have.From > c.horizon {
			continue
		}
		lo, hi := shardRange(c.b.num, i)
		if err := c.ranges(lo, hi); err != nil {
			return c.total, fmt.Errorf("collect branch %d, shard %d: %w", c.b.num, i, err)
		}
	}
	for _, k := range c.s.OwnedChunks(c.b.num) {
		if have := c.s.ChunkCoverage(c.b.num, k); !have.Owned || !have.Complete || have.From > c.horizon {
			continue
		}
		lo, hi := c.s.chunkRange(c.b.num, k)
		if err := c.ranges(lo, hi); err != nil {
			return c.total, fmt.Errorf("collect branch %d, chunk %s: %w", c.b.num, k, err)
		}
	}
	for class := uint8(classSize); class < classCopy; class++ {
		lo, hi := branchRange(class, c.b.num)
		if err := c.ranges(lo, hi); err != nil {
			return c.total, fmt.Errorf("collect branch %d: %w", c.b.num, err)
		}
	}
	return c.total, nil
}

// ranges goes through the keys from lo to hi, a range at a time.
func (c *collector) ranges(lo, hi prefix) error {
	for lo.compare(&hi) < 0 {
		next, err := c.measure(lo, hi)
		if err != nil {
			return err
		}
		found := c.piece
		c.total.Bytes += found.Bytes
		c.total.Versions += found.Versions
		worth := found.GoneBytes > 0 && float64(found.GoneBytes) >= c.opt.Worth*float64(found.Bytes)
		if worth && c.write {
			if err := c.rewrite(lo, next); err != nil {
				return err
			}
			c.total.Rewritten++
		}
		if worth || !c.write {
			c.total.GoneBytes += found.GoneBytes
			c.total.GoneVersions += found.GoneVersions
		}
		if c.opt.Note != nil {
			c.opt.Note(c.total)
		}
		if err := c.pause(); err != nil {
			return err
		}
		lo = next
	}
	return nil
}

// pause keeps to the rate.
func (c *collector) pause() error {
	due := time.Duration(float64(c.total.Bytes) / float64(c.opt.BytesPerSecond) * float64(time.Second))
	ahead := due - time.Since(c.began)
	if ahead <= 0 || !c.write {
		return c.ctx.Err()
	}
	t := time.NewTimer(ahead)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-c.s.quit:
		return ErrClosed
	}
}

// take makes the iterators for a range, newer than all tables.
func (c *collector) take() error {
	s := c.s
	s.iters.mu.Lock()
	if s.iters.closed {
		s.iters.mu.Unlock()
		return ErrClosed
	}
	s.readers.Add(1)
	s.iters.mu.Unlock()
	lines := s.lines()
	c.view = view{ctx: c.ctx, cover: c.b.cover.Load(), up: s.ancestors(lines, c.b.num)}
	s.iters.mu.Lock()
	st := s.enter()
	s.iters.mu.Unlock()
	var its [3]*pebble.Iterator
	for i := range its {
		it, err := s.db.NewIter(nil)
		if err != nil {
			for _, it := range its[:i] {
				it.Close()
			}
			s.leave(st)
			s.readers.Done()
			return err
		}
		its[i] = it
	}
	c.it = its[0]
	c.r = &reader{s: s, st: &state{}, it: its[1]} // without runs, and without the branch's parents
	c.pages = &reader{s: s, st: st, it: its[2], lines: lines}
	c.piece, c.known = Collected{}, false
	c.needs = append([]pg.LSN{}, c.pins...)
	c.needs = append(c.needs, lines.children(c.b.num)...)
	return nil
}

func (c *collector) leave() {
	c.it.Close()
	c.r.it.Close()
	c.pages.it.Close()
	c.s.leave(c.pages.st)
	c.s.readers.Done()
}

// measure finds out what can go of the objects from lo on, and where a range that is worth a look ends.
func (c *collector) measure(lo, hi prefix) (next prefix, err error) {
	if err := c.take(); err != nil {
		return hi, err
	}
	defer c.leave()
	if err := c.each(lo, hi, c.look); err != nil && !errors.Is(err, errPieceEnds) {
		return hi, err
	} else if err == nil {
		return hi, nil
	}
	p, _, _ := splitKey(c.it.Key())
	return p.next(), nil
}

var errPieceEnds = errors.New("the range ends")

func (c *collector) each(lo, hi prefix, fn func(p *prefix) error) error {
	for ok := c.it.SeekGE(lo[:]); ok; ok = c.it.NextPrefix() {
		p, _, known := splitKey(c.it.Key())
		if !known {
			return c.r.corrupt(&lo, 0, errShape)
		}
		if p.compare(&hi) >= 0 {
			return nil
		}
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := fn(&p); err != nil {
			return err
		}
	}
	if err := c.it.Error(); err != nil {
		return c.r.corrupt(&lo, 0, err)
	}
	return nil
}

// needed are the LSNs at which an object must be readable below the horizon and at it, newest first; none if all of it stays.
func (c *collector) needed(p *prefix) ([]pg.LSN, error) {
	switch p.class() {
	case classPage, classSize, classDamage:
	case classXID, classRestore:
		return []pg.LSN{0}, nil
	default:
		return c.sorted(nil), nil
	}
	key := p.pageKey()
	if p.class() == classPage {
		if have, _ := c.s.coverageOf(c.view.cover, key); !have.Complete || have.From > c.horizon {
			return nil, nil
		}
	}
	fork, _ := forkOf(key)
	if p.class() == classSize {
		fork = key.RelFork
	}
	if c.known && fork == c.fork {
		return c.extra, nil
	}
	copies, err := c.pages.copies(c.b.num, fork.Spc, fork.DB)
	if err != nil {
		return nil, err
	}
	c.extra, c.sizes = c.sorted(copies), c.sizes[:0]
	if p.class() == classPage {
		for _, at := range c.extra {
			e, err := c.pages.sizeAt(c.b.num, fork, at)
			if err != nil {
				return nil, err
			}
			c.sizes = append(c.sizes, e)
		}
	}
	c.fork, c.known = fork, p.class() == classPage
	return c.extra, nil
}

func (c *collector) sorted(copies []pg.LSN) []pg.LSN {
	out := append([]pg.LSN{c.horizon}, c.needs...)
	for _, at := range copies {
		out = append(out, at-1)
	}
	out = slices.DeleteFunc(out, func(at pg.LSN) bool { return at > c.horizon })
	slices.Sort(out)
	slices.Reverse(out)
	return slices.Compact(out)
}

// uncut is a collector's low where nothing is.
const uncut = 1 << 32

// stays tells which of an object's versions at or below the horizon stay as they are, pages apart. It is asked from the newest to the oldest, with the needs
// that no newer one answers.
func (c *collector) stays(p *prefix, v version, needs []pg.LSN) bool {
	if p.class() != classSize {
		return false
	}
	e, err := getSize(v.lsn, v.value)
	if err != nil {
		return true
	}
	if len(needs) > 0 && v.lsn <= needs[0] {
		c.low = uncut // a read there doesn't see the newer ones
	}
	left := uint64(e.left)
	if e.op == sizeCopy {
		left = 0
	}
	if !e.shrinks() || c.low <= left {
		return false
	}
	c.low = left
	return true
}

// look measures one object.
func (c *collector) look(p *prefix) error {
	needs, err := c.needed(p)
	if err != nil {
		return err
	}
	all := needs == nil
	var gone, chain, base int64 // of bytes; chain: what an image would take the place of
	n := 0
	c.low = uncut
	for c.r.seek(p, ^pg.LSN(0)); ; {
		v, ok, err := c.r.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		c.piece.Versions++
		c.piece.Bytes += uint64(len(v.value))
		if all || v.lsn > c.horizon {
			continue
		}
		if c.stays(p, v, needs) {
			needs = dropped(needs, v.lsn)
			continue
		}
		first := false
		for len(needs) > 0 && v.lsn <= needs[0] {
			first = first || p.class() != classPage || c.visible(p, needs[0], v.lsn)
			needs = needs[1:]
		}
		switch {
		case first && (p.class() != classPage || VersionKind(v.value[0]) == KindImage):
		case first: // an image takes its place
			chain += int64(len(v.value)) - 4096
			base = 1
		default:
			n++
			gone += int64(len(v.value))
		}
	}
	if base != 0 {
		gone += chain
	}
	if gone > 0 && n > 0 {
		c.piece.GoneBytes += uint64(gone)
		c.piece.GoneVersions += uint64(n)
	}
	if c.piece.Bytes >= pieceBytes || c.piece.Versions >= pieceVersions {
		return errPieceEnds
	}
	return nil
}

// visible tells whether a page's version may show at an LSN, as far as its fork's size says.
func (c *collector) visible(p *prefix, at, lsn pg.LSN) bool {
	i := slices.Index(c.extra, at)
	if i < 0 || i >= len(c.sizes) {
		return true
	}
	_, block := forkOf(p.pageKey())
	e := &c.sizes[i]
	return e.exists && block < e.blocks && (!e.shrinks() || e.left > block || e.lsn < lsn)
}

// rewrite writes the objects of a range anew, without what can go.
func (c *collector) rewrite(lo, hi prefix) (err error) {
	s := c.s
	if err := s.spare.room(2 * pieceBytes); err != nil {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	path := s.fs.PathJoin(s.opt.Dir, ingestDir, "collect.sst")
	// No table may come in between: it would go with the range.
	s.tables.Lock()
	defer s.tables.Unlock()
	if err := c.take(); err != nil {
		return err
	}
	defer c.leave()
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.discard(path)) }()
	c.out, c.any = s.newTable(&tableFile{f: f}), false
	c.pairs = pairWriter{set: c.out.Set}
	err = c.each(lo, hi, c.keep)
	if err == nil {
		err = c.pairs.finish()
	}
	if cerr := c.out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := s.edges(lo, hi); err != nil {
		return err
	}
	span := pebble.KeyRange{Start: lo[:], End: hi[:]}
	if c.any {
		_, err = s.db.IngestAndExcise(context.Background(), []string{path}, nil, nil, span)
	} else {
		err = s.db.Excise(context.Background(), span)
	}
	if err != nil {
		return fmt.Errorf("put a collected range in place: %w", err)
	}
	s.changed()
	return nil
}

func (c *collector) add(p *prefix, lsn pg.LSN, sealed []byte) error {
	c.any = true
	return c.pairs.add(p, lsn, sealed)
}

// keep writes what stays of one object.
func (c *collector) keep(p *prefix) error {
	needs, err := c.needed(p)
	if err != nil {
		return err
	}
	all := needs == nil
	last := ^pg.LSN(0)
	verbatim := false // down to the next version that needs none under it
	c.low = uncut
	for c.r.seek(p, last); ; {
		v, ok, err := c.r.next()
		if err != nil || !ok {
			return err
		}
		if all || v.lsn > c.horizon || c.stays(p, v, needs) {
			for len(needs) > 0 && v.lsn <= needs[0] {
				needs = needs[1:]
			}
			if err := c.add(p, v.lsn, v.value); err != nil {
				return err
			}
			continue
		}
		show := false
		for len(needs) > 0 && v.lsn <= needs[0] {
			if p.class() != classPage {
				show = true
			} else if !verbatim {
				made, err := c.make(p, needs[0], v)
				switch {
				case err != nil:
					return err
				case made == madeAsIs:
					verbatim = true
				case made == madeImage:
					if err := c.add(p, v.lsn, c.image); err != nil {
						return err
					}
					needs = dropped(needs, v.lsn)
					continue
				}
			}
			needs = needs[1:]
		}
		if show || verbatim {
			if err := c.add(p, v.lsn, v.value); err != nil {
				return err
			}
			verbatim = verbatim && !ends(v.value[0])
		}
		if len(needs) == 0 && !verbatim && p.class() != classSize {
			return nil
		}
	}
}

// dropped leaves out the needs that a version at lsn answers.
func dropped(needs []pg.LSN, lsn pg.LSN) []pg.LSN {
	for len(needs) > 0 && needs[0] >= lsn {
		needs = needs[1:]
	}
	return needs
}

const (
	madeNothing = iota // the page is not there, or nothing of its own shows
	madeImage
	madeAsIs // it can't be made: its versions stay as they are
)

// make finds out what a page is at an LSN, where v is its newest version, and makes the image that stands for it.
func (c *collector) make(p *prefix, at pg.LSN, v version) (int, error) {
	if VersionKind(v.value[0]) == KindMissing {
		return madeAsIs, nil // it tells where the page comes into being by other means
	}
	if !c.visible(p, at, v.lsn) {
		return madeNothing, nil
	}
	key := p.pageKey()
	origin := originOf(v.value)
	err := c.pages.page(c.view, c.b, key, at, c.buf)
	var damage *DamagedError
	switch {
	case errors.Is(err, ErrNotFound):
		return madeNothing, nil
	case errors.As(err, &damage), errors.Is(err, ErrNotHere):
		return madeAsIs, nil
	case err != nil:
		return 0, err
	}
	if c.pages.version != v.lsn {
		return madeNothing, nil // something has cut it off
	}
	off, n := imageHole(c.buf)
	c.image = slices.Grow(c.image[:0], valueOver+imageHead+pg.BlockSize)[:valueOver+imageHead+pg.BlockSize-n]
	c.image[0], c.image[1], c.image[2] = byte(KindImage), origin.Rmgr, origin.Info
	putImage(c.image[valueHead:], c.buf, off, n)
	var k [keyLen]byte
	seal(p.appendKey(k[:0], v.lsn), c.image)
	return madeImage, nil
}
