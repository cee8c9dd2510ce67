package raft

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"everpage/cluster/fsm"
)

// MakeAlone makes the node the only server of the log in a directory, which nobody may have open. All that stands in the log counts as agreed, and change
// makes of that state the one to go on with.
func MakeAlone(o Options, change func(*fsm.State) (*fsm.State, error)) (_ *fsm.State, err error) {
	log := &hclogger{log: o.Logger.With("part", "raft")}
	store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(o.Dir, "log.db")})
	if err != nil {
		return nil, fmt.Errorf("raft log in %s: %w", o.Dir, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(o.Dir, keptSnapshots, log)
	if err != nil {
		return nil, fmt.Errorf("raft snapshots in %s: %w", o.Dir, err)
	}
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(o.ID)
	cfg.Logger = log
	address, transport := raft.NewInmemTransport("")
	alone := raft.Configuration{Servers: []raft.Server{{ID: cfg.LocalID, Address: address, Suffrage: raft.Voter}}}
	machine := &changed{FSM: fsm.New(nil), change: change}
	err = raft.RecoverCluster(cfg, machine, store, store, snapshots, transport, alone)
	return machine.next, errors.Join(err, transport.Close())
}

// changed is a state machine whose snapshot is of a changed state.
type changed struct {
	*fsm.FSM
	change func(*fsm.State) (*fsm.State, error)
	next   *fsm.State
}

// Snapshot implements raft.FSM.
func (c *changed) Snapshot() (raft.FSMSnapshot, error) {
	err := c.Err()
	if err == nil {
		c.next, err = c.change(c.State())
	}
	if err != nil {
		return nil, err
	}
	return fsm.New(c.next).Snapshot()
}
