package pageapi

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/protobuf/proto"
)

// retried tells whether another node may answer what one did not.
func retried(err error) bool {
	switch CodeOf(err) {
	case NotFound, OutOfWindow, Invalid, MainMoved:
		return false
	}
	return true
}

// blameCall makes a node suspect that a call could not reach.
func (c *Client) blameCall(n *node, err error) {
	if CodeOf(err) == Unavailable && n.conn.GetState() == connectivity.TransientFailure {
		c.suspect(n)
	}
}

// firstOf calls one node after another until one answers: the next one where a node fails, or also where it takes longer than patience.
func firstOf[T any](c *Client, ctx context.Context, nodes []*node, patience time.Duration, call func(context.Context, *node) (T, error)) (T, error) {
	var none T
	if len(nodes) == 1 {
		v, err := call(ctx, nodes[0])
		c.blameCall(nodes[0], err)
		return v, err
	}
	type outcome struct {
		i   int
		v   T
		err error
	}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan outcome, len(nodes))
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var errs []error
	pending := map[int]bool{}
	next := 0
	launch := func() bool {
		if next == len(nodes) {
			return false
		}
		i := next
		next++
		pending[i] = true
		timer.Reset(patience)
		return c.beside(func() {
			v, err := call(ctx, nodes[i])
			results <- outcome{i, v, err}
		})
	}
	if !launch() {
		return none, Errorf(Unavailable, "there is no node to ask, or the client is closed")
	}
	for {
		select {
		case r := <-results:
			delete(pending, r.i)
			if r.err == nil || !retried(r.err) {
				for i := range pending {
					c.suspect(nodes[i]) // the probe finds out at once whether it was only slow
				}
				return r.v, r.err
			}
			c.blameCall(nodes[r.i], r.err)
			errs = append(errs, r.err)
			if !launch() && len(pending) == 0 {
				return none, worst(errs)
			}
		case <-timer.C:
			launch()
		case <-outer.Done():
			errs = append(errs, fromGRPC(nodes[0].address, context.Cause(outer)))
			return none, worst(errs)
		}
	}
}

// worst is the error that tells most, with the others where all are of the same kind.
func worst(errs []error) error {
	best := errs[0]
	same := true
	for _, err := range errs[1:] {
		same = same && CodeOf(err) == CodeOf(best)
		if telling(CodeOf(err)) > telling(CodeOf(best)) {
			best = err
		}
	}
	if len(errs) > 1 && same {
		return &Error{CodeOf(best), errors.Join(errs...)}
	}
	return best
}

// silence is how long a node may send nothing in the middle of an answer while there is another one to ask.
const silence = 2 * time.Second

// listing reads an answer of many messages to its end. It goes on with another node where one fails: all give the same parts at one LSN, and each is
// told how far one got. each gets every message once, with whether the first of them were seen before.
type listing[T any, M interface {
	*T
	summed
	GetLast() bool
}] struct {
	method  string
	request func() proto.Message // with what is known by now
	open    func(context.Context, *node, proto.Message) (grpc.ServerStreamingClient[T], error)
	begin   func()        // a node begins anew
	each    func(M) error // an error ends everything
}

// callbackError is of the one who reads a listing.
type callbackError struct{ err error }

func (e *callbackError) Error() string { return e.err.Error() }

// from reads the listing of one node.
func (l *listing[T, M]) from(ctx context.Context, n *node, quiet time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var timer *time.Timer
	if quiet > 0 {
		timer = time.AfterFunc(quiet, func() { cancel(Errorf(Unavailable, "node %s sent nothing for %s", n.address, quiet)) })
		defer timer.Stop()
	}
	req := l.request()
	stream, err := l.open(ctx, n, req)
	if err != nil {
		return fromGRPC(n.address, err)
	}
	l.begin()
	last := false
	for i := 0; ; i++ {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && last:
			return nil
		case errors.Is(err, io.EOF):
			return Errorf(Corrupt, "node %s: the answer to %s ended before its end", n.address, l.method)
		case err != nil && context.Cause(ctx) != nil:
			return fromGRPC(n.address, context.Cause(ctx))
		case err != nil:
			return fromGRPC(n.address, err)
		case last:
			return Errorf(Corrupt, "node %s: the answer to %s goes on behind its end", n.address, l.method)
		}
		if timer != nil {
			timer.Reset(quiet)
		}
		m := M(resp)
		if err := check(n.address, l.method, req, i, m); err != nil {
			return err
		}
		last = m.GetLast()
		if err := l.each(m); err != nil {
			return &callbackError{err}
		}
	}
}

// run reads the listing of the first of the nodes that gives it whole.
func (l *listing[T, M]) run(ctx context.Context, c *Client, nodes []*node) error {
	var errs []error
	for _, n := range nodes {
		quiet := time.Duration(0)
		if len(nodes) > 1 {
			quiet = silence
		}
		err := l.from(ctx, n, quiet)
		if err == nil {
			return nil
		}
		var own *callbackError
		switch {
		case errors.As(err, &own):
			return own.err
		case !retried(err) || ctx.Err() != nil:
			return err
		}
		if CodeOf(err) == Unavailable {
			c.suspect(n)
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return Errorf(Unavailable, "there is no node to ask")
	}
	return worst(errs)
}
