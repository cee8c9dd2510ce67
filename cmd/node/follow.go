package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// The states of following, as status shows them.
const (
	stateDetached   = "detached"
	stateConnecting = "connecting"
	stateImporting  = "importing"
	stateCatching   = "catching up"
	stateStreaming  = "streaming"
	stateWaiting    = "waiting" // for the next try; the message says why
	stateStopped    = "stopped" // until someone decides; the message says what. Reads go on
)

// errState says that a command doesn't fit the state that the node is in.
var errState = errors.New("not possible now")

// follower follows one primary: import, spool, ingest. Its run method owns all goroutines.
type follower struct {
	n   *Node
	log *slog.Logger

	deciding sync.Mutex // one attach or detach at a time; taken before mu

	mu                    sync.Mutex
	st                    state
	current               string // one of the states
	message               string
	warnings              []string
	imported, importTotal int64
	spool                 *wal.Spool
	receiver              *stream.Receiver
	changed               chan struct{} // closed and replaced when st changes
	idle                  chan struct{} // closed while nothing is followed: detach waits for it

	records atomic.Uint64
	rate    meter
}

func newFollower(n *Node, st state) *follower {
	idle := make(chan struct{})
	close(idle)
	return &follower{n: n, log: n.cfg.Logger, st: st, current: stateDetached, changed: make(chan struct{}), idle: idle}
}

// run follows whatever is attached until ctx ends.
func (f *follower) run(ctx context.Context) error {
	for {
		// Under the lock at once: whoever takes Conninfo away knows whether to wait for idle.
		f.mu.Lock()
		st, changed := f.st, f.changed
		idle := make(chan struct{})
		f.idle = idle
		f.current, f.message = stateConnecting, ""
		if st.Conninfo == "" {
			close(idle)
			f.current = stateDetached
		}
		f.mu.Unlock()
		if st.Conninfo == "" {
			// What was received before a detach stays readable; there is nothing to do.
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
			continue
		}
		f.followUntil(ctx, st, changed)
		close(idle)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// followUntil follows one primary until the state changes or ctx ends, trying again after whatever goes wrong.
func (f *follower) followUntil(ctx context.Context, st state, changed <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(); <-watching }()
	const minWait, maxWait = 200 * time.Millisecond, 10 * time.Second
	wait := minWait
	for {
		began := time.Now()
		err := f.followOnce(ctx, st)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxWait {
			wait = minWait
		}
		state := stateWaiting
		if f.needsDecision(err) {
			state, wait = stateStopped, maxWait
		}
		f.set(state, err.Error())
		f.log.Error("following the primary was interrupted", "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, maxWait)
	}
}

// needsDecision tells errors that trying again won't mend by itself. They are tried again all the same, slowly.
func (f *follower) needsDecision(err error) bool {
	var corrupt *wal.CorruptError
	return stream.Refused(err) || errors.As(err, &corrupt) || errors.Is(err, errIngest)
}

// followOnce imports if needed, then streams and ingests until something fails.
func (f *follower) followOnce(ctx context.Context, st state) error {
	var pending *pendingImport
	if f.needsImport() {
		var err error
		if pending, err = f.runImport(ctx, &st); err != nil {
			return err
		}
		defer pending.close()
	}
	spool, first, err := f.openSpool(st, pending)
	if err != nil {
		return err
	}
	defer spool.Close()
	sink := &sink{spool: spool, history: st.History, first: first, applied: f.applied}
	receiver, err := stream.NewReceiver(stream.ReceiverOptions{
		Conninfo: st.Conninfo, Name: st.Node, Slot: st.Slot, SystemID: st.SystemIdentifier, Major: st.Major, SegmentSize: wal.SegmentSize(st.WALSegmentSize),
		OnState: f.receiverState,
	}, sink)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.spool, f.receiver = spool, receiver
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.spool, f.receiver = nil, nil
		f.mu.Unlock()
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.receive(ctx, receiver) })
	g.Go(func() error { return f.ingest(ctx, spool, pending, receiver.Notify) })
	g.Go(func() error { return f.tend(ctx, spool) })
	g.Go(func() error { return f.archive(ctx, spool, st) })
	return g.Wait()
}

// refusedWait is how long until a server that was refused is asked again.
const refusedWait = 5 * time.Second

// receive streams until ctx ends or the spool fails. A server that is refused, or has left our timeline, ends nothing else: what was received before is still
// ingested. It is asked again, slowly: the address may be given back to the right server.
func (f *follower) receive(ctx context.Context, receiver *stream.Receiver) error {
	for {
		err := receiver.Run(ctx)
		var end *stream.EndOfTimeline
		var sink *stream.SinkError
		if ctx.Err() != nil || errors.As(err, &sink) || !errors.As(err, &end) && !stream.Refused(err) {
			return err
		}
		f.set(stateStopped, err.Error())
		f.log.Error("the primary can't be followed", "error", err, "retry_in", refusedWait)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(refusedWait):
		}
	}
}

