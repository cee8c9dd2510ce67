package pgtest

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Port is a TCP port that is kept for a server while that is down. A socket is bound to it that never listens: a server, which reuses addresses as PostgreSQL
// and Go do, binds it all the same, and nobody who asks the kernel for any free port is given it.
type Port struct {
	Number int
	socket int
}

// HoldPort takes a free port of an IPv4 address. An address of another network namespace gives unix.EADDRNOTAVAIL.
func HoldPort(host string) (*Port, error) {
	p, err := holdPort(host)
	if err != nil {
		return nil, fmt.Errorf("find a free port of %s: %w", host, err)
	}
	return p, nil
}

func holdPort(host string) (*Port, error) {
	address, err := netip.ParseAddr(host)
	if err != nil {
		return nil, err
	}
	p := &Port{}
	if p.socket, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(p.socket, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		p.Release()
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(p.socket, &unix.SockaddrInet4{Addr: address.As4()}); err != nil {
		p.Release()
		return nil, os.NewSyscallError("bind", err)
	}
	bound, err := unix.Getsockname(p.socket)
	if err != nil {
		p.Release()
		return nil, os.NewSyscallError("getsockname", err)
	}
	p.Number = bound.(*unix.SockaddrInet4).Port
	return p, nil
}

// Release gives the port back. A nil Port is none.
func (p *Port) Release() {
	if p != nil {
		unix.Close(p.socket)
	}
}
