package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"everpage/chunk"
	"everpage/cluster/placement"
	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// fetchPiece is how much of a layer one message carries.
const fetchPiece = 256 << 10

// fetchWait is how long a layer's sender may take to come as far as the one who asks.
const fetchWait = 20 * time.Second

// fetchError gives the store's errors the codes that other nodes act on.
func fetchError(err error) error {
	if err == nil {
		return nil
	}
	code := codes.Unavailable
	switch {
	case errors.Is(err, chunk.ErrNotHere), errors.Is(err, chunk.ErrNoBranch):
		code = codes.NotFound
	}
	return status.Error(code, err.Error())
}

// FetchLayer sends all that this node has of a shard or chunk, once it has ingested as far as is asked.
func (s *nodeService) FetchLayer(r *pb.FetchLayerRequest, out pb.NodeService_FetchLayerServer) error {
	if err := s.ready(); err != nil {
		return err
	}
	ctx := out.Context()
	if p, _ := s.n.store.Progress(r.Branch); r.Branch != s.n.follow.main() && p.Readable < pg.LSN(r.Hi) {
		// What main left grows no more, but for what other nodes have.
		return status.Error(codes.NotFound, fmt.Sprintf("node %s has branch %d up to %s only", s.n.cfg.Node, r.Branch, p.Readable))
	}
	// Not for ever: another replica may be further, and main may leave the branch meanwhile.
	wait, cancel := context.WithTimeout(ctx, fetchWait)
	err := s.n.store.Wait(wait, r.Branch, pg.LSN(r.Hi))
	cancel()
	if err != nil {
		return fetchError(err)
	}
	w := &pieces{send: func(b []byte) error { return out.Send(&pb.FetchLayerResponse{Data: b}) }}
	spec := chunk.LayerSpec{Branch: r.Branch, Shard: placement.Shard(r.Shard)}
	if c := chunkFrom(r.Rel, r.Segment); c != (placement.Chunk{}) {
		spec.Chunk = &c
	}
	_, err = s.n.store.ExportLayer(ctx, spec, w)
	return fetchError(errors.Join(err, w.flush()))
}

// FetchSmall sends all that is small.
func (s *nodeService) FetchSmall(r *pb.FetchSmallRequest, out pb.NodeService_FetchSmallServer) error {
	if err := s.ready(); err != nil {
		return err
	}
	p, ok := s.n.store.Progress(r.Branch)
	if !ok || p.Consistent == 0 {
		return status.Error(codes.NotFound, fmt.Sprintf("node %s has nothing consistent of branch %d", s.n.cfg.Node, r.Branch))
	}
	w := &pieces{send: func(b []byte) error { return out.Send(&pb.FetchSmallResponse{Data: b}) }}
	_, err := s.n.store.ExportSmall(out.Context(), r.Branch, 0, 0, w)
	return fetchError(errors.Join(err, w.flush()))
}

// FetchVersions sends what a page is made of.
func (s *nodeService) FetchVersions(ctx context.Context, r *pb.FetchVersionsRequest) (*pb.FetchVersionsResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	rel := r.GetRel()
	key := pg.PageKey{Block: r.Block, RelFork: pg.RelFork{
		RelFileLocator: pg.RelFileLocator{Spc: rel.GetSpc(), DB: rel.GetDb(), Rel: rel.GetRel()}, Fork: pg.ForkNumber(rel.GetFork()),
	}}
	list, err := s.n.store.Versions(ctx, r.Branch, key, pg.LSN(r.At))
	if errors.Is(err, chunk.ErrNotHere) || errors.Is(err, chunk.ErrNoBranch) || errors.Is(err, chunk.ErrNotYet) {
		return &pb.FetchVersionsResponse{}, nil
	}
	if err != nil {
		return nil, fetchError(err)
	}
	resp := &pb.FetchVersionsResponse{Here: true}
	for _, v := range list {
		resp.Versions = append(resp.Versions, &pb.StoredVersion{Lsn: uint64(v.LSN), Value: v.Value})
	}
	return resp, nil
}

// pieces sends what is written in messages of fetchPiece.
type pieces struct {
	send func([]byte) error
	buf  []byte
}

func (w *pieces) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	if len(w.buf) >= fetchPiece {
		return len(p), w.flush()
	}
	return len(p), nil
}

func (w *pieces) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.send(w.buf)
	w.buf = nil // gRPC may hold it yet
	return err
}

// received reads a layer from the messages of a peer.
type received struct {
	address string
	next    func() ([]byte, error)
	buf     []byte
}

