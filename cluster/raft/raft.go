// Package raft runs the cluster's log: hashicorp's Raft over TCP, with its log in bbolt and its state machine in package fsm.
package raft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"everpage/cluster/fsm"
)

// Options say how a node takes part.
type Options struct {
	ID     string
	Dir    string // of log and snapshots; made if absent
	Listen net.Listener
	// Advertise is the host at which the others reach Listen, where it isn't the one it listens on.
	Advertise string
	// Bootstrap makes a new cluster of this node alone, where the directory has none yet.
	Bootstrap bool
	// AddressOf finds where a node listens for Raft now; "" if it is not known.
	AddressOf func(id string) string
	// Timeout is how long a leader may be silent until another one stands; 0: 1.5 seconds.
	Timeout time.Duration
	// Cluster is the id of the cluster, "" while it is not known: nodes of others are not heard.
	Cluster func() string
	Logger  *slog.Logger
}

// MaxVoters bounds the nodes whose disks a change waits for.
const MaxVoters = 5

// Raft is this node's part in the log.
type Raft struct {
	opt       Options
	raft      *raft.Raft
	transport *raft.NetworkTransport
	store     *raftboltdb.BoltStore
	fresh     bool
}

const (
	maxPool          = 3
	transportTimeout = 5 * time.Second
	keptSnapshots    = 2
	// One request to a follower at a time: no pipeline. hashicorp's (1.7.3) stands still for good when a follower refuses an entry, as one with a full disk does,
	// while the next is on its way: that follower gets nothing more from this leader, and the leader can't be shut down.
	requestsInFlight = 1
)

// Start starts it. A node that is its cluster's only voter leads at once.
func Start(o Options, machine *fsm.FSM) (r *Raft, err error) {
	if o.Timeout == 0 {
		o.Timeout = 1500 * time.Millisecond
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	log := &hclogger{log: o.Logger.With("part", "raft")}
	store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(o.Dir, "log.db")})
	if err != nil {
		return nil, fmt.Errorf("raft log in %s: %w", o.Dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, store.Close())
		}
	}()
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(o.Dir, keptSnapshots, log)
	if err != nil {
		return nil, fmt.Errorf("raft snapshots in %s: %w", o.Dir, err)
	}
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(o.ID)
	cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLeaseTimeout = o.Timeout, o.Timeout, o.Timeout/2
	cfg.CommitTimeout = min(cfg.CommitTimeout, o.Timeout/10)
	cfg.Logger = log
	cfg.NoLegacyTelemetry = true
	cfg.ShutdownOnRemove = false // the node says so itself, and goes on reading
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: newStream(o.Listen, o.Advertise, o.Cluster), MaxPool: maxPool, MaxRPCsInFlight: requestsInFlight, Timeout: transportTimeout, Logger: log,
		ServerAddressProvider: addresses{o},
	})
	defer func() {
		if err != nil {
			err = errors.Join(err, transport.Close())
		}
	}()
	has, err := raft.HasExistingState(store, store, snapshots)
	if err != nil {
		return nil, fmt.Errorf("raft log in %s: %w", o.Dir, err)
	}
	if !has && o.Bootstrap {
		alone := raft.Configuration{Servers: []raft.Server{{ID: cfg.LocalID, Address: transport.LocalAddr(), Suffrage: raft.Voter}}}
		if err := raft.BootstrapCluster(cfg, store, store, snapshots, transport, alone); err != nil {
			return nil, fmt.Errorf("new raft log in %s: %w", o.Dir, err)
		}
	}
	r = &Raft{opt: o, transport: transport, store: store, fresh: !has}
	if r.raft, err = raft.NewRaft(cfg, machine, store, store, snapshots, transport); err != nil {
		return nil, fmt.Errorf("raft in %s: %w", o.Dir, err)
	}
	if r.Alone() {
		r.stand()
	}
	return r, nil
}

// Fresh tells whether the directory had no log before.
func (r *Raft) Fresh() bool { return r.fresh }

// Alone tells whether this node is the only voter.
func (r *Raft) Alone() bool {
	servers, err := r.Servers()
	if err != nil {
		return false
	}
	voters, me := 0, false
	for _, s := range servers {
		if s.Voter {
			voters++
			me = me || s.ID == r.opt.ID
		}
	}
	return me && voters == 1
}

// stand makes this node stand for election at once instead of listening for a leader first: there is nobody whose vote it needs. It tells itself what a
// leader that steps down tells its successor; if that fails, the election comes by itself after the timeout.
func (r *Raft) stand() {
	id, address := raft.ServerID(r.opt.ID), r.transport.LocalAddr()
	var resp raft.TimeoutNowResponse
	err := r.transport.TimeoutNow(id, address, &raft.TimeoutNowRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: r.transport.EncodePeer(id, address)},
	}, &resp)
	if err != nil {
		r.opt.Logger.Debug("the only voter waits for its own election", "error", err)
	}
}

