package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

func newAttach(g *globals) *cobra.Command {
	var wait, dryRun bool
	c := &cobra.Command{
		Use:   "attach CONNINFO",
		Short: "Follow a primary: one base backup, then its WAL",
		Long: `Follow a primary: make a physical replication slot, take one base backup, then stream its WAL.

CONNINFO is a libpq URI or keyword string. PGHOST, PGPORT, PGUSER, PGPASSWORD, PGSSLMODE, PGPASSFILE and PGSERVICE are those of the node.
The command returns when the primary is recorded; --wait returns when the consistency point is passed, from where on every LSN can be read.
--dry-run changes nothing: it prints the grants, the pg_hba.conf line, the settings and the disk that following needs, and what is missing.`,
		Example: `  everpage attach 'postgresql://replicator@db.example/postgres' --dry-run
  everpage attach 'host=db.example user=replicator' --wait`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := g.client()
			if err != nil {
				return err
			}
			defer client.Close()
			admin, address, err := client.Admin(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := admin.Attach(cmd.Context(), &pb.AttachRequest{Conninfo: args[0], DryRun: dryRun})
			if err != nil {
				return pageapi.CallError(address, err)
			}
			if dryRun || g.output == "json" {
				if err := g.print(cmd.OutOrStdout(), resp.Checks, func(w io.Writer) error { return printChecks(w, resp.Checks) }); err != nil {
					return err
				}
			} else {
				printWarnings(os.Stderr, resp.Checks)
			}
			if dryRun {
				return failedChecks(resp.Checks)
			}
			if !wait {
				if !g.quiet && g.output == "table" {
					fmt.Fprintln(cmd.OutOrStdout(), "recorded; the import runs in the background: everpage status --watch shows it")
				}
				return nil
			}
			return waitConsistent(cmd.Context(), g, admin, address)
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "return when the consistency point is passed")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only print what following needs")
	return c
}

func printChecks(w io.Writer, checks []*pb.Preflight) error {
	rows := [][]string{{"CHECK", "", "FOUND"}}
	for _, c := range checks {
		rows = append(rows, []string{c.Name, c.Level, c.Message})
	}
	if err := columns(w, rows...); err != nil {
		return err
	}
	for _, c := range checks {
		if c.Remedy != "" {
			fmt.Fprintf(w, "\n%s:\n%s\n", c.Name, c.Remedy)
		}
	}
	return nil
}

func printWarnings(w io.Writer, checks []*pb.Preflight) {
	for _, c := range checks {
		if c.Level != "ok" {
			fmt.Fprintf(w, "%s: %s: %s\n", c.Level, c.Name, c.Message)
		}
	}
}

func failedChecks(checks []*pb.Preflight) error {
	for _, c := range checks {
		if c.Level == "error" {
			return fmt.Errorf("attach would fail: %s: %s", c.Name, c.Message)
		}
	}
	return nil
}

// waitConsistent polls the node until reads are possible, showing the import's progress.
func waitConsistent(ctx context.Context, g *globals, admin pb.AdminServiceClient, address string) error {
	p := newProgress(os.Stderr, g.quiet)
	defer p.done()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := admin.Status(ctx, &pb.StatusRequest{})
		if err != nil {
			return pageapi.CallError(address, err)
		}
		f := st.Follow
		switch {
		case f.State == "stopped":
			return errors.New(f.Message)
		case f.ConsistentLsn != 0 && f.ReadableLsn >= f.ConsistentLsn:
			p.done()
			if g.output == "table" {
				fmt.Printf("consistent at %s, reading and following up to %s\n", pg.LSN(f.ConsistentLsn), pg.LSN(f.ReadableLsn))
			}
			return nil
		}
		p.show(f.State, int64(f.ImportBytesDone), int64(f.ImportBytesTotal), f.Message)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
