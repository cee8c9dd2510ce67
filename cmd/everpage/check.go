package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
)

func newCheck(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Walk the node's store and report every broken invariant",
		Long: `Walk the store of the node and report every broken invariant: key order, checksums of every version, chains without a base, sizes, segments.
Exit code 6 where any is found. Shards with corrupt pages are repaired then, from another replica or the store, where they have them: check again.`,
		Example: "  everpage check --server 10.0.0.5:5430",
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
			stream, err := admin.Check(cmd.Context(), &pb.CheckRequest{})
			if err != nil {
				return pageapi.CallError(address, err)
			}
			result := struct {
				Keys       uint64   `json:"keys"`
				Bytes      uint64   `json:"bytes"`
				Violations []string `json:"violations"`
			}{Violations: []string{}}
			p := newProgress(os.Stderr, g.quiet)
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return errors.New("the check ended early: the node gave no result")
				}
				if err != nil {
					return pageapi.CallError(address, err)
				}
				result.Keys, result.Bytes = m.Keys, m.Bytes
				if m.Violation != "" {
					result.Violations = append(result.Violations, m.Violation)
				}
				p.show("checking", int64(m.Bytes), 0, fmt.Sprintf("%d keys, %s", m.Keys, size(m.Bytes)))
				if m.Done {
					break
				}
			}
			p.done()
			if err := g.print(cmd.OutOrStdout(), result, func(w io.Writer) error {
				for _, v := range result.Violations {
					fmt.Fprintln(w, v)
				}
				_, err := fmt.Fprintf(w, "%d keys, %s checked, %d violations\n", result.Keys, size(result.Bytes), len(result.Violations))
				return err
			}); err != nil {
				return err
			}
			if n := len(result.Violations); n > 0 {
				return verifyError{fmt.Errorf("the store breaks %d invariants", n)}
			}
			return nil
		},
	}
}
