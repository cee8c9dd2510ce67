package node

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"everpage/cluster"
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

// ListChunks lists the chunks that there are now, as every node knows them: each has the sizes of all relations.
func (a *admin) ListChunks(ctx context.Context, r *pb.ListChunksRequest) (*pb.ListChunksResponse, error) {
	s := a.n.cluster.State()
	limit := int(r.Limit)
	if limit == 0 {
		limit = listedChunks
	}
	after, only := chunkFrom(r.After.GetRel(), r.After.GetSegment()), chunkFrom(r.Rel, r.Segment)
	resp := &pb.ListChunksResponse{}
	add := func(c placement.Chunk, blocks uint32) error {
		o := s.Layout().Override(c)
		switch {
		case r.After != nil && c.Compare(after) <= 0, r.Rel != nil && c.RelFork != only.RelFork, r.One && c.Segment != only.Segment, r.Apart && o == nil:
			return nil
		case len(resp.Chunks) == limit:
			resp.More = true
			return errEnough
		}
		resp.Chunks = append(resp.Chunks, a.chunkInfo(s, c, blocks))
		return nil
	}
	branch := a.n.pages.branch(r.Branch)
	p, ok := a.n.store.Progress(branch)
	if !ok || p.Consistent == 0 {
		return nil, adminError(noData(r.Branch))
	}
	segment := a.n.cfg.SegmentBlocks
	from := pg.RelFork{}
	if r.Rel != nil {
		from = only.RelFork
	}
	err := a.n.store.Relations(ctx, branch, p.Readable, from, func(fork pg.RelFork, blocks pg.BlockNumber) error {
		if r.Rel != nil && fork != only.RelFork {
			return errEnough
		}
		for i := uint32(0); i == 0 || i*segment < blocks; i++ {
			if err := add(placement.Chunk{RelFork: fork, Segment: i}, min(segment, blocks-i*segment)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, adminError(coded(err))
	}
	return resp, nil
}

func (a *admin) chunkInfo(s *cluster.State, c placement.Chunk, blocks uint32) *pb.ChunkInfo {
	of := s.Layout().Of(c)
	info := &pb.ChunkInfo{Chunk: chunkName(c), Name: c.String(), Shard: uint32(placement.ShardOf(c, uint32(len(s.Map)))), Epoch: of.Epoch, Blocks: blocks}
	if o := s.Layout().Override(c); o != nil {
		info.Apart, info.Pinned = true, o.Pinned
	}
	info.Replicas = a.replicasOf(s, *of)
	return info
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
