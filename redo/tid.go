package redo

import (
	"encoding/binary"

	"everpage/wal/pg"
)

// invalidTID is what ItemPointerSetInvalid writes.
var invalidTID = makeTID(pg.InvalidBlock, 0)

// makeTID is ItemPointerSet.
func makeTID(block pg.BlockNumber, off pg.OffsetNumber) (t tupleID) {
	putBlockID(t[:], block)
	binary.LittleEndian.PutUint16(t[4:], off)
	return t
}

// blockID reads a BlockIdData: {uint16 high half, low half}.
func blockID(b []byte) pg.BlockNumber {
	return uint32(binary.LittleEndian.Uint16(b))<<16 | uint32(binary.LittleEndian.Uint16(b[2:]))
}

// putBlockID is BlockIdSet.
func putBlockID(b []byte, block pg.BlockNumber) {
	binary.LittleEndian.PutUint16(b, uint16(block>>16))
	binary.LittleEndian.PutUint16(b[2:], uint16(block))
}
