package pageapi

import (
	"context"
	"errors"
	"io"
	"time"

	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// This file has the client's calls that are not reads of pages. Any node answers them.

// timeoutMS is how long a node may wait: less than we do, so that its error, which says what is missing, arrives before our own.
func timeoutMS(ctx context.Context) uint32 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	left := time.Until(deadline)
	return uint32(max(1, (left - max(left/10, min(left/2, 50*time.Millisecond))).Milliseconds()))
}

// RelSize is the number of blocks of a fork.
func (c *Client) RelSize(ctx context.Context, at Position, rel pg.RelFork) (pg.BlockNumber, pg.LSN, error) {
	n, err := c.anyNode(ctx)
	if err != nil {
		return 0, 0, err
	}
	resp, err := n.pages.GetRelSize(ctx, &pb.GetRelSizeRequest{At: positionToWire(at), Rel: relToWire(rel), TimeoutMs: timeoutMS(ctx)})
	if err != nil {
		return 0, 0, fromGRPC(n.address, err)
	}
	return resp.Blocks, pg.LSN(resp.Lsn), nil
}

// Relations lists every fork at one LSN. fn is called as they arrive; an error afterwards means that the list is not whole.
func (c *Client) Relations(ctx context.Context, at Position, fn func(pg.RelFork, pg.BlockNumber) error) (pg.LSN, error) {
	n, err := c.anyNode(ctx)
	if err != nil {
		return 0, err
	}
	stream, err := n.pages.ListRelations(ctx, &pb.ListRelationsRequest{At: positionToWire(at), TimeoutMs: timeoutMS(ctx)})
	if err != nil {
		return 0, fromGRPC(n.address, err)
	}
	var lsn pg.LSN
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return lsn, nil
		}
		if err != nil {
			return 0, fromGRPC(n.address, err)
		}
		lsn = pg.LSN(resp.Lsn)
		for _, r := range resp.Relations {
			rel, err := relFromWire(r.Rel)
			if err != nil {
				return 0, err
			}
			if err := fn(rel, r.Blocks); err != nil {
				return 0, err
			}
		}
	}
}

// SLRUSegments lists the segments of an SLRU.
func (c *Client) SLRUSegments(ctx context.Context, at Position, slru pg.SLRU) ([]SLRUSegment, error) {
	n, err := c.anyNode(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := n.pages.ListSlruSegments(ctx, &pb.ListSlruSegmentsRequest{At: positionToWire(at), Slru: uint32(slru), TimeoutMs: timeoutMS(ctx)})
	if err != nil {
		return nil, fromGRPC(n.address, err)
	}
	var segments []SLRUSegment
	for _, s := range resp.Segments {
		segments = append(segments, SLRUSegment{s.Number, s.Pages})
	}
	return segments, nil
}

// SLRUSegment is the content of one segment of an SLRU.
func (c *Client) SLRUSegment(ctx context.Context, at Position, slru pg.SLRU, segment uint32) ([]byte, error) {
	n, err := c.anyNode(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := n.pages.GetSlruSegment(ctx, &pb.GetSlruSegmentRequest{At: positionToWire(at), Slru: uint32(slru), Segment: segment, TimeoutMs: timeoutMS(ctx)})
	if err != nil {
		return nil, fromGRPC(n.address, err)
	}
	return resp.Pages, nil
}

// History lists the versions of a page at or below the position, newest first.
func (c *Client) History(ctx context.Context, at Position, key pg.PageKey, limit int) ([]Version, pg.LSN, error) {
	n, err := c.anyNode(ctx)
	if err != nil {
		return nil, 0, err
	}
	resp, err := n.pages.GetPageHistory(ctx, &pb.GetPageHistoryRequest{At: positionToWire(at), Rel: relToWire(key.RelFork), Block: key.Block, Limit: uint32(limit)})
	if err != nil {
		return nil, 0, fromGRPC(n.address, err)
	}
	var versions []Version
	for _, v := range resp.Versions {
		versions = append(versions, Version{LSN: pg.LSN(v.Lsn), Kind: v.Kind, Record: v.Record, Bytes: int(v.Bytes)})
	}
	return versions, pg.LSN(resp.Lsn), nil
}

// State is all that a data directory needs beside pages.
func (c *Client) State(ctx context.Context, at Position) (*ClusterState, error) {
	n, err := c.anyNode(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := n.pages.GetClusterState(ctx, &pb.GetClusterStateRequest{At: positionToWire(at), TimeoutMs: timeoutMS(ctx)})
	if err != nil {
		return nil, fromGRPC(n.address, err)
	}
	st, err := stateFromWire(resp)
	if err != nil {
		return nil, Errorf(Internal, "node %s: %w", n.address, err)
	}
	return st, nil
}

// Resolve turns a target into an LSN.
func (c *Client) Resolve(ctx context.Context, t Target) (*Resolution, error) {
	n, err := c.anyNode(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := n.pages.ResolveTarget(ctx, &pb.ResolveTargetRequest{Target: targetToWire(t)})
	if err != nil {
		return nil, fromGRPC(n.address, err)
	}
	r := &Resolution{LSN: pg.LSN(resp.Lsn), Note: resp.Note}
	for _, e := range resp.Around {
		r.Around = append(r.Around, CommitEntry{
			Start: pg.LSN(e.StartLsn), End: pg.LSN(e.EndLsn), Kind: e.Kind, XID: e.Xid, Time: pg.Timestamp(e.TimeUs), Name: e.Name,
		})
	}
	return r, nil
}
