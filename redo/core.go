package redo

import (
	"errors"
	"fmt"

	"everpage/wal"
	"everpage/wal/pg"
)

// ErrNewPage is Apply's answer to a page that was never written, where the delta needs the version before: what PostgreSQL's recovery calls
// a reference to an invalid page.
var ErrNewPage = errors.New("the page was never initialised")

// What a manager's apply answers instead of nil where PostgreSQL's redo leaves the page's LSN alone. Neither reaches the caller of Apply.
var (
	errKeepLSN  = errors.New("page changed, its LSN stays") // the page was changed without PageSetLSN
	errNoChange = errors.New("nothing to change")           // nothing was changed
)

// UnknownRecordError tells that nobody here knows what a record does to the pages it names, or whether it does more.
type UnknownRecordError struct {
	LSN  pg.LSN // the record's end
	Rmgr wal.Rmgr
	Info uint8
	Name string // "" if not even its name is known
}

func (e *UnknownRecordError) Error() string {
	if e.Name != "" {
		return fmt.Sprintf("record %s/%s that ends at %s: redo of this resource manager is not supported", e.Rmgr, e.Name, e.LSN)
	}
	if e.Rmgr >= wal.FirstCustomRmgr {
		return fmt.Sprintf("record of custom resource manager %d with info %02X that ends at %s: only the extension that registered this ID knows its redo; "+
			"what the record changes cannot be read any more", e.Rmgr, e.Info, e.LSN)
	}
	return fmt.Sprintf("record of resource manager %s with info %02X that ends at %s is of no known type", e.Rmgr, e.Info, e.LSN)
}

// managerOf is the manager of r, nil if there is none.
func managerOf(r wal.Rmgr) *manager {
	if int(r) < len(managers) {
		return managers[r]
	}
	return nil
}

// unknown tells what is not known of a record; nil if its manager can do all.
func unknown(rec *wal.Record) error {
	m := managerOf(rec.Rmgr)
	name := ""
	if m != nil && m.name != nil {
		name = m.name(rec.Major, rec.Info&0xF0)
	}
	// A manager without touch and apply is known by name only: harmless where the record names no block.
	if name != "" && (m.touch != nil || m.apply != nil || len(rec.Blocks) == 0) {
		return nil
	}
	return &UnknownRecordError{LSN: rec.End, Rmgr: rec.Rmgr, Info: rec.Info, Name: name}
}

// known are the types of record that unknown answers nil for, whatever blocks they name: a bit for each operation, by major and manager.
var known = func() (k [pg.MajorLast - pg.MajorFirst + 1][len(managers)]uint16) {
	for major := range k {
		for r, m := range managers {
			for op := range 16 {
				if m != nil && m.name != nil && m.name(pg.MajorFirst+pg.Major(major), uint8(op<<4)) != "" && (m.touch != nil || m.apply != nil) {
					k[major][r] |= 1 << op
				}
			}
		}
	}
	return k
}()

func touch(rec *wal.Record, st *ControlState, ch *Changes) error {
	m := managerOf(rec.Rmgr)
	if i := int(rec.Major) - int(pg.MajorFirst); m != nil && uint(i) < uint(len(known)) && known[i][rec.Rmgr]>>(rec.Info>>4)&1 != 0 {
		return touchKnown(rec, st, ch, m)
	}
	if err := unknown(rec); err != nil {
		// Not even an image is trusted here: some managers go on changing a page after they restored it.
		for i := range rec.Blocks {
			ch.Damaged = append(ch.Damaged, DamagedPage{Key: rec.Blocks[i].PageKey, Err: err})
		}
		if len(rec.Blocks) == 0 {
			ch.Unproven = err
		}
		return nil
	}
	return touchKnown(rec, st, ch, m)
}

