package redo

import (
	"encoding/binary"
	"fmt"

	"everpage/redo/page"
	"everpage/wal/pg"
)

// A posting list tuple bears several heap TIDs for one key: its t_info has the reserved bit, its t_tid says where in the tuple the list starts (as
// block number) and how many TIDs it has (12 bits of the offset, with btIsPosting).
const (
	btOffsetMask = 0x0FFF // BT_OFFSET_MASK
	btIsPosting  = 0x2000 // BT_IS_POSTING
)

// btreePosting splits a tuple into its key and its TIDs; those of a plain tuple are its t_tid.
func btreePosting(tuple []byte) (key, tids []byte, err error) {
	size, err := indexTupleSize(tuple)
	if err != nil {
		return nil, nil, err
	}
	if binary.LittleEndian.Uint16(tuple[6:])&indexAMReservedBit == 0 {
		return tuple[:size], tuple[:tidSize], nil
	}
	posid := binary.LittleEndian.Uint16(tuple[4:])
	if posid&btIsPosting == 0 {
		return nil, nil, fmt.Errorf("a pivot tuple where one that points to the heap is expected")
	}
	n := int(posid & btOffsetMask)
	start := int(binary.LittleEndian.Uint16(tuple))<<16 | int(binary.LittleEndian.Uint16(tuple[2:]))
	if start < indexTupleHeader || start > size || start%8 != 0 || n < 2 || n*tidSize > size-start {
		return nil, nil, fmt.Errorf("a posting list of %d TIDs at %d in a tuple of %d bytes", n, start, size)
	}
	return tuple[:start], tuple[start : start+n*tidSize], nil
}

// isPosting is BTreeTupleIsPosting, of a tuple that btreePosting accepts.
func isPosting(tuple []byte) bool {
	return binary.LittleEndian.Uint16(tuple[6:])&indexAMReservedBit != 0
}

// btreeSetPosting makes the tuple whose key lies at the start of tuple a posting list of n TIDs behind keySize bytes, size bytes in all
// (BTreeTupleSetPosting).
func btreeSetPosting(tuple []byte, n, keySize, size int) {
	binary.LittleEndian.PutUint16(tuple, uint16(keySize>>16))
	binary.LittleEndian.PutUint16(tuple[2:], uint16(keySize))
	binary.LittleEndian.PutUint16(tuple[4:], uint16(n)|btIsPosting)
	info := binary.LittleEndian.Uint16(tuple[6:])
	binary.LittleEndian.PutUint16(tuple[6:], info&^indexSizeMask|indexAMReservedBit|uint16(size))
}

// btreeSwapPosting is _bt_swap_posting, in place: a new tuple's TID enters the posting list at index at, and the list's last TID leaves it for the
// new tuple. The lengths of both stay.
func btreeSwapPosting(posting []byte, tid tupleID, at int) (last tupleID, err error) {
	_, tids, err := btreePosting(posting)
	if err != nil {
		return last, err
	}
	if n := len(tids) / tidSize; !isPosting(posting) || at <= 0 || at >= n {
		return last, fmt.Errorf("a posting list of %d TIDs can't be split at %d", n, at)
	}
	copy(last[:], tids[len(tids)-tidSize:])
	copy(tids[(at+1)*tidSize:], tids[at*tidSize:len(tids)-tidSize])
	copy(tids[at*tidSize:], tid[:])
	return last, nil
}

// btreeUpdatePosting is one step of btree_xlog_updates: the TIDs with these indexes (uint16 each, ascending) leave the posting list of item off
// (_bt_update_posting). With one TID left it becomes a plain tuple.
func btreeUpdatePosting(p pg.Page, off pg.OffsetNumber, deleted []byte) error {
	item, err := page.Tuple(p, off)
	if err != nil {
		return err
	}
	key, tids, err := btreePosting(item)
	if err != nil {
		return fmt.Errorf("item %d: %w", off, err)
	}
	n := len(tids)/tidSize - len(deleted)/2
	if !isPosting(item) || n <= 0 {
		return fmt.Errorf("item %d: %d of %d TIDs can't be deleted", off, len(deleted)/2, len(tids)/tidSize)
	}
	var scratch [indexSizeMask + 1]byte
	size := len(key)
	copy(scratch[:], key)
	kept := scratch[:tidSize]
	if n > 1 {
		size = pg.MaxAlign(len(key) + n*tidSize)
		if size > indexSizeMask {
			return fmt.Errorf("item %d: a tuple of %d bytes", off, size)
		}
		btreeSetPosting(scratch[:], n, len(key), size)
		kept = scratch[len(key) : len(key)+n*tidSize]
	} else {
		info := binary.LittleEndian.Uint16(scratch[6:])
		binary.LittleEndian.PutUint16(scratch[6:], info&^(indexSizeMask|indexAMReservedBit)|uint16(size))
	}
	for i := 0; len(tids) > 0; i, tids = i+1, tids[tidSize:] {
		if len(deleted) > 0 && int(binary.LittleEndian.Uint16(deleted)) == i {
			deleted = deleted[2:]
			continue
		}
		if len(kept) == 0 {
			break
		}
		kept = kept[copy(kept, tids[:tidSize]):]
	}
	if len(deleted) > 0 || len(kept) > 0 {
		return fmt.Errorf("item %d: the deleted TIDs' indexes don't ascend within its posting list", off)
	}
	return page.IndexOverwrite(p, off, scratch[:size])
}

