package pg

import "fmt"

// Identifiers with PostgreSQL's own widths. OIDs and relation numbers keep all 32 bits.
type (
	Oid           = uint32
	TimelineID    = uint32
	TransactionID = uint32
	MultiXactID   = uint32
	BlockNumber   = uint32
	OffsetNumber  = uint16
)

// FullTransactionID is an epoch (upper half) and a TransactionID (lower half).
type FullTransactionID uint64

// Epoch counts the wraparounds of the 32-bit counter.
func (f FullTransactionID) Epoch() uint32 { return uint32(f >> 32) }

// XID is the 32-bit half that tuples bear.
func (f FullTransactionID) XID() TransactionID { return TransactionID(f) }

// Fixed sizes of every supported server. A server built with others is refused when its pg_control or WAL is read.
const (
	BlockSize         = 8192   // BLCKSZ and XLOG_BLCKSZ, bytes
	SegmentBlocks     = 131072 // RELSEG_SIZE: blocks in one 1 GiB file of a relation fork
	InvalidBlock      = BlockNumber(0xFFFFFFFF)
	InvalidOid        = Oid(0)
	FirstNormalXID    = TransactionID(3)
	FirstNormalOid    = Oid(16384) // FirstNormalObjectId
	FirstMultiXactID  = MultiXactID(1)
	FrozenXID         = TransactionID(2)
	DefaultTablespace = Oid(1663) // pg_default: base/
	GlobalTablespace  = Oid(1664) // pg_global: global/
)

// Major is a PostgreSQL major version, 14 to 18.
type Major uint8

// The majors Everpage knows.
const (
	MajorFirst Major = 14
	MajorLast  Major = 18
)

// Majors lists every supported major, oldest first.
func Majors() []Major { return []Major{14, 15, 16, 17, 18} }

type majorFacts struct {
	pageMagic      uint16
	controlVersion uint32
	catalogVersion uint32
}

// XLOG_PAGE_MAGIC, PG_CONTROL_VERSION and CATALOG_VERSION_NO of each major's releases.
var majors = map[Major]majorFacts{
	14: {0xD10D, 1300, 202107181},
	15: {0xD110, 1300, 202209061},
	16: {0xD113, 1300, 202307071},
	17: {0xD116, 1700, 202406281},
	18: {0xD118, 1800, 202506291},
}

// PageMagic is the XLOG_PAGE_MAGIC that this major writes.
func (m Major) PageMagic() uint16 { return majors[m].pageMagic }

// ControlVersion is the pg_control version that this major writes.
func (m Major) ControlVersion() uint32 { return majors[m].controlVersion }

// CatalogVersion is the catalog version of this major's releases.
func (m Major) CatalogVersion() uint32 { return majors[m].catalogVersion }

// TablespaceVersionDir names the directory that a tablespace's location holds for this major (TABLESPACE_VERSION_DIRECTORY).
func (m Major) TablespaceVersionDir() string { return fmt.Sprintf("PG_%d_%d", m, m.CatalogVersion()) }

// MajorOfMagic tells the major that writes WAL pages with this magic.
func MajorOfMagic(magic uint16) (Major, error) {
	for m, f := range majors {
		if f.pageMagic == magic {
			return m, nil
		}
	}
	return 0, fmt.Errorf("WAL page magic %04X is none of PostgreSQL %d to %d", magic, MajorFirst, MajorLast)
}

// MajorOfCatalog tells the major whose releases bear this catalog version.
func MajorOfCatalog(version uint32) (Major, error) {
	for m, f := range majors {
		if f.catalogVersion == version {
			return m, nil
		}
	}
	return 0, fmt.Errorf("catalog version %d is of no release of PostgreSQL %d to %d", version, MajorFirst, MajorLast)
}
