package waldump

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"everpage/wal/pg"
)

var (
	lineForm = regexp.MustCompile(`^rmgr: (\S+) +len \(rec/tot\): +(\d+)/ *(\d+), tx: +(\d+), lsn: ([0-9A-F]+/[0-9A-F]+), prev ([0-9A-F]+/[0-9A-F]+), desc: (.*)$`)
	nameForm = regexp.MustCompile(`^(UNKNOWN \([0-9a-f]+\)|[^ ,]+)`)
	refsForm = regexp.MustCompile(`(?:, blkref #\d+: rel \d+/\d+/\d+ (?:fork \w+ )?blk \d+(?: FPW(?: for WAL verification)?)?)+$`)
	refForm  = regexp.MustCompile(`, blkref #(\d+): rel (\d+)/(\d+)/(\d+) (?:fork (\w+) )?blk (\d+)( FPW(?: for WAL verification)?)?`)
)

// Parse reads a line that pg_waldump 15 or AppendText printed. Fields that these don't print stay zero.
func Parse(line string) (Entry, error) {
	m := lineForm.FindStringSubmatch(strings.TrimRight(line, "\n"))
	if m == nil {
		return Entry{}, fmt.Errorf("not a line of pg_waldump: %q", line)
	}
	var p numbers
	e := Entry{
		Rmgr: m[1], Record: nameForm.FindString(m[7]), Length: p.u32(m[2]), Total: p.u32(m[3]), XID: p.u32(m[4]),
		Start: p.lsn(m[5]), Prev: p.lsn(m[6]),
	}
	for _, r := range refForm.FindAllStringSubmatch(refsForm.FindString(m[7]), -1) {
		ref := BlockRef{ID: uint8(p.u32(r[1])), Spc: p.u32(r[2]), DB: p.u32(r[3]), Rel: p.u32(r[4]), Fork: r[5], Block: p.u32(r[6])}
		if ref.Fork == "" {
			ref.Fork = pg.MainFork.String()
		}
		if r[7] != "" {
			ref.Image = &ImageRef{Apply: r[7] == " FPW"}
		}
		e.Blocks = append(e.Blocks, ref)
	}
	if p.err != nil {
		return Entry{}, fmt.Errorf("%w in %q", p.err, line)
	}
	return e, nil
}

// numbers remembers the first number that can't be read.
type numbers struct{ err error }

func (p *numbers) u32(s string) uint32 {
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil && p.err == nil {
		p.err = err
	}
	return uint32(v)
}

func (p *numbers) lsn(s string) pg.LSN {
	l, err := pg.ParseLSN(s)
	if err != nil && p.err == nil {
		p.err = err
	}
	return l
}

// Diff tells in what e differs from what pg_waldump says of the same record; "" if in nothing. It compares what pg_waldump prints of every record:
// resource manager, lengths, tx, lsn, prev, the record's name, and each block reference with its fork and image.
func (e *Entry) Diff(theirs *Entry) string {
	var d []string
	differ := func(what string, ours, theirs any) {
		if ours != theirs {
			d = append(d, fmt.Sprintf("%s %v, want %v", what, ours, theirs))
		}
	}
	differ("rmgr", e.Rmgr, theirs.Rmgr)
	differ("record", e.Record, theirs.Record)
	differ("length", e.Length, theirs.Length)
	differ("total length", e.Total, theirs.Total)
	differ("tx", e.XID, theirs.XID)
	differ("lsn", e.Start, theirs.Start)
	differ("prev", e.Prev, theirs.Prev)
	differ("number of blocks", len(e.Blocks), len(theirs.Blocks))
	for i := 0; i < min(len(e.Blocks), len(theirs.Blocks)); i++ {
		differ(fmt.Sprintf("block reference %d", i), e.Blocks[i].printed(), theirs.Blocks[i].printed())
	}
	return strings.Join(d, "; ")
}

// printed is the part of a block reference that pg_waldump prints.
func (r *BlockRef) printed() string {
	image := "no image"
	if r.Image != nil {
		image = fmt.Sprintf("image, applied: %t", r.Image.Apply)
	}
	return fmt.Sprintf("#%d %d/%d/%d %s %d %s", r.ID, r.Spc, r.DB, r.Rel, r.Fork, r.Block, image)
}
