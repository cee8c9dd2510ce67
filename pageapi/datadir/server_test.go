package datadir_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"everpage/deploy/pgtest"
	"everpage/pageapi/datadir"
	"everpage/wal/pg"
)

// TestServerStarts renders a cleanly stopped server's directory at its last LSN and runs a stock server on it.
func TestServerStarts(t *testing.T) {
	for _, major := range []pg.Major{15, 14, 16, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) { testServerStarts(t, major) })
	}
}

func testServerStarts(t *testing.T, major pg.Major) {
	ctx := t.Context()
	args := []string{"--wal-segsize=" + fmt.Sprint(1<<(major%4))}
	checksums := major != 16
	switch {
	case checksums:
		args = append(args, "--data-checksums")
	case major >= 18:
		args = append(args, "--no-data-checksums")
	}
	settings := map[string]string{"max_prepared_transactions": "5", "track_commit_timestamp": "on", "autovacuum": "off", "max_connections": "40",
		"archive_mode": "on", "archive_command": "true", "synchronous_standby_names": "", "ident_file": "/nowhere/pg_ident.conf"}
	if major >= 15 {
		settings["allow_in_place_tablespaces"] = "on"
	}
	source := pgtest.New(t, pgtest.Config{Major: int(major), Dir: t.TempDir(), InitdbArgs: args, Settings: settings})
	space := source.DataDir() + ".ts"
	mkdirFor(t, source, space)
	workload(t, source, major, space)
	want := digests(t, source)
	committed := source.MustSQL(t, "postgres", "select pg_xact_commit_timestamp(xmin), xmin, a from plain order by a limit 3")
	if err := source.Stop(ctx, pgtest.Fast); err != nil {
		t.Fatal(err)
	}

	src, err := openCold(source.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "restored")
	var last datadir.Progress
	tree, err := datadir.Plan(ctx, src, datadir.Options{At: src.end, Timeline: 7, Reason: "restored by a test", Now: time.Unix(1700000000, 0),
		TablespaceTarget: datadir.TablespacesBeside(dir, nil), PathExists: exists})
	if err != nil {
		t.Fatal(err)
	}
	if err := datadir.Write(ctx, tree, dir, datadir.WriteOptions{Every: 1, Progress: func(p datadir.Progress) { last = p }}); err != nil {
		t.Fatal(err)
	}
	if last.Bytes != tree.Bytes || last.Files != tree.Files || last.TotalBytes != tree.Bytes || tree.Files < 900 || last.Left != 0 {
		t.Errorf("progress ends with %+v, the tree has %d files of %d bytes", last, tree.Files, tree.Bytes)
	}
	if major == pgtest.DefaultMajor {
		checkClients(t, source, dir)
	}

	s, err := pgtest.Open(ctx, dir, pgtest.Config{Major: int(major), Dir: t.TempDir(), Settings: map[string]string{"log_min_messages": "log"}})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, s)
	log := readFile(t, s.LogFile())
	if !strings.Contains(log, "database system was shut down at 2023-11-14") {
		t.Errorf("log: %s", log)
	}
	for _, bad := range []string{"recovery", "redo", "PANIC", "FATAL:"} {
		if strings.Contains(strings.ReplaceAll(log, "FATAL:  the database system is starting up", ""), bad) {
			t.Errorf("log says %q: %s", bad, log)
		}
	}
	diffDigests(t, want, digests(t, s))
	if got := s.MustSQL(t, "postgres", "select pg_xact_commit_timestamp(xmin), xmin, a from plain order by a limit 3"); fmt.Sprint(got) != fmt.Sprint(committed) {
		t.Errorf("commit times: %v, want %v", got, committed)
	}
	one := func(query, want string) {
		t.Helper()
		if got := s.MustSQL(t, "postgres", query); len(got) != 1 || got[0][0] != want {
			t.Errorf("%s: %v, want %s", query, got, want)
		}
	}
	one("select count(*) from unlogged", "0")
	one("select timeline_id from pg_control_checkpoint()", "7")
	one("select remote_lsn from pg_show_replication_origin_status()", "0/ABCDEF")
	one("show archive_mode", "off")
	one("show max_connections", "40")
	one("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'ts'", dir+".tablespaces/"+s.MustSQL(t, "postgres", "select oid from pg_tablespace where spcname = 'ts'")[0][0])
	s.MustSQL(t, "postgres", "insert into unlogged select generate_series(1, 100)", "insert into plain select g, 'new' from generate_series(1, 1000) g",
		"commit prepared 'p1'", "rollback prepared 'p2'", "select a from multi for share")
	one("select count(*) from two_phase", "1")
	if err := s.Kill9(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.StartAgain(ctx); err != nil {
		t.Fatal(err)
	}
	one("select count(*) from plain where b = 'new'", "1000")
	one("select count(*) from unlogged", "0")
	if out, err := s.Amcheck(ctx); err != nil || out != "" {
		t.Errorf("pg_amcheck: %v: %s", err, out)
	}
	testStandby(t, s, major)
	s.MustSQL(t, "postgres", "vacuum freeze", "checkpoint")
	if err := s.Stop(ctx, pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	if checksums {
		verifyChecksums(t, dir)
	}
	if major == pgtest.DefaultMajor {
		if out, err := s.Client(ctx, "pg_checksums", "--check", "-D", dir); err != nil {
			t.Errorf("pg_checksums: %v: %s", err, out)
		}
	}
}

// workload makes a bit of everything that a data directory can hold.
func workload(t *testing.T, s *pgtest.Server, major pg.Major, space string) {
	t.Helper()
	s.MustSQL(t, "postgres", fmt.Sprintf("create tablespace ts location '%s'", space))
	s.MustSQL(t, "postgres", "create table plain (a int, b text)", "insert into plain select g, repeat(md5(g::text), 8) from generate_series(1, 40000) g",
		"create index on plain(a)", "create index on plain using hash(a)", "create index on plain using brin(a)",
		"create table toasted as select g a, (select string_agg(md5((g*i)::text), '') from generate_series(1, 400) i) b from generate_series(1, 50) g",
		"create table points as select point(g, g) p, array[g, g+1] i from generate_series(1, 3000) g", "create index on points using gist(p)",
		"create index on points using spgist(p)", "create index on points using gin(i)",
		"create unlogged table unlogged (a int primary key)", "insert into unlogged select generate_series(1, 5000)",
		"create sequence seq", "select nextval('seq') from generate_series(1, 50)",
		"create table spaced tablespace ts as select g a from generate_series(1, 5000) g", "create index on spaced(a) tablespace ts",
		"create unlogged table spaced_unlogged (a int) tablespace ts", "create index on spaced_unlogged(a) tablespace ts",
		"create table multi (a int primary key)", "insert into multi select generate_series(1, 500)",
		"delete from plain where a % 7 = 0", "vacuum plain, points",
		"select pg_replication_origin_create('o')", "select pg_replication_origin_advance('o', '0/ABCDEF')",
		"create table two_phase (a int)", "begin", "insert into two_phase values (1)", "prepare transaction 'p1'",
		"begin", "insert into two_phase values (2)", "savepoint s", "insert into two_phase values (3)", "prepare transaction 'p2'",
		"create database moved tablespace ts", "create database second", "checkpoint")
	s.MustSQL(t, "moved", "create table t as select g a from generate_series(1, 2000) g", "vacuum full pg_class", "create table d (a int) tablespace pg_default")
	s.MustSQL(t, "second", "create table t as select g a from generate_series(1, 2000) g", "create index on t(a)")
	if major >= 15 {
		s.MustSQL(t, "postgres", "create database copied template second strategy file_copy", "create tablespace inplace location ''",
			"create table spaced_inplace tablespace inplace as select g a from generate_series(1, 500) g")
	}
	// Multixacts: two transactions share the rows' locks.
	first, err := s.Conn(t.Context(), "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close(t.Context())
	for range 6 {
		if _, err := first.Exec(t.Context(), "begin; select a from multi for key share"); err != nil {
			t.Fatal(err)
		}
		s.MustSQL(t, "postgres", "begin; select a from multi for key share; commit")
		if _, err := first.Exec(t.Context(), "commit"); err != nil {
			t.Fatal(err)
		}
	}
}

// digests hashes every table, sequence and materialized view of every database, but unlogged ones and statistics of use.
func digests(t *testing.T, s *pgtest.Server) map[string]string {
	t.Helper()
	dbs, err := s.Databases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, db := range dbs {
		tables := s.MustSQL(t, db, "select oid::regclass::text from pg_class where relkind in ('r', 'm', 'S') and relpersistence = 'p' order by oid")
		var sql []string
		for _, r := range tables {
			sql = append(sql, "select count(*), sum(hashtextextended(row(t.*)::text, 0)::numeric) from "+r[0]+" t")
		}
		for i, row := range s.MustSQL(t, db, sql...) {
			all[db+" "+tables[i][0]] = row[0] + " " + row[1]
		}
	}
	return all
}

func diffDigests(t *testing.T, want, got map[string]string) {
	t.Helper()
	if len(want) != len(got) || len(want) < 150 {
		t.Errorf("%d tables, want %d", len(got), len(want))
	}
	for table, w := range want {
		if got[table] != w {
			t.Errorf("%s: %s, want %s", table, got[table], w)
		}
	}
}

// checkClients lets PostgreSQL's own programs read what was written, before a server changes it.
func checkClients(t *testing.T, s *pgtest.Server, dir string) {
	t.Helper()
	if out, err := s.Client(t.Context(), "pg_checksums", "--check", "-D", dir); err != nil {
		t.Errorf("pg_checksums: %v: %s", err, out)
	}
	out, err := s.Client(t.Context(), "pg_controldata", "-D", dir)
	if err != nil || !strings.Contains(out, "Database cluster state:               shut down\n") || strings.Contains(out, "WARNING") {
		t.Errorf("pg_controldata: %v: %s", err, out)
	}
	segments, err := pgtest.Segments(filepath.Join(dir, "pg_wal"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments: %v, %v", segments, err)
	}
	out, err = s.Client(t.Context(), "pg_waldump", filepath.Join(dir, "pg_wal", segments[0]))
	if !strings.Contains(out, "CHECKPOINT_SHUTDOWN") || strings.Count(out, "\n") != 1 {
		t.Errorf("pg_waldump: %v: %s", err, out)
	}
}

// testStandby makes a standby of the restored server and lets it follow.
func testStandby(t *testing.T, s *pgtest.Server, major pg.Major) {
	t.Helper()
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "standby")
	spaces, err := s.Tablespaces()
	if err != nil {
		t.Fatal(err)
	}
	if major <= 15 {
		args := []string{"-D", dir, "-X", "stream", "-c", "fast"}
		for oid, path := range spaces {
			args = append(args, "-T", path+"="+dir+".ts"+oid)
		}
		if out, err := s.Client(ctx, "pg_basebackup", args...); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	} else {
		// pg_basebackup of 15 does not talk to newer servers: copy between the calls that it makes.
		conn, err := s.Conn(ctx, "postgres")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, "select pg_backup_start('b', true)"); err != nil {
			t.Fatal(err)
		}
		copyLive(t, s.DataDir(), dir)
		for oid, path := range spaces {
			copyLive(t, path, dir+".ts"+oid)
			link := filepath.Join(dir, "pg_tblspc", oid)
			if err := os.Symlink(dir+".ts"+oid, link); err != nil {
				t.Fatal(err)
			}
		}
		var label, tsMap string
		if err := conn.QueryRow(ctx, "select labelfile, '' from pg_backup_stop(false)").Scan(&label, &tsMap); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "backup_label"), []byte(label), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	standby, err := pgtest.Open(ctx, dir, pgtest.Config{Major: int(major), Dir: t.TempDir(), Settings: map[string]string{"primary_conninfo": s.ConnString("postgres"), "hot_standby": "on"}})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, standby)
	s.MustSQL(t, "postgres", "create table followed as select g a from generate_series(1, 777) g")
	lsn, err := s.CurrentLSN(ctx)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		v, err := standby.Value(ctx, "postgres", fmt.Sprintf("select pg_last_wal_replay_lsn() >= '%s'", lsn))
		if err == nil && v == "t" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("standby does not follow: %v", err)
		}
		standby.MustSQL(t, "postgres", "select pg_sleep(0.05)")
	}
	if n := standby.MustSQL(t, "postgres", "select count(*) from followed"); n[0][0] != "777" {
		t.Errorf("standby has %v rows", n)
	}
	if err := standby.Stop(ctx, pgtest.Fast); err != nil {
		t.Error(err)
	}
}

