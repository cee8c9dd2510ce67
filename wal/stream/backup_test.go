package stream_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"everpage/deploy/pgtest"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// startServer starts a primary with what the tests need.
func startServer(t *testing.T, major int, settings map[string]string, initdb ...string) *pgtest.Server {
	t.Helper()
	return pgtest.New(t, pgtest.Config{Major: major, Settings: pgtest.Merge(map[string]string{
		"autovacuum": "off", "max_wal_size": "64MB", "wal_sender_timeout": "20s"}, settings),
		InitdbArgs: append([]string{"--wal-segsize=1"}, initdb...)})
}

func connect(t *testing.T, conninfo string, mode stream.Mode) *stream.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := stream.Connect(ctx, conninfo, mode, "everpage test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// makeContent makes a table, a table in a tablespace, an unlogged one and a large object's worth of pages.
func makeContent(t *testing.T, s *pgtest.Server) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a space")
	if err := s.MakeDir(dir); err != nil {
		t.Fatal(err)
	}
	if s.Major() >= 15 { // a directory right in pg_tblspc: in base.tar on 15, an archive of its own later
		s.MustSQL(t, "postgres", "alter system set allow_in_place_tablespaces = on", "select pg_reload_conf()")
		eventually(t, "the setting is read", func() bool { return s.MustSQL(t, "postgres", "show allow_in_place_tablespaces")[0][0] == "on" })
		s.MustSQL(t, "postgres", "create tablespace inplace location ''")
		s.MustSQL(t, "postgres", "create table ip tablespace inplace as select 1 a")
	}
	s.MustSQL(t, "postgres", fmt.Sprintf("create tablespace spc location '%s'", dir))
	s.MustSQL(t, "postgres", "create table t as select g a, repeat('x', 200) b from generate_series(1, 20000) g",
		"create table s tablespace spc as select g a, md5(g::text) from generate_series(1, 5000) g", "create index on s(a) tablespace spc",
		"create unlogged table u as select g a from generate_series(1, 1000) g", "create unlogged table us tablespace spc as select 1 a")
}

type seen struct {
	file stream.BackupFile
	sum  [32]byte
}

// collect reads files whole, as a consumer would, and keeps their sums.
func collect(files map[string]seen, order *[]string) func(stream.BackupFile) error {
	return func(f stream.BackupFile) error {
		h := sha256.New()
		n, err := io.Copy(h, f)
		if err != nil {
			return err
		}
		if n != f.Size {
			return fmt.Errorf("%s: read %d bytes of %d", f.Name, n, f.Size)
		}
		if _, ok := files[f.Name]; ok {
			return fmt.Errorf("%s comes twice", f.Name)
		}
		f.Reader = nil
		files[f.Name] = seen{f, [32]byte(h.Sum(nil))}
		*order = append(*order, f.Name)
		return nil
	}
}

// linked leaves out tablespaces that lie right in pg_tblspc.
func linked(all []stream.Tablespace) []stream.Tablespace {
	return slices.DeleteFunc(slices.Clone(all), func(s stream.Tablespace) bool { return !strings.HasSuffix(s.Location, "/a space") })
}

