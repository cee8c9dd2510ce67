package workload_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"everpage/deploy/pgtest"
	"everpage/deploy/workload"
)

// mixedRecords are record types that the mixed workload is there to write.
var mixedRecords = []string{
	"Btree/DEDUP", "Btree/DELETE", "Btree/INSERT_LEAF", "Btree/INSERT_POST", "Btree/INSERT_UPPER", "Btree/MARK_PAGE_HALFDEAD",
	"Btree/META_CLEANUP", "Btree/NEWROOT", "Btree/REUSE_PAGE", "Btree/SPLIT_L", "Btree/SPLIT_R", "Btree/UNLINK_PAGE",
	"Btree/UNLINK_PAGE_META", "Btree/VACUUM", "CLOG/ZEROPAGE", "CommitTs/ZEROPAGE", "CommitTs/TRUNCATE",
	"Database/CREATE_FILE_COPY", "Database/CREATE_WAL_LOG", "Database/DROP",
	"Heap/DELETE", "Heap/HEAP_CONFIRM", "Heap/HOT_UPDATE", "Heap/INPLACE", "Heap/INSERT", "Heap/LOCK", "Heap/UPDATE",
	"Heap2/FREEZE_PAGE", "Heap2/LOCK_UPDATED", "Heap2/MULTI_INSERT", "Heap2/PRUNE", "Heap2/VACUUM", "Heap2/VISIBLE",
	"LogicalMessage/MESSAGE", "MultiXact/CREATE_ID", "MultiXact/TRUNCATE_ID", "MultiXact/ZERO_MEM_PAGE", "MultiXact/ZERO_OFF_PAGE",
	"RelMap/UPDATE", "ReplicationOrigin/DROP", "ReplicationOrigin/SET", "Sequence/LOG", "Standby/INVALIDATIONS", "Standby/LOCK",
	"Standby/RUNNING_XACTS", "Storage/CREATE", "Storage/TRUNCATE", "Tablespace/CREATE", "Tablespace/DROP",
	"Transaction/ABORT", "Transaction/ABORT_PREPARED", "Transaction/ASSIGNMENT", "Transaction/COMMIT", "Transaction/COMMIT_PREPARED",
	"Transaction/PREPARE", "XLOG/CHECKPOINT_ONLINE", "XLOG/CHECKPOINT_SHUTDOWN", "XLOG/FPI", "XLOG/FPW_CHANGE", "XLOG/NEXTOID",
	"XLOG/RESTORE_POINT", "XLOG/SWITCH",
}

// indexRecords are those that the workload on other index methods is there to write.
var indexRecords = []string{
	"BRIN/CREATE_INDEX", "BRIN/DESUMMARIZE", "BRIN/INSERT", "BRIN/REVMAP_EXTEND", "BRIN/SAMEPAGE_UPDATE", "BRIN/UPDATE", "Generic/Generic",
	"Gin/CREATE_PTREE", "Gin/DELETE_LISTPAGE", "Gin/DELETE_PAGE", "Gin/INSERT", "Gin/INSERT_LISTPAGE", "Gin/SPLIT", "Gin/UPDATE_META_PAGE",
	"Gin/VACUUM_DATA_LEAF_PAGE", "Gin/VACUUM_PAGE", "Gist/DELETE", "Gist/PAGE_DELETE", "Gist/PAGE_REUSE", "Gist/PAGE_SPLIT",
	"Gist/PAGE_UPDATE", "Hash/ADD_OVFL_PAGE", "Hash/DELETE", "Hash/INIT_BITMAP_PAGE", "Hash/INIT_META_PAGE", "Hash/INSERT",
	"Hash/MOVE_PAGE_CONTENTS", "Hash/SPLIT_ALLOCATE_PAGE", "Hash/SPLIT_CLEANUP", "Hash/SPLIT_COMPLETE", "Hash/SPLIT_PAGE",
	"Hash/SQUEEZE_PAGE", "Hash/UPDATE_META_PAGE", "Hash/VACUUM_ONE_PAGE", "SPGist/ADD_LEAF", "SPGist/ADD_NODE", "SPGist/MOVE_LEAFS",
	"SPGist/PICKSPLIT", "SPGist/SPLIT_TUPLE", "SPGist/VACUUM_LEAF", "SPGist/VACUUM_REDIRECT", "SPGist/VACUUM_ROOT",
}

