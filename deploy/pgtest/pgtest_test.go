package pgtest_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

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
			standbyFollows(t, s)
			if err := s.Stop(t.Context(), pgtest.Smart); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// standbyFollows makes a standby of a server with a tablespace and compares a table that is filled afterwards.
func standbyFollows(t *testing.T, s *pgtest.Server) {
	t.Helper()
	location := filepath.Join(t.TempDir(), "space")
	if err := s.MakeDir(location); err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", "create tablespace space location '"+location+"'", "create table elsewhere(a int) tablespace space")
	standby, err := s.Standby(t.Context(), "follower", pgtest.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, standby)
	s.MustSQL(t, "postgres", "insert into elsewhere select generate_series(1, 500)")
	lsn, err := s.CurrentLSN(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := standby.WaitReplayed(t.Context(), lsn); err != nil {
		t.Fatal(err)
	}
	got := standby.MustSQL(t, "postgres", "select count(*), pg_is_in_recovery() from elsewhere", "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'space'")
	if got[0][0] != "500" || got[0][1] != "t" || got[1][0] == location {
		t.Errorf("standby says %v", got)
	}
	// A smart shutdown of the primary waits for its standbys.
	if err := standby.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Error(err)
	}
}

func TestArchiveAndColdCopyRecoverToAnLSN(t *testing.T) {
	dir := t.TempDir()
	archive, location := filepath.Join(dir, "archive"), filepath.Join(dir, "space")
	s, err := pgtest.Init(t.Context(), pgtest.Config{Dir: filepath.Join(dir, "server"), InitdbArgs: []string{"--wal-segsize=1"},
		Settings: pgtest.Merge(pgtest.OracleSettings(pgtest.DefaultMajor), pgtest.ArchiveSettings(archive))})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, s)
	for _, d := range []string{archive, location} {
		if err := s.MakeDir(d); err != nil {
			t.Fatal(err)
		}
	}
	base := filepath.Join(dir, "base")
	if err := s.CopyCold(base); err != nil {
		t.Fatal(err)
	}
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", "create tablespace space location '"+location+"'", "create table t(a int) tablespace space", "insert into t select generate_series(1, 10)")
	target, err := s.CurrentLSN(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", "insert into t select generate_series(1, 90)", "create table later()")
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	if archived, err := pgtest.Segments(archive); err != nil || len(archived) == 0 {
		t.Fatalf("archive holds %v, %v", archived, err)
	}
	// The archiver never sees the segment in use.
	if err := s.KeepWAL(archive); err != nil {
		t.Fatal(err)
	}
	if state, err := s.Controldata(t.Context()); err != nil || state["Database cluster state"] != "shut down" {
		t.Fatalf("control data %v, %v", state, err)
	}
	for _, promote := range []bool{false, true} {
		r, err := pgtest.RecoverTo(t.Context(), pgtest.Recovery{Config: pgtest.Config{Dir: filepath.Join(dir, fmt.Sprint(promote))},
			Base: base, WAL: archive, LSN: target, Promote: promote, Locations: []string{location}})
		if err != nil {
			t.Fatal(err)
		}
		got := r.MustSQL(t, "postgres", "select count(*) from t", "select to_regclass('later') is null")
		if got[0][0] != "10" || got[1][0] != "t" {
			t.Errorf("promote %v: %v", promote, got)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pgtest.RecoverTo(t.Context(), pgtest.Recovery{Base: base, WAL: archive, LSN: "1/0", Locations: []string{location}}); err == nil ||
		!strings.Contains(err.Error(), "recovery ended before configured recovery target was reached") {
		t.Errorf("a target after the end: %v", err)
	}
}

func TestPasswordRole(t *testing.T) {
	s := pgtest.New(t, pgtest.Config{HBA: []string{"host all keeper 127.0.0.1/32 scram-sha-256"}})
	s.MustSQL(t, "postgres", "create role keeper login password 'right'")
	for password, ok := range map[string]bool{"right": true, "wrong": false} {
		uri := strings.Replace(s.URI("postgres"), "postgres@", "keeper:"+password+"@", 1)
		if _, err := s.Client(t.Context(), "psql", "-c", "select 1", uri); (err == nil) != ok {
			t.Errorf("password %q: %v", password, err)
		}
	}
}

func TestStartReportsWhyAServerEnds(t *testing.T) {
	_, err := pgtest.Start(t.Context(), pgtest.Config{Settings: map[string]string{"shared_buffers": "none of these"}})
	if err == nil || !strings.Contains(err.Error(), "shared_buffers") {
		t.Fatalf("error %v does not name the setting", err)
	}
}

// orphanArg before a directory as last argument makes the test binary the process that starts a server and is killed.
const orphanArg = "orphan="

// TestServerEndsWithAKilledTest starts a server from a process of its own, kills that process and waits for the server's end.
func TestServerEndsWithAKilledTest(t *testing.T) {
	if dir, ok := strings.CutPrefix(os.Args[len(os.Args)-1], orphanArg); ok {
		s, err := pgtest.Start(t.Context(), pgtest.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("postmaster", s.Pid(), s.SocketDir())
		<-t.Context().Done() // until killed
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestServerEndsWithAKilledTest$", orphanArg+filepath.Join(t.TempDir(), "server"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var words []string
	for scanner := bufio.NewScanner(out); scanner.Scan(); {
		if words = strings.Fields(scanner.Text()); len(words) == 3 && words[0] == "postmaster" {
			break
		}
	}
	if len(words) != 3 {
		t.Fatalf("no server was started: %q", words)
	}
	defer os.RemoveAll(words[2])
	pid, err := strconv.Atoi(words[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // killed, as it should be
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for running(pid) {
		select {
		case <-ctx.Done():
			t.Fatalf("postmaster %d outlived its test", pid)
		case <-tick.C:
		}
	}
}

// running tells whether a process exists and is no zombie.
func running(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
