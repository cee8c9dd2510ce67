package redo

import (
	"encoding/binary"

	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the multixact manager (multixact.h).
const (
	multiZeroOffsets = 0x00
	multiZeroMembers = 0x10
	multiCreate      = 0x20
	multiTruncate    = 0x30
)

const multiMemberSize = 8 // MultiXactMember in a record: xid and status, four bytes each
const multiMaxStatus = 5  // MultiXactStatusUpdate

var multiXactManager = manager{
	touch: touchMultiXact,
	apply: applySLRU,
	name:  names{"ZERO_OFF_PAGE", "ZERO_MEM_PAGE", "CREATE_ID", "TRUNCATE_ID"}.of,
}

// touchMultiXact is multixact_redo.
func touchMultiXact(rec *wal.Record, st *ControlState, ch *Changes) error {
	switch rec.Op() {
	case multiZeroOffsets:
		return touchZeroOffsets(rec, st, ch)
	case multiZeroMembers:
		return touchZeroPage(rec, ch, pg.MultiXactMembers)
	case multiCreate:
		return touchCreateMulti(rec, ch)
	case multiTruncate:
		return touchTruncateMulti(rec, ch)
	}
	ch.Unproven = unknownType(rec)
	return nil
}

// touchZeroOffsets makes a page of offsets, empty but for the first entry where that is known already.
//
// CREATE_ID of a page's last multixact also sets the first entry of the next page: where its members end, the next multixact's begin. Minor
// releases since the end of 2025 log the next page's ZERO_OFF_PAGE before that record, older ones after it, when the next multixact is made.
// In the old order the entry must outlive the ZERO_OFF_PAGE; PostgreSQL remembers the page that it made too early and skips the record.
//
// The counters tell the same without memory of other records: ZERO_OFF_PAGE comes before every CREATE_ID of a multixact on its page, so they
// stand at the page's first multixact exactly if CREATE_ID of the one before has been seen, and the next offset is then what that record
// wrote. (A checkpoint may have moved them there before it. The entry is then early, but it is the same: both follow the primary's counters.)
// In the new order they stand further back. So nothing of the page's old content, perhaps of an earlier round of the counter, is ever kept.
func touchZeroOffsets(rec *wal.Record, st *ControlState, ch *Changes) error {
	r := bodyReader{b: rec.Main}
	page := r.slruPage(rec.Major)
	if r.short {
		return malformed(rec, tooShort)
	}
	start := len(ch.arena)
	first := skipZero(page * pg.MultiXactOffsetsPerPage)
	// A counter that is 1 and not 0 did not come there by a wraparound: there is no multixact before.
	if skipZero(st.NextMulti) == first && st.NextMulti != pg.FirstMultiXactID {
		ch.appendOffset(first, skipZero(st.NextMultiOffset))
	}
	ch.addSLRU(rec, KindInit, pg.MultiXactOffsets, page, start)
	return nil
}

// skipZero gives 1 for 0: neither a multixact id nor an offset is ever 0, and both counters may stand there.
func skipZero(v uint32) uint32 {
	if v == 0 {
		return 1
	}
	return v
}

// multiCreated is xl_multixact_create.
type multiCreated struct {
	id      pg.MultiXactID
	offset  uint32
	members []byte
}

func (m *multiCreated) count() uint32 { return uint32(len(m.members) / multiMemberSize) }

func (m *multiCreated) member(i uint32) (xid pg.TransactionID, status uint32) {
	b := m.members[multiMemberSize*i:]
	return binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
}

func decodeMultiCreate(rec *wal.Record) (m multiCreated, err error) {
	r := bodyReader{b: rec.Main}
	m.id, m.offset = r.u32(), r.u32()
	m.members = r.list(multiMemberSize)
	if r.short {
		return m, malformed(rec, tooShort)
	}
	for i := range m.count() {
		if _, status := m.member(i); status > multiMaxStatus {
			return m, malformed(rec, "a member has a status that doesn't exist")
		}
	}
	return m, nil
}

// touchCreateMulti is RecordNewMultiXact: the start of this multixact's members and of the next one's, and the members.
func touchCreateMulti(rec *wal.Record, ch *Changes) error {
	m, err := decodeMultiCreate(rec)
	if err != nil {
		return err
	}
	next := skipZero(m.id + 1)
	end := skipZero(m.offset + m.count())
	page, nextPage := m.id/pg.MultiXactOffsetsPerPage, next/pg.MultiXactOffsetsPerPage
	start := len(ch.arena)
	ch.appendOffset(m.id, m.offset)
	if nextPage != page {
		ch.addSLRU(rec, KindDelta, pg.MultiXactOffsets, page, start)
		start = len(ch.arena)
	}
	ch.appendOffset(next, end)
	ch.addSLRU(rec, KindDelta, pg.MultiXactOffsets, nextPage, start)

	for i := uint32(0); i < m.count(); {
		first := m.offset + i // wraps around as the counter does
		start := len(ch.arena)
		ch.arena = binary.LittleEndian.AppendUint16(ch.arena, uint16(first%pg.MembersPerPage))
		for page = first / pg.MembersPerPage; i < m.count() && (m.offset+i)/pg.MembersPerPage == page; i++ {
			xid, status := m.member(i)
			ch.arena = append(binary.LittleEndian.AppendUint32(ch.arena, xid), uint8(status))
		}
		ch.addSLRU(rec, KindDelta, pg.MultiXactMembers, page, start)
	}
	return nil
}

func (c *Changes) appendOffset(id pg.MultiXactID, offset uint32) {
	c.arena = binary.LittleEndian.AppendUint16(c.arena, uint16(id%pg.MultiXactOffsetsPerPage))
	c.arena = binary.LittleEndian.AppendUint32(c.arena, offset)
}

// multiTruncated is xl_multixact_truncate. Both ranges end before their second value.
type multiTruncated struct {
	oldestDB               pg.Oid
	startMulti, endMulti   pg.MultiXactID
	startMember, endMember uint32
}

func decodeMultiTruncate(rec *wal.Record) (t multiTruncated, err error) {
	r := bodyReader{b: rec.Main}
	t = multiTruncated{oldestDB: r.u32(), startMulti: r.u32(), endMulti: r.u32(), startMember: r.u32(), endMember: r.u32()}
	if r.short {
		err = malformed(rec, tooShort)
	}
	return t, err
}

// touchTruncateMulti is PerformMembersTruncation and PerformOffsetsTruncation. The latter steps back by one multixact, since the page of the
// oldest may not exist yet.
func touchTruncateMulti(rec *wal.Record, ch *Changes) error {
	t, err := decodeMultiTruncate(rec)
	if err != nil {
		return err
	}
	const perSegment = pg.MembersPerPage * pg.SLRUPagesPerSegment
	last := t.endMulti - 1
	if t.endMulti == pg.FirstMultiXactID {
		last = 0xFFFFFFFF
	}
	ch.SLRUTruncates = append(ch.SLRUTruncates,
		SLRUTruncate{SLRU: pg.MultiXactMembers, Members: true, StartSegment: t.startMember / perSegment, EndSegment: t.endMember / perSegment},
		SLRUTruncate{SLRU: pg.MultiXactOffsets, Page: last / pg.MultiXactOffsetsPerPage})
	return nil
}
