package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

const slotName = "everpage_main_node1"

// TestAttachStreamsAndServes: a server with data checksums and a user tablespace is followed while pgbench runs, and read back at every step.
func TestAttachStreamsAndServes(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t, pgtest.Config{Settings: primarySettings(), InitdbArgs: []string{"--data-checksums"}})
	space := filepath.Join(t.TempDir(), "space")
	if err := s.MakeDir(space); err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", "create tablespace apart location '"+space+"'",
		"create table far (id int primary key, v text) tablespace apart", "insert into far select i, 'before' from generate_series(1, 20) i")
	if _, err := s.Pgbench(t.Context(), "-i", "-q", "-s", "1"); err != nil {
		t.Fatal(err)
	}
	load := startLoad(t, s)
	n := newNode(t)

	dry := n.Must(t, "attach", s.URI("postgres"), "--dry-run")
	for _, text := range []string{"wal_level", "pg_hba.conf line for replication", "max_wal_senders", "disk"} {
		if !strings.Contains(dry, text) {
			t.Errorf("attach --dry-run doesn't speak of %q:\n%s", text, dry)
		}
	}
	if rows := s.MustSQL(t, "postgres", "select slot_name from pg_replication_slots"); len(rows) != 0 {
		t.Errorf("attach --dry-run made slot %v", rows)
	}
	if f, err := n.Status(t.Context()); err != nil || f.State != "detached" {
		t.Errorf("after attach --dry-run the state is %q, error %v", f.State, err)
	}

	attach(t, n, s)
	f := waitState(t, n, "streaming", "")
	attach(t, n, s) // the same words twice
	if again, err := n.Status(t.Context()); err != nil || again.Consistent != f.Consistent {
		t.Errorf("attach said twice imported again: consistent at %s, then %s, error %v", f.Consistent, again.Consistent, err)
	}
	other := newPrimary(t)
	refused(t, n, 1, []string{"another database cluster", "everpage detach"}, "attach", other.URI("postgres"))
	if f, err := n.Status(t.Context()); err != nil || f.State != "streaming" {
		t.Errorf("after a refused attach: %+v, error %v", f, err)
	}

	before := caughtUp(t, n, s)
	s.MustSQL(t, "postgres", "update far set v = 'after'")
	after := caughtUp(t, n, s)
	load.stop()
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('far')")[0][0]
	if !strings.HasPrefix(rel, "pg_tblspc/") {
		t.Fatalf("far lies in %s", rel)
	}
	for _, c := range []struct {
		at         pg.LSN
		have, lack string
	}{{before, "before", "after"}, {after, "after", ""}} {
		page := n.Must(t, "page", "get", rel, "0", "--lsn", c.at.String(), "--format", "raw")
		if len(page) != pg.BlockSize || !strings.Contains(page, c.have) || c.lack != "" && strings.Contains(page, c.lack) {
			t.Errorf("block 0 of %s at %s: %d bytes, with %q %t, with %q %t", rel, c.at, len(page), c.have, strings.Contains(page, c.have), c.lack, strings.Contains(page, c.lack))
		}
		if sum := pg.Page(page).StoredChecksum(); sum == 0 || sum != pg.Checksum(pg.Page(page), 0) {
			t.Errorf("block 0 of %s at %s: checksum %04X, its content's is %04X", rel, c.at, sum, pg.Checksum(pg.Page(page), 0))
		}
	}
	n.Must(t, "check", "--quiet")
	compareStopped(t, n, s)
}

// load is pgbench running beside a test. Nothing but the number of its transactions matters to those who start it.
type load struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan struct{}
}

