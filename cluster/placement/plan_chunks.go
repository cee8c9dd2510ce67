package placement

// apart gives hot and huge chunks replicas of their own, at first where they are: from then on balance sees them. Chunks that cooled down go back.
func (p *planner) apart() {
	useful := p.policy.Apart > 0 && p.active > p.want // else every node has every chunk
	for i := range p.layout.Chunks {
		o := &p.layout.Chunks[i]
		pl := &p.places[len(p.layout.Shards)+i]
		if o.Pinned || useful && p.standsOut(p.usage.Chunks[o.Chunk], 0.5) {
			continue
		}
		p.giveBack(pl, &p.places[pl.place.Shard])
	}
	if !useful {
		return
	}
	for _, c := range inOrder(p.usage.Chunks) {
		if p.layout.Override(c) != nil || !p.standsOut(p.usage.Chunks[c], 1) {
			continue
		}
		shard := &p.places[ShardOf(c, uint32(len(p.layout.Shards)))]
		if !p.settled(shard) {
			continue
		}
		place := shard.place
		shard.place.Chunk = c
		p.move(shard, Move{Kind: MoveSplit, Why: "it is a large part of what a node carries"})
		shard.place = place
	}
}

// standsOut tells whether a chunk is so hot or so large that it should move by itself. by lowers the limit.
func (p *planner) standsOut(l Load, by float64) bool {
	limit := p.policy.Apart * by
	return float64(l.Bytes) >= max(limit*p.mean[byBytes], float64(p.policy.MinBytes)*by, 1) ||
		float64(l.Work) >= max(limit*p.mean[byWork], float64(p.policy.MinWork)*by, 1)
}

// giveBack moves a chunk to where its shard is, step by step, and then ends that it is apart.
func (p *planner) giveBack(pl, shard *planPlace) {
	pl.frozen, shard.frozen = true, true
	if shard.touched || !p.settled(shard) || !p.settled(pl) {
		return
	}
	for _, r := range shard.replicas {
		if pl.has(r.node) {
			continue
		}
		for _, own := range pl.replicas {
			if !shard.has(own.node) && p.free(r.node) && p.free(own.node) {
				p.add(pl, r.node, own.node, "the chunk goes back to its shard")
				return
			}
		}
		return
	}
	p.move(pl, Move{Kind: MoveUnsplit, Why: "it no longer stands out"})
	shard.touched = true // Unsplit changes both
}
