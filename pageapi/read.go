package pageapi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// Request is one read of a batch: blocks of one fork at one position.
type Request struct {
	At     Position
	Rel    pg.RelFork
	Blocks []pg.BlockNumber
	Dst    []byte // 8192 bytes a block, in their order; undefined if Err is set

	LSN pg.LSN // that was read
	Err error
}

// runsAtOnce bounds the requests that one call has under way.
const runsAtOnce = 8

// GetPages answers a batch of reads. Each has its own outcome, in LSN and Err.
func (c *Client) GetPages(ctx context.Context, batch []Request) {
	if len(batch) == 1 {
		r := &batch[0]
		r.LSN, r.Err = c.Pages(ctx, r.At, r.Rel, r.Blocks, r.Dst)
		return
	}
	var g errgroup.Group
	g.SetLimit(runsAtOnce)
	for i := range batch {
		g.Go(func() error {
			r := &batch[i]
			r.LSN, r.Err = c.Pages(ctx, r.At, r.Rel, r.Blocks, r.Dst)
			return nil
		})
	}
	g.Wait()
}

// Pages reads blocks of one fork at one position into dst, 8192 bytes each, in the order of blocks. It returns the LSN that was read.
// The blocks may lie in any shards; a position without an LSN is settled once, so that all pages are of one LSN.
func (c *Client) Pages(ctx context.Context, at Position, rel pg.RelFork, blocks []pg.BlockNumber, dst []byte) (pg.LSN, error) {
	if len(dst) < len(blocks)*pg.BlockSize {
		return 0, Errorf(Invalid, "the buffer holds %d bytes, %d pages need %d", len(dst), len(blocks), len(blocks)*pg.BlockSize)
	}
	m, err := c.Map(ctx)
	if err != nil {
		return 0, err
	}
	lsn := at.LSN
	err = c.settled(ctx, at, func(at Position) (err error) {
		lsn, err = c.settledPages(ctx, m, at, rel, blocks, dst)
		return err
	})
	return lsn, err
}

func (c *Client) settledPages(ctx context.Context, m *placement.Map, at Position, rel pg.RelFork, blocks []pg.BlockNumber, dst []byte) (_ pg.LSN, err error) {
	runs := runsOf(m, rel, blocks)
	if at.LSN == 0 && len(runs) > 1 { // of a single node: all its answers are to be of one branch, too
		if at, err = c.newest(ctx, at.Branch); err != nil {
			return 0, err
		}
	}
	read := func(ctx context.Context, r run) (pg.LSN, error) {
		q := query{at: at, rel: rel, blocks: blocks[r.from:r.to], dst: dst[r.from*pg.BlockSize : r.to*pg.BlockSize]}
		return c.run(ctx, &q)
	}
	if len(runs) == 0 {
		return at.LSN, nil
	}
	if len(runs) == 1 {
		return read(ctx, runs[0])
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runsAtOnce)
	for _, r := range runs {
		g.Go(func() error {
			_, err := read(gctx, r)
			return err
		})
	}
	return at.LSN, g.Wait()
}

// run is a stretch of a batch that one request may carry.
type run struct{ from, to int }

// runsOf cuts a batch where the owners may change, which is between chunks, and at MaxBatch.
func runsOf(m *placement.Map, rel pg.RelFork, blocks []pg.BlockNumber) []run {
	var runs []run
	var last placement.Chunk
	for i, b := range blocks {
		chunk := placement.ChunkOf(pg.PageKey{RelFork: rel, Block: b}, m.SegmentBlocks)
		if n := len(runs); n > 0 && i-runs[n-1].from < MaxBatch && (chunk == last || len(m.Nodes) == 1) {
			runs[n-1].to = i + 1
		} else {
			runs = append(runs, run{i, i + 1})
		}
		last = chunk
	}
	return runs
}

