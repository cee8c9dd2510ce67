package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/redo/page"
	"everpage/wal/pg"
)

// An index tuple (IndexTupleData, itup.h) starts with {heap TID, uint16 info}; info holds the tuple's length in its low bits.
const (
	indexTupleHeader   = 8
	indexSizeMask      = 0x1FFF // INDEX_SIZE_MASK
	indexAMReservedBit = 0x2000 // INDEX_AM_RESERVED_BIT
)

// tidSize is sizeof(ItemPointerData): {uint16 high, low half of the block number, uint16 offset number}.
const tidSize = 6

// tupleID is an ItemPointerData as it lies on a page.
type tupleID [tidSize]byte

// indexTupleTID is the t_tid of a tuple that is at least a header long.
func indexTupleTID(tuple []byte) tupleID { return tupleID(tuple[:tidSize]) }

// indexTupleLength is IndexTupleSize of a tuple that is at least a header long. It may exceed what tuple holds.
func indexTupleLength(tuple []byte) int {
	return int(binary.LittleEndian.Uint16(tuple[6:]) & indexSizeMask)
}

// indexTupleSize is IndexTupleSize of the tuple at the start of data, checked against data's length.
func indexTupleSize(data []byte) (int, error) {
	if len(data) < indexTupleHeader {
		return 0, fmt.Errorf("%d bytes are too few for an index tuple", len(data))
	}
	size := indexTupleLength(data)
	if size < indexTupleHeader || size > len(data) {
		return 0, fmt.Errorf("an index tuple of %d bytes in %d bytes", size, len(data))
	}
	return size, nil
}

// cutIndexTuple cuts the tuple at the start of data off, up to the next multiple of 8 bytes from it.
func cutIndexTuple(data []byte) (tuple, rest []byte, err error) {
	size, err := indexTupleSize(data)
	if err != nil {
		return nil, nil, err
	}
	size = pg.MaxAlign(size)
	if size > len(data) {
		return nil, nil, fmt.Errorf("an index tuple of %d bytes in %d bytes", size, len(data))
	}
	return data[:size], data[size:], nil
}

// errNoSuchBlock tells that a record names a block that its type never has.
var errNoSuchBlock = errors.New("this type of record has no such block")

// errMainLength tells that a record's main data end before all that its type has.
func errMainLength(want, have int) error {
	return fmt.Errorf("main data of %d bytes, want at least %d", have, want)
}

// addItem is PageAddItem of an index: at a given offset number, later items move up. Offset 0, which would ask for any free one, is refused.
func addItem(p pg.Page, item []byte, off pg.OffsetNumber) error {
	if off == 0 {
		return fmt.Errorf("%w: offset 0", page.ErrOffset)
	}
	_, err := page.Add(p, item, off, 0)
	return err
}

// indexMultiDelete is PageIndexMultiDelete with item numbers as they lie in a record: uint16 each, ascending.
func indexMultiDelete(p pg.Page, offsets []byte) error {
	if len(offsets)%2 != 0 || len(offsets)/2 > page.MaxIndexTuples {
		return fmt.Errorf("%d bytes are no list of items to delete", len(offsets))
	}
	var scratch [page.MaxIndexTuples]pg.OffsetNumber
	return page.IndexMultiDelete(p, page.DecodeOffsets(scratch[:0], offsets))
}
