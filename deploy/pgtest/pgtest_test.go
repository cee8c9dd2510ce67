package pgtest_test

import (
	"fmt"
	"strings"
	"testing"

	"everpage/deploy/pgtest"
)

func TestEveryMajorStartsAndStops(t *testing.T) {
	for major := 14; major <= 18; major++ {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			s := pgtest.New(t, pgtest.Config{Major: major, Dir: t.TempDir(), Settings: pgtest.OracleSettings(major), InitdbArgs: []string{"--data-checksums", "--wal-segsize=1"}})
			version := s.MustSQL(t, "postgres", "show server_version_num", "show wal_segment_size", "show data_checksums", "show wal_consistency_checking")
			if !strings.HasPrefix(version[0][0], fmt.Sprint(major)) || version[1][0] != "1MB" || version[2][0] != "on" || version[3][0] != "all" {
				t.Fatalf("server says %v", version)
			}
			for _, ext := range []string{"pageinspect", "amcheck", "pg_visibility", "pg_trgm", "btree_gin", "btree_gist", "bloom", "pgcrypto"} {
				s.MustSQL(t, "postgres", "create extension "+ext)
			}
			s.MustSQL(t, "postgres", "create table t as select g a from generate_series(1, 1000) g", "create index on t(a)")
			if err := s.Kill9(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := s.MustSQL(t, "postgres", "select count(*) from t"); n[0][0] != "1000" {
				t.Fatalf("after a crash: %v rows", n)
			}
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if out, err := s.Amcheck(t.Context()); err != nil || out != "" {
				t.Fatalf("pg_amcheck: %v: %s", err, out)
			}
			if err := s.Stop(t.Context(), pgtest.Smart); err != nil {
				t.Fatal(err)
			}
		})
	}
}
