package main

import (
	"context"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	"everpage/wal/pg"
)

func newRel(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "rel", Short: "Relations and their sizes at any LSN"}
	c.AddCommand(newRelSize(g), newRelList(g))
	return c
}

func newRelSize(g *globals) *cobra.Command {
	var at targetFlags
	var fork string
	c := &cobra.Command{
		Use:     "size REL",
		Short:   "Print the size of a relation fork at an LSN",
		Long:    "Print the size of a relation fork at an LSN, in blocks of 8 KiB.\n\n" + relHelp,
		Example: "  everpage rel size base/5/16384 --time '2026-03-01 12:00:00+00'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			rel, err := relArg(args[0], fork)
			if err != nil {
				return err
			}
			return g.withClient(cmd.Context(), func(ctx context.Context, c *pageapi.Client) error {
				pos, _, err := at.resolve(ctx, c)
				if err != nil {
					return err
				}
				blocks, lsn, err := c.RelSize(ctx, pos, rel)
				if err != nil {
					return err
				}
				v := struct {
					Rel    string `json:"rel"`
					LSN    pg.LSN `json:"lsn"`
					Blocks uint32 `json:"blocks"`
					Bytes  int64  `json:"bytes"`
				}{rel.String(), lsn, blocks, int64(blocks) * pg.BlockSize}
				return g.print(cmd.OutOrStdout(), v, func(w io.Writer) error {
					return columns(w, []string{"RELATION", "AT", "BLOCKS", "SIZE"},
						[]string{v.Rel, v.LSN.String(), strconv.Itoa(int(v.Blocks)), size(v.Bytes)})
				})
			})
		},
	}
	at.readFlags(c.Flags())
	c.Flags().StringVar(&fork, "fork", "main", "main, fsm, vm or init")
	return c
}

func newRelList(g *globals) *cobra.Command {
	var at targetFlags
	c := &cobra.Command{
		Use:     "list",
		Short:   "List every relation fork that exists at an LSN",
		Example: "  everpage rel list --lsn 0/16B3740 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withClient(cmd.Context(), func(ctx context.Context, c *pageapi.Client) error {
				pos, _, err := at.resolve(ctx, c)
				if err != nil {
					return err
				}
				type relation struct {
					pg.RelFork
					Name   string `json:"name"`
					Blocks uint32 `json:"blocks"`
				}
				list := []relation{}
				if _, err := c.Relations(ctx, pos, func(r pg.RelFork, blocks pg.BlockNumber) error {
					list = append(list, relation{r, r.String(), blocks})
					return nil
				}); err != nil {
					return err
				}
				return g.print(cmd.OutOrStdout(), list, func(w io.Writer) error {
					rows := [][]string{{"RELATION", "BLOCKS", "SIZE"}}
					for _, r := range list {
						rows = append(rows, []string{r.Name, strconv.Itoa(int(r.Blocks)), size(int64(r.Blocks) * pg.BlockSize)})
					}
					return columns(w, rows...)
				})
			})
		},
	}
	at.readFlags(c.Flags())
	return c
}
