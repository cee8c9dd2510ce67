package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
)

// newCluster starts nodes that form a cluster of few shards, with fast decisions.
func newCluster(t *testing.T, nodes int, args ...string) []*nodetest.Node {
	t.Helper()
	list := []*nodetest.Node{newNode(t, append([]string{"--shards", "8", "--dead-after", "5s"}, args...)...)}
	for i := 1; i < nodes; i++ {
		list = append(list, joinNode(t, fmt.Sprintf("node%d", i+1), list[0], args...))
	}
	return list
}

func joinNode(t *testing.T, name string, to *nodetest.Node, args ...string) *nodetest.Node {
	t.Helper()
	return newNode(t, append([]string{"--node", name, "--join", to.Address(), "--dead-after", "5s"}, args...)...)
}

type nodeView struct {
	Name   string
	Alive  bool
	State  string
	Full   int
	Joins  int
	Leader bool
}

// nodes is what a node says of all.
func nodeList(t *testing.T, n *nodetest.Node) []nodeView {
	t.Helper()
	var v struct {
		Nodes []struct {
			Name     string `json:"name"`
			Alive    bool   `json:"alive"`
			State    string `json:"state"`
			Replicas int    `json:"full_shards"`
			Joining  int    `json:"joining_shards"`
			Leader   bool   `json:"leader"`
		} `json:"nodes"`
	}
	if err := n.JSON(t.Context(), &v, "node", "list"); err != nil {
		t.Fatal(err)
	}
	var out []nodeView
	for _, x := range v.Nodes {
		out = append(out, nodeView{x.Name, x.Alive, x.State, x.Replicas, x.Joining, x.Leader})
	}
	return out
}

// settled waits until every one of the named nodes has so many full shards.
func settled(t *testing.T, n *nodetest.Node, want map[string]int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the shards are where they belong: %v", want), func() (bool, string) {
		list := nodeList(t, n)
		ok := true
		for _, x := range list {
			if w, named := want[x.Name]; named {
				ok = ok && x.Full == w && x.Joins == 0
			}
		}
		return ok, fmt.Sprintf("%+v", list)
	})
}

// fill makes relations that lie in many shards, and returns their paths.
func fillTables(t *testing.T, s *pgtest.Server, rows int) []string {
	t.Helper()
	var paths []string
	for i := range 4 {
		s.MustSQL(t, "postgres", fmt.Sprintf("create table f%d as select i, repeat(md5(i::text), 5) v from generate_series(1, %d) i", i, rows))
		paths = append(paths, s.MustSQL(t, "postgres", fmt.Sprintf("select pg_relation_filepath('f%d')", i))[0][0])
	}
	return paths
}

// same compares what nodes answer for the first blocks of relations at an LSN.
func same(t *testing.T, nodes []*nodetest.Node, paths []string, lsn string) {
	t.Helper()
	for _, path := range paths {
		for _, block := range []string{"0", "17", "40"} {
			var first string
			for i, n := range nodes {
				page := n.Must(t, "page", "get", path, block, "--lsn", lsn, "--format", "raw", "--timeout", "30s")
				if i == 0 {
					first = page
				} else if page != first {
					t.Errorf("%s block %s at %s: node %d answers another page than node 1", path, block, lsn, i+1)
				}
			}
		}
	}
}

