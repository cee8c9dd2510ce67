// Package catalog is the inventory of all chunks that a cluster agrees on: it tells a chunk that is missing from one that never was. It holds no page and is pure:
// the same changes make the same catalog on every node, in whatever order and however often they are reported.
package catalog

import (
	"cmp"
	"iter"
	"slices"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Key names a chunk of one branch.
type Key struct {
	Branch uint32
	placement.Chunk
}

// Compare orders by branch, then as chunks are.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Branch, o.Branch), k.Chunk.Compare(o.Chunk))
}

// Entry is what is known of a chunk, or what one report adds. What a report doesn't know it leaves zero.
//
// Reports are merged field by field so that order and repetition don't matter: each field only ever grows in an order of its own. Which replicas a chunk has of its
// own is not here but in placement.Layout: few have any.
type Entry struct {
	Key
	Born Birth
	// Last is when the chunk was last born or dropped: a number may be used again. The latest event holds.
	Last Event
	// Backed is the interval that the store has. The report that reaches furthest holds.
	Backed Interval
	// Damaged and Unproven count changes: odd is yes. Whoever reports one names the next number, so that owners which report the same agree.
	Damaged, Unproven Toggle
}

// Birth is the LSN with which a chunk began; the earliest report holds. 0 is unknown.
type Birth pg.LSN

// Event is a birth or a drop at an LSN. Of both at the same LSN the drop holds.
type Event uint64

// BornAt is the event of a birth. LSNs have a bit to spare: WAL ends at 2^63.
func BornAt(l pg.LSN) Event { return Event(l) << 1 }

// DroppedAt is the event of a drop.
func DroppedAt(l pg.LSN) Event { return Event(l)<<1 | 1 }

// LSN is when it was.
func (e Event) LSN() pg.LSN { return pg.LSN(e >> 1) }

// Dropped tells whether it was a drop.
func (e Event) Dropped() bool { return e&1 == 1 }

// Interval is of LSNs, (From, To].
type Interval struct{ From, To pg.LSN }

// Toggle is a yes or no that changes: odd is yes. It stays yes once it can't be counted any further.
type Toggle uint8

// On tells whether it is yes.
func (t Toggle) On() bool { return t&1 == 1 }

// Set is the toggle with which a change to on is reported.
func (t Toggle) Set(on bool) Toggle {
	if t.On() == on || t == 255 {
		return t
	}
	return t + 1
}

// Merge joins two reports of one chunk.
func (e Entry) Merge(o Entry) Entry {
	if e.Born == 0 || o.Born != 0 && o.Born < e.Born {
		e.Born = o.Born
	}
	e.Last = max(e.Last, o.Last)
	if o.Backed.To > e.Backed.To || o.Backed.To == e.Backed.To && o.Backed.From < e.Backed.From {
		e.Backed = o.Backed
	}
	e.Damaged, e.Unproven = max(e.Damaged, o.Damaged), max(e.Unproven, o.Unproven)
	return e
}

// record is an entry as it is kept: 56 bytes, where Entry's fields would be padded to 72.
type record struct {
	branch, spc, db, rel, segment uint32
	fork, damaged, unproven       uint8
	born, last, from, to          uint64
}

func pack(e Entry) record {
	return record{e.Branch, uint32(e.Spc), uint32(e.DB), uint32(e.Rel), e.Segment, uint8(e.Fork), uint8(e.Damaged), uint8(e.Unproven),
		uint64(e.Born), uint64(e.Last), uint64(e.Backed.From), uint64(e.Backed.To)}
}

func (r *record) key() Key {
	return Key{r.branch, placement.Chunk{
		RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: pg.Oid(r.spc), DB: pg.Oid(r.db), Rel: pg.Oid(r.rel)}, Fork: pg.ForkNumber(r.fork)}, Segment: r.segment}}
}

func (r *record) entry() Entry {
	return Entry{r.key(), Birth(r.born), Event(r.last), Interval{pg.LSN(r.from), pg.LSN(r.to)}, Toggle(r.damaged), Toggle(r.unproven)}
}

// blockRecords bounds how much a change copies.
const blockRecords = 256

