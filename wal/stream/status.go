package stream

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"

	"everpage/wal/pg"
)

// flusher makes what was appended durable and acknowledges it, until the session stops or the sink fails.
func (s *session) flusher() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.dirty:
		}
		// synchronous_commit = remote_write waits for the write alone. A failed send fails the receive too.
		_ = s.sendStatus(false, false)
		if err := s.flush(); err != nil {
			s.w.abort(err)
			return
		}
		_ = s.sendStatus(false, false)
	}
}

// flush makes what was appended durable. It is called by one goroutine at a time: by the flusher, and at a timeline's end by the receiver.
func (s *session) flush() error {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	s.flushing.Store(time.Now().UnixNano())
	lsn, err := s.r.sink.Flush()
	s.flushing.Store(0)
	if err != nil {
		return &SinkError{"flush", err}
	}
	s.flushed.Store(uint64(max(lsn, pg.LSN(s.flushed.Load()))))
	return nil
}

// keepTime sends the updates that are due by time, pings a silent server, and breaks the connection to a dead one or because of a stalled sink: a server
// that waits for us must not wait for long (its fast shutdown does).
func (s *session) keepTime() {
	o := s.r.o
	tick := time.NewTicker(max(min(o.StatusInterval, o.ReceiveTimeout, o.StallTimeout)/8, time.Millisecond))
	defer tick.Stop()
	pinged := int64(0) // the last message's time when we pinged
	for {
		select {
		case <-s.stop:
			return
		case <-s.r.kick:
			_ = s.sendStatus(false, false) // a failed send fails the receive too
			continue
		case <-tick.C:
		}
		now := time.Now()
		since := func(nanos int64) time.Duration { return now.Sub(time.Unix(0, nanos)) }
		for _, start := range []int64{s.appending.Load(), s.flushing.Load()} {
			if start != 0 && since(start) > o.StallTimeout {
				s.w.abort(&SinkError{"append or flush", fmt.Errorf("%w: %v", ErrStalled, since(start).Round(time.Millisecond))})
				return
			}
		}
		received := s.received.Load()
		if s.appending.Load() == 0 && since(received) > o.ReceiveTimeout {
			s.w.abort(fmt.Errorf("%s: %w: no message for %v", s.w.where, ErrSilent, since(received).Round(time.Millisecond)))
			return
		}
		ping := pinged != received && since(received) > o.ReceiveTimeout/2
		if ping {
			pinged = received
		}
		s.send.Lock()
		due := now.Sub(s.sentAt) >= o.StatusInterval
		s.send.Unlock()
		if ping || due {
			_ = s.sendStatus(true, ping)
		}
	}
}

// sendStatus sends a standby status update if a position advanced since the last, or always where force is set. Write is what the sink took,
// flush what it made durable, apply what of that can be read: never zero, which servers take for unknown, and nothing before the last page was
// compared.
func (s *session) sendStatus(force, replyRequested bool) error {
	if !s.verified.Load() {
		return nil
	}
	s.send.Lock()
	defer s.send.Unlock()
	// Flush is read first: it never passes write.
	flush := pg.LSN(s.flushed.Load())
	write := pg.LSN(s.written.Load())
	apply := min(max(s.r.sink.Applied(), s.pos.First), flush)
	now := [3]pg.LSN{write, flush, apply}
	if !force && now == s.sent {
		return nil
	}
	if err := s.w.send(statusUpdate(now, time.Now(), replyRequested)); err != nil {
		return err
	}
	s.sent, s.sentAt = now, time.Now()
	return nil
}

// statusUpdate encodes a Standby status update in a CopyData message. The positions go as they are.
func statusUpdate(positions [3]pg.LSN, now time.Time, replyRequested bool) []byte {
	b := make([]byte, 0, 5+statusSize)
	b = append(b, 'd')
	b = binary.BigEndian.AppendUint32(b, 4+statusSize)
	b = append(b, pglogrepl.StandbyStatusUpdateByteID)
	for _, p := range positions {
		b = binary.BigEndian.AppendUint64(b, uint64(p))
	}
	b = binary.BigEndian.AppendUint64(b, uint64(pg.TimestampOf(now)))
	if replyRequested {
		return append(b, 1)
	}
	return append(b, 0)
}
