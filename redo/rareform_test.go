package redo

import (
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

func TestRareForm(t *testing.T) {
	eachMajor(t, func(t *testing.T, major pg.Major) {
		pageNumber := func(n uint32) []byte {
			if major >= 17 {
				return le(n, uint32(0))
			}
			return le(n)
		}
		split := func(flags uint16) []byte { return le(make([]byte, 12), uint32(4), uint32(5), uint32(6), flags) }
		at := func(blk pg.BlockNumber) []wal.Block { return []wal.Block{heapBlockRef(0, heapKey(blk), nil)} }
		for _, c := range []struct {
			rmgr   wal.Rmgr
			info   uint8
			main   []byte
			blocks []wal.Block
			want   string
		}{
			{wal.RmGin, ginSplit, split(ginInsertIsData), at(3), "Gin splits an inner page of a posting tree"},
			{wal.RmGin, ginSplit, split(ginInsertIsData | ginInsertIsLeaf), at(3), ""},
			{wal.RmGin, ginSplit, split(0), at(3), ""},
			{wal.RmGin, ginSplit, split(ginInsertIsData)[:25], at(3), ""},
			{wal.RmGin, ginInsert, le(uint16(ginInsertIsData), uint32(7), uint32(8)), at(3), "Gin inserts into an inner page of a posting tree"},
			{wal.RmGin, ginInsert, le(uint16(ginInsertIsData | ginInsertIsLeaf)), at(3), ""},
			{wal.RmHeap, 0x10, deleteMain(1), at(pg.SegmentBlocks), "Heap changes pages beyond a relation's first file"},
			{wal.RmHeap, 0x10, deleteMain(1), at(pg.SegmentBlocks - 1), ""},
			{wal.RmCLOG, slruZeroPage, pageNumber(0), nil, "the commit log begins again with its page 0"},
			{wal.RmCLOG, slruZeroPage, pageNumber(1), nil, ""},
			{wal.RmCLOG, slruTruncate, pageNumber(0), nil, ""},
			{wal.RmCommitTs, slruZeroPage, pageNumber(0), nil, "commit times begin again with their page 0"},
			{wal.RmMultiXact, multiZeroOffsets, pageNumber(0), nil, "multixacts begin again with their page 0"},
			{wal.RmMultiXact, multiZeroMembers, pageNumber(0), nil, "members of multixacts begin again with their page 0"},
			{wal.RmMultiXact, multiZeroMembers, pageNumber(0)[:2], nil, ""},
			{wal.RmXLOG, 0, nil, nil, ""},
		} {
			if got := RareForm(heapRecord(major, c.rmgr, c.info, c.main, c.blocks...)); got != c.want {
				t.Errorf("%s %02X: %q, want %q", c.rmgr, c.info, got, c.want)
			}
		}
	})
}
