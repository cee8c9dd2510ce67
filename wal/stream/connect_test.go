package stream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"everpage/deploy/pgtest"
	"everpage/wal/stream"
)

func TestConnectErrors(t *testing.T) {
	s := pgtest.New(t, pgtest.Config{Major: 15, Settings: map[string]string{"max_wal_senders": "3", "max_replication_slots": "1"}, HBA: []string{
		"host all,replication secret,plain 127.0.0.1/32 scram-sha-256", "host replication barred 127.0.0.1/32 reject"}})
	s.MustSQL(t, "postgres", "create role secret login replication password 'it''s'", "create role plain login password 'p'", "create role barred login replication",
		"create role nologin replication")
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	base := fmt.Sprintf("host=127.0.0.1 port=%d sslmode=disable ", s.Port())
	passfile := write("pass", fmt.Sprintf("127.0.0.1:%d:replication:secret:it's\n", s.Port()))
	allfile := write("allpass", fmt.Sprintf("127.0.0.1:%d:postgres:secret:it's\n", s.Port()))
	service := write("service", fmt.Sprintf("[primary]\nhost=127.0.0.1\nport=%d\nuser=secret\nsslmode=disable\ndbname=postgres\npassword=it's\n", s.Port()))
	for _, c := range []struct {
		name, conninfo string
		mode           stream.Mode
		want           error
		hint           string
	}{
		{"keywords", base + `user=secret password='it\'s' dbname=postgres keepalives=1 keepalives_idle=10 gssencmode=prefer`, stream.Replication, nil, ""},
		{"URI", fmt.Sprintf("postgresql://secret:it%%27s@127.0.0.1:%d/postgres?sslmode=disable&tcp_user_timeout=1000", s.Port()), stream.Replication, nil, ""},
		{"hostaddr", fmt.Sprintf("host=primary.invalid hostaddr=127.0.0.1 port=%d sslmode=disable user=secret password='it\\'s' dbname=postgres", s.Port()), stream.SQL, nil, ""},
		{"hostaddr alone", fmt.Sprintf("hostaddr=127.0.0.1 port=%d sslmode=disable user=postgres dbname=postgres", s.Port()), stream.Replication, nil, ""},
		{"hostaddr alone keeps TLS", fmt.Sprintf("postgres://postgres@:%d/postgres?hostaddr=127.0.0.1&sslmode=require", s.Port()), stream.SQL, stream.ErrConnectOther, "refused TLS"},
		{"target_session_attrs of a standby", base + "user=postgres target_session_attrs=prefer-standby", stream.Replication, stream.ErrConninfo, "use read-write or primary"},
		{"socket", fmt.Sprintf("host=%s port=%d user=postgres", s.SocketDir(), s.Port()), stream.Replication, nil, ""},
		{"password file names replication", base + "user=secret dbname=postgres passfile=" + passfile, stream.Replication, nil, ""},
		{"password file names the database", base + "user=secret dbname=postgres passfile=" + allfile, stream.Replication, nil, ""},
		{"service file", "service=primary servicefile=" + service, stream.Replication, nil, ""},
		{"second host", fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=1,%d user=postgres sslmode=disable target_session_attrs=read-write", s.Port()), stream.Replication, nil, ""},
		{"wrong password", base + "user=secret password=no dbname=postgres", stream.Replication, stream.ErrPassword, ".pgpass"},
		{"no such role", base + "user=nobody", stream.Replication, stream.ErrRole, `CREATE ROLE "nobody" REPLICATION LOGIN`},
		{"role without login", base + "user=nologin", stream.Replication, stream.ErrRole, "LOGIN"},
		{"no privilege", base + "user=plain password=p", stream.Replication, stream.ErrNoPrivilege, `ALTER ROLE "plain" REPLICATION`},
		{"no pg_hba.conf line", base + "user=barred", stream.Replication, stream.ErrNoHBA, "host replication barred"},
		{"no such database", base + "user=postgres dbname=absent", stream.SQL, stream.ErrNoDatabase, "existing database"},
		{"nobody listens", "host=127.0.0.1 port=1 user=postgres", stream.Replication, stream.ErrUnreachable, "check host and port"},
		{"no conninfo", "host=a port=x", stream.SQL, stream.ErrConninfo, "URI or keywords"},
		{"trust that can't be kept", base + "user=postgres requirepeer=postgres", stream.SQL, stream.ErrConninfo, "leave it out"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := stream.Connect(t.Context(), c.conninfo, c.mode, "test")
			if err == nil {
				defer conn.Close()
			}
			if c.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if c.mode == stream.Replication {
					if _, err := stream.Identify(t.Context(), conn); err != nil {
						t.Fatal(err)
					}
				}
				return
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.hint) || strings.Contains(err.Error(), "password=no") {
				t.Fatalf("error %v, want %v and %q", err, c.want, c.hint)
			}
		})
	}
	t.Run("all walsenders taken", func(t *testing.T) {
		for range 3 {
			connect(t, s.ConnString("postgres"), stream.Replication)
		}
		if _, err := stream.Connect(t.Context(), s.ConnString("postgres"), stream.Replication, "test"); !errors.Is(err, stream.ErrTooMany) {
			t.Fatalf("error %v", err)
		}
	})
	t.Run("all slots taken", func(t *testing.T) {
		s.MustSQL(t, "postgres", "select pg_create_physical_replication_slot('other')")
		eventually(t, "walsenders are free", func() bool {
			return s.MustSQL(t, "postgres", "select count(*) from pg_stat_activity where backend_type = 'walsender'")[0][0] == "0"
		})
		c := connect(t, s.ConnString("postgres"), stream.Replication)
		if _, err := stream.EnsureSlot(t.Context(), c, "everpage_a_b"); err == nil || !strings.Contains(err.Error(), "max_replication_slots") {
			t.Fatalf("error %v", err)
		}
		// A slot that reserves nothing, made by hand, is made anew.
		if slot, err := stream.EnsureSlot(t.Context(), c, "other"); err != nil || !slot.Created || slot.RestartLSN == 0 {
			t.Fatalf("slot %+v: %v", slot, err)
		}
	})
}

