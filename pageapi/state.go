package pageapi

import (
	"io/fs"

	"everpage/pageapi/datadir"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

func stateToWire(st *ClusterState) (*pb.GetClusterStateResponse, error) {
	control, err := st.Cluster.Control.Encode()
	if err != nil {
		return nil, err
	}
	w := &pb.GetClusterStateResponse{Lsn: uint64(st.LSN), Branch: st.Branch, ControlFile: control, TimelineHistory: st.TimelineHistory}
	for _, d := range st.Damage {
		w.Damage = append(w.Damage, &pb.Damage{Rel: relToWire(d.Key.RelFork), Block: d.Key.Block, Since: uint64(d.Since), Reason: d.Reason})
	}
	for _, d := range st.Cluster.Databases {
		w.Databases = append(w.Databases, &pb.DatabaseDir{Spc: d.Spc, Db: d.DB, Version: d.Version})
	}
	for _, m := range st.Cluster.RelMaps {
		w.RelationMaps = append(w.RelationMaps, &pb.RelationMap{Spc: m.Spc, Db: m.DB, Data: m.Data})
	}
	for _, t := range st.Cluster.Tablespaces {
		w.Tablespaces = append(w.Tablespaces, &pb.Tablespace{Oid: t.Oid, Location: t.Location})
	}
	for _, t := range st.Cluster.TwoPhase {
		w.TwoPhase = append(w.TwoPhase, &pb.TwoPhase{Xid: t.XID, State: t.State})
	}
	for _, o := range st.Cluster.Origins {
		w.Origins = append(w.Origins, &pb.Origin{Id: uint32(o.ID), RemoteLsn: uint64(o.RemoteLSN)})
	}
	for _, f := range st.Cluster.Files {
		w.Files = append(w.Files, &pb.ConfigFile{Path: f.Path, Mode: uint32(f.Mode.Perm()), Content: f.Content})
	}
	return w, nil
}

func damageFromWire(w []*pb.Damage) (list []Damage) {
	for _, d := range w {
		r := d.GetRel() // may be an SLRU's, which relFromWire refuses
		rel := pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: r.GetSpc(), DB: r.GetDb(), Rel: r.GetRel()}, Fork: pg.ForkNumber(r.GetFork())}
		list = append(list, Damage{Key: pg.PageKey{RelFork: rel, Block: d.Block}, Since: pg.LSN(d.Since), Reason: d.Reason})
	}
	return list
}

func stateFromWire(w *pb.GetClusterStateResponse) (*ClusterState, error) {
	control, err := pg.ReadControl(w.ControlFile)
	if err != nil {
		return nil, err
	}
	st := &ClusterState{Branch: w.Branch, LSN: pg.LSN(w.Lsn), Cluster: datadir.Cluster{Control: control}, TimelineHistory: w.TimelineHistory}
	st.Damage = damageFromWire(w.Damage)
	c := &st.Cluster
	for _, d := range w.Databases {
		c.Databases = append(c.Databases, datadir.Database{Spc: d.Spc, DB: d.Db, Version: d.Version})
	}
	for _, m := range w.RelationMaps {
		c.RelMaps = append(c.RelMaps, datadir.RelMap{Spc: m.Spc, DB: m.Db, Data: m.Data})
	}
	for _, t := range w.Tablespaces {
		c.Tablespaces = append(c.Tablespaces, datadir.Tablespace{Oid: t.Oid, Location: t.Location})
	}
	for _, t := range w.TwoPhase {
		c.TwoPhase = append(c.TwoPhase, datadir.TwoPhase{XID: t.Xid, State: t.State})
	}
	for _, o := range w.Origins {
		c.Origins = append(c.Origins, datadir.Origin{ID: uint16(o.Id), RemoteLSN: pg.LSN(o.RemoteLsn)})
	}
	for _, f := range w.Files {
		c.Files = append(c.Files, datadir.ConfigFile{Path: f.Path, Mode: fs.FileMode(f.Mode), Content: f.Content})
	}
	return st, nil
}
