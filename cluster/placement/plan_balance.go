package placement

import "slices"

// candidates is how many of the least loaded nodes of each zone are looked at for every replica that could move.
const candidates = 8

// balance moves replicas from nodes that carry more to nodes that carry less, in every dimension in turn.
func (p *planner) balance() {
	if p.active < 2 || p.active <= p.want {
		return // every node has every place
	}
	at := p.placesByNode()
	for _, d := range []int{byBytes, byWork, byCount} {
		if p.mean[d] == 0 {
			continue
		}
		done := make([]bool, len(p.nodes))
		for p.flight < p.policy.Total {
			from := p.heaviest(d, done)
			if from < 0 {
				break
			}
			targets := p.lightest(d, p.nodes[from].load[d]-p.slack(d))
			if len(targets) == 0 {
				break // the others carry less
			}
			place, to := p.bestMove(d, from, at[from], targets)
			if place < 0 {
				done[from] = true
				continue
			}
			p.add(&p.places[place], to, from, [...]string{"more replicas than on others", "more bytes than on others", "more work than on others"}[d])
		}
	}
}

// placesByNode lists the places that may move for balance by the nodes that have them.
func (p *planner) placesByNode() [][]int {
	at := make([][]int, len(p.nodes))
	for i := range p.places {
		if pl := &p.places[i]; !pl.frozen && p.settled(pl) {
			for _, r := range pl.replicas {
				at[r.node] = append(at[r.node], i)
			}
		}
	}
	return at
}

// heaviest is the active node with the greatest load that may still give something away, -1 if none may.
func (p *planner) heaviest(d int, done []bool) int {
	best := -1
	for i, n := range p.nodes {
		if n.state == Active && !done[i] && p.free(i) && (best < 0 || n.load[d] > p.nodes[best].load[d]) {
			best = i
		}
	}
	return best
}

// slack is how far two nodes may differ in a dimension. Bytes are what moving costs, so that they alone justify it soonest.
func (p *planner) slack(d int) float64 { return p.policy.Slack * p.mean[d] * [...]float64{2, 1, 2}[d] }

// bestMove is the place whose move away from a node evens loads out most for its size, and where it goes; -1 if none is worth it. A place that looks like what
// the one node has too much of is better than a large one: it makes the loads alike in all dimensions at once, and nothing has to move again.
func (p *planner) bestMove(d, from int, places, targets []int) (place, to int) {
	place, to = -1, -1
	slack, best := p.slack(d), 1e-9
	for _, i := range places {
		pl := &p.places[i]
		if pl.touched {
			continue
		}
		zones, size := p.zonesOf(pl), p.size(pl.load)
		for _, t := range targets {
			if p.nodes[from].load[d]-p.nodes[t].load[d]-pl.load[d] <= slack || pl.has(t) {
				continue
			}
			g := p.gain(from, t, pl.load) / size
			if g > best+1e-12 && p.zonesAfter(pl, zones, from, t) >= zones {
				place, to, best = i, t, g
			}
		}
	}
	return place, to
}

// lightest are, of each zone, the nodes with the smallest loads below a limit that may take something.
func (p *planner) lightest(d int, below float64) []int {
	var order []int
	for i, n := range p.nodes {
		if n.state == Active && n.load[d] < below && p.free(i) {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch x, y := p.nodes[a].load[d], p.nodes[b].load[d]; {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	taken := map[int]int{}
	return slices.DeleteFunc(order, func(i int) bool {
		taken[p.nodes[i].zone]++
		return taken[p.nodes[i].zone] > candidates
	})
}

// zonesAfter is in how many zones a place is when it has moved.
func (p *planner) zonesAfter(pl *planPlace, zones, from, to int) int {
	a, b := p.nodes[from].zone, p.nodes[to].zone
	if a == b {
		return zones
	}
	if p.inZone(pl, a) == 1 {
		zones--
	}
	if p.inZone(pl, b) == 0 {
		zones++
	}
	return zones
}

// orderPreferences spreads the work of primaries. No data moves.
func (p *planner) orderPreferences() {
	slack := 1 + p.policy.Slack*float64(len(p.places))/float64(p.active)
	for i := range p.places {
		pl := &p.places[i]
		first := p.primary(pl)
		if first < 0 || !p.settled(pl) {
			continue
		}
		to := first
		for _, r := range pl.replicas {
			if p.nodes[r.node].primary < p.nodes[to].primary {
				to = r.node
			}
		}
		if float64(p.nodes[first].primary-p.nodes[to].primary) <= slack {
			continue
		}
		p.nodes[first].primary--
		p.nodes[to].primary++
		p.move(pl, Move{Kind: MovePrefer, Node: p.nodes[to].id, Why: "the other is the primary of more"})
	}
}
