// Package members says which nodes of the cluster are there and where: hashicorp's memberlist, encrypted where there is a key.
package members

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Meta is what a node tells of itself.
type Meta struct {
	ID      string `json:"-"`
	Name    string `json:"n"`
	Cluster string `json:"c"` // id
	Page    string `json:"p"`
	Raft    string `json:"r"`
	Gossip  string `json:"g"`
	Zone    string `json:"z,omitempty"`
	Format  uint32 `json:"f"`
	Version string `json:"v,omitempty"`
}

// Options say how a node gossips.
type Options struct {
	Self   Meta
	Listen string // host:port; port 0 is any free one
	// Advertise is the host at which the others reach it, where it isn't the one listened on.
	Advertise string
	Key       []byte // 16, 24 or 32 bytes; nil: not encrypted
	Logger    *slog.Logger
	// Fast makes failures known sooner, for tests.
	Fast bool
}

// Member is a node as gossip knows it.
type Member struct {
	Meta
	Alive bool
	Since time.Time // of the last change of Alive, as seen here
}

// Members is this node's part in the gossip.
type Members struct {
	opt  Options
	list *memberlist.Memberlist

	mu      sync.Mutex
	known   map[string]Member // by id, those that left too
	self    Meta
	changed chan struct{}
}

// Start starts gossiping; Join finds the others.
func Start(o Options) (*Members, error) {
	m := &Members{opt: o, self: o.Self, known: map[string]Member{}, changed: make(chan struct{})}
	// memberlist takes a host that is no IP address for every interface, and tells the others so.
	addr, err := net.ResolveTCPAddr("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("gossip address %q: %w", o.Listen, err)
	}
	if err := fits(o.Self); err != nil {
		return nil, err
	}
	cfg := memberlist.DefaultLANConfig()
	if o.Fast {
		cfg = memberlist.DefaultLocalConfig()
		cfg.ProbeInterval, cfg.ProbeTimeout, cfg.SuspicionMult = 100*time.Millisecond, 50*time.Millisecond, 1
	}
	cfg.Name = o.Self.ID
	cfg.BindAddr, cfg.AdvertiseAddr = "0.0.0.0", ""
	if addr.IP != nil {
		cfg.BindAddr = addr.IP.String()
	}
	cfg.BindPort, cfg.AdvertisePort = addr.Port, addr.Port
	if o.Advertise != "" {
		ip, err := net.ResolveIPAddr("ip", o.Advertise)
		if err != nil {
			return nil, fmt.Errorf("advertised address %q: %w", o.Advertise, err)
		}
		cfg.AdvertiseAddr = ip.String()
	}
	cfg.SecretKey = o.Key
	cfg.DeadNodeReclaimTime = time.Millisecond // a node that comes back may have moved
	cfg.Delegate, cfg.Events, cfg.Alive = delegate{m}, events{m}, alive{m}
	cfg.Logger = log.New(writer{o.Logger.With("part", "gossip")}, "", 0)
	cfg.LogOutput = nil
	cfg.PushPullInterval = 10 * time.Second
	if m.list, err = memberlist.Create(cfg); err != nil {
		return nil, fmt.Errorf("gossip on %s: %w", o.Listen, err)
	}
	gossip := m.address() // not under mu: memberlist calls seen with its own lock held, which this takes
	m.mu.Lock()
	m.self.Gossip = gossip
	m.mu.Unlock()
	if err := m.list.UpdateNode(0); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// longestAddress is the longest that a node's gossip address can be.
const longestAddress = "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535"

// fits refuses what is too long for gossip to carry: a node that tells nothing of itself is none to the others.
func fits(self Meta) error {
	self.Gossip = longestAddress
	b, err := json.Marshal(self)
	if err != nil {
		return err
	}
	if over := len(b) - memberlist.MetaMaxSize; over > 0 {
		return fmt.Errorf("what this node tells the others of itself is %d bytes too long for gossip: shorten its zone (%d bytes) or its addresses (%s, %s)",
			over, len(self.Zone), self.Page, self.Raft)
	}
	return nil
}

func (m *Members) address() string {
	n := m.list.LocalNode()
	return net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(n.Port)))
}

