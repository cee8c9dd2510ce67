package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"everpage/backup/archive"
	"everpage/cluster"
	"everpage/cluster/command"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// The parts of collecting garbage now, in their order.
const (
	partHorizon = "horizon" // the leader moves the horizons as far as they may go
	partLocal   = "local"   // a node collects its versions below
	partStore   = "store"   // the leader deletes objects of the store
)

// hurried is how much faster than in the background versions are collected that somebody waits for.
const hurried = 4

// CollectGarbage does all that is done from time to time by itself, now and on all nodes, or tells what would go.
func (s *backupService) CollectGarbage(ctx context.Context, r *pb.CollectGarbageRequest) (*pb.CollectGarbageResponse, error) {
	switch r.Part {
	case partHorizon:
		return s.advance(ctx)
	case partLocal:
		return s.collectHere(ctx, r.DryRun)
	case partStore:
		return s.collectStore(ctx, r.DryRun)
	case "":
		return s.collectAll(ctx, r.DryRun)
	}
	return nil, status.Error(codes.InvalidArgument, fmt.Sprintf("part %q is not known", r.Part))
}

func (s *backupService) collectAll(ctx context.Context, dryRun bool) (*pb.CollectGarbageResponse, error) {
	leader := s.n.cluster.Leader()
	if !dryRun {
		if _, err := s.on(ctx, leader, &pb.CollectGarbageRequest{Part: partHorizon}); err != nil {
			return nil, err
		}
	}
	st := s.n.cluster.State()
	resp := &pb.CollectGarbageResponse{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var stored *pb.CollectGarbageResponse
	var storeErr error
	if s.n.backups != nil { // it waits for no node: one that hangs must not keep what the store could be rid of
		wg.Go(func() {
			stored, storeErr = s.on(ctx, leader, &pb.CollectGarbageRequest{Part: partStore, DryRun: dryRun})
		})
	}
	for _, x := range st.Nodes {
		wg.Go(func() {
			got, err := s.onLiving(ctx, x.ID, &pb.CollectGarbageRequest{Part: partLocal, DryRun: dryRun})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				resp.Local = append(resp.Local, &pb.LocalGarbage{Node: x.Name, Error: err.Error()})
				return
			}
			resp.Local = append(resp.Local, got.Local...)
		})
	}
	wg.Wait()
	slices.SortStableFunc(resp.Local, func(a, b *pb.LocalGarbage) int { return strings.Compare(a.Node, b.Node) })
	for _, l := range resp.Local {
		if l.Branch == st.Main {
			resp.HorizonLsn = max(resp.HorizonLsn, l.HorizonLsn)
		}
	}
	if storeErr != nil {
		return nil, storeErr
	}
	if stored != nil {
		resp.Store, resp.Objects, resp.Bytes = true, stored.Objects, stored.Bytes
	}
	resp.Done = true
	return resp, nil
}

var errAway = errors.New("it does not answer; it collects when it is back")

