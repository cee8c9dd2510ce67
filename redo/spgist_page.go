package redo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"everpage/redo/page"
	"everpage/wal/pg"
)

// Flags of an SP-GiST page (SpGistPageOpaqueData.flags).
const (
	spgLeaf  = 1 << 2
	spgNulls = 1 << 3
)

const (
	spgSpecial = pg.BlockSize - 8 // where SpGistPageOpaqueData starts
	spgPageID  = 0xFF82           // SPGIST_PAGE_ID
)

// States of a tuple, in the two low bits of its first byte.
const (
	spgRedirect    = 1 // SPGIST_REDIRECT
	spgDead        = 2
	spgPlaceholder = 3

	spgStateMask = 3
)

// spgTupleHeader is the length of the header of inner and leaf tuples, up to what is aligned behind it.
//
// An inner tuple starts with {uint32: 2 bits state, 1 all the same, 13 number of nodes, 16 prefix size; uint16 size}; its prefix and its nodes,
// index tuples, follow. A leaf tuple starts with {uint32: 2 bits state, 30 size; uint16: 14 bits offset of the next in its chain, 2 flags; TID}.
const spgTupleHeader = 8

// spgDeadSize is SGDTSIZE: a tuple that stands for one that went is {as a leaf's header up to the flags; TID, uint32 xid}.
const spgDeadSize = 16

// spgOpaque is SpGistPageOpaqueData: {uint16 flags, redirections, placeholders, page id}.
type spgOpaque []byte

func (o spgOpaque) redirects() uint16        { return binary.LittleEndian.Uint16(o[2:]) }
func (o spgOpaque) placeholders() uint16     { return binary.LittleEndian.Uint16(o[4:]) }
func (o spgOpaque) setRedirects(v uint16)    { binary.LittleEndian.PutUint16(o[2:], v) }
func (o spgOpaque) setPlaceholders(v uint16) { binary.LittleEndian.PutUint16(o[4:], v) }

// count counts a new tuple that stands for one that went.
func (o spgOpaque) count(state byte) {
	switch state {
	case spgRedirect:
		o.setRedirects(o.redirects() + 1)
	case spgPlaceholder:
		o.setPlaceholders(o.placeholders() + 1)
	}
}

// spgOpaqueOf is SpGistPageGetOpaque of a page that must be an SP-GiST index's.
func spgOpaqueOf(p pg.Page) (spgOpaque, error) {
	if !p.Valid() || p.Special() != spgSpecial {
		return nil, fmt.Errorf("the page is no SP-GiST page: lower %d, upper %d, special %d", p.Lower(), p.Upper(), p.Special())
	}
	return spgOpaque(p[spgSpecial:]), nil
}

// spgInit is SpGistInitPage.
func spgInit(p pg.Page, flags uint16, nulls bool) {
	if nulls {
		flags |= spgNulls
	}
	p.Init(pg.BlockSize - spgSpecial)
	binary.LittleEndian.PutUint16(p[spgSpecial:], flags)
	binary.LittleEndian.PutUint16(p[spgSpecial+6:], spgPageID)
}

// spgCutLeaf cuts the leaf tuple at the start of b off. Nothing is aligned.
func spgCutLeaf(b []byte) (tuple, rest []byte, err error) {
	if len(b) < spgTupleHeader {
		return nil, nil, fmt.Errorf("%d bytes are too few for a leaf tuple", len(b))
	}
	return spgCut(b, int(binary.LittleEndian.Uint32(b)>>2))
}

// spgCutInner cuts the inner tuple at the start of b off.
func spgCutInner(b []byte) (tuple, rest []byte, err error) {
	if len(b) < spgTupleHeader {
		return nil, nil, fmt.Errorf("%d bytes are too few for an inner tuple", len(b))
	}
	return spgCut(b, int(binary.LittleEndian.Uint16(b[4:])))
}

func spgCut(b []byte, size int) (tuple, rest []byte, err error) {
	if size < spgTupleHeader || size > len(b) {
		return nil, nil, fmt.Errorf("a tuple of %d bytes in %d bytes", size, len(b))
	}
	return b[:size:size], b[size:], nil
}

// spgDeadTuple is spgFormDeadTuple. Only a redirection points anywhere, and bears the transaction that made it.
func spgDeadTuple(state byte, to tupleID, xid pg.TransactionID) (t [spgDeadSize]byte) {
	binary.LittleEndian.PutUint32(t[:], spgDeadSize<<2|uint32(state))
	if state != spgRedirect {
		to, xid = invalidTID, 0
	}
	copy(t[6:], to[:])
	binary.LittleEndian.PutUint32(t[12:], xid)
	return t
}

// spgItem is the tuple at an offset of a page, which holds a header at least.
func spgItem(p pg.Page, off pg.OffsetNumber) ([]byte, error) {
	tuple, err := page.Tuple(p, off)
	if err == nil && len(tuple) < spgTupleHeader {
		err = fmt.Errorf("%w: item %d of %d bytes is shorter than a tuple's header", page.ErrItem, off, len(tuple))
	}
	return tuple, err
}

// spgReplace puts another tuple in an item's place.
func spgReplace(p pg.Page, tuple []byte, off pg.OffsetNumber) error {
	if err := page.IndexDelete(p, off); err != nil {
		return err
	}
	return addItem(p, tuple, off)
}

