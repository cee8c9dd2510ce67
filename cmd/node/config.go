// Package node puts the parts of Everpage together into one running node.
package node

import (
	"fmt"
	"log/slog"
	"regexp"
	"runtime/debug"
	"time"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Config is all that a node is told. Only Data must be given.
type Config struct {
	Data    string // directory of this node's store, spool and state
	Listen  string // host:port of the page and admin services
	HTTP    string // host:port of metrics and health; "" for none
	Node    string // name, unique in the cluster; the application_name that the primary sees
	Cluster string // name, part of the slot's name; fixed when the data directory is made
	Zone    string

	Raft      string        // host:port on which the nodes agree
	Gossip    string        // host:port on which they find each other
	Advertise string        // host at which the others reach this node, where it isn't the one that it listens on
	Join      []string      // page addresses of members
	GossipKey []byte        // encrypts gossip, and is asked of who joins
	Direct    int           // nodes that receive WAL from the primary itself; the others get it from them. 0: 3
	Shards    uint32        // fixed when the cluster is made
	DeadAfter time.Duration // after which the shards of a node that is gone are given to others
	SlotGrace time.Duration // after which the slot of a node that is gone is dropped
	Replicas  int           // of each shard, when the cluster is made; 0: as many as there are nodes, at most 3

	CacheBytes int64         // block cache of the store
	RunBytes   int64         // versions gathered in memory before they become a table
	SpoolKeep  uint64        // bytes of WAL kept in the spool behind what the store has made durable
	Wait       time.Duration // longest that a read waits for an LSN

	CollectRate  int64         // bytes a second that collecting old versions reads at most
	HorizonGrace time.Duration // between announcing that history is about to begin later and it doing so

	Store         string        // URL of the store that keeps the backup; "" for none
	DiskBudget    uint64        // bytes that Data may take; what the store has is evicted beyond that. 0: no limit
	Recover       bool          // an empty Data is made out of the store
	ArchiveEvery  time.Duration // how long the newest WAL may be missing in the store
	BackupEvery   time.Duration // at most between two uploads of pages
	TakeoverAfter time.Duration // for which the leader may fail to archive until a node that reaches the store takes the lead; 0: a minute, below: never
	GCGrace       time.Duration // how old an object of the store must be that is deleted
	BackupRate    int64         // bytes a second of these uploads; 0: no limit
	RestoreRate   int64         // bytes a second of shards that are filled from the store; 0: no limit. What is read meanwhile isn't limited

	SegmentBlocks uint32 // blocks in a chunk; fixed when the data directory is made. Anything but 131072 is for tests
	Logger        *slog.Logger
}

var nameRE = regexp.MustCompile(`^[a-z0-9_]{1,24}$`)

// complete fills in defaults and checks the rest. Its error is a *ConfigError.
func (c *Config) complete() error {
	if err := c.fillIn(); err != nil {
		return &ConfigError{err}
	}
	return nil
}

// ConfigError is a mistake in how a node is to be run.
type ConfigError struct{ Err error }

func (e *ConfigError) Error() string { return e.Err.Error() }

// Unwrap gives the mistake.
func (e *ConfigError) Unwrap() error { return e.Err }

// fillIn is complete with plain errors.
func (c *Config) fillIn() error {
	if c.Data == "" {
		return fmt.Errorf("--data is missing: the directory that keeps this node's history")
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:5430"
	}
	if c.Node == "" {
		c.Node = "node1"
	}
	if c.Cluster == "" {
		c.Cluster = "main"
	}
	for _, n := range []struct{ what, name string }{{"node", c.Node}, {"cluster", c.Cluster}} {
		if !nameRE.MatchString(n.name) {
			return fmt.Errorf("%s name %q: want 1 to 24 of a-z, 0-9 and _, since it is part of a replication slot's name", n.what, n.name)
		}
	}
	if n := len(c.GossipKey); n != 0 && n != 16 && n != 24 && n != 32 {
		return fmt.Errorf("the gossip key has %d bytes, want 16, 24 or 32", n)
	}
	if c.Direct == 0 {
		c.Direct = defaultDirect
	}
	if c.DeadAfter == 0 {
		c.DeadAfter = 5 * time.Minute
	}
	if c.SlotGrace == 0 {
		c.SlotGrace = time.Hour
	}
	if c.Replicas < 0 {
		return fmt.Errorf("--replicas %d: want 1 or more, or 0 for as many as there are nodes, at most 3", c.Replicas)
	}
	if err := c.addresses(); err != nil {
		return err
	}
	if c.Shards == 0 {
		c.Shards = placement.DefaultShards
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = 56 << 20
	}
	if c.RunBytes == 0 {
		c.RunBytes = 32 << 20
	}
	if c.SpoolKeep == 0 {
		c.SpoolKeep = 1 << 30
	}
	if err := c.completeBudget(); err != nil {
		return err
	}
	if c.ArchiveEvery == 0 {
		c.ArchiveEvery = 10 * time.Second
	}
	if c.CollectRate == 0 {
		c.CollectRate = 32 << 20
	}
	if c.HorizonGrace == 0 {
		c.HorizonGrace = 2 * time.Second
	}
	if c.GCGrace == 0 {
		c.GCGrace = time.Hour
	}
	if c.BackupEvery == 0 {
		c.BackupEvery = time.Minute
	}
	if c.TakeoverAfter == 0 {
		c.TakeoverAfter = time.Minute
	}
	if c.Wait == 0 {
		c.Wait = 10 * time.Second
	}
	if c.SegmentBlocks == 0 {
		c.SegmentBlocks = pg.SegmentBlocks
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

// Version is the version of this build: its module version, or the commit it was made from.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "0-" + s.Value[:12]
		}
	}
	return "0-devel"
}
