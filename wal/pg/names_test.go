package pg

import "testing"

func relOf(spc, db, rel Oid, f ForkNumber) RelFork {
	return RelFork{RelFileLocator: RelFileLocator{Spc: spc, DB: db, Rel: rel}, Fork: f}
}

func TestClassify(t *testing.T) {
	rel := func(r RelFork, seg uint32, m Major) File {
		return File{Kind: FileRelation, Rel: r, Segment: seg, Spc: r.Spc, DB: r.DB, Major: m}
	}
	ignored := File{Kind: FileIgnored}
	for p, want := range map[string]File{
		"base/5/16384":           rel(relOf(1663, 5, 16384, MainFork), 0, 0),
		"base/5/16384.1":         rel(relOf(1663, 5, 16384, MainFork), 1, 0),
		"base/5/16384_fsm":       rel(relOf(1663, 5, 16384, FSMFork), 0, 0),
		"base/5/16384_vm.12":     rel(relOf(1663, 5, 16384, VMFork), 12, 0),
		"base/5/4294967295":      rel(relOf(1663, 5, 4294967295, MainFork), 0, 0),
		"base/5/16384.32767":     rel(relOf(1663, 5, 16384, MainFork), 32767, 0),
		"base/5/16384.32768":     {},
		"base/5/4294967296":      {},
		"base/5/016384":          {},
		"base/5/0":               {},
		"base/5/16384.0":         {},
		"base/5/16384.01":        {},
		"base/5/16384_main":      {},
		"base/5/16384_fsm_vm":    {},
		"base/5/16384.1_fsm":     {},
		"base/5/pg_vm":           {},
		"base/16384":             {},
		"base/x/16384":           {},
		"base/5/x/16384":         {},
		"global/1262":            rel(relOf(1664, 0, 1262, MainFork), 0, 0),
		"global/1262_init":       rel(relOf(1664, 0, 1262, InitFork), 0, 0),
		"global/pg_control":      {Kind: FileControl},
		"global/pg_filenode.map": {Kind: FileRelMap, Spc: 1664},
		"base/5/pg_filenode.map": {Kind: FileRelMap, Spc: 1663, DB: 5},
		"base/5/PG_VERSION":      {Kind: FileVersion, Spc: 1663, DB: 5},
		"PG_VERSION":             {Kind: FileVersion},
		"pg_tblspc/16400":        {Kind: FileTablespaceLink, Spc: 16400},
		"pg_tblspc/16400/PG_15_202209061/5/16401_init":           rel(relOf(16400, 5, 16401, InitFork), 0, 15),
		"pg_tblspc/16400/PG_18_202506291/5/PG_VERSION":           {Kind: FileVersion, Spc: 16400, DB: 5, Major: 18},
		"pg_tblspc/16400/PG_15_202209062/5/16401":                {},
		"pg_tblspc/16400/PG_15_202209061/pgsql_tmp/pgsql_tmp1.0": ignored,
		"pg_xact/0000":                         {Kind: FileSLRU, SLRU: Xact},
		"pg_xact/0FFF":                         {Kind: FileSLRU, SLRU: Xact, Segment: 0xFFF},
		"pg_xact/0fff":                         {},
		"pg_xact/00FFF":                        {},
		"pg_multixact/members/14078":           {Kind: FileSLRU, SLRU: MultiXactMembers, Segment: 0x14078},
		"pg_multixact/offsets/0001":            {Kind: FileSLRU, SLRU: MultiXactOffsets, Segment: 1},
		"pg_commit_ts/0002":                    {Kind: FileSLRU, SLRU: CommitTs, Segment: 2},
		"pg_twophase/000002EF":                 {Kind: FileTwoPhase, XID: 0x2EF},
		"pg_twophase/00000001000002EF":         {Kind: FileTwoPhase, XID: 0x1000002EF},
		"pg_twophase/xyz":                      {},
		"pg_logical/replorigin_checkpoint":     {Kind: FileOrigins},
		"pg_logical/replorigin_checkpoint.tmp": ignored,
		"pg_logical/snapshots/0-15A3.snap":     ignored,
		"pg_wal/000000010000000000000001":      {Kind: FileWAL},
		"pg_wal/archive_status/x.ready":        {Kind: FileWAL},
		"postgresql.conf":                      {Kind: FileConfig},
		"postgresql.auto.conf":                 {Kind: FileConfig},
		"conf.d/a.conf":                        {Kind: FileConfig},
		"server.key":                           {Kind: FileConfig},
		"postgresql.auto.conf.tmp":             ignored,
		"base/5/t3_16390":                      ignored,
		"base/5/t3_16390_fsm.1":                ignored,
		"base/5/t_16390":                       {},
		"base/pgsql_tmp/pgsql_tmp12.0":         ignored,
		"base/5/pg_internal.init":              ignored,
		"global/pg_internal.init.77":           ignored,
		"pg_stat/pgstat.stat":                  ignored,
		"pg_stat_tmp/global.stat":              ignored,
		"pg_notify/0000":                       ignored,
		"pg_subtrans/0000":                     ignored,
		"pg_replslot/x/state":                  ignored,
		"postmaster.pid":                       ignored,
		"backup_label":                         {Kind: FileBackup},
		"log/postgresql-1.log":                 {},
	} {
		got, err := Classify(p)
		if err != nil || got != want {
			t.Errorf("Classify(%q) = %+v, %v; want %+v", p, got, err, want)
		}
	}
	for _, p := range []string{"", ".", "..", "../x", "/etc/passwd", "base//5", "base/5/", "base/../../x"} {
		if f, err := Classify(p); err == nil {
			t.Errorf("Classify(%q) = %+v, want an error", p, f)
		}
	}
}