// btreeDedupState is what a pass of deduplication has gathered for the next tuple (BTDedupStateData).
type btreeDedupState struct {
	base    []byte                  // the first item of the group, in the old page
	items   int                     // items in the group
	keySize int                     // of the base; the list starts there
	tids    int                     // in the group, gathered behind the key in tuple as soon as there are two items
	tuple   [indexSizeMask + 1]byte // the posting list being made
}

// start begins a group (_bt_dedup_start_pending).
func (s *btreeDedupState) start(item []byte) error {
	key, tids, err := btreePosting(item)
	if err != nil {
		return err
	}
	s.base, s.items, s.keySize, s.tids = item, 1, len(key), len(tids)/tidSize
	return nil
}

// add merges an item into the group (_bt_dedup_save_htid).
func (s *btreeDedupState) add(item []byte) error {
	_, tids, err := btreePosting(item)
	if err != nil {
		return err
	}
	if size := pg.MaxAlign(s.keySize + s.tids*tidSize + len(tids)); size > btreeMaxItemSize {
		return fmt.Errorf("a posting list tuple of %d bytes", size)
	}
	if s.items == 1 {
		key, first, err := btreePosting(s.base)
		if err != nil {
			return err
		}
		copy(s.tuple[:], key)
		copy(s.tuple[len(key):], first)
	}
	copy(s.tuple[s.keySize+s.tids*tidSize:], tids)
	s.items++
	s.tids += len(tids) / tidSize
	return nil
}

// finish adds the group's tuple to the page at its end (_bt_dedup_finish_pending, _bt_form_posting).
func (s *btreeDedupState) finish(p pg.Page) error {
	off := pg.OffsetNumber(p.ItemCount() + 1)
	if s.items == 1 {
		return addItem(p, s.base[:indexTupleLength(s.base)], off)
	}
	if s.keySize%8 != 0 || s.tids > btOffsetMask {
		return fmt.Errorf("a posting list of %d TIDs behind a key of %d bytes", s.tids, s.keySize)
	}
	end := s.keySize + s.tids*tidSize
	size := pg.MaxAlign(end)
	clear(s.tuple[end:size])
	btreeSetPosting(s.tuple[:], s.tids, s.keySize, size)
	return addItem(p, s.tuple[:size], off)
}

// btreeMaxItemSize is BTMaxItemSize: a third of what header, three line pointers and special area leave, less room for a heap TID.
const btreeMaxItemSize = (btreeSpecial-(pg.PageHeaderSize+3*pg.ItemIDSize+4))/3&^7 - 8

// btreeDedupPage is btree_xlog_dedup. Main data: {uint16 intervals}. Data: for each {uint16 first item, number of items} that become one.
func btreeDedupPage(p pg.Page, d *Delta) error {
	o, err := btreeOpaqueOf(p)
	if err != nil {
		return err
	}
	if len(d.Main) < 2 {
		return errMainLength(2, len(d.Main))
	}
	if n := int(binary.LittleEndian.Uint16(d.Main)); len(d.Data) != 4*n {
		return fmt.Errorf("data of %d bytes for %d intervals", len(d.Data), n)
	}
	intervals := d.Data
	first := o.firstDataKey()
	if p.ItemCount() < int(first) {
		return fmt.Errorf("the page has no items")
	}

	var scratch [pg.BlockSize]byte
	q := pg.Page(scratch[:])
	btreeInit(q)
	copy(q[btreeSpecial:], p[btreeSpecial:])
	if first == 2 {
		highKey, err := page.Tuple(p, 1)
		if err != nil {
			return err
		}
		if err := addItem(q, highKey, 1); err != nil {
			return err
		}
	}
	var s btreeDedupState
	base := first
	finish := func() error {
		if s.items > 1 {
			if want := int(binary.LittleEndian.Uint16(intervals[2:])); s.items != want {
				return fmt.Errorf("%d items from %d on, where %d are merged", s.items, base, want)
			}
			intervals = intervals[4:]
		}
		return s.finish(q)
	}
	for off, count := first, pg.OffsetNumber(p.ItemCount()); off <= count; off++ {
		item, err := page.Tuple(p, off)
		if err != nil {
			return err
		}
		switch {
		case off == first:
			err = s.start(item)
		case len(intervals) > 0 && binary.LittleEndian.Uint16(intervals) == base && s.items < int(binary.LittleEndian.Uint16(intervals[2:])):
			err = s.add(item)
		default:
			if err = finish(); err == nil {
				base = off
				err = s.start(item)
			}
		}
		if err != nil {
			return fmt.Errorf("item %d: %w", off, err)
		}
	}
	if err := finish(); err != nil {
		return err
	}
	if len(intervals) > 0 {
		return fmt.Errorf("%d intervals that the page doesn't have", len(intervals)/4)
	}
	qo := btreeOpaque(q[btreeSpecial:])
	qo.setFlags(qo.flags() &^ btpHasGarbage)
	copy(p, q)
	return nil
}