// ErrNotLeader says that another node leads, or none.
var ErrNotLeader = errors.New("this node does not lead the cluster")

// Apply puts an entry into the log and waits until it is applied here. Only the leader can.
func (r *Raft) Apply(ctx context.Context, entry []byte) (fsm.Outcome, error) {
	timeout := transportTimeout
	if d, ok := ctx.Deadline(); ok {
		timeout = time.Until(d)
	}
	f := r.raft.Apply(entry, timeout)
	if err := wait(ctx, f); err != nil {
		return fsm.Outcome{}, leadership(err)
	}
	return f.Response().(fsm.Outcome), nil
}

// Barrier waits until all that was agreed before is applied here. Only the leader can.
func (r *Raft) Barrier(ctx context.Context) error {
	return leadership(wait(ctx, r.raft.Barrier(transportTimeout)))
}

// leadership marks errors after which another node must be asked. What was proposed may have been agreed all the same.
func leadership(err error) error {
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrLeadershipTransferInProgress) || errors.Is(err, raft.ErrRaftShutdown) {
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return err
}

// wait waits for a future no longer than ctx allows.
func wait(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }() // ends with Raft at the latest
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Leader is the id of the node that leads, "" if none is known.
func (r *Raft) Leader() string {
	_, id := r.raft.LeaderWithID()
	return string(id)
}

// Leads tells whether this node leads.
func (r *Raft) Leads() bool { return r.raft.State() == raft.Leader }

// Term is the current term.
func (r *Raft) Term() uint64 { return r.raft.CurrentTerm() }

// LeaderChanges tells when this node begins (true) or ends to lead.
func (r *Raft) LeaderChanges() <-chan bool { return r.raft.LeaderCh() }

// Applied is the index of the last entry that the state machine has.
func (r *Raft) Applied() uint64 { return r.raft.AppliedIndex() }

// Server is a node as the log knows it.
type Server struct {
	ID, Address string
	Voter       bool
}

// Servers lists the nodes that take part.
func (r *Raft) Servers() ([]Server, error) {
	f := r.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, err
	}
	var out []Server
	for _, s := range f.Configuration().Servers {
		out = append(out, Server{string(s.ID), string(s.Address), s.Suffrage == raft.Voter})
	}
	return out, nil
}

// Put adds a node or changes its address or vote. Only the leader can.
func (r *Raft) Put(ctx context.Context, s Server) error {
	id, address := raft.ServerID(s.ID), raft.ServerAddress(s.Address)
	if s.Voter {
		return leadership(wait(ctx, r.raft.AddVoter(id, address, 0, transportTimeout)))
	}
	return leadership(wait(ctx, r.raft.AddNonvoter(id, address, 0, transportTimeout)))
}

// Demote takes a node's vote. Only the leader can.
func (r *Raft) Demote(ctx context.Context, id string) error {
	return leadership(wait(ctx, r.raft.DemoteVoter(raft.ServerID(id), 0, transportTimeout)))
}

// Remove takes a node out. Only the leader can.
func (r *Raft) Remove(ctx context.Context, id string) error {
	return leadership(wait(ctx, r.raft.RemoveServer(raft.ServerID(id), 0, transportTimeout)))
}

// Transfer hands the lead to another voter, if there is one.
func (r *Raft) Transfer(ctx context.Context) error {
	return wait(ctx, r.raft.LeadershipTransfer())
}

// TransferTo hands the lead to one voter.
func (r *Raft) TransferTo(ctx context.Context, id string) error {
	servers, err := r.Servers()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(servers, func(s Server) bool { return s.ID == id && s.Voter })
	if i < 0 {
		return fmt.Errorf("node %s has no vote: it can't lead", id)
	}
	return leadership(wait(ctx, r.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(servers[i].Address))))
}

// Address is where the others reach this node for Raft.
func (r *Raft) Address() string { return string(r.transport.LocalAddr()) }

// Close ends this node's part.
func (r *Raft) Close() error {
	return errors.Join(r.raft.Shutdown().Error(), r.transport.Close(), r.store.Close())
}

// addresses looks servers up by id, since they may have moved.
type addresses struct{ o Options }

// ServerAddr implements raft.ServerAddressProvider. Where it fails the address that the log has is used.
func (a addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if string(id) == a.o.ID {
		return raft.ServerAddress(a.o.Listen.Addr().String()), nil
	}
	if a.o.AddressOf != nil {
		if address := a.o.AddressOf(string(id)); address != "" {
			return raft.ServerAddress(address), nil
		}
	}
	return "", fmt.Errorf("where node %s is is not known", id)
}
