package redo_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"everpage/deploy/pgtest"
	"everpage/deploy/workload"
	"everpage/wal/pg"
)

// resetCounters runs pg_resetwal, as the owner of the data directory: it refuses root.
func resetCounters(t *testing.T, data string, segments []string, args ...string) {
	t.Helper()
	bin, err := pgtest.Fetch(t.Context(), pgtest.DefaultMajor)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "pg_resetwal"), append(args, "-D", data)...)
	cmd.Dir = "/"
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pg_resetwal: %v: %s", err, out)
	}
	for _, name := range segments { // those where the new counters point
		path := filepath.Join(data, name)
		if err := os.WriteFile(path, make([]byte, pg.SLRUPagesPerSegment*pg.BlockSize), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}

func freezeAll(t *testing.T, s *pgtest.Server) {
	t.Helper()
	s.MustSQL(t, "postgres", "update pg_database set datallowconn = true where datname = 'template0'")
	databases, err := s.Databases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds what the first one left behind in shared catalogs
		for _, db := range databases {
			s.MustSQL(t, db, "vacuum (freeze, disable_page_skipping)")
		}
	}
	s.MustSQL(t, "postgres", "checkpoint")
}

// TestStateAfterWraparound has a server go beyond 2^32 transaction ids, multixacts and members, and holds what redo makes of its WAL against
// its files.
func TestStateAfterWraparound(t *testing.T) {
	dir := t.TempDir()
	s, err := pgtest.Init(t.Context(), pgtest.Config{
		Major: pgtest.DefaultMajor, Dir: filepath.Join(dir, "server"), Settings: pgtest.Merge(pgtest.OracleSettings(pgtest.DefaultMajor), map[string]string{
			"autovacuum": "off", "autovacuum_freeze_max_age": "2000000000", "autovacuum_multixact_freeze_max_age": "2000000000",
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, s)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// No counter may move by half of its circle before everything is frozen.
	for _, step := range []struct {
		segments []string
		args     []string
	}{
		{[]string{"pg_xact/0773", "pg_multixact/offsets/7735"}, []string{"-x", "2000000000", "-m", "2000000000,1"}},
		{[]string{"pg_xact/0EE6", "pg_multixact/offsets/EE6B"}, []string{"-x", "4000000000", "-m", "4000000000,2000000000"}},
		{[]string{"pg_xact/0FFF", "pg_multixact/offsets/FFFF", "pg_multixact/members/14078"},
			[]string{"-x", "4294966000", "-m", "4294966500,4294966500", "-O", "4294965000"}},
	} {
		must(s.StartAgain(t.Context()))
		freezeAll(t, s)
		must(s.Stop(t.Context(), pgtest.Fast))
		resetCounters(t, s.DataDir(), step.segments, step.args...)
	}
	f := &workload.Files{Base: filepath.Join(dir, "base"), WAL: filepath.Join(dir, "wal"), Final: filepath.Join(dir, "final")}
	must(s.CopyCold(f.Base))
	must(s.StartAgain(t.Context()))

	s.MustSQL(t, "postgres",
		"create table w(id int primary key, v int) with (fillfactor = 10)",
		"insert into w select g, 0 from generate_series(1, 2500) g",
		// Two transactions whose subtransactions lie on both sides of the wraparound, one of them prepared before and committed after.
		`begin; do $$ begin for i in 1..300 loop begin update w set v = 1 where id = i; exception when division_by_zero then null; end; end loop; end $$;
			prepare transaction 'early'`,
		`do $$ begin for i in 301..2500 loop perform 1 from w where id = i for key share;
			begin update w set v = v + 1 where id = i; exception when division_by_zero then null; end; end loop; end $$`,
		`do $$ begin for i in 1000..2000 loop begin update w set v = v + 1 where id = i; perform 1 / (i % 2); exception when division_by_zero then null; end; end loop; end $$`,
		"commit prepared 'early'")
	if epoch := s.MustSQL(t, "postgres", "select pg_current_xact_id()::text::numeric > 4294967296, mxid_age('1'::xid) between 0 and 100000 from pg_control_checkpoint()")[0]; epoch[0] != "t" || epoch[1] != "t" {
		t.Fatalf("the counters have not wrapped around: %v", epoch)
	}
	s.MustSQL(t, "postgres", "do $$ begin for i in 1..1000 loop perform pg_current_xact_id(); commit; end loop; end $$")
	freezeAll(t, s)
	must(s.Stop(t.Context(), pgtest.Fast))
	must(s.MoveWAL(f.WAL))
	must(s.CopyCold(f.Final))

	c := loadState(t, f.Base)
	start := c.state
	c.replayAll(f)
	c.compare(f.Final)
	if c.state.NextXID.Epoch() != 1 || c.state.NextMulti > start.NextMulti || c.state.NextMultiOffset > start.NextMultiOffset {
		t.Errorf("from %+v to %+v: not every counter has wrapped around", start, c.state)
	}
	for _, name := range []string{"CLOG/TRUNCATE", "MultiXact/TRUNCATE_ID", "CommitTs/TRUNCATE", "MultiXact/ZERO_OFF_PAGE", "Transaction/COMMIT_PREPARED"} {
		if c.types[name] == 0 {
			t.Errorf("no record %s", name)
		}
	}
	t.Logf("next xid %x, next multixact %d, next member %d", c.state.NextXID, c.state.NextMulti, c.state.NextMultiOffset)
}
