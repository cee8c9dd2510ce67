package redo

import (
	"encoding/binary"
	"fmt"

	"everpage/wal"
	"everpage/wal/pg"
)

// SLRU pages have neither header nor LSN: a page of zeros is an ordinary one, and so is a page that was never made (recovery reads a missing
// page as zeros, SlruPhysicalReadPage). Their deltas never ask for the page's state before and are applied to whatever is there.
//
// Delta.Main of PartSLRU depends on the SLRU only, not on the record's type. All is little-endian, indexes count entries in the page:
//
//	pg_xact               {uint8 status, {uint16 index}…}
//	pg_multixact/offsets  {{uint16 index, uint32 offset}…}
//	pg_multixact/members  {uint16 index of the first, {uint32 xid, uint8 status}…}: consecutive members
//	pg_commit_ts          {int64 time, uint16 origin, {uint16 index}…}
//
// An empty Main changes nothing more: the record zeroes the page (KindInit).

// Status of a transaction in pg_xact (clog.h).
const (
	xactCommitted = 1
	xactAborted   = 2
)

const (
	offsetsEntrySize = 6
	memberEntrySize  = 5
	commitTsHead     = pg.CommitTsEntrySize
)

// addSLRU adds the change of one SLRU page. Its payload is what was appended to the arena since start.
func (c *Changes) addSLRU(rec *wal.Record, kind Kind, s pg.SLRU, page uint32, start int) {
	key := pg.SLRUPage(s, page)
	p := c.addPage(rec, key.Spc, key.DB, key.Rel, key.Fork, key.Block) // without XID: nobody asks for it
	p.Kind = kind
	p.Delta.Part, p.Delta.Main = PartSLRU, c.arena[start:len(c.arena):len(c.arena)]
}

// touchZeroPage is the ZEROPAGE record of an SLRU: main data is the page number.
func touchZeroPage(rec *wal.Record, ch *Changes, s pg.SLRU) error {
	r := bodyReader{b: rec.Main}
	page := r.slruPage(rec.Major)
	if r.short {
		return malformed(rec, tooShort)
	}
	ch.addSLRU(rec, KindInit, s, page, len(ch.arena))
	return nil
}

// applySLRU changes one SLRU page, for every manager whose records do.
func applySLRU(page pg.Page, d *Delta) error {
	s, ok := d.Key.SLRU()
	if !ok || d.Part != PartSLRU {
		return fmt.Errorf("%s delta for part %d of %s: the manager changes SLRU pages only", d.Rmgr, d.Part, d.Key)
	}
	if len(page) != pg.BlockSize {
		return fmt.Errorf("%s: page has %d bytes", d.Key, len(page))
	}
	if len(d.Main) == 0 {
		return nil
	}
	switch s {
	case pg.Xact:
		return applyXact(page, d)
	case pg.MultiXactOffsets:
		return applyOffsets(page, d)
	case pg.MultiXactMembers:
		return applyMembers(page, d)
	case pg.CommitTs:
		return applyCommitTs(page, d)
	}
	return fmt.Errorf("%s: no such SLRU", d.Key)
}

func badPayload(d *Delta) error {
	return fmt.Errorf("%s delta of %s at %s: its %d bytes make no sense", d.Rmgr, d.Key, d.LSN, len(d.Main))
}

// applyXact sets the status of transactions (TransactionIdSetStatusBit). Redo's intermediate sub-committed state leaves no trace.
func applyXact(page pg.Page, d *Delta) error {
	status, list := d.Main[0], d.Main[1:]
	if status > 3 || len(list)%2 != 0 {
		return badPayload(d)
	}
	for ; len(list) > 0; list = list[2:] {
		i := binary.LittleEndian.Uint16(list)
		if i >= pg.XactsPerPage {
			return badPayload(d)
		}
		shift := i % 4 * 2
		page[i/4] = page[i/4]&^(3<<shift) | status<<shift
	}
	return nil
}

// applyOffsets sets where multixacts' members start (RecordNewMultiXact).
func applyOffsets(page pg.Page, d *Delta) error {
	if len(d.Main)%offsetsEntrySize != 0 {
		return badPayload(d)
	}
	for list := d.Main; len(list) > 0; list = list[offsetsEntrySize:] {
		i := int(binary.LittleEndian.Uint16(list))
		if i >= pg.MultiXactOffsetsPerPage {
			return badPayload(d)
		}
		copy(page[4*i:4*i+4], list[2:offsetsEntrySize])
	}
	return nil
}

// applyMembers sets consecutive members (RecordNewMultiXact): a group is four flag bytes and four xids.
func applyMembers(page pg.Page, d *Delta) error {
	if len(d.Main) < 2 || (len(d.Main)-2)%memberEntrySize != 0 {
		return badPayload(d)
	}
	i := int(binary.LittleEndian.Uint16(d.Main))
	for list := d.Main[2:]; len(list) > 0; list = list[memberEntrySize:] {
		if i >= pg.MembersPerPage {
			return badPayload(d)
		}
		group := page[i/pg.MembersPerGroup*pg.MemberGroupSize:][:pg.MemberGroupSize]
		n := i % pg.MembersPerGroup
		group[n] = list[4]
		copy(group[4+4*n:8+4*n], list[:4])
		i++
	}
	return nil
}

// applyCommitTs sets the commit time and origin of transactions (TransactionIdSetCommitTs).
func applyCommitTs(page pg.Page, d *Delta) error {
	if len(d.Main) < commitTsHead || (len(d.Main)-commitTsHead)%2 != 0 {
		return badPayload(d)
	}
	entry, list := d.Main[:commitTsHead], d.Main[commitTsHead:]
	for ; len(list) > 0; list = list[2:] {
		i := int(binary.LittleEndian.Uint16(list))
		if i >= pg.CommitTsPerPage {
			return badPayload(d)
		}
		copy(page[i*pg.CommitTsEntrySize:(i+1)*pg.CommitTsEntrySize], entry)
	}
	return nil
}
