package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"everpage/cmd/node"
)

func newSurvive(g *globals) *cobra.Command {
	var cfg node.Config
	cmd := &cobra.Command{
		Use:   "survive",
		Short: "Make this node's data a cluster of its own, when most of the others are lost for good",
		Long: `Where a majority of the nodes is lost with its data, the rest can agree on nothing: reads go on, but no node can join. This command makes of the data of
one stopped node, which must have all shards, a cluster of that node alone. Start it as before, then let the others join it, each with an empty --data;
they may have the names that they had. Nodes that were given up and come back with their old data are refused.

Where no node has all shards, or none is left, everpage serve --recover makes a new cluster of the store instead.`,
		Example: "  everpage node survive --data /var/lib/everpage --node node2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Data == "" {
				return usageError{errors.New("--data is missing: the directory of the node that is left")}
			}
			cfg.Logger = slog.New(slog.DiscardHandler)
			lost, err := node.MakeAlone(cfg)
			if err != nil {
				return err
			}
			v := struct {
				Node string   `json:"node"`
				Lost []string `json:"given_up"`
			}{cfg.Node, append([]string{}, lost...)}
			return g.print(cmd.OutOrStdout(), v, func(w io.Writer) error {
				for _, name := range lost {
					fmt.Fprintf(w, "%s is given up\n", name)
				}
				_, err := fmt.Fprintf(w, "%s is a cluster of its own: start it, then let others join it with an empty --data\n", v.Node)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Data, "data", "", "`directory` of the node's history")
	f.StringVar(&cfg.Node, "node", "node1", "`name` of the node")
	f.StringVar(&cfg.Cluster, "cluster", "main", "`name` of the cluster")
	return cmd
}
