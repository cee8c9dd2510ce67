package placement

import (
	"maps"
	"math"
	"slices"
)

// The dimensions that loads are balanced in.
const (
	byCount = iota
	byBytes
	byWork
	dimensions
)

// weights of the dimensions against each other. The number of places matters least where bytes and work are known.
var weights = [dimensions]float64{0.25, 1, 1}

type load [dimensions]float64

// planNode is a node while a plan is made.
type planNode struct {
	id      string
	zone    int
	state   NodeState
	silent  bool
	load    load // of the replicas that count
	moving  int  // moves that it takes part in
	primary int  // places whose primary it is
}

// planReplica is a replica on a member.
type planReplica struct {
	node int
	role Role
}

// planPlace is a shard or a chunk with replicas of its own while a plan is made.
type planPlace struct {
	place    Place
	epoch    uint64
	replicas []planReplica
	load     load
	touched  bool // this plan changes it
	frozen   bool // balance leaves it alone
}

type planner struct {
	layout *Layout
	usage  Usage
	policy Policy
	want   int
	keep   int // replicas that a place must have elsewhere before it is taken from a dead node, which may come back with all it had
	active int
	zones  int  // that have active nodes
	scale  load // weight / mean², by dimension
	mean   load // of an active node
	nodes  []planNode
	places []planPlace
	flight int // moves in flight, those of this plan included
	moves  []Move
}

func newPlanner(l *Layout, u Usage, policy Policy) *planner {
	p := &planner{layout: l, usage: u, policy: policy, want: l.Want()}
	p.addNodes()
	dead := 0
	for _, n := range p.nodes {
		if n.state == Dead {
			dead++
		}
	}
	p.keep = l.wanted(p.active + dead)
	index := make(map[string]int, len(p.nodes))
	for i, n := range p.nodes {
		index[n.id] = i
	}
	p.places = make([]planPlace, 0, len(l.Shards)+len(l.Chunks))
	flat := make([]planReplica, 0, (len(l.Shards)+len(l.Chunks))*(p.want+1)) // one allocation for nearly all
	add := func(place Place, a Assignment, of Load) {
		pl := planPlace{place: place, epoch: a.Epoch, load: load{1, float64(of.Bytes), float64(of.Work)}}
		from := len(flat)
		for _, r := range a.Replicas {
			n, member := index[r.Node]
			if !member {
				if !pl.touched {
					p.move(&pl, Move{Kind: MoveRemove, Node: r.Node, Why: "the node is no member any more"})
				}
				continue
			}
			flat = append(flat, planReplica{n, r.Role})
		}
		pl.replicas = flat[from:len(flat):len(flat)]
		p.places = append(p.places, pl)
	}
	shards := p.shardLoads()
	for i, a := range l.Shards {
		add(Place{Shard: Shard(i)}, a, shards[i])
	}
	for _, o := range l.Chunks {
		add(Place{Shard: ShardOf(o.Chunk, uint32(len(l.Shards))), Chunk: o.Chunk}, o.Assignment, u.Chunks[o.Chunk])
	}
	p.count()
	return p
}

// addNodes lists the members by id, so that their order in the layout decides nothing.
func (p *planner) addNodes() {
	zones := map[string]int{}
	active := map[int]bool{}
	for _, m := range p.layout.Members {
		if m.State == Removed {
			continue
		}
		zone, ok := zones[m.Zone]
		if !ok {
			zone = len(zones)
			zones[m.Zone] = zone
		}
		if m.State == Active {
			p.active++
			active[zone] = true
		}
		p.nodes = append(p.nodes, planNode{id: m.ID, zone: zone, state: m.State, silent: m.Silent})
	}
	p.zones = len(active)
	slices.SortFunc(p.nodes, func(a, b planNode) int {
		switch {
		case a.id < b.id:
			return -1
		case a.id > b.id:
			return 1
		}
		return 0
	})
}

// shardLoads are the loads of shards without the chunks that have replicas of their own.
func (p *planner) shardLoads() []Load {
	loads := make([]Load, len(p.layout.Shards))
	copy(loads, p.usage.Shards)
	for _, o := range p.layout.Chunks {
		s := &loads[ShardOf(o.Chunk, uint32(len(loads)))]
		c := p.usage.Chunks[o.Chunk]
		s.Bytes -= min(s.Bytes, c.Bytes)
		s.Work -= min(s.Work, c.Work)
	}
	return loads
}

