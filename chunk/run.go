package chunk

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"sync/atomic"

	"everpage/wal/pg"
)

// run holds the newest versions in memory until they become a table. One goroutine at a time adds (under the store's lock), any number read
// without locks: entries and nodes are written before an atomic store publishes them, and never change afterwards.
//
// For each branch LSNs never decrease within a run: a writer that goes back gets a new run. So an object's entries are a stack in LSN order.
type run struct {
	mem          *runMemory
	states       int // that it is part of; under iterators.mu
	pages, small table
	entries      [maxEntrySlabs]*[entrySlab]entry
	nentries     uint32
	slabs        [maxValueSlabs][]byte
	nslabs       int
	free         []byte // what is left of slab number filling
	filling      int
	slabBytes    int
	size         atomic.Int64

	// overlapping is set before the first entry that is not newer than everything in older runs and tables of its branch: then readers must
	// look into all of them, else they may stop at the first base that they meet.
	overlapping atomic.Bool
	resumed     bool             // a second writer of a branch went on: other versions may lie between those of the first and its own
	progress    []branchProgress // set when the run is frozen
	cover       []pair           // coverage that has changed, in key order; set when the run is frozen
}

const (
	entrySlab     = 4096
	maxEntrySlabs = 1024
	nodeSlab      = 4096
	maxNodeSlabs  = 1024
	maxValueSlabs = 2048
	maxValue      = 1<<28 - 1 // bytes of one value
)

// entry is one version. Entry numbers count from 1; 0 is none.
//
// Every laneStep-th entry of an object stands in its fast lane, too: jump leads to an older one of the lane such that a search is logarithmic
// (skew-binary jump pointers).
type entry struct {
	lsn   pg.LSN
	value valueRef
	older uint32
	jump  uint32 // in the lane: an older entry of the lane
	depth uint32 // in the lane: how many entries of the lane are older
	node  uint32 // whose it is: its number in its table, with smallNode where that is the small one
}

const laneStep = 8

const smallNode = 1 << 31

// valueRef is where a value lies: kind << 59 | slab << 48 | offset << 28 | length. kind is the value's first byte.
type valueRef uint64

func (v valueRef) kind() uint8    { return uint8(v >> 59) }
func (v valueRef) length() uint32 { return uint32(v & (1<<28 - 1)) }

// node is one object with its newest entry.
type node struct {
	prefix prefix
	chain  uint32 // the next node of the bucket, counted from 1
	head   atomic.Uint32
	count  uint32 // of entries; the writer's only
	lane   uint32 // the newest entry in the lane; the writer's only
}

// table finds nodes by prefix.
type table struct {
	buckets []atomic.Uint32
	nodes   [maxNodeSlabs]*[nodeSlab]node
	n       atomic.Uint32
}

func newRun(runBytes int64, mem *runMemory) *run {
	r := &run{mem: mem, slabBytes: int(min(1<<20, max(runBytes/4, 32<<10)))}
	n := 1 << max(6, bits.Len64(uint64(runBytes/256)))
	r.pages.buckets = mem.bucket(n)
	r.small.buckets = mem.bucket(max(64, n/2))
	return r
}

func (r *run) table(p *prefix) *table {
	if p.small() {
		return &r.small
	}
	return &r.pages
}

// full tells that nothing more may be added, whatever its size.
func (r *run) full() bool {
	return r.nentries >= entrySlab*maxEntrySlabs-1 || r.nslabs >= maxValueSlabs-1 ||
		r.pages.n.Load() >= nodeSlab*maxNodeSlabs-1 || r.small.n.Load() >= nodeSlab*maxNodeSlabs-1
}

func (r *run) empty() bool { return r.nentries == 0 }

func (p *prefix) hash() uint64 {
	a := binary.LittleEndian.Uint64(p[0:])
	b := binary.LittleEndian.Uint64(p[8:])
	c := binary.LittleEndian.Uint64(p[16:])
	h1, l1 := bits.Mul64(a^0x9E3779B97F4A7C15, b^0xD6E8FEB86659FD93)
	h2, l2 := bits.Mul64(h1^l1^0xA0761D6478BD642F, c^0xE7037ED1A0B428DB)
	return h2 ^ l2
}

