package chunk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"

	"everpage/redo"
	"everpage/wal/pg"
)

// toyRedo is a Redoer whose deltas mix what they bear into what the page has, so that order, repetition and loss all show.
type toyRedo struct{}

var errToy = errors.New("toy delta is malformed")

func (toyRedo) Redo(page pg.Page, key pg.PageKey, lsn pg.LSN, init bool, delta []byte) (bool, error) {
	if len(delta) < 8 {
		return false, errToy
	}
	if init {
		if !page.IsZero() {
			return false, errors.New("init on a page that is not zero")
		}
		page.Init(16)
		page.SetLower(pg.PageHeaderSize + 64)
		page.SetUpper(4096)
	} else if key.Spc != 0 {
		if page.IsNew() {
			return false, errors.New("delta on a new page")
		}
		if lsn <= page.LSN() {
			return false, nil
		}
	}
	h := fnv.New64a()
	h.Write(page[24:88])
	h.Write(delta)
	binary.LittleEndian.PutUint64(page[24+int(delta[0])%8*8:], h.Sum64())
	copy(page[5000+int(delta[1]):], delta)
	if key.Spc != 0 {
		page.SetLSN(lsn)
	}
	return true, nil
}

// op is one change of a record.
type op struct {
	kind   string
	key    pg.PageKey
	fork   pg.RelFork
	base   Base
	data   []byte
	blocks uint32
	from   redo.DatabaseDir
	to     redo.DatabaseDir
	slru   pg.SLRU
	meta   redo.MetaKind
	id     [2]uint32
	end    redo.TransactionEnd
	name   string
}

type record struct {
	start, lsn pg.LSN
	ops        []op
}

// model does what the store should, naively: it has every page as it was after every record.
type model struct {
	recs    []record
	start   pg.LSN
	pages   map[pg.PageKey][]pageState
	sizes   map[pg.RelFork][]sizeState
	metas   map[metaKey][]metaState
	commits []Commit
	points  []RestorePoint

	// now
	forks   map[pg.RelFork]*modelFork
	invalid map[pg.PageKey]bool
}

type modelFork struct {
	pages   []pg.Page
	damaged map[uint32]bool
}

type pageState struct {
	lsn  pg.LSN
	what byte // p page, d damaged, n not found
	page pg.Page
}

type sizeState struct {
	lsn    pg.LSN
	exists bool
	blocks uint32
}

type metaKey struct {
	kind redo.MetaKind
	id   [2]uint32
}

type metaState struct {
	lsn   pg.LSN
	value []byte
}

func newModel(start pg.LSN) *model {
	return &model{
		start: start, pages: map[pg.PageKey][]pageState{}, sizes: map[pg.RelFork][]sizeState{}, metas: map[metaKey][]metaState{},
		forks: map[pg.RelFork]*modelFork{}, invalid: map[pg.PageKey]bool{},
	}
}

// keyOf is the inverse of forkOf.
func keyOf(f pg.RelFork, block uint32) pg.PageKey {
	if f.Spc == 0 {
		return pg.SLRUPage(pg.SLRU(f.DB), f.Rel*pg.SLRUPagesPerSegment+block)
	}
	return pg.PageKey{RelFork: f, Block: block}
}

// run executes a record and notes what it changed.
func (m *model) run(r record) {
	m.recs = append(m.recs, r)
	touched := map[pg.PageKey]bool{}
	resized := map[pg.RelFork]bool{}
	for _, o := range r.ops {
		m.op(r, o, touched, resized)
	}
	for f := range resized {
		s := sizeState{lsn: r.lsn}
		if mf := m.forks[f]; mf != nil {
			s.exists, s.blocks = true, uint32(len(mf.pages))
		}
		m.sizes[f] = append(m.sizes[f], s)
	}
	for k := range touched {
		s := pageState{lsn: r.lsn, what: 'n'}
		f, b := forkOf(k)
		if mf := m.forks[f]; mf != nil && int(b) < len(mf.pages) {
			if mf.damaged[b] {
				s.what = 'd'
			} else {
				s.what, s.page = 'p', slices.Clone(mf.pages[b])
			}
		} else if m.invalid[k] {
			s.what = 'd'
		}
		m.pages[k] = append(m.pages[k], s)
	}
}

