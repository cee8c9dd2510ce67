package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// shardMap is which nodes have all of each shard, by name and in order.
func shardMap(t *testing.T, n *nodetest.Node) [][]string {
	t.Helper()
	var list struct {
		Shards []struct{ Replicas []struct{ Node, Role string } }
	}
	if err := n.JSON(t.Context(), &list, "shard", "list"); err != nil {
		t.Fatal(err)
	}
	out := make([][]string, len(list.Shards))
	for i, s := range list.Shards {
		for _, r := range s.Replicas {
			if r.Role != "joining" {
				out[i] = append(out[i], r.Node)
			}
		}
		slices.Sort(out[i])
	}
	return out
}

// slotsOf lists the nodes whose slots a server has, and those that stream from it.
func slotsOf(t *testing.T, s *pgtest.Server) (slots, streaming string) {
	t.Helper()
	one := func(sql string) string { return s.MustSQL(t, "postgres", sql)[0][0] }
	return one("select coalesce(string_agg(replace(slot_name, 'everpage_main_', ''), ' ' order by slot_name), '') from pg_replication_slots"),
		one("select coalesce(string_agg(application_name, ' ' order by application_name), '') from pg_stat_replication where application_name like 'node%' and state = 'streaming'")
}

func waitSlots(t *testing.T, s *pgtest.Server, want string) {
	t.Helper()
	eventually(t, "slots are there for just those that stream from the server: "+want, func() (bool, string) {
		slots, streaming := slotsOf(t, s)
		return slots == want && streaming == want, fmt.Sprintf("slots %q, streaming %q", slots, streaming)
	})
}

// reading reads pages at an LSN through a client that knows all nodes, until it is stopped, and compares them with what they were at first.
type reading struct {
	stop    context.CancelFunc
	group   errgroup.Group
	reads   int
	longest time.Duration
}

func startReading(t *testing.T, nodes []*nodetest.Node, paths []string, at pg.LSN) *reading {
	t.Helper()
	var addresses []string
	for _, n := range nodes {
		addresses = append(addresses, n.Address())
	}
	c, err := pageapi.NewClient(addresses)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	r := &reading{stop: stop}
	blocks := []pg.BlockNumber{0, 7, 17, 25, 40, 55}
	first := map[string][]byte{}
	read := func(ctx context.Context, path string) ([]byte, error) {
		f, err := pg.Classify(path)
		if err != nil {
			return nil, err
		}
		dst := make([]byte, len(blocks)*pg.BlockSize)
		_, err = c.Pages(ctx, pageapi.Position{LSN: at}, f.Rel, blocks, dst)
		return dst, err
	}
	for _, path := range paths {
		if first[path], err = read(ctx, path); err != nil {
			t.Fatal(err)
		}
	}
	r.group.Go(func() error {
		defer c.Close()
		last := time.Now()
		for ctx.Err() == nil {
			for _, path := range paths {
				page, err := read(ctx, path)
				if ctx.Err() != nil {
					return nil
				}
				if err != nil {
					return fmt.Errorf("%s: %w", path, err)
				}
				if !slices.Equal(page, first[path]) {
					return errors.New(path + " is read as it was not")
				}
				r.longest = max(r.longest, time.Since(last))
				last = time.Now()
				r.reads++
			}
		}
		return nil
	})
	return r
}

// end stops reading.
func (r *reading) end(t *testing.T, what string) {
	t.Helper()
	r.stop()
	if err := r.group.Wait(); err != nil {
		t.Errorf("reads while %s: %v", what, err)
	}
	if r.reads == 0 {
		t.Errorf("nothing was read while %s", what)
	}
	t.Logf("%d batches of 6 pages read while %s, the longest gap %s", r.reads, what, r.longest.Round(time.Millisecond))
}