// query is a read of blocks of one chunk, as it goes to one node after another.
type query struct {
	at     Position
	rel    pg.RelFork
	blocks []pg.BlockNumber
	dst    []byte
	epoch  uint64 // of the map by which it was routed
	wait   time.Duration
}

func (q *query) String() string {
	return fmt.Sprintf("%s block %d at %s", q.rel, q.blocks[0], q.at.LSN)
}

func (q *query) request() *pb.GetPagesRequest {
	return &pb.GetPagesRequest{
		At: positionToWire(q.at), Rel: relToWire(q.rel), Blocks: q.blocks, MapEpoch: q.epoch, TimeoutMs: uint32(q.wait.Milliseconds()),
	}
}

// Bounds of a read's way from node to node.
const (
	maxFollows   = 6                      // rounds over owners that all refuse, fail at once or don't keep the page
	firstWait    = 20 * time.Millisecond  // how long a replica may wait for an LSN, while another may have it
	tryBase      = 250 * time.Millisecond // how long a replica may take for its answer, while another is left; doubles with each round
	tryPage      = 2 * time.Millisecond   // and for each page
	tryMost      = 8 * time.Second
	followsPause = 10 * time.Millisecond // between rounds, doubling
)

// run reads from an owner of the blocks. It goes over the replicas in rounds: what one can't answer, another may.
func (c *Client) run(ctx context.Context, q *query) (pg.LSN, error) {
	c.counts.requests.Add(1)
	c.budget.earn()
	began := time.Now()
	follows := 0
	var why error
	for round := 0; ; round++ {
		m, err := c.Map(ctx)
		if err != nil {
			return 0, err
		}
		owners := m.Owners(pg.PageKey{RelFork: q.rel, Block: q.blocks[0]})
		q.epoch = m.Epoch
		var outcome roundOutcome
		if len(owners) == 0 {
			outcome.err = Errorf(Unavailable, "no node keeps %s in the shard map of epoch %d", q, m.Epoch)
		} else {
			addresses := make([]string, len(owners))
			for i, o := range owners {
				addresses[i] = o.Address
			}
			nodes, err := c.ordered(addresses, q.at, len(q.blocks))
			if err != nil {
				return 0, err
			}
			lsn, final, o := c.round(ctx, q, nodes, round)
			if final && o.err != nil && ctx.Err() != nil && why != nil {
				o.err = why // what the nodes said tells more than that the time is over
			}
			if final {
				return lsn, o.err
			}
			if outcome = o; o.patient {
				why = o.err
			}
		}
		if ctx.Err() != nil || !outcome.patient && len(m.Nodes) == 1 && c.shardMap.Load().Epoch == m.Epoch {
			return 0, outcome.err
		}
		if c.ctx.Err() != nil {
			return 0, Errorf(Unavailable, "the client is closed")
		}
		if _, bounded := ctx.Deadline(); outcome.patient && !bounded && time.Since(began) > DefaultWait {
			return 0, outcome.err
		}
		if !outcome.patient {
			if follows++; follows > maxFollows {
				return 0, outcome.err
			}
		}
		if err := c.between(ctx, m, outcome, follows, round); err != nil {
			return 0, outcome.err
		}
	}
}

// roundOutcome is why a round over the replicas brought no page.
type roundOutcome struct {
	err     error
	patient bool // the replicas are there: waiting longer may help
}

// between waits a little, and learns the newer map where all replicas refused or failed.
func (c *Client) between(ctx context.Context, m *placement.Map, o roundOutcome, follows, round int) error {
	if c.shardMap.Load().Epoch > m.Epoch && follows <= 2 {
		return nil // there is something new to try
	}
	if !o.patient && len(m.Nodes) > 1 {
		short, cancel := context.WithTimeout(ctx, tryBase*2)
		if newer, err := c.newerMap(short); err == nil && newer.Epoch > m.Epoch {
			cancel()
			return nil
		}
		cancel()
	}
	return pause(ctx, followsPause<<min(round, 5))
}

