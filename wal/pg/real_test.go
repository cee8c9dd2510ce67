package pg_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

// TestRealClusters holds names, checksums and pg_control against what servers of all majors wrote.
func TestRealClusters(t *testing.T) {
	for _, major := range pg.Majors() {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			segment := 1 << (major % 3) // MiB
			s := pgtest.New(t, pgtest.Config{Major: int(major), Dir: t.TempDir(),
				InitdbArgs: []string{"--data-checksums", "--wal-segsize=" + strconv.Itoa(segment)},
				Settings: map[string]string{"max_prepared_transactions": "7", "track_commit_timestamp": "on", "wal_log_hints": "on",
					"max_connections": "77", "max_worker_processes": "9", "max_wal_senders": "6", "max_locks_per_transaction": "70", "wal_level": "logical"}})
			space := s.DataDir() + ".space"
			mkdirLike(t, s.DataDir(), space)
			s.MustSQL(t, "postgres", fmt.Sprintf("create tablespace ts location '%s'", space))
			s.MustSQL(t, "postgres",
				"create unlogged table u as select g a from generate_series(1, 1000) g",
				"create table b (a int, s text)", "create index on b(a)", "insert into b select g, repeat('x', 500) from generate_series(1, 30000) g",
				"create table i tablespace ts as select g a from generate_series(1, 1000) g",
				"vacuum b", "begin; insert into b values (0, ''); prepare transaction 'p'", "checkpoint")
			sql := s.MustSQL(t, "postgres", "select system_identifier from pg_control_system()",
				"select checkpoint_lsn, redo_lsn, timeline_id, next_xid, next_oid, next_multixact_id, oldest_xid, oldest_xid_dbid from pg_control_checkpoint()")
			path := s.MustSQL(t, "postgres", "select pg_relation_filepath(oid), relfilenode, relname from pg_class where relname in ('b', 'i', 'pg_database') order by relname")
			live := readControl(t, s.DataDir())
			for i, want := range []string{fmt.Sprint(live.SystemID), live.CheckPoint.String(), live.Copy.Redo.String(), fmt.Sprint(live.Copy.Timeline),
				fmt.Sprintf("%d:%d", live.Copy.NextXID.Epoch(), live.Copy.NextXID.XID()), fmt.Sprint(live.Copy.NextOid), fmt.Sprint(live.Copy.NextMulti),
				fmt.Sprint(live.Copy.OldestXID), fmt.Sprint(live.Copy.OldestXIDDB)} {
				got := append(append([]string(nil), sql[0]...), sql[1]...)[i]
				if got != want {
					t.Errorf("field %d: server says %s, pg_control %s", i, got, want)
				}
			}
			if live.Major != major || live.State != pg.DBInProduction || live.MaxPreparedXacts != 7 || live.MaxConnections != 77 || live.MaxWorkerProcesses != 9 ||
				live.MaxWALSenders != 6 || live.MaxLocksPerXact != 70 || !live.TrackCommitTimestamp || !live.WALLogHints || live.WALLevel != pg.WALLevelLogical ||
				live.DataChecksumVersion != pg.ChecksumVersion || int(live.WALSegmentSize) != segment<<20 {
				t.Errorf("pg_control: %+v", live)
			}
			for _, p := range path {
				loc, err := pg.ParseRel(p[0])
				if err != nil {
					t.Errorf("%s: %v", p[0], err)
				}
				if back := major.RelationPath(pg.RelFork{RelFileLocator: loc}, 0); back != p[0] {
					t.Errorf("%s comes back as %s", p[0], back)
				}
			}
			if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
				t.Fatal(err)
			}
			if c := readControl(t, s.DataDir()); c.State != pg.DBShutdowned || c.Copy.OldestActiveXID != 0 {
				t.Errorf("stopped: %+v", c)
			}
			kinds := checkFiles(t, major, s.DataDir())
			for _, k := range []pg.FileKind{pg.FileRelation, pg.FileSLRU, pg.FileRelMap, pg.FileVersion, pg.FileTwoPhase, pg.FileControl, pg.FileConfig,
				pg.FileTablespaceLink, pg.FileWAL, pg.FileIgnored, pg.FileOrigins} {
				if kinds[k] == 0 {
					t.Errorf("no file of kind %v", k)
				}
			}
			if kinds[pg.FileUnknown] != 0 {
				t.Errorf("%d unknown files", kinds[pg.FileUnknown])
			}
		})
	}
}

func mkdirLike(t *testing.T, model, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	own(t, model, dir)
}

func readControl(t *testing.T, data string) pg.ControlFile {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(data, "global/pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := pg.ReadControl(b)
	if err != nil {
		t.Fatal(err)
	}
	back, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, back) {
		for i := range b {
			if b[i] != back[i] {
				t.Fatalf("pg_control does not come back: first at byte %d: %x, want %x", i, back[i], b[i])
			}
		}
	}
	for i := range 256 {
		b[i] ^= 1
		if _, err := pg.ReadControl(b); err == nil {
			t.Fatalf("a flipped bit in byte %d is not seen", i)
		}
		b[i] ^= 1
	}
	return c
}

// checkFiles classifies every file and recomputes every page's checksum.
func checkFiles(t *testing.T, major pg.Major, data string) map[pg.FileKind]int {
	t.Helper()
	kinds := map[pg.FileKind]int{}
	pages := 0
	walk := func(root, prefix string) {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			name := prefix + strings.TrimPrefix(path, root+"/")
			f, err := pg.Classify(name)
			if err != nil {
				return err
			}
			kinds[f.Kind]++
			if f.Kind == pg.FileUnknown {
				t.Logf("unknown: %s", name)
			}
			if f.Kind != pg.FileRelation {
				return nil
			}
			if back := major.RelationPath(f.Rel, f.Segment); back != name {
				t.Errorf("%s comes back as %s", name, back)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i := range len(b) / pg.BlockSize {
				p := pg.Page(b[i*pg.BlockSize:][:pg.BlockSize])
				if p.IsNew() {
					continue
				}
				pages++
				if got, want := pg.Checksum(p, pg.BlockNumber(i)), p.StoredChecksum(); got != want {
					t.Errorf("%s block %d: checksum %04X, page says %04X", name, i, got, want)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	walk(data, "")
	links, err := os.ReadDir(filepath.Join(data, "pg_tblspc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		target, err := os.Readlink(filepath.Join(data, "pg_tblspc", l.Name()))
		if err != nil {
			t.Fatal(err)
		}
		walk(target, "pg_tblspc/"+l.Name()+"/")
	}
	if pages < 1000 {
		t.Errorf("%d pages only", pages)
	}
	return kinds
}
