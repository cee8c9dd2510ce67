package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
)

func newDetach(g *globals) *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:   "detach",
		Short: "Stop following the primary and drop our slots",
		Long: `Stop following the primary and drop our replication slots on it; where it can't be reached, the SQL that drops them is printed.
Without --keep-data the history is removed from the node as well.`,
		Example: "  everpage detach --keep-data",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := g.client()
			if err != nil {
				return err
			}
			defer client.Close()
			admin, address, err := client.Admin(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := admin.Detach(cmd.Context(), &pb.DetachRequest{KeepData: keep})
			if err != nil {
				return pageapi.CallError(address, err)
			}
			return g.print(cmd.OutOrStdout(), resp, func(w io.Writer) error {
				for _, s := range resp.DroppedSlots {
					fmt.Fprintf(w, "dropped slot %s\n", s)
				}
				if resp.Message != "" {
					fmt.Fprintln(w, resp.Message)
				}
				if resp.Sql != "" {
					fmt.Fprintf(w, "run this on the primary, else it keeps WAL for us until its disk is full:\n  %s\n", resp.Sql)
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&keep, "keep-data", false, "keep the history that was received")
	return c
}
