// Package e2e tests whole nodes, as processes, beside real PostgreSQL servers.
package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// everpage is the binary that all tests here run.
var everpage string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "everpage-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if everpage, err = nodetest.Build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// patience bounds whatever a test waits for: it is only reached when something is wrong.
var patience = 90 * time.Second

// newNode starts a node on an empty data directory, with chunks of 16 blocks, so that small relations cross chunks and shards. It is killed with the test.
func newNode(t *testing.T, args ...string) *nodetest.Node {
	t.Helper()
	return nodetest.New(t, nodetest.Config{Binary: everpage, Data: filepath.Join(t.TempDir(), "node"),
		Args: append([]string{"--segment-blocks", "16"}, args...)})
}

// newPrimary starts a server that may be followed.
func newPrimary(t *testing.T, settings ...map[string]string) *pgtest.Server {
	t.Helper()
	return pgtest.New(t, pgtest.Config{Settings: primarySettings(settings...)})
}

func primarySettings(settings ...map[string]string) map[string]string {
	base := map[string]string{
		"wal_level": "replica", "max_wal_senders": "10", "max_replication_slots": "10", "max_prepared_transactions": "20",
		"max_wal_size": "256MB", "shared_buffers": "16MB", "track_commit_timestamp": "on",
	}
	return pgtest.Merge(append([]map[string]string{base}, settings...)...)
}

// attach follows a server and returns when every LSN from here on can be read.
func attach(t *testing.T, n *nodetest.Node, s *pgtest.Server) {
	t.Helper()
	n.Must(t, "attach", s.URI("postgres"), "--wait", "--quiet")
}

// eventually waits until ok returns true. Its text says how things stand, for the error.
func eventually(t *testing.T, what string, ok func() (done bool, state string)) {
	t.Helper()
	var state string
	var done bool
	for end := time.Now().Add(patience); ; {
		if done, state = ok(); done {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s; %s", what, patience, state)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// waitFollow waits until status shows what ok looks for.
func waitFollow(t *testing.T, n *nodetest.Node, what string, ok func(nodetest.Follow) bool) nodetest.Follow {
	t.Helper()
	var f nodetest.Follow
	eventually(t, what, func() (bool, string) {
		var err error
		f, err = n.Status(t.Context())
		return err == nil && ok(f), fmt.Sprintf("status: %+v, error: %v", f, err)
	})
	return f
}

// waitState waits until following is in a state and its message holds a text.
func waitState(t *testing.T, n *nodetest.Node, state, text string) nodetest.Follow {
	t.Helper()
	return waitFollow(t, n, fmt.Sprintf("state %q with %q in its message", state, text), func(f nodetest.Follow) bool {
		return f.State == state && strings.Contains(f.Message, text)
	})
}

// caughtUp waits until the node can answer at the end of the server's WAL, and returns that LSN.
func caughtUp(t *testing.T, n *nodetest.Node, s *pgtest.Server) pg.LSN {
	t.Helper()
	text, err := s.CurrentLSN(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := parseLSN(t, text)
	waitReadable(t, n, at)
	return at
}

// waitReadable waits until an LSN can be read.
func waitReadable(t *testing.T, n *nodetest.Node, at pg.LSN) {
	t.Helper()
	waitFollow(t, n, fmt.Sprintf("%s readable", at), func(f nodetest.Follow) bool {
		readable, err := pg.ParseLSN(f.Readable)
		return err == nil && f.Consistent != "0/0" && readable >= at
	})
}

func parseLSN(t *testing.T, text string) pg.LSN {
	t.Helper()
	at, err := pg.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// newClient connects to a node for as long as the test runs.
func newClient(t *testing.T, n *nodetest.Node) *pageapi.Client {
	t.Helper()
	c, err := pageapi.NewClient([]string{n.Address()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// compareStopped stops the server cleanly and compares every block of every relation fork, every SLRU segment and the rest with what the node serves.
func compareStopped(t *testing.T, n *nodetest.Node, s *pgtest.Server) {
	t.Helper()
	caughtUp(t, n, s)
	waitState(t, n, "streaming", "") // the server's last record comes by stream only
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := nodetest.CompareStopped(ctx, n.Address(), s.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() || r.Final.Pages == 0 || r.Final.Objects == 0 {
		t.Errorf("the stopped primary differs: %d mismatches, %d damaged pages, %d pages and %d objects compared", r.Mismatches, r.Damaged, r.Final.Pages, r.Final.Objects)
		for _, m := range r.Found {
			t.Errorf("%+v", m)
		}
		return
	}
	t.Logf("compared with the stopped primary at %s: %d pages, %d identical, %d objects, tolerated %v", r.End, r.Final.Pages, r.Final.Identical, r.Final.Objects, r.Final.Tolerated)
}

// refused runs a command that has to fail with an exit code and all of the texts in its message.
func refused(t *testing.T, n *nodetest.Node, code int, texts []string, args ...string) {
	t.Helper()
	r := n.Run(t.Context(), args...)
	if r.Code != code {
		t.Errorf("everpage %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.Code, code, r.Stdout, r.Stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.Stderr, text) {
			t.Errorf("everpage %s: the message lacks %q:\n%s", strings.Join(args, " "), text, r.Stderr)
		}
	}
}

// dice are random numbers whose seed is printed. EVERPAGE_SEED gives it again.
func dice(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("EVERPAGE_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatalf("EVERPAGE_SEED=%s: %v", text, err)
		}
	}
	t.Logf("EVERPAGE_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
