package stream_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"everpage/deploy/pgtest"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

const deadline = 20 * time.Second

var keepWAL = map[string]string{"wal_keep_size": "1GB", "synchronous_commit": "on"}

// setup makes the slot and a sink that begins with the server's current segment.
func setup(t *testing.T, s *pgtest.Server, slot string) (stream.Server, *memorySink) {
	t.Helper()
	first := ensureSlot(t, s, slot)
	if !first.Created {
		t.Fatalf("slot %+v", first)
	}
	if again := ensureSlot(t, s, slot); again.Created {
		t.Fatalf("slot was made twice: %+v", again)
	}
	server := identify(t, s)
	if server.Major >= 15 && (first.RestartLSN == 0 || first.RestartLSN > server.Position) {
		t.Fatalf("slot %+v of a server at %s", first, server.Position)
	}
	return server, newSink(server.Timeline, server.SegmentSize.Floor(server.Position), wal.History{Timeline: server.Timeline})
}

func isStreaming(s stream.Status) bool { return s.State == stream.Streaming }

// TestMajors runs against one server of each major: starting one takes longer than most tests.
func TestMajors(t *testing.T) {
	for _, major := range []int{14, 15, 17, 18} {
		t.Run(name(major), func(t *testing.T) {
			t.Parallel()
			s := startServer(t, major, keepWAL, "--data-checksums")
			t.Run("follow", func(t *testing.T) { testFollow(t, s) })
			t.Run("WAL removed", func(t *testing.T) { testWALRemoved(t, s, major) })
			t.Run("backup", func(t *testing.T) { testBackup(t, s, major) }) // stops the server
		})
	}
}

func testFollow(t *testing.T, s *pgtest.Server) {
	server, sink := setup(t, s, "everpage_test_node1")
	f := follow(t, options(t, s, server, "everpage_test_node1"), sink)
	f.await(t, "streaming", isStreaming)
	if _, err := s.Pgbench(t.Context(), "-i", "-q", "-s", "1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pgbench(t.Context(), "-n", "-c", "2", "-t", "100"); err != nil {
		t.Fatal(err)
	}
	lsn := currentLSN(t, s)
	sink.wait(t, lsn)
	sink.equal(t, s, server.SegmentSize, lsn)
	eventually(t, "the server shows what was acknowledged", func() bool {
		row := s.MustSQL(t, "postgres", "select application_name, write_lsn, flush_lsn, replay_lsn, state, pg_current_wal_flush_lsn() from pg_stat_replication")
		return len(row) == 1 && row[0][0] == "node1" && row[0][1] == row[0][5] && row[0][2] == row[0][5] && row[0][3] == row[0][5] && row[0][4] == "streaming"
	})
	if st := f.Status(); st.Flushed < lsn || st.Written < st.Flushed || st.ServerEnd < lsn || st.Received.IsZero() {
		t.Errorf("status %+v, server at %s", st, lsn)
	}
	testSynchronousCommit(t, s, sink)
	testPrimaryKilled(t, s, f, sink, server)
	testApplied(t, s, f, sink)
	testSlotDropped(t, s, f, sink, server)
}

