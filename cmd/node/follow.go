package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"everpage/chunk/ingest"
	"everpage/cluster"
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

	dropping sync.Mutex // one removal of history at a time
	deciding sync.Mutex // one attach or detach at a time; taken before mu

	mu                    sync.Mutex
	st                    state
	using                 uint32 // the branch that is imported or followed now
	paused                bool   // a detach is under way
	current               string // one of the states
	message               string
	warnings              []string
	imported, importTotal int64
	spool                 *wal.Spool            // of the branch that is followed
	spools                map[uint32]*wal.Spool // that other nodes may read, by branch
	receiver              *stream.Receiver
	changed               chan struct{} // closed and replaced when st changes
	idle                  chan struct{} // closed while nothing is followed: detach waits for it

	records  atomic.Uint64
	restarts atomic.Int32 // of the import, one after the other
	rate     meter
}

func newFollower(n *Node) (*follower, error) {
	idle := make(chan struct{})
	close(idle)
	f := &follower{n: n, log: n.cfg.Logger, current: stateDetached, changed: make(chan struct{}), idle: idle, spools: map[uint32]*wal.Spool{}}
	return f, f.refresh(n.cluster.State())
}

// refresh takes over what the cluster agreed on.
func (f *follower) refresh(s *cluster.State) error {
	next, err := viewOf(&f.n.cfg, f.n.cluster.ID(), s)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	again := f.st.differs(next, f.using)
	f.st = next
	f.n.redoer.set(next.Major)
	if again {
		f.wake()
	}
	return nil
}

// view is what is followed now.
func (f *follower) view() state {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st
}

// use says which branch is imported or followed from now on.
func (f *follower) use(branch uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.using = branch
}

// main is the branch that the alias names, 0 if there is none yet.
func (f *follower) main() uint32 {
	if b := f.n.cluster.State().Branch(0); b != nil {
		return b.Number
	}
	return 0
}

