package node

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/fsm"
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// planned is a cluster's state that a leader plans for.
type planned struct {
	t    *testing.T
	s    *cluster.State
	dead map[string]bool
	u    placement.Usage
	p    placement.Policy
}

func newPlanned(t *testing.T, zones ...string) *planned {
	p := &planned{t: t, s: &cluster.State{}, dead: map[string]bool{}, p: planPolicy()}
	p.do(&command.MakeCluster{ID: "c", Name: "main", Format: fsm.Format, Shards: 32, SegmentBlocks: 131072})
	for i, z := range zones {
		p.join(i+1, z)
	}
	p.do(&command.Attach{Conninfo: "c", SystemIdentifier: 5, Major: 15, WALSegmentSize: 1 << 24, Importer: "n1"})
	p.do(&command.SetBranch{Number: 1, Timeline: 1, Imported: true, Importer: "n1", Main: true})
	return p
}

func (p *planned) join(n int, zone string) {
	id := fmt.Sprint("n", n)
	p.do(&command.PutNode{ID: id, Name: id, Zone: zone, PageAddress: fmt.Sprint("h:", n), Format: fsm.Format})
}

func (p *planned) do(c command.Command) {
	p.t.Helper()
	next, _, err := p.s.Apply(p.s.Index+1, c)
	var refused *fsm.Refused
	if err != nil && !errors.As(err, &refused) {
		p.t.Fatal(err)
	} else if err != nil {
		p.t.Logf("%s: %v", command.Name(c), err)
	}
	p.s = next
}

// settle plans and does until nothing is left to do, and answers how many replicas were copied.
func (p *planned) settle() int {
	p.t.Helper()
	copies := 0
	for range 1000 {
		layout := layoutFor(p.s, func(id string) (bool, bool) { return !p.dead[id], p.dead[id] })
		moves := placement.Plan(layout, p.u, p.p)
		for _, m := range moves {
			p.do(commandOf(m))
		}
		copied := copies
		ready := func(of placement.Place, a placement.Assignment) {
			for _, r := range a.Replicas {
				if r.Role == placement.Joining && !p.dead[r.Node] {
					copies++
					p.do(&command.ReplicaReady{Of: command.OfPlace(of), Node: r.Node, Since: r.Since})
				}
			}
		}
		for i, a := range p.s.Map {
			ready(placement.Place{Shard: placement.Shard(i)}, a)
		}
		for _, o := range p.s.Chunks {
			ready(placement.Place{Chunk: o.Chunk}, o.Assignment)
		}
		if len(moves) == 0 && copies == copied {
			return copies
		}
	}
	p.t.Fatal("no end of moves")
	return 0
}

// spread are how many zones the full replicas of each shard are in, and how many replicas each node has.
func (p *planned) spread() (zones []int, nodes map[string]int) {
	nodes = map[string]int{}
	for _, a := range p.s.Map {
		var seen []string
		for _, id := range a.Full() {
			nodes[id]++
			if z := p.s.Node(id).Zone; !p.dead[id] && !slices.Contains(seen, z) {
				seen = append(seen, z)
			}
		}
		zones = append(zones, len(seen))
	}
	return zones, nodes
}

