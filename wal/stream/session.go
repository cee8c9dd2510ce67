package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgproto3"

	"everpage/wal"
	"everpage/wal/pg"
)

// session is one connection's stream. Three goroutines serve it: the caller of run receives and appends, one flushes and acknowledges, and one
// keeps time. Thus an fsync overlaps with receiving, and each is acknowledged at once: a synchronous commit waits for one fsync and one round trip.
type session struct {
	r         *Receiver
	w         *wire
	pos       Position
	from      origin
	server    Server
	history   wal.History // of the server's timeline
	slot      bool        // stream with the slot
	streaming func()      // called once the last page was compared

	next     pg.LSN // of the receiving goroutine: where the next byte must be
	buf      []byte // what is compared
	verified atomic.Bool

	written   atomic.Uint64 // LSN up to which the sink took WAL
	flushed   atomic.Uint64 // LSN up to which it is durable
	serverEnd atomic.Uint64
	received  atomic.Int64 // time of the last message, Unix nanoseconds
	appending atomic.Int64 // start of the Append under way, 0 if none
	flushing  atomic.Int64

	dirty chan struct{} // something was appended
	stop  chan struct{} // closed when receiving has ended

	flushMu sync.Mutex
	send    sync.Mutex
	sent    [3]pg.LSN // write, flush, apply as last sent
	sentAt  time.Time
}

// fill copies the positions into a status.
func (s *session) fill(st *Status) {
	st.Written, st.Flushed, st.ServerEnd = pg.LSN(s.written.Load()), pg.LSN(s.flushed.Load()), pg.LSN(s.serverEnd.Load())
	if t := s.received.Load(); t != 0 {
		st.Received = time.Unix(0, t)
	}
}

func (s *session) run() error {
	s.received.Store(time.Now().UnixNano())
	var wg sync.WaitGroup
	wg.Go(s.flusher)
	wg.Go(s.keepTime)
	err := s.receive()
	close(s.stop)
	s.w.close() // first of all the server must know that no acknowledgement comes any more
	wg.Wait()
	return err
}

// start asks for the stream. It returns the end of the timeline where the server has no more of it.
func (s *session) start(from pg.LSN) error {
	slot := ""
	if s.slot {
		slot = "SLOT " + s.r.o.Slot + " "
	}
	if err := s.w.query(fmt.Sprintf("START_REPLICATION %sPHYSICAL %s TIMELINE %d", slot, from, s.pos.Timeline)); err != nil {
		return err
	}
	s.next = from
	for {
		msg, err := s.w.receive()
		if err != nil {
			return err
		}
		switch msg.(type) {
		case *pgproto3.CopyBothResponse:
			return nil
		case *pgproto3.NoticeResponse:
		case *pgproto3.RowDescription:
			return s.endOfTimeline()
		default:
			return fmt.Errorf("%s: %w %T in answer to START_REPLICATION", s.w.where, errProtocol, msg)
		}
	}
}

// receive starts the stream and receives until it ends. It never returns nil.
func (s *session) receive() error {
	if s.from.switched && s.from.at <= s.pos.First {
		return s.ended(s.from.at, s.from.next) // what we hold lies behind the switch: there is nothing to compare or to receive
	}
	err := s.start(s.from.start)
	if err == nil {
		err = s.receiveFrom()
	}
	if sqlState(err) == codeUndefinedFile && !s.verified.Load() {
		switch {
		case s.from.switched && s.from.at <= s.pos.Next:
			return s.ended(s.from.at, s.from.next) // a promoted standby need not have the old timeline's last segment
		case s.r.o.SegmentSize.Offset(s.pos.Next) == 0 && s.from.start < s.pos.Next:
			// The page before is the last of a segment that we acknowledged whole, so the server may have removed it. xl_prev of the next
			// record, which the reader of the WAL checks, still ties the two together.
			if err = s.ready(); err == nil {
				s.from.limit = s.pos.Next
				if err = s.start(s.pos.Next); err == nil {
					err = s.receiveFrom()
				}
			}
		}
	}
	return s.explain(err)
}

func (s *session) explain(err error) error {
	var end *EndOfTimeline
	var sink *SinkError
	if errors.As(err, &end) || errors.As(err, &sink) {
		return err
	}
	return explainStream(s.r.o.Slot, s.next, err)
}

// ready waits until the server takes a command again after an error.
func (s *session) ready() error {
	for {
		msg, err := s.w.receive()
		if err != nil {
			return err
		}
		if _, ok := msg.(*pgproto3.ReadyForQuery); ok {
			return nil
		}
	}
}

func (s *session) receiveFrom() error {
	s.verify()
	for {
		msg, err := s.w.receive()
		if err != nil {
			return err
		}
		s.received.Store(time.Now().UnixNano())
		switch msg := msg.(type) {
		case *pgproto3.CopyData:
			if err := s.message(msg.Data); err != nil {
				return err
			}
		case *pgproto3.CopyDone:
			return s.copyDone()
		case *pgproto3.CommandComplete:
			return fmt.Errorf("%s: %w", s.w.where, ErrShutdown)
		case *pgproto3.NoticeResponse:
		default:
			return fmt.Errorf("%s: %w %T in the stream", s.w.where, errProtocol, msg)
		}
	}
}

