package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
)

// TestReadsThatCannotBeAnswered: each has its exit code and says why.
func TestReadsThatCannotBeAnswered(t *testing.T) {
	t.Parallel()
	s := newPrimary(t)
	s.MustSQL(t, "postgres", "create table t as select generate_series(1, 10) i")
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('t')")[0][0]
	n := newNode(t)
	refused(t, n, 3, []string{"has no data", "everpage attach"}, "page", "get", rel, "0")
	attach(t, n, s)
	at := caughtUp(t, n, s)
	for _, c := range []struct {
		code  int
		texts []string
		args  []string
	}{
		{5, []string{"FF/1", "is not readable yet", "the primary itself has written WAL up to 0/"}, []string{"page", "get", rel, "0", "--lsn", "FF/1", "--timeout", "3s"}},
		{5, []string{"is not readable yet", "the primary itself"}, []string{"rel", "size", rel, "--lsn", "FF/1", "--timeout", "3s"}},
		{4, []string{"0/100", "before the oldest readable LSN"}, []string{"page", "get", rel, "0", "--lsn", "0/100"}},
		{4, []string{"before the base backup"}, []string{"page", "get", rel, "0", "--time", "2001-01-01 00:00:00+00"}},
		{3, []string{"there is no such relation"}, []string{"page", "get", "base/5/999999", "0"}},
		{3, []string{"does not exist"}, []string{"rel", "size", "base/77777/1259"}},
		{3, []string{"block 5000"}, []string{"page", "get", rel, "5000"}},
		{3, []string{"999999999"}, []string{"lsn", "--xid", "999999999"}},
		{3, []string{"no restore point", "nowhere"}, []string{"lsn", "--name", "nowhere"}},
		{3, []string{"branch 9"}, []string{"page", "get", rel, "0", "--branch", "9", "--lsn", at.String()}},
		{2, []string{"bogus"}, []string{"page", "get", rel, "0", "--lsn", "bogus"}},
		{2, []string{"sideways"}, []string{"page", "get", rel, "0", "--fork", "sideways"}},
		{2, []string{"block"}, []string{"page", "get", rel, "minus"}},
		{2, nil, []string{"page", "get", "no/such/path/at/all", "0"}},
		{2, []string{"--frobnicate"}, []string{"status", "--frobnicate"}},
		{2, nil, []string{"page", "get", rel}},
		{2, []string{"yesterday-ish"}, []string{"lsn", "--time", "yesterday-ish"}},
	} {
		refused(t, n, c.code, c.texts, c.args...)
	}

	// A node that isn't there.
	gone := nodetest.New(t, nodetest.Config{Binary: everpage, Data: filepath.Join(t.TempDir(), "gone")})
	gone.Kill9()
	refused(t, gone, 5, []string{gone.Address()}, "status")
	refused(t, gone, 5, []string{gone.Address()}, "page", "get", rel, "0", "--timeout", "2s")

	// A second node on the same directory.
	_, err := nodetest.Start(t.Context(), nodetest.Config{Binary: everpage, Data: n.Data(), Args: []string{"--segment-blocks", "16"}})
	if err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), fmt.Sprint("process ", n.Pid())) {
		t.Errorf("a second serve on the same directory: %v", err)
	}
	n.Must(t, "page", "get", rel, "0")

	// Its own state damaged, lost, or someone else's.
	n.Kill9()
	path := filepath.Join(n.Data(), "cluster", "identity.json")
	right, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what    string
		content []byte
		text    string
	}{
		{"cut", right[:len(right)/2], "identity.json is damaged"},
		{"empty", nil, "identity.json is damaged"},
		{"of a later release", bytes.Replace(right, []byte(`"format": 1`), []byte(`"format": 99`), 1), "use the newer release"},
		{"of another node", bytes.Replace(right, []byte(`"name": "node1"`), []byte(`"name": "other"`), 1), "belongs to node other"},
		{"lost", []byte("lost"), "nothing says whose it is"},
	} {
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if c.what == "lost" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.StartAgain(t.Context()); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("identity.json %s: %v", c.what, err)
			n.Kill9()
		}
	}
	if err := os.WriteFile(path, right, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
}

