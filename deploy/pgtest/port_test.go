package pgtest

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHeldPort: servers come and go on a held port, and nobody else is given it.
func TestHeldPort(t *testing.T) {
	p, err := HoldPort("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	for range 2 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p.Number))
		if err != nil {
			t.Fatalf("a server on the held port: %v", err)
		}
		l.Close()
	}
	// A socket that may be given this port alone, of all that are free.
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	const localPortRange = 51 // IP_LOCAL_PORT_RANGE, since Linux 6.3
	if err := unix.SetsockoptInt(s, unix.SOL_IP, localPortRange, p.Number<<16|p.Number); err != nil {
		t.Logf("this kernel can't be asked for a port of a range: %v", err)
		return
	}
	loopback := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Bind(s, loopback); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a held port was given to somebody else: %v", err)
	}
	p.Release()
	p.socket = -1
	if err := unix.Bind(s, loopback); err != nil {
		t.Errorf("a port that is held no more: %v", err)
	}
}