func TestIndexCorpusIsComplete(t *testing.T) {
	f, err := workload.Cached(t.Context(), pgtest.DefaultMajor, nil, workload.Indexes, workload.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	bin, err := pgtest.Fetch(t.Context(), pgtest.DefaultMajor)
	if err != nil {
		t.Fatal(err)
	}
	counts, last := dump(t, bin, f)
	if want := controldata(t, bin, f.Final, "Latest checkpoint location"); last != want {
		t.Errorf("last checkpoint at %s, final data directory names %s", last, want)
	}
	for _, name := range indexRecords {
		if counts[name] == 0 {
			t.Errorf("no record of type %s", name)
		}
	}
}

func TestMixedCorpusIsCompleteAndRecovers(t *testing.T) {
	f, err := workload.Cached(t.Context(), pgtest.DefaultMajor, nil, workload.Mixed, workload.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	bin, err := pgtest.Fetch(t.Context(), pgtest.DefaultMajor)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("segments have no hole", func(t *testing.T) {
		segments, err := pgtest.Segments(f.WAL)
		if err != nil {
			t.Fatal(err)
		}
		if want := controldata(t, bin, f.Base, "Latest checkpoint's REDO WAL file"); segments[0] > want {
			t.Errorf("first segment %s, replay of the base starts in %s", segments[0], want)
		}
		for i, name := range segments {
			if want := fmt.Sprintf("0000000100000000%08X", 1+i); name != want {
				t.Fatalf("segment %d is %s, expected %s", i, name, want)
			}
		}
	})
	t.Run("records reach to the final checkpoint", func(t *testing.T) {
		counts, last := dump(t, bin, f)
		if want := controldata(t, bin, f.Final, "Latest checkpoint location"); last != want {
			t.Errorf("last checkpoint at %s, final data directory names %s", last, want)
		}
		for _, name := range mixedRecords {
			if counts[name] == 0 {
				t.Errorf("no record of type %s", name)
			}
		}
		for name := range counts {
			if manager, _, _ := strings.Cut(name, "/"); strings.Contains("Hash Gin Gist SPGist BRIN Generic", manager) {
				t.Errorf("a record of type %s, which the mixed workload must not write", name)
			}
		}
	})
	t.Run("a stock server recovers to a mark", func(t *testing.T) {
		mark := f.Marks[len(f.Marks)/2]
		s := recoverTo(t, f, mark.LSN, false)
		if got := s.MustSQL(t, "postgres", "select pg_last_wal_replay_lsn() <= '"+mark.LSN+"'"); got[0][0] != "t" {
			t.Errorf("replayed beyond %s", mark.LSN)
		}
		invariant(t, s)
	})
	t.Run("a stock server recovers to the end and is sound", func(t *testing.T) {
		s := recoverTo(t, f, f.End, true)
		invariant(t, s)
		if got := s.MustSQL(t, "postgres", "select gid from pg_prepared_xacts"); len(got) != 1 || got[0][0] != "p_stays" {
			t.Errorf("prepared transactions: %v", got)
		}
		s.MustSQL(t, "postgres", "commit prepared 'p_stays'")
		if got := s.MustSQL(t, "postgres", "select count(*) from ts_stays"); got[0][0] != "700" {
			t.Errorf("%v rows in the other tablespace", got)
		}
		if out, err := s.Amcheck(t.Context()); err != nil || out != "" {
			t.Errorf("pg_amcheck: %v: %s", err, out)
		}
	})
	t.Run("the second call finds it", func(t *testing.T) {
		again, err := workload.Cached(t.Context(), pgtest.DefaultMajor, nil, workload.Mixed, workload.Options{Seed: 1})
		if err != nil || again.Dir != f.Dir || again.End != f.End {
			t.Errorf("%v, %v", again, err)
		}
	})
}

// TestWorkloadsOnEveryMajor runs the workloads, small, on each major, and a second round of each on one.
func TestWorkloadsOnEveryMajor(t *testing.T) {
	for major := 14; major <= 18; major++ {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.New(t, pgtest.Config{Major: major, Dir: t.TempDir(), Settings: pgtest.OracleSettings(major)})
			rounds := map[workload.Which]int{workload.Mixed: 1, workload.Indexes: 1}
			switch major {
			case 14:
				rounds[workload.Indexes] = 2
			case 15: // the corpora above are one round of it
				rounds = map[workload.Which]int{workload.Mixed: 2}
			}
			for _, which := range []workload.Which{workload.Mixed, workload.Indexes} {
				if rounds[which] == 0 {
					continue
				}
				o := workload.Options{Seed: 7, Rows: 60, Rounds: rounds[which], Transactions: 20, Burn: 500}
				result, err := workload.Run(t.Context(), s, which, o)
				if err != nil {
					t.Fatal(err)
				}
				if len(result.Marks) < 5*o.Rounds {
					t.Errorf("%s left %d marks", which, len(result.Marks))
				}
			}
			invariant(t, s)
		})
	}
}