// TestServersThatCannotBeAttached: attach refuses them at once, with the next step.
func TestServersThatCannotBeAttached(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t, pgtest.Config{Settings: primarySettings(map[string]string{"max_slot_wal_keep_size": "64MB"}),
		HBA: []string{"host all secret 127.0.0.1/32 scram-sha-256", "host replication secret 127.0.0.1/32 scram-sha-256"}})
	s.MustSQL(t, "postgres", "create role secret replication login password 'right'", "create role plain login")
	n := newNode(t)
	as := func(user, password string) string {
		return fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s dbname=postgres sslmode=disable", s.Port(), user, password)
	}
	refused(t, n, 1, []string{"password refused", "secret"}, "attach", as("secret", "wrong"))
	refused(t, n, 1, []string{"REPLICATION", "ALTER ROLE"}, "attach", as("plain", "x"))
	refused(t, n, 1, []string{"does not exist", "CREATE ROLE"}, "attach", as("nobody_here", "x"))
	refused(t, n, 2, []string{"bad connection string"}, "attach", "host=127.0.0.1 port=what")
	closed := newPrimary(t)
	if err := closed.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	refused(t, n, 5, []string{"unreachable", "listen_addresses"}, "attach", closed.URI("postgres"))

	standby, err := s.Standby(t.Context(), "standby", pgtest.Config{Dir: filepath.Join(t.TempDir(), "standby")})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, standby)
	refused(t, n, 1, []string{"standby", "name the primary"}, "attach", standby.URI("postgres"))

	minimal := newPrimary(t, map[string]string{"wal_level": "minimal", "max_wal_senders": "0"})
	refused(t, n, 1, []string{"wal_level: minimal", "want replica"}, "attach", minimal.URI("postgres"))
	if r := n.Run(t.Context(), "attach", minimal.URI("postgres"), "--dry-run"); r.Code != 1 || !strings.Contains(r.Stdout, "ALTER SYSTEM SET wal_level = replica;") {
		t.Errorf("attach --dry-run of wal_level = minimal: %+v", r)
	}

	if f, err := n.Status(t.Context()); err != nil || f.State != "detached" {
		t.Errorf("after refused attaches: %+v, error %v", f, err)
	}
	if rows := s.MustSQL(t, "postgres", "select slot_name from pg_replication_slots"); len(rows) != 0 {
		t.Errorf("refused attaches left slots %v", rows)
	}
	r := n.Run(t.Context(), "attach", as("secret", "right"), "--wait")
	if r.Code != 0 || !strings.Contains(r.Stderr, "max_slot_wal_keep_size") {
		t.Errorf("attach with max_slot_wal_keep_size: %+v", r)
	}
	for name, want := range map[string]os.FileMode{"": 0o700, "state": 0o600, "raft": 0o700} {
		info, err := os.Stat(filepath.Join(n.Data(), "cluster", name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("cluster/%s, which holds a password: %v, error %v", name, info.Mode(), err)
		}
	}
}

// TestAnotherServerOnTheAddress: whatever takes the primary's place is refused, loudly, while reads go on; the right one is followed again.
func TestAnotherServerOnTheAddress(t *testing.T) {
	t.Parallel()
	s := newPrimary(t)
	s.MustSQL(t, "postgres", "create table t as select generate_series(1, 1000) i")
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('t')")[0][0]
	n := newNode(t)
	attach(t, n, s)
	stop := func(s *pgtest.Server) {
		t.Helper()
		if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
			t.Fatal(err)
		}
	}
	stop(s)
	copied := filepath.Join(t.TempDir(), "copy")
	if err := s.CopyCold(copied); err != nil {
		t.Fatal(err)
	}
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", "update t set i = -i")
	at := caughtUp(t, n, s)
	stop(s)

	// The primary rolled back to the copy, then gone on from there.
	old, err := pgtest.Open(t.Context(), copied, pgtest.Config{Port: s.Port(), Settings: map[string]string{"autovacuum": "off"}})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, old)
	waitState(t, n, "stopped", "server's WAL ends before ours")
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	old.MustSQL(t, "postgres", "create table other as select generate_series(1, 30000) i")
	waitState(t, n, "stopped", "server's WAL differs from ours")
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	stop(old)

	// Another cluster, and one of another major.
	for _, c := range []struct {
		major int
		text  string
	}{{15, "another database cluster answers at the address"}, {14, "server has another major version: 14, we follow 15"}} {
		other := pgtest.New(t, pgtest.Config{Major: c.major, Port: s.Port(), Settings: primarySettings()})
		waitState(t, n, "stopped", c.text)
		n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
		stop(other)
	}

	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitState(t, n, "streaming", "")
	s.MustSQL(t, "postgres", "delete from t where i % 2 = 0")
	compareStopped(t, n, s)
}