// openSpool opens the spool of the followed timeline. first is where receiving starts if it holds nothing.
func (f *follower) openSpool(st state, pending *pendingImport) (*wal.Spool, pg.LSN, error) {
	opts := wal.SpoolOptions{
		Dir: filepath.Join(f.n.cfg.Data, spoolDir), SegmentSize: wal.SegmentSize(st.WALSegmentSize), Major: st.Major, SystemID: st.SystemIdentifier,
		History: st.History,
	}
	var start pg.LSN
	if pending != nil {
		start = pending.start
	} else {
		durable, _ := f.n.store.Durable(mainBranch)
		start = durable.Resume
		opts.From, opts.AtLeast = durable.Resume, durable.Resume
	}
	spool, err := wal.OpenSpool(opts)
	if err != nil {
		return nil, 0, err
	}
	return spool, opts.SegmentSize.Start(opts.SegmentSize.Number(start)), nil
}

// applied is the LSN up to which pages can be read.
func (f *follower) applied() pg.LSN {
	p, _ := f.n.store.Progress(mainBranch)
	return p.Readable
}

// receiverState turns the receiver's state into ours.
func (f *follower) receiverState(s stream.Status) {
	switch s.State {
	case stream.Streaming:
		f.log.Info("streaming", "from", s.Server.Position, "timeline", s.Server.Timeline)
		f.set(stateStreaming, "")
	case stream.Waiting:
		f.log.Warn("the primary is not streaming", "error", s.Err, "failures", s.Failures)
		f.set(stateWaiting, s.Err.Error())
	}
}

func (f *follower) set(state, message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current, f.message = state, message
}

func (f *follower) warn(text string) {
	f.log.Warn(text)
	f.mu.Lock()
	defer f.mu.Unlock()
	const maxWarnings = 20
	if len(f.warnings) < maxWarnings && !slices.Contains(f.warnings, text) {
		f.warnings = append(f.warnings, text)
	}
}

// status is the state as the status command shows it.
func (f *follower) status() *pb.FollowStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &pb.FollowStatus{
		State: f.current, Message: f.message, Major: uint32(f.st.Major), SystemIdentifier: f.st.SystemIdentifier, Timeline: f.st.Timeline, Slot: f.st.Slot, Primary: f.st.Primary,
		ImportBytesDone: uint64(f.imported), ImportBytesTotal: uint64(f.importTotal), Records: f.records.Load(), WalBytesPerSecond: f.rate.perSecond(),
		Warnings: append([]string{}, f.warnings...),
	}
	if l := f.st.Left; l != nil {
		s.Warnings = append(s.Warnings, fmt.Sprintf("slot %s is still on %s, which keeps WAL for it: everpage detach drops it, or %s there", l.Slot, l.Primary, stream.DropSlotSQL(l.Slot)))
	}
	progress, ok := f.n.store.Progress(mainBranch)
	if ok {
		s.ReadableLsn, s.ConsistentLsn = uint64(progress.Readable), uint64(progress.Consistent)
		durable, _ := f.n.store.Durable(mainBranch)
		s.StoredLsn = uint64(durable.Resume)
		if progress.Unproven != 0 {
			s.Warnings = append(s.Warnings, fmt.Sprintf("unproven from %s on: %s", progress.Unproven, progress.UnprovenReason))
		}
		if s.State == stateStreaming && progress.Consistent == 0 {
			s.State = stateCatching
		}
	}
	if f.spool != nil {
		s.ReceivedLsn, s.DurableLsn = uint64(f.spool.Written()), uint64(f.spool.Durable())
	}
	if f.receiver != nil {
		s.PrimaryLsn = uint64(f.receiver.Status().ServerEnd)
	}
	if err := f.n.store.Stats().WriteErr; err != nil {
		s.Warnings = append(s.Warnings, "the store can't write: "+err.Error())
	}
	return s
}

// behind says which link keeps an LSN from being readable; lsn 0 asks about the consistency point.
func (f *follower) behind(_ uint32, lsn pg.LSN) string {
	s := f.status()
	primary, received, readable := pg.LSN(s.PrimaryLsn), pg.LSN(s.ReceivedLsn), pg.LSN(s.ReadableLsn)
	switch {
	case s.State == stateDetached:
		return fmt.Sprintf("no primary is followed, and the history ends at %s", readable)
	case s.State == stateImporting:
		return "the base backup is still being imported"
	case lsn == 0:
		return fmt.Sprintf("WAL is ingested up to %s only, the base backup needs more (%s)", readable, s.State)
	case received >= lsn:
		return fmt.Sprintf("it was received, but is ingested up to %s only", readable)
	case s.State == stateStreaming && primary < lsn:
		return fmt.Sprintf("the primary itself has written WAL up to %s only", primary)
	case s.State == stateStreaming:
		return fmt.Sprintf("the primary has it, but it is received up to %s only", received)
	}
	return fmt.Sprintf("the primary is not streaming (%s), WAL is received up to %s", s.Message, received)
}

// history is the descent of the followed timeline.
func (f *follower) history() wal.History {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st.History
}

// hole tells a hole in the history that is known, "" if there is none.
func (f *follower) hole() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st.Hole
}

// meter measures bytes a second over a short while.
type meter struct {
	mu    sync.Mutex
	since time.Time
	bytes float64
	rate  float64
}

const meterPeriod = 2 * time.Second

func (m *meter) add(n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if m.since.IsZero() {
		m.since = now
	}
	m.bytes += float64(n)
	if d := now.Sub(m.since); d >= meterPeriod {
		m.rate, m.bytes, m.since = m.bytes/d.Seconds(), 0, now
	}
}

func (m *meter) perSecond() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := time.Since(m.since); !m.since.IsZero() && d >= 2*meterPeriod {
		return m.bytes / d.Seconds()
	}
	return m.rate
}
