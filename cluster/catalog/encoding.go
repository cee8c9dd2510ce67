package catalog

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
)

// Entries are written one after the other, sorted by key: which fields differ from the entry before, then those fields, numbers as uvarints of their difference
// where they grow. A new table's chunk costs about a dozen bytes. A piece is the version, the number of entries, and the entries.
const encodingVersion = 1

// What of an entry differs from the one before. A field that doesn't is not written.
const (
	hasBranch = 1 << iota
	hasSpace  // tablespace and database
	hasFork
	hasSegment
	hasBorn
	hasLast // differs from a birth at Born
	hasBacked
	hasToggles
)

// ErrMalformed says that bytes are no entries.
var ErrMalformed = errors.New("catalog: not a list of chunks")

// appendRecord writes a record after the one before it.
func appendRecord(b []byte, before, r *record) []byte {
	var has byte
	set := func(bit byte, differs bool) {
		if differs {
			has |= bit
		}
	}
	set(hasBranch, r.branch != before.branch)
	set(hasSpace, r.spc != before.spc || r.db != before.db)
	set(hasFork, r.fork != before.fork)
	set(hasSegment, r.segment != 0)
	set(hasBorn, r.born != before.born)
	set(hasLast, r.last != r.born<<1)
	set(hasBacked, r.from != before.from || r.to != before.to)
	set(hasToggles, r.damaged != 0 || r.unproven != 0)
	b = append(b, has)
	if has&hasBranch != 0 {
		b = binary.AppendUvarint(b, uint64(r.branch))
	}
	if has&hasSpace != 0 {
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(r.spc)), uint64(r.db))
	}
	b = binary.AppendVarint(b, int64(r.rel)-int64(before.rel))
	if has&hasFork != 0 {
		b = append(b, r.fork)
	}
	if has&hasSegment != 0 {
		b = binary.AppendUvarint(b, uint64(r.segment))
	}
	if has&hasBorn != 0 {
		b = binary.AppendVarint(b, int64(r.born-before.born))
	}
	if has&hasLast != 0 {
		b = binary.AppendUvarint(b, r.last)
	}
	if has&hasBacked != 0 {
		b = binary.AppendVarint(binary.AppendVarint(b, int64(r.from-before.from)), int64(r.to-before.to))
	}
	if has&hasToggles != 0 {
		b = append(b, r.damaged, r.unproven)
	}
	return b
}

// readRecord reads what appendRecord wrote.
func readRecord(in io.ByteReader, before *record) (r record, err error) {
	has, err := in.ReadByte()
	if err != nil {
		return r, err
	}
	unsigned := func(limit uint64) (n uint64) {
		if err == nil {
			if n, err = binary.ReadUvarint(in); err == nil && n > limit {
				err = fmt.Errorf("%w: %d, at most %d is possible", ErrMalformed, n, limit)
			}
		}
		return n
	}
	signed := func() (n uint64) {
		if err == nil {
			var v int64
			v, err = binary.ReadVarint(in)
			n = uint64(v)
		}
		return n
	}
	single := func() (n byte) {
		if err == nil {
			n, err = in.ReadByte()
		}
		return n
	}
	r = record{branch: before.branch, spc: before.spc, db: before.db, fork: before.fork, born: before.born, from: before.from, to: before.to}
	if has&hasBranch != 0 {
		r.branch = uint32(unsigned(math.MaxUint32))
	}
	if has&hasSpace != 0 {
		r.spc, r.db = uint32(unsigned(math.MaxUint32)), uint32(unsigned(math.MaxUint32))
	}
	rel := uint64(before.rel) + signed()
	if rel > math.MaxUint32 {
		return r, cmp.Or(err, fmt.Errorf("%w: relation %d", ErrMalformed, rel))
	}
	r.rel = uint32(rel)
	if has&hasFork != 0 {
		r.fork = single()
	}
	if has&hasSegment != 0 {
		r.segment = uint32(unsigned(math.MaxUint32))
	}
	if has&hasBorn != 0 {
		r.born += signed()
	}
	r.last = r.born << 1
	if has&hasLast != 0 {
		r.last = unsigned(math.MaxUint64)
	}
	if has&hasBacked != 0 {
		r.from += signed()
		r.to += signed()
	}
	if has&hasToggles != 0 {
		r.damaged, r.unproven = single(), single()
	}
	return r, err
}