// Address is where this node gossips.
func (m *Members) Address() string { return m.address() }

// Join contacts others; one that answers is enough. It is harmless to repeat.
func (m *Members) Join(addresses []string) error {
	addresses = slices.DeleteFunc(slices.Clone(addresses), func(a string) bool { return a == "" || a == m.address() })
	if len(addresses) == 0 {
		return nil
	}
	n, err := m.list.Join(addresses)
	if n > 0 {
		return nil
	}
	return err
}

// List is every node that was seen since the start, in the order of their ids.
func (m *Members) List() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Member, 0, len(m.known))
	for _, k := range m.known {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Get finds a node by id.
func (m *Members) Get(id string) (Member, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, ok := m.known[id]
	return k, ok
}

// Changed is closed at the next change of any node.
func (m *Members) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// Close stops gossiping without a word, as a crash would: the others find out by themselves. A node that leaves for good calls Leave before.
func (m *Members) Close() error { return m.list.Shutdown() }

// Leave tells the others that this node goes.
func (m *Members) Leave(timeout time.Duration) error { return m.list.Leave(timeout) }

func (m *Members) seen(n *memberlist.Node, isAlive bool) {
	meta, err := decode(n)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, known := m.known[meta.ID]
	since := old.Since
	if !known || old.Alive != isAlive {
		since = time.Now()
	}
	m.known[meta.ID] = Member{Meta: meta, Alive: isAlive, Since: since}
	close(m.changed)
	m.changed = make(chan struct{})
}

func decode(n *memberlist.Node) (Meta, error) {
	meta := Meta{ID: n.Name}
	if err := json.Unmarshal(n.Meta, &meta); err != nil {
		return meta, fmt.Errorf("node %s tells nothing of itself that is understood: %w", n.Name, err)
	}
	if meta.Gossip == "" {
		meta.Gossip = net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(n.Port)))
	}
	return meta, nil
}

type delegate struct{ m *Members }

func (d delegate) NodeMeta(limit int) []byte {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	b, err := json.Marshal(d.m.self)
	if err != nil || len(b) > limit {
		d.m.opt.Logger.Error("what the node tells of itself is too long for gossip", "bytes", len(b), "limit", limit)
		return nil
	}
	return b
}
func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

type events struct{ m *Members }

func (e events) NotifyJoin(n *memberlist.Node)   { e.m.seen(n, true) }
func (e events) NotifyLeave(n *memberlist.Node)  { e.m.seen(n, false) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.m.seen(n, true) }

type alive struct{ m *Members }

// NotifyAlive keeps nodes of other clusters out.
func (a alive) NotifyAlive(n *memberlist.Node) error {
	meta, err := decode(n)
	if err != nil {
		return err
	}
	if own := a.m.opt.Self.Cluster; meta.Cluster != own {
		return fmt.Errorf("node %s at %s is of another cluster (%s, not %s)", meta.Name, meta.Gossip, meta.Cluster, own)
	}
	return nil
}

// writer passes memberlist's log lines on to slog.
type writer struct{ log *slog.Logger }

func (w writer) Write(p []byte) (int, error) {
	text := strings.TrimSpace(string(p))
	level := slog.LevelDebug
	for prefix, l := range map[string]slog.Level{"[ERR]": slog.LevelWarn, "[WARN]": slog.LevelInfo} {
		if strings.HasPrefix(text, prefix) {
			level, text = l, strings.TrimSpace(text[len(prefix):])
		}
	}
	w.log.Log(context.Background(), level, strings.TrimPrefix(strings.TrimPrefix(text, "[INFO] "), "[DEBUG] "))
	return len(p), nil
}

var _ io.Writer = writer{}