// spgAddOrReplace is addOrReplaceTuple: the tuple goes behind the last item, or in the place of a placeholder.
func spgAddOrReplace(p pg.Page, o spgOpaque, tuple []byte, off pg.OffsetNumber) error {
	if int(off) > p.ItemCount() {
		return addItem(p, tuple, off)
	}
	old, err := spgItem(p, off)
	if err != nil {
		return err
	}
	if old[0]&spgStateMask != spgPlaceholder || o.placeholders() == 0 {
		return fmt.Errorf("item %d to be replaced is in state %d, on a page of %d placeholders", off, old[0]&spgStateMask, o.placeholders())
	}
	o.setPlaceholders(o.placeholders() - 1)
	return spgReplace(p, tuple, off)
}

// spgSetLink is spgUpdateNodeLink: node n of the inner tuple at an offset leads to another tuple.
func spgSetLink(p pg.Page, off pg.OffsetNumber, n int, to tupleID) error {
	tuple, err := spgItem(p, off)
	if err != nil {
		return err
	}
	bits := binary.LittleEndian.Uint32(tuple)
	nodes, prefix := int(bits>>3&0x1FFF), int(bits>>16)
	if n >= nodes || prefix > len(tuple)-spgTupleHeader {
		return fmt.Errorf("node %d of inner tuple %d, which has %d and a prefix of %d bytes", n, off, nodes, prefix)
	}
	rest := tuple[spgTupleHeader+prefix:]
	for range n {
		size, err := indexTupleSize(rest)
		if err != nil {
			return fmt.Errorf("inner tuple %d: %w", off, err)
		}
		rest = rest[size:]
	}
	if len(rest) < indexTupleHeader {
		return fmt.Errorf("inner tuple %d ends before its node %d", off, n)
	}
	copy(rest, to[:])
	return nil
}

// spgMultiDelete is spgPageIndexMultiDelete: it puts tuples that stand for them in the place of others; the first one named may get another state
// than the rest, and is the one that a redirection stands for. offsets are packed as in a record, in any order.
func spgMultiDelete(p pg.Page, o spgOpaque, offsets []byte, first, rest byte, to tupleID, xid pg.TransactionID) error {
	if len(offsets) == 0 {
		return nil
	}
	if len(offsets)%2 != 0 || len(offsets)/2 > page.MaxIndexTuples {
		return fmt.Errorf("%d bytes are no list of items to delete", len(offsets))
	}
	var scratch [page.MaxIndexTuples]pg.OffsetNumber
	sorted := page.DecodeOffsets(scratch[:0], offsets)
	firstOff := sorted[0]
	slices.Sort(sorted)
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return fmt.Errorf("item %d is to be deleted twice", sorted[i])
		}
	}
	if err := page.IndexMultiDelete(p, sorted); err != nil {
		return err
	}
	firstTuple, restTuple := spgDeadTuple(first, to, xid), spgDeadTuple(rest, to, xid)
	for _, off := range sorted {
		tuple, state := &restTuple, rest
		if off == firstOff {
			tuple, state = &firstTuple, first
		}
		if err := addItem(p, tuple[:], off); err != nil {
			return err
		}
		o.count(state)
	}
	return nil
}

// spgRelink makes off the next of the leaf tuple at another offset in its chain (SGLT_SET_NEXTOFFSET).
func spgRelink(p pg.Page, from, to pg.OffsetNumber) error {
	tuple, err := spgItem(p, from)
	if err != nil {
		return err
	}
	if to > 0x3FFF {
		return fmt.Errorf("%w: offset %d in a chain", page.ErrOffset, to)
	}
	info := binary.LittleEndian.Uint16(tuple[4:])
	binary.LittleEndian.PutUint16(tuple[4:], info&0xC000|to)
	return nil
}

// spgVacuumRedirects is the part of spgRedoVacuumRedirect that changes the page: redirections become placeholders, and the placeholders
// from first on, 0 for none, go.
func spgVacuumRedirects(p pg.Page, o spgOpaque, offsets []byte, first pg.OffsetNumber) error {
	n := uint16(len(offsets) / 2)
	if o.redirects() < n {
		return fmt.Errorf("%d redirections to clean of %d", n, o.redirects())
	}
	for ; len(offsets) > 0; offsets = offsets[2:] {
		off := binary.LittleEndian.Uint16(offsets)
		tuple, err := spgItem(p, off)
		if err != nil {
			return err
		}
		if len(tuple) < spgDeadSize || tuple[0]&spgStateMask != spgRedirect {
			return fmt.Errorf("item %d of %d bytes is no redirection: state %d", off, len(tuple), tuple[0]&spgStateMask)
		}
		tuple[0] |= spgPlaceholder
		copy(tuple[6:], invalidTID[:])
	}
	o.setRedirects(o.redirects() - n)
	o.setPlaceholders(o.placeholders() + n)
	if first == 0 {
		return nil
	}

	var scratch [page.MaxIndexTuples]pg.OffsetNumber
	last := p.ItemCount()
	if int(first) > last || last-int(first) >= len(scratch) {
		return fmt.Errorf("placeholders from %d on to remove of %d items", first, last)
	}
	gone := scratch[:0]
	for off := int(first); off <= last; off++ {
		gone = append(gone, pg.OffsetNumber(off))
	}
	if int(o.placeholders()) < len(gone) {
		return errors.New("more placeholders to remove than the page counts")
	}
	o.setPlaceholders(o.placeholders() - uint16(len(gone)))
	return page.IndexMultiDelete(p, gone)
}