func touchKnown(rec *wal.Record, st *ControlState, ch *Changes, m *manager) error {
	for i := range rec.Blocks {
		if err := touchBlock(rec, &rec.Blocks[i], m, ch); err != nil {
			return recordError(rec, err)
		}
	}
	referenced := len(ch.Pages)
	if m.touch != nil {
		if err := m.touch(rec, st, ch); err != nil {
			return recordError(rec, err)
		}
	}
	if key, ok := changedTwice(ch.Pages, referenced); ok {
		return recordError(rec, fmt.Errorf("it names %s twice, and a page has one version for each record", key))
	}
	if m.apply == nil {
		damageDeltas(rec, ch)
	}
	return nil
}

// changedTwice finds a page that one of the block references, which come first, has in common with another change.
func changedTwice(pages []PageChange, referenced int) (key pg.PageKey, ok bool) {
	for i := 1; i < len(pages); i++ {
		for j := range min(i, referenced) {
			if pages[i].Key == pages[j].Key {
				return pages[i].Key, true
			}
		}
	}
	return pg.PageKey{}, false
}

func recordError(rec *wal.Record, err error) error {
	return fmt.Errorf("record %s/%s at %s: %w", rec.Rmgr, RecordName(rec.Major, rec.Rmgr, rec.Info), rec.Start, err)
}

// touchBlock adds what a block reference by itself says: an image to restore, or a delta.
func touchBlock(rec *wal.Record, blk *wal.Block, m *manager, ch *Changes) error {
	c := ch.addPage(rec, blk.Spc, blk.DB, blk.Rel, blk.Fork, blk.PageKey.Block)
	d := &c.Delta
	d.XID = rec.XID
	d.Part = blk.ID
	d.Main = rec.Main // managers' touch may read it, whoever keeps the page
	c.Skipped = ch.Skip != nil && ch.Skip(c.Key)
	if !blk.HasImage || !blk.Image.Apply {
		if blk.WillInit {
			c.Kind = KindInit
		}
		c.Zeroed = startsFromZeros(d)
		if !c.Skipped {
			d.Data = blk.Data
			if m.tags && len(rec.Blocks) > 1 {
				d.Tags = ch.siblings(rec, blk)
			}
		}
		return nil
	}
	c.Kind = KindImage
	if c.Skipped {
		return nil
	}
	if m.tags && len(rec.Blocks) > 1 {
		d.Tags = ch.siblings(rec, blk)
	}
	c.Image = ch.alloc(pg.BlockSize)
	img := pg.Page(c.Image)
	if err := RestoreImage(img, blk, rec.End, &ch.scratch); err != nil {
		return err
	}
	if m.afterImage != nil {
		if err := m.afterImage(img, d); err != nil {
			return fmt.Errorf("after the image of block %d: %w", blk.ID, err)
		}
	}
	return nil
}

// addPage adds a change of a page, a delta so far, in place: it is large. The key comes in parts, and its parts are stored one by one, since the processor
// waits when it reads at once what was just written in pieces.
func (c *Changes) addPage(rec *wal.Record, spc, db, rel pg.Oid, fork pg.ForkNumber, block pg.BlockNumber) *PageChange {
	n := len(c.Pages)
	if n < cap(c.Pages) {
		c.Pages = c.Pages[:n+1]
	} else {
		c.Pages = append(c.Pages, PageChange{})
	}
	p := &c.Pages[n]
	*p = PageChange{}
	d := &p.Delta
	p.Key.Spc, p.Key.DB, p.Key.Rel, p.Key.Fork, p.Key.Block = spc, db, rel, fork, block
	d.Key.Spc, d.Key.DB, d.Key.Rel, d.Key.Fork, d.Key.Block = spc, db, rel, fork, block
	d.Major, d.LSN = rec.Major, rec.End
	d.Rmgr, d.Info = rec.Rmgr, rec.Info
	return p
}

