package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"everpage/deploy/pgtest"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// memorySink keeps WAL in memory. Like a spool it loses on Resume what was not flushed.
type memorySink struct {
	mu      sync.Mutex
	pos     stream.Position
	wal     []byte // from pos.First on
	durable int    // bytes of wal
	resumes int
	short   int    // bytes that Flush leaves out, as of an incomplete record
	limit   pg.LSN // WAL is taken up to here; 0 is no limit

	changed  chan struct{}     // closed and made anew at every flush
	onFlush  func() error      // called at the start of Flush
	onAppend func() error      // called at the start of Append
	onResume func(n int) error // called with the count of calls
	applied  func() pg.LSN     // default: what is durable
}

func newSink(tli pg.TimelineID, first pg.LSN, history wal.History) *memorySink {
	return &memorySink{pos: stream.Position{Timeline: tli, First: first, Next: first, History: history}, changed: make(chan struct{})}
}

func (m *memorySink) Resume(context.Context) (stream.Position, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resumes++
	if m.onResume != nil {
		if err := m.onResume(m.resumes); err != nil {
			return stream.Position{}, err
		}
	}
	m.wal = m.wal[:m.durable]
	m.pos.Next = m.pos.First + pg.LSN(m.durable)
	return m.pos, nil
}

func (m *memorySink) ReadWAL(p []byte, at pg.LSN) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at < m.pos.First || at+pg.LSN(len(p)) > m.pos.First+pg.LSN(len(m.wal)) {
		return fmt.Errorf("%d bytes at %s are not held", len(p), at)
	}
	copy(p, m.wal[at-m.pos.First:])
	return nil
}

func (m *memorySink) Append(at pg.LSN, p []byte) error {
	m.mu.Lock()
	hook := m.onAppend
	m.mu.Unlock()
	if hook != nil {
		if err := hook(); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if want := m.pos.First + pg.LSN(len(m.wal)); at != want {
		return fmt.Errorf("append at %s, want %s", at, want)
	}
	if m.limit != 0 && at+pg.LSN(len(p)) > m.limit {
		m.wal = append(m.wal, p[:m.limit-at]...)
		m.durable = len(m.wal)
		return errors.New("full")
	}
	m.wal = append(m.wal, p...)
	return nil
}

func (m *memorySink) Flush() (pg.LSN, error) {
	m.mu.Lock()
	n, hook := len(m.wal), m.onFlush
	m.mu.Unlock()
	if hook != nil {
		if err := hook(); err != nil {
			return 0, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable = n
	close(m.changed)
	m.changed = make(chan struct{})
	return m.pos.First + pg.LSN(max(n-m.short, 0)), nil
}

func (m *memorySink) Applied() pg.LSN {
	m.mu.Lock()
	applied := m.applied
	m.mu.Unlock()
	if applied != nil {
		return applied()
	}
	return m.end()
}

// end is the end of what is durable.
func (m *memorySink) end() pg.LSN {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pos.First + pg.LSN(m.durable)
}

func (m *memorySink) set(change func(*memorySink)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}

// wait waits until WAL up to an LSN is durable.
func (m *memorySink) wait(t *testing.T, lsn pg.LSN) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for {
		m.mu.Lock()
		end, changed := m.pos.First+pg.LSN(m.durable), m.changed
		m.mu.Unlock()
		if end >= lsn {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s was not received within %v; the sink is at %s", lsn, deadline, end)
		}
	}
}

// equal holds what was received against the server's own files.
func (m *memorySink) equal(t *testing.T, s *pgtest.Server, segment wal.SegmentSize, upTo pg.LSN) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	files := 0
	for at := m.pos.First; at < upTo; at += pg.LSN(segment) {
		name := wal.Segment{Timeline: m.pos.Timeline, Number: segment.Number(at)}.Name(segment)
		want, err := os.ReadFile(filepath.Join(s.WALDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		n := min(int(upTo-at), int(segment))
		got := m.wal[at-m.pos.First:]
		if len(got) < n || !bytes.Equal(got[:n], want[:n]) {
			t.Fatalf("segment %s differs below %s", name, upTo)
		}
		files++
	}
	if files == 0 {
		t.Fatal("nothing to compare")
	}
}

// follower runs a receiver.
type follower struct {
	*stream.Receiver
	states chan stream.Status
	done   chan error
	cancel context.CancelFunc
}

func options(t *testing.T, s *pgtest.Server, server stream.Server, slot string) stream.ReceiverOptions {
	t.Helper()
	return stream.ReceiverOptions{Conninfo: s.ConnString("postgres"), Name: "node1", Slot: slot, SystemID: server.SystemID, Major: server.Major, SegmentSize: server.SegmentSize}
}

// follow starts a receiver, which ends with the test at the latest.
func follow(t *testing.T, o stream.ReceiverOptions, sink stream.Sink) *follower {
	t.Helper()
	f := &follower{states: make(chan stream.Status, 1000), done: make(chan error, 1)}
	o.OnState = func(s stream.Status) {
		select {
		case f.states <- s:
		default:
		}
	}
	var err error
	if f.Receiver, err = stream.NewReceiver(o, sink); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.done <- f.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return f
}

// await waits for a state.
func (f *follower) await(t *testing.T, what string, is func(stream.Status) bool) stream.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for {
		select {
		case s := <-f.states:
			if is(s) {
				return s
			}
		case <-ctx.Done():
			t.Fatalf("not within %v: %s; state %+v", deadline, what, f.Status())
		}
	}
}

func (f *follower) stop(t *testing.T) {
	t.Helper()
	f.cancel()
	f.end(t)
}

// end waits for Run to end and returns its error.
func (f *follower) end(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	select {
	case err := <-f.done:
		return err
	case <-ctx.Done():
		t.Fatalf("receiver did not end within %v: state %+v", deadline, f.Status())
		return nil
	}
}

// identify asks a server who it is.
func identify(t *testing.T, s *pgtest.Server) stream.Server {
	t.Helper()
	c := connect(t, s.ConnString("postgres"), stream.Replication)
	defer c.Close()
	server, err := stream.Identify(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func ensureSlot(t *testing.T, s *pgtest.Server, name string) stream.Slot {
	t.Helper()
	c := connect(t, s.ConnString("postgres"), stream.Replication)
	defer c.Close()
	slot, err := stream.EnsureSlot(t.Context(), c, name)
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

// dropSlot drops a slot that its last user may be about to leave.
func dropSlot(t *testing.T, c *stream.Conn, name string) {
	t.Helper()
	eventually(t, "the slot is free", func() bool {
		err := stream.DropSlot(t.Context(), c, name)
		if err != nil && !errors.Is(err, stream.ErrSlotActive) {
			t.Fatal(err)
		}
		return err == nil
	})
}

func currentLSN(t *testing.T, s *pgtest.Server) pg.LSN {
	t.Helper()
	text, err := s.CurrentLSN(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lsn, err := pg.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func name(major int) string { return strconv.Itoa(major) }
