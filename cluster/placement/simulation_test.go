package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// simulation runs a planner against a layout whose moves complete, and adds up what they copied.
type simulation struct {
	tb      testing.TB
	l       *Layout
	u       Usage
	policy  Policy
	copied  uint64
	moves   int
	plans   int
	slowest time.Duration
}

// apply makes one change without a copy of the whole map: it makes it in a layout of that one shard.
func (s *simulation) apply(shard Shard, change func(*Layout) (*Layout, error)) {
	s.tb.Helper()
	one := *s.l
	one.Shards = slices.Clone(s.l.Shards[shard : shard+1])
	next, err := change(&one)
	if err != nil {
		s.tb.Fatalf("shard %d: %v", shard, err)
	}
	s.l.Shards[shard] = next.Shards[0]
	s.l.Epoch++
}

// step plans once and carries it out; every copy is done by the next step. It tells whether there was anything to do.
func (s *simulation) step() bool {
	s.tb.Helper()
	began := time.Now()
	moves := Plan(s.l, s.u, s.policy)
	s.slowest = max(s.slowest, time.Since(began))
	s.plans++
	if len(moves) == 0 {
		return false
	}
	for _, m := range moves {
		if m.Place.Chunk != (Chunk{}) {
			next, err := m.Apply(s.l)
			if err != nil {
				s.tb.Fatalf("%s: %v", m, err)
			}
			s.l = next
		} else {
			s.apply(m.Place.Shard, func(l *Layout) (*Layout, error) {
				m.Place.Shard = 0
				return m.Apply(l)
			})
		}
		s.copied += m.Bytes
		if m.Kind == MoveAdd {
			s.moves++
		}
	}
	s.complete()
	return true
}

// complete ends all copies.
func (s *simulation) complete() {
	s.tb.Helper()
	for i, a := range s.l.Shards {
		for _, r := range a.Replicas {
			if r.Role == Joining && s.l.Member(r.Node).State != Dead {
				s.apply(Shard(i), func(l *Layout) (*Layout, error) { return l.Promote(Place{}, r.Node, r.Since) })
			}
		}
	}
	for _, o := range s.l.Chunks {
		for _, r := range o.Replicas {
			if r.Role == Joining && s.l.Member(r.Node).State != Dead {
				next, err := s.l.Promote(Place{Chunk: o.Chunk}, r.Node, r.Since)
				if err != nil {
					s.tb.Fatal(err)
				}
				s.l = next
			}
		}
	}
}

// settle plans until there is nothing left to do.
func (s *simulation) settle() {
	s.tb.Helper()
	s.copied, s.moves, s.plans, s.slowest = 0, 0, 0, 0
	for range 20_000 {
		if !s.step() {
			return
		}
	}
	s.tb.Fatalf("no end of moves; the next: %v", Plan(s.l, s.u, s.policy)[0])
}

// check holds the layout against the rules: replicas, zones, states.
func (s *simulation) check() {
	s.tb.Helper()
	want := s.l.Want()
	zoneOf, zones := map[string]string{}, map[string]bool{}
	for _, m := range s.l.Members {
		if m.State == Active {
			zoneOf[m.ID] = m.Zone
			zones[m.Zone] = true
		}
	}
	for i, a := range s.l.Shards {
		full := a.Full()
		if len(full) != want || len(a.Replicas) != want {
			s.tb.Fatalf("shard %d has replicas %v, want %d full ones", i, a.Replicas, want)
		}
		in := map[string]bool{}
		for _, n := range full {
			z, ok := zoneOf[n]
			if !ok {
				s.tb.Fatalf("shard %d is on %s, which is not active", i, n)
			}
			in[z] = true
		}
		if len(in) != min(want, len(zones)) {
			s.tb.Fatalf("shard %d is in %d zones of %d", i, len(in), len(zones))
		}
	}
}

// bytes are what each node carries.
func (s *simulation) bytes() map[string]uint64 {
	out := map[string]uint64{}
	for i, a := range s.l.Shards {
		for _, r := range a.Replicas {
			out[r.Node] += s.u.Shards[i].Bytes
		}
	}
	return out
}

// spread is how much more the fullest active node of a zone carries than the emptiest, as a part of the mean, in the worst zone.
func (s *simulation) spread() float64 {
	least, most, sum, n := map[string]uint64{}, map[string]uint64{}, map[string]uint64{}, map[string]int{}
	have := s.bytes()
	for _, m := range s.l.Members {
		if m.State != Active {
			continue
		}
		b := have[m.ID]
		if n[m.Zone] == 0 || b < least[m.Zone] {
			least[m.Zone] = b
		}
		most[m.Zone] = max(most[m.Zone], b)
		sum[m.Zone] += b
		n[m.Zone]++
	}
	worst := 0.0
	for z := range n {
		if sum[z] > 0 {
			worst = max(worst, float64(most[z]-least[z])/(float64(sum[z])/float64(n[z])))
		}
	}
	return worst
}

