package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	"everpage/wal/pg"
)

func newLSN(g *globals) *cobra.Command {
	var at targetFlags
	c := &cobra.Command{
		Use:   "lsn {--time T | --xid X | --name N} [--before]",
		Short: "Which LSN a time, a transaction or a restore point is, with the commits beside it",
		Long: `Which LSN a time, a transaction or a restore point is, with the commits beside it.

--time T is the start of the first commit or abort record, in WAL order, whose time is after T (with --before: at or after T). --xid X is the end of
its commit record, --name N that of the restore point (with --before: its start). A time past the last commit is clamped to the newest readable
LSN, and said so. Without a target the newest readable LSN is printed.

All of the database is as it was before everything that is listed as "after".`,
		Example: `  everpage lsn --time '2026-03-01 12:00:00+00'
  everpage lsn --xid 4711 --before`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withClient(cmd.Context(), func(ctx context.Context, c *pageapi.Client) error {
				target, err := at.target()
				if err != nil {
					return err
				}
				r, err := c.Resolve(ctx, target)
				if err != nil {
					return err
				}
				return g.print(cmd.OutOrStdout(), resolutionJSON(r), func(w io.Writer) error { return printResolution(w, r) })
			})
		},
	}
	at.allFlags(c.Flags())
	return c
}

type resolutionView struct {
	LSN    pg.LSN       `json:"lsn"`
	Note   string       `json:"note,omitempty"`
	Around []aroundView `json:"around"`
}

// aroundView is an event beside the LSN: it is part of the state there if it ends at or before it.
type aroundView struct {
	Start pg.LSN   `json:"start_lsn"`
	End   pg.LSN   `json:"end_lsn"`
	Kind  string   `json:"kind"`
	XID   uint32   `json:"xid,omitempty"`
	Time  jsonTime `json:"time"`
	Name  string   `json:"name,omitempty"`
}

func resolutionJSON(r *pageapi.Resolution) resolutionView {
	v := resolutionView{LSN: r.LSN, Note: r.Note, Around: []aroundView{}}
	for _, e := range r.Around {
		v.Around = append(v.Around, aroundView{e.Start, e.End, e.Kind, e.XID, jsonTime(e.Time), e.Name})
	}
	return v
}

// jsonTime is a time as PostgreSQL prints it.
type jsonTime pg.Timestamp

func (t jsonTime) MarshalText() ([]byte, error) { return []byte(formatTime(pg.Timestamp(t))), nil }

func printResolution(w io.Writer, r *pageapi.Resolution) error {
	fmt.Fprintln(w, r.LSN)
	if r.Note != "" {
		fmt.Fprintln(w, r.Note)
	}
	if len(r.Around) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	rows := [][]string{{"", "START", "END", "WHAT", "XID", "TIME"}}
	for _, e := range r.Around {
		where := "before"
		if e.End > r.LSN {
			where = "after"
		}
		what, xid := e.Kind, strconv.FormatUint(uint64(e.XID), 10)
		if e.Name != "" {
			what, xid = fmt.Sprintf("%s %q", e.Kind, e.Name), ""
		}
		rows = append(rows, []string{where, e.Start.String(), e.End.String(), what, xid, formatTime(e.Time)})
	}
	return columns(w, rows...)
}
