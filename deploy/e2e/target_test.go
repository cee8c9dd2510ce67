package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/deploy/restoretest"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waldump"
	"everpage/wal/waltest"
)

// resolved is what lsn -o json prints, as far as it is looked at here.
type resolved struct {
	LSN  pg.LSN
	Note string
}

func lsn(t *testing.T, n *nodetest.Node, args ...string) resolved {
	t.Helper()
	var r resolved
	if err := n.JSON(t.Context(), &r, append([]string{"lsn"}, args...)...); err != nil {
		t.Fatal(err)
	}
	return r
}

// xactEnd is a commit or abort record of the WAL.
type xactEnd struct {
	start, end pg.LSN
	commit     bool
	xid        uint32
	at         time.Time
	raw        []byte
	timeAt     int // where in raw its time stands
}

// xactEnds reads all commits and aborts from an LSN on, in WAL order. It is written apart from what the node does with them.
func xactEnds(t *testing.T, dir string, from, to pg.LSN) []xactEnd {
	t.Helper()
	reader, closer, err := waldump.Open(dir, from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	var all []xactEnd
	for {
		rec, err := reader.Next()
		if errors.As(err, new(*wal.EndError)) || err == nil && rec.Start >= to {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		const commit, abort = 0x00, 0x20
		op := rec.Info & 0x70
		if rec.Rmgr != wal.RmTransaction || op != commit && op != abort {
			continue
		}
		all = append(all, xactEnd{start: rec.Start, end: rec.End, commit: op == commit, xid: rec.XID, raw: append([]byte(nil), rec.Raw...),
			timeAt: len(rec.Raw) - len(rec.Main), at: pg.Timestamp(binary.LittleEndian.Uint64(rec.Main)).Time()})
	}
}

// setTime gives a commit or abort another time, in the files of the WAL.
func (x *xactEnd) setTime(t *testing.T, dir string, at time.Time) {
	t.Helper()
	x.at = at
	binary.LittleEndian.PutUint64(x.raw[x.timeAt:], uint64(pg.TimestampOf(at)))
	waltest.Seal(x.raw)
	size, err := wal.DetectSegmentSize(dir)
	if err != nil {
		t.Fatal(err)
	}
	pos := x.start
	for _, b := range x.raw {
		switch { // the headers of pages lie between a record's bytes
		case size.Offset(pos) == 0:
			pos += wal.LongPageHeaderSize
		case pos%pg.BlockSize == 0:
			pos += wal.ShortPageHeaderSize
		}
		seg := wal.Segment{Timeline: 1, Number: uint64(pos) / uint64(size)}
		f, err := os.OpenFile(filepath.Join(dir, seg.Name(size)), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{b}, int64(size.Offset(pos)))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		pos++
	}
}

// Commits whose times run backwards are resolved in WAL order, as a stock server's recovery_target_time does. The times are those that a clock
// that was set back would have made: they are written into a stopped primary's WAL before the node reads it.
func TestTargetsWithTimesRunningBackwards(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newPrimary(t, map[string]string{"autovacuum": "off", "wal_keep_size": "1GB"})
	n := newNode(t)
	attach(t, n, s)
	base := filepath.Join(t.TempDir(), "base")
	if err := s.Basebackup(ctx, base); err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", "create table done (i int)")
	from := caughtUp(t, n, s)
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}

	minutes := []int{10, 20, 15, 5, 30, -25, 30, 40, 1, -2, 40, 50}
	for i, m := range minutes {
		end := "commit"
		if m < 0 {
			end = "rollback"
		}
		s.MustSQL(t, "postgres", fmt.Sprintf("begin; insert into done values (%d); %s", i, end))
	}
	to := position(t, s)
	if err := s.Stop(ctx, pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	ends := xactEnds(t, s.WALDir(), from, to)
	if len(ends) < len(minutes) {
		t.Fatalf("%d commits and aborts in the WAL, want at least %d", len(ends), len(minutes))
	}
	zero := time.Now().Add(time.Hour).Truncate(time.Second)
	ours := ends[len(ends)-len(minutes):]
	for i, m := range minutes {
		if ours[i].commit != (m > 0) {
			t.Fatalf("record %d at %s is not the one that was made", i, ours[i].start)
		}
		ours[i].setTime(t, s.WALDir(), zero.Add(time.Duration(max(m, -m))*time.Minute))
	}
	if err := s.StartAgain(ctx); err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", "insert into done values (-1)") // now, which is before all of those
	if err := n.StartAgain(ctx); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, n, s)
	if err := s.Stop(ctx, pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	wals := filepath.Join(t.TempDir(), "wal")
	if err := s.KeepWAL(wals); err != nil {
		t.Fatal(err)
	}

	for minute := 0; minute <= 51; minute++ {
		for _, before := range []bool{false, true} {
			at := zero.Add(time.Duration(minute) * time.Minute)
			args := []string{"--time", timeText(at)}
			if before {
				args = append(args, "--before")
			}
			got := lsn(t, n, args...)
			want := pg.LSN(0)
			for _, x := range ours {
				if x.at.After(at) || before && x.at.Equal(at) {
					want = x.start
					break
				}
			}
			switch {
			case want != 0 && (got.LSN != want || got.Note != ""):
				t.Errorf("minute %d, before %t: %s (%s), want %s", minute, before, got.LSN, got.Note, want)
			case want == 0 && (got.LSN < ours[len(ours)-1].end || !strings.Contains(got.Note, "after the last commit")):
				t.Errorf("minute %d, before %t, is past the last commit: %s, note %q", minute, before, got.LSN, got.Note)
			}
		}
	}
	// A stock server goes by the same rule.
	for _, c := range []struct {
		minute    int
		inclusive string
	}{{15, "on"}, {30, "off"}} {
		at := timeText(zero.Add(time.Duration(c.minute) * time.Minute))
		r := lsn(t, n, append([]string{"--time", at}, map[string][]string{"off": {"--before"}}[c.inclusive]...)...)
		dir := t.TempDir()
		stock, err := pgtest.RecoverTo(ctx, pgtest.Recovery{
			Config: pgtest.Config{Dir: filepath.Join(dir, "stock"), Args: []string{"-c", "recovery_target_lsn=", "-c", "recovery_target_time=" + at,
				"-c", "recovery_target_inclusive=" + c.inclusive}},
			Base: base, WAL: wals,
		})
		if err != nil {
			t.Fatal(err)
		}
		pgtest.CloseWith(t, stock)
		n.Must(t, "restore", filepath.Join(dir, "restored"), "--lsn", r.LSN.String(), "--quiet")
		restored := restoredServer(t, filepath.Join(dir, "restored"))
		const query = "select string_agg(i::text, ',' order by i) from done"
		theirs, mine := stock.MustSQL(t, "postgres", query)[0][0], restored.MustSQL(t, "postgres", query)[0][0]
		if mine != theirs || mine == "" {
			t.Errorf("minute %d, inclusive %s: restored has %q, a stock server %q", c.minute, c.inclusive, mine, theirs)
		}
		t.Logf("minute %d, inclusive %s: %q", c.minute, c.inclusive, mine)
	}
	for _, x := range ours {
		xid := strconv.FormatUint(uint64(x.xid), 10)
		if got := lsn(t, n, "--xid", xid); got.LSN != x.end || x.commit == strings.Contains(got.Note, "rolled back") {
			t.Errorf("transaction %s: %s (%s), want %s", xid, got.LSN, got.Note, x.end)
		}
		if got := lsn(t, n, "--xid", xid, "--before"); got.LSN != x.start {
			t.Errorf("before transaction %s: %s, want %s", xid, got.LSN, x.start)
		}
	}
}

func position(t *testing.T, s *pgtest.Server) pg.LSN {
	t.Helper()
	text, err := s.CurrentLSN(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return parseLSN(t, text)
}

// Every kind of target, and how those fail that cannot be met.
func TestTargets(t *testing.T) {
	t.Parallel()
	s := newPrimary(t, map[string]string{"autovacuum": "off"})
	n := newNode(t)
	refused(t, n, 3, []string{"everpage attach"}, "lsn", "--time", "2026-01-01 00:00:00+00")
	first := position(t, s)
	attach(t, n, s)
	s.MustSQL(t, "postgres", "create table v (i int)")
	value := func(i int) (xid string) {
		return s.MustSQL(t, "postgres", fmt.Sprintf("begin; insert into v values (%d); select pg_current_xact_id(); commit", i))[0][0]
	}
	x1 := value(1)
	point := parseLSN(t, s.MustSQL(t, "postgres", "select pg_create_restore_point('between')")[0][0])
	value(2)
	s.MustSQL(t, "postgres", "select pg_create_restore_point('between')")
	big := s.MustSQL(t, "postgres", "begin; insert into v select 3 from generate_series(1, 500); select pg_current_xact_id(); commit")[0][0]
	late := s.MustSQL(t, "postgres", "begin; insert into v values (4); select pg_current_xact_id(); prepare transaction 'late'")[0][0]
	s.MustSQL(t, "postgres", "commit prepared 'late'")
	end := caughtUp(t, n, s)

	// restored is which values are there after a restore to a target and the commit of what is prepared there, and the LSN that it went to.
	restored := func(args ...string) (string, restoreResult) {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "restored")
		var r restoreResult
		if err := n.JSON(t.Context(), &r, append([]string{"restore", dir, "--quiet"}, args...)...); err != nil {
			t.Fatal(err)
		}
		server := restoredServer(t, dir)
		const query = "select coalesce(string_agg(distinct i::text, ',' order by i::text), 'none') from v"
		values := server.MustSQL(t, "postgres", query)[0][0]
		prepared, err := restoretest.CommitPrepared(t.Context(), server)
		if err != nil {
			t.Fatal(err)
		}
		if len(prepared) > 0 {
			values += " then " + server.MustSQL(t, "postgres", query)[0][0]
		}
		return values, r
	}
	xid1 := lsn(t, n, "--xid", x1)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--name", "between"}, "1"},
		{[]string{"--xid", big, "--before"}, "1,2"},
		{[]string{"--lsn", xid1.LSN.String(), "--before"}, "none"},
		{[]string{"--lsn", (xid1.LSN + 3).String()}, "1"}, // inside the next record
		{[]string{"--xid", late, "--before"}, "1,2,3 then 1,2,3,4"},
		{nil, "1,2,3,4"},
	} {
		got, r := restored(c.args...)
		if got != c.want {
			t.Errorf("restore %s to %s has %s, want %s", strings.Join(c.args, " "), r.LSN, got, c.want)
		}
		if c.want == "1" && strconv.FormatUint(uint64(r.Last.XID), 10) != x1 {
			t.Errorf("restore %s says that %d was the last transaction, want %s", strings.Join(c.args, " "), r.Last.XID, x1)
		}
	}
	if got := lsn(t, n, "--name", "between"); got.LSN != point || !strings.Contains(got.Note, "2 restore points") {
		t.Errorf("the restore point is at %s (%s), want %s", got.LSN, got.Note, point)
	}
	if got := lsn(t, n, "--time", "2199-01-01 00:00:00+00"); got.LSN < end || !strings.Contains(got.Note, "after the last commit") {
		t.Errorf("a time in the future is %s (%s)", got.LSN, got.Note)
	}

	absent := filepath.Join(t.TempDir(), "absent")
	for _, c := range []struct {
		code  int
		texts []string
		args  []string
	}{
		{2, []string{"not several"}, []string{"--xid", x1, "--name", "between"}},
		{2, []string{"--before needs a target"}, []string{"--before"}},
		{2, []string{"want it as in"}, []string{"--time", "yesterday"}},
		{2, nil, []string{"--lsn", "12"}},
		{2, []string{"--xid -1"}, []string{"--xid", "-1"}},
		{3, []string{"4000000"}, []string{"--xid", "4000000"}},
		{3, []string{`"nowhere"`}, []string{"--name", "nowhere"}},
		{3, []string{"branch 9"}, []string{"--branch", "9", "--lsn", end.String()}},
		{4, []string{"oldest readable"}, []string{"--lsn", first.String()}},
		{4, []string{"before the base backup"}, []string{"--time", "2001-01-01 00:00:00+00"}},
		{5, []string{"not readable yet"}, []string{"--lsn", (end + 1<<40).String(), "--timeout", "3s"}},
	} {
		refused(t, n, c.code, c.texts, append([]string{"restore", absent}, c.args...)...)
		if _, err := os.Stat(absent); !os.IsNotExist(err) {
			t.Fatalf("restore %s failed and wrote to its directory: %v", strings.Join(c.args, " "), err)
		}
	}
}