// count adds up the nodes' loads and the moves in flight.
func (p *planner) count() {
	var sum load
	for i := range p.places {
		pl := &p.places[i]
		for _, r := range pl.replicas {
			n := &p.nodes[r.node]
			if p.counts(r) {
				n.load.add(pl.load, 1)
			}
			if r.role == Joining && n.state == Active {
				p.flight++
				n.moving++
			}
			if r.role == Leaving {
				n.moving++
			}
		}
		if first := p.primary(pl); first >= 0 {
			p.nodes[first].primary++
		}
		sum.add(pl.load, float64(p.want))
	}
	for d := range sum {
		p.mean[d] = sum[d] / float64(max(p.active, 1))
		if p.mean[d] > 0 {
			p.scale[d] = weights[d] / (p.mean[d] * p.mean[d])
		}
	}
}

func (l *load) add(o load, times float64) {
	for d := range l {
		l[d] += o[d] * times
	}
}

// counts tells whether a replica is one of those that are wanted.
func (p *planner) counts(r planReplica) bool {
	return p.nodes[r.node].state == Active && r.role != Leaving
}

// primary is the place's first full replica, -1 if there is none.
func (p *planner) primary(pl *planPlace) int {
	for _, r := range pl.replicas {
		if r.role == Full {
			return r.node
		}
	}
	return -1
}

// census is how a place stands.
type census struct {
	counted int // on active nodes and not leaving
	full    int // of those, full
	alive   int // complete replicas on nodes that are there: active, draining, leaving
	joining int
	leaving int
}

func (p *planner) census(pl *planPlace) (c census) {
	for _, r := range pl.replicas {
		if p.counts(r) {
			c.counted++
			if r.role == Full {
				c.full++
			}
		}
		if r.role.Complete() && p.nodes[r.node].state != Dead {
			c.alive++
		}
		switch r.role {
		case Joining:
			c.joining++
		case Leaving:
			c.leaving++
		}
	}
	return c
}

// settled tells whether a place is as it should be and nothing of it is on the way.
func (p *planner) settled(pl *planPlace) bool {
	c := p.census(pl)
	return !pl.touched && c.full == p.want && len(pl.replicas) == p.want
}

func (pl *planPlace) has(node int) bool {
	return slices.ContainsFunc(pl.replicas, func(r planReplica) bool { return r.node == node })
}

func (p *planner) move(pl *planPlace, m Move) {
	m.Place, m.Epoch = pl.place, pl.epoch
	pl.touched = true
	p.moves = append(p.moves, m)
}

// free tells whether a node may take part in one more move.
func (p *planner) free(node int) bool {
	return !p.nodes[node].silent && p.nodes[node].moving < p.policy.PerNode && p.flight < p.policy.Total
}

// add plans that a node takes up a place, for another one if replaces is not negative.
func (p *planner) add(pl *planPlace, node, replaces int, why string) {
	m := Move{Kind: MoveAdd, Node: p.nodes[node].id, Bytes: uint64(pl.load[byBytes]), Why: why}
	p.nodes[node].load.add(pl.load, 1)
	p.nodes[node].moving++
	p.flight++
	if replaces >= 0 {
		m.Replaces = p.nodes[replaces].id
		p.nodes[replaces].load.add(pl.load, -1)
		p.nodes[replaces].moving++
	}
	p.move(pl, m)
}

// cost is how much the sum of squares grows if a node takes a load, apart from what is the same for all nodes.
func (p *planner) cost(node int, l load) float64 {
	var c float64
	for d := range l {
		c += p.scale[d] * l[d] * p.nodes[node].load[d]
	}
	return c
}

// gain is how much the sum of squares shrinks if a load goes from one node to another.
func (p *planner) gain(from, to int, l load) float64 {
	var g float64
	for d := range l {
		g += p.scale[d] * l[d] * (p.nodes[from].load[d] - p.nodes[to].load[d] - l[d])
	}
	return g
}

// size is how much a load weighs, all dimensions taken together.
func (p *planner) size(l load) float64 {
	var sum float64
	for d := range l {
		sum += p.scale[d] * l[d] * l[d]
	}
	return math.Sqrt(sum)
}

// inOrder are the keys of a map of chunks, in the chunks' order.
func inOrder(m map[Chunk]Load) []Chunk {
	return slices.SortedFunc(maps.Keys(m), Chunk.Compare)
}
