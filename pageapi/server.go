package pageapi

import (
	"context"
	"errors"
	"io"
	"time"

	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// MaxBatch is the number of blocks that one request may name.
const MaxBatch = 256

// DefaultWait is how long a request waits for an LSN that is not readable yet, where it says nothing itself.
const DefaultWait = 10 * time.Second

// relationsPerMessage bounds one message of ListRelations.
const relationsPerMessage = 1024

// Server is the page service over Pages.
type Server struct {
	pb.UnimplementedPageServiceServer
	pages Pages
}

// NewServer serves p.
func NewServer(p Pages) *Server { return &Server{pages: p} }

// at resolves a request's position, waiting no longer than the request allows.
func (s *Server) at(ctx context.Context, at Position, timeoutMS uint32) (Position, error) {
	wait := DefaultWait
	if timeoutMS != 0 {
		wait = time.Duration(timeoutMS) * time.Millisecond
	}
	return s.pages.Position(ctx, at, wait)
}

// GetPages answers a stream of requests in their order.
func (s *Server) GetPages(stream pb.PageService_GetPagesServer) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(s.getPages(stream.Context(), req)); err != nil {
			return err
		}
	}
}

func (s *Server) getPages(ctx context.Context, req *pb.GetPagesRequest) *pb.GetPagesResponse {
	resp := &pb.GetPagesResponse{Id: req.Id, Rel: req.Rel, Blocks: req.Blocks}
	if err := s.readPages(ctx, req, resp); err != nil {
		resp.Status, resp.Pages, resp.Checksum = statusOf(err), nil, 0
		if resp.Status.Code == WrongOwner {
			resp.Map = mapToWire(s.pages.Map())
		}
	}
	return resp
}

func (s *Server) readPages(ctx context.Context, req *pb.GetPagesRequest, resp *pb.GetPagesResponse) error {
	rel, err := relFromWire(req.Rel)
	if err != nil {
		return err
	}
	if len(req.Blocks) == 0 || len(req.Blocks) > MaxBatch {
		return Errorf(Invalid, "a request names 1 to %d blocks, not %d", MaxBatch, len(req.Blocks))
	}
	at, err := s.at(ctx, positionFromWire(req.At), req.TimeoutMs)
	if err != nil {
		return err
	}
	resp.Lsn = uint64(at.LSN)
	resp.Pages = make([]byte, len(req.Blocks)*pg.BlockSize)
	for i, b := range req.Blocks {
		if err := s.pages.Page(ctx, at, pg.PageKey{RelFork: rel, Block: b}, resp.Pages[i*pg.BlockSize:(i+1)*pg.BlockSize]); err != nil {
			return err
		}
	}
	resp.Checksum = pagesChecksum(Position{req.At.GetBranch(), at.LSN}, rel, req.Blocks, resp.Pages)
	return nil
}

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
	return &pb.GetRelSizeResponse{Lsn: uint64(at.LSN), Blocks: blocks}, nil
}

// ListRelations streams every fork at one LSN.
func (s *Server) ListRelations(req *pb.ListRelationsRequest, stream pb.PageService_ListRelationsServer) error {
	at, err := s.at(stream.Context(), positionFromWire(req.At), req.TimeoutMs)
	if err != nil {
		return toGRPC(err)
	}
	msg := &pb.ListRelationsResponse{Lsn: uint64(at.LSN)}
	err = s.pages.Relations(stream.Context(), at, func(rel pg.RelFork, blocks pg.BlockNumber) error {
		msg.Relations = append(msg.Relations, &pb.Relation{Rel: relToWire(rel), Blocks: blocks})
		if len(msg.Relations) < relationsPerMessage {
			return nil
		}
		err := stream.Send(msg)
		msg = &pb.ListRelationsResponse{Lsn: uint64(at.LSN)}
		return err
	})
	if err != nil {
		return toGRPC(err)
	}
	return stream.Send(msg) // the last one may be empty, and tells the LSN even then
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
	return resp, nil
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
	return &pb.GetSlruSegmentResponse{Lsn: uint64(at.LSN), Pages: pages}, nil
}

// GetPageHistory lists a page's versions.
func (s *Server) GetPageHistory(ctx context.Context, req *pb.GetPageHistoryRequest) (*pb.GetPageHistoryResponse, error) {
	rel, err := relFromWire(req.Rel)
	if err != nil {
		return nil, toGRPC(err)
	}
	at, err := s.at(ctx, positionFromWire(req.At), 0)
	if err != nil {
		return nil, toGRPC(err)
	}
	versions, err := s.pages.History(ctx, at, pg.PageKey{RelFork: rel, Block: req.Block}, int(req.Limit))
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := &pb.GetPageHistoryResponse{Lsn: uint64(at.LSN)}
	for _, v := range versions {
		resp.Versions = append(resp.Versions, &pb.PageVersion{Lsn: uint64(v.LSN), Kind: v.Kind, Record: v.Record, Bytes: uint32(v.Bytes)})
	}
	return resp, nil
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
	resp, err := stateToWire(st)
	return resp, toGRPC(err)
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
	resp := &pb.ResolveTargetResponse{Lsn: uint64(r.LSN), Note: r.Note}
	for _, c := range r.Around {
		resp.Around = append(resp.Around, &pb.CommitEntry{
			StartLsn: uint64(c.Start), EndLsn: uint64(c.End), Kind: c.Kind, Xid: c.XID, TimeUs: int64(c.Time), Name: c.Name,
		})
	}
	return resp, nil
}

// GetShardMap answers the newest map.
func (s *Server) GetShardMap(context.Context, *pb.GetShardMapRequest) (*pb.GetShardMapResponse, error) {
	return mapToWire(s.pages.Map()), nil
}