// TestThreeNodesShareTheWork: nodes join a cluster that follows already, take shards, answer alike, survive each other, leave.
func TestThreeNodesShareTheWork(t *testing.T) {
	t.Parallel()
	s := newPrimary(t)
	paths := fillTables(t, s, 3000)
	nodes := newCluster(t, 1)
	attach(t, nodes[0], s)
	s.MustSQL(t, "postgres", "update f0 set v = v || 'x' where i % 3 = 0")
	for i := 2; i <= 3; i++ {
		nodes = append(nodes, joinNode(t, fmt.Sprintf("node%d", i), nodes[0]))
	}
	settled(t, nodes[2], map[string]int{"node1": 8, "node2": 8, "node3": 8})
	s.MustSQL(t, "postgres", "update f1 set v = v || 'y' where i % 5 = 0")
	at := caughtUp(t, nodes[0], s)
	for _, n := range nodes[1:] {
		caughtUp(t, n, s)
	}
	same(t, nodes, paths, at.String())
	slots := s.MustSQL(t, "postgres", "select count(*) from pg_stat_replication where application_name in ('node1', 'node2', 'node3')")
	if slots[0][0] != "3" {
		t.Errorf("%s nodes stream from the primary", slots[0][0])
	}

	// One is killed: the others go on, with the primary's commits.
	nodes[0].Kill9()
	s.MustSQL(t, "postgres", "update f2 set v = v || 'z' where i % 7 = 0")
	at = caughtUp(t, nodes[1], s)
	caughtUp(t, nodes[2], s)
	same(t, nodes[1:], paths, at.String())
	if err := nodes[0].StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	at = caughtUp(t, nodes[0], s)
	settled(t, nodes[0], map[string]int{"node1": 8, "node2": 8, "node3": 8})
	same(t, nodes, paths, at.String())

	// A fourth comes, one is drained and removed.
	nodes = append(nodes, joinNode(t, "node4", nodes[1]))
	settled(t, nodes[0], map[string]int{"node1": 6, "node2": 6, "node3": 6, "node4": 6})
	nodes[0].Must(t, "node", "drain", "node2")
	settled(t, nodes[0], map[string]int{"node1": 8, "node2": 0, "node3": 8, "node4": 8})
	nodes[0].Must(t, "node", "remove", "node2")
	nodes[1].Kill9()
	at = caughtUp(t, nodes[0], s)
	same(t, []*nodetest.Node{nodes[0], nodes[2], nodes[3]}, paths, at.String())
	eventually(t, "the removed node's slot goes", func() (bool, string) {
		rows := s.MustSQL(t, "postgres", "select slot_name from pg_replication_slots where slot_name like '%node2'")
		return len(rows) == 0, fmt.Sprint(rows)
	})
	refused(t, nodes[0], 1, []string{"not a member"}, "node", "remove", "node2")
	for _, n := range []*nodetest.Node{nodes[0], nodes[2], nodes[3]} {
		var check struct{ Violations []string }
		if err := n.JSON(t.Context(), &check, "check"); err != nil || len(check.Violations) > 0 {
			t.Errorf("check: %v %v", check.Violations, err)
		}
	}
}

// TestJoinIsRefused: each reason has its words, and nothing changes.
func TestJoinIsRefused(t *testing.T) {
	t.Parallel()
	key := strings.Repeat("ab", 16)
	n := newNode(t, "--gossip-key", key)
	for _, c := range []struct {
		what, text string
		args       []string
	}{
		{"without the key", "gossip key", []string{"--node", "node2"}},
		{"with another key", "gossip key", []string{"--node", "node2", "--gossip-key", strings.Repeat("cd", 16)}},
		{"under a name that is taken", "a node named node1", []string{"--node", "node1", "--gossip-key", key}},
		{"for another cluster", "--cluster", []string{"--node", "node2", "--cluster", "side", "--gossip-key", key}},
	} {
		_, err := nodetest.Start(t.Context(), nodetest.Config{Binary: everpage, Data: filepath.Join(t.TempDir(), "node"),
			Args: append([]string{"--segment-blocks", "16", "--join", n.Address()}, c.args...)})
		if err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("a node that joins %s: %v", c.what, err)
		}
	}
	if list := nodeList(t, n); len(list) != 1 {
		t.Errorf("nodes %+v", list)
	}
	refused(t, n, 1, []string{"last node"}, "node", "remove", "node1")
	refused(t, n, 1, []string{"need as many nodes"}, "cluster", "set", "replicas", "3")
}