// startLoad runs pgbench until stop, again and again where the server goes away.
func startLoad(t *testing.T, s *pgtest.Server, args ...string) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t, cancel, make(chan struct{})}
	go func() {
		defer close(l.done)
		for ctx.Err() == nil {
			// An error is what a killed server or stop makes of pgbench.
			_, _ = s.Pgbench(ctx, append([]string{"-n", "-c", "2", "-T", "60", "-R", "150"}, args...)...)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	l.cancel()
	<-l.done
}

// TestSynchronousCommit: commits wait for the node's own fsync, and what connections of the base backup do counts for nothing.
func TestSynchronousCommit(t *testing.T) {
	t.Parallel()
	s := newPrimary(t, map[string]string{"synchronous_standby_names": "node1", "synchronous_commit": "local", "autovacuum": "off"})
	s.MustSQL(t, "postgres", "create table t (i int)", "insert into t select generate_series(1, 100000)")
	n := newNode(t)

	// A commit that asks for the standby waits from before the base backup on.
	var committed atomic.Bool
	waiting := make(chan error, 1)
	go func() {
		_, err := s.SQL(t.Context(), "postgres", "set synchronous_commit = on; insert into t values (0)")
		committed.Store(true)
		waiting <- err
	}()
	eventually(t, "a commit waits for the standby", func() (bool, string) {
		rows := s.MustSQL(t, "postgres", "select 1 from pg_stat_activity where wait_event = 'SyncRep'")
		return len(rows) == 1, fmt.Sprint(rows)
	})
	conn, err := s.Conn(t.Context(), "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	attached := make(chan nodetest.Result, 1)
	go func() { attached <- n.Run(t.Context(), "attach", s.URI("postgres"), "--wait", "--quiet") }()
	backups := 0
	for done := false; !done; {
		select {
		case r := <-attached:
			if done = true; r.Code != 0 {
				t.Fatalf("attach: %+v", r)
			}
		default:
		}
		early := committed.Load()
		rows, err := conn.Query(t.Context(), "select application_name, state, sync_state from pg_stat_replication")
		if err != nil {
			t.Fatal(err)
		}
		streaming, backing := false, false
		for rows.Next() {
			var name, state, sync string
			if err := rows.Scan(&name, &state, &sync); err != nil {
				t.Fatal(err)
			}
			backing = backing || state == "backup"
			streaming = streaming || name == "node1" && (state == "streaming" || state == "catchup")
			if state == "backup" && (name == "node1" || sync != "async") {
				t.Errorf("the base backup counts as standby %s, %s", name, sync)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if backing {
			backups++
		}
		if early && !streaming && backing {
			t.Error("the commit returned while the base backup was taken")
		}
	}
	if backups == 0 {
		t.Error("the base backup was never seen")
	}
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}

	// What a commit waits for is on disk here, and said so.
	for range 20 {
		at := parseLSN(t, s.MustSQL(t, "postgres", "set synchronous_commit = on; insert into t values (1)",
			"select pg_current_wal_insert_lsn()")[0][0])
		f, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// The position behind the commit may lie behind a page header that no record has followed yet.
		if durable := parseLSN(t, f.Durable); durable+64 < at {
			t.Fatalf("a commit before %s returned, durable is %s", at, durable)
		}
	}
	row := s.MustSQL(t, "postgres", "select sync_state, flush_lsn >= sent_lsn - 8192, write_lsn >= flush_lsn, replay_lsn is not null from pg_stat_replication where application_name = 'node1'")
	if len(row) != 1 || strings.Join(row[0], " ") != "sync t t t" {
		t.Errorf("pg_stat_replication: %v", row)
	}
	// remote_apply waits until the commit can be read.
	s.MustSQL(t, "postgres", "create table applied (v text)")
	s.MustSQL(t, "postgres", "set synchronous_commit = remote_apply; insert into applied values ('here it is')")
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('applied')")[0][0]
	if page := n.Must(t, "page", "get", rel, "0", "--format", "raw"); !strings.Contains(page, "here it is") {
		t.Error("a commit with remote_apply returned before it could be read")
	}

	// A node that is stopped acknowledges nothing: the commit waits until it is back.
	n.Kill9()
	go func() {
		_, err := s.SQL(t.Context(), "postgres", "set synchronous_commit = on; insert into t values (2)")
		waiting <- err
	}()
	eventually(t, "a commit waits for the killed node", func() (bool, string) {
		rows := s.MustSQL(t, "postgres", "select 1 from pg_stat_activity where wait_event = 'SyncRep'")
		return len(rows) == 1, fmt.Sprint(rows)
	})
	select {
	case err := <-waiting:
		t.Fatalf("a commit returned without its standby: %v", err)
	default:
	}
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-waiting:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("the commit still waits after the node is back")
	}
}

// TestDetach: the slot goes, or the SQL for it is printed; history goes or stays; the same server can be attached again.
func TestDetach(t *testing.T) {
	t.Parallel()
	s := newPrimary(t)
	s.MustSQL(t, "postgres", "create table t as select generate_series(1, 1000) i")
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('t')")[0][0]
	n := newNode(t)
	refused(t, n, 1, []string{"no primary is attached"}, "detach")
	slots := func() string {
		t.Helper()
		return fmt.Sprint(s.MustSQL(t, "postgres", "select slot_name from pg_replication_slots"))
	}

	attach(t, n, s)
	at := caughtUp(t, n, s)
	if out := n.Must(t, "detach", "--keep-data"); !strings.Contains(out, "dropped slot "+slotName) {
		t.Errorf("detach --keep-data printed %q", out)
	}
	if got := slots(); got != "[]" {
		t.Errorf("after detach there are slots %s", got)
	}
	waitState(t, n, "detached", "")
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	s.MustSQL(t, "postgres", "insert into t values (1)")
	beyond := s.MustSQL(t, "postgres", "select pg_current_wal_lsn()")[0][0]
	refused(t, n, 5, []string{"no primary is followed", "ends at"}, "page", "get", rel, "0", "--lsn", beyond, "--timeout", "3s")

	// What was kept goes on where it ended, also over a restart: the primary still has that WAL.
	n.Kill9()
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	attach(t, n, s)
	caughtUp(t, n, s)
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	if got := slots(); got != "[["+slotName+"]]" {
		t.Errorf("after attaching again there are slots %s", got)
	}

	// Without --keep-data nothing is left, and the next attach imports anew.
	n.Must(t, "detach")
	if got := slots(); got != "[]" {
		t.Errorf("after detach there are slots %s", got)
	}
	refused(t, n, 3, []string{"has no data", "everpage attach"}, "page", "get", rel, "0")
	left, err := filepath.Glob(filepath.Join(n.Data(), "spool", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("detach left %v in the spool, error %v", left, err)
	}
	attach(t, n, s)
	newest := caughtUp(t, n, s)
	refused(t, n, 4, []string{"before the oldest readable LSN"}, "page", "get", rel, "0", "--lsn", at.String())
	n.Must(t, "page", "get", rel, "0", "--lsn", newest.String())

	// With the primary down the SQL is printed, and it is right.
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	out := n.Must(t, "detach", "--keep-data")
	_, sql, found := strings.Cut(out, "\n  ")
	if !found || !strings.Contains(sql, "pg_drop_replication_slot") {
		t.Fatalf("detach from a stopped primary printed %q", out)
	}
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", strings.TrimSpace(sql))
	if got := slots(); got != "[]" {
		t.Errorf("after the printed SQL there are slots %s", got)
	}
}

// TestFollowsSmallWALSegments: initdb --wal-segsize=1.
func TestFollowsSmallWALSegments(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t, pgtest.Config{Settings: primarySettings(map[string]string{"min_wal_size": "5MB"}), InitdbArgs: []string{"--wal-segsize=1"}})
	n := newNode(t, "--spool-keep", strconv.Itoa(4<<20))
	attach(t, n, s)
	s.MustSQL(t, "postgres", "create table t (i int, v text)")
	for i := range 4 {
		s.MustSQL(t, "postgres", fmt.Sprintf("insert into t select i, repeat(md5(i::text), 4) from generate_series(%d, %d) i", i*5000, i*5000+5000), "checkpoint", "select pg_switch_wal()")
	}
	caughtUp(t, n, s)
	files, err := filepath.Glob(filepath.Join(n.Data(), "spool", "0*"))
	if err != nil || len(files) < 3 {
		t.Fatalf("the spool has %v, error %v", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > 1<<20 {
			t.Errorf("%s: %v, error %v", f, info.Size(), err)
		}
	}
	n.Kill9()
	s.MustSQL(t, "postgres", "delete from t where i % 3 = 0", "vacuum t")
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	compareStopped(t, n, s)
}
