package pageapi

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// This file has the server's calls other than reads of pages.

// GetRelSize answers the size of a fork.
func (s *Server) GetRelSize(ctx context.Context, req *pb.GetRelSizeRequest) (*pb.GetRelSizeResponse, error) {
	rel, err := relFromWire(req.Rel)
	if err != nil {
		return nil, toGRPC(err)
	}
	at, err := s.at(ctx, positionFromWire(req.At), req.TimeoutMs)
	if err != nil {
		return nil, toGRPC(err)
	}
	blocks, err := s.pages.Size(ctx, at, rel)
	if err != nil {
		return nil, toGRPC(err)
	}
	return seal("GetRelSize", req, unary, &pb.GetRelSizeResponse{Lsn: uint64(at.LSN), Blocks: blocks})
}

// partLength bounds one message of a streamed answer.
const partLength = 1024

// parts sends a streamed answer in messages of bounded length.
type parts[T any, M interface {
	*T
	summed
}] struct {
	method string
	req    proto.Message
	stream grpc.ServerStreamingServer[T]
	sent   int
}

func (p *parts[T, M]) send(m M) error {
	m, err := seal(p.method, p.req, p.sent, m)
	if err != nil {
		return err
	}
	p.sent++
	return p.stream.Send((*T)(m))
}