func testBackup(t *testing.T, s *pgtest.Server, major int) {
	makeContent(t, s)
	s.MustSQL(t, "postgres", "checkpoint")
	var began stream.BackupStart
	var done, total int64
	got, order := map[string]seen{}, []string{}
	res, err := stream.Backup(t.Context(), connect(t, s.ConnString("postgres"), stream.Replication), stream.BackupOptions{
		Label:    "it's a test",
		Begin:    func(b stream.BackupStart) error { began = b; return nil },
		Progress: func(d, n int64) { done, total = d, n },
	}, collect(got, &order))
	if err != nil {
		t.Fatal(err)
	}
	if began.Start != res.Start || res.Start == 0 || res.End < res.Start || res.Timeline != 1 || res.Label.Start != res.Start || res.Label.Label != "it's a test" {
		t.Fatalf("result %+v, begun %+v", res, began)
	}
	if !res.Server.DataChecksums || res.Server.SegmentSize != 1<<20 || res.Server.Major != pg.Major(major) || res.Server.InRecovery || res.Server.SystemID == 0 {
		t.Fatalf("server %+v", res.Server)
	}
	spaces := linked(res.Tablespaces)
	if done == 0 || done != total || res.Files != int64(len(got)) || len(spaces) != 1 || spaces[0].Size == 0 {
		t.Fatalf("progress %d of %d, %d files of %d, tablespaces %v", done, total, len(got), res.Files, res.Tablespaces)
	}
	if last := order[len(order)-1]; last != "global/pg_control" {
		t.Fatalf("last file is %s", last)
	}
	// A stop writes nothing that the backup's checkpoint had not.
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	want, coldOrder := map[string]seen{}, []string{}
	info, err := stream.Directory(t.Context(), s.DataDir(), collect(want, &coldOrder))
	if err != nil {
		t.Fatal(err)
	}
	if info.Major != pg.Major(major) || info.Label != nil || len(linked(info.Tablespaces)) != 1 || linked(info.Tablespaces)[0].Oid != spaces[0].Oid || linked(info.Tablespaces)[0].Location != spaces[0].Location {
		t.Fatalf("directory %+v", info)
	}
	compared, inSpace, unlogged := 0, 0, 0
	for name, w := range want {
		f, err := pg.Classify(name)
		if err != nil {
			t.Fatal(err)
		}
		switch f.Kind {
		case pg.FileRelation, pg.FileSLRU, pg.FileRelMap, pg.FileVersion, pg.FileConfig:
		default:
			continue
		}
		g, ok := got[name]
		if !ok || g.sum != w.sum || g.file.Tablespace != w.file.Tablespace || g.file.Path != w.file.Path || g.file.Size != w.file.Size {
			t.Errorf("%s: backup has %+v, directory %+v", name, g.file, w.file)
		}
		compared++
		if g.file.Tablespace != 0 {
			inSpace++
			if strings.HasPrefix(g.file.Path, "PG_") {
				t.Errorf("%s: path %s in the tablespace", name, g.file.Path)
			}
		}
		if f.Kind == pg.FileRelation && f.Rel.Fork == pg.InitFork {
			unlogged++
		}
	}
	for name, g := range got {
		if f, _ := pg.Classify(name); f.Kind == pg.FileRelation || f.Kind == pg.FileSLRU {
			if _, ok := want[name]; !ok {
				t.Errorf("%s: in the backup only (%d bytes)", name, g.file.Size)
			}
		}
	}
	if compared < 500 || inSpace < 3 || unlogged != 2 {
		t.Fatalf("compared %d files, %d in the tablespace, %d init forks", compared, inSpace, unlogged)
	}
	if order[0] != coldOrder[0] && got[order[0]].file.Tablespace == 0 {
		t.Errorf("first files %s and %s", order[0], coldOrder[0])
	}
}

// TestBackupOfDamagedPageFails breaks a page below the server: its checksum verification must end the backup.
func TestBackupOfDamagedPageFails(t *testing.T) {
	s := startServer(t, 15, nil, "--data-checksums")
	path := s.MustSQL(t, "postgres", "create table t as select g a from generate_series(1, 1000) g", "checkpoint", "select pg_relation_filepath('t')")[0][0]
	file, err := os.OpenFile(filepath.Join(s.DataDir(), path), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("damaged"), 8000); err != nil {
		t.Fatal(err)
	}
	warnings := []string{}
	o := stream.BackupOptions{Warn: func(w string) { warnings = append(warnings, w) }}
	_, err = stream.Backup(t.Context(), connect(t, s.ConnString("postgres"), stream.Replication), o, func(stream.BackupFile) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "damaged pages") || len(warnings) == 0 || !strings.Contains(warnings[0], path) {
		t.Fatalf("error %v, warnings %q", err, warnings)
	}
	o.SkipChecksums = true
	if _, err = stream.Backup(t.Context(), connect(t, s.ConnString("postgres"), stream.Replication), o, func(stream.BackupFile) error { return nil }); err != nil {
		t.Fatal(err)
	}
	// A consumer's error and a cancelled context end a backup at once, and the server notices.
	stop := errors.New("enough")
	_, err = stream.Backup(t.Context(), connect(t, s.ConnString("postgres"), stream.Replication), o, func(stream.BackupFile) error { return stop })
	if !errors.Is(err, stop) {
		t.Fatalf("error %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err = stream.Backup(ctx, connect(t, s.ConnString("postgres"), stream.Replication), o, func(f stream.BackupFile) error { cancel(stop); return nil })
	if !errors.Is(err, stop) {
		t.Fatalf("error %v", err)
	}
	eventually(t, "walsenders end", func() bool {
		return s.MustSQL(t, "postgres", "select count(*) from pg_stat_activity where backend_type = 'walsender'")[0][0] == "0"
	})
}

// eventually polls a condition of another process until it holds.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		<-tick.C
	}
}
