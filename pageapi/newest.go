package pageapi

import (
	"cmp"
	"context"
	"slices"
	"time"

	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// Each node receives and ingests WAL by itself, so that at one moment the newest LSN is not the same on all. Newest, to a client, is what the furthest
// of the nodes that answer has: what was seen once is seen again, whichever node is asked next. An owner that is behind is waited for.

// settleWait is how long other nodes may take to say how far they are once one has.
const settleWait = 250 * time.Millisecond

// reach is how far a node is.
type reach struct {
	n      *node
	branch uint32 // that the node means
	lsn    pg.LSN
}

// reaches asks all nodes that are not suspect how far they are, the furthest first. silent are those that did not say.
func (c *Client) reaches(ctx context.Context, branch uint32) (list []reach, silent int, err error) {
	nodes, err := c.anyNodes(Position{Branch: branch})
	if err != nil {
		return nil, 0, err
	}
	all := len(nodes)
	if healthy := slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return n.suspect.Load() }); len(healthy) > 0 {
		nodes = healthy
	}
	type answer struct {
		i      int
		branch uint32
		lsn    pg.LSN
		err    error
	}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(nodes))
	pending := map[int]bool{}
	for i, n := range nodes {
		pending[i] = c.beside(func() {
			r, err := c.resolveAt(ctx, n, Target{Branch: branch})
			a := answer{i: i, err: err}
			if err == nil {
				a.lsn, a.branch = r.LSN, r.Branch
			}
			answers <- a
		})
		if !pending[i] {
			return nil, all, Errorf(Unavailable, "the client is closed")
		}
	}
	var errs []error
	var late <-chan time.Time
	for len(pending) > 0 {
		select {
		case a := <-answers:
			delete(pending, a.i)
			if a.err != nil {
				c.blameCall(nodes[a.i], a.err)
				errs = append(errs, a.err)
				continue
			}
			nodes[a.i].has(branch, a.lsn)
			list = append(list, reach{nodes[a.i], a.branch, a.lsn})
			if late == nil {
				t := time.NewTimer(settleWait)
				defer t.Stop()
				late = t.C
			}
		case <-late:
			for i := range pending {
				c.suspect(nodes[i])
			}
			clear(pending)
		case <-outer.Done():
			errs = append(errs, fromGRPC(nodes[0].address, context.Cause(outer)))
			clear(pending)
		}
	}
	if len(list) == 0 {
		return nil, all, worst(errs)
	}
	// A node that has not heard of a failover yet means another branch by main. Numbers are given once, upwards.
	slices.SortStableFunc(list, func(a, b reach) int { return cmp.Or(cmp.Compare(b.branch, a.branch), cmp.Compare(b.lsn, a.lsn)) })
	list = slices.DeleteFunc(list, func(r reach) bool { return r.branch != list[0].branch })
	return list, all - len(list), nil
}

// settle gives a position without an LSN the newest one, and main its number. A single node does that itself.
func (c *Client) settle(ctx context.Context, at Position) (Position, error) {
	m, err := c.Map(ctx)
	switch {
	case err != nil || len(m.Nodes) < 2:
		return at, err
	case at.LSN == 0:
		return c.newest(ctx, at.Branch)
	case at.Branch == 0:
		at.Branch, err = c.mainBranch(ctx)
		at.Main = at.Branch != 0
	}
	return at, err
}

// newest is the newest position of a branch that can be read, by its number.
func (c *Client) newest(ctx context.Context, branch uint32) (Position, error) {
	list, _, err := c.reaches(ctx, branch)
	if err != nil {
		return Position{}, err
	}
	at := Position{Branch: branch, LSN: list[0].lsn}
	if list[0].branch != 0 {
		at.Branch = list[0].branch
	}
	return at, nil
}

// Resolve turns a target into an LSN, as the furthest node knows it.
func (c *Client) Resolve(ctx context.Context, t Target) (*Resolution, error) {
	if _, err := c.Map(ctx); err != nil {
		return nil, err
	}
	list, silent, err := c.reaches(ctx, t.Branch)
	if err != nil {
		return nil, err
	}
	if list[0].branch != 0 {
		t.Branch = list[0].branch
	}
	var errs []error
	for _, x := range list {
		r, err := c.resolveAt(ctx, x.n, t)
		switch {
		case err == nil:
			return r, nil
		case CodeOf(err) == NotFound && silent > 0:
			return nil, Errorf(NotFound, "%w (%d of the nodes did not say whether they are further)", err, silent)
		case !retried(err) || ctx.Err() != nil:
			return nil, err
		}
		c.blameCall(x.n, err)
		errs = append(errs, err)
	}
	return nil, worst(errs)
}

// resolveAt asks one node.
func (c *Client) resolveAt(ctx context.Context, n *node, t Target) (*Resolution, error) {
	req := &pb.ResolveTargetRequest{Target: targetToWire(t)}
	resp, err := n.pages.ResolveTarget(ctx, req)
	if err != nil {
		return nil, fromGRPC(n.address, err)
	}
	if err := check(n.address, "ResolveTarget", req, unary, resp); err != nil {
		return nil, err
	}
	r := &Resolution{LSN: pg.LSN(resp.Lsn), Note: resp.Note, Branch: resp.Branch}
	for _, e := range resp.Around {
		r.Around = append(r.Around, CommitEntry{
			Start: pg.LSN(e.StartLsn), End: pg.LSN(e.EndLsn), Kind: e.Kind, XID: e.Xid, Time: pg.Timestamp(e.TimeUs), Name: e.Name,
		})
	}
	return r, nil
}
