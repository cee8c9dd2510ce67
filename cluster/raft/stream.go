package raft

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// stream is how Raft's connections are made. It closes with the connections that it made or took, which hashicorp's transport leaves to their peers. Each
// begins with the id of the cluster: a leader that was given up for lost must not lead those who went on without it.
type stream struct {
	net.Listener
	reached net.Addr      // what others know as its address
	cluster func() string // "" while it is not known
	mu      sync.Mutex
	conns   map[*conn]struct{}
	closed  bool
}

type conn struct {
	net.Conn
	s      *stream
	greets bool // the peer has yet to say which cluster it is of
}

func newStream(l net.Listener, advertise string, cluster func() string) *stream {
	s := &stream{Listener: l, reached: l.Addr(), cluster: cluster, conns: map[*conn]struct{}{}}
	if _, port, err := net.SplitHostPort(l.Addr().String()); err == nil && advertise != "" {
		s.reached = advertised(net.JoinHostPort(advertise, port))
	}
	return s
}

// advertised is an address that may not be one of this machine's.
type advertised string

// Network implements net.Addr.
func (advertised) Network() string { return "tcp" }

// String implements net.Addr.
func (a advertised) String() string { return string(a) }

// Addr implements net.Listener.
func (s *stream) Addr() net.Addr { return s.reached }

func (s *stream) keep(c net.Conn) (*conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	k := &conn{Conn: c, s: s}
	s.conns[k] = struct{}{}
	return k, nil
}

// Accept implements net.Listener.
func (s *stream) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	k, err := s.keep(c)
	if err != nil {
		return nil, err
	}
	k.greets = true
	return k, nil
}

// Read implements net.Conn. Only the goroutine that serves the connection reads.
func (c *conn) Read(p []byte) (int, error) {
	if c.greets {
		var n [1]byte
		if _, err := io.ReadFull(c.Conn, n[:]); err != nil {
			return 0, err
		}
		theirs := make([]byte, n[0])
		if _, err := io.ReadFull(c.Conn, theirs); err != nil {
			return 0, err
		}
		if ours := c.s.cluster(); ours != "" && ours != string(theirs) {
			return 0, fmt.Errorf("%s is of another cluster (%s, not %s)", c.RemoteAddr(), theirs, ours)
		}
		c.greets = false
	}
	return c.Conn.Read(p)
}

// Dial implements raft.StreamLayer.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", string(address), timeout)
	if err != nil {
		return nil, err
	}
	k, err := s.keep(c)
	if err != nil {
		return nil, err
	}
	id := s.cluster()
	if _, err := k.Write(append([]byte{byte(len(id))}, id...)); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// Close implements net.Listener.
func (s *stream) Close() error {
	s.mu.Lock()
	s.closed = true
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	err := s.Listener.Close()
	for c := range conns {
		c.Conn.Close()
	}
	return err
}

// Close forgets the connection.
func (c *conn) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c)
	c.s.mu.Unlock()
	return c.Conn.Close()
}
