package redo

import (
	"encoding/binary"

	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the storage manager (storage_xlog.h) and what a truncation cuts.
const (
	smgrCreate   = 0x10
	smgrTruncate = 0x20

	truncateHeap = 1
	truncateVM   = 2
	truncateFSM  = 4
)

var storageManager = manager{touch: touchStorage, name: names{"", "CREATE", "TRUNCATE"}.of}

// touchStorage is smgr_redo.
func touchStorage(rec *wal.Record, _ *ControlState, ch *Changes) error {
	r := bodyReader{b: rec.Main}
	switch rec.Op() {
	case smgrCreate:
		rel := r.relFileLocator()
		fork := r.u32()
		if r.short || fork > uint32(pg.InitFork) {
			return malformed(rec, "it names no fork")
		}
		ch.Sizes = append(ch.Sizes, SizeChange{Op: SizeCreate, Fork: pg.RelFork{RelFileLocator: rel, Fork: pg.ForkNumber(fork)}})
	case smgrTruncate:
		block := r.u32()
		rel := r.relFileLocator()
		flags := r.u32()
		if r.short {
			return malformed(rec, tooShort)
		}
		ch.truncateRelation(rec, rel, block, flags)
	default:
		ch.Unproven = unknownType(rec)
	}
	return nil
}

// truncateRelation cuts the forks that flags name to what the first blocks of the main fork need. In the last page that a map keeps, what it
// says of the other blocks is forgotten (visibilitymap_prepare_truncate, FreeSpaceMapPrepareTruncateRel); if that is all, the page goes.
func (c *Changes) truncateRelation(rec *wal.Record, rel pg.RelFileLocator, blocks pg.BlockNumber, flags uint32) {
	fork := func(f pg.ForkNumber) pg.RelFork { return pg.RelFork{RelFileLocator: rel, Fork: f} }
	// Redo makes the main fork if it is not there.
	c.Sizes = append(c.Sizes, SizeChange{Op: SizeCreate, Fork: fork(pg.MainFork)})
	if flags&truncateHeap != 0 {
		c.Sizes = append(c.Sizes, SizeChange{Op: SizeTruncate, Fork: fork(pg.MainFork), Blocks: blocks})
	}
	if flags&truncateFSM != 0 {
		last, slot := fsmAddress(blocks)
		c.truncateMap(rec, fork(pg.FSMFork), last, slot > 0, PartFSMTrunc, blocks)
	}
	if flags&truncateVM != 0 {
		last, _, _ := vmAddress(blocks)
		c.truncateMap(rec, fork(pg.VMFork), last, blocks%vmBlocksPerPage > 0, PartVMTruncate, blocks)
	}
}

func (c *Changes) truncateMap(rec *wal.Record, fork pg.RelFork, last pg.BlockNumber, keepLast bool, part uint8, blocks pg.BlockNumber) {
	if !keepLast {
		c.Sizes = append(c.Sizes, SizeChange{Op: SizeTruncate, Fork: fork, Blocks: last})
		return
	}
	c.Sizes = append(c.Sizes, SizeChange{Op: SizeTruncate, Fork: fork, Blocks: last + 1})
	key := pg.PageKey{RelFork: fork, Block: last}
	main := binary.LittleEndian.AppendUint32(c.alloc(4)[:0], blocks)
	c.Pages = append(c.Pages, PageChange{Optional: true, Key: key, Delta: Delta{
		Major: rec.Major, LSN: rec.End, Rmgr: rec.Rmgr, Info: rec.Info, Part: part, Key: key, Main: main,
	}})
}
