package pageapi

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/mem"

	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// MaxBatch is the number of blocks that one request may name.
const MaxBatch = 256

// DefaultWait is how long a request waits for an LSN that is not readable yet, where it says nothing itself.
const DefaultWait = 10 * time.Second

// Server is the page service over Pages. The gRPC server that it is registered with is made with ServerOptions.
type Server struct {
	pb.UnimplementedPageServiceServer
	pages   Pages
	leases  Leases // nil: there is nobody to ask
	pool    pagePool
	streams atomic.Int64
}

// NewServer serves p.
func NewServer(p Pages) *Server { return &Server{pages: p, pool: pagePool{limit: maxPagesUnderWay}} }

// WithLeases makes the server give leases.
func (s *Server) WithLeases(l Leases) *Server {
	s.leases = l
	return s
}

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
	defer s.streams.Add(-1)
	if s.streams.Add(1) > maxStreams {
		return toGRPC(tooManyStreams())
	}
	var req pb.GetPagesRequest
	var answer pagesAnswer
	for {
		if err := stream.RecvMsg(&req); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		s.answer(stream.Context(), &req, &answer)
		err := stream.SendMsg(&answer)
		answer.drop()
		if err != nil {
			return err
		}
	}
}

func tooManyStreams() error {
	return Errorf(Exhausted, "%d page streams are open to this node, it allows no more", maxStreams)
}

// answer makes the answer to one request. Its pages are the caller's to drop.
func (s *Server) answer(ctx context.Context, req *pb.GetPagesRequest, a *pagesAnswer) {
	*a = pagesAnswer{id: req.Id, blocks: req.Blocks}
	if err := s.readPages(ctx, req, a); err != nil {
		a.drop()
		a.status, a.checksum = statusOf(err), 0
		if a.status.Code == WrongOwner {
			a.shardMap = s.mapToWire()
		}
	}
}

func (s *Server) readPages(ctx context.Context, req *pb.GetPagesRequest, a *pagesAnswer) error {
	rel, err := relFromWire(req.Rel)
	if err != nil {
		return err
	}
	a.rel = rel
	if len(req.Blocks) == 0 || len(req.Blocks) > MaxBatch {
		return Errorf(Invalid, "a request names 1 to %d blocks, not %d", MaxBatch, len(req.Blocks))
	}
	at, err := s.at(ctx, positionFromWire(req.At), req.TimeoutMs)
	a.readable = s.pages.Readable(req.At.GetBranch())
	if err != nil {
		return err
	}
	a.lsn = at.LSN
	buf := s.pool.take(len(req.Blocks) * pg.BlockSize)
	if buf == nil {
		return Errorf(Exhausted, "this node has %d MB of pages under way, and allows no more", s.pool.limit>>20)
	}
	a.pages = mem.NewBuffer(buf, &s.pool)
	for i, b := range req.Blocks {
		if err := s.pages.Page(ctx, at, pg.PageKey{RelFork: rel, Block: b}, (*buf)[i*pg.BlockSize:(i+1)*pg.BlockSize]); err != nil {
			return err
		}
	}
	a.checksum = pagesChecksum(Position{Branch: req.At.GetBranch(), LSN: at.LSN}, rel, req.Blocks, *buf)
	return nil
}
