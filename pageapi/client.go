package pageapi

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// Client reads pages from a cluster. It is told any node's address, learns the shard map, and sends each page to a node that keeps it.
// It may be used by many goroutines.
type Client struct {
	seeds []string

	mu    sync.Mutex
	nodes map[string]*node

	shardMap atomic.Pointer[placement.Map]
	learn    sync.Mutex // held while the map is fetched, so that it is fetched once
}

// node is the connection to one node, with its idle page streams.
type node struct {
	address string
	conn    *grpc.ClientConn
	pages   pb.PageServiceClient
	idle    chan *pageStream
}

// idleStreams bounds the streams that are kept open to a node when nobody uses them.
const idleStreams = 16

// routeAttempts bounds how often one read follows newer maps or tries another replica.
const routeAttempts = 4

// pageStream is one GetPages stream, used by one request at a time.
type pageStream struct {
	stream grpc.BidiStreamingClient[pb.GetPagesRequest, pb.GetPagesResponse]
	cancel context.CancelFunc
	lastID uint64
}

// NewClient makes a client of the cluster that the nodes at these addresses (host:port) belong to. Nothing is connected yet.
func NewClient(addresses []string) (*Client, error) {
	if len(addresses) == 0 {
		return nil, Errorf(Invalid, "no server is named: want HOST:PORT, as in 127.0.0.1:5430")
	}
	return &Client{seeds: addresses, nodes: map[string]*node{}}, nil
}

// Close ends all connections.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, n := range c.nodes {
		for {
			select {
			case s := <-n.idle:
				s.cancel()
				continue
			default:
			}
			break
		}
		errs = append(errs, n.conn.Close())
	}
	clear(c.nodes)
	return errors.Join(errs...)
}

func (c *Client) node(address string) (*node, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.nodes[address]; n != nil {
		return n, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(8<<20))
	if err != nil {
		return nil, Errorf(Invalid, "server address %q: %w", address, err)
	}
	n := &node{address: address, conn: conn, pages: pb.NewPageServiceClient(conn), idle: make(chan *pageStream, idleStreams)}
	c.nodes[address] = n
	return n, nil
}

// Admin is the management service of the first node that answers.
func (c *Client) Admin(ctx context.Context) (pb.AdminServiceClient, string, error) {
	n, err := c.anyNode(ctx)
	if err != nil {
		return nil, "", err
	}
	return pb.NewAdminServiceClient(n.conn), n.address, nil
}

// CallError turns what a call of the admin service returned into an Error.
func CallError(address string, err error) error { return fromGRPC(address, err) }

// anyNode learns the map from the first seed that answers.
func (c *Client) anyNode(ctx context.Context) (*node, error) {
	var errs []error
	for _, address := range c.seeds {
		n, err := c.node(address)
		if err != nil {
			return nil, err
		}
		if _, err := c.fetchMap(ctx, n); err != nil {
			errs = append(errs, err)
			continue
		}
		return n, nil
	}
	return nil, Errorf(Unavailable, "no server answers; is a node running there (everpage serve), and is --server right?\n%w", errors.Join(errs...))
}

func (c *Client) fetchMap(ctx context.Context, n *node) (*placement.Map, error) {
	resp, err := n.pages.GetShardMap(ctx, &pb.GetShardMapRequest{})
	if err != nil {
		return nil, fromGRPC(n.address, err)
	}
	m, err := mapFromWire(resp)
	if err != nil {
		return nil, Errorf(Internal, "node %s: %w", n.address, err)
	}
	return c.adopt(m), nil
}

// adopt keeps the newer of two maps.
func (c *Client) adopt(m *placement.Map) *placement.Map {
	for {
		old := c.shardMap.Load()
		if old != nil && old.Epoch >= m.Epoch {
			return old
		}
		if c.shardMap.CompareAndSwap(old, m) {
			return m
		}
	}
}

// Map is the newest shard map that the client knows.
func (c *Client) Map(ctx context.Context) (*placement.Map, error) {
	if m := c.shardMap.Load(); m != nil {
		return m, nil
	}
	c.learn.Lock()
	defer c.learn.Unlock()
	if m := c.shardMap.Load(); m != nil {
		return m, nil
	}
	if _, err := c.anyNode(ctx); err != nil {
		return nil, err
	}
	return c.shardMap.Load(), nil
}

// Pages reads blocks of one fork at one position into dst, 8192 bytes each, in the order of blocks. It returns the LSN that was read.
// The blocks may lie in any shards; a position without an LSN is settled once, so that all pages are of one LSN.
func (c *Client) Pages(ctx context.Context, at Position, rel pg.RelFork, blocks []pg.BlockNumber, dst []byte) (pg.LSN, error) {
	if len(dst) < len(blocks)*pg.BlockSize {
		return 0, Errorf(Invalid, "the buffer holds %d bytes, %d pages need %d", len(dst), len(blocks), len(blocks)*pg.BlockSize)
	}
	for _, run := range c.runs(rel, blocks) {
		lsn, err := c.batch(ctx, at, rel, blocks[run.from:run.to], dst[run.from*pg.BlockSize:run.to*pg.BlockSize])
		if err != nil {
			return 0, err
		}
		at.LSN = lsn
	}
	return at.LSN, nil
}

