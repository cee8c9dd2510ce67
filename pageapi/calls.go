package pageapi

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// This file has the client's calls that are not reads of pages. Any node answers them, except for what owners of a chunk keep.

// timeoutMS is how long a node may wait: less than we do, so that its error, which says what is missing, arrives before our own.
func timeoutMS(ctx context.Context) uint32 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	left := time.Until(deadline)
	return uint32(max(1, (left - max(left/10, min(left/2, 50*time.Millisecond))).Milliseconds()))
}

// callPatience is how long a node may take for a call before another is asked as well.
const callPatience = 250 * time.Millisecond

// anyCall calls the first node that answers, and verifies the answer.
func anyCall[R summed](c *Client, ctx context.Context, at Position, method string, req proto.Message, call func(context.Context, *node) (R, error)) (R, string, error) {
	var none R
	if _, err := c.Map(ctx); err != nil {
		return none, "", err
	}
	nodes, err := c.anyNodes(at)
	if err != nil {
		return none, "", err
	}
	return verified(c, ctx, nodes, method, req, call)
}

func verified[R summed](c *Client, ctx context.Context, nodes []*node, method string, req proto.Message, call func(context.Context, *node) (R, error)) (R, string, error) {
	type answer struct {
		r       R
		address string
	}
	a, err := firstOf(c, ctx, nodes, callPatience, func(ctx context.Context, n *node) (answer, error) {
		r, err := call(ctx, n)
		if err != nil {
			return answer{}, fromGRPC(n.address, err)
		}
		return answer{r, n.address}, check(n.address, method, req, unary, r)
	})
	return a.r, a.address, err
}

// owned runs fn with the owners of a page, again with a newer map where they say that they don't keep it.
func (c *Client) owned(ctx context.Context, at Position, key pg.PageKey, fn func([]*node) error) error {
	for follow := 0; ; follow++ {
		m, err := c.Map(ctx)
		if err != nil {
			return err
		}
		var addresses []string
		for _, o := range m.Owners(key) {
			addresses = append(addresses, o.Address)
		}
		if len(addresses) == 0 {
			err = Errorf(Unavailable, "no node keeps %s in the shard map of epoch %d", key, m.Epoch)
		} else {
			nodes, orderErr := c.ordered(addresses, at, MaxBatch)
			if orderErr != nil {
				return orderErr
			}
			err = fn(nodes)
		}
		switch code := CodeOf(err); {
		case err == nil, follow >= maxFollows, ctx.Err() != nil, code != WrongOwner && code != Unavailable, code == Unavailable && len(m.Nodes) == 1:
			return err
		}
		newer, mapErr := c.newerMap(ctx)
		if mapErr != nil || newer.Epoch == m.Epoch && len(m.Nodes) == 1 {
			return err
		}
		if newer.Epoch == m.Epoch && pause(ctx, followsPause<<min(follow, 5)) != nil {
			return err
		}
	}
}

