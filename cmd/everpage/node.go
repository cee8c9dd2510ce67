package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// withAdmin runs fn with the management service of a node.
func (g *globals) withAdmin(ctx context.Context, fn func(ctx context.Context, admin pb.AdminServiceClient) error) error {
	return g.withClient(ctx, func(ctx context.Context, c *pageapi.Client) error {
		admin, address, err := c.Admin(ctx)
		if err != nil {
			return err
		}
		if err := fn(ctx, admin); err != nil {
			return pageapi.CallError(address, err)
		}
		return nil
	})
}

func newNode(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "The nodes of the cluster"}
	list := &cobra.Command{
		Use:     "list",
		Short:   "The nodes, what they have and how far they are",
		Example: "  everpage node list -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withAdmin(cmd.Context(), func(ctx context.Context, admin pb.AdminServiceClient) error {
				st, err := admin.Status(ctx, &pb.StatusRequest{})
				if err != nil {
					return err
				}
				v := nodesView{Cluster: st.Cluster, Leader: st.Leader, Nodes: []nodeView{}}
				for _, n := range st.Nodes {
					v.Nodes = append(v.Nodes, nodeJSON(n))
				}
				return g.print(cmd.OutOrStdout(), v, func(w io.Writer) error { return printNodes(w, v) })
			})
		},
	}
	c.AddCommand(list, newSurvive(g),
		g.nodeAction("drain", "Have a node's shards brought to others; it serves until they are", `A node that is drained gives its shards and its vote to others and serves until they have them. --undo takes that back.

  everpage node drain node2 && everpage node list
  everpage node remove node2        # once it has no shards left`),
		g.nodeAction("remove", "Take a node out of the cluster for good", `A node that was removed is forgotten with all that it has, and its replication slot is dropped. Stop it, and give it an empty --data before it joins again.
A node that has the only replica of a shard is kept unless --force says otherwise: what it has alone is lost then.`))
	return c
}

func (g *globals) nodeAction(action, short, long string) *cobra.Command {
	var undo, force bool
	c := &cobra.Command{
		Use:     action + " NODE",
		Short:   short,
		Long:    long,
		Example: "  everpage node " + action + " node2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			what := action
			if undo {
				what = "undrain"
			}
			return g.withAdmin(cmd.Context(), func(ctx context.Context, admin pb.AdminServiceClient) error {
				_, err := admin.SetNode(ctx, &pb.SetNodeRequest{Name: args[0], Action: what, Force: force})
				return err
			})
		},
	}
	if action == "drain" {
		c.Flags().BoolVar(&undo, "undo", false, "let the node take shards again")
	} else {
		c.Flags().BoolVar(&force, "force", false, "even if it has the only replica of a shard")
	}
	return c
}

type nodesView struct {
	Cluster string     `json:"cluster"`
	Leader  string     `json:"leader"`
	Nodes   []nodeView `json:"nodes"`
}

type nodeView struct {
	Name     string   `json:"name"`
	ID       string   `json:"id"`
	Address  string   `json:"address"`
	Zone     string   `json:"zone,omitempty"`
	State    string   `json:"state"`
	Alive    bool     `json:"alive"`
	Leader   bool     `json:"leader"`
	Voter    bool     `json:"voter"`
	Full     uint32   `json:"full_shards"`
	Joining  uint32   `json:"joining_shards"`
	Follow   string   `json:"follow,omitempty"`
	Message  string   `json:"message,omitempty"`
	Durable  pg.LSN   `json:"durable_lsn"`
	Readable pg.LSN   `json:"readable_lsn"`
	Version  string   `json:"version,omitempty"`
	Uptime   uint64   `json:"uptime_seconds"`
	Store    uint64   `json:"store_bytes"`
	Spool    uint64   `json:"spool_bytes"`
	Free     uint64   `json:"disk_free_bytes"`
	Memory   uint64   `json:"rss_bytes"`
	Warnings []string `json:"warnings"`
}

