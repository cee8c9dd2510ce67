package cluster

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"everpage/cluster/command"
	"everpage/cluster/fsm"
)

// joinWait is how long a new node waits for a member to take it.
const joinWait = time.Minute

func (c *Cluster) request() JoinRequest {
	gossip := c.cfg.Gossip
	if _, port, err := net.SplitHostPort(gossip); err == nil && c.cfg.Advertise != "" {
		gossip = net.JoinHostPort(c.cfg.Advertise, port)
	}
	if c.members != nil {
		gossip = c.members.Address()
	}
	return JoinRequest{
		ID: c.id.ID, Name: c.cfg.Name, Zone: c.cfg.Zone, Cluster: c.cfg.Cluster, ClusterID: c.id.ClusterID, Page: c.cfg.Page, Raft: c.raft.Address(), Gossip: gossip,
		Format: fsm.Format, SegmentBlocks: c.cfg.SegmentBlocks, Proof: proof(c.cfg.Key, c.id.ID, c.cfg.Name),
	}
}

// join asks the members named by --join until one answers.
func (c *Cluster) join(ctx context.Context) (JoinAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, joinWait)
	defer cancel()
	told := false
	for {
		var errs []error
		for _, address := range c.cfg.Join {
			answer, err := c.cfg.Peers.Join(ctx, address, c.request())
			if err == nil && answer.Refused != "" {
				return answer, fmt.Errorf("%w: %s", ErrRefused, answer.Refused)
			}
			if err == nil {
				return answer, nil
			}
			errs = append(errs, err)
		}
		if !told {
			c.cfg.Logger.Warn("no member takes this node yet", "error", errors.Join(errs...))
			told = true
		}
		select {
		case <-ctx.Done():
			return JoinAnswer{}, fmt.Errorf("none of the nodes named by --join (%s) could take this one in: %w", strings.Join(c.cfg.Join, ", "), errors.Join(errs...))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// HandleJoin answers a node that wants to be a member, or a member that has moved.
func (c *Cluster) HandleJoin(ctx context.Context, r JoinRequest) (JoinAnswer, error) {
	if reason := c.refuses(r); reason != "" {
		c.cfg.Logger.Warn("a node was refused", "node", r.Name, "address", r.Page, "reason", reason)
		return JoinAnswer{Refused: reason}, nil
	}
	if !c.raft.Leads() {
		leader := c.raft.Leader()
		address := c.PageAddress(leader)
		if leader == "" || address == "" || r.Forwarded {
			return JoinAnswer{}, fmt.Errorf("node %s knows of no leader that could take a node in: %w", c.cfg.Name, ErrNoLeader)
		}
		r.Forwarded = true
		return c.cfg.Peers.Join(ctx, address, r)
	}
	put := c.put(r)
	if other := c.State().NodeNamed(r.Name); other != nil && other.ID != r.ID {
		// Two processes can't be at one address, and a dead node that lost its directory comes back under a new id.
		alive, since := c.Alive(other.ID)
		put.ReplacesDeadNodeOfSameName = other.PageAddress == r.Page || !alive && !since.IsZero()
	}
	o, err := c.applyHere(ctx, put)
	if err != nil {
		return JoinAnswer{}, err
	}
	if o.Refused != "" {
		return JoinAnswer{Refused: o.Refused}, nil
	}
	if err := c.admit(ctx); err != nil { // without this the new node hears nothing of the log
		return JoinAnswer{}, err
	}
	s := c.State()
	answer := JoinAnswer{Cluster: s.Name, ClusterID: s.ID, Shards: s.Shards, SegmentBlocks: s.SegmentBlocks, Format: s.Format}
	for _, n := range s.Nodes {
		if n.ID != r.ID {
			answer.Gossip = append(answer.Gossip, n.GossipAddress)
		}
	}
	return answer, nil
}

// refuses is why a node can't be a member, as far as that can be told without the state.
func (c *Cluster) refuses(r JoinRequest) string {
	s := c.State()
	switch {
	case s.ID == "":
		return "this node is no member of a cluster itself yet"
	case !hmac.Equal(r.Proof, proof(c.cfg.Key, r.ID, r.Name)):
		return "its gossip key is not the cluster's: give the same --gossip-key to all nodes"
	case r.Cluster != s.Name:
		return fmt.Sprintf("it was started for cluster %s, this is cluster %s: name it with --cluster", r.Cluster, s.Name)
	case r.ClusterID != "" && r.ClusterID != s.ID:
		return fmt.Sprintf("its data directory belongs to another cluster (%s, this one is %s): take an empty --data", r.ClusterID, s.ID)
	case r.Format < s.Format:
		return fmt.Sprintf("it knows formats up to %d, the cluster has %d: run the newer release on it", r.Format, s.Format)
	case r.SegmentBlocks != s.SegmentBlocks:
		return fmt.Sprintf("its chunks have %d blocks, the cluster's %d", r.SegmentBlocks, s.SegmentBlocks)
	}
	return ""
}

func (c *Cluster) put(r JoinRequest) *command.PutNode {
	return &command.PutNode{ID: r.ID, Name: r.Name, Zone: r.Zone, PageAddress: r.Page, RaftAddress: r.Raft, GossipAddress: r.Gossip, Format: r.Format}
}

// announce makes the state say where this node is, as its leader.
func (c *Cluster) announce(ctx context.Context) error {
	if c.announced() {
		return nil
	}
	o, err := c.applyHere(ctx, c.put(c.request()))
	if err == nil && o.Refused != "" {
		err = fmt.Errorf("%w: %s", ErrRefused, o.Refused)
	}
	return err
}

// announced tells whether the state says where this node is.
func (c *Cluster) announced() bool {
	n, r := c.State().Node(c.id.ID), c.request()
	return n != nil && n.PageAddress == r.Page && n.RaftAddress == r.Raft && n.GossipAddress == r.Gossip && n.Zone == r.Zone && n.Format == r.Format
}

const memberEvery = time.Second

// stayMember tells the cluster where this node is until the state says so, and finds the others again after a partition.
func (c *Cluster) stayMember(ctx context.Context) error {
	told := ""
	for n := 0; ; n++ {
		if !c.announced() && c.raft.Leads() {
			if err := c.announce(ctx); err != nil && ctx.Err() == nil {
				c.cfg.Logger.Warn("this node can't tell where it is", "error", err)
			}
		} else if !c.announced() {
			for _, address := range c.contacts() {
				callCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
				answer, err := c.cfg.Peers.Join(callCtx, address, c.request())
				cancel()
				if err == nil && answer.Refused == "" {
					break
				}
				if answer.Refused != "" && answer.Refused != told {
					told = answer.Refused
					c.cfg.Logger.Error("the cluster refuses this node; what it has is still read", "reason", told)
				}
			}
		}
		if n%5 == 0 {
			c.rejoinGossip()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(memberEvery):
		}
	}
}

// contacts are the page addresses of other nodes, the leader's first.
func (c *Cluster) contacts() []string {
	var out []string
	add := func(a string) {
		if a != "" && a != c.cfg.Page && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	add(c.PageAddress(c.raft.Leader()))
	for _, m := range c.members.List() {
		if m.Alive {
			add(m.Page)
		}
	}
	for _, n := range c.State().Nodes {
		add(n.PageAddress)
	}
	for _, a := range c.cfg.Join {
		add(a)
	}
	return out
}

// rejoinGossip contacts members that gossip doesn't see: after a partition nobody else would.
func (c *Cluster) rejoinGossip() {
	var lost []string
	for _, n := range c.State().Nodes {
		if alive, _ := c.Alive(n.ID); !alive {
			lost = append(lost, n.GossipAddress)
		}
	}
	if err := c.members.Join(lost); err != nil {
		c.cfg.Logger.Debug("nodes that gossip lost don't answer", "error", err)
	}
}