// TestFourNodesInThreeZones: three receive from the primary, the fourth from them, without a slot. Shards lie in all zones. A shard is moved while it is read. A
// receiver that is alone in its zone is killed: the fourth takes its place, its shards go where there is room, its slot goes, loudly. It comes back at another address.
func TestFourNodesInThreeZones(t *testing.T) {
	t.Parallel()
	s := newPrimary(t)
	paths := fillTables(t, s, 3000)
	zone := func(z string) []string { return []string{"--zone", z, "--slot-grace", "8s"} }
	nodes := newCluster(t, 1, zone("a")...)
	attach(t, nodes[0], s)
	for i, z := range []string{"b", "c", "c"} {
		nodes = append(nodes, joinNode(t, fmt.Sprintf("node%d", i+2), nodes[0], zone(z)...))
	}
	spread := func() {
		t.Helper()
		eventually(t, "every shard is in all zones", func() (bool, string) {
			m := shardMap(t, nodes[1])
			ok, third := true, 0
			for _, has := range m {
				ok = ok && len(has) == 3 && has[0] == "node1" && has[1] == "node2"
				if ok && has[2] == "node3" {
					third++
				}
			}
			return ok && third >= 3 && third <= 5, fmt.Sprint(m)
		})
	}
	spread()
	waitSlots(t, s, "node1 node2 node3")
	if f, err := nodes[3].Status(t.Context()); err != nil || !strings.Contains(f.Message, "from node ") {
		t.Errorf("the fourth node: %+v, %v", f, err)
	}
	at := caughtUp(t, nodes[0], s)
	for _, n := range nodes[1:] {
		waitReadable(t, n, at)
	}
	same(t, nodes, paths, at.String())

	// A shard moves while it is read and written.
	shard := slices.IndexFunc(shardMap(t, nodes[1]), func(has []string) bool { return slices.Contains(has, "node3") })
	r := startReading(t, nodes, paths, at)
	nodes[1].Must(t, "shard", "move", fmt.Sprint(shard), "node4", "--from", "node3")
	eventually(t, "the shard is on the other node", func() (bool, string) {
		s.MustSQL(t, "postgres", "update f0 set v = v || 'm' where i % 50 = 0")
		has := shardMap(t, nodes[1])[shard]
		return slices.Equal(has, []string{"node1", "node2", "node4"}), fmt.Sprint(has)
	})
	r.end(t, "a shard was moved")
	refused(t, nodes[1], 1, []string{"not a member"}, "shard", "move", fmt.Sprint(shard), "node3", "--from", "node9")

	// The only node of a zone is killed.
	r = startReading(t, nodes, paths, at)
	nodes[0].Kill9()
	eventually(t, "the lost replicas are elsewhere", func() (bool, string) {
		m := shardMap(t, nodes[1])
		ok := true
		for _, has := range m {
			ok = ok && slices.Equal(slices.DeleteFunc(slices.Clone(has), func(n string) bool { return n == "node1" }), []string{"node2", "node3", "node4"})
		}
		return ok, fmt.Sprint(m)
	})
	r.end(t, "the node of a zone was lost")
	waitSlots(t, s, "node2 node3 node4")
	told := false
	for _, n := range nodes[1:] {
		f, err := n.Status(t.Context())
		told = told || err == nil && strings.Contains(strings.Join(f.Warnings, "\n"), "its slot everpage_main_node1 is dropped")
	}
	if !told {
		t.Error("no node warns of the slot that was dropped")
	}
	s.MustSQL(t, "postgres", "update f2 set v = v || 'z' where i % 7 = 0")
	at = caughtUp(t, nodes[1], s)
	waitReadable(t, nodes[2], at)
	waitReadable(t, nodes[3], at)
	same(t, nodes[1:], paths, at.String())

	// It comes back at another address, without a slot, and lacks WAL.
	old := nodes[0].Address()
	nodes[0].Move("127.0.0.2")
	if err := nodes[0].StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the others know where it is", func() (bool, string) {
		var v struct {
			Nodes []struct{ Name, Address string }
		}
		err := nodes[3].JSON(t.Context(), &v, "node", "list")
		return err == nil && v.Nodes[0].Address == nodes[0].Address() && old != nodes[0].Address(), fmt.Sprintf("%+v, %v", v, err)
	})
	spread()
	waitSlots(t, s, "node1 node2 node3")
	s.MustSQL(t, "postgres", "update f3 set v = v || 'b' where i % 9 = 0")
	at = caughtUp(t, nodes[0], s)
	for _, n := range nodes[1:] {
		waitReadable(t, n, at)
	}
	same(t, nodes, paths, at.String())
}
