package pg

import "fmt"

// SLRU is one of the persistent simple-LRU areas. pg_subtrans, pg_notify and pg_serial are rebuilt at start and never kept.
type SLRU uint8

// The persistent SLRUs. The numbers are part of the store's key format.
const (
	Xact             SLRU = 1 // pg_xact: 2 bits a transaction
	MultiXactOffsets SLRU = 2 // pg_multixact/offsets: 4 bytes a multixact
	MultiXactMembers SLRU = 3 // pg_multixact/members: 20 bytes per group of 4 members
	CommitTs         SLRU = 4 // pg_commit_ts: 10 bytes a transaction
)

// SLRUs lists the persistent SLRUs in number order.
func SLRUs() []SLRU { return []SLRU{Xact, MultiXactOffsets, MultiXactMembers, CommitTs} }

// Geometry of SLRU pages and segments, the same in all supported majors.
const (
	SLRUPagesPerSegment = 32 // SLRU_PAGES_PER_SEGMENT

	XactsPerPage            = BlockSize * 4 // CLOG_XACTS_PER_PAGE
	MultiXactOffsetsPerPage = BlockSize / 4 // MULTIXACT_OFFSETS_PER_PAGE
	MembersPerGroup         = 4             // MULTIXACT_MEMBERS_PER_MEMBERGROUP
	MemberGroupSize         = 20            // MULTIXACT_MEMBERGROUP_SIZE: 4 flag bytes and 4 xids
	MembersPerPage          = BlockSize / MemberGroupSize * MembersPerGroup
	CommitTsEntrySize       = 10 // SizeOfCommitTimestampEntry: int64 time and uint16 origin, unaligned
	CommitTsPerPage         = BlockSize / CommitTsEntrySize
)

// Dir is the SLRU's directory below PGDATA.
func (s SLRU) Dir() string {
	switch s {
	case Xact:
		return "pg_xact"
	case MultiXactOffsets:
		return "pg_multixact/offsets"
	case MultiXactMembers:
		return "pg_multixact/members"
	case CommitTs:
		return "pg_commit_ts"
	}
	return fmt.Sprintf("slru%d", uint8(s))
}

// String is the SLRU's directory.
func (s SLRU) String() string { return s.Dir() }

// SLRUSegmentName is the file name of a segment (SlruFileName: four hexadecimal digits, five where the number needs them).
func SLRUSegmentName(segment uint32) string { return fmt.Sprintf("%04X", segment) }
