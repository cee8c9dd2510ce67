package placement

import (
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// TestPlanProperties does at random what happens to clusters, in the midst of moves. Whatever it is: every planned move is one that the transitions accept, the
// last complete replica that is on a node which is there is never taken away, plans for the same input are the same, and when nothing happens any more they come
// to an end with all rules kept.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, zones := rapid.IntRange(1, 8).Draw(t, "nodes"), rapid.IntRange(1, 4).Draw(t, "zones")
		shards := rapid.IntRange(1, 24).Draw(t, "shards")
		l := &Layout{Epoch: 1, Replicas: rapid.IntRange(0, 4).Draw(t, "replicas"), Shards: make([]Assignment, shards)}
		u := Usage{Shards: make([]Load, shards), Chunks: map[Chunk]Load{}}
		policy := DefaultPolicy()
		policy.PerNode, policy.Total = rapid.IntRange(1, 4).Draw(t, "per node"), rapid.IntRange(1, 9).Draw(t, "total")
		policy.MinBytes, policy.MinWork = 1, 1
		loads := func() {
			for i := range u.Shards {
				u.Shards[i] = Load{rapid.Uint64Range(0, 1000).Draw(t, "bytes"), rapid.Uint64Range(0, 100).Draw(t, "work")}
			}
			clear(u.Chunks)
			for range rapid.IntRange(0, 3).Draw(t, "chunks") {
				c := chunkNamed(fmt.Sprintf("%d.0", rapid.IntRange(1, 6).Draw(t, "chunk")))
				of := u.Shards[ShardOf(c, uint32(shards))]
				u.Chunks[c] = Load{rapid.Uint64Range(0, of.Bytes).Draw(t, "chunk's bytes"), rapid.Uint64Range(0, of.Work).Draw(t, "chunk's work")}
			}
		}
		loads()
		for i := range nodes {
			l.Members = append(l.Members, Member{ID: fmt.Sprint("n", i), Zone: fmt.Sprint("z", i%zones), State: Active})
		}
		must := func(next *Layout, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			l = next
		}
		step := func(complete func() bool) int {
			moves := Plan(l, u, policy)
			if again := Plan(l, u, policy); !reflect.DeepEqual(moves, again) {
				t.Fatalf("two plans for the same: %v and %v", moves, again)
			}
			for _, m := range moves {
				before := alive(l, m.Place)
				must(m.Apply(l))
				if after := alive(l, m.Place); m.Kind == MoveRemove && before > 0 && after == 0 {
					t.Fatalf("%s took the last complete replica", m)
				}
			}
			for _, p := range places(l) {
				for _, r := range l.Assignment(p).Replicas {
					if r.Role == Joining && l.Member(r.Node).State != Dead && complete() {
						must(l.Promote(p, r.Node, r.Since))
					}
				}
			}
			return len(moves)
		}
		for range rapid.IntRange(0, 12).Draw(t, "events") {
			switch rapid.IntRange(0, 3).Draw(t, "event") {
			case 0:
				loads()
			case 1:
				l.Members = append(l.Members[:len(l.Members):len(l.Members)], Member{ID: fmt.Sprint("n", len(l.Members)), Zone: fmt.Sprint("z", len(l.Members)%zones), State: Active})
			default:
				m := rapid.IntRange(0, len(l.Members)-1).Draw(t, "node")
				must(l.With(l.Members[m].ID, rapid.SampledFrom([]NodeState{Active, Active, Draining, Dead}).Draw(t, "state"), false))
			}
			for range rapid.IntRange(0, 3).Draw(t, "steps") {
				step(func() bool { return rapid.Bool().Draw(t, "complete") })
			}
		}
		if l.Members[0].State != Active {
			must(l.With(l.Members[0].ID, Active, false))
		}
		step(func() bool { return true }) // ends what is in flight
		for i := 0; step(func() bool { return true }) > 0; i++ {
			if i > 40*shards+100 {
				t.Fatalf("no end of moves: %v", Plan(l, u, policy))
			}
		}
		for _, p := range places(l) {
			kept(t, l, p)
		}
	})
}

func places(l *Layout) []Place {
	var out []Place
	for i := range l.Shards {
		out = append(out, Place{Shard: Shard(i)})
	}
	for _, o := range l.Chunks {
		out = append(out, Place{Chunk: o.Chunk})
	}
	return out
}

// alive counts the complete replicas on nodes that are there.
func alive(l *Layout, p Place) int {
	n := 0
	if a := l.Assignment(p); a != nil {
		for _, r := range a.Replicas {
			if r.Role.Complete() && l.Member(r.Node).State != Dead {
				n++
			}
		}
	}
	return n
}

// kept holds a settled place against the rules.
func kept(t *rapid.T, l *Layout, p Place) {
	a := l.Assignment(p)
	full, dead, there, zones, in := 0, 0, 0, map[string]bool{}, map[string]bool{}
	for _, m := range l.Members {
		if m.State == Dead && a.Replica(m.ID) != nil {
			dead++ // it may come back, and nobody can take its place
		}
		if m.State != Draining {
			there++
		}
		if m.State == Active {
			zones[m.Zone] = true
			if r := a.Replica(m.ID); r != nil && r.Role == Full {
				full++
				in[m.Zone] = true
			}
		}
	}
	if full != l.Want() || full+dead != len(a.Replicas) || dead > 0 && full >= l.wanted(there) {
		t.Fatalf("%s has replicas %v, want %d", p, a.Replicas, l.Want())
	}
	if len(in) != min(len(zones), l.Want()) {
		t.Fatalf("%s is in %d of %d zones: %v", p, len(in), len(zones), a.Replicas)
	}
}