// RelSize is the number of blocks of a fork.
func (c *Client) RelSize(ctx context.Context, at Position, rel pg.RelFork) (pg.BlockNumber, pg.LSN, error) {
	var resp *pb.GetRelSizeResponse
	err := c.settled(ctx, at, func(at Position) (err error) {
		req := &pb.GetRelSizeRequest{At: positionToWire(at), Rel: relToWire(rel), TimeoutMs: timeoutMS(ctx)}
		resp, _, err = anyCall(c, ctx, at, "GetRelSize", req, func(ctx context.Context, n *node) (*pb.GetRelSizeResponse, error) {
			return n.pages.GetRelSize(ctx, req)
		})
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	return resp.Blocks, pg.LSN(resp.Lsn), nil
}

// Relations lists every fork at one LSN. fn is called as they arrive, once for each; an error afterwards means that the list is not whole.
func (c *Client) Relations(ctx context.Context, at Position, fn func(pg.RelFork, pg.BlockNumber) error) (pg.LSN, error) {
	err := c.settled(ctx, at, func(settled Position) error {
		at = settled
		return c.relations(ctx, &at, fn)
	})
	return at.LSN, err
}

func (c *Client) relations(ctx context.Context, at *Position, fn func(pg.RelFork, pg.BlockNumber) error) error {
	nodes, err := c.anyNodes(*at)
	if err != nil {
		return err
	}
	told, seen := 0, 0
	l := listing[pb.ListRelationsResponse, *pb.ListRelationsResponse]{
		method: "ListRelations",
		request: func() proto.Message {
			return &pb.ListRelationsRequest{At: positionToWire(*at), TimeoutMs: timeoutMS(ctx)}
		},
		open: func(ctx context.Context, n *node, req proto.Message) (grpc.ServerStreamingClient[pb.ListRelationsResponse], error) {
			return n.pages.ListRelations(ctx, req.(*pb.ListRelationsRequest))
		},
		begin: func() { seen = 0 },
		each: func(m *pb.ListRelationsResponse) error {
			at.LSN = pg.LSN(m.Lsn)
			for _, r := range m.Relations {
				if seen++; seen <= told {
					continue
				}
				rel, err := relFromWire(r.Rel)
				if err != nil {
					return err
				}
				told++
				if err := fn(rel, r.Blocks); err != nil {
					return err
				}
			}
			return nil
		},
	}
	return movedSince(told > 0, l.run(ctx, c, nodes))
}

// SLRUSegments lists the segments of an SLRU.
func (c *Client) SLRUSegments(ctx context.Context, at Position, slru pg.SLRU) ([]SLRUSegment, error) {
	var resp *pb.ListSlruSegmentsResponse
	err := c.settled(ctx, at, func(at Position) (err error) {
		req := &pb.ListSlruSegmentsRequest{At: positionToWire(at), Slru: uint32(slru), TimeoutMs: timeoutMS(ctx)}
		resp, _, err = anyCall(c, ctx, at, "ListSlruSegments", req, func(ctx context.Context, n *node) (*pb.ListSlruSegmentsResponse, error) {
			return n.pages.ListSlruSegments(ctx, req)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	var segments []SLRUSegment
	for _, s := range resp.Segments {
		segments = append(segments, SLRUSegment{s.Number, s.Pages})
	}
	return segments, nil
}

// SLRUSegment is the content of one segment of an SLRU.
func (c *Client) SLRUSegment(ctx context.Context, at Position, slru pg.SLRU, segment uint32) (pages []byte, err error) {
	err = c.settled(ctx, at, func(at Position) error {
		req := &pb.GetSlruSegmentRequest{At: positionToWire(at), Slru: uint32(slru), Segment: segment, TimeoutMs: timeoutMS(ctx)}
		return c.owned(ctx, at, pg.SLRUPage(slru, segment*pg.SLRUPagesPerSegment), func(nodes []*node) error {
			resp, _, err := verified(c, ctx, nodes, "GetSlruSegment", req, func(ctx context.Context, n *node) (*pb.GetSlruSegmentResponse, error) {
				return n.pages.GetSlruSegment(ctx, req)
			})
			if err == nil {
				pages = resp.Pages
			}
			return err
		})
	})
	return pages, err
}

// History calls fn for the versions of a page at or below the position, newest first, at most limit (0: all). An error means that they are not all.
func (c *Client) History(ctx context.Context, at Position, key pg.PageKey, limit int, fn func(Version) error) (pg.LSN, error) {
	err := c.settled(ctx, at, func(settled Position) error {
		at = settled
		return c.history(ctx, &at, key, limit, fn)
	})
	return at.LSN, err
}

func (c *Client) history(ctx context.Context, at *Position, key pg.PageKey, limit int, fn func(Version) error) error {
	last := pg.LSN(0) // told; zero: none
	l := listing[pb.GetPageHistoryResponse, *pb.GetPageHistoryResponse]{
		method: "GetPageHistory",
		request: func() proto.Message {
			return &pb.GetPageHistoryRequest{At: positionToWire(*at), Rel: relToWire(key.RelFork), Block: key.Block, Limit: uint32(limit)}
		},
		open: func(ctx context.Context, n *node, req proto.Message) (grpc.ServerStreamingClient[pb.GetPageHistoryResponse], error) {
			return n.pages.GetPageHistory(ctx, req.(*pb.GetPageHistoryRequest))
		},
		begin: func() {},
		each: func(m *pb.GetPageHistoryResponse) error {
			at.LSN = pg.LSN(m.Lsn)
			for _, v := range m.Versions {
				if last != 0 && pg.LSN(v.Lsn) >= last {
					continue
				}
				last = pg.LSN(v.Lsn)
				if err := fn(Version{LSN: pg.LSN(v.Lsn), Kind: v.Kind, Record: v.Record, Bytes: int(v.Bytes)}); err != nil {
					return err
				}
			}
			return nil
		},
	}
	err := c.owned(ctx, *at, key, func(nodes []*node) error { return l.run(ctx, c, nodes) })
	return movedSince(last != 0, err)
}

// State is all that a data directory needs beside pages.
func (c *Client) State(ctx context.Context, at Position) (*ClusterState, error) {
	var resp *pb.GetClusterStateResponse
	var address string
	err := c.settled(ctx, at, func(at Position) (err error) {
		req := &pb.GetClusterStateRequest{At: positionToWire(at), TimeoutMs: timeoutMS(ctx)}
		resp, address, err = anyCall(c, ctx, at, "GetClusterState", req, func(ctx context.Context, n *node) (*pb.GetClusterStateResponse, error) {
			return n.pages.GetClusterState(ctx, req)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	st, err := stateFromWire(resp)
	if err != nil {
		return nil, Errorf(Internal, "node %s: %w", address, err)
	}
	return st, nil
}

// Lease makes a lease that lasts for d, renews one (l.ID is not 0), or ends one (d is 0). It asks one node at a time: asked twice, two would be made.
func (c *Client) Lease(ctx context.Context, l Lease, d time.Duration) (Lease, error) {
	if l.ID == 0 && d > 0 {
		at, err := c.settle(ctx, l.Pos)
		if err != nil {
			return l, err
		}
		at.Main = false
		l.Pos = at
	}
	if _, err := c.Map(ctx); err != nil {
		return l, err
	}
	nodes, err := c.anyNodes(l.Pos)
	if err != nil {
		return l, err
	}
	req := &pb.LeaseLsnRequest{Branch: l.Pos.Branch, Lsn: uint64(l.Pos.LSN), Seconds: uint32((d + time.Second - 1) / time.Second), Lease: l.ID, Holder: l.Holder}
	var errs []error
	for _, n := range nodes {
		resp, err := n.pages.LeaseLsn(ctx, req)
		if err == nil {
			err = check(n.address, "LeaseLsn", req, unary, resp)
		} else {
			err = fromGRPC(n.address, err)
		}
		if err == nil {
			l.ID, l.Expires = resp.Lease, pg.Timestamp(resp.ExpiresUs).Time()
			return l, nil
		}
		errs = append(errs, err)
		if !retried(err) || ctx.Err() != nil {
			return l, err
		}
		c.blameCall(n, err)
	}
	return l, worst(errs)
}