// Lengths of the messages, type byte included.
const (
	walDataHeader = 1 + 8 + 8 + 8 // start, end of the server's WAL, time
	keepaliveSize = 1 + 8 + 8 + 1 // end of the server's WAL, time, reply requested
	statusSize    = 1 + 8 + 8 + 8 + 8 + 1
)

func (s *session) message(b []byte) error {
	switch {
	case len(b) >= walDataHeader && b[0] == pglogrepl.XLogDataByteID:
		s.serverEnd.Store(binary.BigEndian.Uint64(b[9:]))
		return s.data(pg.LSN(binary.BigEndian.Uint64(b[1:])), b[walDataHeader:])
	case len(b) == keepaliveSize && b[0] == pglogrepl.PrimaryKeepaliveMessageByteID:
		// A keepalive's position is what was sent, on some versions behind the end that came with data.
		if end := binary.BigEndian.Uint64(b[1:]); end > s.serverEnd.Load() {
			s.serverEnd.Store(end)
		}
		if b[keepaliveSize-1] != 0 {
			return s.sendStatus(true, false)
		}
		return nil
	}
	return fmt.Errorf("%s: %w of %d bytes in the stream", s.w.where, errProtocol, len(b))
}

// data takes WAL: it compares what is held already and appends the rest.
func (s *session) data(at pg.LSN, p []byte) error {
	if at != s.next {
		return fmt.Errorf("%s: %w: WAL at %s where %s is due", s.w.where, errProtocol, at, s.next)
	}
	if at < s.from.limit {
		n := min(len(p), int(s.from.limit-at))
		if err := s.compare(at, p[:n]); err != nil {
			return err
		}
		s.next += pg.LSN(n)
		p = p[n:]
		s.verify()
	}
	if len(p) == 0 {
		return nil
	}
	s.appending.Store(time.Now().UnixNano())
	err := s.r.sink.Append(s.next, p)
	s.appending.Store(0)
	if err != nil {
		return &SinkError{"append", err}
	}
	s.next += pg.LSN(len(p))
	s.received.Store(time.Now().UnixNano()) // the sink's time is not the server's silence
	s.written.Store(uint64(s.next))
	select {
	case s.dirty <- struct{}{}:
	default:
	}
	return nil
}

// compare holds WAL that came again against what is held.
func (s *session) compare(at pg.LSN, p []byte) error {
	if cap(s.buf) < len(p) {
		s.buf = make([]byte, len(p))
	}
	held := s.buf[:len(p)]
	if err := s.r.sink.ReadWAL(held, at); err != nil {
		return &SinkError{"read", err}
	}
	if bytes.Equal(held, p) {
		return nil
	}
	i := 0
	for held[i] == p[i] {
		i++
	}
	return fmt.Errorf("%s: %w: at %s on timeline %d it has %02X, we have %02X: it is a restored copy or was rolled back; correct the conninfo, or detach and attach to follow it nevertheless",
		s.w.where, ErrDiverged, at+pg.LSN(i), s.pos.Timeline, p[i], held[i])
}

// verify goes over to streaming once all that is to be compared was equal.
func (s *session) verify() {
	if s.verified.Load() || s.next < s.from.limit {
		return
	}
	s.verified.Store(true)
	s.streaming()
	// The first update shows the server our position. If it fails, so does the next receive.
	_ = s.sendStatus(true, false)
}

// copyDone ends the copy that the server ended: the timeline has no more WAL.
func (s *session) copyDone() error {
	b, err := (&pgproto3.CopyDone{}).Encode(nil)
	if err != nil {
		return err
	}
	if err := s.w.send(b); err != nil {
		return err
	}
	return s.endOfTimeline()
}

// endOfTimeline reads the row that names the next timeline.
func (s *session) endOfTimeline() error {
	rows, msg, err := s.w.result(2)
	if err != nil {
		return err
	}
	if _, ok := msg.(*pgproto3.ReadyForQuery); len(rows) == 0 || msg != nil && !ok {
		return fmt.Errorf("%s: %w: the timeline ended without a next one", s.w.where, errProtocol)
	}
	next, err := strconv.ParseUint(rows[0][0], 10, 32)
	if err != nil || next == 0 {
		return fmt.Errorf("%s: %w: next timeline %q", s.w.where, errProtocol, rows[0][0])
	}
	at, err := pg.ParseLSN(rows[0][1])
	if err != nil {
		return fmt.Errorf("%s: %w: %w", s.w.where, errProtocol, err)
	}
	if s.next < s.from.limit {
		return fmt.Errorf("%s: %w: the timeline ended at %s, before %s", s.w.where, errProtocol, s.next, s.from.limit)
	}
	return s.ended(at, pg.TimelineID(next))
}

// ended makes what was received durable and reports the end of the timeline.
func (s *session) ended(at pg.LSN, next pg.TimelineID) error {
	if s.written.Load() > s.flushed.Load() {
		if err := s.flush(); err != nil {
			return err
		}
	}
	end := pg.LSN(s.written.Load())
	if durable := pg.LSN(s.flushed.Load()); durable < min(at, end) {
		return &SinkError{"flush", fmt.Errorf("durable up to %s, the timeline ends at %s", durable, at)}
	}
	if end < at {
		return fmt.Errorf("%s: %w: timeline %d ended at %s, before its switch point %s", s.w.where, errProtocol, s.pos.Timeline, end, at)
	}
	return &EndOfTimeline{Timeline: s.pos.Timeline, End: end, Switch: at, Next: next, Newest: max(next, s.server.Timeline), History: s.history}
}
