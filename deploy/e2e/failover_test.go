package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

// pair is a primary with a streaming standby. After a failover the roles change.
type pair struct {
	t                *testing.T
	primary, standby *pgtest.Server
}

func newPair(t *testing.T, major int, settings map[string]string) *pair {
	t.Helper()
	// Nothing but the test commits: lost transactions are counted.
	quiet := map[string]string{"autovacuum": "off", "wal_keep_size": "512MB", "hot_standby": "on", "wal_retrieve_retry_interval": "100ms"}
	s := pgtest.New(t, pgtest.Config{Major: major, Settings: primarySettings(quiet, settings)})
	p := &pair{t: t, primary: s}
	p.standby = p.addStandby(s)
	return p
}

func (p *pair) addStandby(of *pgtest.Server) *pgtest.Server {
	p.t.Helper()
	// Under the same settings: a standby refuses smaller ones than its primary's.
	standby, err := of.Standby(p.t.Context(), "standby", pgtest.Config{Dir: filepath.Join(p.t.TempDir(), "standby"), Settings: map[string]string{"wal_retrieve_retry_interval": "100ms"}})
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
func onBranch(t *testing.T, n *nodetest.Node, branch, timeline uint32) branches {
	t.Helper()
	var v branches
	eventually(t, fmt.Sprintf("main is branch %d of timeline %d", branch, timeline), func() (bool, string) {
		v = branches{}
		err := n.JSON(t.Context(), &v, "info")
		for _, b := range v.Branches {
			if b.Alias == "main" && b.Number == branch && b.Timeline == timeline {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v, error %v", v, err)
	})
	return v
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
func TestFailover(t *testing.T) {
	for _, major := range []int{15, 17} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
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
			if err := n.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			v := onBranch(t, n, 3, 3)
			t.Logf("%+v", v)
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