func TestRelationPathIsClassifiedBack(t *testing.T) {
	for _, m := range Majors() {
		for _, r := range []RelFileLocator{{1663, 5, 16384}, {1664, 0, 1262}, {99999, 4294967295, 4294967295}} {
			for _, f := range Forks() {
				for _, seg := range []uint32{0, 1, 32767} {
					fork := RelFork{RelFileLocator: r, Fork: f}
					p := m.RelationPath(fork, seg)
					got, err := Classify(p)
					if err != nil || got.Kind != FileRelation || got.Rel != fork || got.Segment != seg {
						t.Errorf("%s is classified as %+v, %v", p, got, err)
					}
				}
			}
		}
	}
	if p := Major(15).RelationPath(relOf(16400, 5, 16401, VMFork), 2); p != "pg_tblspc/16400/PG_15_202209061/5/16401_vm.2" {
		t.Error(p)
	}
}

func TestParseRel(t *testing.T) {
	for s, want := range map[string]RelFileLocator{
		"base/5/16384": {1663, 5, 16384},
		"global/1262":  {1664, 0, 1262},
		"1663/5/16384": {1663, 5, 16384},
		"1664/0/1262":  {1664, 0, 1262},
		"pg_tblspc/16400/PG_14_202107181/5/16401": {16400, 5, 16401},
	} {
		if got, err := ParseRel(s); err != nil || got != want {
			t.Errorf("ParseRel(%q) = %v, %v; want %v", s, got, err, want)
		}
		if back, err := ParseRel(want.String()); err != nil || back != want {
			t.Errorf("ParseRel(%q) = %v, %v", want.String(), back, err)
		}
	}
	for _, s := range []string{"", "16384", "base/5", "base/5/16384_vm", "base/5/16384.1", "base/5/t3_16384", "1664/5/1", "1663/0/1", "0/5/1",
		"1663/5/0", "a/b/c", "global/pg_control", "base/5/PG_VERSION", "-1/5/1", "1663/5/4294967296"} {
		if got, err := ParseRel(s); err == nil {
			t.Errorf("ParseRel(%q) = %v, want an error", s, got)
		}
	}
}

func TestTwoPhaseName(t *testing.T) {
	x := FullTransactionID(3<<32 | 0x2EF)
	if n := Major(16).TwoPhaseName(x); n != "000002EF" {
		t.Error(n)
	}
	if n := Major(17).TwoPhaseName(x); n != "00000003000002EF" {
		t.Error(n)
	}
}
