package datadir_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"everpage/deploy/pgtest"
	"everpage/pageapi/datadir"
	"everpage/wal/pg"
)

// TestAccessFilesOutside starts servers whose source reads a part of its pg_hba.conf from elsewhere.
func TestAccessFilesOutside(t *testing.T) {
	for _, major := range []pg.Major{15, 16} {
		t.Run(fmt.Sprint(major), func(t *testing.T) { testAccessFilesOutside(t, major) })
	}
}

func testAccessFilesOutside(t *testing.T, major pg.Major) {
	ctx := t.Context()
	source := pgtest.New(t, pgtest.Config{Major: int(major), Dir: t.TempDir()})
	outside := filepath.Join(filepath.Dir(source.DataDir()), "access")
	hba := "host all @" + filepath.Join(outside, "users") + " 192.0.2.1/32 reject\n"
	if major >= 16 {
		hba += "include " + filepath.Join(outside, "more.conf") + "\ninclude_if_exists " + filepath.Join(outside, "none.conf") + "\ninclude_dir \"" + outside + "\"\ninclude inside.conf\n"
		if err := os.WriteFile(filepath.Join(source.DataDir(), "inside.conf"), []byte("host all all 192.0.2.2/32 reject\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := source.Stop(ctx, pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(source.DataDir(), "pg_hba.conf")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append([]byte(hba), b...), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := openCold(source.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "restored")
	tree, err := datadir.Plan(ctx, src, datadir.Options{At: src.end, Timeline: 2, Reason: "test", Now: time.Now(), PathExists: exists})
	if err != nil {
		t.Fatal(err)
	}
	if err := datadir.Write(ctx, tree, dir, datadir.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Log(tree.Notes)
	s, err := pgtest.Open(ctx, dir, pgtest.Config{Major: int(major), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, s)
	if n := s.MustSQL(t, "postgres", "select count(*) from pg_hba_file_rules where error is not null"); n[0][0] != "0" {
		t.Errorf("%v lines of pg_hba.conf are wrong", n)
	}
	if n := s.MustSQL(t, "postgres", "select count(*) from pg_hba_file_rules where address = '192.0.2.2'"); major >= 16 && n[0][0] != "1" {
		t.Errorf("what is included from the data directory counts %v times", n)
	}
}
