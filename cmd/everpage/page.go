package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	"everpage/wal/pg"
)

func newPage(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "page", Short: "One page at any LSN, and the versions of it"}
	c.AddCommand(newPageGet(g), newPageHistory(g))
	return c
}

// pageArgs are REL and BLOCK.
func pageArgs(args []string, fork string) (pg.PageKey, error) {
	rel, err := relArg(args[0], fork)
	if err != nil {
		return pg.PageKey{}, err
	}
	block, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil || pg.BlockNumber(block) == pg.InvalidBlock {
		return pg.PageKey{}, usageError{fmt.Errorf("block %q: want a number from 0 to 4294967294", args[1])}
	}
	return pg.PageKey{RelFork: rel, Block: pg.BlockNumber(block)}, nil
}

func relArg(s, fork string) (pg.RelFork, error) {
	rel, err := pg.ParseRel(s)
	if err != nil {
		return pg.RelFork{}, usageError{err}
	}
	f, err := pg.ParseFork(fork)
	if err != nil {
		return pg.RelFork{}, usageError{err}
	}
	return pg.RelFork{RelFileLocator: rel, Fork: f}, nil
}

const relHelp = `REL is the path that pg_relation_filepath() prints (base/5/16384, global/1262, pg_tblspc/16500/PG_15_202209061/5/16384)
or tablespace/database/relation by number (1663/5/16384).`

func newPageGet(g *globals) *cobra.Command {
	var at targetFlags
	var fork, format string
	c := &cobra.Command{
		Use:   "get REL BLOCK",
		Short: "Print one page as it was at an LSN",
		Long:  "Print one page as it was at an LSN.\n\n" + relHelp + "\n--format raw writes exactly 8192 bytes.",
		Example: `  everpage page get base/5/16384 0 --format text
  everpage page get base/5/16384 7 --lsn 0/16B3740 --format raw > page`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := pageArgs(args, fork)
			if err != nil {
				return err
			}
			show, ok := pageFormats[format]
			if !ok {
				return usageError{fmt.Errorf("--format %s: want raw, hex or text", format)}
			}
			return g.withClient(cmd.Context(), func(ctx context.Context, c *pageapi.Client) error {
				pos, _, err := at.resolve(ctx, c)
				if err != nil {
					return err
				}
				page := make([]byte, pg.BlockSize)
				lsn, err := c.Pages(ctx, pos, key.RelFork, []pg.BlockNumber{key.Block}, page)
				if err != nil {
					return err
				}
				if g.output == "json" && format != "raw" {
					return g.print(cmd.OutOrStdout(), pageJSON(key, lsn, page), nil)
				}
				return show(cmd.OutOrStdout(), key, lsn, page)
			})
		},
	}
	at.readFlags(c.Flags())
	c.Flags().StringVar(&fork, "fork", "main", "main, fsm, vm or init")
	c.Flags().StringVar(&format, "format", "text", "raw, hex or text")
	return c
}

var pageFormats = map[string]func(io.Writer, pg.PageKey, pg.LSN, pg.Page) error{
	"raw": func(w io.Writer, _ pg.PageKey, _ pg.LSN, p pg.Page) error {
		_, err := w.Write(p)
		return err
	},
	"hex": func(w io.Writer, _ pg.PageKey, _ pg.LSN, p pg.Page) error {
		_, err := io.WriteString(w, hex.Dump(p))
		return err
	},
	"text": pageText,
}

func newPageHistory(g *globals) *cobra.Command {
	var at targetFlags
	var fork string
	var limit int
	c := &cobra.Command{
		Use:     "history REL BLOCK",
		Short:   "List the versions of one page, newest first",
		Long:    "List the stored versions of one page, newest first: the LSN, what made it, and how it is kept.\n\n" + relHelp,
		Example: "  everpage page history base/5/16384 0 --limit 20",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := pageArgs(args, fork)
			if err != nil {
				return err
			}
			return g.withClient(cmd.Context(), func(ctx context.Context, c *pageapi.Client) error {
				pos, _, err := at.resolve(ctx, c)
				if err != nil {
					return err
				}
				var versions []pageapi.Version
				lsn, err := c.History(ctx, pos, key, limit, func(v pageapi.Version) error {
					versions = append(versions, v)
					return nil
				})
				if err != nil {
					return err
				}
				if len(versions) == 0 {
					return pageapi.Errorf(pageapi.NotFound, "%s has no version at or below %s", key, lsn)
				}
				return g.print(cmd.OutOrStdout(), versions, func(w io.Writer) error {
					rows := [][]string{{"LSN", "KEPT AS", "BYTES", "MADE BY"}}
					for _, v := range versions {
						rows = append(rows, []string{v.LSN.String(), v.Kind, strconv.Itoa(v.Bytes), v.Record})
					}
					return columns(w, rows...)
				})
			})
		},
	}
	at.readFlags(c.Flags())
	c.Flags().StringVar(&fork, "fork", "main", "main, fsm, vm or init")
	c.Flags().IntVar(&limit, "limit", 0, "at most this many versions (0: all)")
	return c
}