// onLiving asks a node as long as it is there: nobody waits for one that is away, or goes while it is asked.
func (s *backupService) onLiving(ctx context.Context, id string, r *pb.CollectGarbageRequest) (*pb.CollectGarbageResponse, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			changed := s.n.cluster.MembersChanged()
			if alive, _ := s.n.cluster.Alive(id); !alive {
				cancel(errAway)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	resp, err := s.on(ctx, id, r)
	if err != nil && errors.Is(context.Cause(ctx), errAway) {
		err = errAway
	}
	cancel(nil)
	<-watched
	return resp, err
}

// on asks a node, which may be this one.
func (s *backupService) on(ctx context.Context, id string, r *pb.CollectGarbageRequest) (*pb.CollectGarbageResponse, error) {
	if id == s.n.cluster.ID() {
		return s.CollectGarbage(ctx, r)
	}
	address := s.n.cluster.PageAddress(id)
	if id == "" || address == "" {
		return nil, status.Error(codes.Unavailable, "the cluster has no leader now")
	}
	c, err := s.n.peers.backup(address)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return c.CollectGarbage(ctx, r)
}

// advance moves the horizons as far as they may go now. The node must lead.
func (s *backupService) advance(ctx context.Context) (*pb.CollectGarbageResponse, error) {
	n := s.n
	if !n.cluster.IsLeader() {
		return nil, status.Error(codes.FailedPrecondition, "another node leads the cluster: it is the one that moves the horizon")
	}
	if err := n.cluster.Sync(ctx); err != nil {
		return nil, adminError(err)
	}
	st, moved := n.cluster.State(), false
	for _, t := range n.horizonTargets(ctx, st, n.silence) {
		if t.lsn <= st.Horizon(t.branch).Planned {
			continue
		}
		if _, err := n.cluster.Propose(ctx, &command.PlanHorizon{Branch: t.branch, LSN: t.lsn, For: st.Kept()}); err != nil {
			return nil, adminError(err)
		}
		moved = true
	}
	if moved {
		grace := time.NewTimer(n.cfg.HorizonGrace)
		defer grace.Stop()
		select {
		case <-grace.C:
		case <-ctx.Done():
			return nil, adminError(ctx.Err())
		}
	}
	st = n.cluster.State()
	for _, h := range st.Horizons {
		if to := applicable(st, h); to > h.Applied {
			if _, err := n.cluster.Propose(ctx, &command.ApplyHorizon{Branch: h.Branch, LSN: to}); err != nil {
				return nil, adminError(err)
			}
		}
	}
	return &pb.CollectGarbageResponse{Done: true}, nil
}

// collectHere collects what this node has below the horizons, or measures what that is, also below where they could be moved to.
func (s *backupService) collectHere(ctx context.Context, dryRun bool) (*pb.CollectGarbageResponse, error) {
	n := s.n
	if err := n.cluster.Sync(ctx); err != nil {
		return nil, adminError(err)
	}
	st := n.cluster.State()
	horizons := map[uint32]pg.LSN{}
	for _, h := range st.Horizons {
		horizons[h.Branch] = h.Applied
	}
	if dryRun {
		for _, t := range n.horizonTargets(ctx, st, n.silence) {
			horizons[t.branch] = max(horizons[t.branch], t.lsn)
		}
	}
	resp := &pb.CollectGarbageResponse{Done: true}
	for _, b := range n.store.Branches() {
		if horizons[b] == 0 {
			continue
		}
		l, err := n.garbage(ctx, st, b, horizons[b], dryRun)
		if err != nil {
			l.Error = err.Error()
		}
		resp.Local = append(resp.Local, l)
	}
	return resp, nil
}

func (n *Node) garbage(ctx context.Context, st *cluster.State, branch uint32, horizon pg.LSN, dryRun bool) (*pb.LocalGarbage, error) {
	l := &pb.LocalGarbage{Node: n.cfg.Node, Branch: branch}
	if !dryRun {
		if err := n.takeHorizon(st, branch); err != nil {
			return l, err
		}
		got, err := n.pass(ctx, branch, hurried*n.cfg.CollectRate)
		l.SeenBytes, l.GoneBytes, l.GoneVersions = got.Bytes, got.GoneBytes, got.GoneVersions
		p, _ := n.store.Progress(branch)
		l.HorizonLsn = uint64(p.Horizon)
		return l, err
	}
	got, err := n.store.CollectDry(ctx, branch, horizon, nil)
	l.HorizonLsn, l.SeenBytes, l.GoneBytes, l.GoneVersions = uint64(horizon), got.Bytes, got.GoneBytes, got.GoneVersions
	return l, err
}

// DiskUsage tells what the history of each relation takes, each chunk counted once: by the node that answers for it first.
func (s *backupService) DiskUsage(ctx context.Context, r *pb.DiskUsageRequest) (*pb.DiskUsageResponse, error) {
	n := s.n
	branch := n.pages.branch(r.Branch)
	p, ok := n.store.Progress(branch)
	if !ok {
		return nil, status.Error(codes.NotFound, noData(branch).Error())
	}
	mine, err := n.diskUsage(ctx, branch)
	if err != nil {
		return nil, adminError(err)
	}
	if r.Local {
		return mine, nil
	}
	sums := map[string]uint64{}
	resp := &pb.DiskUsageResponse{Branch: branch}
	add := func(u *pb.DiskUsageResponse) {
		for _, rel := range u.Relations {
			sums[rel.Relation] += rel.Bytes
		}
		resp.LocalBytes += u.LocalBytes
		resp.SpoolBytes += u.SpoolBytes
	}
	add(mine)
	for _, x := range n.cluster.State().Nodes {
		if x.ID == n.cluster.ID() {
			continue
		}
		c, err := n.peers.backup(n.cluster.PageAddress(x.ID))
		if err == nil {
			var u *pb.DiskUsageResponse
			if u, err = c.DiskUsage(ctx, &pb.DiskUsageRequest{Branch: branch, Local: true}); err == nil {
				add(u)
			}
		}
		if err != nil {
			resp.Silent = append(resp.Silent, x.Name)
		}
	}
	current, err := n.currentSizes(ctx, branch, p.Readable)
	if err != nil {
		return nil, adminError(err)
	}
	for name, bytes := range sums {
		resp.Relations = append(resp.Relations, &pb.RelationUsage{Relation: name, Bytes: bytes, CurrentBytes: current[name]})
	}
	slices.SortFunc(resp.Relations, func(a, b *pb.RelationUsage) int {
		switch {
		case a.Bytes > b.Bytes:
			return -1
		case a.Bytes < b.Bytes:
			return 1
		}
		return strings.Compare(a.Relation, b.Relation)
	})
	if n.backups != nil {
		resp.StoreBytes = n.inStore(ctx, branch).layers
		if id, ok := n.follow.archiveID(); ok {
			inv, err := archive.List(ctx, n.backups.store, id)
			if err != nil {
				return nil, storeStatus(err)
			}
			resp.WalBytes = uint64(inv.Bytes)
		}
	}
	return resp, nil
}
