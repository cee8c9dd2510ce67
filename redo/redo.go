// Package redo knows what every WAL record does. For each resource manager it has two functions side by side:
// touch tells all that a record changes, including what no block reference names, and apply makes the new page from the old one.
//
// Redo is pure: a page's next version depends on its last version and the record alone, never on another page, a clock or a file.
package redo

import (
	"everpage/wal"
	"everpage/wal/pg"
)

// Delta is what one record says about one page: the record trimmed to that page. It is what the store keeps, encoded, and what Apply takes.
type Delta struct {
	Major pg.Major // a property of the branch, not encoded
	LSN   pg.LSN   // the record's end; the version's LSN, not encoded

	Rmgr wal.Rmgr
	Info uint8
	XID  pg.TransactionID

	// Part says which role the page plays: the ID of its block reference (0..32), or one of the Part constants where no reference names it.
	Part uint8
	Key  pg.PageKey // the page itself; not encoded
	// HintLSN tells that data checksums or wal_log_hints were on, so that a record that only sets hint bits moves the page's LSN
	// (XLogHintBitIsNeeded). Only Heap2/VISIBLE asks.
	HintLSN bool
	Tags    []Tag  // the record's other block references, without their content
	Main    []byte // main data, or what the Part constant's comment says
	Data    []byte // the page's own block data
}

// Tag is a sibling block reference, which some records need to know (a btree split's right page, a gist right link, …).
type Tag struct {
	ID       uint8
	Fork     pg.ForkNumber
	Block    pg.BlockNumber
	HasImage bool // with an image that is applied
	WillInit bool
}

// Tag finds the sibling reference with this ID.
func (d *Delta) Tag(id uint8) (Tag, bool) {
	for _, t := range d.Tags {
		if t.ID == id {
			return t, true
		}
	}
	return Tag{}, false
}

// Parts that no block reference names. The numbers are part of the store's format.
const (
	PartVMClear    uint8 = 64 // a visibility map page; Main = entries of {uint32 heap block, uint8 bits to clear}, merged if the record clears several
	PartVMTruncate uint8 = 65 // the last kept visibility map page; Main = {uint32 first heap block to forget}
	PartSLRU       uint8 = 66 // an SLRU page; Main as the SLRU's own file defines it
	PartFSMTrunc   uint8 = 67 // the last kept free space map leaf page; Main = {uint32 first heap block to forget}
)

// Kind says how a page change stands to the page's earlier versions.
type Kind uint8

// The kinds of page change.
const (
	KindDelta Kind = iota // needs the version before
	KindInit              // starts from a zero page (WILL_INIT)
	KindImage             // the whole page, in Image
)

// PageChange is one page that a record changes. Exactly one is emitted per page and record.
type PageChange struct {
	Kind  Kind
	Key   pg.PageKey
	Delta Delta  // KindDelta, KindInit; borrows the record's and the Changes' memory
	Image []byte // KindImage: 8192 bytes, LSN set as XLogReadBufferForRedoExtended does, hash/gist after-image redo already done; borrowed from Changes
	// Skipped: Changes.Skip named the page, so Image, Delta.Data and Delta.Tags are left out.
	Skipped bool
	// Optional: a missing page (beyond its fork's size, or all zero) makes the change a no-op instead of an invalid-page reference:
	// visibility map and FSM changes without a reference.
	Optional bool
	// Zeroed: a missing page is made of zeros and the fork grows to hold it (RBM_ZERO_ON_ERROR): the map's page of Heap2/VISIBLE.
	Zeroed bool
}

// SizeOp is what a record does to a relation fork as a whole.
type SizeOp uint8

// The size changes.
const (
	SizeCreate   SizeOp = iota // the fork exists from now on, with no block if it did not (smgr create); leaves an existing fork as it is
	SizeTruncate               // cut to Blocks; never grows
	SizeDrop                   // the fork is gone
)

// SizeChange is one change of a fork's existence or size. Growth isn't emitted: it follows from PageChange keys (size = max(size, block+1)).
type SizeChange struct {
	Op     SizeOp
	Fork   pg.RelFork
	Blocks pg.BlockNumber
}

// Touch fills ch with all that rec changes. st is the control state just before rec; it isn't modified (ControlState.Redo does that).
// A record that nobody knows isn't an error of Touch: it is told in ch.Unproven or ch.Damaged. An error means that the record is malformed.
func Touch(rec *wal.Record, st *ControlState, ch *Changes) error {
	ch.Reset()
	ch.LSN = rec.End
	return touch(rec, st, ch)
}

// Apply changes page, which holds the version before, into the version that d makes, as the resource manager's redo routine does, and sets its LSN.
//
// Like XLogReadBufferForRedo it leaves a page alone that already bears d.LSN or a later one (changed is false then); parts that no block
// reference names and SLRU pages have no LSN and are applied always. A page of zeros is ErrNewPage, unless d starts from one.
// A delta that doesn't fit the page is an error, and the page's content is then undefined.
func Apply(page pg.Page, d *Delta, init bool) (changed bool, err error) {
	return apply(page, d, init)
}
