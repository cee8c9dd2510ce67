package cluster_test

import (
	"io"
	"net"
	"sync"
	"testing"

	"everpage/cluster"
	"everpage/cluster/command"
)

// translator lets what listens on one address be reached at another one, as a container's host does.
type translator struct {
	t      *testing.T
	group  sync.WaitGroup
	mu     sync.Mutex
	open   map[io.Closer]bool
	closed bool
	tcp    int // connections that came in
	udp    int // packets
}

// keep has c closed at the end; false if that is now.
func (n *translator) keep(c io.Closer) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		c.Close()
		return false
	}
	n.open[c] = true
	return true
}

func (n *translator) close() {
	n.mu.Lock()
	n.closed = true
	for c := range n.open {
		c.Close()
	}
	n.mu.Unlock()
	n.group.Wait()
}

func (n *translator) seen() (tcp, udp int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.tcp, n.udp
}

func (n *translator) translate(from, to string) {
	n.t.Helper()
	l, err := net.Listen("tcp", from)
	if err != nil {
		n.t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", from)
	if err != nil {
		n.t.Fatal(err)
	}
	n.keep(l)
	n.keep(p)
	n.group.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			n.mu.Lock()
			n.tcp++
			n.mu.Unlock()
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			if !n.keep(in) || !n.keep(out) {
				return
			}
			for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
				n.group.Go(func() {
					io.Copy(c[0], c[1])
					in.Close()
					out.Close()
				})
			}
		}
	})
	n.group.Go(func() { n.packets(p, to) })
}

// packets gives each sender a socket of its own, so that answers find their way back.
func (n *translator) packets(p net.PacketConn, to string) {
	senders := map[string]net.Conn{}
	b := make([]byte, 1<<16)
	for {
		k, sender, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		n.mu.Lock()
		n.udp++
		n.mu.Unlock()
		out := senders[sender.String()]
		if out == nil {
			if out, err = net.Dial("udp", to); err != nil || !n.keep(out) {
				return
			}
			senders[sender.String()] = out
			n.group.Go(func() {
				b := make([]byte, 1<<16)
				for {
					k, err := out.Read(b)
					if err != nil {
						return
					}
					p.WriteTo(b[:k], sender)
				}
			})
		}
		out.Write(b[:k])
	}
}

// A node can be reached by others at an address that it does not have itself.
func TestAdvertisedAddress(t *testing.T) {
	w := &wire{nodes: map[string]*cluster.Cluster{}}
	cfg := config(t, w, "n1")
	cfg.Advertise = "127.0.0.2"
	a := start(t, w, cfg)
	s := a.State()
	n := &translator{t: t, open: map[io.Closer]bool{}}
	t.Cleanup(n.close)
	for _, address := range []string{s.Nodes[0].RaftAddress, s.Nodes[0].GossipAddress} {
		host, port, err := net.SplitHostPort(address)
		if err != nil || host != "127.0.0.2" {
			t.Fatalf("the node says that it is reached at %s, %v", address, err)
		}
		n.translate(address, "127.0.0.1:"+port)
	}
	b := start(t, w, config(t, w, "n2", "page-n1"))
	start(t, w, config(t, w, "n3", "page-n2"))
	eventually(t, "three voters", func() bool { return voters(t, a) == 3 })
	// Another one leads, so that it has to reach the first.
	eventually(t, "n2 leads", func() bool {
		if !b.IsLeader() && a.IsLeader() {
			if err := a.HandOver(t.Context(), b.ID()); err != nil {
				t.Logf("hand over: %v", err)
			}
		}
		return b.IsLeader()
	})
	if _, err := b.Propose(t.Context(), &command.SetStore{URL: "file:///x"}); err != nil {
		t.Fatal(err)
	}
	until(t, a, "what the other one proposed", func(s *cluster.State) bool { return s.Store == "file:///x" })
	eventually(t, "connections and packets by the advertised address", func() bool { tcp, udp := n.seen(); return tcp > 0 && udp > 0 })
	a.kill()
	eventually(t, "n1 is seen to be gone", func() bool { return !reachable(b, "n1") })
	a.again(t)
	eventually(t, "n1 is back", func() bool { return reachable(b, "n1") })
}

func reachable(n *node, name string) bool {
	for _, m := range n.Members() {
		if m.Name == name {
			return m.Alive
		}
	}
	return false
}