// Catalog is a set of entries by key. It never changes: With makes the next one, which shares all blocks that the changes don't touch. The zero Catalog is empty.
type Catalog struct {
	blocks [][]record // each sorted and not empty, all of them in order
	n      int
}

// Len counts the chunks.
func (c *Catalog) Len() int { return c.n }

// Get finds a chunk.
func (c *Catalog) Get(k Key) (Entry, bool) {
	b := c.block(k)
	if b == len(c.blocks) {
		return Entry{}, false
	}
	i, ok := find(c.blocks[b], k)
	if !ok {
		return Entry{}, false
	}
	return c.blocks[b][i].entry(), true
}

// block is the first whose last key is not below k.
func (c *Catalog) block(k Key) int {
	b, _ := slices.BinarySearchFunc(c.blocks, k, func(b []record, k Key) int { return b[len(b)-1].key().Compare(k) })
	return b
}

func find(b []record, k Key) (int, bool) {
	return slices.BinarySearchFunc(b, k, func(r record, k Key) int { return r.key().Compare(k) })
}

// All walks the entries from a key on, in order.
func (c *Catalog) All(from Key) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		b := c.block(from)
		if b == len(c.blocks) {
			return
		}
		i, _ := find(c.blocks[b], from)
		for ; b < len(c.blocks); b, i = b+1, 0 {
			for ; i < len(c.blocks[b]); i++ {
				if !yield(c.blocks[b][i].entry()) {
					return
				}
			}
		}
	}
}

// With is the catalog with reports merged into it. They are sorted by key, each key once, as Decode gives them.
func (c *Catalog) With(reports []Entry) *Catalog {
	next := &Catalog{blocks: make([][]record, 0, len(c.blocks)+len(reports)/blockRecords+1), n: c.n}
	rest := reports
	for b, block := range c.blocks {
		take := len(rest)
		if b < len(c.blocks)-1 { // the last block takes all that is left
			last := block[len(block)-1].key()
			take, _ = slices.BinarySearchFunc(rest, last, func(e Entry, k Key) int {
				if e.Key.Compare(k) <= 0 {
					return -1
				}
				return 1
			})
		}
		if take == 0 {
			next.blocks = append(next.blocks, block)
			continue
		}
		merged := mergeBlock(block, rest[:take])
		next.n += len(merged) - len(block)
		next.blocks = appendBlocks(next.blocks, merged)
		rest = rest[take:]
	}
	if len(c.blocks) == 0 && len(rest) > 0 {
		merged := mergeBlock(nil, rest)
		next.n += len(merged)
		next.blocks = appendBlocks(next.blocks, merged)
	}
	return next
}

func mergeBlock(block []record, reports []Entry) []record {
	out := make([]record, 0, len(block)+len(reports))
	i := 0
	for _, e := range reports {
		for i < len(block) && block[i].key().Compare(e.Key) < 0 {
			out = append(out, block[i])
			i++
		}
		if i < len(block) && block[i].key() == e.Key {
			e = block[i].entry().Merge(e)
			i++
		}
		out = append(out, pack(e))
	}
	return append(out, block[i:]...)
}

// appendBlocks cuts records into blocks of their own memory: none larger than allowed, none kept alive by its neighbour.
func appendBlocks(blocks [][]record, records []record) [][]record {
	for parts := (len(records) + blockRecords - 1) / blockRecords; parts > 0; parts-- {
		n := len(records) / parts
		blocks = append(blocks, append(make([]record, 0, n), records[:n]...))
		records = records[n:]
	}
	return blocks
}

// Without is the catalog without the chunks for which forget says so: those of a branch that is gone, or that were dropped below the horizon.
func (c *Catalog) Without(forget func(Entry) bool) *Catalog {
	next := &Catalog{}
	gone := func(r record) bool { return forget(r.entry()) }
	for _, block := range c.blocks {
		if !slices.ContainsFunc(block, gone) {
			next.blocks = append(next.blocks, block)
			next.n += len(block)
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(block), gone)
		next.blocks = appendBlocks(next.blocks, kept)
		next.n += len(kept)
	}
	return next
}
