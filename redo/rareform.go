package redo

import (
	"encoding/binary"

	"everpage/wal"
	"everpage/wal/pg"
)

// RareForm says what is seldom about a record beside its type, "" for nothing: what a test has to be made for, since ordinary load doesn't reach it. The
// same type's other records prove nothing for these, so that they are counted by themselves.
func RareForm(rec *wal.Record) string {
	switch op := rec.Op(); rec.Rmgr {
	case wal.RmGin:
		if form := ginRareForm(op, rec.Main); form != "" {
			return form
		}
	case wal.RmCLOG:
		if op == slruZeroPage && leadsToPageZero(rec) {
			return "the commit log begins again with its page 0"
		}
	case wal.RmCommitTs:
		if op == slruZeroPage && leadsToPageZero(rec) {
			return "commit times begin again with their page 0"
		}
	case wal.RmMultiXact:
		switch {
		case op == multiZeroOffsets && leadsToPageZero(rec):
			return "multixacts begin again with their page 0"
		case op == multiZeroMembers && leadsToPageZero(rec):
			return "members of multixacts begin again with their page 0"
		}
	}
	for i := range rec.Blocks {
		if rec.Blocks[i].Block >= pg.SegmentBlocks {
			return rec.Rmgr.String() + " changes pages beyond a relation's first file"
		}
	}
	return ""
}

// leadsToPageZero tells whether a record that begins a page of a log names the first: where a counter wraps around.
func leadsToPageZero(rec *wal.Record) bool {
	r := bodyReader{b: rec.Main}
	return r.slruPage(rec.Major) == 0 && !r.short
}

// ginRareForm is about posting trees of more than two levels. Main data of SPLIT: {locator, uint32 right sibling of the root, left and right child, uint16 flags}.
func ginRareForm(op uint8, main []byte) string {
	const splitFlags = 24
	switch {
	case op == ginSplit && len(main) >= splitFlags+2 && ginInnerOfPostingTree(main[splitFlags:]):
		return "Gin splits an inner page of a posting tree"
	case op == ginInsert && len(main) >= 2 && ginInnerOfPostingTree(main):
		return "Gin inserts into an inner page of a posting tree"
	}
	return ""
}

func ginInnerOfPostingTree(flags []byte) bool {
	return binary.LittleEndian.Uint16(flags)&(ginInsertIsData|ginInsertIsLeaf) == ginInsertIsData
}
