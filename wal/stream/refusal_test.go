package stream_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"everpage/deploy/pgtest"
	"everpage/wal"
	"everpage/wal/stream"
)

// TestCopiesAreRefused follows a primary and then finds others at its address: a copy with other WAL, one that is behind, another cluster, a
// standby, and the standby promoted.
func TestCopiesAreRefused(t *testing.T) {
	const slot = "everpage_test_node1"
	s := startServer(t, 15, keepWAL)
	server, sink := setup(t, s, slot)
	o := options(t, s, server, slot)
	s.MustSQL(t, "postgres", "create table t as select g from generate_series(1, 1000) g")
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	copies := t.TempDir()
	dir := filepath.Join(copies, "copy")
	if err := s.CopyCold(dir); err != nil {
		t.Fatal(err)
	}
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	standby, err := s.Standby(t.Context(), "standby", pgtest.Config{Dir: filepath.Join(copies, "standby"), Settings: keepWAL})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, standby)
	f := follow(t, o, sink)
	s.MustSQL(t, "postgres", "insert into t select g from generate_series(1, 1000) g")
	sink.wait(t, currentLSN(t, s))

	copied, err := pgtest.Open(t.Context(), dir, pgtest.Config{Dir: filepath.Join(copies, "log"), Major: 15})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, copied)
	f.stop(t)
	before := sink.end()
	refused := func(what string, o stream.ReceiverOptions, want error) {
		t.Helper()
		err := follow(t, o, sink).end(t)
		if !errors.Is(err, want) || !stream.Refused(err) {
			t.Fatalf("%s: error %v, want %v", what, err, want)
		}
		t.Logf("%s: %v", what, err)
		if sink.end() != before {
			t.Fatalf("%s: WAL was received", what)
		}
	}
	atCopy := o
	atCopy.Conninfo = copied.ConnString("postgres")
	// The copy holds the cluster's slot, as a copy of the files does: nothing but its WAL tells it from the primary.
	refused("a copy that is behind", atCopy, stream.ErrBehind)
	copied.MustSQL(t, "postgres", "create table other as select g, md5(g::text) from generate_series(1, 20000) g")
	if currentLSN(t, copied) <= before {
		t.Fatal("the copy is not ahead")
	}
	refused("a copy with other WAL", atCopy, stream.ErrDiverged)
	row := copied.MustSQL(t, "postgres", "select restart_lsn from pg_replication_slots")[0][0]
	if lsn := sink.end().String(); row == lsn {
		t.Fatal("the copy's slot was moved")
	}

	other := o
	other.SystemID++
	refused("another cluster", other, stream.ErrSystem)
	other = o
	other.Major = 16
	refused("another major", other, stream.ErrMajor)
	other = o
	other.SegmentSize = 16 << 20
	refused("another segment size", other, stream.ErrSegment)

	atStandby := o
	atStandby.Conninfo = standby.ConnString("postgres")
	atStandby.Backoff = stream.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond}
	f = follow(t, atStandby, sink)
	st := f.await(t, "the standby is put off", func(st stream.Status) bool { return st.State == stream.Waiting })
	if !errors.Is(st.Err, stream.ErrStandby) || stream.Refused(st.Err) {
		t.Fatalf("standby: %v", st.Err)
	}
	if _, err := stream.Backup(t.Context(), connect(t, atStandby.Conninfo, stream.Replication), stream.BackupOptions{}, func(stream.BackupFile) error { return nil }); !errors.Is(err, stream.ErrStandby) {
		t.Fatalf("base backup of a standby: %v", err)
	}

	// WAL that the standby gets and we don't, then a promotion behind our end.
	s.MustSQL(t, "postgres", "insert into t select g from generate_series(1, 1000) g", "select pg_switch_wal()", "insert into t values (1)")
	if err := standby.WaitReplayed(t.Context(), currentLSN(t, s).String()); err != nil {
		t.Fatal(err)
	}
	ensureSlot(t, standby, slot)
	standby.MustSQL(t, "postgres", "select pg_promote()")
	var end *stream.EndOfTimeline
	if err := f.end(t); !errors.As(err, &end) {
		t.Fatalf("promotion ended with %v", err)
	}
	if end.Timeline != 1 || end.Next != 2 || end.Newest != 2 || end.End != end.Switch || end.Switch <= before || sink.end() != end.End {
		t.Fatalf("%+v, sink at %s", end, sink.end())
	}
	sink.equal(t, s, server.SegmentSize, end.Switch)

	// The old primary goes on: its timeline 1 is not what the new one left.
	f = follow(t, o, sink)
	s.MustSQL(t, "postgres", "insert into t select g from generate_series(1, 10) g")
	f.await(t, "old primary", isStreaming)
	sink.wait(t, currentLSN(t, s))
	f.stop(t)
	before = sink.end()
	err = follow(t, atStandby, sink).end(t)
	if !errors.As(err, &end) || end.Switch >= end.End || end.End != before || !strings.Contains(err.Error(), "on no other timeline") {
		t.Fatalf("new primary, from behind the switch: %v", err)
	}

	// The new timeline from its first segment on.
	c := connect(t, atStandby.Conninfo, stream.Replication)
	h, err := stream.TimelineHistory(t.Context(), c, 2)
	if err != nil {
		t.Fatal(err)
	}
	if at, next, ok := h.SwitchFrom(1); !ok || at != end.Switch || next != 2 {
		t.Fatalf("history %+v", h)
	}
	second := newSink(2, server.SegmentSize.Floor(end.Switch), h)
	f = follow(t, atStandby, second)
	standby.MustSQL(t, "postgres", "insert into t select g from generate_series(1, 1000) g")
	lsn := currentLSN(t, standby)
	second.wait(t, lsn)
	second.equal(t, standby, server.SegmentSize, lsn)
	f.stop(t)
	before = second.end()
	sink = second
	refused("the old primary", o, stream.ErrTimeline)
	wrong := newSink(2, second.pos.First, wal.History{Timeline: 2, Parents: []wal.HistoryEntry{{Timeline: 1, Switch: end.Switch - 8}}})
	if err := follow(t, atStandby, wrong).end(t); !errors.Is(err, stream.ErrTimeline) {
		t.Fatalf("another history: %v", err)
	}
}

