package node

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"everpage/cluster"
	"everpage/cluster/command"
	pb "everpage/pageapi/pagepb/everpage/v1"
)

// SetRetention says how long history is kept.
func (s *backupService) SetRetention(ctx context.Context, r *pb.SetRetentionRequest) (*pb.SetRetentionResponse, error) {
	const most = uint64(1<<63-1) / uint64(time.Second)
	if r.Seconds > most {
		return nil, status.Error(codes.InvalidArgument, fmt.Sprintf("retention of %d seconds: want at most %d", r.Seconds, most))
	}
	c := &command.SetRetention{Retention: time.Duration(r.Seconds) * time.Second, Bytes: r.WalBytes}
	if _, err := s.n.cluster.Propose(ctx, c); err != nil {
		return nil, adminError(err)
	}
	if err := s.n.cluster.Sync(ctx); err != nil {
		return nil, adminError(err)
	}
	st := s.n.cluster.State()
	resp := &pb.SetRetentionResponse{Retention: retentionText(st)}
	for _, t := range s.n.horizonTargets(ctx, st, s.n.silence) {
		if t.branch == st.Main {
			resp.HorizonLsn = uint64(max(t.lsn, s.n.store.Oldest(t.branch)))
		}
	}
	return resp, nil
}

// retentionText is what retention is, for people.
func retentionText(s *cluster.State) string {
	switch {
	case s.Retention != 0:
		return s.Retention.String()
	case s.RetentionBytes != 0:
		return fmt.Sprintf("%d bytes of WAL", s.RetentionBytes)
	}
	return "everything is kept"
}

// silence is how long a node has not been seen.
func (n *Node) silence(id string) time.Duration {
	alive, since := n.cluster.Alive(id)
	if alive {
		return 0
	}
	return max(time.Since(since), 1)
}

// Retention tells how long history is kept, and where it begins.
func (s *backupService) Retention(ctx context.Context, _ *pb.RetentionRequest) (*pb.RetentionResponse, error) {
	st := s.n.cluster.State()
	resp := &pb.RetentionResponse{Seconds: uint64(st.Retention / time.Second), WalBytes: st.RetentionBytes}
	targets := map[uint32]horizonTarget{}
	for _, t := range s.n.horizonTargets(ctx, st, s.n.silence) {
		targets[t.branch] = t
	}
	for _, b := range st.Branches {
		h, t := st.Horizon(b.Number), targets[b.Number]
		oldest := s.n.store.Oldest(b.Number)
		bh := &pb.BranchHorizon{
			Branch: b.Number, OldestLsn: uint64(oldest), PlannedLsn: uint64(h.Planned), AppliedLsn: uint64(h.Applied), TargetLsn: uint64(max(t.lsn, oldest)), HeldBy: t.heldBy,
		}
		for _, l := range st.Leases {
			if l.Branch == b.Number {
				bh.Leases++
			}
		}
		resp.Branches = append(resp.Branches, bh)
	}
	return resp, nil
}
