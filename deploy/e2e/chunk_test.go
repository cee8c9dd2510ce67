package e2e

import (
	"fmt"
	"slices"
	"testing"
)

type chunkView struct {
	Apart    bool
	Replicas []struct{ Node, Role string }
}

// TestChunkMoves: a chunk is read from a node that does not have its shard, with what is written after the move; it goes home, and is the same there.
func TestChunkMoves(t *testing.T) {
	t.Parallel()
	s := newPrimary(t)
	paths := fillTables(t, s, 3000)
	nodes := newCluster(t, 2, "--replicas", "1")
	attach(t, nodes[0], s)
	eventually(t, "both nodes have shards", func() (bool, string) {
		list := nodeList(t, nodes[0])
		return list[0].Full == 4 && list[1].Full == 4 && list[0].Joins+list[1].Joins == 0, fmt.Sprintf("%+v", list)
	})
	show := func() (v chunkView) {
		t.Helper()
		if err := nodes[0].JSON(t.Context(), &v, "chunk", "show", paths[0]); err != nil {
			t.Fatal(err)
		}
		return v
	}
	from := show().Replicas[0].Node
	to := []string{"node2", "node1"}[slices.Index([]string{"node1", "node2"}, from)]
	refused(t, nodes[0], 1, []string{"has chunk"}, "chunk", "move", paths[0], from)
	refused(t, nodes[0], 1, []string{"not a member"}, "chunk", "move", paths[0], "node7")
	nodes[0].Must(t, "chunk", "move", paths[0], to, "--from", from)
	eventually(t, "the chunk is on the other node", func() (bool, string) {
		v := show()
		return v.Apart && len(v.Replicas) == 1 && v.Replicas[0].Node == to && v.Replicas[0].Role == "full", fmt.Sprintf("%+v", v)
	})
	s.MustSQL(t, "postgres", "update f0 set v = v || 'x' where i % 3 = 0")
	at := caughtUp(t, nodes[0], s)
	caughtUp(t, nodes[1], s)
	read := func() (pages []string) {
		for _, block := range []string{"0", "7", "17", "40"} {
			pages = append(pages, nodes[0].Must(t, "page", "get", paths[0], block, "--lsn", at.String(), "--format", "raw"))
		}
		return pages
	}
	apart := read()
	var list []chunkView
	if err := nodes[1].JSON(t.Context(), &list, "chunk", "list", "--apart"); err != nil || len(list) != 1 {
		t.Errorf("chunks apart: %+v %v", list, err)
	}
	nodes[0].Must(t, "chunk", "move", paths[0], "--home")
	if v := show(); v.Apart || v.Replicas[0].Node != from {
		t.Errorf("at home: %+v", v)
	}
	if home := read(); !slices.Equal(apart, home) {
		t.Error("the chunk's pages are others at home")
	}
	for _, n := range nodes {
		var check struct{ Violations []string }
		if err := n.JSON(t.Context(), &check, "check"); err != nil || len(check.Violations) > 0 {
			t.Errorf("check: %v %v", check.Violations, err)
		}
	}

	// What is made, cut off, dropped and copied ends up in the inventory, as it is in the server's files.
	s.MustSQL(t, "postgres", "create table g as select i, repeat('x', 500) v from generate_series(1, 5000) i", "create unlogged table u (i int primary key)",
		"delete from f1 where i > 100", "vacuum f1", "truncate f2", "drop table f3", "create table f3 (i int, v text)", "vacuum full f0")
	s.MustSQL(t, "postgres", "create database copied strategy file_copy")
	s.MustSQL(t, "copied", "create table h as select generate_series(1, 2000) i")
	known, at := wholeInventory(t, nodes, s)

	// Nothing is moved to a node that is dead, nor is more wanted than there are nodes.
	nodes[1].Kill9()
	eventually(t, "the dead node is missed", func() (bool, string) {
		list := nodeList(t, nodes[0])
		return !list[1].Alive, fmt.Sprintf("%+v", list)
	})
	refused(t, nodes[0], 1, []string{"only full replica"}, "node", "remove", "node2")
	refused(t, nodes[0], 1, []string{"node1 can't be removed now", "too few to agree"}, "node", "remove", "node1")
	refused(t, nodes[0], 1, []string{"node2 does not answer"}, "shard", "move", "0", "node2")
	refused(t, nodes[0], 1, []string{"node2 does not answer"}, "chunk", "move", paths[0], "node2")
	refused(t, nodes[0], 1, []string{"need as many nodes"}, "cluster", "set", "replicas", "3")
	if err := nodes[1].StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitReadable(t, nodes[1], at)
	holders(t, nodes, 8, known)
}
