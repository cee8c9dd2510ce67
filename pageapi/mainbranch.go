package pageapi

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Main moves when the primary fails over, and each node hears of that in its own time. One that has not would answer an LSN beyond the switch from the timeline
// that was left. So a client finds out which branch main is from all nodes, and sends its number with each read of main: a node that has not heard of it waits, one
// that knows of a newer one refuses, and the client finds out anew.

// mainBranch is what a client knows of main.
type mainBranch struct {
	number atomic.Uint32 // the highest that was seen: numbers are given once, upwards. 0: none
	asked  atomic.Int64  // when all nodes were asked last, in nanoseconds of the client's clock; 0: never
	asking sync.Mutex
}

// mainFresh is how long what all nodes said of main is relied on.
const mainFresh = time.Second

// maxMoves is how often a read begins anew because main has moved.
const maxMoves = 3

func (m *mainBranch) saw(number uint32) {
	for old := m.number.Load(); number > old && !m.number.CompareAndSwap(old, number); old = m.number.Load() {
	}
}

var clockStart = time.Now()

// mainBranch is the number of main, as far as any of the nodes that answer has heard; 0 if there is none.
func (c *Client) mainBranch(ctx context.Context) (uint32, error) {
	began := time.Since(clockStart)
	fresh := func() bool { asked := c.main.asked.Load(); return asked != 0 && began-time.Duration(asked) < mainFresh }
	if fresh() {
		return c.main.number.Load(), nil
	}
	c.main.asking.Lock()
	defer c.main.asking.Unlock()
	if fresh() { // another one has asked meanwhile
		return c.main.number.Load(), nil
	}
	return c.askMain(ctx)
}

// askMain asks all nodes. Those that are suspect, or take long once one has answered, are not waited for.
func (c *Client) askMain(ctx context.Context) (uint32, error) {
	began := time.Since(clockStart)
	nodes, err := c.anyNodes(Position{})
	if err != nil {
		return 0, err
	}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		i   int
		err error
	}
	answers := make(chan answer, len(nodes))
	pending := map[int]bool{} // with whether it is waited for
	awaited := 0
	for i, n := range nodes {
		if !c.beside(func() {
			_, err := c.fetchMap(ctx, n)
			answers <- answer{i, err}
		}) {
			return 0, Errorf(Unavailable, "the client is closed")
		}
		if pending[i] = !n.suspect.Load(); pending[i] {
			awaited++
		}
	}
	var errs []error
	var late <-chan time.Time
	answered := false
	for len(pending) > 0 && !(answered && awaited == 0) {
		select {
		case a := <-answers:
			if pending[a.i] {
				awaited--
			}
			delete(pending, a.i)
			if a.err != nil {
				c.blameCall(nodes[a.i], a.err)
				errs = append(errs, a.err)
				continue
			}
			answered = true
			if late == nil {
				t := time.NewTimer(settleWait)
				defer t.Stop()
				late = t.C
			}
		case <-late:
			for i, healthy := range pending {
				if healthy {
					c.suspect(nodes[i])
				}
			}
			awaited = 0
		case <-outer.Done():
			errs = append(errs, fromGRPC(nodes[0].address, context.Cause(outer)))
			clear(pending)
		}
	}
	known := c.main.number.Load()
	switch {
	case answered:
		c.main.asked.Store(int64(max(1, began)))
	case known == 0:
		return 0, worst(errs)
	}
	return known, nil
}

// settled reads at a settled position, anew where main turns out to have moved.
func (c *Client) settled(ctx context.Context, at Position, read func(at Position) error) error {
	for try := 0; ; try++ {
		pos, err := c.settle(ctx, at)
		if err != nil {
			return err
		}
		if err = read(pos); CodeOf(err) != MainMoved {
			return err
		}
		if try == maxMoves || ctx.Err() != nil {
			return Errorf(Unavailable, "%w", err)
		}
		c.main.asked.Store(0)
	}
}

// movedSince is a listing's error: one that was told in part can't begin anew.
func movedSince(told bool, err error) error {
	if told && CodeOf(err) == MainMoved {
		return Errorf(Unavailable, "%w", err)
	}
	return err
}