func (m *model) grow(f pg.RelFork, blocks uint32, touched map[pg.PageKey]bool, resized map[pg.RelFork]bool) *modelFork {
	mf := m.forks[f]
	if mf == nil {
		mf = &modelFork{damaged: map[uint32]bool{}}
		m.forks[f] = mf
		resized[f] = true
	}
	for b := uint32(len(mf.pages)); b < blocks; b++ {
		mf.pages = append(mf.pages, make(pg.Page, pg.BlockSize))
		touched[keyOf(f, b)] = true
		resized[f] = true
		if m.invalid[keyOf(f, b)] {
			mf.damaged[b] = true
		}
	}
	return mf
}

// cut is what truncation and drop do: blocks from n on are gone and references to them forgotten.
func (m *model) cut(f pg.RelFork, n uint32, touched map[pg.PageKey]bool) {
	if mf := m.forks[f]; mf != nil {
		for b := n; b < uint32(len(mf.pages)); b++ {
			delete(mf.damaged, b)
			touched[keyOf(f, b)] = true
		}
		mf.pages = mf.pages[:min(int(n), len(mf.pages))]
	}
	for k := range m.invalid {
		if kf, b := forkOf(k); kf == f && b >= n {
			delete(m.invalid, k)
			touched[k] = true
		}
	}
}

func (m *model) drop(f pg.RelFork, touched map[pg.PageKey]bool, resized map[pg.RelFork]bool) {
	m.cut(f, 0, touched)
	delete(m.forks, f)
	resized[f] = true
}

func (m *model) op(r record, o op, touched map[pg.PageKey]bool, resized map[pg.RelFork]bool) {
	f, b := forkOf(o.key)
	switch o.kind {
	case "image":
		mf := m.grow(f, b+1, touched, resized)
		copy(mf.pages[b], o.data)
		delete(mf.damaged, b)
		delete(m.invalid, o.key)
		touched[o.key] = true
	case "delta":
		mf := m.forks[f]
		has := mf != nil && int(b) < len(mf.pages)
		slru := o.key.Spc == 0
		touched[o.key] = true
		switch {
		case o.base == BaseInit:
			mf = m.grow(f, b+1, touched, resized)
			clear(mf.pages[b])
			delete(mf.damaged, b)
			delete(m.invalid, o.key)
			m.redo(mf, o.key, b, r.lsn, true, o.data)
		case slru:
			mf = m.grow(f, b+1, touched, resized)
			m.redo(mf, o.key, b, r.lsn, false, o.data)
		case o.base == BaseZeroed:
			mf = m.grow(f, b+1, touched, resized)
			m.redo(mf, o.key, b, r.lsn, mf.pages[b].IsNew(), o.data)
		case !has && o.base == BaseOptional:
		case !has:
			m.invalid[o.key] = true
			resized[f] = true
		case o.base == BaseOptional:
			if !mf.pages[b].IsNew() {
				m.redo(mf, o.key, b, r.lsn, false, o.data)
			}
		case mf.pages[b].IsNew():
			mf.damaged[b] = true
		default:
			m.redo(mf, o.key, b, r.lsn, false, o.data)
		}
	case "damaged":
		mf := m.grow(f, b+1, touched, resized)
		mf.damaged[b] = true
		touched[o.key] = true
	case "create":
		m.grow(o.fork, 0, touched, resized)
	case "extend":
		m.grow(o.fork, o.blocks, touched, resized)
	case "truncate":
		m.grow(o.fork, 0, touched, resized)
		m.cut(o.fork, o.blocks, touched)
		resized[o.fork] = true
	case "drop":
		m.drop(o.fork, touched, resized)
	case "dropdb":
		for _, f := range m.within(o.from) {
			m.drop(f, touched, resized)
		}
		m.metas[metaKey{redo.MetaRelMap, [2]uint32{o.from.Spc, o.from.DB}}] = append(m.metas[metaKey{redo.MetaRelMap, [2]uint32{o.from.Spc, o.from.DB}}], metaState{r.lsn, nil})
		m.metas[metaKey{redo.MetaDatabase, [2]uint32{o.from.Spc, o.from.DB}}] = append(m.metas[metaKey{redo.MetaDatabase, [2]uint32{o.from.Spc, o.from.DB}}], metaState{r.lsn, nil})
	case "copydb":
		for _, f := range m.within(o.to) {
			m.drop(f, touched, resized)
		}
		for _, f := range m.within(o.from) {
			src := m.forks[f]
			if src == nil {
				continue
			}
			t := f
			t.Spc, t.DB = o.to.Spc, o.to.DB
			dst := m.grow(t, uint32(len(src.pages)), touched, resized)
			resized[t] = true
			for b := range src.pages {
				copy(dst.pages[b], src.pages[b])
				if src.damaged[uint32(b)] {
					dst.damaged[uint32(b)] = true
				}
			}
		}
		for _, kind := range directoryMeta {
			v, _ := m.metaAt(metaKey{kind, [2]uint32{o.from.Spc, o.from.DB}}, r.lsn-1)
			k := metaKey{kind, [2]uint32{o.to.Spc, o.to.DB}}
			m.metas[k] = append(m.metas[k], metaState{r.lsn, v})
		}
	case "truncslru":
		for _, f := range slices.Collect(maps.Keys(m.forks)) {
			if f.Spc == 0 && f.DB == uint32(o.slru) && f.Rel < o.blocks {
				m.drop(f, touched, resized)
			}
		}
	case "meta":
		k := metaKey{o.meta, o.id}
		m.metas[k] = append(m.metas[k], metaState{r.lsn, o.data})
	case "xact":
		m.commits = append(m.commits, Commit{TransactionEnd: o.end, Start: r.start, End: r.lsn})
	case "point":
		m.points = append(m.points, RestorePoint{Name: o.name, Time: o.end.Time, Start: r.start, End: r.lsn})
	default:
		panic(o.kind)
	}
}

