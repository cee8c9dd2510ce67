package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"everpage/chunk"
	"everpage/cluster"
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// admin is the management service.
type admin struct {
	pb.UnimplementedAdminServiceServer
	n *Node
}

func (a *admin) Attach(ctx context.Context, req *pb.AttachRequest) (*pb.AttachResponse, error) {
	resp := &pb.AttachResponse{}
	checks, err := a.n.follow.preflight(ctx, req.Conninfo)
	resp.Checks = checks
	if err != nil {
		return nil, adminError(err)
	}
	if req.DryRun {
		return resp, nil
	}
	if err := a.n.follow.attach(ctx, req.Conninfo); err != nil {
		return nil, adminError(withMissing(err, checks))
	}
	resp.Recorded = true
	return resp, nil
}

// withMissing adds what the preflight found missing: a server with wal_level = minimal, say, refuses us for want of walsenders.
func withMissing(err error, checks []*pb.Preflight) error {
	for _, c := range checks {
		if c.Level == levelError {
			err = fmt.Errorf("%w\n%s: %s", err, c.Name, c.Message)
		}
	}
	return err
}

func (a *admin) Detach(ctx context.Context, req *pb.DetachRequest) (*pb.DetachResponse, error) {
	resp, err := a.n.follow.detach(ctx, req.KeepData)
	return resp, adminError(err)
}

// adminError gives the errors of following a primary their codes, from which the command line makes its exit codes.
func adminError(err error) error {
	if err == nil {
		return nil
	}
	code := codes.Internal
	var refused *cluster.Refused
	switch {
	case errors.Is(err, stream.ErrConninfo):
		code = codes.InvalidArgument
	case errors.Is(err, stream.ErrUnreachable), errors.Is(err, stream.ErrStarting), errors.Is(err, context.DeadlineExceeded):
		code = codes.Unavailable
	case errors.Is(err, cluster.ErrNoLeader):
		code = codes.Unavailable
	case errors.Is(err, errState), errors.As(err, &refused):
		code = codes.FailedPrecondition
	}
	return status.Error(code, err.Error())
}

func (a *admin) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	return a.n.clusterStatus(ctx), nil
}

// dirBytes adds up the files of a directory; what vanishes meanwhile doesn't count.
func dirBytes(dir string) int64 {
	var sum int64
	filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	return sum
}

func (a *admin) Info(ctx context.Context, _ *pb.InfoRequest) (*pb.InfoResponse, error) {
	resp := &pb.InfoResponse{Cluster: a.n.cfg.Cluster, Notes: a.n.walNotes(ctx), Retention: retentionText(a.n.cluster.State())}
	for _, b := range a.n.store.Branches() {
		info, err := a.n.branchInfo(ctx, b)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		a.n.backupInfo(ctx, b, info)
		resp.Branches = append(resp.Branches, info)
	}
	return resp, nil
}

func (n *Node) branchInfo(ctx context.Context, b uint32) (*pb.BranchInfo, error) {
	p, _ := n.store.Progress(b)
	info := &pb.BranchInfo{Number: b, Timeline: p.Timeline, OldestLsn: uint64(n.store.Oldest(b)), NewestLsn: uint64(p.Readable)}
	h := n.cluster.State().Horizon(b)
	info.PlannedLsn, info.HorizonLsn = uint64(h.Planned), uint64(h.Applied)
	if b == n.follow.main() {
		info.Alias = "main"
	}
	info.Parent, info.ForkLsn = p.Parent, uint64(p.Fork)
	if at, left := n.follow.left(b); left && p.Horizon > at { // they have gone with the history that is no longer kept
		info.LeftLsn = uint64(at)
	} else if left {
		list, count, err := lost(ctx, n.store, b, at)
		if err != nil {
			return nil, err
		}
		info.LeftLsn, info.LostCount = uint64(at), uint64(count)
		for _, c := range list {
			info.Lost = append(info.Lost, &pb.LostCommit{Xid: c.XID, TimeUs: int64(c.Time), Lsn: uint64(c.End)})
		}
	}
	if p.Unproven != 0 {
		info.Unproven = append(info.Unproven, "from "+p.Unproven.String()+" on: "+p.UnprovenReason)
	}
	if x := n.cluster.State().Branch(b); b != 0 && x != nil && x.Hole != "" {
		info.Holes = append(info.Holes, x.Hole)
	}
	if hole := n.follow.hole(); hole != "" && info.Alias != "" {
		info.Holes = append(info.Holes, hole)
	}
	note, err := n.pages.note(b)
	if err != nil {
		return info, nil // an import is under way
	}
	info.Major, info.SystemIdentifier = uint32(note.Major), note.SystemIdentifier
	_, first, err := n.store.Neighbours(b, pg.LSN(info.OldestLsn))
	if err != nil {
		return nil, err
	}
	last, _, err := n.store.Neighbours(b, p.Readable)
	if err != nil {
		return nil, err
	}
	if first != nil {
		t := int64(first.Time)
		info.OldestTimeUs = &t
	}
	if last != nil {
		t := int64(last.Time)
		info.NewestTimeUs = &t
	}
	return info, nil
}

func (a *admin) ReserveTimeline(ctx context.Context, _ *pb.ReserveTimelineRequest) (*pb.ReserveTimelineResponse, error) {
	tli, err := a.n.follow.reserveTimeline(ctx)
	if err != nil {
		return nil, adminError(err)
	}
	return &pb.ReserveTimelineResponse{Timeline: tli}, nil
}

func (a *admin) Check(_ *pb.CheckRequest, s pb.AdminService_CheckServer) error {
	var sendErr error
	broken := false
	walked, err := a.n.store.Check(s.Context(), func(v chunk.Violation) {
		if broken = true; sendErr == nil {
			sendErr = s.Send(&pb.CheckResponse{Violation: v.Key + " at " + v.LSN.String() + ": " + v.Text})
		}
	})
	if err := errors.Join(err, sendErr); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if broken {
		// What of it is corrupt pages is looked for shard by shard, so that it is repaired.
		for _, branch := range a.n.store.Branches() {
			if err := a.n.store.Scrub(s.Context(), branch, func(shard placement.Shard, err error) {
				if sendErr == nil {
					sendErr = s.Send(&pb.CheckResponse{Violation: fmt.Sprintf("shard %d of branch %d is corrupt: %v; it is repaired from another replica or the store, where they have it", shard, branch, err)})
				}
			}); err != nil {
				return status.Error(codes.Internal, err.Error())
			}
		}
		if sendErr != nil {
			return status.Error(codes.Internal, sendErr.Error())
		}
	}
	return s.Send(&pb.CheckResponse{Done: true, Keys: walked.Keys, Bytes: walked.Bytes})
}