// damageDeltas turns the deltas of block references that a manager without apply has left into damaged pages.
func damageDeltas(rec *wal.Record, ch *Changes) {
	kept := ch.Pages[:0]
	for i := range ch.Pages {
		c := &ch.Pages[i]
		if c.Kind == KindImage || c.Delta.Part > wal.MaxBlockID {
			kept = append(kept, *c)
			continue
		}
		err := &UnknownRecordError{LSN: rec.End, Rmgr: rec.Rmgr, Info: rec.Info, Name: RecordName(rec.Major, rec.Rmgr, rec.Info)}
		ch.Damaged = append(ch.Damaged, DamagedPage{Key: c.Key, Err: err})
	}
	ch.Pages = kept
}

// siblings notes the record's other block references.
func (c *Changes) siblings(rec *wal.Record, self *wal.Block) []Tag {
	start := len(c.tags)
	for i := range rec.Blocks {
		b := &rec.Blocks[i]
		if b.ID != self.ID {
			c.tags = append(c.tags, Tag{ID: b.ID, Fork: b.Fork, Block: b.Block, HasImage: b.HasImage && b.Image.Apply, WillInit: b.WillInit})
		}
	}
	return c.tags[start:len(c.tags):len(c.tags)]
}

// alloc takes n bytes that live until the next Reset. Their content is undefined.
func (c *Changes) alloc(n int) []byte {
	if cap(c.arena)-len(c.arena) < n {
		// What was handed out keeps the old memory alive.
		c.arena = make([]byte, 0, max(2*cap(c.arena), n, 2*pg.BlockSize))
	}
	start := len(c.arena)
	c.arena = c.arena[:start+n]
	return c.arena[start : start+n : start+n]
}

func apply(page pg.Page, d *Delta, init bool) (bool, error) {
	if len(page) != pg.BlockSize {
		return false, fmt.Errorf("redo on a page of %d bytes, want %d", len(page), pg.BlockSize)
	}
	changed, err := applyPart(page, d, init)
	if err != nil && !errors.Is(err, ErrNewPage) {
		err = fmt.Errorf("redo of %s/%s that ends at %s, on %s (part %d): %w",
			d.Rmgr, RecordName(d.Major, d.Rmgr, d.Info), d.LSN, d.Key, d.Part, err)
	}
	return changed, err
}

func applyPart(page pg.Page, d *Delta, init bool) (bool, error) {
	switch d.Part {
	case PartVMClear:
		return vmClear(page, d)
	case PartVMTruncate:
		return vmTruncate(page, d)
	case PartFSMTrunc:
		return fsmTruncate(page, d)
	}
	m := managerOf(d.Rmgr)
	if m == nil || m.apply == nil {
		return false, errors.New("this resource manager has no redo of pages")
	}
	if d.Part == PartSLRU {
		if init {
			clear(page)
		}
		return settle(m.apply(page, d))
	}
	if d.Part > wal.MaxBlockID {
		return false, fmt.Errorf("unknown part %d", d.Part)
	}
	switch {
	case init:
		clear(page)
	case page.IsNew():
		if !startsFromZeros(d) {
			return false, ErrNewPage
		}
	case page.LSN() >= d.LSN:
		return false, nil
	}
	err := m.apply(page, d)
	if err == nil {
		page.SetLSN(d.LSN)
	}
	return settle(err)
}

// settle turns a manager's answer into Apply's.
func settle(err error) (bool, error) {
	switch err {
	case nil, errKeepLSN:
		return true, nil
	case errNoChange:
		return false, nil
	}
	return false, err
}

// Redoer redoes encoded deltas of one major. Its zero value is of no major.
type Redoer struct{ Major pg.Major }

// Redo applies an encoded delta of the record that ends at lsn (see Apply). It may be called by many goroutines at once.
func (r Redoer) Redo(page pg.Page, key pg.PageKey, lsn pg.LSN, init bool, delta []byte) (changed bool, err error) {
	d := deltas.Get().(*Delta)
	defer deltas.Put(d)
	if err := DecodeDelta(delta, d); err != nil {
		return false, fmt.Errorf("version %s of %s: %w", lsn, key, err)
	}
	d.Major, d.LSN, d.Key = r.Major, lsn, key
	changed, err = Apply(page, d, init)
	d.Main, d.Data = nil, nil
	return changed, err
}
