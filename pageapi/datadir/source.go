// Package datadir makes a PostgreSQL data directory out of page versions: first a Tree, which describes every file of PGDATA at an LSN without
// holding its content, then a renderer of that tree. Write is the renderer that makes a plain directory. A server started on it is one that was
// shut down cleanly just then: it does no recovery.
package datadir

import (
	"context"
	"fmt"
	"io/fs"

	"everpage/wal/pg"
)

// Source reads a branch at an LSN. "At L" is the state after every record that ends at or before L. All methods may be called concurrently, and
// all answers at one LSN belong together. A source that cannot answer for all of the branch gives an error, never a part.
type Source interface {
	// Cluster tells all that is neither a page of a relation nor of an SLRU.
	Cluster(ctx context.Context, at pg.LSN) (*Cluster, error)
	// Relations calls fn for every fork of every relation that exists at the LSN, in any order, until fn fails.
	Relations(ctx context.Context, at pg.LSN, fn func(Relation) error) error
	// SLRUSegments lists the segments of an SLRU that exist at the LSN, in any order.
	SLRUSegments(ctx context.Context, at pg.LSN, s pg.SLRU) ([]SLRUSegment, error)
	// ReadBlocks fills dst, whole pages, with consecutive pages of a relation fork or SLRU (whose RelFork is that of pg.SLRUPage). A page
	// below the fork's size that was never written is zero. pd_checksum may be stale: it is stamped here.
	ReadBlocks(ctx context.Context, fork pg.RelFork, first pg.BlockNumber, at pg.LSN, dst []byte) error
	// Damaged calls fn for every relation fork of which some page cannot be read at the LSN, with the reason, until fn fails. A fork may
	// come several times. Forks that come here need not come from Relations.
	Damaged(ctx context.Context, at pg.LSN, fn func(Damage) error) error
}

// Relation is one fork and its size.
type Relation struct {
	pg.RelFork
	Blocks pg.BlockNumber
}

// SLRUSegment is one segment of an SLRU.
type SLRUSegment struct {
	Number uint32
	Pages  uint32 // from the segment's start to the last page that exists, at most pg.SLRUPagesPerSegment
}

// Damage is a relation fork, or an SLRU, that cannot be read whole.
type Damage struct {
	pg.RelFork
	Err error
}

// Cluster is what a data directory holds beside the pages of relations and SLRUs.
type Cluster struct {
	// Control is pg_control as the base had it, with everything that WAL changes as it is at the LSN: the counters of Control.Copy exact,
	// wal_level and its like as last set. Copy.Timeline is the timeline that the LSN lies on. State, Time, the checkpoint's own
	// position, UnloggedLSN and the recovery and backup fields don't count.
	Control pg.ControlFile
	// Databases are the directories of databases that have a PG_VERSION.
	Databases   []Database
	RelMaps     []RelMap
	Tablespaces []Tablespace
	TwoPhase    []TwoPhase
	Origins     []Origin
	Files       []ConfigFile
}

// Database is a database's directory in its default tablespace.
type Database struct {
	Spc, DB pg.Oid
	Version []byte // the content of PG_VERSION
}

// RelMap is one pg_filenode.map. Spc is pg.GlobalTablespace and DB 0 for the shared one.
type RelMap struct {
	Spc, DB pg.Oid
	Data    []byte
}

// Tablespace is a tablespace that a user made. Its Location is empty for one that lies in pg_tblspc itself.
type Tablespace struct {
	Oid      pg.Oid
	Location string
}

// TwoPhase is a prepared transaction: its state file's content, with the CRC.
type TwoPhase struct {
	XID   pg.TransactionID
	State []byte
}

// Origin is the progress of one replication origin.
type Origin struct {
	ID        uint16
	RemoteLSN pg.LSN
}

// ConfigFile is a configuration file of the source, by its path below PGDATA.
type ConfigFile struct {
	Path    string
	Mode    fs.FileMode
	Content []byte
}

// DamagedError tells that relations cannot be restored. Nothing was written.
type DamagedError struct {
	At        pg.LSN
	Relations []DamagedRelation
}

// DamagedRelation is one relation that cannot be read.
type DamagedRelation struct {
	pg.RelFileLocator
	Fork pg.ForkNumber
	Path string // below PGDATA
	// Name and Kind are what pg_class says of the relation, empty where it could not be asked.
	Name string
	Kind string
	Err  error
}

// Error names every relation.
func (e *DamagedError) Error() string {
	s := fmt.Sprintf("%d relations cannot be read at %s:", len(e.Relations), e.At)
	for _, r := range e.Relations {
		s += "\n  " + r.Path
		if r.Name != "" {
			s += " (" + r.Kind + " " + r.Name + ")"
		}
		s += ": " + r.Err.Error()
	}
	return s
}
