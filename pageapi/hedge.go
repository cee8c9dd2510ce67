package pageapi

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"everpage/wal/pg"
)

// hedgeBudget bounds hedges to a share of requests, whatever the latencies are: where all nodes are slow, asking twice makes them slower.
type hedgeBudget struct{ tokens atomic.Int64 }

const (
	hedgeEarn  = 5   // hundredths of a hedge that each request earns: 5 % of requests
	hedgeSaved = 500 // the most that is saved up: five hedges at once
)

func (b *hedgeBudget) earn() {
	if b.tokens.Load() < hedgeSaved {
		b.tokens.Add(hedgeEarn)
	}
}

func (b *hedgeBudget) take() bool {
	if b.tokens.Add(-100) >= 0 {
		return true
	}
	b.tokens.Add(100)
	return false
}

// try reads from one node. Where it takes longer than usual and there is another replica, that is asked too. Beyond limit (0: none but ctx's) the
// node is given up and suspect.
func (c *Client) try(ctx context.Context, n, other *node, q *query, limit time.Duration) (pg.LSN, error) {
	s := n.borrow()
	reused := s.lastID != 0
	lsn, err := c.tryStream(ctx, s, other, q, limit)
	if reused && isTransport(err) && ctx.Err() == nil {
		// The connection may be of a node that has started again since.
		n.dropIdle()
		lsn, err = c.tryStream(ctx, n.borrow(), other, q, limit)
	}
	return lsn, c.blame(n, err)
}

func (c *Client) tryStream(ctx context.Context, s *pageStream, other *node, q *query, limit time.Duration) (pg.LSN, error) {
	n := s.n
	began := time.Now()
	stop := context.AfterFunc(ctx, s.cancel)
	var w *watch
	if limit > 0 {
		w = c.watch(ctx, s, other, q, limit)
	}
	lsn, err := c.ask(s, q, q.dst)
	took := time.Since(began)
	untouched := stop()
	gaveUp := false
	if w != nil {
		end := w.end(err == nil)
		gaveUp = end.late
		untouched = untouched && !end.cancelled
		if err != nil && end.answered {
			n.took(len(q.blocks), took)
			s.cancel()
			return end.lsn, nil
		}
	}
	if untouched && keepsStream(err) {
		n.giveBack(s)
	} else {
		s.cancel()
	}
	switch {
	case err == nil:
		n.took(len(q.blocks), took)
		return lsn, nil
	case ctx.Err() != nil:
		return 0, fromGRPC(n.address, context.Cause(ctx))
	case gaveUp:
		n.took(len(q.blocks), took)
		c.suspect(n)
		return 0, &slowError{Errorf(Unavailable, "node %s did not answer for %s", n.address, limit)}
	}
	return 0, err
}

// blame makes the node suspect if it, not one request, is at fault, and makes the error one of the package's own.
func (c *Client) blame(n *node, err error) error {
	var t *transportError
	if !errors.As(err, &t) {
		return err
	}
	err = fromGRPC(n.address, t.err)
	switch CodeOf(err) {
	case Exhausted, Invalid: // it has answered
	default:
		c.suspect(n)
	}
	return err
}

// ask sends a query on a stream and verifies what comes back.
func (c *Client) ask(s *pageStream, q *query, dst []byte) (pg.LSN, error) {
	s.n.waiting.Add(1)
	defer s.n.waiting.Add(-1)
	if err := s.exchange(q.request(), dst); err != nil {
		return 0, &transportError{err}
	}
	return c.verify(s.n, q, s.lastID, &s.answer)
}

// transportError is of a stream that ended, not of an answer on it.
type transportError struct{ err error }

func (e *transportError) Error() string { return e.err.Error() }
func (e *transportError) Unwrap() error { return e.err }

// isTransport tells that the node, not one request, is at fault.
func isTransport(err error) bool {
	var t *transportError
	return errors.As(err, &t)
}

// keepsStream tells whether a stream can be used again after an outcome: it has answered, and what was asked.
func keepsStream(err error) bool {
	return err == nil || !isTransport(err) && CodeOf(err) != Corrupt
}

