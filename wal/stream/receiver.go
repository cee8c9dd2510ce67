package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"everpage/wal"
	"everpage/wal/pg"
)

// Defaults of a Receiver, those of wal_receiver_status_interval and wal_receiver_timeout.
const (
	defaultStatusInterval = 10 * time.Second
	defaultReceiveTimeout = 60 * time.Second
	defaultStallTimeout   = 30 * time.Second
	setupTimeout          = 30 * time.Second // connection to START_REPLICATION
)

// ReceiverOptions say what to follow. Conninfo, Name, Slot, SystemID, Major and SegmentSize are required.
type ReceiverOptions struct {
	Conninfo    string
	Name        string // application_name: what synchronous_standby_names and pg_stat_replication show
	Slot        string // a physical slot, which must exist
	SystemID    uint64
	Major       pg.Major
	SegmentSize wal.SegmentSize
	Newest      pg.TimelineID // of several hosts those on an older timeline are passed over. 0: the one that the sink has

	StatusInterval time.Duration // at most this long between status updates; default 10 s
	ReceiveTimeout time.Duration // a server silent for so long is taken for dead, and pinged after half of it; default 60 s
	StallTimeout   time.Duration // a sink that takes longer for one call loses the connection; default 30 s
	Backoff        Backoff
	OnState        func(Status) // called at every change of state, by the goroutine of Run; must not block
}

func (o ReceiverOptions) withDefaults() ReceiverOptions {
	if o.StatusInterval <= 0 {
		o.StatusInterval = defaultStatusInterval
	}
	if o.ReceiveTimeout <= 0 {
		o.ReceiveTimeout = defaultReceiveTimeout
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = defaultStallTimeout
	}
	o.Backoff = o.Backoff.withDefaults()
	return o
}

// State is what a Receiver does.
type State string

// The states of a Receiver.
const (
	Stopped    State = "stopped"
	Connecting State = "connecting" // up to the server's answer to START_REPLICATION
	Comparing  State = "comparing"  // the last page we hold is fetched again
	Streaming  State = "streaming"
	Waiting    State = "waiting" // for the next attempt
)

// Status is a Receiver's state.
type Status struct {
	State     State     `json:"state"`
	Err       error     `json:"-"`        // why it waits or stopped
	Failures  int       `json:"failures"` // attempts that failed in a row
	RetryAt   time.Time `json:"retry_at,omitzero"`
	Server    Server    `json:"server"`         // as of the last connection
	Since     time.Time `json:"since,omitzero"` // start of the current stream
	Written   pg.LSN    `json:"written"`
	Flushed   pg.LSN    `json:"flushed"`           // as last acknowledged
	ServerEnd pg.LSN    `json:"server_end"`        // end of the server's WAL as of its last message
	Received  time.Time `json:"received,omitzero"` // time of its last message
}

// Receiver streams WAL from a primary into a Sink, as walreceiver does for a standby.
type Receiver struct {
	o      ReceiverOptions
	expect expect
	sink   Sink
	kick   chan struct{}

	mu      sync.Mutex
	status  Status
	session *session
}

// settled is how long WAL must have been kept for the next failure to do so to be another one.
const settled = time.Minute

// NewReceiver makes a receiver; Run starts it.
func NewReceiver(o ReceiverOptions, sink Sink) (*Receiver, error) {
	o = o.withDefaults()
	if err := checkSlotName(o.Slot); err != nil {
		return nil, err
	}
	if o.Name == "" || o.SystemID == 0 || o.Major < pg.MajorFirst || o.Major > pg.MajorLast || !o.SegmentSize.Valid() {
		return nil, fmt.Errorf("receiver: name %q, system identifier %d, major %d and segment size %d: all are needed", o.Name, o.SystemID, o.Major, o.SegmentSize)
	}
	return &Receiver{o: o, expect: expect{o.SystemID, o.Major, o.SegmentSize}, sink: sink, kick: make(chan struct{}, 1), status: Status{State: Stopped}}, nil
}

