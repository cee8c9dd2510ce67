package pageapi

import (
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// This file turns the wire's messages into the package's types and back.

func relToWire(r pg.RelFork) *pb.RelFork {
	return &pb.RelFork{Spc: r.Spc, Db: r.DB, Rel: r.Rel, Fork: uint32(r.Fork)}
}

func relFromWire(r *pb.RelFork) (pg.RelFork, error) {
	if r == nil {
		return pg.RelFork{}, Errorf(Invalid, "the request names no relation")
	}
	if r.Fork > uint32(pg.InitFork) {
		return pg.RelFork{}, Errorf(Invalid, "fork number %d does not exist: want 0 (main) to 3 (init)", r.Fork)
	}
	if r.Spc == 0 {
		return pg.RelFork{}, Errorf(Invalid, "tablespace 0 does not exist: pg_default is %d, pg_global %d", pg.DefaultTablespace, pg.GlobalTablespace)
	}
	return pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: r.Spc, DB: r.Db, Rel: r.Rel}, Fork: pg.ForkNumber(r.Fork)}, nil
}

func positionToWire(p Position) *pb.Position {
	return &pb.Position{Branch: p.Branch, Lsn: uint64(p.LSN), Main: p.Main}
}

func positionFromWire(p *pb.Position) Position {
	return Position{Branch: p.GetBranch(), LSN: pg.LSN(p.GetLsn()), Main: p.GetMain() && p.GetBranch() != 0}
}

func slruFromWire(n uint32) (pg.SLRU, error) {
	for _, s := range pg.SLRUs() {
		if uint32(s) == n {
			return s, nil
		}
	}
	return 0, Errorf(Invalid, "SLRU kind %d does not exist", n)
}

func targetToWire(t Target) *pb.Target {
	w := &pb.Target{Branch: t.Branch, Lsn: uint64(t.LSN), Name: t.Name, Before: t.Before, Xid: t.XID}
	if t.Time != nil {
		us := int64(*t.Time)
		w.TimeUs = &us
	}
	return w
}

func targetFromWire(w *pb.Target) (Target, error) {
	t := Target{Branch: w.GetBranch(), LSN: pg.LSN(w.GetLsn()), Name: w.GetName(), Before: w.GetBefore()}
	n := 0
	if t.LSN != 0 {
		n++
	}
	if t.Name != "" {
		n++
	}
	if w != nil && w.Xid != nil {
		t.XID = w.Xid
		n++
	}
	if w != nil && w.TimeUs != nil {
		ts := pg.Timestamp(*w.TimeUs)
		t.Time = &ts
		n++
	}
	if n > 1 {
		return t, Errorf(Invalid, "a target is one of LSN, time, xid and name, not several")
	}
	return t, nil
}

func mapToWire(m *placement.Map) *pb.GetShardMapResponse {
	w := &pb.GetShardMapResponse{Epoch: m.Epoch, Shards: uint32(len(m.Replicas)), SegmentBlocks: m.SegmentBlocks}
	for _, n := range m.Nodes {
		w.Nodes = append(w.Nodes, &pb.Node{Name: n.Name, Address: n.Address, Zone: n.Zone})
	}
	for _, replicas := range m.Replicas {
		w.Replicas = append(w.Replicas, &pb.ShardReplicas{Nodes: indexes[uint32](replicas)})
	}
	for _, c := range m.Chunks {
		w.Chunks = append(w.Chunks, &pb.ChunkReplicas{Rel: relToWire(c.Chunk.RelFork), Segment: c.Chunk.Segment, Nodes: indexes[uint32](c.Replicas)})
	}
	return w
}

func indexes[To, From int | uint32](from []From) []To {
	to := make([]To, len(from))
	for i, n := range from {
		to[i] = To(n)
	}
	return to
}

func mapFromWire(w *pb.GetShardMapResponse) (*placement.Map, error) {
	m := &placement.Map{Epoch: w.GetEpoch(), SegmentBlocks: w.GetSegmentBlocks()}
	for _, n := range w.GetNodes() {
		m.Nodes = append(m.Nodes, placement.Node{Name: n.Name, Address: n.Address, Zone: n.Zone})
	}
	for _, r := range w.GetReplicas() {
		m.Replicas = append(m.Replicas, indexes[int](r.Nodes))
	}
	for _, c := range w.GetChunks() {
		r := c.GetRel() // may be an SLRU's, which relFromWire refuses
		rel := pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: r.GetSpc(), DB: r.GetDb(), Rel: r.GetRel()}, Fork: pg.ForkNumber(r.GetFork())}
		m.Chunks = append(m.Chunks, placement.ChunkReplicas{Chunk: placement.Chunk{RelFork: rel, Segment: c.Segment}, Replicas: indexes[int](c.Nodes)})
	}
	return m, m.Valid()
}