// TestSinkThatFails sees the connection closed when WAL cannot be kept, so that the primary's fast stop ends at once, and streaming go on when it can.
func TestSinkThatFails(t *testing.T) {
	const slot = "everpage_test_node1"
	s := startServer(t, 17, keepWAL)
	server, sink := setup(t, s, slot)
	full := errors.New("no space left on device")
	o := options(t, s, server, slot)
	o.Backoff = stream.Backoff{Min: time.Millisecond, Max: 20 * time.Millisecond}
	for _, op := range []string{"append", "flush"} {
		sink.set(func(m *memorySink) { m.onAppend, m.onFlush, m.onResume = nil, nil, nil })
		f := follow(t, o, sink)
		f.await(t, "streaming", isStreaming)
		sink.wait(t, currentLSN(t, s))
		sink.set(func(m *memorySink) {
			fail := func() error { return full }
			if op == "append" {
				m.onAppend = fail
			} else {
				m.onFlush = fail
			}
		})
		s.MustSQL(t, "postgres", "create table t_"+op+" as select g from generate_series(1, 1000) g")
		var failed *stream.SinkError
		f.await(t, "the failure", func(st stream.Status) bool {
			return errors.As(st.Err, &failed) && failed.Op == op && errors.Is(failed, full)
		})
		f.await(t, "longer and longer waits", func(st stream.Status) bool { return errors.As(st.Err, &failed) && failed.Op == op && st.Failures > 3 })
		sink.set(func(m *memorySink) { m.onResume = func(int) error { return full } })
		f.await(t, "the connection is put off", func(st stream.Status) bool {
			return errors.As(st.Err, &failed) && failed.Op == "resume" && st.Failures > 3
		})
		eventually(t, "the walsender is gone", func() bool {
			return s.MustSQL(t, "postgres", "select count(*) from pg_stat_replication")[0][0] == "0"
		})
		start := time.Now()
		if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("fast stop took %v", d)
		}
		if err := s.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.MustSQL(t, "postgres", "insert into t_"+op+" values (1)")
		sink.set(func(m *memorySink) { m.onAppend, m.onFlush, m.onResume = nil, nil, nil })
		lsn := currentLSN(t, s)
		sink.wait(t, lsn)
		sink.equal(t, s, server.SegmentSize, lsn)
		f.stop(t)
	}
	// A sink that leaves out an incomplete record.
	sink.set(func(m *memorySink) { m.short = 16 })
	f := follow(t, o, sink)
	f.await(t, "streaming", isStreaming)
	s.MustSQL(t, "postgres", "create table short as select g from generate_series(1, 10000) g")
	sink.wait(t, currentLSN(t, s))
	eventually(t, "what is durable is acknowledged and no more", func() bool {
		return s.MustSQL(t, "postgres", "select write_lsn - flush_lsn from pg_stat_replication")[0][0] == "16"
	})
	if st := f.Status(); st.State != stream.Streaming || st.Err != nil {
		t.Fatalf("status %+v", st)
	}
	f.stop(t)
	sink.set(func(m *memorySink) { m.short = 0 })
	// A sink that neither fails nor goes on.
	o.StallTimeout = 200 * time.Millisecond
	for _, op := range []string{"append", "flush"} {
		gate := make(chan struct{})
		f := follow(t, o, sink)
		open := sync.OnceFunc(func() { close(gate) })
		t.Cleanup(open)
		f.await(t, "streaming", isStreaming)
		sink.wait(t, currentLSN(t, s))
		sink.set(func(m *memorySink) {
			stall := func() error { <-gate; return nil }
			if op == "append" {
				m.onAppend = stall
			} else {
				m.onFlush = stall
			}
		})
		s.MustSQL(t, "postgres", "create table stall_"+op+"(a int)")
		eventually(t, "the stalled connection is broken", func() bool {
			return s.MustSQL(t, "postgres", "select count(*) from pg_stat_replication")[0][0] == "0"
		})
		sink.set(func(m *memorySink) { m.onAppend, m.onFlush = nil, nil })
		open()
		st := f.await(t, "the stall is reported", func(st stream.Status) bool { return st.Err != nil })
		if !errors.Is(st.Err, stream.ErrStalled) {
			t.Fatalf("%s: %v", op, st.Err)
		}
		lsn := currentLSN(t, s)
		sink.wait(t, lsn)
		f.stop(t)
	}
	// A live receiver that has everything lets a fast stop end too, and says what it was.
	f = follow(t, o, sink)
	f.await(t, "streaming", isStreaming)
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	st := f.await(t, "the stop", func(st stream.Status) bool { return st.State == stream.Waiting })
	if !errors.Is(st.Err, stream.ErrShutdown) {
		t.Fatalf("after a stop: %v", st.Err)
	}
}

