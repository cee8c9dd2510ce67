package cluster_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"everpage/cluster"
	"everpage/cluster/command"
)

func slotOf(name string) (string, error) { return "everpage_main_" + name, nil }

// TestOneNodeGoesOnAlone: two of three are lost. What is left makes a cluster of its own; a new directory may join it, those that were given up may not, nor
// do they lead it back.
func TestOneNodeGoesOnAlone(t *testing.T) {
	w, nodes := three(t)
	a, b, c := nodes[0], nodes[1], nodes[2]
	if _, err := a.Propose(t.Context(), &command.Attach{Conninfo: "host=x", SystemIdentifier: 7, Major: 15, WALSegmentSize: 16 << 20, Importer: a.ID()}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Propose(t.Context(), &command.SetBranch{Number: 1, Timeline: 1, Start: 8, Imported: true, Importer: a.ID(), Main: true}); err != nil {
		t.Fatal(err)
	}
	former := a.State().ID
	until(t, b, "the branch", func(s *cluster.State) bool { return s.Main == 1 })
	until(t, c, "the branch", func(s *cluster.State) bool { return s.Main == 1 })
	for _, n := range nodes {
		n.kill()
	}
	if _, err := cluster.MakeAlone(b.cfg, slotOf); err == nil || !strings.Contains(err.Error(), "no whole replica of shard 0") || !strings.Contains(err.Error(), "--recover") {
		t.Fatalf("a node without a shard goes on alone: %v", err)
	}
	lost, err := cluster.MakeAlone(a.cfg, slotOf)
	if err != nil || len(lost) != 2 {
		t.Fatalf("lost %v: %v", lost, err)
	}
	a.again(t)
	s := a.State()
	if s.ID == former || len(s.Nodes) != 1 || s.Main != 1 || s.Map[7].Full()[0] != a.ID() || len(s.Left) != 2 || s.Former[0] != former {
		t.Fatalf("alone it has %+v", s)
	}
	if _, err := a.Propose(t.Context(), &command.SetRetention{Retention: time.Hour}); err != nil {
		t.Fatal(err)
	}

	// The two who were given up come back, with a majority of the former cluster.
	b.again(t)
	c.again(t)
	if _, err := b.Propose(t.Context(), &command.SetRetention{Retention: 2 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	if got := a.State(); got.ID != s.ID || got.Retention != time.Hour {
		t.Fatalf("the former cluster has led it back: %+v", got)
	}
	if _, err := a.Propose(t.Context(), &command.SetRetention{Retention: 3 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	b.kill()
	c.kill()

	again := config(t, w, "n2", "page-n1")
	n := start(t, w, again)
	until(t, n, "a new directory joins under the old name", func(s *cluster.State) bool { return s.Retention == 3*time.Hour && s.NodeNamed("n2").ID == n.ID() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	answer, err := w.Join(ctx, "page-n1", cluster.JoinRequest{Name: "n3", Cluster: "main", ClusterID: former, Format: 1, SegmentBlocks: 131072})
	if err != nil || !strings.Contains(answer.Refused, "another cluster") {
		t.Fatalf("a node that was given up is answered %+v, %v", answer, err)
	}
}