func (r *received) Read(p []byte) (int, error) {
	for len(r.buf) == 0 {
		b, err := r.next()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, pageapi.CallError(r.address, err)
		}
		r.buf = b
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// layer is the layer of a shard or chunk at a peer.
func (p *peers) layer(ctx context.Context, address string, branch uint32, of placement.Place, hi pg.LSN) (io.Reader, error) {
	c, err := p.at(address)
	if err != nil {
		return nil, err
	}
	req := &pb.FetchLayerRequest{Branch: branch, Shard: uint32(of.Shard), Hi: uint64(hi)}
	if of.Chunk != (placement.Chunk{}) {
		req.Rel, req.Segment = relWire(of.Chunk), of.Chunk.Segment
	}
	s, err := c.FetchLayer(ctx, req)
	if err != nil {
		return nil, pageapi.CallError(address, err)
	}
	return &received{address: address, next: func() ([]byte, error) {
		m, err := s.Recv()
		return m.GetData(), err
	}}, nil
}

// small is all that is small at a peer.
func (p *peers) small(ctx context.Context, address string, branch uint32) (io.Reader, error) {
	c, err := p.at(address)
	if err != nil {
		return nil, err
	}
	s, err := c.FetchSmall(ctx, &pb.FetchSmallRequest{Branch: branch})
	if err != nil {
		return nil, pageapi.CallError(address, err)
	}
	return &received{address: address, next: func() ([]byte, error) {
		m, err := s.Recv()
		return m.GetData(), err
	}}, nil
}

// source gets the versions of pages that this node owns but doesn't have yet from other replicas.
type source struct{ n *Node }

// Versions implements chunk.LayerSource.
func (s source) Versions(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN) ([]chunk.PageVersion, error) {
	of := s.n.cluster.State().ChunkPlace(placement.ChunkOf(key, s.n.cfg.SegmentBlocks))
	var errs []error
	for _, address := range s.n.replicas(of) {
		c, err := s.n.peers.at(address)
		if err != nil {
			return nil, err
		}
		r, err := c.FetchVersions(ctx, &pb.FetchVersionsRequest{Branch: branch, Block: key.Block, At: uint64(at), Rel: &pb.RelFork{
			Spc: key.Spc, Db: key.DB, Rel: key.Rel, Fork: uint32(key.Fork),
		}})
		if err != nil {
			errs = append(errs, pageapi.CallError(address, err))
			continue
		}
		if !r.Here {
			errs = append(errs, fmt.Errorf("node %s: %w", address, chunk.ErrNotHere))
			continue
		}
		list := make([]chunk.PageVersion, len(r.Versions))
		for i, v := range r.Versions {
			list[i] = chunk.PageVersion{LSN: pg.LSN(v.Lsn), Value: v.Value}
		}
		return list, nil
	}
	if b := s.n.backups; b != nil {
		list, err := b.source.Versions(ctx, branch, key, at)
		if err == nil {
			return list, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("no other node has %s: %w", of, chunk.ErrNotHere)
	}
	return nil, errors.Join(errs...)
}

// replicas are the page addresses of the other nodes that have all of a shard or chunk, those that gossip sees first. A chunk with replicas of its own is
// on its shard's too. Behind them come those that are joining: of older branches they may have all.
func (n *Node) replicas(p placement.Place) []string {
	s := n.cluster.State()
	layout := s.Layout()
	var ids, late []string
	for _, place := range []placement.Place{p, {Shard: p.Shard}} {
		a := layout.Assignment(place)
		if a == nil {
			continue
		}
		ids = append(ids, a.Serving()...)
		for _, r := range a.Replicas {
			if len(s.Branches) > 1 && r.Role == placement.Joining {
				late = append(late, r.Node)
			}
		}
	}
	var alive, silent []string
	ids = append(ids, late...)
	for i, id := range ids {
		address := n.cluster.PageAddress(id)
		if id == n.cluster.ID() || address == "" || slices.Contains(ids[:i], id) {
			continue
		}
		ok, _ := n.cluster.Alive(id)
		if ok && !slices.Contains(late, id) {
			alive = append(alive, address)
		} else {
			silent = append(silent, address)
		}
	}
	return append(alive, silent...)
}

// walStream reads WAL from the messages of a peer.
type walStream struct {
	stream  pb.NodeService_FetchWALClient
	address string
	at      uint64
	wal     []byte
	durable uint64
}

// next reads a message; more is false at the end.
func (r *walStream) next() (more bool, err error) {
	m, err := r.stream.Recv()
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	if err != nil {
		return false, pageapi.CallError(r.address, err)
	}
	r.at, r.wal, r.durable = m.At, m.Wal, m.Durable
	return true, nil
}