// pause waits about d.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// round asks the replicas one after another. final tells that err, or its absence, is the answer.
func (c *Client) round(ctx context.Context, q *query, nodes []*node, round int) (lsn pg.LSN, final bool, o roundOutcome) {
	best := OK
	for i, n := range nodes {
		if i > 0 && o.patient && n.suspect.Load() {
			break // those that answer are waited for, not those that don't
		}
		limit := time.Duration(0)
		q.wait = time.Duration(timeoutMS(ctx)) * time.Millisecond
		if len(nodes) > 1 {
			limit = min(tryMost, (tryBase+time.Duration(len(q.blocks))*tryPage)<<min(round, 5))
			wait := firstWait
			if round > 0 {
				wait = min(time.Second, firstWait<<(2*min(round, 3)))
			}
			if q.wait == 0 || q.wait > wait {
				q.wait = wait
			}
			limit += q.wait
		}
		var other *node
		if i+1 < len(nodes) && !nodes[i+1].suspect.Load() {
			other = nodes[i+1]
		}
		lsn, err := c.try(ctx, n, other, q, limit)
		if err == nil {
			return lsn, true, roundOutcome{}
		}
		code := CodeOf(err)
		switch code {
		case NotFound, OutOfWindow, Invalid, MainMoved:
			return 0, true, roundOutcome{err: err}
		case WrongOwner:
			c.counts.wrongOwner.Add(1)
			if c.shardMap.Load().Epoch > q.epoch { // try has adopted the newer map
				return 0, false, roundOutcome{err: err}
			}
		}
		if ctx.Err() != nil {
			if o.patient {
				err = o.err // what a node said tells more than that the time is over
			}
			return 0, true, roundOutcome{err: err}
		}
		var slow *slowError
		o.patient = o.patient || code == Exhausted || errors.As(err, &slow)
		// What a node knows of the page tells more than that another node is away.
		if o.err == nil || telling(code) > telling(best) {
			o.err, best = err, code
		}
	}
	if len(nodes) == 1 {
		var slow *slowError
		final = best == Internal || best == Corrupt || errors.As(o.err, &slow)
	}
	if round > 0 && (best == Corrupt || best == Internal) {
		final = true
	}
	return 0, final, o
}

func telling(code Code) int {
	switch code {
	case Corrupt:
		return 4
	case Internal:
		return 3
	case Exhausted, WrongOwner:
		return 2
	}
	return 1
}

// slowError is of a node that is there but did not have the answer in the time that it was given.
type slowError struct{ err error }

func (e *slowError) Error() string { return e.err.Error() }
func (e *slowError) Unwrap() error { return e.err }

// verify holds an answer against what was asked for.
func (c *Client) verify(n *node, q *query, id uint64, a *pagesAnswer) (pg.LSN, error) {
	if a.broken != nil {
		return 0, Errorf(Corrupt, "node %s: answer for %s: %w", n.address, q, a.broken)
	}
	if a.readable != 0 {
		n.has(q.at.Branch, a.readable)
	}
	if err := errorOf(a.status); err != nil {
		if a.shardMap != nil {
			if m, mapErr := mapFromWire(a.shardMap); mapErr == nil {
				c.main.saw(a.shardMap.Main)
				c.adopt(m)
			}
		}
		if CodeOf(err) == Unavailable { // not yet
			err = &slowError{err}
		}
		return 0, err
	}
	read := Position{Branch: q.at.Branch, LSN: a.lsn}
	switch {
	case a.id != id, a.rel != q.rel, !slices.Equal(a.blocks, q.blocks), a.n != len(q.blocks)*pg.BlockSize,
		q.at.LSN != 0 && read.LSN != q.at.LSN, a.checksum != pagesChecksum(read, q.rel, q.blocks, a.dst[:a.n]):
		return 0, Errorf(Corrupt, "node %s answered something else than %s, which was asked for", n.address, q)
	}
	return read.LSN, nil
}