// alloc makes room for a value of n bytes.
func (r *run) alloc(n int) (buf []byte, ref valueRef) {
	if n > len(r.free) {
		if n > r.slabBytes/4 {
			r.slabs[r.nslabs] = make([]byte, n)
			r.nslabs++
			r.size.Add(int64(n))
			return r.slabs[r.nslabs-1], valueRef(r.nslabs-1)<<48 | valueRef(n)
		}
		r.slabs[r.nslabs] = r.mem.value(r.slabBytes)
		r.free, r.filling = r.slabs[r.nslabs], r.nslabs
		r.nslabs++
	}
	off := r.slabBytes - len(r.free)
	buf = r.free[:n:n]
	r.free = r.free[n:]
	r.size.Add(int64(n))
	return buf, valueRef(r.filling)<<48 | valueRef(off)<<28 | valueRef(n)
}

func (r *run) value(ref valueRef) []byte {
	off := ref >> 28 & (1<<20 - 1)
	return r.slabs[ref>>48&(1<<11-1)][off : off+ref&(1<<28-1)]
}

func (r *run) entry(i uint32) *entry { return &r.entries[(i-1)/entrySlab][(i-1)%entrySlab] }

func (t *table) node(i uint32) *node { return &t.nodes[(i-1)/nodeSlab][(i-1)%nodeSlab] }

func (t *table) find(p *prefix, h uint64) (*node, uint32) {
	for i := t.buckets[h&uint64(len(t.buckets)-1)].Load(); i != 0; {
		n := t.node(i)
		if n.prefix == *p {
			return n, i
		}
		i = n.chain
	}
	return nil, 0
}

// push adds the newest version of an object, whose prefix has the hash h. kind is below 32.
func (r *run) push(p *prefix, h uint64, kind uint8, lsn pg.LSN, ref valueRef) {
	t := r.table(p)
	n, number := t.find(p, h)
	fresh := n == nil
	if fresh {
		k := t.n.Load()
		number = k + 1
		if t.nodes[k/nodeSlab] == nil {
			t.nodes[k/nodeSlab] = r.mem.node()
		}
		n = &t.nodes[k/nodeSlab][k%nodeSlab]
		n.prefix, n.count, n.lane = *p, 0, 0
		n.head.Store(0)
	}
	i := r.nentries
	if r.entries[i/entrySlab] == nil {
		r.entries[i/entrySlab] = r.mem.entry()
	}
	r.nentries++
	e := &r.entries[i/entrySlab][i%entrySlab]
	if t == &r.small {
		number |= smallNode
	}
	*e = entry{lsn: lsn, value: ref | valueRef(kind)<<59, older: n.head.Load(), node: number}
	if n.count%laneStep == 0 {
		if n.lane != 0 {
			r.jump(e, n.lane)
		}
		n.lane = i + 1
	}
	n.count++
	n.head.Store(i + 1)
	r.size.Add(32)
	if fresh {
		b := &t.buckets[h&uint64(len(t.buckets)-1)]
		n.chain = b.Load()
		k := t.n.Add(1)
		b.Store(k)
		r.size.Add(48)
	}
}

// jump sets the jump of e, which comes on top of the lane's entry number top.
func (r *run) jump(e *entry, top uint32) {
	o := r.entry(top)
	e.depth, e.jump = o.depth+1, top
	if o.jump != 0 {
		if j := r.entry(o.jump); j.jump != 0 && o.depth-j.depth == j.depth-r.entry(j.jump).depth {
			e.jump = j.jump
		}
	}
}

// seek finds an object's newest entry at or below lsn.
func (r *run) seek(p *prefix, h uint64, lsn pg.LSN) uint32 {
	n, _ := r.table(p).find(p, h)
	if n == nil {
		return 0
	}
	return r.descend(n.head.Load(), lsn)
}

func (r *run) descend(i uint32, lsn pg.LSN) uint32 {
	for i != 0 {
		e := r.entry(i)
		if e.lsn <= lsn {
			return i
		}
		if e.jump != 0 && r.entry(e.jump).lsn > lsn {
			i = e.jump
		} else {
			i = e.older
		}
	}
	return 0
}

// within lists the small objects with lo <= prefix < hi in key order.
func (t *table) within(lo, hi *prefix) []*node {
	var out []*node
	for i := uint32(1); i <= t.n.Load(); i++ {
		if n := t.node(i); n.prefix.compare(lo) >= 0 && n.prefix.compare(hi) < 0 {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(x, y *node) int { return x.prefix.compare(&y.prefix) })
	return out
}