// within lists all forks in a directory, and those that only references name.
func (m *model) within(d redo.DatabaseDir) []pg.RelFork {
	set := map[pg.RelFork]bool{}
	for f := range m.forks {
		if f.Spc == d.Spc && f.DB == d.DB {
			set[f] = true
		}
	}
	for k := range m.invalid {
		if k.Spc == d.Spc && k.DB == d.DB {
			set[k.RelFork] = true
		}
	}
	return slices.Collect(maps.Keys(set))
}

func (m *model) redo(mf *modelFork, k pg.PageKey, b uint32, lsn pg.LSN, init bool, delta []byte) {
	if mf.damaged[b] {
		return
	}
	if init {
		clear(mf.pages[b])
	}
	if _, err := (toyRedo{}).Redo(mf.pages[b], k, lsn, init, delta); err != nil {
		mf.damaged[b] = true
	}
}

func at[T any](list []T, lsn pg.LSN, of func(T) pg.LSN) (t T, ok bool) {
	for i := len(list) - 1; i >= 0; i-- {
		if of(list[i]) <= lsn {
			return list[i], true
		}
	}
	return t, false
}

func (m *model) pageAt(k pg.PageKey, lsn pg.LSN) pageState {
	s, ok := at(m.pages[k], lsn, func(s pageState) pg.LSN { return s.lsn })
	if !ok {
		s.what = 'n'
	}
	return s
}

func (m *model) sizeAt(f pg.RelFork, lsn pg.LSN) sizeState {
	s, _ := at(m.sizes[f], lsn, func(s sizeState) pg.LSN { return s.lsn })
	return s
}

func (m *model) metaAt(k metaKey, lsn pg.LSN) ([]byte, pg.LSN) {
	s, _ := at(m.metas[k], lsn, func(s metaState) pg.LSN { return s.lsn })
	return s.value, s.lsn
}