// watch is what happens beside a request that takes long: first a hedge, in the end giving up.
type watch struct {
	c       *Client
	ctx     context.Context
	primary *pageStream
	other   *node
	q       query  // a copy, whose dst is the hedge's own
	dst     []byte // of the request
	left    time.Duration
	timer   *time.Timer

	mu     sync.Mutex
	over   bool               // the primary has answered or failed; it is not touched any more
	late   bool               // the primary was given up
	won    bool               // the hedge was first, and has cancelled the primary
	cancel context.CancelFunc // of the hedge; nil while there is none
	result chan hedgeResult
}

type hedgeResult struct {
	lsn pg.LSN
	err error
}

func (c *Client) watch(ctx context.Context, s *pageStream, other *node, q *query, limit time.Duration) *watch {
	w := &watch{c: c, ctx: ctx, primary: s, other: other, q: *q, dst: q.dst, left: limit}
	first := limit
	if other != nil {
		first = min(limit, s.n.patience(len(q.blocks)))
	}
	w.left = limit - first
	w.mu.Lock()
	w.timer = time.AfterFunc(first, w.fire)
	w.mu.Unlock()
	return w
}

// fire runs when the request has taken as long as the first time, then as the second time.
func (w *watch) fire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.over:
	case w.left <= 0:
		w.late = true
		w.primary.cancel()
	default:
		if w.c.budget.take() && !w.launch() {
			w.c.budget.tokens.Add(100)
		}
		w.timer.Reset(w.left)
		w.left = 0
	}
}

// launch asks the other replica. If it has the answer first, the primary is given up.
func (w *watch) launch() bool {
	ctx, cancel := context.WithCancel(w.ctx)
	w.result = make(chan hedgeResult, 1)
	ok := w.c.beside(func() {
		defer cancel()
		w.q.dst = make([]byte, len(w.q.blocks)*pg.BlockSize)
		s := w.other.borrow()
		stop := context.AfterFunc(ctx, s.cancel)
		began := time.Now()
		lsn, err := w.c.ask(s, &w.q, w.q.dst)
		if untouched := stop(); untouched && keepsStream(err) {
			w.other.took(len(w.q.blocks), time.Since(began))
			w.other.giveBack(s)
		} else {
			s.cancel()
			if untouched {
				err = w.c.blame(w.other, err)
			}
		}
		w.result <- hedgeResult{lsn, err}
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil && !w.over {
			w.won = true
			w.primary.cancel()
		}
	})
	if !ok {
		cancel()
		w.result = nil
		return false
	}
	w.cancel = cancel
	w.c.counts.hedges.Add(1)
	return true
}

// watchEnd is how a watch has ended.
type watchEnd struct {
	cancelled bool   // the primary's stream is of no more use
	late      bool   // the primary was given up
	answered  bool   // by the hedge; the answer is in place
	lsn       pg.LSN // of the hedge's answer
}

// end stops the watch. If the primary failed and a hedge is under way it waits for that, and puts its answer in place.
func (w *watch) end(ok bool) (e watchEnd) {
	w.timer.Stop()
	w.mu.Lock()
	w.over = true
	cancel := w.cancel
	e.late, e.cancelled = w.late, w.late || w.won
	w.mu.Unlock()
	switch {
	case cancel == nil:
		return e
	case ok:
		cancel()
		return e
	}
	// The hedge is of no use for longer than a try may take.
	limit := time.AfterFunc(tryBase+time.Duration(len(w.q.blocks))*tryPage+w.q.wait, cancel)
	defer limit.Stop()
	if r := <-w.result; r.err == nil {
		copy(w.dst, w.q.dst)
		e.answered, e.lsn = true, r.lsn
	}
	return e
}

// suspect takes note of a node that doesn't answer, and waits beside for it to answer again.
func (c *Client) suspect(n *node) {
	if n.suspect.Swap(true) {
		return
	}
	c.counts.suspects.Add(1)
	n.dropIdle()
	if !c.beside(func() { c.probe(n) }) {
		n.suspect.Store(false)
	}
}

// How a suspect node is asked whether it is back.
const (
	probePatience = time.Second
	probeFirst    = 50 * time.Millisecond
	probeMost     = 2 * time.Second
)

func (c *Client) probe(n *node) {
	for wait := probeFirst; ; wait = min(2*wait, probeMost) {
		if pause(c.ctx, wait) != nil {
			return
		}
		ctx, cancel := context.WithTimeout(c.ctx, probePatience)
		_, err := c.fetchMap(ctx, n)
		cancel()
		if err == nil {
			n.forget()
			n.suspect.Store(false)
			return
		}
	}
}