// copyLive copies a running server's files as a backup does. Links of tablespaces are left out.
func copyLive(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the server removes files meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(p, from))
		switch {
		case e.IsDir():
			return os.MkdirAll(target, 0o700)
		case !e.Type().IsRegular() || e.Name() == "postmaster.pid":
			return nil
		}
		b, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(target, b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// verifyChecksums recomputes those of every page that a server left.
func verifyChecksums(t *testing.T, dir string) {
	t.Helper()
	s, err := openCold(dir)
	if err != nil {
		t.Fatal(err)
	}
	for f, n := range s.relations {
		for segment := range n/pg.SegmentBlocks + 1 {
			b := []byte(readFile(t, filepath.Join(dir, s.cluster.Control.Major.RelationPath(f, segment))))
			for i := 0; i < len(b); i += pg.BlockSize {
				p := pg.Page(b[i : i+pg.BlockSize])
				block := segment*pg.SegmentBlocks + pg.BlockNumber(i/pg.BlockSize)
				if !p.IsNew() && pg.Checksum(p, block) != p.StoredChecksum() {
					t.Errorf("%s block %d: wrong checksum", f, block)
				}
			}
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// mkdirFor makes a directory for a server's user.
func mkdirFor(t *testing.T, s *pgtest.Server, dir string) {
	t.Helper()
	info, err := os.Stat(s.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(st.Uid), int(st.Gid)); err != nil {
		t.Fatal(err)
	}
}
