package cluster_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/fsm"
	"everpage/cluster/raft"
	"everpage/wal/pg"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wire calls other nodes of the test without a network; cut nodes don't answer.
type wire struct {
	mu    sync.Mutex
	nodes map[string]*cluster.Cluster
}

var errUnreachable = errors.New("unreachable")

func (w *wire) at(address string) (*cluster.Cluster, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.nodes[address]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("%s is %w", address, errUnreachable)
}

func (w *wire) set(address string, c *cluster.Cluster) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[address] = c
}

func (w *wire) Join(ctx context.Context, address string, r cluster.JoinRequest) (cluster.JoinAnswer, error) {
	c, err := w.at(address)
	if err != nil {
		return cluster.JoinAnswer{}, err
	}
	return c.HandleJoin(ctx, r)
}

func (w *wire) Propose(ctx context.Context, address string, entry []byte, forwarded bool) (cluster.Outcome, error) {
	c, err := w.at(address)
	if err != nil {
		return cluster.Outcome{}, err
	}
	return c.HandlePropose(ctx, entry, forwarded)
}

type node struct {
	*cluster.Cluster
	w   *wire
	cfg cluster.Config
}

func config(t *testing.T, w *wire, name string, join ...string) cluster.Config {
	return cluster.Config{
		Dir: t.TempDir(), Name: name, Cluster: "main", Page: "page-" + name, Raft: "127.0.0.1:0", Gossip: "127.0.0.1:0", Join: join, Shards: 8, SegmentBlocks: 131072,
		Peers: w, Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})), RaftTimeout: 300 * time.Millisecond, FastGossip: true,
	}
}

func start(t *testing.T, w *wire, cfg cluster.Config) *node {
	t.Helper()
	n := &node{w: w, cfg: cfg}
	n.again(t)
	t.Cleanup(n.kill)
	return n
}

func (n *node) again(t *testing.T) {
	t.Helper()
	c, err := cluster.Start(t.Context(), n.cfg)
	if err != nil {
		t.Fatalf("start %s: %v", n.cfg.Name, err)
	}
	n.Cluster = c
	n.w.set(n.cfg.Page, c)
}

func (n *node) kill() {
	if n.Cluster != nil {
		n.w.set(n.cfg.Page, nil)
		n.Close()
		n.Cluster = nil
	}
}

func until(t *testing.T, n *node, what string, ok func(*cluster.State) bool) *cluster.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := n.Until(ctx, ok)
	if err != nil {
		t.Fatalf("%s: %v; state %+v", what, err, s)
	}
	return s
}

// eventually waits for what no channel tells.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

func three(t *testing.T) (*wire, []*node) {
	w := &wire{nodes: map[string]*cluster.Cluster{}}
	a := start(t, w, config(t, w, "n1"))
	b := start(t, w, config(t, w, "n2", "page-n1"))
	c := start(t, w, config(t, w, "n3", "page-n2"))
	eventually(t, "three voters", func() bool { return voters(t, a) == 3 })
	return w, []*node{a, b, c}
}

func voters(t *testing.T, n *node) int {
	t.Helper()
	servers, err := n.Servers()
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, s := range servers {
		if s.Voter {
			count++
		}
	}
	return count
}

func TestOneNodeIsUpAtOnce(t *testing.T) {
	w := &wire{nodes: map[string]*cluster.Cluster{}}
	began := time.Now()
	cfg := config(t, w, "n1")
	cfg.RaftTimeout = 20 * time.Second // nobody's silence is waited for
	n := start(t, w, cfg)
	if d := time.Since(began); d > 10*time.Second {
		t.Fatalf("up after %s", d)
	}
	s := n.State()
	if len(s.Nodes) != 1 || s.Nodes[0].Name != "n1" || len(s.Map) != 8 || s.Map[3].Full()[0] != n.ID() {
		t.Fatalf("state %+v", s)
	}
	id := s.ID
	n.kill()
	began = time.Now()
	n.again(t)
	if d := time.Since(began); d > 10*time.Second {
		t.Fatalf("back after %s", d)
	}
	if n.State().ID != id {
		t.Fatalf("it came back to cluster %s, not %s", n.State().ID, id)
	}
}

func TestThreeNodesAgree(t *testing.T) {
	_, nodes := three(t)
	attach := &command.Attach{Conninfo: "host=x", SystemIdentifier: 7, Major: 15, WALSegmentSize: 16 << 20, Importer: nodes[0].ID()}
	if _, err := nodes[2].Propose(t.Context(), attach); err != nil {
		t.Fatal(err)
	}
	if f := nodes[2].State().Follow; f.SystemIdentifier != 7 {
		t.Fatalf("follow %+v", f)
	}
	if _, err := nodes[1].Propose(t.Context(), &command.SetBranch{Number: 1, Timeline: 3, Start: 8, Imported: true, Importer: nodes[0].ID(), Main: true}); err != nil {
		t.Fatal(err)
	}
	seen := map[pg.TimelineID]bool{}
	for i := range 9 {
		tli, err := cluster.ProposeFor[pg.TimelineID](t.Context(), nodes[i%3].Cluster, &command.ReserveTimeline{})
		if err != nil {
			t.Fatal(err)
		}
		if seen[tli] || tli < 4 {
			t.Fatalf("timeline %d was given before or belongs to the primary", tli)
		}
		seen[tli] = true
	}
	attach.SystemIdentifier = 8
	var refused *cluster.Refused
	if _, err := nodes[1].Propose(t.Context(), attach); !errors.As(err, &refused) || !strings.Contains(err.Error(), "another database system") {
		t.Fatalf("another system: %v", err)
	}
}