// Batch gathers reports until they are proposed. The zero Batch is empty.
type Batch struct{ entries map[Key]Entry }

// Add merges a report into the batch.
func (b *Batch) Add(e Entry) {
	if b.entries == nil {
		b.entries = map[Key]Entry{}
	}
	if have, ok := b.entries[e.Key]; ok {
		e = have.Merge(e)
	}
	b.entries[e.Key] = e
}

// Len counts the chunks of which there are reports.
func (b *Batch) Len() int { return len(b.entries) }

// Encode packs all reports into pieces of at most limit bytes each (at least one report a piece), as one command of the log takes them.
func (b *Batch) Encode(limit int) [][]byte {
	keys := slices.SortedFunc(maps.Keys(b.entries), Key.Compare)
	var pieces [][]byte
	for len(keys) > 0 {
		var body []byte
		before, n := record{}, 0
		for _, k := range keys {
			r := pack(b.entries[k])
			longer := appendRecord(body, &before, &r)
			if n > 0 && len(longer)+1+binary.MaxVarintLen64 > limit {
				break
			}
			body, before = longer, r
			n++
		}
		pieces = append(pieces, append(binary.AppendUvarint([]byte{encodingVersion}, uint64(n)), body...))
		keys = keys[n:]
	}
	return pieces
}

// Decode reads a piece that Encode made, or all that WriteTo wrote.
func Decode(in io.ByteReader) ([]Entry, error) {
	var out []Entry
	err := decode(in, func(r record) { out = append(out, r.entry()) })
	return out, err
}

func decode(in io.ByteReader, each func(record)) error {
	version, err := in.ReadByte()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if version != encodingVersion {
		return fmt.Errorf("catalog: list of chunks has version %d, this release knows %d: run the newer release on this node", version, encodingVersion)
	}
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	var before record
	for i := range n {
		r, err := readRecord(in, &before)
		if err != nil {
			return fmt.Errorf("%w: chunk %d of %d: %w", ErrMalformed, i, n, err)
		}
		if i > 0 && before.key().Compare(r.key()) >= 0 {
			return fmt.Errorf("%w: chunk %d of %d is out of order", ErrMalformed, i, n)
		}
		each(r)
		before = r
	}
	return nil
}

// WriteTo writes the whole catalog, as a snapshot takes it.
func (c *Catalog) WriteTo(w io.Writer) (int64, error) {
	out := bufio.NewWriterSize(w, 1<<16)
	head := binary.AppendUvarint([]byte{encodingVersion}, uint64(c.n))
	written := int64(len(head))
	if _, err := out.Write(head); err != nil {
		return 0, err
	}
	var before record
	var buf []byte
	for _, block := range c.blocks {
		for i := range block {
			buf = appendRecord(buf[:0], &before, &block[i])
			before = block[i]
			written += int64(len(buf))
			if _, err := out.Write(buf); err != nil {
				return 0, err
			}
		}
	}
	return written, out.Flush()
}

// Read reads a whole catalog.
func Read(in io.ByteReader) (*Catalog, error) {
	c := &Catalog{}
	block := make([]record, 0, blockRecords)
	cut := func() {
		if len(block) > 0 {
			c.blocks = append(c.blocks, append(make([]record, 0, len(block)), block...))
			c.n += len(block)
			block = block[:0]
		}
	}
	err := decode(in, func(r record) {
		if block = append(block, r); len(block) == blockRecords {
			cut()
		}
	})
	cut()
	return c, err
}
