package members_test

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	"everpage/cluster/members"
)

func start(t *testing.T, id, listen string, change func(o *members.Options)) (*members.Members, error) {
	t.Helper()
	o := members.Options{Self: members.Meta{ID: id, Name: id, Cluster: "c", Page: "127.0.0.1:1", Raft: "127.0.0.1:2"}, Listen: listen, Logger: slog.New(slog.DiscardHandler), Fast: true}
	if change != nil {
		change(&o)
	}
	m, err := members.Start(o)
	if err == nil {
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return m, err
}

// What a node tells of itself has to fit in one of gossip's messages.
func TestTooMuchToTellIsRefused(t *testing.T) {
	_, err := start(t, "a", "127.0.0.1:0", func(o *members.Options) { o.Self.Zone = strings.Repeat("z", 600) })
	if err == nil || !strings.Contains(err.Error(), "zone") {
		t.Errorf("a zone of 600 characters: %v", err)
	}
}

// A host's name is where it resolves to: a node that listens on every interface instead is told to the others as "::".
func TestHostNames(t *testing.T) {
	m, err := start(t, "a", "localhost:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	host, _, err := net.SplitHostPort(m.Address())
	if ip := net.ParseIP(host); err != nil || !ip.IsLoopback() {
		t.Errorf("localhost became %s", m.Address())
	}
	if k, ok := m.Get("a"); !ok || k.Gossip != m.Address() {
		t.Errorf("told to the others: %+v, want %s", k, m.Address())
	}
	if _, err := start(t, "b", "no.such.host.invalid:0", nil); err == nil || !strings.Contains(err.Error(), "no.such.host.invalid") {
		t.Errorf("a host that does not exist: %v", err)
	}
}
