package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"everpage/cmd/node"
	"everpage/wal/pg"
)

func newVersion(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  everpage version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version    string     `json:"version"`
				Go         string     `json:"go"`
				PostgreSQL []pg.Major `json:"postgresql"`
			}{node.Version(), runtime.Version(), pg.Majors()}
			return g.print(cmd.OutOrStdout(), v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "everpage %s (%s), PostgreSQL %d to %d\n", v.Version, v.Go, pg.MajorFirst, pg.MajorLast)
				return err
			})
		},
	}
}