// ListRelations streams every fork at one LSN.
func (s *Server) ListRelations(req *pb.ListRelationsRequest, stream pb.PageService_ListRelationsServer) error {
	at, err := s.at(stream.Context(), positionFromWire(req.At), req.TimeoutMs)
	if err != nil {
		return toGRPC(err)
	}
	out := parts[pb.ListRelationsResponse, *pb.ListRelationsResponse]{method: "ListRelations", req: req, stream: stream}
	msg := &pb.ListRelationsResponse{Lsn: uint64(at.LSN)}
	err = s.pages.Relations(stream.Context(), at, func(rel pg.RelFork, blocks pg.BlockNumber) error {
		msg.Relations = append(msg.Relations, &pb.Relation{Rel: relToWire(rel), Blocks: blocks})
		if len(msg.Relations) < partLength {
			return nil
		}
		err := out.send(msg)
		msg = &pb.ListRelationsResponse{Lsn: uint64(at.LSN)}
		return err
	})
	if err != nil {
		return toGRPC(err)
	}
	msg.Last = true
	return out.send(msg)
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// GetPageHistory streams a page's versions.
func (s *Server) GetPageHistory(req *pb.GetPageHistoryRequest, stream pb.PageService_GetPageHistoryServer) error {
	rel, err := relFromWire(req.Rel)
	if err != nil {
		return toGRPC(err)
	}
	at, err := s.at(stream.Context(), positionFromWire(req.At), 0)
	if err != nil {
		return toGRPC(err)
	}
	out := parts[pb.GetPageHistoryResponse, *pb.GetPageHistoryResponse]{method: "GetPageHistory", req: req, stream: stream}
	msg := &pb.GetPageHistoryResponse{Lsn: uint64(at.LSN)}
	n := uint32(0)
	err = s.pages.History(stream.Context(), at, pg.PageKey{RelFork: rel, Block: req.Block}, func(v Version) error {
		if req.Limit != 0 && n == req.Limit {
			return errEnough
		}
		n++
		msg.Versions = append(msg.Versions, &pb.PageVersion{Lsn: uint64(v.LSN), Kind: v.Kind, Record: v.Record, Bytes: uint32(v.Bytes)})
		if len(msg.Versions) < partLength {
			return nil
		}
		err := out.send(msg)
		msg = &pb.GetPageHistoryResponse{Lsn: uint64(at.LSN)}
		return err
	})
	if err != nil && !errors.Is(err, errEnough) {
		return toGRPC(err)
	}
	msg.Last = true
	return out.send(msg)
}

// ListSlruSegments lists the segments of an SLRU.
func (s *Server) ListSlruSegments(ctx context.Context, req *pb.ListSlruSegmentsRequest) (*pb.ListSlruSegmentsResponse, error) {
	slru, err := slruFromWire(req.Slru)
	if err != nil {
		return nil, toGRPC(err)
	}
	at, err := s.at(ctx, positionFromWire(req.At), req.TimeoutMs)
	if err != nil {
		return nil, toGRPC(err)
	}
	segments, err := s.pages.SLRUSegments(ctx, at, slru)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := &pb.ListSlruSegmentsResponse{Lsn: uint64(at.LSN)}
	for _, s := range segments {
		resp.Segments = append(resp.Segments, &pb.SlruSegment{Number: s.Number, Pages: s.Pages})
	}
	return seal("ListSlruSegments", req, unary, resp)
}

// GetSlruSegment answers one segment of an SLRU.
func (s *Server) GetSlruSegment(ctx context.Context, req *pb.GetSlruSegmentRequest) (*pb.GetSlruSegmentResponse, error) {
	slru, err := slruFromWire(req.Slru)
	if err != nil {
		return nil, toGRPC(err)
	}
	at, err := s.at(ctx, positionFromWire(req.At), req.TimeoutMs)
	if err != nil {
		return nil, toGRPC(err)
	}
	pages, err := s.pages.SLRUSegment(ctx, at, slru, req.Segment)
	if err != nil {
		return nil, toGRPC(err)
	}
	return seal("GetSlruSegment", req, unary, &pb.GetSlruSegmentResponse{Lsn: uint64(at.LSN), Pages: pages})
}

// GetClusterState answers all that is not a page.
func (s *Server) GetClusterState(ctx context.Context, req *pb.GetClusterStateRequest) (*pb.GetClusterStateResponse, error) {
	at, err := s.at(ctx, positionFromWire(req.At), req.TimeoutMs)
	if err != nil {
		return nil, toGRPC(err)
	}
	st, err := s.pages.State(ctx, at)
	if err != nil {
		return nil, toGRPC(err)
	}
	st.Branch = at.Branch
	resp, err := stateToWire(st)
	if err != nil {
		return nil, toGRPC(err)
	}
	return seal("GetClusterState", req, unary, resp)
}

// ResolveTarget turns a target into an LSN.
func (s *Server) ResolveTarget(ctx context.Context, req *pb.ResolveTargetRequest) (*pb.ResolveTargetResponse, error) {
	t, err := targetFromWire(req.Target)
	if err != nil {
		return nil, toGRPC(err)
	}
	r, err := s.pages.Resolve(ctx, t)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := &pb.ResolveTargetResponse{Lsn: uint64(r.LSN), Note: r.Note, Branch: r.Branch}
	for _, c := range r.Around {
		resp.Around = append(resp.Around, &pb.CommitEntry{
			StartLsn: uint64(c.Start), EndLsn: uint64(c.End), Kind: c.Kind, Xid: c.XID, TimeUs: int64(c.Time), Name: c.Name,
		})
	}
	return seal("ResolveTarget", req, unary, resp)
}

// maxLease bounds a lease that nobody renews.
const maxLease = 24 * time.Hour

// LeaseLsn makes, renews or ends a lease.
func (s *Server) LeaseLsn(ctx context.Context, req *pb.LeaseLsnRequest) (*pb.LeaseLsnResponse, error) {
	d := time.Duration(req.Seconds) * time.Second
	switch {
	case s.leases == nil:
		return nil, toGRPC(Errorf(Invalid, "this node gives no leases"))
	case d > maxLease:
		return nil, toGRPC(Errorf(Invalid, "a lease is of at most %s: renew it", maxLease))
	case d == 0 && req.Lease == 0:
		return nil, toGRPC(Errorf(Invalid, "a lease of no time: name the lease that is to end, or how long the new one is to last"))
	}
	l, err := s.leases.Lease(ctx, Lease{ID: req.Lease, Pos: Position{Branch: req.Branch, LSN: pg.LSN(req.Lsn)}, Holder: req.Holder}, d)
	if err != nil {
		return nil, toGRPC(err)
	}
	return seal("LeaseLsn", req, unary, &pb.LeaseLsnResponse{Lease: l.ID, ExpiresUs: int64(pg.TimestampOf(l.Expires))})
}

// GetShardMap answers the newest map.
func (s *Server) GetShardMap(_ context.Context, req *pb.GetShardMapRequest) (*pb.GetShardMapResponse, error) {
	return seal("GetShardMap", req, unary, s.mapToWire())
}

func (s *Server) mapToWire() *pb.GetShardMapResponse {
	w := mapToWire(s.pages.Map())
	w.Main = s.pages.Main()
	return w
}
