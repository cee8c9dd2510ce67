package e2e

import (
	"context"
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
	"everpage/wal/pg"
)

// pair is a primary with a streaming standby. After a failover the roles change.
type pair struct {
	t                *testing.T
	primary, standby *pgtest.Server
}

func newPair(t *testing.T, major int, settings map[string]string, standby ...map[string]string) *pair {
	t.Helper()
	// Nothing but the test commits: lost transactions are counted.
	quiet := map[string]string{"autovacuum": "off", "wal_keep_size": "512MB", "hot_standby": "on", "wal_retrieve_retry_interval": "100ms"}
	s := pgtest.New(t, pgtest.Config{Major: major, Settings: primarySettings(quiet, settings)})
	p := &pair{t: t, primary: s}
	p.standby = p.addStandby(s, standby...)
	return p
}

func (p *pair) addStandby(of *pgtest.Server, settings ...map[string]string) *pgtest.Server {
	p.t.Helper()
	standby, err := of.Standby(p.t.Context(), "standby", pgtest.Config{Dir: filepath.Join(p.t.TempDir(), "standby"), Settings: pgtest.Merge(append([]map[string]string{{"wal_retrieve_retry_interval": "100ms"}}, settings...)...)})
	if err != nil {
		p.t.Fatal(err)
	}
	pgtest.CloseWith(p.t, standby)
	return standby
}

// conninfo names both hosts.
func (p *pair) conninfo() string {
	return fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres dbname=postgres sslmode=disable connect_timeout=10 target_session_attrs=read-write",
		p.primary.Port(), p.standby.Port())
}

