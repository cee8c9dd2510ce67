package placement

import "slices"

// tidy takes replicas away that are of no more use, and keeps those that were to leave and are needed after all. No data moves.
func (p *planner) tidy() {
	for i := range p.places {
		pl := &p.places[i]
		if pl.touched {
			continue
		}
		c := p.census(pl)
		if c.full == p.want && len(pl.replicas) == p.want {
			continue
		}
		if node, why := p.useless(pl, c); node >= 0 {
			if k := slices.IndexFunc(pl.replicas, func(r planReplica) bool { return r.node == node }); p.counts(pl.replicas[k]) {
				p.nodes[node].load.add(pl.load, -1)
			}
			p.move(pl, Move{Kind: MoveRemove, Node: p.nodes[node].id, Why: why})
			continue
		}
		if c.counted >= p.want {
			continue
		}
		for k, r := range pl.replicas { // what was to take its place is gone
			if n := &p.nodes[r.node]; r.role == Leaving && n.state == Active {
				n.load.add(pl.load, 1)
				n.moving--
				pl.replicas[k].role = Full
				p.move(pl, Move{Kind: MoveStay, Node: n.id, Why: "its successor is gone"})
				break
			}
		}
	}
}

// useless is the node whose replica of a place goes first, -1 if all are needed.
func (p *planner) useless(pl *planPlace, c census) (int, string) {
	for _, r := range pl.replicas {
		switch state := p.nodes[r.node].state; {
		case r.role == Joining && state == Dead:
			return r.node, "the node was gone before it had all"
		case r.role == Joining && state == Draining:
			return r.node, "the node is drained"
		case state == Dead && c.full >= p.keep:
			return r.node, "the node is gone"
		case state == Draining && c.full >= p.want:
			return r.node, "the node is drained"
		case r.role == Leaving && c.full >= p.want:
			return r.node, "its successor is full"
		}
	}
	if c.full <= p.want {
		return -1, ""
	}
	// More than wanted: the one goes whose zone has another and whose node carries most.
	worst, twice := -1, false
	for _, r := range pl.replicas {
		if r.role != Full || !p.counts(r) {
			continue
		}
		double := p.inZone(pl, p.nodes[r.node].zone) > 1
		if worst < 0 || double && !twice || double == twice && p.cost(r.node, pl.load) > p.cost(worst, pl.load) {
			worst, twice = r.node, double
		}
	}
	return worst, "more replicas than wanted"
}

// inZone counts the place's wanted replicas in a zone.
func (p *planner) inZone(pl *planPlace, zone int) int {
	n := 0
	for _, r := range pl.replicas {
		if p.counts(r) && p.nodes[r.node].zone == zone {
			n++
		}
	}
	return n
}

// repair gives places that have too few replicas another one, those with the fewest left first. It tells whether some must wait for other moves.
func (p *planner) repair() (waiting bool) {
	type lacking struct{ place, alive int }
	var list []lacking
	for i := range p.places {
		pl := &p.places[i]
		c := p.census(pl)
		if c.counted >= p.want {
			continue
		}
		if pl.touched {
			waiting = true
			continue
		}
		list = append(list, lacking{i, c.alive})
	}
	slices.SortStableFunc(list, func(a, b lacking) int { return a.alive - b.alive })
	for _, l := range list {
		if p.flight >= p.policy.Total {
			return true
		}
		pl := &p.places[l.place]
		node := p.destination(pl, -1)
		if node < 0 {
			waiting = true
			continue
		}
		why := "too few replicas"
		if l.alive == 0 {
			why = "no complete replica is left on any node that is there"
		}
		p.add(pl, node, -1, why)
	}
	return waiting
}

// destination is the node that takes a place up best: in a zone that has fewest of it, least loaded. Of the replica on leaving nothing is counted. It
// is -1 where the nodes of those zones are all busy: a replica in the wrong zone now would have to move again.
func (p *planner) destination(pl *planPlace, leaving int) int {
	best, bestZone, bestFree := -1, 0, false
	var bestCost float64
	for i := range p.nodes {
		if p.nodes[i].state != Active || pl.has(i) {
			continue
		}
		zone := p.inZone(pl, p.nodes[i].zone)
		if leaving >= 0 && p.nodes[leaving].zone == p.nodes[i].zone {
			zone--
		}
		free := p.free(i)
		if best >= 0 && zone > bestZone {
			continue
		}
		cost := p.cost(i, pl.load)
		if best < 0 || zone < bestZone || free && !bestFree || free == bestFree && cost < bestCost {
			best, bestZone, bestCost, bestFree = i, zone, cost, free
		}
	}
	if !bestFree {
		return -1
	}
	return best
}

// spreadZones moves replicas out of zones that have several of a place while another zone has none.
func (p *planner) spreadZones() {
	if p.zones < 2 || p.want < 2 {
		return
	}
	for i := range p.places {
		pl := &p.places[i]
		if pl.touched || pl.frozen || p.zonesOf(pl) >= min(p.zones, p.want) || !p.settled(pl) {
			continue
		}
		from := -1
		for _, r := range pl.replicas {
			if p.inZone(pl, p.nodes[r.node].zone) > 1 && (from < 0 || p.cost(r.node, pl.load) > p.cost(from, pl.load)) {
				from = r.node
			}
		}
		if from < 0 || !p.free(from) {
			continue
		}
		to := p.destination(pl, from)
		if to >= 0 && p.inZone(pl, p.nodes[to].zone) == 0 {
			p.add(pl, to, from, "a zone has two replicas, another none")
		}
	}
}

// zonesOf counts the zones that a place's wanted replicas are in.
func (p *planner) zonesOf(pl *planPlace) int {
	n := 0
	for i, r := range pl.replicas {
		first := p.counts(r)
		for _, o := range pl.replicas[:i] {
			if p.counts(o) && p.nodes[o.node].zone == p.nodes[r.node].zone {
				first = false
			}
		}
		if first {
			n++
		}
	}
	return n
}