// feed gives a record to a writer.
func feed(w *Writer, r record) error {
	for _, o := range r.ops {
		var err error
		switch o.kind {
		case "image":
			err = w.Image(o.key, r.lsn, Origin{1, 2}, o.data)
		case "delta":
			err = w.Delta(o.key, r.lsn, Origin{3, 4}, o.base, o.data)
		case "damaged":
			err = w.Damaged(o.key, r.lsn, Origin{5, 6}, "toy damage")
		case "create":
			err = w.Create(o.fork, r.lsn)
		case "extend":
			err = w.Extend(o.fork, r.lsn, o.blocks)
		case "truncate":
			err = w.Truncate(o.fork, r.lsn, o.blocks)
		case "drop":
			err = w.Drop(o.fork, r.lsn)
		case "dropdb":
			err = w.DropDatabase(o.from, r.lsn)
		case "copydb":
			err = w.CopyDatabase(o.from, o.to, r.lsn)
		case "truncslru":
			err = w.TruncateSLRU(o.slru, r.lsn, func(s uint32) bool { return s < o.blocks })
		case "meta":
			err = w.Meta(o.meta, o.id, r.lsn, o.data)
		case "xact":
			err = w.Transaction(o.end, r.start, r.lsn)
		case "point":
			err = w.RestorePoint(o.name, o.end.Time, r.start, r.lsn)
		}
		if err != nil {
			return fmt.Errorf("%s at %s: %w", o.kind, r.lsn, err)
		}
	}
	return nil
}

// generator makes records for a small world: 3 databases, few relations, 2 SLRUs.
type generator struct {
	rng *rand.Rand
	m   *model
	lsn pg.LSN
}

func (g *generator) fork() pg.RelFork {
	return pg.RelFork{
		RelFileLocator: pg.RelFileLocator{Spc: 1663 + g.rng.Uint32N(2), DB: 5 + g.rng.Uint32N(3)<<29, Rel: 16384 + g.rng.Uint32N(4)},
		Fork:           pg.ForkNumber(g.rng.IntN(3)),
	}
}

func (g *generator) db() redo.DatabaseDir {
	f := g.fork()
	return redo.DatabaseDir{Spc: f.Spc, DB: f.DB}
}

func (g *generator) key() pg.PageKey {
	if g.rng.IntN(8) == 0 {
		return pg.SLRUPage(pg.SLRU(1+g.rng.IntN(2)), g.rng.Uint32N(100))
	}
	f := g.fork()
	if mf := g.m.forks[f]; mf != nil && len(mf.pages) > 0 && g.rng.IntN(4) != 0 {
		return pg.PageKey{RelFork: f, Block: g.rng.Uint32N(uint32(len(mf.pages)))}
	}
	return pg.PageKey{RelFork: f, Block: g.rng.Uint32N(40)}
}

func (g *generator) image() pg.Page {
	p := make(pg.Page, pg.BlockSize)
	switch g.rng.IntN(5) {
	case 0: // new
		return p
	case 1: // full
		for i := range p {
			p[i] = byte(g.rng.Uint32())
		}
		p.SetUpper(8000)
		p.SetLSN(g.lsn)
		return p
	}
	p.Init(16)
	p.SetLower(pg.PageHeaderSize + 64)
	p.SetUpper(4096)
	for i := range 64 {
		p[24+i] = byte(g.rng.Uint32())
	}
	p.SetLSN(g.lsn)
	if g.rng.IntN(4) == 0 {
		p.SetLSN(g.lsn + 2000) // a torn copy's
	}
	return p
}

func (g *generator) delta() []byte {
	b := make([]byte, 8+g.rng.IntN(120))
	for i := range b {
		b[i] = byte(g.rng.Uint32())
	}
	return b
}

// base makes the record of a base import.
func (g *generator) base() {
	r := record{start: g.lsn - 8, lsn: g.lsn}
	for range 8 {
		f := g.fork()
		n := g.rng.Uint32N(20)
		r.ops = append(r.ops, op{kind: "extend", fork: f, blocks: n})
		for b := range n {
			if g.rng.IntN(3) != 0 {
				r.ops = append(r.ops, op{kind: "image", key: pg.PageKey{RelFork: f, Block: b}, data: g.image()})
			}
		}
	}
	g.m.run(r)
}

