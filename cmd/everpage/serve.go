package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"everpage/cmd/node"
)

func newServe(g *globals) *cobra.Command {
	var c node.Config
	var logLevel string
	var memory int64
	var key, keyFile string
	cmd := &cobra.Command{
		Use:   "serve --data DIR",
		Short: "Run a node",
		Long: `Run a node: it follows the primary that attach names, keeps the history in --data and answers reads on --listen.

One node is enough; nothing else needs to run beside it. More nodes join with --join, which names the page services of members; each then takes its share
of the shards. A node that is a member comes back by itself, also at another address. The directory is locked while the node runs.

With --store and --disk-budget the node is a cache of the store: before the directory takes more than the budget, the chunks that were read longest ago are
given up to where the store's backup has them. Their pages are read from the store, a few requests each, and chunks that are read come back where there is room.
What the backup does not have yet is never given up. Where the budget can't be kept for that, as while a first base backup comes in or the store is away, the node
says so in its log and in status, and goes on. The budget is for all that lies in --data at any moment: a third of it, or of a large one 2 GB and at least a 16th,
is left free for compactions and objects under way. Only while another node copies a shard from here, tables that were replaced meanwhile stay, and may go beyond
it. WAL behind the store and tables in memory are kept smaller to fit: --spool-keep at most a 16th of the budget, --run a 64th.`,
		Example: `  everpage serve --data /var/lib/everpage
  everpage serve --data /var/lib/everpage --listen 10.0.0.5:5430 --http 127.0.0.1:5480
  everpage serve --data /var/lib/everpage --listen 10.0.0.6:5430 --node node2 --join 10.0.0.5:5430 --gossip-key-file /etc/everpage/gossip.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var level slog.Level
			if err := level.UnmarshalText([]byte(logLevel)); err != nil {
				return usageError{fmt.Errorf("--log-level %s: want debug, info, warn or error", logLevel)}
			}
			c.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			if c.Data == "" {
				return usageError{fmt.Errorf("--data is missing: the directory that keeps this node's history")}
			}
			var err error
			if c.GossipKey, err = gossipKey(key, keyFile); err != nil {
				return usageError{err}
			}
			limitMemory(memory)
			err = node.Run(cmd.Context(), c, nil)
			if _, ok := errors.AsType[*node.ConfigError](err); ok {
				return usageError{err}
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Data, "data", "", "`directory` of this node's history; made if absent")
	f.StringVar(&c.Listen, "listen", "127.0.0.1:5430", "`host:port` of the page and admin services")
	f.StringVar(&c.HTTP, "http", "127.0.0.1:5480", "`host:port` of /metrics and /healthz; empty for none")
	f.StringVar(&c.Node, "node", "node1", "`name` of this node, which the primary sees as application_name")
	f.StringVar(&c.Cluster, "cluster", "main", "`name` of the cluster; part of the replication slot's name")
	f.StringVar(&c.Zone, "zone", "", "failure `zone` of this node")
	f.StringVar(&c.Raft, "raft", "", "`host:port` on which the nodes agree (default the host of --listen, port 5431)")
	f.StringVar(&c.Gossip, "gossip", "", "`host:port` on which the nodes find each other, TCP and UDP (default the host of --listen, port 5481)")
	f.StringVar(&c.Advertise, "advertise", "", "`host` at which the other nodes and clients reach this one, where it isn't that of --listen")
	f.StringSliceVar(&c.Join, "join", nil, "`host:port` of the page service of members, one that answers is enough; acts only until this node is a member")
	f.StringVar(&key, "gossip-key", "", "`key` that encrypts gossip and is asked of who joins: 16, 24 or 32 bytes, in hex or base64")
	f.StringVar(&keyFile, "gossip-key-file", "", "`file` that holds the gossip key")
	f.DurationVar(&c.DeadAfter, "dead-after", 5*time.Minute, "`time` after which the shards of a node that is gone are given to others")
	f.DurationVar(&c.SlotGrace, "slot-grace", time.Hour, "`time` after which the replication slot of a node that is gone is dropped")
	f.IntVar(&c.Direct, "direct", 3, "`nodes` that receive WAL from the primary itself; the others get it from them")
	f.IntVar(&c.Replicas, "replicas", 0, "replicas of each shard; acts only when the cluster is made (default as many as there are nodes, at most 3)")
	f.Uint32Var(&c.Shards, "shards", 64, "number of shards; acts only when the cluster is made")
	f.Int64Var(&c.CacheBytes, "cache", 56<<20, "`bytes` of the store's block cache")
	f.Uint64Var(&c.SpoolKeep, "spool-keep", 1<<30, "`bytes` of WAL kept behind what the store has made durable")
	f.StringVar(&c.Store, "store", "", "`URL` of the store that keeps the backup: s3://BUCKET/PREFIX[?endpoint=…] or file:///DIRECTORY")
	f.Uint64Var(&c.DiskBudget, "disk-budget", 0, "`bytes` that --data may take, with WAL and compactions, ten WAL segments or more; what --store has is evicted beyond that and read there (default no limit)")
	f.BoolVar(&c.Recover, "recover", false, "make an empty --data out of what --store holds, and go on from there; the store keeps no passwords: give PGPASSWORD or attach again. Slots that the nodes had which were there before are dropped once nobody has used them for --slot-grace")
	f.DurationVar(&c.BackupEvery, "backup-every", time.Minute, "`duration` between two uploads of pages, at most")
	f.Int64Var(&c.CollectRate, "gc-rate", 32<<20, "`bytes` a second that collecting versions below the horizon reads at most")
	f.DurationVar(&c.GCGrace, "gc-grace", time.Hour, "`duration` for which objects stay in the store that nothing refers to any more")
	f.DurationVar(&c.TakeoverAfter, "takeover-after", time.Minute, "`time` for which the leader may fail to reach the store until a node that does takes the lead; -1s: never")
	f.Int64Var(&c.BackupRate, "backup-rate", 0, "`bytes` a second that uploads of pages may take; 0 for no limit")
	f.Int64Var(&c.RestoreRate, "restore-rate", 0, "`bytes` a second with which shards are filled from the store, behind the reads; 0 for no limit")
	f.DurationVar(&c.ArchiveEvery, "archive-every", 10*time.Second, "`duration` for which the newest WAL may be missing in the store")
	f.Int64Var(&c.RunBytes, "run", 32<<20, "`bytes` of versions gathered in memory before they are written as a table")
	f.Uint32Var(&c.SegmentBlocks, "segment-blocks", 0, "blocks in a chunk; acts only when the data directory is made")
	f.MarkHidden("segment-blocks") // for tests, which cross chunks and shards with small relations
	f.Int64Var(&memory, "memory", 288<<20, "`bytes` of memory that the garbage collector aims to stay below")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}
