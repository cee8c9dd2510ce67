package node

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"everpage/cluster"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal"
	"everpage/wal/pg"
)

const (
	peerRetry   = 100 * time.Millisecond
	peerConnect = 2 * time.Second
	peerPing    = 10 * time.Second
	peerSilence = 5 * time.Second
)

// nodeService answers other nodes.
type nodeService struct {
	pb.UnimplementedNodeServiceServer
	n *Node
}

// ready is the error of calls that come before the node is a member itself.
func (s *nodeService) ready() error {
	if s.n.cluster == nil {
		return status.Error(codes.Unavailable, "the node is starting")
	}
	return nil
}

func (s *nodeService) Join(ctx context.Context, r *pb.JoinRequest) (*pb.JoinResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	a, err := s.n.cluster.HandleJoin(ctx, cluster.JoinRequest{
		ID: r.Id, Name: r.Name, Cluster: r.Cluster, ClusterID: r.ClusterId, Page: r.PageAddress, Raft: r.RaftAddress, Gossip: r.GossipAddress, Zone: r.Zone,
		Format: r.Format, SegmentBlocks: r.SegmentBlocks, Proof: r.Proof, Forwarded: r.Forwarded,
	})
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &pb.JoinResponse{
		Cluster: a.Cluster, ClusterId: a.ClusterID, Shards: a.Shards, SegmentBlocks: a.SegmentBlocks, Format: a.Format, GossipAddresses: a.Gossip, Refused: a.Refused,
	}, nil
}

func (s *nodeService) Propose(ctx context.Context, r *pb.ProposeRequest) (*pb.ProposeResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	o, err := s.n.cluster.HandlePropose(ctx, r.Command, r.Forwarded)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &pb.ProposeResponse{Index: o.Index, Result: o.Result, Refused: o.Refused}, nil
}

func (s *nodeService) State(context.Context, *pb.StateRequest) (*pb.StateResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	return &pb.StateResponse{Progress: s.n.progress()}, nil
}

// progress is how far this node is.
func (n *Node) progress() *pb.NodeProgress {
	st := n.store.Stats()
	follow := n.follow.status()
	p := &pb.NodeProgress{
		Id: n.cluster.ID(), Name: n.cfg.Node, Version: Version(), UptimeSeconds: uint64(time.Since(n.started).Seconds()),
		StoreBytes: st.DiskBytes, SpoolBytes: uint64(dirBytes(filepath.Join(n.cfg.Data, spoolDir))), RssBytes: rss(), AppliedIndex: n.cluster.Applied(),
		FollowState: follow.State, FollowMessage: follow.Message, Warnings: follow.Warnings, Collecting: n.collecting.status(),
		Budget: n.budget.status(),
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(n.cfg.Data, &fs); err == nil {
		p.DiskFreeBytes = fs.Bavail * uint64(fs.Bsize)
	}
	for _, b := range n.store.Branches() {
		progress, _ := n.store.Progress(b)
		durable, _ := n.store.Durable(b)
		bp := &pb.BranchProgress{Branch: b, Timeline: progress.Timeline, Readable: uint64(progress.Readable), Stored: uint64(durable.Resume)}
		if spool := n.follow.spoolOf(b); spool != nil {
			bp.SpoolFirst, bp.SpoolDurable = uint64(spool.First()), uint64(spool.Durable())
		}
		p.Branches = append(p.Branches, bp)
	}
	return p
}

// walMessage is how much WAL one message carries.
const walMessage = 256 << 10

// FetchWAL sends what the spool has. Only whole, checked records leave: what a peer appends it may acknowledge.
func (s *nodeService) FetchWAL(r *pb.FetchWALRequest, out pb.NodeService_FetchWALServer) error {
	if err := s.ready(); err != nil {
		return err
	}
	spool := s.n.follow.spoolOf(r.Branch)
	if spool == nil || spool.Timeline() != r.Timeline {
		return status.Error(codes.NotFound, fmt.Sprintf("node %s has no WAL of branch %d, timeline %d", s.n.cfg.Node, r.Branch, r.Timeline))
	}
	at := pg.LSN(r.From)
	if first := spool.First(); first == 0 || at < first {
		return status.Error(codes.OutOfRange, (&wal.TrimmedError{LSN: at, First: first}).Error())
	}
	buf := make([]byte, walMessage)
	for {
		durable := spool.Durable()
		for at < durable {
			n, err := spool.ReadWAL(buf[:min(len(buf), int(durable-at))], at)
			if err != nil {
				return status.Error(codes.Unavailable, err.Error())
			}
			if err := out.Send(&pb.FetchWALResponse{At: uint64(at), Wal: buf[:n], Durable: uint64(durable)}); err != nil {
				return err
			}
			at += pg.LSN(n)
		}
		if !r.Follow {
			return nil
		}
		if err := spool.WaitDurable(out.Context(), at); err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
	}
}
