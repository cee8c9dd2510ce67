package node

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"everpage/cluster"
	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
)

// peers calls other nodes' NodeService, over one connection each.
type peers struct {
	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn
	closed bool
}

func newPeers() *peers { return &peers{conns: map[string]*grpc.ClientConn{}} }

// maxPeerMessage bounds what one message between nodes may have.
const maxPeerMessage = 64 << 20

// at is the service of the node at an address.
func (p *peers) at(address string) (pb.NodeServiceClient, error) {
	c, err := p.conn(address)
	if err != nil {
		return nil, err
	}
	return pb.NewNodeServiceClient(c), nil
}

// backup is the service around the store of the node at an address.
func (p *peers) backup(address string) (pb.BackupServiceClient, error) {
	c, err := p.conn(address)
	if err != nil {
		return nil, err
	}
	return pb.NewBackupServiceClient(c), nil
}

func (p *peers) conn(address string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("the node stops")
	}
	c := p.conns[address]
	if c == nil {
		var err error
		retry := backoff.DefaultConfig
		retry.BaseDelay, retry.MaxDelay = peerRetry, 10*peerRetry // a peer that comes back is wanted at once
		c, err = grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: peerConnect}),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: peerPing, Timeout: peerSilence}), // one that is paused answers nothing
			grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(4<<20), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPeerMessage)))
		if err != nil {
			return nil, err
		}
		p.conns[address] = c
	}
	return c, nil
}

func (p *peers) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for _, c := range p.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Join implements cluster.Peers.
func (p *peers) Join(ctx context.Context, address string, r cluster.JoinRequest) (cluster.JoinAnswer, error) {
	c, err := p.at(address)
	if err != nil {
		return cluster.JoinAnswer{}, err
	}
	a, err := c.Join(ctx, &pb.JoinRequest{
		Id: r.ID, Name: r.Name, Cluster: r.Cluster, ClusterId: r.ClusterID, PageAddress: r.Page, RaftAddress: r.Raft, GossipAddress: r.Gossip, Zone: r.Zone,
		Format: r.Format, SegmentBlocks: r.SegmentBlocks, Proof: r.Proof, Forwarded: r.Forwarded,
	})
	if err != nil {
		return cluster.JoinAnswer{}, pageapi.CallError(address, err)
	}
	return cluster.JoinAnswer{
		Cluster: a.Cluster, ClusterID: a.ClusterId, Shards: a.Shards, SegmentBlocks: a.SegmentBlocks, Format: a.Format, Gossip: a.GossipAddresses, Refused: a.Refused,
	}, nil
}

// Propose implements cluster.Peers.
func (p *peers) Propose(ctx context.Context, address string, entry []byte, forwarded bool) (cluster.Outcome, error) {
	c, err := p.at(address)
	if err != nil {
		return cluster.Outcome{}, err
	}
	a, err := c.Propose(ctx, &pb.ProposeRequest{Command: entry, Forwarded: forwarded})
	if err != nil {
		return cluster.Outcome{}, pageapi.CallError(address, err)
	}
	return cluster.Outcome{Index: a.Index, Result: a.Result, Refused: a.Refused}, nil
}