// run is a stretch of a batch that one request may carry.
type run struct{ from, to int }

// runs cuts a batch where the shard changes and at MaxBatch.
func (c *Client) runs(rel pg.RelFork, blocks []pg.BlockNumber) []run {
	m := c.shardMap.Load()
	var runs []run
	for i, b := range blocks {
		if n := len(runs); n > 0 && i-runs[n-1].from < MaxBatch &&
			(m == nil || m.Shard(pg.PageKey{RelFork: rel, Block: b}) == m.Shard(pg.PageKey{RelFork: rel, Block: blocks[i-1]})) {
			runs[n-1].to = i + 1
			continue
		}
		runs = append(runs, run{i, i + 1})
	}
	return runs
}

// batch reads blocks of one shard from one of its owners.
func (c *Client) batch(ctx context.Context, at Position, rel pg.RelFork, blocks []pg.BlockNumber, dst []byte) (pg.LSN, error) {
	var err error
	for attempt := range routeAttempts {
		var m *placement.Map
		if m, err = c.Map(ctx); err != nil {
			return 0, err
		}
		owners := m.Owners(pg.PageKey{RelFork: rel, Block: blocks[0]})
		if len(owners) == 0 {
			return 0, Errorf(Unavailable, "no node keeps %s block %d in the shard map of epoch %d", rel, blocks[0], m.Epoch)
		}
		var n *node
		if n, err = c.node(owners[attempt%len(owners)].Address); err != nil {
			return 0, err
		}
		var lsn pg.LSN
		lsn, err = c.ask(ctx, n, at, rel, blocks, dst, m.Epoch)
		if err == nil {
			return lsn, nil
		}
		switch CodeOf(err) {
		case WrongOwner:
			continue // ask has adopted the newer map
		case Unavailable:
			if ctx.Err() == nil && len(owners) > 1 {
				continue
			}
		}
		return 0, err
	}
	return 0, err
}

// ask sends one request on an idle stream of the node. A stream on which anything went wrong is never used again.
func (c *Client) ask(ctx context.Context, n *node, at Position, rel pg.RelFork, blocks []pg.BlockNumber, dst []byte, epoch uint64) (pg.LSN, error) {
	s, err := n.borrow()
	if err != nil {
		return 0, err
	}
	s.lastID++
	req := &pb.GetPagesRequest{Id: s.lastID, At: positionToWire(at), Rel: relToWire(rel), Blocks: blocks, MapEpoch: epoch, TimeoutMs: timeoutMS(ctx)}
	stop := context.AfterFunc(ctx, s.cancel)
	resp, err := s.exchange(req)
	if !stop() || err != nil {
		s.cancel()
		if err == nil || ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return 0, fromGRPC(n.address, err)
	}
	if err := errorOf(resp.Status); err != nil {
		if resp.Map != nil {
			if m, mapErr := mapFromWire(resp.Map); mapErr == nil {
				c.adopt(m)
			}
		}
		n.giveBack(s)
		return 0, err
	}
	got, relErr := relFromWire(resp.Rel)
	read := Position{at.Branch, pg.LSN(resp.Lsn)}
	switch {
	case resp.Id != req.Id, relErr != nil, got != rel, !slices.Equal(resp.Blocks, blocks), len(resp.Pages) != len(blocks)*pg.BlockSize,
		at.LSN != 0 && read.LSN != at.LSN, resp.Checksum != pagesChecksum(read, rel, blocks, resp.Pages):
		s.cancel()
		return 0, Errorf(Corrupt, "node %s answered something else than %s block %d at %s was asked for", n.address, rel, blocks[0], at.LSN)
	}
	copy(dst, resp.Pages)
	n.giveBack(s)
	return read.LSN, nil
}

func (s *pageStream) exchange(req *pb.GetPagesRequest) (*pb.GetPagesResponse, error) {
	if err := s.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return s.stream.Recv() // where Send said EOF this tells why the stream ended
}

func (n *node) borrow() (*pageStream, error) {
	select {
	case s := <-n.idle:
		return s, nil
	default:
	}
	ctx, cancel := context.WithCancel(context.Background()) // the stream outlives the request; ask cancels it when the request's context ends
	stream, err := n.pages.GetPages(ctx)
	if err != nil {
		cancel()
		return nil, fromGRPC(n.address, err)
	}
	return &pageStream{stream: stream, cancel: cancel}, nil
}

func (n *node) giveBack(s *pageStream) {
	select {
	case n.idle <- s:
	default:
		s.cancel()
	}
}