// TestSlotThatVanished: WAL may be missing, so nothing is streamed until someone has decided; reads go on.
func TestSlotThatVanished(t *testing.T) {
	t.Parallel()
	s := newPrimary(t)
	s.MustSQL(t, "postgres", "create table t as select generate_series(1, 1000) i")
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('t')")[0][0]
	n := newNode(t)
	attach(t, n, s)
	at := caughtUp(t, n, s)

	// The WAL is still there: the SQL of the message mends it.
	n.Kill9()
	dropSlot := func() {
		eventually(t, "the primary notices that the node is gone", func() (bool, string) {
			active := s.MustSQL(t, "postgres", "select active from pg_replication_slots where slot_name = '"+slotName+"'")[0][0]
			return active == "f", "active: " + active
		})
		s.MustSQL(t, "postgres", "select pg_drop_replication_slot('"+slotName+"')", "update t set i = -i")
	}
	dropSlot()
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := waitState(t, n, "stopped", "replication slot does not exist")
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	from := strings.Index(f.Message, "SELECT pg_create_physical_replication_slot(")
	if from < 0 {
		t.Fatalf("the message has no SQL: %s", f.Message)
	}
	sql, _, _ := strings.Cut(f.Message[from:], ";")
	s.MustSQL(t, "postgres", sql)
	waitState(t, n, "streaming", "")
	at = caughtUp(t, n, s)

	// The WAL is gone too: only a new import helps.
	n.Kill9()
	dropSlot()
	for range 2 {
		s.MustSQL(t, "postgres", "select pg_switch_wal()", "checkpoint")
	}
	s.MustSQL(t, "postgres", sql)
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitState(t, n, "stopped", "server has removed WAL that we need")
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	n.Must(t, "detach")
	attach(t, n, s)
	compareStopped(t, n, s)
}

// TestDatabaseCopiedDuringImport: CREATE DATABASE … STRATEGY file_copy writes no page to the WAL, so a base backup that it falls into is taken again.
func TestDatabaseCopiedDuringImport(t *testing.T) {
	t.Parallel()
	s := newPrimary(t, map[string]string{"autovacuum": "off"})
	n := newNode(t)
	if r := n.Run(t.Context(), "attach", s.URI("postgres"), "--quiet"); r.Code != 0 {
		t.Fatalf("attach: %+v", r)
	}
	made := 0
	eventually(t, "a database copy falls into the base backup", func() (bool, string) {
		made++
		s.MustSQL(t, "postgres", fmt.Sprintf("create database d%d strategy file_copy", made))
		if f, err := n.Status(t.Context()); err == nil && f.Consistent != "0/0" && !strings.Contains(n.Log(), "the import starts again") {
			// Too late: once more from the start.
			n.Must(t, "detach")
			if r := n.Run(t.Context(), "attach", s.URI("postgres"), "--quiet"); r.Code != 0 {
				t.Fatalf("attach: %+v", r)
			}
		}
		return strings.Contains(n.Log(), "the import starts again"), n.Log()
	})
	waitFollow(t, n, "consistent", func(f nodetest.Follow) bool { return f.Consistent != "0/0" && f.State == "streaming" })
	t.Logf("%d databases", made)
	compareStopped(t, n, s)
}
