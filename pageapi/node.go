package pageapi

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// node is the client's side of one node: the connection, its idle page streams, and how well it has answered.
type node struct {
	ctx     context.Context // of the client
	address string
	conn    *grpc.ClientConn
	pages   pb.PageServiceClient
	idle    chan *pageStream

	suspect atomic.Bool  // it did not answer, and a probe is waiting until it does
	waiting atomic.Int32 // requests of pages under way

	mu       sync.Mutex
	speeds   [2]speed // of requests of few and of many pages
	readable map[uint32]pg.LSN
}

const (
	idleStreams = 64 // streams that are kept open to a node when nobody uses them
	fewPages    = 8
)

// dial makes a node, whose streams end with ctx at the latest.
func dial(ctx context.Context, address string) (*node, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(8<<20),
		// A node that comes back is to be noticed soon, one that never was there is not worth much effort.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		// A connection that died without a word is made anew.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
	)
	if err != nil {
		return nil, Errorf(Invalid, "server address %q: %w", address, err)
	}
	return &node{
		ctx: ctx, address: address, conn: conn, pages: pb.NewPageServiceClient(conn), idle: make(chan *pageStream, idleStreams), readable: map[uint32]pg.LSN{},
	}, nil
}

// speed is how long a node takes for requests of a kind.
type speed struct {
	mean   float64 // seconds, exponentially weighted
	last   time.Time
	window [64]float64
	n      int
	p95    float64
}

func (s *speed) add(seconds float64, now time.Time) {
	if s.n == 0 {
		s.mean = seconds
	}
	s.mean += (seconds - s.mean) / 8
	s.last = now
	s.window[s.n%len(s.window)] = seconds
	s.n++
	if s.n < 16 || s.n%16 == 0 {
		w := s.window
		known := w[:min(s.n, len(w))]
		slices.Sort(known)
		s.p95 = known[len(known)*95/100]
	}
}

func kindOf(pages int) int {
	if pages <= fewPages {
		return 0
	}
	return 1
}

// took notes how long the node took to answer, or at least took until somebody gave up.
func (n *node) took(pages int, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.speeds[kindOf(pages)].add(d.Seconds(), time.Now())
}

// forget is for a node that is back: it is not as slow as it was.
func (n *node) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.speeds = [2]speed{}
}

func (n *node) has(branch uint32, lsn pg.LSN) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.readable[branch] = max(lsn, n.readable[branch])
}

// What makes a node worse than one that is slow, in seconds.
const (
	scoreSuspect = 1e6
	scoreBehind  = 1e3
)

// standing is 0 for a node that answers.
func (n *node) standing() float64 {
	if n.suspect.Load() {
		return scoreSuspect
	}
	return 0
}

// forgetAfter is how long a node is taken to be as slow as it was last seen; then it is as good as an unknown one, and is tried again.
const forgetAfter = 2 * time.Second

// score is about how long the node will take; see ordered.
func (n *node) score(at Position, pages int) float64 {
	score := n.standing()
	n.mu.Lock()
	defer n.mu.Unlock()
	if has := n.readable[at.Branch]; has != 0 && has < at.LSN {
		score += scoreBehind
	}
	// Without a sample of late a node is worth trying, but not before one that is quick.
	mean := 1e-4
	if s := &n.speeds[kindOf(pages)]; s.n > 0 {
		mean = s.mean
		if age := time.Since(s.last); age > forgetAfter {
			mean = min(mean, 1e-4)
		}
	}
	return score + mean*float64(1+n.waiting.Load())
}

// Bounds of how long an answer is waited for before another replica is asked as well.
const (
	hedgeLeast = 2 * time.Millisecond
	hedgeMost  = 100 * time.Millisecond
	hedgeFirst = 50 * time.Millisecond // while nothing is known
)

// patience is how long this node's answers take but for one in twenty.
func (n *node) patience(pages int) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &n.speeds[kindOf(pages)]
	if s.n < 16 {
		return hedgeFirst
	}
	return min(hedgeMost, max(hedgeLeast, time.Duration(s.p95*float64(time.Second))))
}

// pageStream is one GetPages stream, used by one request at a time. It is opened by the first.
type pageStream struct {
	n      *node
	ctx    context.Context
	cancel context.CancelFunc
	stream grpc.BidiStreamingClient[pb.GetPagesRequest, pb.GetPagesResponse]
	lastID uint64
	answer pagesAnswer
}

// borrow takes an idle stream, or makes one.
func (n *node) borrow() *pageStream {
	select {
	case s := <-n.idle:
		return s
	default:
	}
	ctx, cancel := context.WithCancel(n.ctx) // the stream outlives the request; who waits cancels it when the request's context ends
	return &pageStream{n: n, ctx: ctx, cancel: cancel}
}

// giveBack keeps a stream on which nothing went wrong for the next request.
func (n *node) giveBack(s *pageStream) {
	s.answer.dst = nil
	select {
	case n.idle <- s:
	default:
		s.cancel()
	}
}

func (n *node) dropIdle() {
	for {
		select {
		case s := <-n.idle:
			s.cancel()
		default:
			return
		}
	}
}

// exchange sends a request and receives its answer into s.answer.
func (s *pageStream) exchange(req *pb.GetPagesRequest, dst []byte) (err error) {
	if s.stream == nil {
		if s.stream, err = s.n.pages.GetPages(s.ctx, grpc.ForceCodecV2(newCodec())); err != nil {
			return err
		}
	}
	s.lastID++
	req.Id = s.lastID
	if err := s.stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	s.answer.dst = dst
	return s.stream.RecvMsg(&s.answer) // where sending said EOF this tells why the stream ended
}
