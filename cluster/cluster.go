// Package cluster is a node's part in its cluster: who is there (package members), what all agree on (packages raft and fsm), and how a node
// becomes a member and stays one. A single node is the same code with one voter.
//
// No page passes through here, and no record waits for it. Where a majority of the voters is gone nothing new can be agreed on, but every node goes on with
// the state that it knew last, even over a restart: it is kept beside the log.
package cluster

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"everpage/cluster/command"
	"everpage/cluster/fsm"
	"everpage/cluster/members"
	"everpage/cluster/raft"
)

// Config says how a node takes part.
type Config struct {
	Dir     string // of what this package keeps; made if absent
	Name    string
	Cluster string
	Zone    string
	Version string

	Page   string // where other nodes and clients reach this one
	Raft   string // host:port to listen on; port 0 is any free one, the same as last time if it can be had
	Gossip string
	// Advertise is the host at which other nodes reach Raft and gossip, at the ports listened on, where it isn't the host listened on.
	Advertise string
	Join      []string // page addresses of members; empty: a new cluster, where there is none yet
	Key       []byte   // of the gossip: 16, 24 or 32 bytes, nil: none

	Shards        uint32 // these three act only when the cluster is made
	SegmentBlocks uint32
	Replicas      int

	Peers  Peers
	Logger *slog.Logger

	RaftTimeout time.Duration // see raft.Options
	FastGossip  bool
}

// Peers is how a node calls others by their page addresses.
type Peers interface {
	Join(ctx context.Context, address string, r JoinRequest) (JoinAnswer, error)
	// Propose asks another node to put a command into the log. forwarded says that it must not ask a third.
	Propose(ctx context.Context, address string, entry []byte, forwarded bool) (Outcome, error)
}

// Outcome is what became of a command.
type Outcome = fsm.Outcome

// State is what the cluster agreed on.
type State = fsm.State

// JoinRequest is what a node tells of itself when it wants to be a member, or has moved.
type JoinRequest struct {
	ID, Name, Zone        string
	Cluster, ClusterID    string
	Page, Raft, Gossip    string
	Format, SegmentBlocks uint32
	Proof                 []byte
	Forwarded             bool
}

// JoinAnswer tells a new member what its cluster is.
type JoinAnswer struct {
	Cluster, ClusterID            string
	Shards, SegmentBlocks, Format uint32
	Gossip                        []string
	Refused                       string
}

// Cluster is this node's part in its cluster.
type Cluster struct {
	cfg     Config
	id      identity
	machine *fsm.FSM
	raft    *raft.Raft
	members *members.Members
	gossip  atomic.Pointer[members.Members] // members, for Raft's own goroutines
	cached  atomic.Pointer[State]           // until the log has come as far

	gathering gathering

	stop  context.CancelFunc
	group *errgroup.Group
}

// ErrRefused says that the cluster does not want this node as it is.
var ErrRefused = errors.New("the cluster refuses this node")

// Start makes a cluster, joins one, or comes back to one.
func Start(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	c := &Cluster{cfg: cfg, machine: fsm.New(nil)}
	if c.id, err = loadIdentity(&cfg); err != nil {
		return nil, err
	}
	c.cfg = cfg
	cached, err := loadCache(cfg.Dir)
	if err != nil {
		return nil, err
	}
	c.cached.Store(cached)
	c.gathering.wake = make(chan struct{}, 1)
	listener, err := c.listen(cfg.Raft, c.id.Raft)
	if err != nil {
		return nil, fmt.Errorf("raft service: %w; --raft chooses another address", err)
	}
	c.raft, err = raft.Start(raft.Options{
		ID: c.id.ID, Dir: filepath.Join(cfg.Dir, "raft"), Listen: listener, Advertise: cfg.Advertise, Bootstrap: len(cfg.Join) == 0 && c.id.ClusterID == "", AddressOf: c.raftAddress,
		Timeout: cfg.RaftTimeout, Logger: cfg.Logger, Cluster: func() string { return c.machine.State().ID },
	}, c.machine)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.group, runCtx = errgroup.WithContext(runCtx)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := errors.Join(c.renamed(), c.enter(ctx)); err != nil {
		return nil, err
	}
	c.group.Go(func() error { return c.keepCache(runCtx) })
	c.group.Go(func() error { return c.stayMember(runCtx) })
	c.group.Go(func() error { return c.lead(runCtx) })
	c.group.Go(func() error { return c.proposeGathered(runCtx) })
	return c, nil
}

