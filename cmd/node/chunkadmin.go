package node

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"everpage/chunk"
	"everpage/cluster"
	"everpage/cluster/catalog"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// listedChunks is how many chunks an answer has where the request doesn't say.
const listedChunks = 1000

func chunkName(c placement.Chunk) *pb.ChunkName {
	return &pb.ChunkName{Rel: relWire(c), Segment: c.Segment}
}

// ListChunks lists the chunks that there are now, as the cluster's inventory has them on every node.
func (a *admin) ListChunks(ctx context.Context, r *pb.ListChunksRequest) (*pb.ListChunksResponse, error) {
	s := a.n.cluster.State()
	limit := int(r.Limit)
	if limit == 0 {
		limit = listedChunks
	}
	branch := a.n.pages.branch(r.Branch)
	p, ok := a.n.store.Progress(branch)
	if !ok || p.Consistent == 0 {
		return nil, adminError(noData(r.Branch))
	}
	after, only := chunkFrom(r.After.GetRel(), r.After.GetSegment()), chunkFrom(r.Rel, r.Segment)
	from := after
	if r.Rel != nil && from.Compare(only) < 0 {
		if from = only; !r.One {
			from.Segment = 0
		}
	}
	layout, resp := s.Layout(), &pb.ListChunksResponse{}
	for e := range s.ChunksOf(branch, from) {
		c := e.Chunk
		if r.Rel != nil && c.RelFork != only.RelFork || r.One && c.Segment != only.Segment {
			break // all others are behind it
		}
		if e.Last.Dropped() || r.After != nil && c == after || r.Apart && layout.Override(c) == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, adminError(err)
		}
		if len(resp.Chunks) == limit {
			resp.More = true
			break
		}
		info, err := a.chunkInfo(s, branch, p, e)
		if err != nil {
			return nil, adminError(coded(err))
		}
		resp.Chunks = append(resp.Chunks, info)
	}
	if r.One && len(resp.Chunks) == 0 {
		return a.newborn(s, branch, p, only)
	}
	return resp, nil
}

// newborn is a chunk that is in the store already, but not yet in the inventory.
func (a *admin) newborn(s *cluster.State, branch uint32, p chunk.Progress, c placement.Chunk) (*pb.ListChunksResponse, error) {
	info, err := a.chunkInfo(s, branch, p, catalog.Entry{Key: catalog.Key{Branch: branch, Chunk: c}})
	if err != nil {
		return nil, adminError(coded(err))
	}
	resp := &pb.ListChunksResponse{}
	if info.Blocks > 0 {
		resp.Chunks = append(resp.Chunks, info)
	}
	return resp, nil
}

func (a *admin) chunkInfo(s *cluster.State, branch uint32, p chunk.Progress, e catalog.Entry) (*pb.ChunkInfo, error) {
	c := e.Chunk
	layout := s.Layout()
	of := layout.Of(c)
	info := &pb.ChunkInfo{Chunk: chunkName(c), Name: c.String(), Shard: uint32(placement.ShardOf(c, uint32(len(s.Map)))), Epoch: of.Epoch, BornLsn: uint64(e.Born),
		Damaged: e.Damaged.On(), UnprovenLsn: uint64(p.Unproven)}
	blocks, ok, err := a.n.store.Size(branch, forkOf(c), p.Readable)
	if err != nil {
		return nil, err
	}
	info.Blocks = blocks
	if before, segment := c.Segment*a.n.cfg.SegmentBlocks, a.n.cfg.SegmentBlocks; ok && c.Spc != 0 {
		info.Blocks = min(segment, blocks-min(blocks, before))
	}
	if m, ok := s.Manifest(branch, placement.Shard(info.Shard)); ok && pg.LSN(e.Born) <= m.LSN {
		info.BackedLsn = uint64(m.LSN)
	}
	if o := layout.Override(c); o != nil {
		info.Apart, info.Pinned = true, o.Pinned
	}
	info.Replicas = a.replicasOf(s, *of)
	return info, nil
}

// replicasOf is an assignment for people.
func (a *admin) replicasOf(s *cluster.State, x placement.Assignment) []*pb.ShardReplica {
	var out []*pb.ShardReplica
	for _, r := range x.Replicas {
		alive, _ := a.n.cluster.Alive(r.Node)
		replica := &pb.ShardReplica{Node: r.Node, Role: string(r.Role), Alive: alive}
		if n := s.Node(r.Node); n != nil {
			replica.Node = n.Name
		}
		out = append(out, replica)
	}
	return out
}

// MoveChunk has clients read a chunk from another node, which takes it from those that have it.
func (a *admin) MoveChunk(ctx context.Context, r *pb.MoveChunkRequest) (*pb.MoveChunkResponse, error) {
	if err := a.n.cluster.Sync(ctx); err != nil {
		return nil, adminError(err)
	}
	s := a.n.cluster.State()
	c := chunkFrom(r.Chunk.GetRel(), r.Chunk.GetSegment())
	if c == (placement.Chunk{}) || len(s.Map) == 0 {
		return nil, status.Error(codes.InvalidArgument, "the request names no chunk")
	}
	if r.To == "" {
		_, err := a.n.cluster.Propose(ctx, &command.UnsplitChunk{Chunk: c})
		return &pb.MoveChunkResponse{}, adminError(err)
	}
	to, from, err := a.ends(s, r.To, r.From)
	if err != nil {
		return nil, err
	}
	of := s.Layout().Of(c)
	switch {
	case of.Replica(to) != nil:
		return nil, status.Error(codes.FailedPrecondition, fmt.Sprintf("node %s has chunk %s already", r.To, c))
	case from != "" && of.Replica(from) == nil:
		return nil, status.Error(codes.FailedPrecondition, fmt.Sprintf("node %s has no replica of chunk %s", r.From, c))
	}
	if s.Layout().Override(c) == nil {
		if _, err := a.n.cluster.Propose(ctx, &command.SplitChunk{Chunk: c, Epoch: of.Epoch, Pinned: true}); err != nil {
			return nil, adminError(err)
		}
	}
	p := placement.Place{Shard: placement.ShardOf(c, uint32(len(s.Map))), Chunk: c}
	_, err = a.n.cluster.Propose(ctx, &command.AddReplica{Of: command.OfPlace(p), Node: to, Replaces: from})
	return &pb.MoveChunkResponse{}, adminError(err)
}

// ends are the nodes that a replica goes to and from. The one must be there.
func (a *admin) ends(s *cluster.State, toName, fromName string) (to, from string, err error) {
	if to, err = named(s, toName); err != nil {
		return "", "", err
	}
	if alive, _ := a.n.cluster.Alive(to); !alive {
		return "", "", status.Error(codes.FailedPrecondition, fmt.Sprintf("node %s does not answer: nothing can be moved to it", toName))
	}
	if fromName != "" {
		if from, err = named(s, fromName); err != nil {
			return "", "", err
		}
	}
	return to, from, nil
}
