package pg

import (
	"fmt"
	"path"
	"strings"
)

// FileKind is what a file of a PGDATA is to us.
type FileKind uint8

// The kinds of files in a PGDATA.
const (
	// FileUnknown is a file that PostgreSQL did not make: logs, a file left by a tool, another major's tablespace directory.
	FileUnknown FileKind = iota
	// FileIgnored is PostgreSQL's own, but rebuilt at start or without meaning in a copy: temporary files and relations, pg_internal.init,
	// statistics, pg_notify, pg_subtrans, replication slots, postmaster.pid and their like.
	FileIgnored
	FileRelation       // a segment of a relation fork: Rel, Segment
	FileSLRU           // a segment of a persistent SLRU: SLRU, Segment
	FileRelMap         // pg_filenode.map: Spc, DB (0 in global/)
	FileVersion        // PG_VERSION of a database: Spc, DB; of the cluster: both 0
	FileTwoPhase       // a prepared transaction's state: XID, whose epoch is 0 before 17
	FileOrigins        // pg_logical/replorigin_checkpoint
	FileControl        // global/pg_control
	FileConfig         // configuration that a copy should have: *.conf, TLS certificates, keys and revocation lists
	FileTablespaceLink // pg_tblspc/OID: Spc. Files below it come by their own names
	FileWAL            // anything below pg_wal
	FileBackup         // backup_label, tablespace_map, backup_manifest
)

// String names the kind for messages.
func (k FileKind) String() string {
	names := [...]string{"unknown", "ignored", "relation", "slru", "relation map", "version", "two-phase", "origins", "control", "configuration",
		"tablespace link", "wal", "backup"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind%d", uint8(k))
}

// File tells what one file of a PGDATA is. Which fields are set stands with the kinds.
type File struct {
	Kind    FileKind
	Rel     RelFork           // FileRelation
	SLRU    SLRU              // FileSLRU
	Segment uint32            // FileRelation, FileSLRU: the segment's number
	Spc, DB Oid               // FileRelMap, FileVersion, FileTablespaceLink, and FileRelation too
	XID     FullTransactionID // FileTwoPhase
	Major   Major             // the major whose directory in a user tablespace the file is in; 0 elsewhere
}

// Classify tells what a file is by its path below PGDATA, with slashes. Files of a user tablespace come as pg_tblspc/OID/PG_…/…, wherever
// the tablespace lies. Only files and symbolic links are classified: a directory's path yields nothing useful but FileTablespaceLink.
//
// An error means that the path is not one below PGDATA. A name that PostgreSQL does not use is FileUnknown, without an error: what to do
// with it is the caller's choice.
func Classify(p string) (File, error) {
	if p == "" || path.IsAbs(p) || path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "../") {
		return File{}, fmt.Errorf("%q is not the path of a file below a data directory", p)
	}
	dir, rest, deep := strings.Cut(p, "/")
	if !deep {
		return classifyTop(p), nil
	}
	if isTemporaryPath(p) {
		return File{Kind: FileIgnored}, nil
	}
	switch dir {
	case "base":
		db, name, ok := strings.Cut(rest, "/")
		if oid, isOid := parseOid(db); ok && isOid {
			return classifyInDatabase(DefaultTablespace, oid, name), nil
		}
		return File{}, nil
	case "global":
		if rest == "pg_control" {
			return File{Kind: FileControl}, nil
		}
		if rest == "pg_control.tmp" || rest == "PG_VERSION" {
			return File{Kind: FileIgnored}, nil
		}
		return classifyInDatabase(GlobalTablespace, 0, rest), nil
	case "pg_tblspc":
		return classifyTablespace(rest), nil
	case "pg_xact":
		return classifySLRU(Xact, rest), nil
	case "pg_commit_ts":
		return classifySLRU(CommitTs, rest), nil
	case "pg_multixact":
		kind, name, _ := strings.Cut(rest, "/")
		switch kind {
		case "offsets":
			return classifySLRU(MultiXactOffsets, name), nil
		case "members":
			return classifySLRU(MultiXactMembers, name), nil
		}
		return File{}, nil
	case "pg_twophase":
		if xid, ok := parseTwoPhaseName(rest); ok {
			return File{Kind: FileTwoPhase, XID: xid}, nil
		}
		return File{}, nil
	case "pg_logical":
		if rest == "replorigin_checkpoint" {
			return File{Kind: FileOrigins}, nil
		}
		// Mappings and snapshots serve logical slots, which no copy has.
		return File{Kind: FileIgnored}, nil
	case "pg_wal":
		return File{Kind: FileWAL}, nil
	case "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat", "pg_stat_tmp", "pg_subtrans":
		return File{Kind: FileIgnored}, nil
	}
	if isConfigName(rest) {
		return File{Kind: FileConfig}, nil
	}
	return File{}, nil
}