// fakeServer accepts connections and answers each startup, and with a pooler's manners each query, with an error.
func fakeServer(t *testing.T, atStartup, atQuery *pgproto3.ErrorResponse) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serveFake(c, atStartup, atQuery)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres sslmode=disable", l.Addr().(*net.TCPAddr).Port)
}

func serveFake(c net.Conn, atStartup, atQuery *pgproto3.ErrorResponse) {
	_ = c.SetDeadline(time.Now().Add(deadline))
	b := pgproto3.NewBackend(c, c)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	if atStartup != nil {
		b.Send(atStartup)
		_ = b.Flush()
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ParameterStatus{Name: "server_version", Value: "15.1"})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	for b.Flush() == nil {
		msg, err := b.Receive()
		if err != nil {
			return
		}
		if _, ok := msg.(*pgproto3.Query); ok {
			b.Send(atQuery)
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		}
	}
}

func TestPoolersAreNamed(t *testing.T) {
	refusal := &pgproto3.ErrorResponse{Severity: "FATAL", Code: "08P01", Message: "unsupported startup parameter: replication"}
	if _, err := stream.Connect(t.Context(), fakeServer(t, refusal, nil), stream.Replication, "test"); !errors.Is(err, stream.ErrPooler) {
		t.Fatalf("refused startup: %v", err)
	}
	syntax := &pgproto3.ErrorResponse{Severity: "ERROR", Code: "42601", Message: `syntax error at or near "IDENTIFY_SYSTEM"`}
	c := connect(t, fakeServer(t, nil, syntax), stream.Replication)
	if _, err := stream.Identify(t.Context(), c); !errors.Is(err, stream.ErrPooler) || !strings.Contains(err.Error(), "poolers") {
		t.Fatalf("refused command: %v", err)
	}
}