// run follows whatever is attached until ctx ends.
func (f *follower) run(ctx context.Context) error {
	f.hear(ctx)
	for {
		// Under the lock at once: whoever takes Conninfo away knows whether to wait for idle.
		f.mu.Lock()
		st, changed := f.st, f.changed
		if f.paused {
			st.Conninfo = ""
		}
		idle := make(chan struct{})
		f.idle = idle
		f.current, f.message = stateConnecting, ""
		if st.Conninfo == "" {
			close(idle)
			f.current = stateDetached
		}
		f.mu.Unlock()
		if st.Conninfo == "" {
			// What was received before a detach stays readable, unless the cluster dropped it.
			if err := f.dropStale(ctx); err != nil && ctx.Err() == nil {
				f.warn("history that was dropped could not be removed: " + err.Error())
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
			continue
		}
		f.followUntil(ctx, changed)
		close(idle)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// How long a node that starts waits for a majority, without which it follows what it followed last, and for what that knows.
const (
	hearWait  = 5 * time.Second
	learnWait = 30 * time.Second
)

// hear takes over what was agreed on while this node was away, before anything is acknowledged: the primary that it followed last may have been left since.
func (f *follower) hear(ctx context.Context) {
	if len(f.n.others()) == 0 {
		return
	}
	asking, cancel := context.WithTimeout(ctx, hearWait)
	defer cancel()
	head, err := f.n.cluster.Head(asking)
	if err == nil {
		learning, cancel := context.WithTimeout(ctx, learnWait)
		defer cancel()
		_, err = f.n.cluster.Until(learning, func(s *cluster.State) bool { return s.Index >= head })
	}
	if err == nil {
		err = f.refresh(f.n.cluster.State())
	}
	if err != nil {
		f.log.Warn("what the cluster agreed on lately is not known here", "error", err)
	}
}

// followUntil follows one primary until the state changes or ctx ends, trying again after whatever goes wrong.
func (f *follower) followUntil(ctx context.Context, changed <-chan struct{}) {
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
		err := f.followOnce(ctx, f.view())
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
		if errors.Is(err, ingest.ErrRestartImport) {
			if n := f.restarts.Add(1); n >= manyRestarts {
				state, wait = stateStopped, restartWait(int(n))
				err = fmt.Errorf("%w; that happened %d times in a row, the next base backup begins in %s: create no databases by file copy (STRATEGY = FILE_COPY; always before PostgreSQL 15) until it is complete",
					err, n, wait)
			}
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

// manyRestarts is from how many base backups on that were in vain the next ones are taken at longer and longer intervals.
const manyRestarts = 3

// restartWait is how long the next base backup waits after n in vain.
func restartWait(n int) time.Duration {
	return min(time.Hour, time.Minute<<min(n-manyRestarts, 6))
}

// needsDecision tells errors that trying again won't mend by itself. They are tried again all the same, slowly.
func (f *follower) needsDecision(err error) bool {
	var corrupt *wal.CorruptError
	return stream.Refused(err) || errors.As(err, &corrupt) || errors.Is(err, errIngest)
}

// followOnce brings what is missing here, then streams and ingests until something fails.
func (f *follower) followOnce(ctx context.Context, st state) error {
	var pending *pendingImport
	if err := f.dropStale(ctx); err != nil {
		return err
	}
	switch {
	case st.Imported && st.Mine: // behind a hole
		var err error
		if pending, err = f.runImport(ctx, &st); err != nil {
			return err
		}
		defer pending.close()
	case st.Imported:
		f.use(st.Branch)
		if err := f.arrive(ctx, st); err != nil {
			return err
		}
	case !st.Mine:
		return f.awaitImport(ctx, st)
	case f.needsImport(st.Branch):
		var err error
		if pending, err = f.runImport(ctx, &st); err != nil {
			return err
		}
		defer pending.close()
	}
	f.use(st.Branch)
	return f.followBranch(ctx, st, pending)
}

// followBranch receives and ingests one branch, for ever or as far as st says.
func (f *follower) followBranch(ctx context.Context, st state, pending *pendingImport) error {
	spool, first, err := f.openSpool(st, pending)
	if err != nil {
		return err
	}
	defer spool.Close()
	sink := &sink{spool: spool, history: st.History, first: first, applied: func() pg.LSN { return f.applied(st.Branch) }}
	receiver, err := stream.NewReceiver(stream.ReceiverOptions{
		Conninfo: st.Conninfo, Name: st.Node, Slot: st.Slot, SystemID: st.SystemIdentifier, Major: st.Major, SegmentSize: wal.SegmentSize(st.WALSegmentSize),
		Newest: st.Newest, OnState: f.receiverState,
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
	defer f.lend(st.Branch, spool)()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.receiveOrFetch(ctx, receiver, spool, st, first) })
	g.Go(func() error { return f.ingest(ctx, spool, st, pending, receiver.Notify) })
	g.Go(func() error { return f.tend(ctx, spool, st.Branch) })
	g.Go(func() error { return f.archive(ctx, spool, st) })
	if st.Until == 0 {
		g.Go(func() error { return f.keepTails(ctx, st) })
	}
	return g.Wait()
}

// applied is the LSN up to which pages can be read.
func (f *follower) applied(branch uint32) pg.LSN {
	p, _ := f.n.store.Progress(branch)
	return p.Readable
}

// receiverState turns the receiver's state into ours.
func (f *follower) receiverState(s stream.Status) {
	switch s.State {
	case stream.Streaming:
		f.log.Info("streaming", "from", s.Server.Position, "timeline", s.Server.Timeline)
		f.set(stateStreaming, "")
	case stream.Waiting:
		text := s.Err.Error() + f.withoutPassword(s.Err)
		f.log.Warn("the primary is not streaming", "error", text, "failures", s.Failures)
		f.set(stateWaiting, text)
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
	for _, l := range f.n.cluster.State().Left {
		if l.Former {
			s.Warnings = append(s.Warnings, fmt.Sprintf("slot %s of the cluster that this one was recovered from is still on %s, which keeps WAL for it: once nobody has used it for %s it is dropped, or by %s there",
				l.Slot, l.Primary, f.n.cfg.SlotGrace, stream.DropSlotSQL(l.Slot)))
			continue
		}
		s.Warnings = append(s.Warnings, fmt.Sprintf("slot %s is still on %s, which keeps WAL for it: everpage detach drops it, or %s there", l.Slot, l.Primary, stream.DropSlotSQL(l.Slot)))
	}
	progress, ok := f.n.store.Progress(f.st.Branch)
	if ok {
		s.ReadableLsn, s.ConsistentLsn = uint64(progress.Readable), uint64(progress.Consistent)
		durable, _ := f.n.store.Durable(f.st.Branch)
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
func (f *follower) behind(branch uint32, lsn pg.LSN) string {
	if at, left := f.left(branch); left {
		return fmt.Sprintf("the primary left branch %d at %s, and of what lies beyond nothing was received behind %s", branch, at, f.applied(branch))
	}
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

// history is the descent of a timeline that a branch goes through.
func (f *follower) history(branch uint32, tli pg.TimelineID) (wal.History, bool) {
	b := f.n.cluster.State().Branch(branch)
	if b == nil {
		return wal.History{}, false
	}
	h, err := historyOf(b)
	if err != nil || !h.Member(tli) {
		return wal.History{}, false
	}
	if i := slices.IndexFunc(h.Parents, func(e wal.HistoryEntry) bool { return e.Timeline == tli }); i >= 0 {
		h = wal.History{Timeline: tli, Parents: h.Parents[:i]}
	}
	return h, true
}

// parent tells what a branch forked off, and where; 0 if it did not. Another node may have heard of the next branch a moment before.
func (f *follower) parent(ctx context.Context, branch uint32) (uint32, pg.LSN) {
	if branch == 0 {
		return 0, 0
	}
	s := f.n.cluster.State()
	if s.Branch(branch) == nil && branch >= s.NextBranch {
		ctx, cancel := context.WithTimeout(ctx, leadEvery)
		defer cancel()
		if newer, err := f.n.cluster.Until(ctx, func(s *cluster.State) bool { return s.Branch(branch) != nil }); err == nil {
			s = newer
		}
	}
	if b := s.Branch(branch); b != nil {
		return b.Parent, b.Fork
	}
	return 0, 0
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

// wake makes run look at the state again. The caller holds mu.
func (f *follower) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}
