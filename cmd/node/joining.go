package node

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"everpage/cluster"
)

// The ports of the services between nodes.
const (
	raftPort   = 5431
	gossipPort = 5481
)

// addresses fills in where the services between nodes listen: beside the page service, on their own ports.
func (c *Config) addresses() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", c.Listen, err)
	}
	for _, a := range []struct {
		flag    string
		address *string
		port    int
	}{{"raft", &c.Raft, raftPort}, {"gossip", &c.Gossip, gossipPort}} {
		if *a.address == "" {
			*a.address = net.JoinHostPort(host, strconv.Itoa(a.port))
		}
		h, port, err := net.SplitHostPort(*a.address)
		if err != nil {
			return fmt.Errorf("--%s %s: %w", a.flag, *a.address, err)
		}
		if c.Advertise == "" { // where they listen is what the others are told
			h = c.reach(h)
		}
		*a.address = net.JoinHostPort(h, port)
	}
	return nil
}

// reach is the host at which others reach what listens on a host: where that is every interface, the first one that is not the loopback.
func (c *Config) reach(host string) string {
	if c.Advertise != "" {
		return c.Advertise
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return host
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		list = nil
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}

// join makes this node a member of its cluster.
func (n *Node) join(ctx context.Context) (*cluster.Cluster, error) {
	host, port, err := net.SplitHostPort(n.cfg.Listen)
	if err != nil {
		return nil, err
	}
	c, err := cluster.Start(ctx, cluster.Config{
		Dir: filepath.Join(n.cfg.Data, clusterDir), Name: n.cfg.Node, Cluster: n.cfg.Cluster, Zone: n.cfg.Zone, Version: Version(),
		Page: net.JoinHostPort(n.cfg.reach(host), port), Raft: n.cfg.Raft, Gossip: n.cfg.Gossip, Advertise: n.cfg.Advertise, Join: n.cfg.Join, Key: n.cfg.GossipKey,
		Shards: n.cfg.Shards, SegmentBlocks: n.cfg.SegmentBlocks, Replicas: n.cfg.Replicas, Peers: n.peers, Logger: n.cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	if s := c.State(); s.Shards != 0 {
		n.cfg.Shards, n.cfg.SegmentBlocks = s.Shards, s.SegmentBlocks
	}
	return c, nil
}

// watchCluster makes what the cluster agrees on known to the parts of this node.
func (n *Node) watchCluster(ctx context.Context) error {
	for {
		s, changed := n.cluster.Watch()
		if err := n.follow.refresh(s); err != nil {
			return err
		}
		n.pages.maps.Store(s.ClientMap())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.cluster.Failed():
			return n.cluster.Err()
		case <-changed:
		}
	}
}
