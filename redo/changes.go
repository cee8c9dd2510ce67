package redo

import (
	"everpage/wal"
	"everpage/wal/pg"
)

// Changes is all that one record changes. It is reused from record to record: Reset keeps its memory, and everything in it is valid until then.
// Consumers handle the fields in the order in which they stand here.
type Changes struct {
	LSN pg.LSN // the record's end

	DropDatabases []DatabaseDir  // directories that go, with every relation in them
	CopyDatabases []DatabaseCopy // directories copied as they are just before this record (CREATE DATABASE … FILE_COPY)
	Sizes         []SizeChange
	Pages         []PageChange
	SLRUTruncates []SLRUTruncate
	Meta          []MetaChange     // versioned small objects: control fields, relation maps, two-phase states, tablespaces, origins, …
	Transactions  []TransactionEnd // at most one
	RestorePoint  string           // name, "" if none
	RestoreTime   pg.Timestamp     // where RestorePoint is set

	// Unproven is set for a record of an unknown or custom resource manager, or of an unknown type, that names no block: from here on nobody
	// knows what else it changed.
	Unproven error
	// Damaged are pages that an unknown or unsupported record touches: they can't be served from here on until an image replaces them.
	Damaged []DamagedPage

	// Skip, where set, names the pages whose content nobody wants, as another node keeps them. It is asked for each page that a block reference names,
	// before its content is looked at: images are not unpacked, and the change is marked as Skipped. Reset keeps it.
	Skip func(key pg.PageKey) bool

	arena []byte // images and parts' main data
	tags  []Tag

	scratch wal.Scratch // of images
}

// DatabaseDir is one database's directory in one tablespace.
type DatabaseDir struct{ Spc, DB pg.Oid }

// DatabaseCopy copies a database's directory, all forks of all its relations, its relation map and PG_VERSION.
type DatabaseCopy struct{ From, To DatabaseDir }

// SLRUTruncate forgets the segments of an SLRU that wholly precede Page in the SLRU's circular order (SimpleLruTruncate).
type SLRUTruncate struct {
	SLRU pg.SLRU
	Page uint32
	// OldestMember and so on: members are cut from StartSegment up to EndSegment exclusive, with wraparound (PerformMembersTruncation).
	Members                  bool
	StartSegment, EndSegment uint32
	All                      bool // every segment goes (DeactivateCommitTs)
}

// DamagedPage is a page whose content is not known after a record, and why.
type DamagedPage struct {
	Key pg.PageKey
	Err error
}

// TransactionEnd is a commit or an abort, for the commit index.
type TransactionEnd struct {
	Commit bool
	XID    pg.TransactionID
	Time   pg.Timestamp
	Origin uint16
}

// MetaKind is a kind of small versioned object. The numbers are part of the store's key format.
type MetaKind uint8

// The kinds of small objects. ID is what tells objects of one kind apart; Value nil deletes.
const (
	MetaControl    MetaKind = 1 // ID[0] = a ControlGroup; value as ControlState encodes that group. Emitted by the ingest, not by Touch
	MetaRelMap     MetaKind = 2 // ID = {tablespace, database}; value = pg_filenode.map's bytes
	MetaTwoPhase   MetaKind = 3 // ID = {xid}; value = the state file's bytes, CRC included
	MetaTablespace MetaKind = 4 // ID = {oid}; value = its location ("" for an in-place one)
	MetaDatabase   MetaKind = 5 // ID = {tablespace, database}; value = PG_VERSION's bytes
	MetaOrigin     MetaKind = 6 // ID = {origin}; value = remote LSN, uint64
	MetaFile       MetaKind = 7 // ID = a hash of its path; value = path, mode and content of a configuration file (import only)
)

// MetaChange is one new version of a small object.
type MetaChange struct {
	Kind  MetaKind
	ID    [2]uint32
	Value []byte
	// IfGreater is for MetaOrigin: the change is void if the LSN that is kept is as large (replorigin_advance without go_backward).
	IfGreater bool
}

// Reset makes c ready for the next record.
func (c *Changes) Reset() {
	c.LSN = 0
	c.DropDatabases = c.DropDatabases[:0]
	c.CopyDatabases = c.CopyDatabases[:0]
	c.Sizes = c.Sizes[:0]
	c.Pages = c.Pages[:0]
	c.SLRUTruncates = c.SLRUTruncates[:0]
	c.Meta = c.Meta[:0]
	c.Transactions = c.Transactions[:0]
	c.RestorePoint = ""
	c.RestoreTime = 0
	c.Unproven = nil
	c.Damaged = c.Damaged[:0]
	c.arena = c.arena[:0]
	c.tags = c.tags[:0]
}