// classifyTop classifies a file that lies in PGDATA itself.
func classifyTop(name string) File {
	switch name {
	case "PG_VERSION":
		return File{Kind: FileVersion}
	case "backup_label", "tablespace_map", "backup_manifest", "backup_label.old", "tablespace_map.old":
		return File{Kind: FileBackup}
	case "postmaster.pid", "postmaster.opts", "current_logfiles", "current_logfiles.tmp", "postgresql.auto.conf.tmp",
		"recovery.signal", "standby.signal", "promote", "logrotate", "recovery.conf", "recovery.done", "backup_manifest.tmp":
		return File{Kind: FileIgnored}
	}
	if strings.HasPrefix(name, tempPrefix) {
		return File{Kind: FileIgnored}
	}
	if isConfigName(name) {
		return File{Kind: FileConfig}
	}
	return File{}
}

// isConfigName tells configuration by its suffix, since include directives and TLS settings may name any file.
func isConfigName(name string) bool {
	switch path.Ext(name) {
	case ".conf", ".crt", ".key", ".pem", ".crl":
		return true
	}
	return false
}

const tempPrefix = "pgsql_tmp" // PG_TEMP_FILE_PREFIX and PG_TEMP_FILES_DIR

// isTemporaryPath tells whether a part of the path is a temporary file or directory of PostgreSQL.
func isTemporaryPath(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if strings.HasPrefix(part, tempPrefix) {
			return true
		}
	}
	return false
}

// classifyInDatabase classifies a file in a database's directory or in global/.
func classifyInDatabase(spc, db Oid, name string) File {
	f := File{Spc: spc, DB: db}
	switch {
	case name == "pg_filenode.map":
		f.Kind = FileRelMap
		return f
	case name == "PG_VERSION":
		f.Kind = FileVersion
		return f
	case strings.HasPrefix(name, "pg_internal.init"), strings.HasPrefix(name, "pg_filenode.map."), isTemporaryRelation(name):
		return File{Kind: FileIgnored}
	}
	rel, fork, segment, ok := parseRelationName(name)
	if !ok {
		return File{}
	}
	f.Kind = FileRelation
	f.Rel = RelFork{RelFileLocator: RelFileLocator{Spc: spc, DB: db, Rel: rel}, Fork: fork}
	f.Segment = segment
	return f
}

// classifyTablespace classifies OID, or OID/PG_VERSION_DIR/DB/NAME, below pg_tblspc.
func classifyTablespace(p string) File {
	parts := strings.Split(p, "/")
	spc, ok := parseOid(parts[0])
	if !ok {
		return File{}
	}
	if len(parts) == 1 {
		return File{Kind: FileTablespaceLink, Spc: spc}
	}
	major, ok := parseVersionDir(parts[1])
	if !ok || len(parts) != 4 {
		return File{}
	}
	db, ok := parseOid(parts[2])
	if !ok {
		return File{}
	}
	f := classifyInDatabase(spc, db, parts[3])
	f.Major = major
	return f
}

func classifySLRU(s SLRU, name string) File {
	if segment, ok := parseSegmentName(name); ok {
		return File{Kind: FileSLRU, SLRU: s, Segment: segment}
	}
	return File{}
}