// testWALRemoved loses the slot by max_slot_wal_keep_size and then the WAL itself.
func testWALRemoved(t *testing.T, s *pgtest.Server, major int) {
	const slot = "everpage_test_lost"
	s.MustSQL(t, "postgres", "alter system set max_slot_wal_keep_size = '4MB'", "alter system set max_wal_size = '4MB'", "alter system set min_wal_size = '2MB'",
		"alter system set wal_keep_size = 0", "select pg_reload_conf()")
	eventually(t, "the settings are read", func() bool { return s.MustSQL(t, "postgres", "show max_slot_wal_keep_size")[0][0] == "4MB" })
	server, sink := setup(t, s, slot)
	sql := connect(t, s.ConnString("postgres"), stream.SQL)
	slots, err := stream.Slots(t.Context(), sql, slot, "absent")
	if err != nil || len(slots) != 1 || slots[0].Lost() || !slots[0].Physical || slots[0].Active || slots[0].RestartLSN == 0 || slots[0].SafeWALSize <= 0 {
		t.Fatalf("slots %+v: %v", slots, err)
	}
	f := follow(t, options(t, s, server, slot), sink)
	f.await(t, "streaming", isStreaming)
	// A sink that is full at a segment's end: the page to compare then lies in a segment that was acknowledged whole and may be removed.
	limit := server.SegmentSize.Floor(sink.end()) + 1<<20
	sink.set(func(m *memorySink) { m.limit = limit })
	s.MustSQL(t, "postgres", "create table lost(a text)", "select pg_switch_wal()", "insert into lost values ('a')", "checkpoint")
	eventually(t, "the slot is at our end", func() bool {
		return s.MustSQL(t, "postgres", "select restart_lsn from pg_replication_slots")[0][0] == limit.String()
	})
	f.stop(t)
	sink.set(func(m *memorySink) { m.limit = 0 })
	s.MustSQL(t, "postgres", "checkpoint")
	f = follow(t, options(t, s, server, slot), sink)
	f.await(t, "streaming from a segment's start", isStreaming)
	sink.wait(t, currentLSN(t, s))
	f.stop(t)
	if !strings.Contains(s.LogTail(), "has already been removed") {
		t.Error("the page before the segment was still there: nothing was tested")
	}

	for i := range 12 {
		s.MustSQL(t, "postgres", fmt.Sprintf("insert into lost select repeat(md5(g::text), 20) from generate_series(1, 1000) g where %d >= 0", i), "select pg_switch_wal()")
	}
	s.MustSQL(t, "postgres", "checkpoint")
	slots, err = stream.Slots(t.Context(), sql, slot)
	if err != nil || len(slots) != 1 || !slots[0].Lost() {
		t.Fatalf("slots %+v: %v", slots, err)
	}
	err = follow(t, options(t, s, server, slot), sink).end(t)
	if !stream.Refused(err) || !errors.Is(err, stream.ErrSlotLost) && !(major < 15 && errors.Is(err, stream.ErrWALRemoved)) {
		t.Fatalf("lost slot: %v", err)
	}
	t.Logf("lost slot: %v", err)
	c := connect(t, s.ConnString("postgres"), stream.Replication)
	if major < 15 {
		dropSlot(t, c, slot)
	}
	if fresh, err := stream.EnsureSlot(t.Context(), c, slot); err != nil || !fresh.Created {
		t.Fatalf("slot made anew: %+v, %v", fresh, err)
	}
	err = follow(t, options(t, s, server, slot), sink).end(t)
	if !stream.Refused(err) || !errors.Is(err, stream.ErrWALRemoved) {
		t.Fatalf("removed WAL: %v", err)
	}
	t.Logf("removed WAL: %v", err)
}
