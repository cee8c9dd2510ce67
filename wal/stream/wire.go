package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"everpage/wal/pg"
)

// wire is a connection taken over from the driver for a long copy: messages are read without a copy or a goroutine. One goroutine
// receives; any may send.
type wire struct {
	net   net.Conn
	fe    *pgproto3.Frontend
	where string

	mu     sync.Mutex
	cause  error // why the connection was broken on purpose
	closed bool
	stop   func() bool
}

// takeOver makes the connection a wire, which ctx breaks. The Conn is empty afterwards.
func (c *Conn) takeOver(ctx context.Context) (*wire, error) {
	if c.pgc == nil {
		return nil, errClosed
	}
	h, err := c.pgc.Hijack()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.where, err)
	}
	c.pgc = nil
	w := &wire{net: h.Conn, fe: h.Frontend, where: c.where}
	w.stop = context.AfterFunc(ctx, func() { w.abort(context.Cause(ctx)) })
	return w, nil
}

// sendTimeout bounds a write. The server reads what we send at any time, so a longer one is a dead peer.
const sendTimeout = 30 * time.Second

// query sends a command.
func (w *wire) query(command string) error {
	w.fe.SendQuery(&pgproto3.Query{String: command})
	return w.flush()
}

func (w *wire) flush() error {
	if err := w.net.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return w.fail(err)
	}
	return w.fail(w.fe.Flush())
}

// send writes encoded messages at once.
func (w *wire) send(b []byte) error {
	if err := w.net.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return w.fail(err)
	}
	_, err := w.net.Write(b)
	return w.fail(err)
}

// receive reads the next message, valid until the next call. An error that the server sends comes as an error.
func (w *wire) receive() (pgproto3.BackendMessage, error) {
	for {
		msg, err := w.fe.Receive()
		if err != nil {
			return nil, w.fail(err)
		}
		switch msg := msg.(type) {
		case *pgproto3.ErrorResponse:
			return nil, serverError(pgconn.ErrorResponseToPgError(msg))
		case *pgproto3.ParameterStatus:
			continue
		}
		return msg, nil
	}
}

// fail replaces the network's error by the reason for which we broke the connection, if we did.
func (w *wire) fail(err error) error {
	if err == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cause != nil {
		return w.cause
	}
	return fmt.Errorf("%s: connection lost: %w", w.where, err)
}

// abort closes the connection; a receive and a send under way return cause, at once. The first cause stays.
func (w *wire) abort(cause error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cause == nil && !w.closed {
		w.cause = cause
	}
	w.goodbye()
}

// close says goodbye, if the connection is still good for it, and closes.
func (w *wire) close() {
	w.stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.goodbye()
}

func (w *wire) goodbye() {
	if w.closed {
		return
	}
	w.closed = true
	_ = w.net.SetDeadline(time.Unix(1, 0)) // ends a send under way, which would be in the way
	_ = w.net.SetWriteDeadline(time.Now().Add(time.Second))
	if b, err := (&pgproto3.Terminate{}).Encode(nil); err == nil {
		_, _ = w.net.Write(b) // without it the server notices the end all the same
	}
	_ = w.net.Close()
}

// textRow is a row of a result, copied.
type textRow []string

// result reads one result of text rows, up to its CommandComplete or the message after its rows.
// It returns that message where it is not a CommandComplete.
func (w *wire) result(columns int) ([]textRow, pgproto3.BackendMessage, error) {
	var rows []textRow
	for {
		msg, err := w.receive()
		if err != nil {
			return nil, nil, err
		}
		switch msg := msg.(type) {
		case *pgproto3.RowDescription:
			if len(msg.Fields) < columns {
				return nil, nil, fmt.Errorf("%s: result has %d columns, want %d", w.where, len(msg.Fields), columns)
			}
		case *pgproto3.DataRow:
			if len(msg.Values) < columns {
				return nil, nil, fmt.Errorf("%s: row has %d columns, want %d", w.where, len(msg.Values), columns)
			}
			row := make(textRow, len(msg.Values))
			for i, v := range msg.Values {
				row[i] = string(v)
			}
			rows = append(rows, row)
		case *pgproto3.NoticeResponse:
		case *pgproto3.CommandComplete:
			return rows, nil, nil
		default:
			return rows, msg, nil
		}
	}
}

// position reads a row of LSN and timeline.
func position(rows []textRow) (pg.LSN, pg.TimelineID, error) {
	if len(rows) != 1 {
		return 0, 0, fmt.Errorf("%d rows, want one of LSN and timeline", len(rows))
	}
	lsn, err := pg.ParseLSN(rows[0][0])
	if err != nil {
		return 0, 0, err
	}
	tli, err := strconv.ParseUint(rows[0][1], 10, 32)
	if err != nil || tli == 0 {
		return 0, 0, fmt.Errorf("%q is not a timeline", rows[0][1])
	}
	return lsn, pg.TimelineID(tli), nil
}

var errProtocol = errors.New("unexpected message")