func nodeJSON(n *pb.NodeStatus) nodeView {
	return nodeView{
		Name: n.Name, ID: n.Id, Address: n.Address, Zone: n.Zone, State: n.State, Alive: n.Alive, Leader: n.Leader, Voter: n.Voter, Full: n.FullShards, Joining: n.JoiningShards,
		Follow: n.FollowState, Message: n.FollowMessage, Durable: pg.LSN(n.DurableLsn), Readable: pg.LSN(n.ReadableLsn), Version: n.Version, Uptime: n.UptimeSeconds,
		Store: n.StoreBytes, Spool: n.SpoolBytes, Free: n.DiskFreeBytes, Memory: n.RssBytes, Warnings: append([]string{}, n.Warnings...),
	}
}

func printNodes(w io.Writer, v nodesView) error {
	rows := [][]string{{"NODE", "ADDRESS", "ZONE", "STATE", "PART", "SHARDS", "COMING", "FOLLOWS", "DURABLE", "READABLE"}}
	for _, n := range v.Nodes {
		state, part := n.State, "member"
		if !n.Alive {
			state = "not reached"
		}
		if n.Voter {
			part = "voter"
		}
		if n.Leader {
			part = "leader"
		}
		rows = append(rows, []string{n.Name, n.Address, n.Zone, state, part, strconv.Itoa(int(n.Full)), strconv.Itoa(int(n.Joining)), n.Follow, n.Durable.String(), n.Readable.String()})
	}
	return columns(w, rows...)
}

func newShard(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "shard", Short: "Which nodes keep which shard"}
	list := &cobra.Command{
		Use:     "list",
		Short:   "The shards and their replicas",
		Example: "  everpage shard list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withAdmin(cmd.Context(), func(ctx context.Context, admin pb.AdminServiceClient) error {
				r, err := admin.ListShards(ctx, &pb.ListShardsRequest{})
				if err != nil {
					return err
				}
				return g.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printShards(w, r) })
			})
		},
	}
	var from string
	move := &cobra.Command{
		Use:   "move SHARD NODE",
		Short: "Give a shard to a node",
		Long: `Give a shard to a node. With --from the replica of that node goes as soon as the new one has all; reads go on meanwhile. Without it the shard has one
replica more for a while: the balancer then takes one from the node that has most.`,
		Example: "  everpage shard move 17 node3 --from node1",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			shard, err := strconv.ParseUint(args[0], 10, 32)
			if err != nil {
				return usageError{fmt.Errorf("shard %q: want a number", args[0])}
			}
			return g.withAdmin(cmd.Context(), func(ctx context.Context, admin pb.AdminServiceClient) error {
				_, err := admin.MoveShard(ctx, &pb.MoveShardRequest{Shard: uint32(shard), To: args[1], From: from})
				return err
			})
		},
	}
	move.Flags().StringVar(&from, "from", "", "`node` whose replica goes")
	c.AddCommand(list, move)
	return c
}

func printShards(w io.Writer, r *pb.ListShardsResponse) error {
	rows := [][]string{{"SHARD", "EPOCH", "REPLICAS"}}
	for _, s := range r.Shards {
		rows = append(rows, []string{strconv.Itoa(int(s.Shard)), strconv.FormatUint(s.Epoch, 10), replicaNames(s.Replicas)})
	}
	return columns(w, rows...)
}

// replicaNames are replicas in one line.
func replicaNames(list []*pb.ShardReplica) string {
	text := ""
	for _, x := range list {
		text += x.Node
		if x.Role != "full" {
			text += " (" + x.Role + ")"
		}
		if !x.Alive {
			text += " (not reached)"
		}
		text += "  "
	}
	return text
}

func newCluster(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "Settings of the whole cluster"}
	c.AddCommand(&cobra.Command{
		Use:   "set KEY VALUE",
		Short: "Change a setting",
		Long: `Change a setting of the whole cluster:

  replicas   how many replicas each shard has; 0: as many as there are nodes, at most 3`,
		Example: "  everpage cluster set replicas 2",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.withAdmin(cmd.Context(), func(ctx context.Context, admin pb.AdminServiceClient) error {
				_, err := admin.SetCluster(ctx, &pb.SetClusterRequest{Key: args[0], Value: args[1]})
				return err
			})
		},
	})
	return c
}
