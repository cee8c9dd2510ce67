package pg

import (
	"fmt"
	"strconv"
	"strings"
)

// forkSuffix is what a fork's file name bears behind the relation number (forkNames, relpath.c).
func forkSuffix(f ForkNumber) string {
	if f == MainFork {
		return ""
	}
	return "_" + f.String()
}

// DatabaseDir is the directory below PGDATA that holds a database's relations of one tablespace (GetDatabasePath).
// Shared relations have the database 0 and the tablespace GlobalTablespace.
func (m Major) DatabaseDir(spc, db Oid) string {
	switch spc {
	case GlobalTablespace:
		return "global"
	case DefaultTablespace:
		return fmt.Sprintf("base/%d", db)
	}
	return fmt.Sprintf("pg_tblspc/%d/%s/%d", spc, m.TablespaceVersionDir(), db)
}

// RelationPath is the path below PGDATA of one segment of a relation fork (GetRelationPath and _mdfd_segpath).
func (m Major) RelationPath(r RelFork, segment uint32) string {
	p := m.DatabaseDir(r.Spc, r.DB) + "/" + strconv.FormatUint(uint64(r.Rel), 10) + forkSuffix(r.Fork)
	if segment == 0 {
		return p
	}
	return p + "." + strconv.FormatUint(uint64(segment), 10)
}

// TwoPhaseName is the name of a prepared transaction's file in pg_twophase (TwoPhaseFilePath): since 17 it bears the epoch too.
func (m Major) TwoPhaseName(xid FullTransactionID) string {
	if m >= 17 {
		return fmt.Sprintf("%08X%08X", xid.Epoch(), xid.XID())
	}
	return fmt.Sprintf("%08X", xid.XID())
}

// ParseRel reads a relation as the command line names it: what pg_relation_filepath() prints, or spc/db/rel.
func ParseRel(s string) (RelFileLocator, error) {
	parts := strings.Split(strings.TrimPrefix(s, "./"), "/")
	bad := func(why string) (RelFileLocator, error) {
		return RelFileLocator{}, fmt.Errorf("invalid relation %q: %s: want base/DB/REL, global/REL, pg_tblspc/OID/PG_15_202209061/DB/REL or SPC/DB/REL", s, why)
	}
	name := parts[len(parts)-1]
	if isTemporaryRelation(name) {
		return bad("a temporary relation is not in the WAL, so it is not kept")
	}
	if strings.ContainsAny(name, "_.") {
		return bad("name the relation without fork and segment")
	}
	if len(parts) == 3 && parts[0] != "base" {
		spc, ok1 := parseOid(parts[0])
		db, ok2 := parseNumber(parts[1])
		rel, ok3 := parseOid(parts[2])
		if !ok1 || !ok2 || !ok3 {
			return bad("not three OIDs")
		}
		if (spc == GlobalTablespace) != (db == 0) {
			return bad("database 0 goes with tablespace 1664 and with no other")
		}
		return RelFileLocator{Spc: spc, DB: db, Rel: rel}, nil
	}
	f, err := Classify(strings.TrimPrefix(s, "./"))
	if err != nil || f.Kind != FileRelation {
		return bad("not a relation's path")
	}
	return f.Rel.RelFileLocator, nil
}

// parseNumber reads a decimal number of at most 32 bits in the only form PostgreSQL writes: no sign, no leading zero.
func parseNumber(s string) (uint32, bool) {
	if s == "" || s[0] == '0' && len(s) > 1 || s[0] == '+' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}

func parseOid(s string) (Oid, bool) {
	n, ok := parseNumber(s)
	return n, ok && n != InvalidOid
}

// parseRelationName reads REL[_fork][.N] (parse_filename_for_nontemp_relation, reinit.c).
func parseRelationName(name string) (rel Oid, fork ForkNumber, segment uint32, ok bool) {
	base, seg, hasSeg := strings.Cut(name, ".")
	if hasSeg {
		// The last segment number that a block number can reach.
		const last = uint32((uint64(InvalidBlock) - 1) / SegmentBlocks)
		if segment, ok = parseOid(seg); !ok || segment > last {
			return 0, 0, 0, false
		}
	}
	number, suffix, hasFork := strings.Cut(base, "_")
	if hasFork {
		f, err := ParseFork(suffix)
		if err != nil || f == MainFork {
			return 0, 0, 0, false
		}
		fork = f
	}
	rel, ok = parseOid(number)
	return rel, fork, segment, ok
}

// isTemporaryRelation tells the names of temporary relations: tBACKEND_REL[_fork][.N] (looks_like_temp_rel_name).
func isTemporaryRelation(name string) bool {
	if len(name) < 2 || name[0] != 't' {
		return false
	}
	backend, rest, ok := strings.Cut(name[1:], "_")
	if !ok {
		return false
	}
	if _, ok = parseNumber(backend); !ok {
		return false
	}
	_, _, _, ok = parseRelationName(rest)
	return ok
}

// parseSegmentName reads an SLRU segment's name: four to six upper-case hexadecimal digits, as few as the number needs
// but at least four.
func parseSegmentName(name string) (uint32, bool) {
	if len(name) < 4 || len(name) > 6 {
		return 0, false
	}
	n, err := strconv.ParseUint(name, 16, 32)
	if err != nil || SLRUSegmentName(uint32(n)) != name {
		return 0, false
	}
	return uint32(n), true
}

// parseTwoPhaseName reads a name in pg_twophase. Names of 14 to 16 have no epoch: theirs is 0.
func parseTwoPhaseName(name string) (FullTransactionID, bool) {
	if len(name) != 8 && len(name) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(name, 16, 64)
	if err != nil || strings.ToUpper(name) != name {
		return 0, false
	}
	return FullTransactionID(n), true
}

// parseVersionDir reads PG_15_202209061. The version must be one of a supported major's releases.
func parseVersionDir(name string) (Major, bool) {
	for _, m := range Majors() {
		if m.TablespaceVersionDir() == name {
			return m, true
		}
	}
	return 0, false
}
