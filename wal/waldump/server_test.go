package waldump_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"everpage/deploy/pgtest"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waldump"
)

func serverLSN(t *testing.T, s *pgtest.Server, query string) pg.LSN {
	t.Helper()
	lsn, err := pg.ParseLSN(s.MustSQL(t, "postgres", query)[0][0])
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// readNames reads a directory to its end and counts the records by name.
func readNames(t *testing.T, dir string, end pg.LSN) map[string]int {
	t.Helper()
	r, closer, err := waldump.Open(dir, 0, end)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	names := map[string]int{}
	for {
		rec, err := r.Next()
		if wal.IsEnd(err) {
			if r.Position() < end {
				t.Fatalf("WAL of %s ends at %s, want %s", dir, r.Position(), end)
			}
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names[rec.Rmgr.String()+"/"+redo.RecordName(rec.Major, rec.Rmgr, rec.Info)]++
	}
}

// A server that crashes while a long record is half on disk abandons it and marks the page behind; a promotion goes on in another timeline's files.
// Both are read through, with records across segments and switches between.
func TestWALOfCrashesAndPromotions(t *testing.T) {
	for _, major := range []int{14, 15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			s := pgtest.New(t, pgtest.Config{Major: major, InitdbArgs: []string{"--wal-segsize=1"}, Settings: map[string]string{
				"wal_keep_size": "1GB", "max_wal_size": "10GB", "checkpoint_timeout": "1d", "autovacuum": "off",
			}})
			message := func(bytes int) string {
				return fmt.Sprintf("select pg_logical_emit_message(false, 'long', repeat('x', %d))", bytes)
			}
			for range 3 {
				s.MustSQL(t, "postgres", "create table if not exists t as select 1", message(2_500_000), "select pg_switch_wal()", "insert into t values (1)", message(9000))
			}
			s.MustSQL(t, "postgres", "checkpoint")
			start := serverLSN(t, s, "select pg_current_wal_insert_lsn()")
			s.MustSQL(t, "postgres", message(600_000), "insert into t values (2)")
			if err := s.Kill9(t.Context()); err != nil {
				t.Fatal(err)
			}
			// Of the long record only the first pages reached the disk.
			lost := start&^(pg.BlockSize-1) + 5*pg.BlockSize
			const size = wal.SegmentSize(wal.MinSegmentSize)
			for n := size.Number(lost); ; n++ {
				file := filepath.Join(s.WALDir(), wal.Segment{Timeline: 1, Number: n}.Name(size))
				b, err := os.ReadFile(file)
				if os.IsNotExist(err) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				clear(b[max(lost, size.Start(n))-size.Start(n):])
				if err := os.WriteFile(file, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.MustSQL(t, "postgres", "insert into t values (3)", message(100_000), "insert into t values (4)")

			standby, err := s.Standby(t.Context(), "standby", pgtest.Config{Major: major})
			if err != nil {
				t.Fatal(err)
			}
			pgtest.CloseWith(t, standby)
			end := serverLSN(t, s, "select pg_current_wal_flush_lsn()")
			if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
				t.Fatal(err)
			}
			names := readNames(t, s.WALDir(), end)
			if names["XLOG/OVERWRITE_CONTRECORD"] != 1 || names["XLOG/SWITCH"] < 3 || names["LogicalMessage/MESSAGE"] != 7 {
				t.Fatalf("read %v", names)
			}
			if major == 15 {
				bin, err := pgtest.Fetch(t.Context(), 15)
				if err != nil {
					t.Fatal(err)
				}
				compare(t, filepath.Join(bin, "pg_waldump"), s.WALDir())
			}

			standby.MustSQL(t, "postgres", "select pg_promote()", "insert into t values (5)", message(3_000_000), "insert into t values (6)")
			end = serverLSN(t, standby, "select pg_current_wal_flush_lsn()")
			if err := standby.Stop(t.Context(), pgtest.Fast); err != nil {
				t.Fatal(err)
			}
			names = readNames(t, standby.WALDir(), end)
			if names["XLOG/END_OF_RECOVERY"] != 1 || names["LogicalMessage/MESSAGE"] < 1 {
				t.Fatalf("read %v", names)
			}
		})
	}
}