// Run streams until ctx ends or something happens that needs a decision: the timeline's end (*EndOfTimeline) or an error for which Refused is
// true. Everything else, from a lost connection to a full disk, is tried again after a wait. Run may be called again, one call at a time.
func (r *Receiver) Run(ctx context.Context) error {
	for failures := 0; ; {
		before, began := failures, time.Now()
		err := r.stream(ctx, &failures)
		if e := (*SinkError)(nil); errors.As(err, &e) && time.Since(began) < settled {
			failures = max(failures, before) // the primary has WAL, but it can't be kept: asking for it again ten times a second helps nobody
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		var end *EndOfTimeline
		if ctx.Err() != nil || errors.As(err, &end) || Refused(err) {
			r.setState(func(s *Status) { s.State, s.Err, s.Failures = Stopped, err, failures })
			return err
		}
		failures++
		wait := r.o.Backoff.next(failures)
		r.setState(func(s *Status) {
			s.State, s.Err, s.Failures, s.RetryAt = Waiting, err, failures, time.Now().Add(wait)
		})
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
	}
}

// Status tells how the receiver is doing.
func (r *Receiver) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	if r.session != nil {
		r.session.fill(&s)
	}
	return s
}

// Notify has a status update sent soon if something advanced: call it when Applied did, for the sake of synchronous_commit = remote_apply.
// It does not block.
func (r *Receiver) Notify() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

func (r *Receiver) setState(change func(*Status)) {
	r.mu.Lock()
	r.status.RetryAt = time.Time{}
	change(&r.status)
	s := r.status
	r.mu.Unlock()
	if r.o.OnState != nil {
		r.o.OnState(s)
	}
}

// stream connects once and streams until something ends it. It sets failures to 0 once WAL is streamed.
func (r *Receiver) stream(ctx context.Context, failures *int) error {
	r.setState(func(s *Status) { s.State = Connecting })
	pos, err := r.sink.Resume(ctx)
	if err != nil {
		return &SinkError{"resume", err}
	}
	s, err := r.connect(ctx, pos)
	if err != nil {
		return err
	}
	defer s.w.close()
	r.mu.Lock()
	r.session = s
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		s.fill(&r.status)
		r.session = nil
		r.mu.Unlock()
	}()
	s.streaming = func() {
		*failures = 0
		r.setState(func(st *Status) { st.State, st.Err, st.Failures, st.Since = Streaming, nil, 0, time.Now() })
	}
	r.setState(func(st *Status) { st.State = Comparing })
	return s.run()
}

// connect makes a connection, checks the server and takes the connection over.
func (r *Receiver) connect(ctx context.Context, pos Position) (*session, error) {
	setup, cancel := context.WithTimeoutCause(ctx, setupTimeout, fmt.Errorf("%w: no answer within %v", ErrSilent, setupTimeout))
	defer cancel()
	c, err := ConnectOne(setup, r.o.Conninfo, Replication, r.o.Name, Line{r.o.SystemID, max(pos.Timeline, r.o.Newest)})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	server, err := identity(setup, c)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.status.Server, r.status.ServerEnd = server, server.Position
	r.mu.Unlock()
	if err := r.expect.check(server); err != nil {
		return nil, fmt.Errorf("%s: %w", c.where, err)
	}
	h, err := TimelineHistory(setup, c, server.Timeline)
	if err != nil {
		return nil, err
	}
	from, err := locate(pos, server, h, r.o.SegmentSize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.where, err)
	}
	s := &session{r: r, pos: pos, from: from, server: server, history: h, dirty: make(chan struct{}, 1), stop: make(chan struct{})}
	s.slot = !from.switched || pos.Next < from.at // nothing is left to receive from a timeline that was left before our end
	if s.slot && server.Major >= 15 {
		if _, err := ReadSlot(setup, c, r.o.Slot); err != nil {
			return nil, adviseSlot(r.o.Slot, from.start, err)
		}
	}
	if s.w, err = c.takeOver(ctx); err != nil {
		return nil, err
	}
	s.written.Store(uint64(pos.Next))
	s.flushed.Store(uint64(pos.Next))
	s.serverEnd.Store(uint64(server.Position))
	return s, nil
}