// testSynchronousCommit sees a commit wait for our flush, not for less.
func testSynchronousCommit(t *testing.T, s *pgtest.Server, sink *memorySink) {
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	s.MustSQL(t, "postgres", "create table sync(a int)", "alter system set synchronous_standby_names = 'node1'", "select pg_reload_conf()")
	eventually(t, "node1 is the synchronous standby", func() bool {
		return s.MustSQL(t, "postgres", "select sync_state from pg_stat_replication")[0][0] == "sync"
	})
	s.MustSQL(t, "postgres", "checkpoint") // commits wait once the checkpointer, too, has read the configuration (SyncRepUpdateSyncStandbysDefined)
	sink.set(func(m *memorySink) { m.onFlush = func() error { <-gate; return nil } })
	committed := make(chan error, 1)
	go func() {
		_, err := s.SQL(t.Context(), "postgres", "insert into sync values (1)")
		committed <- err
	}()
	eventually(t, "the commit waits for the standby and the write is acknowledged", func() bool {
		waits := s.MustSQL(t, "postgres", "select count(*) from pg_stat_activity where wait_event = 'SyncRep'")[0][0] == "1"
		row := s.MustSQL(t, "postgres", "select write_lsn = pg_current_wal_flush_lsn(), flush_lsn < write_lsn, replay_lsn <= flush_lsn from pg_stat_replication")[0]
		return waits && row[0] == "t" && row[1] == "t" && row[2] == "t"
	})
	select {
	case err := <-committed:
		t.Fatalf("commit did not wait: %v", err)
	default:
	}
	open()
	select {
	case err := <-committed:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(deadline):
		t.Fatal("the commit still waits after our flush")
	}
	sink.set(func(m *memorySink) { m.onFlush = nil })
	start := time.Now()
	const commits = 50
	for i := range commits {
		s.MustSQL(t, "postgres", fmt.Sprintf("insert into sync values (%d)", i))
	}
	t.Logf("%d synchronous commits, each on a connection of its own: %v each", commits, time.Since(start)/commits)
	s.MustSQL(t, "postgres", "alter system reset synchronous_standby_names", "select pg_reload_conf()")
}

func testPrimaryKilled(t *testing.T, s *pgtest.Server, f *follower, sink *memorySink, server stream.Server) {
	if err := s.Kill9(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.await(t, "the loss is noticed", func(st stream.Status) bool { return st.State == stream.Waiting && st.Err != nil })
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", "create table after_crash as select g from generate_series(1, 1000) g")
	f.await(t, "streaming again", isStreaming)
	lsn := currentLSN(t, s)
	sink.wait(t, lsn)
	sink.equal(t, s, server.SegmentSize, lsn)
	sink.set(func(m *memorySink) {
		if m.resumes < 2 {
			t.Errorf("%d connections", m.resumes)
		}
	})
}

// testApplied sees the apply position follow Notify at once.
func testApplied(t *testing.T, s *pgtest.Server, f *follower, sink *memorySink) {
	hold := sink.end()
	sink.set(func(m *memorySink) { m.applied = func() pg.LSN { return hold } })
	s.MustSQL(t, "postgres", "insert into sync values (100)")
	lsn := currentLSN(t, s)
	sink.wait(t, lsn)
	replayed := func() bool {
		return s.MustSQL(t, "postgres", fmt.Sprintf("select replay_lsn >= '%s' from pg_stat_replication where flush_lsn >= '%s'", lsn, lsn))[0][0] == "t"
	}
	eventually(t, "the flush is acknowledged", func() bool {
		return len(s.MustSQL(t, "postgres", fmt.Sprintf("select 1 from pg_stat_replication where flush_lsn >= '%s'", lsn))) == 1
	})
	if replayed() {
		t.Fatal("apply was reported before it happened")
	}
	sink.set(func(m *memorySink) { m.applied = func() pg.LSN { return lsn + 1<<20 } }) // never reported beyond the flush
	f.Notify()
	eventually(t, "apply is reported", replayed)
	if got := s.MustSQL(t, "postgres", "select replay_lsn <= flush_lsn from pg_stat_replication")[0][0]; got != "t" {
		t.Fatal("apply is beyond flush")
	}
}

func testSlotDropped(t *testing.T, s *pgtest.Server, f *follower, sink *memorySink, server stream.Server) {
	f.stop(t)
	c := connect(t, s.ConnString("postgres"), stream.Replication)
	dropSlot(t, c, "everpage_test_node1")
	if err := stream.DropSlot(t.Context(), c, "everpage_test_node1"); err != nil {
		t.Fatalf("drop of a missing slot: %v", err)
	}
	err := follow(t, options(t, s, server, "everpage_test_node1"), sink).end(t)
	if !errors.Is(err, stream.ErrSlotMissing) || !stream.Refused(err) {
		t.Fatalf("error %v", err)
	}
}
