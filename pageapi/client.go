package pageapi

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
)

// Client reads from a cluster. It is told the address of any node, learns the shard map, and sends each page to a node that keeps it: the fastest that is
// healthy. A slow answer is asked of another replica too (a hedge), a node that doesn't answer is left alone until it does again, and what a node
// says of a newer map is followed. One node may die at any moment, and reads go on with another replica.
//
// It may be used by many goroutines.
type Client struct {
	seeds []string

	ctx    context.Context // ends with Close: that of what runs beside requests
	cancel context.CancelFunc
	work   sync.WaitGroup // hedges and probes

	mu     sync.Mutex
	closed bool
	nodes  map[string]*node

	main     mainBranch
	shardMap atomic.Pointer[placement.Map]
	learn    sync.Mutex // held while the map is fetched, so that it is fetched once
	budget   hedgeBudget
	counts   struct{ requests, hedges, wrongOwner, suspects atomic.Uint64 }
}

// Stats counts what a client did.
type Stats struct {
	Requests   uint64 // of pages, each to one owner
	Hedges     uint64 // requests that were sent to a second replica, since the first was slow
	WrongOwner uint64 // answers of nodes that don't keep the page any more
	Suspects   uint64 // times that a node was found not to answer
}

// Stats tells what the client did until now.
func (c *Client) Stats() Stats {
	return Stats{c.counts.requests.Load(), c.counts.hedges.Load(), c.counts.wrongOwner.Load(), c.counts.suspects.Load()}
}

// NewClient makes a client of the cluster that the nodes at these addresses (host:port) belong to. Nothing is connected yet.
func NewClient(addresses []string) (*Client, error) {
	c := &Client{nodes: map[string]*node{}}
	for _, a := range addresses {
		if a = strings.TrimSpace(a); a != "" && !slices.Contains(c.seeds, a) {
			c.seeds = append(c.seeds, a)
		}
	}
	if len(c.seeds) == 0 {
		return nil, Errorf(Invalid, "no server is named: want HOST:PORT, as in 127.0.0.1:5430")
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends all connections. Requests under way fail.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.cancel()
	var errs []error
	for _, n := range c.nodes {
		n.dropIdle()
		errs = append(errs, n.conn.Close())
	}
	c.mu.Unlock()
	c.work.Wait()
	return errors.Join(errs...)
}

// beside runs fn beside the request that asks for it; Close waits for it. It does not run if the client is closed.
func (c *Client) beside(fn func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.work.Go(fn)
	return true
}

// node is what is known of the node at an address.
func (c *Client) node(address string) (*node, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.nodes[address]; n != nil {
		return n, nil
	}
	if c.closed {
		return nil, Errorf(Unavailable, "the client is closed")
	}
	n, err := dial(c.ctx, address)
	if err != nil {
		return nil, err
	}
	c.nodes[address] = n
	return n, nil
}

// anyNodes are the nodes that may be asked what every node knows, the best first.
func (c *Client) anyNodes(at Position) ([]*node, error) {
	var addresses []string
	if m := c.shardMap.Load(); m != nil {
		for _, n := range m.Nodes {
			if n.Address != "" {
				addresses = append(addresses, n.Address)
			}
		}
	}
	if len(addresses) == 0 {
		addresses = c.seeds
	}
	return c.ordered(addresses, at, 1)
}

// Admin is the management service of the first node that answers.
func (c *Client) Admin(ctx context.Context) (pb.AdminServiceClient, string, error) {
	nodes, err := c.seedNodes()
	if err != nil {
		return nil, "", err
	}
	n, err := c.fetchMapFrom(ctx, nodes)
	if err != nil {
		return nil, "", err
	}
	return pb.NewAdminServiceClient(n.conn), n.address, nil
}

// Backup is the service around the store of the first node that answers.
func (c *Client) Backup(ctx context.Context) (pb.BackupServiceClient, string, error) {
	nodes, err := c.seedNodes()
	if err != nil {
		return nil, "", err
	}
	n, err := c.fetchMapFrom(ctx, nodes)
	if err != nil {
		return nil, "", err
	}
	return pb.NewBackupServiceClient(n.conn), n.address, nil
}

// CallError turns what a call of the admin service returned into an Error.
func CallError(address string, err error) error { return fromGRPC(address, err) }

// seedNodes are the nodes that the client was told, then all others that it knows.
func (c *Client) seedNodes() ([]*node, error) {
	addresses := slices.Clone(c.seeds)
	if m := c.shardMap.Load(); m != nil {
		for _, n := range m.Nodes {
			if n.Address != "" && !slices.Contains(addresses, n.Address) {
				addresses = append(addresses, n.Address)
			}
		}
	}
	nodes := make([]*node, 0, len(addresses))
	for _, a := range addresses {
		n, err := c.node(a)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	slices.SortStableFunc(nodes, func(a, b *node) int { return cmp.Compare(a.standing(), b.standing()) })
	return nodes, nil
}

// fetchMapFrom learns the map from the first of the nodes that answers, and tells which that was.
func (c *Client) fetchMapFrom(ctx context.Context, nodes []*node) (*node, error) {
	n, err := firstOf(c, ctx, nodes, mapPatience, func(ctx context.Context, n *node) (*node, error) {
		_, err := c.fetchMap(ctx, n)
		return n, err
	})
	if err != nil && CodeOf(err) == Unavailable {
		err = Errorf(Unavailable, "no server answers; is a node running there (everpage serve), and is --server right?\n%w", err)
	}
	return n, err
}

// mapPatience is how long one node may take to tell the map before another is asked as well.
const mapPatience = 250 * time.Millisecond

func (c *Client) fetchMap(ctx context.Context, n *node) (*placement.Map, error) {
	req := &pb.GetShardMapRequest{}
	resp, err := n.pages.GetShardMap(ctx, req)
	if err != nil {
		return nil, fromGRPC(n.address, err)
	}
	if err := check(n.address, "GetShardMap", req, unary, resp); err != nil {
		return nil, err
	}
	m, err := mapFromWire(resp)
	if err != nil {
		return nil, Errorf(Internal, "node %s: %w", n.address, err)
	}
	c.main.saw(resp.Main)
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
	return c.newerMap(ctx)
}

// newerMap asks for the map, whatever is known.
func (c *Client) newerMap(ctx context.Context) (*placement.Map, error) {
	nodes, err := c.seedNodes()
	if err != nil {
		return nil, err
	}
	if _, err := c.fetchMapFrom(ctx, nodes); err != nil {
		return nil, err
	}
	return c.shardMap.Load(), nil
}

// ordered are the nodes at these addresses in the order in which they should be asked for something at a position: those that answer first, of them
// those that are known to have the LSN, of them the quickest as far as one knows. Those that are about as quick stay in their order, which is the map's:
// it spreads the load, and keeps each page in the memory of one node.
func (c *Client) ordered(addresses []string, at Position, pages int) ([]*node, error) {
	type scored struct {
		n     *node
		score float64
	}
	list := make([]scored, 0, 8)
	best := math.Inf(1)
	for _, a := range addresses {
		n, err := c.node(a)
		if err != nil {
			return nil, err
		}
		s := n.score(at, pages)
		best = min(best, s)
		list = append(list, scored{n, s})
	}
	for i := range list {
		if list[i].score <= 2*best+about {
			list[i].score = best
		}
	}
	slices.SortStableFunc(list, func(a, b scored) int { return cmp.Compare(a.score, b.score) })
	nodes := make([]*node, len(list))
	for i, s := range list {
		nodes[i] = s.n
	}
	return nodes, nil
}

// about is by how many seconds a node may be slower than another and count as quick as that.
const about = 300e-6