func recoverTo(t *testing.T, f *workload.Files, lsn string, promote bool) *pgtest.Server {
	t.Helper()
	s, err := pgtest.RecoverTo(t.Context(), pgtest.Recovery{
		Config: pgtest.Config{Major: f.Major, Dir: t.TempDir()},
		Base:   f.Base, WAL: f.WAL, LSN: lsn, Promote: promote, Locations: f.Tablespaces,
	})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, s)
	return s
}

// invariant checks what pgbench's transactions keep true at any moment.
func invariant(t *testing.T, s *pgtest.Server) {
	t.Helper()
	got := s.MustSQL(t, "bench", `select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
		(select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history), (select count(*) from pgbench_accounts)`)[0]
	if got[0] != got[1] || got[0] != got[2] || got[0] != got[3] || got[4] != "100000" {
		t.Errorf("pgbench's sums differ: %v", got)
	}
}

func controldata(t *testing.T, bin, data, label string) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(bin, "pg_controldata"), "-D", data).Output()
	if err != nil {
		t.Fatalf("pg_controldata %s: %v", data, err)
	}
	_, rest, ok := strings.Cut(string(out), label+":")
	if !ok {
		t.Fatalf("pg_controldata %s prints no %s", data, label)
	}
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

// dump counts the records of a corpus by type, as pg_waldump names them, and returns where the last checkpoint's record begins.
func dump(t *testing.T, bin string, f *workload.Files) (counts map[string]int, last string) {
	t.Helper()
	// At the end of WAL pg_waldump reports an invalid record and fails: what it printed before is what counts.
	out, err := exec.Command(filepath.Join(bin, "pg_waldump"), "-p", f.WAL, "-s", controldata(t, bin, f.Base, "Latest checkpoint's REDO location")).Output()
	if err != nil && len(out) == 0 {
		t.Fatalf("pg_waldump: %v", err)
	}
	counts = map[string]int{}
	record := regexp.MustCompile(`(?m)^rmgr: (\w+) +len .* lsn: ([0-9A-F/]+), prev [0-9A-F/]+, desc: (\w+)(\+INIT)?`)
	for _, m := range record.FindAllStringSubmatch(string(out), -1) {
		counts[m[1]+"/"+m[3]]++
		if strings.HasPrefix(m[3], "CHECKPOINT_SHUTDOWN") {
			lsn := strings.Split(m[2], "/")
			last = strings.TrimLeft(lsn[0], "0") + "/" + strings.TrimLeft(lsn[1], "0")
			if last[0] == '/' {
				last = "0" + last
			}
		}
	}
	return counts, last
}
