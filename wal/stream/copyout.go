package stream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
)

// section is one part of a base backup: a tar archive or the manifest.
type section struct {
	manifest bool
	name     string // of the archive, 15 and later: base.tar or OID.tar
}

// copyOut reads the copies that BASE_BACKUP sends, as sections. 14 sends one copy a section; 15 and later send all in one, in typed
// messages (bbsink_copystream). Reading it gives the bytes of the current section.
type copyOut struct {
	w      *wire
	typed  bool
	inCopy bool
	data   []byte // rest of the current message, valid until the next receive
	ahead  bool   // 15 and later: next is the section's header that ended the one before
	next   section
	done   bool  // the last copy ended
	bytes  int64 // received in all sections
	warn   func(string)
	tail   pgproto3.BackendMessage // the message behind the last copy, where it had to be read to know that it was the last
}

// nextSection goes to the next section. It returns false behind the last one. What was left of the current one is skipped.
func (c *copyOut) nextSection() (section, bool, error) {
	if _, err := io.Copy(io.Discard, c); err != nil {
		return section{}, false, err
	}
	if !c.typed {
		return c.nextCopy()
	}
	if !c.inCopy && !c.done {
		if _, ok, err := c.nextCopy(); err != nil || !ok {
			return section{}, false, fmt.Errorf("no copy: %w", errors.Join(err, errProtocol))
		}
		if _, err := io.Copy(io.Discard, c); err != nil { // up to the first header
			return section{}, false, err
		}
	}
	if !c.ahead {
		return section{}, false, nil
	}
	c.ahead = false
	return c.next, true, nil
}

// nextCopy waits for the start of a copy.
func (c *copyOut) nextCopy() (section, bool, error) {
	for {
		msg, err := c.w.receive()
		if err != nil {
			return section{}, false, err
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyOutResponse:
			c.inCopy = true
			return section{}, true, nil
		case *pgproto3.NoticeResponse:
			c.notice(msg)
		default:
			c.done, c.tail = true, msg
			return section{}, false, nil
		}
	}
}

func (c *copyOut) notice(n *pgproto3.NoticeResponse) {
	if c.warn != nil {
		c.warn(strings.TrimSpace(n.Severity + ": " + n.Message + " " + n.Detail))
	}
}

// Read reads the current section.
func (c *copyOut) Read(p []byte) (int, error) {
	for len(c.data) == 0 {
		if !c.inCopy || c.ahead {
			return 0, io.EOF
		}
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	return n, nil
}

// fill receives the next message of the current copy.
func (c *copyOut) fill() error {
	msg, err := c.w.receive()
	if err != nil {
		return err
	}
	switch msg := msg.(type) {
	case *pgproto3.CopyData:
		if !c.typed {
			c.data = msg.Data
			c.bytes += int64(len(msg.Data))
			return nil
		}
		return c.typedMessage(msg.Data)
	case *pgproto3.CopyDone:
		c.inCopy = false
		c.done = c.done || c.typed
	case *pgproto3.NoticeResponse:
		c.notice(msg)
	default:
		return fmt.Errorf("%w %T in a base backup's copy", errProtocol, msg)
	}
	return nil
}

func (c *copyOut) typedMessage(b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: empty in a base backup's copy", errProtocol)
	}
	switch b[0] {
	case 'd':
		c.data = b[1:]
		c.bytes += int64(len(c.data))
	case 'n':
		name, rest, ok := bytes.Cut(b[1:], []byte{0})
		if _, _, ok2 := bytes.Cut(rest, []byte{0}); !ok || !ok2 {
			return fmt.Errorf("%w: new archive without a name", errProtocol)
		}
		c.ahead, c.next = true, section{name: string(name)}
	case 'm':
		c.ahead, c.next = true, section{manifest: true}
	case 'p': // the server's progress; we count ourselves
	default:
		return fmt.Errorf("%w of type %q in a base backup's copy", errProtocol, b[0])
	}
	return nil
}
