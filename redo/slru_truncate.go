package redo

import "everpage/wal/pg"

// memberSegments is the number of segments of pg_multixact/members: member offsets are 32 bits and the last segment is cut short by that.
const memberSegments = 0xFFFFFFFF/pg.MembersPerPage/pg.SLRUPagesPerSegment + 1

// PagePrecedes tells whether page a wholly precedes page b in the SLRU's circular order. It is CLOGPagePrecedes, CommitTsPagePrecedes,
// MultiXactOffsetPagePrecedes or MultiXactMemberPagePrecedes: the first entry of a precedes both the first and the last entry of b.
func PagePrecedes(s pg.SLRU, a, b uint32) bool {
	switch s {
	case pg.Xact:
		return firstPrecedes(a, b, pg.XactsPerPage, uint32(pg.FirstNormalXID)+1)
	case pg.CommitTs:
		return firstPrecedes(a, b, pg.CommitTsPerPage, uint32(pg.FirstNormalXID)+1)
	case pg.MultiXactOffsets:
		return firstPrecedes(a, b, pg.MultiXactOffsetsPerPage, uint32(pg.FirstMultiXactID)+1)
	case pg.MultiXactMembers:
		return firstPrecedes(a, b, pg.MembersPerPage, 0)
	}
	return false
}

// firstPrecedes compares modulo 2^32. The bias that PostgreSQL adds keeps pages' first entries clear of the special transaction ids, which
// TransactionIdPrecedes would compare differently; xidPrecedes is used for what remains of those after wraparound.
func firstPrecedes(a, b, perPage, bias uint32) bool {
	first, other := a*perPage+bias, b*perPage+bias
	if bias == uint32(pg.FirstNormalXID)+1 {
		return xidPrecedes(first, other) && xidPrecedes(first, other+perPage-1)
	}
	return multiPrecedes(first, other) && multiPrecedes(first, other+perPage-1)
}

// MayDeleteSegment tells whether a truncation to cutoffPage removes a segment (SlruMayDeleteSegment): all its pages precede cutoffPage.
func MayDeleteSegment(s pg.SLRU, segment, cutoffPage uint32) bool {
	first := segment * pg.SLRUPagesPerSegment
	return PagePrecedes(s, first, cutoffPage) && PagePrecedes(s, first+pg.SLRUPagesPerSegment-1, cutoffPage)
}

// Deletes tells whether the truncation removes an existing segment of t.SLRU. Which segments exist, the store knows.
func (t *SLRUTruncate) Deletes(segment uint32) bool {
	switch {
	case t.All:
		return true
	case !t.Members:
		return MayDeleteSegment(t.SLRU, segment, t.Page)
	case t.StartSegment <= t.EndSegment:
		return t.StartSegment <= segment && segment < t.EndSegment
	}
	return segment >= t.StartSegment && segment < memberSegments || segment < t.EndSegment
}

// SLRUSegmentsBefore keeps those of the existing segments that the truncation removes. It reuses the slice.
func SLRUSegmentsBefore(t *SLRUTruncate, segments []uint32) []uint32 {
	kept := segments[:0]
	for _, s := range segments {
		if t.Deletes(s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// xidPrecedes is TransactionIdPrecedes: modulo 2^32 between normal ids, plainly where one is special.
func xidPrecedes(a, b pg.TransactionID) bool {
	if a < pg.FirstNormalXID || b < pg.FirstNormalXID {
		return a < b
	}
	return int32(a-b) < 0
}

// multiPrecedes is MultiXactIdPrecedes and MultiXactOffsetPrecedes.
func multiPrecedes(a, b uint32) bool { return int32(a-b) < 0 }
