//go:build long

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
)

// TestRecoveredWithoutPassword: the store holds no password, so a node made of it says what it needs, and goes on when it is told.
func TestRecoveredWithoutPassword(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t, pgtest.Config{Settings: primarySettings(),
		HBA: []string{"host all secret 127.0.0.1/32 scram-sha-256", "host replication secret 127.0.0.1/32 scram-sha-256"}})
	s.MustSQL(t, "postgres", "create role secret superuser replication login password 'right'", "create table t as select generate_series(1, 1000) i")
	conninfo := fmt.Sprintf("host=127.0.0.1 port=%d user=secret password=right dbname=postgres sslmode=disable", s.Port())
	b := newBackedUp(t)
	b.node.Must(t, "attach", conninfo, "--wait", "--quiet")
	caughtUp(t, b.node, s)
	backupList(t, b.node, "backup", "now")
	b.node.Kill9()
	n := b.recovered(t)
	waitFollow(t, n, "the message about the password", func(f nodetest.Follow) bool {
		return f.State != "streaming" && strings.Contains(f.Message, "password refused") && strings.Contains(f.Message, "attach again with the conninfo")
	})
	s.MustSQL(t, "postgres", "insert into t select generate_series(1, 1000)")
	n.Must(t, "attach", conninfo, "--wait", "--quiet")
	restored(t, n)
	compareStopped(t, n, s)
}