// TestSilentServer stops a walsender, as a dead network would, and sees the receiver come back with another.
func TestSilentServer(t *testing.T) {
	const slot = "everpage_test_node1"
	s := startServer(t, 15, keepWAL)
	server, sink := setup(t, s, slot)
	o := options(t, s, server, slot)
	o.ReceiveTimeout, o.StatusInterval = 2*time.Second, 50*time.Millisecond
	f := follow(t, o, sink)
	f.await(t, "streaming", isStreaming)
	var pid int
	if _, err := fmt.Sscan(s.MustSQL(t, "postgres", "select pid from pg_stat_replication")[0][0], &pid); err != nil {
		t.Fatal(err)
	}
	// It answers pings, so silence alone is no reason.
	replied := func() string {
		return s.MustSQL(t, "postgres", "select reply_time from pg_stat_replication")[0][0]
	}
	first := replied()
	eventually(t, "status updates come by themselves", func() bool { return replied() != first })
	since := f.Status().Received
	eventually(t, "pings are answered", func() bool { return f.Status().Received.Sub(since) > 2*o.ReceiveTimeout })
	if st := f.Status(); st.State != stream.Streaming || st.Failures != 0 {
		t.Fatalf("status %+v", st)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	st := f.await(t, "the silence is noticed", func(st stream.Status) bool { return st.Err != nil })
	if !errors.Is(st.Err, stream.ErrSilent) {
		t.Errorf("error %v", st.Err)
	}
	f.await(t, "the slot is still taken", func(st stream.Status) bool { return errors.Is(st.Err, stream.ErrSlotActive) })
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	f.await(t, "streaming again", isStreaming)
	s.MustSQL(t, "postgres", "create table t as select g from generate_series(1, 1000) g")
	lsn := currentLSN(t, s)
	sink.wait(t, lsn)
	sink.equal(t, s, server.SegmentSize, lsn)
}

func TestPreflight(t *testing.T) {
	s := pgtest.New(t, pgtest.Config{Major: 14, Settings: map[string]string{"wal_level": "minimal", "max_wal_senders": "0", "full_page_writes": "off"}})
	s.MustSQL(t, "postgres", "create role limited login", "create database hidden", "revoke connect on database hidden from public")
	needs := func(p stream.Plan) map[string]stream.Need {
		m := map[string]stream.Need{}
		for _, n := range p.Needs {
			m[n.What] = n
		}
		return m
	}
	plan := func(conninfo string) (stream.Plan, map[string]stream.Need) {
		t.Helper()
		p, err := stream.Preflight(t.Context(), stream.PlanOptions{Conninfo: conninfo, Cluster: "main", Node: "node-1"})
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(p)
		if err != nil || !strings.Contains(string(b), `"slot":"everpage_main_node_1"`) {
			t.Fatalf("%s: %v", b, err)
		}
		return p, needs(p)
	}
	p, n := plan(s.ConnString("postgres"))
	if p.Ready() || n["wal_level"].State != stream.Missing || n["wal_level"].Fix[0] != "ALTER SYSTEM SET wal_level = replica;" || n["max_wal_senders"].State != stream.Missing ||
		n["full_page_writes"].State != stream.Advised || n["max_slot_wal_keep_size"].State != stream.Advised || n["max_replication_slots"].State != stream.Met {
		t.Fatalf("%+v", p)
	}
	for _, n := range p.Needs {
		for _, fix := range n.Fix {
			if strings.HasPrefix(fix, "ALTER SYSTEM") {
				s.MustSQL(t, "postgres", strings.ReplaceAll(fix, `ANY 1 ("node-1")`, ""))
			}
		}
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, n = plan(s.ConnString("postgres"))
	if !p.Ready() || p.DatabaseBytes < 20<<20 || p.Databases != 4 || p.Server.SystemID == 0 || n["role with REPLICATION and LOGIN"].State != stream.Met || n["max_slot_wal_keep_size"].State != stream.Met {
		t.Fatalf("%+v", p)
	}
	p, n = plan(strings.ReplaceAll(s.ConnString("postgres"), "user=postgres", "user=limited"))
	if r := n["role with REPLICATION and LOGIN"]; p.Ready() || r.State != stream.Missing || r.Fix[0] != `ALTER ROLE "limited" REPLICATION;` || p.DatabaseBytes != -1 || n["disk for the base backup"].State != stream.Unknown {
		t.Fatalf("%+v", p)
	}
	s.MustSQL(t, "postgres", `alter role limited replication`, `grant pg_read_all_stats to limited`)
	p, _ = plan(strings.ReplaceAll(s.ConnString("postgres"), "user=postgres", "user=limited"))
	if !p.Ready() || p.DatabaseBytes < 20<<20 {
		t.Fatalf("%+v", p)
	}
	if _, err := stream.Preflight(t.Context(), stream.PlanOptions{Conninfo: "host=127.0.0.1 port=1", Cluster: "main", Node: "a"}); !errors.Is(err, stream.ErrUnreachable) {
		t.Fatalf("error %v", err)
	}
	if _, err := stream.Preflight(context.Background(), stream.PlanOptions{Conninfo: s.URI("postgres"), Cluster: "main", Node: "Hold"}); err == nil {
		t.Fatal("a node may be called hold")
	}
}