func TestLeaderIsKilled(t *testing.T) {
	_, nodes := three(t)
	if _, err := nodes[0].Propose(t.Context(), &command.SetRetention{Retention: time.Hour}); err != nil {
		t.Fatal(err)
	}
	leader := 0
	for i, n := range nodes {
		if n.IsLeader() {
			leader = i
		}
	}
	a, b := nodes[(leader+1)%3], nodes[(leader+2)%3]
	nodes[leader].kill()
	if _, err := a.Propose(t.Context(), &command.SetRetention{Retention: 2 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	until(t, b, "the other survivor hears", func(s *cluster.State) bool { return s.Retention == 2*time.Hour })
	nodes[leader].again(t)
	until(t, nodes[leader], "the killed one catches up", func(s *cluster.State) bool { return s.Retention == 2*time.Hour })

	// Without a majority nothing is agreed, but what was is known, over a restart too.
	nodes[leader].kill()
	b.kill()
	a.kill()
	a.again(t)
	if s := a.State(); s.Retention != 2*time.Hour || len(s.Nodes) != 3 {
		t.Fatalf("alone it knows %+v", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := a.Propose(ctx, &command.SetRetention{}); err == nil {
		t.Fatal("one node of three agreed with itself")
	}
	b.again(t)
	if _, err := a.Propose(t.Context(), &command.SetRetention{Retention: 3 * time.Hour}); err != nil {
		t.Fatal(err)
	}
}

func TestWhoIsRefused(t *testing.T) {
	w := &wire{nodes: map[string]*cluster.Cluster{}}
	key := []byte("0123456789abcdef")
	cfg := config(t, w, "n1")
	cfg.Key = key
	a := start(t, w, cfg)
	good := func(name string) cluster.Config {
		cfg := config(t, w, name, "page-n1")
		cfg.Key = key
		return cfg
	}
	b := start(t, w, good("n2"))
	for _, c := range []struct {
		name, want string
		change     func(*cluster.Config)
	}{
		{"wrong key", "gossip key", func(c *cluster.Config) { c.Key = []byte("fedcba9876543210") }},
		{"no key", "gossip key", func(c *cluster.Config) { c.Key = nil }},
		{"other cluster's name", "cluster side", func(c *cluster.Config) { c.Cluster = "side" }},
		{"name taken", "a node named n2", func(c *cluster.Config) { c.Name = "n2" }},
		{"other chunks", "blocks", func(c *cluster.Config) { c.SegmentBlocks = 8 }},
	} {
		cfg := good("n9")
		c.change(&cfg)
		n, err := cluster.Start(t.Context(), cfg)
		if err == nil {
			n.Close()
			t.Fatalf("%s: it was let in", c.name)
		}
		if !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	answer, err := a.HandleJoin(t.Context(), cluster.JoinRequest{ID: "x", Name: "x", Cluster: "main", ClusterID: "feed", Page: "p", Format: fsm.Format, SegmentBlocks: 131072})
	if err != nil || answer.Refused == "" {
		t.Errorf("a node without proof: %+v, %v", answer, err)
	}
	for _, c := range []struct {
		want   string
		change func(*cluster.JoinRequest)
	}{
		{"belongs to another cluster", func(r *cluster.JoinRequest) { r.ClusterID = "feed" }},
		{"run the newer release on it", func(r *cluster.JoinRequest) { r.Format = fsm.Format - 1 }},
	} {
		r := cluster.JoinRequest{ID: "x", Name: "x", Cluster: "main", Page: "p", Format: fsm.Format, SegmentBlocks: 131072, Proof: prove(key, "x", "x")}
		c.change(&r)
		if answer, err := a.HandleJoin(t.Context(), r); err != nil || !strings.Contains(answer.Refused, c.want) {
			t.Errorf("%s: %+v, %v", c.want, answer, err)
		}
	}
	if s := b.State(); len(s.Nodes) != 2 {
		t.Fatalf("nodes %+v", s.Nodes)
	}
	// The same node with an empty directory: its old self can't be at its address any more.
	b.kill()
	b.cfg.Dir = t.TempDir()
	b.again(t)
	until(t, a, "the new one stands for the old one", func(s *cluster.State) bool { return len(s.Nodes) == 2 && s.NodeNamed("n2").ID == b.ID() })
}

// prove is how a node shows that it has the key.
func prove(key []byte, id, name string) []byte {
	h := hmac.New(sha256.New, key)
	fmt.Fprintf(h, "everpage join\x00%s\x00%s", id, name)
	return h.Sum(nil)
}

// TestVotes: at most five nodes vote, an odd number of them. No removal leaves too few of them that answer: nothing could be agreed on any more, not even that one
// comes back. Where the dead are removed first, it works.
func TestVotes(t *testing.T) {
	w, nodes := three(t)
	for i := 4; i <= 7; i++ {
		nodes = append(nodes, start(t, w, config(t, w, fmt.Sprint("n", i), "page-n1")))
	}
	eventually(t, "five vote", func() bool {
		servers, _ := nodes[0].Servers()
		return voters(t, nodes[0]) == raft.MaxVoters && len(servers) == 7
	})
	if _, err := nodes[6].Propose(t.Context(), &command.SetRetention{Retention: time.Hour}); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		until(t, n, "all know what was agreed on", func(s *cluster.State) bool { return s.Retention == time.Hour })
	}

	x := &wire{nodes: map[string]*cluster.Cluster{}}
	a, b := start(t, x, config(t, x, "n1")), start(t, x, config(t, x, "n2", "page-n1"))
	eventually(t, "both are seen", func() bool { alive, _ := a.Alive(b.ID()); return alive && len(a.State().Nodes) == 2 })
	if n := voters(t, a); n != 1 {
		t.Fatalf("%d of two nodes vote", n)
	}
	if err := a.MayRemove(a.ID()); err != nil {
		t.Errorf("the other one can take the vote over: %v", err)
	}
	b.kill()
	eventually(t, "the other one is missed", func() bool { alive, _ := a.Alive(a.State().NodeNamed("n2").ID); return !alive })
	if err := a.MayRemove(a.ID()); err == nil || !strings.Contains(err.Error(), "too few to agree") {
		t.Errorf("the last voter may be removed: %v", err)
	}
	gone := a.State().NodeNamed("n2").ID
	if err := a.MayRemove(gone); err != nil {
		t.Errorf("the dead one may not be removed: %v", err)
	}
	if _, err := a.Propose(t.Context(), &command.RemoveNode{ID: gone}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Propose(t.Context(), &command.SetRetention{Retention: time.Minute}); err != nil {
		t.Fatal(err)
	}

	_, left3 := three(t)
	dead, left := left3[2].ID(), left3[1].ID()
	left3[2].kill()
	eventually(t, "the third one is missed", func() bool { alive, _ := left3[0].Alive(dead); return !alive })
	if err := left3[0].MayRemove(left); err == nil || !strings.Contains(err.Error(), "1 of 2 answer") {
		t.Errorf("one of two that answer may be removed while the third is gone: %v", err)
	}
	if err := left3[0].MayRemove(dead); err != nil {
		t.Errorf("the dead one may not be removed: %v", err)
	}
}

func TestNodesLeave(t *testing.T) {
	w, nodes := three(t)
	d := start(t, w, config(t, w, "n4", "page-n1"))
	a := nodes[0]
	if _, err := d.Propose(t.Context(), &command.RemoveNode{ID: nodes[2].ID()}); err != nil {
		t.Fatal(err)
	}
	nodes[2].kill()
	until(t, a, "three are left", func(s *cluster.State) bool { return len(s.Nodes) == 3 })
	eventually(t, "the vote goes to the fourth", func() bool {
		servers, err := a.Servers()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range servers {
			if s.ID == d.ID() {
				return s.Voter && len(servers) == 3
			}
		}
		return false
	})
	for _, n := range []*node{nodes[1], d} {
		if _, err := a.Propose(t.Context(), &command.RemoveNode{ID: n.ID()}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log lets it go", func() bool { servers, _ := a.Servers(); return len(servers) == len(a.State().Nodes) })
		n.kill()
	}
	_, err := a.Propose(t.Context(), &command.RemoveNode{ID: a.ID()})
	var refused *cluster.Refused
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "last node") {
		t.Fatalf("the last node: %v", err)
	}
}

func TestNodeComesBackElsewhere(t *testing.T) {
	_, nodes := three(t)
	n := nodes[2]
	n.kill()
	n.cfg.Page = "page-moved"
	n.cfg.Raft, n.cfg.Gossip = "127.0.0.2:0", "127.0.0.2:0"
	n.again(t)
	s := until(t, nodes[0], "the state says where it is", func(s *cluster.State) bool { return s.NodeNamed("n3").PageAddress == "page-moved" })
	if !strings.HasPrefix(s.NodeNamed("n3").RaftAddress, "127.0.0.2:") {
		t.Fatalf("node %+v", s.NodeNamed("n3"))
	}
	if _, err := n.Propose(t.Context(), &command.SetRetention{Retention: time.Minute}); err != nil {
		t.Fatal(err)
	}
}