// flushed is the end of a server's WAL. Unlike CurrentLSN it commits nothing, which would be lost beside what the test counts.
func flushed(t *testing.T, s *pgtest.Server) pg.LSN {
	t.Helper()
	text, err := s.FlushedLSN(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return parseLSN(t, text)
}

// cut ends the standby's replication: what the primary commits from here on is lost when the standby is promoted.
func (p *pair) cut() {
	p.t.Helper()
	p.primary.MustSQL(p.t, "postgres", "insert into log values (0)") // takes along what was committed without a flush
	if err := p.standby.WaitReplayed(p.t.Context(), flushed(p.t, p.primary).String()); err != nil {
		p.t.Fatal(err)
	}
	p.standby.MustSQL(p.t, "postgres", "alter system set primary_conninfo = ''", "select pg_reload_conf()")
	if err := p.standby.WaitTrue(p.t.Context(), "select count(*) = 0 from pg_stat_wal_receiver"); err != nil {
		p.t.Fatal(err)
	}
}

// promote makes the standby the primary.
func (p *pair) promote() {
	p.t.Helper()
	p.standby.MustSQL(p.t, "postgres", "select pg_promote()")
	p.primary, p.standby = p.standby, p.primary
}

// commit inserts rows into log, a transaction each, and returns their ids: what the client knows to be committed.
func commit(t *testing.T, s *pgtest.Server, from, to int) (xids []string) {
	t.Helper()
	for i := from; i <= to; i++ {
		rows := s.MustSQL(t, "postgres", fmt.Sprintf("insert into log values (%d) returning pg_current_xact_id()::xid", i))
		xids = append(xids, rows[0][0])
	}
	return xids
}

// branches is what info says.
type branches struct {
	Branches []struct {
		Number    uint32
		Alias     string
		Timeline  uint32
		Parent    uint32
		Fork      pg.LSN  `json:"fork_lsn"`
		Left      pg.LSN  `json:"left_lsn"`
		LostCount *uint64 `json:"lost_count"`
		Newest    pg.LSN  `json:"newest_lsn"`
		Holes     []string
		Lost      []struct {
			XID  uint32
			Time string
			LSN  pg.LSN
		} `json:"lost_commits"`
	}
}

// onBranch waits until main is a branch, here, of a timeline.
func onBranch(t *testing.T, n *nodetest.Node, branch, timeline uint32) {
	t.Helper()
	eventually(t, fmt.Sprintf("main is branch %d of timeline %d", branch, timeline), func() (bool, string) {
		var v branches
		err := n.JSON(t.Context(), &v, "info")
		for _, b := range v.Branches {
			if b.Alias == "main" && b.Number == branch && b.Timeline == timeline {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v, error %v", v, err)
	})
}

// lostAre waits until a node has a whole list of what was lost, and compares it with what the client knows.
func lostAre(t *testing.T, n *nodetest.Node, branch uint32, want []string) {
	t.Helper()
	eventually(t, fmt.Sprintf("branch %d lost %d commits", branch, len(want)), func() (bool, string) {
		var v branches
		err := n.JSON(t.Context(), &v, "info")
		for _, b := range v.Branches {
			if b.Number != branch || b.LostCount == nil {
				continue
			}
			var got []string
			last := b.Left
			for _, c := range b.Lost {
				got = append(got, strconv.FormatUint(uint64(c.XID), 10))
				if c.LSN <= last || c.Time == "" {
					t.Errorf("commit %+v behind %s", c, last)
				}
				last = c.LSN
			}
			if int(*b.LostCount) == len(got) && strings.Join(got, " ") == strings.Join(want, " ") {
				return true, ""
			}
			return false, fmt.Sprintf("listed %v of %d, want %v", got, *b.LostCount, want)
		}
		return false, fmt.Sprintf("%+v, error %v", v, err)
	})
}

// compareBranch compares what a node serves of a branch with the directory of a server that was stopped cleanly at its end.
func compareBranch(t *testing.T, n *nodetest.Node, branch uint32, s *pgtest.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := nodetest.CompareBranch(ctx, n.Address(), branch, s.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() || r.Final.Pages == 0 {
		t.Errorf("branch %d differs from its server: %d mismatches, %d damaged pages of %d: %+v", branch, r.Mismatches, r.Damaged, r.Final.Pages, r.Found)
		return
	}
	t.Logf("branch %d compared at %s: %d pages, %d identical, tolerated %v", branch, r.End, r.Final.Pages, r.Final.Identical, r.Final.Tolerated)
}

// TestFailover: a primary stops while its standby is cut off, the standby is promoted, then a standby of that one. Every branch is what its server's files are.
// EVERPAGE_FAILOVER_MAJORS=14,16 has it run on others than 15.
func TestFailover(t *testing.T) {
	majors := []int{pgtest.DefaultMajor}
	if text := os.Getenv("EVERPAGE_FAILOVER_MAJORS"); text != "" {
		majors = nil
		for _, m := range strings.Split(text, ",") {
			major, err := strconv.Atoi(m)
			if err != nil {
				t.Fatal(err)
			}
			majors = append(majors, major)
		}
	}
	for _, major := range majors {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			random := dice(t)
			p := newPair(t, major, nil)
			if _, err := p.primary.Pgbench(t.Context(), "-i", "-q", "-s", "1"); err != nil {
				t.Fatal(err)
			}
			p.primary.MustSQL(t, "postgres", "create table log (i int)")
			n := newNode(t)
			n.Must(t, "attach", p.conninfo(), "--wait", "--quiet")
			if _, err := p.primary.Pgbench(t.Context(), "-n", "-c", "2", "-t", "200"); err != nil {
				t.Fatal(err)
			}
			commit(t, p.primary, 1, 10)
			rel := p.primary.MustSQL(t, "postgres", "select pg_relation_filepath('log')")[0][0]
			before := caughtUp(t, n, p.primary)
			p.cut()
			gone := commit(t, p.primary, 11, 20)
			tail := flushed(t, p.primary)
			waitReadable(t, n, tail)
			first := p.primary
			if err := first.Stop(t.Context(), pgtest.Fast); err != nil {
				t.Fatal(err)
			}
			waitState(t, n, "waiting", "")
			n.Must(t, "page", "get", rel, "0", "--lsn", tail.String())
			p.promote()
			onBranch(t, n, 2, 2)
			commit(t, p.primary, 101, 110)
			if _, err := p.primary.Pgbench(t.Context(), "-n", "-c", "2", "-t", "200"); err != nil {
				t.Fatal(err)
			}
			caughtUp(t, n, p.primary)
			lostAre(t, n, 1, gone)
			compareBranch(t, n, 1, first)
			old := n.Must(t, "page", "get", rel, "0", "--branch", "1", "--lsn", before.String(), "--format", "raw")
			if now := n.Must(t, "page", "get", rel, "0", "--lsn", before.String(), "--format", "raw"); now != old {
				t.Errorf("before the switch the branches differ")
			}

			// The second failover, without loss. The node is killed meanwhile.
			second := p.primary
			p.standby = p.addStandby(second)
			n.Must(t, "attach", p.conninfo(), "--wait", "--quiet")
			commit(t, second, 111, 120)
			caughtUp(t, n, second)
			at, err := second.CurrentLSN(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := p.standby.WaitReplayed(t.Context(), at); err != nil {
				t.Fatal(err)
			}
			n.Kill9()
			if err := second.Stop(t.Context(), pgtest.Fast); err != nil {
				t.Fatal(err)
			}
			p.promote()
			commit(t, p.primary, 201, 210)
			for range 3 { // and at moments of the switch
				if err := n.StartAgain(t.Context()); err != nil {
					t.Fatal(err)
				}
				select {
				case <-t.Context().Done():
				case <-time.After(time.Duration(random.IntN(400)) * time.Millisecond):
				}
				n.Kill9()
			}
			if err := n.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			onBranch(t, n, 3, 3)
			commit(t, p.primary, 211, 220)
			caughtUp(t, n, p.primary)
			lostAre(t, n, 2, nil)

			// The old primary comes back, under an address of the conninfo.
			if err := first.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			refused(t, n, 1, []string{"old primary"}, "attach", first.URI("postgres"))
			n.Must(t, "check", "--quiet")
			n.Kill9()
			if err := n.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			compareStopped(t, n, p.primary)
			compareBranch(t, n, 2, second)
			lostAre(t, n, 1, gone)
			n.Must(t, "check", "--quiet")
		})
	}
}

// TestFailoverOfACluster: three nodes under synchronous replication, the primary killed, a node away during the switch, one that joins behind it. The old primary
// comes back on its address and is passed over. Directories are restored from the tail of the old branch and from the new one.
func TestFailoverOfACluster(t *testing.T) {
	t.Parallel()
	p := newPair(t, 16, map[string]string{"synchronous_standby_names": "ANY 2 (node1, node2, node3, standby)", "synchronous_commit": "local"})
	p.primary.MustSQL(t, "postgres", "create table log (i int)")
	paths := fillTables(t, p.primary, 2000)
	nodes := newCluster(t, 3)
	conninfo := p.conninfo()
	nodes[0].Must(t, "attach", conninfo, "--wait", "--quiet")
	settled(t, nodes[0], map[string]int{"node1": 8, "node2": 8, "node3": 8})
	everywhere := func(nodes []*nodetest.Node, s *pgtest.Server) pg.LSN {
		t.Helper()
		var at pg.LSN
		for _, n := range nodes {
			at = caughtUp(t, n, s)
		}
		return at
	}
	p.primary.MustSQL(t, "postgres", "update f0 set v = v || 'x' where i % 3 = 0", "set synchronous_commit = on; insert into log select generate_series(1, 100)")
	before := everywhere(nodes, p.primary)
	nodes[2].Kill9() // it sees neither the end of the old timeline nor the switch
	p.cut()
	gone := commit(t, p.primary, 1001, 1010)
	lostXID := gone[len(gone)-1]
	for _, n := range nodes[:2] {
		waitReadable(t, n, flushed(t, p.primary))
	}
	first := p.primary
	if err := first.Kill9(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.promote()
	onBranch(t, nodes[0], 2, 2)
	onBranch(t, nodes[1], 2, 2)
	// The old primary comes back first in the conninfo: nobody listens to it, nor do reads stop.
	if err := first.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.MustSQL(t, "postgres", "set synchronous_commit = local; insert into log values (2000)")
	p.primary.MustSQL(t, "postgres", "update f1 set v = v || 'y' where i % 5 = 0", "set synchronous_commit = local; insert into log select generate_series(101, 200)")
	everywhere(nodes[:2], p.primary)
	if err := nodes[2].StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	onBranch(t, nodes[2], 2, 2)
	nodes[1].Kill9()
	if err := nodes[1].StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	onBranch(t, nodes[1], 2, 2)
	nodes = append(nodes, joinNode(t, "node4", nodes[1]))
	settled(t, nodes[0], map[string]int{"node1": 6, "node2": 6, "node3": 6, "node4": 6})
	p.primary.MustSQL(t, "postgres", "delete from f2 where i % 2 = 0", "vacuum f2")
	at := everywhere(nodes, p.primary)
	same(t, nodes, paths, before.String())
	same(t, nodes, paths, at.String())
	for _, n := range nodes {
		lostAre(t, n, 1, gone)
	}
	onOld := branchEnd(t, nodes[0], 1)
	for _, path := range paths {
		var first string
		for i, n := range nodes {
			page := n.Must(t, "page", "get", path, "1", "--branch", "1", "--lsn", onOld.String(), "--format", "raw", "--timeout", "30s")
			if i == 0 {
				first = page
			} else if page != first {
				t.Errorf("%s block 1 of branch 1 at %s: node %d answers another page than node 1", path, onOld, i+1)
			}
		}
	}
	eventually(t, "the new primary has the slots of the three nodes that receive from it", func() (bool, string) {
		slots := fmt.Sprint(p.primary.MustSQL(t, "postgres", "select slot_name from pg_replication_slots where slot_name like 'everpage%'"))
		return strings.Count(slots, "everpage") == 3, slots
	})

	// A server from each side of the switch.
	counts := func(branch, xid string) string {
		dir := filepath.Join(t.TempDir(), "restored")
		args := []string{"restore", dir, "--branch", branch, "--quiet"}
		if xid != "" {
			args = append(args, "--xid", xid)
		}
		nodes[3].Must(t, args...)
		s := restoredServer16(t, dir)
		return fmt.Sprint(s.MustSQL(t, "postgres", "select count(*) filter (where i between 1 and 100), count(*) filter (where i between 1001 and 1010), count(*) filter (where i between 101 and 200), count(*) filter (where i = 2000) from log"))
	}
	if got := counts("1", lostXID); got != "[[100 10 0 0]]" {
		t.Errorf("restored from the tail of the old branch: %s", got)
	}
	if got := counts("main", ""); got != "[[100 0 100 0]]" {
		t.Errorf("restored from main: %s", got)
	}
	for _, n := range nodes {
		n.Must(t, "check", "--quiet")
	}
	compareStopped(t, nodes[3], p.primary)
}

// branchEnd is the newest LSN of a branch.
func branchEnd(t *testing.T, n *nodetest.Node, branch uint32) pg.LSN {
	t.Helper()
	var v branches
	if err := n.JSON(t.Context(), &v, "info"); err != nil {
		t.Fatal(err)
	}
	for _, b := range v.Branches {
		if b.Number == branch {
			return b.Newest
		}
	}
	t.Fatalf("branch %d is not in %+v", branch, v)
	return 0
}

// restoredServer16 is restoredServer for a server of major 16.
func restoredServer16(t *testing.T, dir string) *pgtest.Server {
	t.Helper()
	s, err := pgtest.Open(t.Context(), dir, pgtest.Config{Major: 16, Dir: dir + ".server"})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, s)
	if err := restoretest.NoRecovery(s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestFailoverIsBackedUp: a data directory that is lost after a failover comes back from the store with both branches, and is followed on.
func TestFailoverIsBackedUp(t *testing.T) {
	t.Parallel()
	store := "file://" + filepath.Join(t.TempDir(), "store")
	args := []string{"--store", store, "--archive-every", "300ms", "--backup-every", "1s", "--run", "2000000"}
	p := newPair(t, 15, nil)
	p.primary.MustSQL(t, "postgres", "create table log (i int)")
	paths := fillTables(t, p.primary, 1000)
	n := newNode(t, args...)
	n.Must(t, "attach", p.conninfo(), "--wait", "--quiet")
	commit(t, p.primary, 1, 5)
	p.cut()
	gone := commit(t, p.primary, 11, 15)
	tail := flushed(t, p.primary)
	waitReadable(t, n, tail)
	if err := p.primary.Kill9(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.promote()
	onBranch(t, n, 2, 2)
	p.primary.MustSQL(t, "postgres", "update f1 set v = v || 'y' where i % 5 = 0")
	at := caughtUp(t, n, p.primary)
	rel := p.primary.MustSQL(t, "postgres", "select pg_relation_filepath('log')")[0][0]
	answers := func(n *nodetest.Node) (out []string) {
		for _, path := range append(paths, rel) {
			out = append(out, n.Must(t, "page", "get", path, "0", "--lsn", at.String(), "--format", "raw", "--timeout", "30s"),
				n.Must(t, "page", "get", path, "0", "--branch", "1", "--lsn", tail.String(), "--format", "raw", "--timeout", "30s"))
		}
		return out
	}
	want := answers(n)
	n.Must(t, "backup", "now", "--quiet")
	n.Kill9()

	again := newNode(t, append([]string{"--recover"}, args...)...)
	for i, page := range answers(again) {
		if page != want[i] {
			t.Errorf("answer %d differs after the recovery", i)
		}
	}
	lostAre(t, again, 1, gone)
	commit(t, p.primary, 101, 105)
	caughtUp(t, again, p.primary)
	again.Must(t, "check", "--quiet")
	compareStopped(t, again, p.primary)
}

// TestFailoverWithAHole: a node is away while the standby is promoted and removes the WAL that the node lacks. That is said, a new base backup is taken, and what was
// before the hole stays.
func TestFailoverWithAHole(t *testing.T) {
	t.Parallel()
	p := newPair(t, 17, nil, map[string]string{"wal_keep_size": "0", "min_wal_size": "32MB", "max_wal_size": "32MB"})
	p.primary.MustSQL(t, "postgres", "create table log (i int)")
	n := newNode(t)
	attach(t, n, p.primary)
	commit(t, p.primary, 1, 5)
	at := caughtUp(t, n, p.primary)
	rel := p.primary.MustSQL(t, "postgres", "select pg_relation_filepath('log')")[0][0]
	page := n.Must(t, "page", "get", rel, "0", "--lsn", at.String(), "--format", "raw")
	n.Kill9()
	for range 3 {
		p.primary.MustSQL(t, "postgres", "insert into log values (6)", "select pg_switch_wal()")
	}
	if err := p.standby.WaitReplayed(t.Context(), flushed(t, p.primary).String()); err != nil {
		t.Fatal(err)
	}
	if err := p.primary.Kill9(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.promote()
	for range 4 {
		p.primary.MustSQL(t, "postgres", "insert into log values (7)", "select pg_switch_wal()", "checkpoint")
	}
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitState(t, n, "waiting", "")
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	n.Must(t, "attach", p.primary.URI("postgres"), "--quiet")
	onBranch(t, n, 2, 2)
	caughtUp(t, n, p.primary)
	var v branches
	if err := n.JSON(t.Context(), &v, "info"); err != nil {
		t.Fatal(err)
	}
	if old := v.Branches[0]; len(v.Branches) != 2 || old.Number != 1 || old.Alias != "" || len(old.Holes) != 1 || !strings.Contains(old.Holes[0], "is missing") || len(v.Branches[1].Holes) != 0 {
		t.Errorf("info: %+v", v)
	}
	if again := n.Must(t, "page", "get", rel, "0", "--branch", "1", "--lsn", at.String(), "--format", "raw"); again != page {
		t.Error("a page from before the hole is another one now")
	}
	n.Must(t, "check", "--quiet")
	compareStopped(t, n, p.primary)
}
