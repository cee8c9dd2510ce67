package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

func newRetention(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "retention", Short: "How long history is kept"}
	set := &cobra.Command{
		Use:   "set DURATION|BYTES|forever",
		Short: "Keep history for a time, or for so many bytes of WAL",
		Long: `Keep history for a time, or for so many bytes of WAL. What is older is no longer answered (exit code 4), and is collected on the nodes and in the
store. Leases, running clones, branches and what the store has not got yet keep it for longer.

A time is taken from the commits, in WAL order. With forever, which is how a cluster begins, everything is kept. A change takes
effect at once: what was announced to go and has not gone yet stays, unless the new retention says so, too.`,
		Example: `  everpage retention set 7d
  everpage retention set 48h
  everpage retention set 100GB
  everpage retention set forever`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := parseRetention(args[0])
			if err != nil {
				return usageError{err}
			}
			return g.withBackup(cmd.Context(), func(ctx context.Context, service pb.BackupServiceClient) error {
				resp, err := service.SetRetention(ctx, req)
				if err != nil {
					return err
				}
				v := struct {
					Seconds uint64 `json:"seconds"`
					Bytes   uint64 `json:"wal_bytes"`
					Oldest  pg.LSN `json:"oldest_lsn"`
				}{req.Seconds, req.WalBytes, pg.LSN(resp.HorizonLsn)}
				return g.print(cmd.OutOrStdout(), v, func(w io.Writer) error {
					text := "retention is " + retentionText(req.Seconds, req.WalBytes)
					if v.Oldest != 0 {
						text += "; main is going to begin at " + v.Oldest.String()
					}
					_, err := fmt.Fprintln(w, text)
					return err
				})
			})
		},
	}
	show := &cobra.Command{
		Use: "show", Short: "How long history is kept, where it begins and what holds it", Args: cobra.NoArgs,
		Example: "  everpage retention show -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withBackup(cmd.Context(), func(ctx context.Context, service pb.BackupServiceClient) error {
				resp, err := service.Retention(ctx, &pb.RetentionRequest{})
				if err != nil {
					return err
				}
				return printRetention(g, cmd.OutOrStdout(), resp)
			})
		},
	}
	cmd.AddCommand(set, show)
	return cmd
}

// withBackup runs fn with the service around the store of a node.
func (g *globals) withBackup(ctx context.Context, fn func(ctx context.Context, service pb.BackupServiceClient) error) error {
	return g.withClient(ctx, func(ctx context.Context, c *pageapi.Client) error {
		service, address, err := c.Backup(ctx)
		if err != nil {
			return err
		}
		if err := fn(ctx, service); err != nil {
			return pageapi.CallError(address, err)
		}
		return nil
	})
}

type retentionView struct {
	Seconds  uint64        `json:"seconds"`
	Bytes    uint64        `json:"wal_bytes"`
	Branches []horizonView `json:"branches"`
}

type horizonView struct {
	Branch  uint32 `json:"branch"`
	Oldest  pg.LSN `json:"oldest_lsn"`
	Planned pg.LSN `json:"planned_lsn"`
	Applied pg.LSN `json:"horizon_lsn"`
	Target  pg.LSN `json:"target_lsn"`
	HeldBy  string `json:"held_by,omitempty"`
	Leases  uint32 `json:"leases"`
}

func printRetention(g *globals, out io.Writer, r *pb.RetentionResponse) error {
	v := retentionView{Seconds: r.Seconds, Bytes: r.WalBytes, Branches: []horizonView{}}
	for _, b := range r.Branches {
		v.Branches = append(v.Branches, horizonView{b.Branch, pg.LSN(b.OldestLsn), pg.LSN(b.PlannedLsn), pg.LSN(b.AppliedLsn), pg.LSN(b.TargetLsn), b.HeldBy, b.Leases})
	}
	return g.print(out, v, func(w io.Writer) error {
		fmt.Fprintln(w, "retention", retentionText(v.Seconds, v.Bytes))
		if len(v.Branches) == 0 {
			return nil
		}
		rows := [][]string{{"BRANCH", "BEGINS", "PLANNED", "COULD BEGIN", "LEASES", "HELD BY"}}
		for _, b := range v.Branches {
			rows = append(rows, []string{strconv.Itoa(int(b.Branch)), b.Oldest.String(), b.Planned.String(), b.Target.String(), strconv.Itoa(int(b.Leases)), b.HeldBy})
		}
		return columns(w, rows...)
	})
}

// retentionText is a retention in the words that set takes.
func retentionText(seconds, bytes uint64) string {
	const day = 24 * 3600
	switch {
	case seconds != 0 && seconds%day == 0:
		return fmt.Sprintf("%dd", seconds/day)
	case seconds != 0:
		return (time.Duration(seconds) * time.Second).String()
	case bytes != 0:
		return fmt.Sprintf("%s of WAL", size(bytes))
	}
	return "forever"
}

// byteUnits are the units that sizes are read in, as PostgreSQL's settings have them.
var byteUnits = []struct {
	name  string
	bytes float64
}{{"TB", 1 << 40}, {"GB", 1 << 30}, {"MB", 1 << 20}, {"KB", 1 << 10}}

// parseRetention reads 7d, 48h, 30m, 100GB or forever.
func parseRetention(text string) (*pb.SetRetentionRequest, error) {
	bad := fmt.Errorf("retention %q: want a time such as 7d or 48h, bytes of WAL such as 100GB, or forever", text)
	if text == "forever" {
		return &pb.SetRetentionRequest{}, nil
	}
	for _, u := range byteUnits {
		number, ok := strings.CutSuffix(strings.ToUpper(text), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil || !(n > 0) || n*u.bytes < 1 || n*u.bytes > math.MaxInt64 {
			return nil, bad
		}
		return &pb.SetRetentionRequest{WalBytes: uint64(n * u.bytes)}, nil
	}
	var d time.Duration
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || !(n > 0) || n > 36500 {
			return nil, bad
		}
		d = time.Duration(n * 24 * float64(time.Hour))
	} else {
		var err error
		if d, err = time.ParseDuration(text); err != nil {
			return nil, bad
		}
	}
	if d < time.Second {
		return nil, fmt.Errorf("retention %q: want at least a second", text)
	}
	return &pb.SetRetentionRequest{Seconds: uint64((d + time.Second - 1) / time.Second)}, nil
}