// listen prefers the port it had last time where any would do.
func (c *Cluster) listen(address, last string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if lastHost, lastPort, err := net.SplitHostPort(last); port == "0" && err == nil && lastHost == cmp.Or(c.cfg.Advertise, host) {
		if l, err := net.Listen("tcp", net.JoinHostPort(host, lastPort)); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", address)
}

// enter makes this node a member, if it is none, and starts gossiping.
func (c *Cluster) enter(ctx context.Context) error {
	var gossip []string
	if c.id.ClusterID == "" && len(c.cfg.Join) > 0 {
		// The gossip address must be told before gossip can start, since only members may gossip.
		if err := c.chooseGossip(); err != nil {
			return err
		}
		answer, err := c.join(ctx)
		if err != nil {
			return err
		}
		c.id.ClusterID = answer.ClusterID
		if err := c.id.save(c.cfg.Dir); err != nil {
			return err
		}
		gossip = answer.Gossip
		waitCtx, cancel := context.WithTimeout(ctx, joinWait)
		defer cancel()
		if _, err := c.Until(waitCtx, func(s *State) bool { return s.Node(c.id.ID) != nil }); err != nil {
			return fmt.Errorf("the cluster has taken this node in, but its log does not arrive on %s: %w", c.raft.Address(), err)
		}
	} else if c.id.ClusterID == "" {
		if err := c.makeCluster(ctx); err != nil {
			return err
		}
	} else if c.raft.Alone() {
		if err := c.whenLeader(ctx, func() error { return c.raft.Barrier(ctx) }); err != nil {
			return fmt.Errorf("the only voter does not come to lead its own cluster: %w", err)
		}
	}
	for _, n := range c.State().Nodes {
		gossip = append(gossip, n.GossipAddress)
	}
	if err := c.startGossip(); err != nil {
		return err
	}
	c.id.Raft, c.id.Gossip = c.raft.Address(), c.members.Address()
	if err := c.id.save(c.cfg.Dir); err != nil {
		return err
	}
	if err := c.members.Join(gossip); err != nil {
		c.cfg.Logger.Warn("no other node answers gossip; it is tried again", "error", err)
	}
	if c.raft.Alone() && c.raft.Leads() { // so that the map says where this node is from the first moment on
		if err := c.announce(ctx); err != nil {
			return err
		}
	}
	return nil
}

// chooseGossip settles a free port, so that it can be told.
func (c *Cluster) chooseGossip() error {
	host, port, err := net.SplitHostPort(c.cfg.Gossip)
	if err != nil {
		return fmt.Errorf("gossip address %q: %w", c.cfg.Gossip, err)
	}
	if port != "0" {
		return nil
	}
	l, err := c.listen(c.cfg.Gossip, c.id.Gossip)
	if err != nil {
		return fmt.Errorf("gossip service: %w", err)
	}
	defer l.Close()
	_, port, err = net.SplitHostPort(l.Addr().String())
	c.cfg.Gossip = net.JoinHostPort(host, port)
	return err
}

func (c *Cluster) startGossip() error {
	if err := c.chooseGossip(); err != nil {
		return err
	}
	var err error
	c.members, err = members.Start(members.Options{
		Self: members.Meta{ID: c.id.ID, Name: c.cfg.Name, Cluster: c.id.ClusterID, Page: c.cfg.Page, Raft: c.raft.Address(), Zone: c.cfg.Zone, Format: fsm.Format,
			Version: c.cfg.Version},
		Listen: c.cfg.Gossip, Advertise: c.cfg.Advertise, Key: c.cfg.Key, Logger: c.cfg.Logger, Fast: c.cfg.FastGossip,
	})
	if err != nil {
		return err
	}
	c.gossip.Store(c.members)
	return nil
}

// makeCluster agrees with itself on a new cluster.
func (c *Cluster) makeCluster(ctx context.Context) error {
	err := c.whenLeader(ctx, func() error {
		if err := c.raft.Barrier(ctx); err != nil {
			return err
		}
		if c.State().ID != "" { // a start before this one came this far
			return nil
		}
		_, err := c.applyHere(ctx, &command.MakeCluster{
			ID: newID(), Name: c.cfg.Cluster, Format: fsm.Format, Shards: c.cfg.Shards, SegmentBlocks: c.cfg.SegmentBlocks, Replicas: c.cfg.Replicas,
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("make cluster %s: %w", c.cfg.Cluster, err)
	}
	c.id.ClusterID = c.State().ID
	return nil
}

const (
	leadWait  = 30 * time.Second
	retryWait = 20 * time.Millisecond
)

// whenLeader repeats fn until this node leads.
func (c *Cluster) whenLeader(ctx context.Context, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, leadWait)
	defer cancel()
	for {
		err := fn()
		if !errors.Is(err, raft.ErrNotLeader) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryWait):
		}
	}
}

// Close ends this node's part, without a word to the others.
func (c *Cluster) Close() error {
	c.stop()
	err := c.group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	if c.members != nil {
		err = errors.Join(err, c.members.Close())
	}
	return errors.Join(err, c.raft.Close())
}

// Failed is closed when this node can't follow the cluster's log any more, as when a newer release wrote it. Err says why.
func (c *Cluster) Failed() <-chan struct{} { return c.machine.Failed() }

// Err is why Failed is closed.
func (c *Cluster) Err() error { return c.machine.Err() }

// ID is this node's id, made once with its data directory.
func (c *Cluster) ID() string { return c.id.ID }

// State is the newest state that this node knows. It never changes itself.
func (c *Cluster) State() *State {
	return c.newer(c.machine.State())
}

// newer is a state of the log, or the one that was kept beside it as long as that is newer.
func (c *Cluster) newer(s *State) *State {
	if k := c.cached.Load(); k != nil {
		if s.Index < k.Index {
			return k
		}
		c.cached.Store(nil)
	}
	return s
}

// Watch is the newest state and a channel that is closed when there may be a newer one.
func (c *Cluster) Watch() (*State, <-chan struct{}) {
	s, changed := c.machine.Watch()
	return c.newer(s), changed
}

// Until waits for a state that ok accepts.
func (c *Cluster) Until(ctx context.Context, ok func(*State) bool) (*State, error) {
	for {
		s, changed := c.Watch()
		if ok(s) {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, context.Cause(ctx)
		case <-c.Failed():
			return s, c.Err()
		case <-changed:
		}
	}
}

// IsLeader tells whether this node leads now.
func (c *Cluster) IsLeader() bool { return c.raft.Leads() }

// Term is Raft's current term: no two leaders have one in common.
func (c *Cluster) Term() uint64 { return c.raft.Term() }

// Leader is the id of the node that leads, "" if none is known.
func (c *Cluster) Leader() string { return c.raft.Leader() }

// HandOver makes another voter the leader. Only the leader can.
func (c *Cluster) HandOver(ctx context.Context, id string) error { return c.raft.TransferTo(ctx, id) }

// Servers lists who takes part in the log.
func (c *Cluster) Servers() ([]raft.Server, error) { return c.raft.Servers() }

// Applied is the index of the last log entry that this node has.
func (c *Cluster) Applied() uint64 { return c.raft.Applied() }

// Members lists the nodes that gossip knows.
func (c *Cluster) Members() []members.Member { return c.members.List() }

// MembersChanged is closed when a node comes or goes.
func (c *Cluster) MembersChanged() <-chan struct{} { return c.members.Changed() }

// Alive tells whether a node answers, as far as gossip knows, and since when it does or doesn't. A node that was never seen since this one started has no time.
func (c *Cluster) Alive(id string) (alive bool, since time.Time) {
	if id == c.id.ID {
		return true, time.Time{}
	}
	m, ok := c.members.Get(id)
	if !ok {
		return false, time.Time{}
	}
	return m.Alive, m.Since
}

// PageAddress is where a node's page service is, "" if the node is unknown.
func (c *Cluster) PageAddress(id string) string {
	if c.members != nil {
		if m, ok := c.members.Get(id); ok {
			return m.Page
		}
	}
	if n := c.State().Node(id); n != nil {
		return n.PageAddress
	}
	return ""
}

// raftAddress is where a node listens for Raft.
func (c *Cluster) raftAddress(id string) string {
	if m := c.gossip.Load(); m != nil {
		if m, ok := m.Get(id); ok {
			return m.Raft
		}
	}
	if n := c.State().Node(id); n != nil {
		return n.RaftAddress
	}
	return ""
}

func newID() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// proof shows that a node has the gossip key, without telling it.
func proof(key []byte, id, name string) []byte {
	if len(key) == 0 {
		return nil
	}
	h := hmac.New(sha256.New, key)
	fmt.Fprintf(h, "everpage join\x00%s\x00%s", id, name)
	return h.Sum(nil)
}