// The leader spreads shards over zones, repairs what dead nodes had into the right ones, and leaves a dead node what nobody else can take.
func TestLeaderPlansOverZones(t *testing.T) {
	p := newPlanned(t, "a", "a", "b")
	p.do(&command.SetReplicas{Replicas: 2})
	p.settle()
	zones, nodes := p.spread()
	if slices.Min(zones) != 2 || nodes["n3"] != 32 {
		t.Fatalf("two replicas in two zones: zones of the shards %v, shards of the nodes %v", zones, nodes)
	}
	p.dead["n1"] = true // its zone has another node, which takes all
	p.settle()
	if zones, nodes = p.spread(); slices.Min(zones) != 2 || nodes["n1"] != 0 || nodes["n2"] != 32 {
		t.Fatalf("n1 is dead: zones of the shards %v, shards of the nodes %v", zones, nodes)
	}
	p.dead["n1"] = false
	p.settle()
	if zones, nodes = p.spread(); slices.Min(zones) != 2 || nodes["n1"] < 13 || nodes["n2"] < 13 {
		t.Fatalf("n1 is back: zones of the shards %v, shards of the nodes %v", zones, nodes)
	}

	p = newPlanned(t, "a", "b", "c")
	p.settle()
	p.dead["n2"] = true
	if copies := p.settle(); copies != 0 {
		t.Fatalf("%d replicas were copied, and nobody was there to take them", copies)
	}
	if _, nodes := p.spread(); nodes["n2"] != 32 {
		t.Fatalf("n2 was taken what nobody else has room for: %v", nodes)
	}
	p.dead["n2"] = false
	if copies := p.settle(); copies != 0 {
		t.Fatalf("n2 is back with all it had: %d replicas were copied", copies)
	}
	p.join(4, "b") // the fourth shares zone b with n2: a and c keep all
	p.settle()
	if zones, nodes = p.spread(); slices.Min(zones) != 3 || nodes["n1"] != 32 || nodes["n3"] != 32 || nodes["n4"] < 10 {
		t.Fatalf("four nodes in three zones: zones of the shards %v, shards of the nodes %v", zones, nodes)
	}
	p.do(&command.SetNodeState{ID: "n1", State: command.Draining})
	p.settle()
	if zones, nodes = p.spread(); nodes["n1"] != 0 || nodes["n2"] != 32 || nodes["n4"] != 32 {
		t.Fatalf("n1 is drained: zones of the shards %v, shards of the nodes %v", zones, nodes)
	}
}

// What the nodes report is put together by shard, and moves the heavy ones apart.
func TestLeaderBalancesByBytes(t *testing.T) {
	p := newPlanned(t, "", "", "", "")
	p.do(&command.SetReplicas{Replicas: 1})
	p.settle()
	heavy := map[placement.Shard]bool{}
	var report []*pb.PlaceUsage
	for i, a := range p.s.Map {
		bytes := uint64(100 << 20)
		if a.Full()[0] == "n1" {
			bytes, heavy[placement.Shard(i)] = 1<<30, true
		}
		report = append(report, &pb.PlaceUsage{Shard: uint32(i), Bytes: bytes}, &pb.PlaceUsage{Shard: 99, Bytes: 1})
	}
	p.u = usageOf(p.s, [][]*pb.PlaceUsage{report, {{Shard: 0, Bytes: 5, Reads: workStep + 1}}})
	if l := p.u.Shards[0]; l.Work != workStep || l.Bytes < 100<<20 || l.Bytes%bytesStep != 0 {
		t.Fatalf("usage %+v", l)
	}
	p.settle()
	left := 0
	for shard := range heavy {
		if p.s.Map[shard].Full()[0] == "n1" {
			left++
		}
	}
	if left > len(heavy)/2 {
		t.Fatalf("n1 still has %d of %d heavy shards", left, len(heavy))
	}
}

func TestUsageOfReads(t *testing.T) {
	u := newUsage(8)
	hot := pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 9}}}
	for range 64 * sampled {
		u.read(hot, 131072)
	}
	u.look(u.at.Add(10 * time.Minute))
	list := u.report()
	rate := uint64(64 * sampled / 600)
	if len(list) != 2 || list[0].Reads != rate || list[1].Reads != rate || chunkFrom(list[1].Rel, list[1].Segment) != placement.ChunkOf(hot, 131072) {
		t.Fatalf("report %v, want a rate of %d", list, rate)
	}
	u.look(u.at.Add(time.Hour))
	if list := u.report(); len(list) != 0 {
		t.Fatalf("nothing was read for an hour: %v", list)
	}
}