func (s *simulation) set(node string, state NodeState) {
	s.tb.Helper()
	next, err := s.l.With(node, state, true)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.l = next
}

func newSimulation(tb testing.TB, seed uint64, nodes, zones, shards, replicas int) *simulation {
	r := rand.New(rand.NewPCG(seed, 1))
	s := &simulation{tb: tb, l: &Layout{Epoch: 1, Replicas: replicas, Shards: make([]Assignment, shards)}, policy: DefaultPolicy()}
	s.policy.Total = 1 << 30
	for i := range nodes {
		s.l.Members = append(s.l.Members, Member{ID: fmt.Sprintf("n%04d", i), Zone: fmt.Sprintf("z%d", i%zones), State: Active})
	}
	s.u.Shards = make([]Load, shards)
	for i := range s.u.Shards {
		// Most shards are alike, since chunks are hashed; some hold a large table's chunk more, some are hot.
		s.u.Shards[i] = Load{Bytes: 1<<28 + r.Uint64N(1<<28), Work: 50 + r.Uint64N(100)}
		if r.IntN(20) == 0 {
			s.u.Shards[i].Bytes += 1 << 30
		}
		if r.IntN(50) == 0 {
			s.u.Shards[i].Work *= 10
		}
	}
	perNode := s.policy.PerNode
	s.policy.PerNode = 1 << 30
	s.settle()
	s.policy.PerNode, s.policy.Total = perNode, 256
	if nodes >= 100 {
		s.policy.PerNode, s.policy.Total = 16, 1024 // fewer plans for the same moves
	}
	s.settle()
	s.check()
	return s
}

// TestSimulation plans for up to a thousand nodes: how long a plan takes, what moves beside the least that must, and whether a rule is broken.
func TestSimulation(t *testing.T) {
	for _, c := range []struct{ nodes, zones, shards, replicas int }{
		{1000, 5, 131072, 3}, {1000, 1, 16384, 3}, {300, 3, 65536, 2}, {10, 2, 512, 3}, {4, 1, 64, 3},
	} {
		if testing.Short() && c.nodes > 10 {
			continue
		}
		t.Run(fmt.Sprintf("%d nodes, %d zones, %d shards, %d replicas", c.nodes, c.zones, c.shards, c.replicas), func(t *testing.T) {
			const seed = 7
			s := newSimulation(t, seed, c.nodes, c.zones, c.shards, c.replicas)
			t.Logf("seed %d: spread after the first placement %.3f", seed, s.spread())
			began := time.Now()
			Plan(s.l, s.u, s.policy)
			t.Logf("a plan with nothing to do: %s", time.Since(began).Round(time.Millisecond))

			report := func(what string, least uint64) {
				t.Helper()
				s.check()
				ratio := float64(s.copied) / float64(least)
				t.Logf("%s: %d moves, %.1f GB copied, the least is %.1f GB: %.3f×; %d plans, the slowest %s; spread %.3f", what, s.moves, float64(s.copied)/1e9, float64(least)/1e9, ratio,
					s.plans, s.slowest.Round(time.Millisecond), s.spread())
				if ratio > 1.2 {
					t.Errorf("%s: %.3f times the least was copied, want at most 1.2", what, ratio)
				}
				if s.slowest > 5*time.Second {
					t.Errorf("%s: a plan took %s", what, s.slowest)
				}
			}
			lost := s.bytes()["n0003"]
			s.set("n0003", Dead)
			s.settle()
			if len(s.l.Members)-1 >= c.replicas { // with fewer nodes there is nowhere to go
				report("a node is lost", lost)
			}
			s.set("n0003", Removed)

			zone := s.l.Members[0].Zone
			zoned, inZone := uint64(0), uint64(1)
			have := s.bytes()
			for _, m := range s.l.Members {
				if c.zones == 1 || c.zones > c.replicas || m.Zone == zone {
					zoned += have[m.ID]
					inZone++
				}
			}
			s.l.Members = append(slices.Clone(s.l.Members), Member{ID: "new", Zone: zone, State: Active})
			s.settle()
			report("a node is added", zoned/inZone)

			lost = s.bytes()["n0001"]
			s.set("n0001", Draining)
			s.settle()
			report("a node is drained", lost)
		})
	}
}