// next makes one record.
func (g *generator) next() record {
	r := record{start: g.lsn}
	g.lsn += pg.LSN(8 + 8*g.rng.IntN(60))
	if g.rng.IntN(50) == 0 {
		g.lsn += pg.LSN(8 * g.rng.IntN(packBucket/8))
	}
	r.lsn = g.lsn
	rng := g.rng
	switch n := rng.IntN(100); {
	case n < 70: // pages
		seen := map[pg.PageKey]bool{}
		for range 1 + rng.IntN(4) {
			k := g.key()
			if rng.IntN(3) == 0 { // a hot page
				k = pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}}, Block: rng.Uint32N(2)}
			}
			if seen[k] {
				continue
			}
			seen[k] = true
			o := op{kind: "delta", key: k, data: g.delta()}
			switch x := rng.IntN(40); {
			case x < 2:
				o.base = BaseInit
			case x < 4:
				o.base = BaseOptional
			case x < 5:
				o.base = BaseZeroed
			case x < 7:
				o = op{kind: "image", key: k, data: g.image()}
			case x < 8 && rng.IntN(4) == 0:
				o = op{kind: "damaged", key: k}
			case x < 9 && rng.IntN(4) == 0:
				o.data = []byte{1} // redo fails
			case x < 30:
				if mf, b := g.m.forks[k.RelFork], k.Block; k.Spc != 0 && (mf == nil || int(b) >= len(mf.pages) || mf.pages[b].IsNew()) && rng.IntN(10) != 0 {
					o.base = BaseInit // else most references would be invalid
				}
			}
			r.ops = append(r.ops, o)
		}
	case n < 74:
		r.ops = append(r.ops, op{kind: "create", fork: g.fork()})
	case n < 79:
		r.ops = append(r.ops, op{kind: "truncate", fork: g.fork(), blocks: rng.Uint32N(20)})
	case n < 83:
		for range 1 + rng.IntN(3) {
			r.ops = append(r.ops, op{kind: "drop", fork: g.fork()})
		}
	case n < 84:
		r.ops = append(r.ops, op{kind: "dropdb", from: g.db()})
	case n < 87:
		from, to := g.db(), g.db()
		if from == to {
			to.Spc = 1663 + (to.Spc-1663+1)%2
		}
		if rng.IntN(4) == 0 {
			r.ops = append(r.ops, op{kind: "dropdb", from: to})
		}
		r.ops = append(r.ops, op{kind: "copydb", from: from, to: to})
	case n < 89:
		r.ops = append(r.ops, op{kind: "truncslru", slru: pg.SLRU(1 + rng.IntN(2)), blocks: rng.Uint32N(3)})
	case n < 94:
		o := op{kind: "meta", meta: redo.MetaKind(1 + rng.IntN(5)), data: g.delta()}
		if d := g.db(); o.meta == redo.MetaRelMap || o.meta == redo.MetaDatabase {
			o.id = [2]uint32{d.Spc, d.DB}
		} else {
			o.id = [2]uint32{rng.Uint32N(4)}
		}
		if rng.IntN(3) == 0 {
			o.data = nil
		}
		r.ops = append(r.ops, o)
	case n < 99:
		r.ops = append(r.ops, op{kind: "xact", end: redo.TransactionEnd{
			Commit: rng.IntN(4) != 0, XID: 700 + rng.Uint32N(50), Time: pg.Timestamp(int64(g.lsn)+rng.Int64N(4000)-2000) * 10, Origin: uint16(rng.IntN(3)),
		}})
	default:
		r.ops = append(r.ops, op{kind: "point", name: fmt.Sprintf("point %d", rng.IntN(3)), end: redo.TransactionEnd{Time: pg.Timestamp(rng.Int64())}})
	}
	return r
}
