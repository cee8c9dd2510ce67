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

func newInfo(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "info",
		Short:   "The recoverable window of each branch, and its holes",
		Example: "  everpage info -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.withClient(cmd.Context(), func(ctx context.Context, c *pageapi.Client) error {
				admin, address, err := c.Admin(ctx)
				if err != nil {
					return err
				}
				info, err := admin.Info(ctx, &pb.InfoRequest{})
				if err != nil {
					return pageapi.CallError(address, err)
				}
				v := infoView{Cluster: info.Cluster, Retention: info.Retention, Branches: []branchView{}, Notes: info.Notes}
				for _, b := range info.Branches {
					v.Branches = append(v.Branches, branchJSON(b))
				}
				return g.print(cmd.OutOrStdout(), v, func(w io.Writer) error { return printInfo(w, v) })
			})
		},
	}
}

type infoView struct {
	Cluster   string       `json:"cluster"`
	Retention string       `json:"retention"`
	Branches  []branchView `json:"branches"`
	Notes     []string     `json:"notes,omitempty"`
}

type branchView struct {
	Number           uint32   `json:"number"`
	Alias            string   `json:"alias,omitempty"`
	Major            uint32   `json:"major"`
	SystemIdentifier string   `json:"system_identifier"`
	Timeline         uint32   `json:"timeline"`
	Oldest           pg.LSN   `json:"oldest_lsn"`
	Newest           pg.LSN   `json:"newest_lsn"`
	OldestTime       string   `json:"oldest_time,omitempty"`
	NewestTime       string   `json:"newest_time,omitempty"`
	Planned          pg.LSN   `json:"planned_lsn"`
	Horizon          pg.LSN   `json:"horizon_lsn"`
	Backup           *lagView `json:"backup,omitempty"`
	LocalBytes       uint64   `json:"local_bytes"` // of the node that was asked
	Holes            []string `json:"holes"`
	Unproven         []string `json:"unproven"`

	Parent      uint32     `json:"parent,omitempty"`
	Fork        pg.LSN     `json:"fork_lsn,omitempty"`
	Left        pg.LSN     `json:"left_lsn,omitempty"`
	LostCount   *uint64    `json:"lost_count,omitempty"`
	LostCommits []lostView `json:"lost_commits,omitempty"`
}

// lostView is a commit that main does not have since the primary failed over.
type lostView struct {
	XID  uint32 `json:"xid"`
	Time string `json:"time"`
	LSN  pg.LSN `json:"lsn"`
}

// lagView is how far the store is behind, and what it gives back alone.
type lagView struct {
	Oldest         pg.LSN  `json:"oldest_lsn"`
	Newest         pg.LSN  `json:"newest_lsn"`
	Lag            uint64  `json:"lag_bytes"`
	LagSeconds     float64 `json:"lag_seconds"`
	Archive        uint64  `json:"archive_lag_bytes"`
	ArchiveSeconds float64 `json:"archive_lag_seconds"`
	Bytes          uint64  `json:"bytes"`
}

// behindText is a lag for people.
func behindText(bytes uint64, seconds float64) string {
	if seconds < 0.05 {
		return size(bytes) + " behind"
	}
	return fmt.Sprintf("%s and %.1f s behind", size(bytes), seconds)
}

func branchJSON(b *pb.BranchInfo) branchView {
	v := branchView{
		Number: b.Number, Alias: b.Alias, Major: b.Major, SystemIdentifier: strconv.FormatUint(b.SystemIdentifier, 10), Timeline: b.Timeline,
		Oldest: pg.LSN(b.OldestLsn), Newest: pg.LSN(b.NewestLsn), Planned: pg.LSN(b.PlannedLsn), Horizon: pg.LSN(b.HorizonLsn), Holes: append([]string{}, b.Holes...), Unproven: append([]string{}, b.Unproven...),
	}
	v.Parent, v.Fork, v.Left = b.Parent, pg.LSN(b.ForkLsn), pg.LSN(b.LeftLsn)
	if v.Left != 0 {
		v.LostCount = &b.LostCount
	}
	for _, c := range b.Lost {
		v.LostCommits = append(v.LostCommits, lostView{XID: c.Xid, Time: formatTime(pg.Timestamp(c.TimeUs)), LSN: pg.LSN(c.Lsn)})
	}
	v.LocalBytes = b.LocalBytes
	if b.BackedUp {
		v.Backup = &lagView{pg.LSN(b.StoreOldestLsn), pg.LSN(b.StoreNewestLsn), b.BackupLagBytes, b.BackupLagSeconds, b.ArchiveLagBytes, b.ArchiveLagSeconds, b.StoreBytes}
	}
	if b.OldestTimeUs != nil {
		v.OldestTime = formatTime(pg.Timestamp(*b.OldestTimeUs))
	}
	if b.NewestTimeUs != nil {
		v.NewestTime = formatTime(pg.Timestamp(*b.NewestTimeUs))
	}
	return v
}

func printInfo(w io.Writer, v infoView) error {
	if len(v.Branches) == 0 {
		_, err := fmt.Fprintf(w, "cluster %s has no history yet: everpage attach CONNINFO follows a primary\n", v.Cluster)
		return err
	}
	for _, b := range v.Branches {
		name := strconv.Itoa(int(b.Number))
		if b.Alias != "" {
			name += " (" + b.Alias + ")"
		}
		rows := [][]string{
			{"branch", name},
			{"server", fmt.Sprintf("PostgreSQL %d, system identifier %s, timeline %d", b.Major, b.SystemIdentifier, b.Timeline)},
			{"recoverable from", b.Oldest.String() + "  " + b.OldestTime},
			{"recoverable to", b.Newest.String() + "  " + b.NewestTime},
		}
		if b.Horizon != 0 || b.Planned != 0 {
			text := b.Horizon.String()
			if b.Planned > b.Horizon {
				text += ", about to be " + b.Planned.String()
			}
			rows = append(rows, []string{"horizon", text})
		}
		if b.Parent != 0 {
			rows = append(rows, []string{"forked off", fmt.Sprintf("branch %d at %s", b.Parent, b.Fork)})
		}
		if b.Left != 0 {
			rows = append(rows, []string{"left by main", fmt.Sprintf("at %s: %d commits beyond it are on this branch only", b.Left, *b.LostCount)})
		}
		rows = append(rows, []string{"on this node", size(b.LocalBytes)})
		if k := b.Backup; k != nil {
			rows = append(rows, []string{"in the store", fmt.Sprintf("%s to %s, %s of pages", k.Oldest, k.Newest, size(k.Bytes))},
				[]string{"pages there", behindText(k.Lag, k.LagSeconds)}, []string{"WAL there", behindText(k.Archive, k.ArchiveSeconds)})
		}
		for _, h := range b.Holes {
			rows = append(rows, []string{"hole", h})
		}
		for _, u := range b.Unproven {
			rows = append(rows, []string{"unproven", u})
		}
		if err := columns(w, rows...); err != nil {
			return err
		}
		if err := printLost(w, b); err != nil {
			return err
		}
	}
	if v.Retention != "" {
		fmt.Fprintln(w, "retention: "+v.Retention)
	}
	for _, note := range v.Notes {
		fmt.Fprintln(w, note)
	}
	return nil
}

// printLost lists the commits that an asynchronous failover left behind.
func printLost(w io.Writer, b branchView) error {
	if len(b.LostCommits) == 0 {
		return nil
	}
	rows := [][]string{{"LOST XID", "COMMITTED", "LSN"}}
	for _, c := range b.LostCommits {
		rows = append(rows, []string{strconv.FormatUint(uint64(c.XID), 10), c.Time, c.LSN.String()})
	}
	if err := columns(w, rows...); err != nil {
		return err
	}
	if more := *b.LostCount - uint64(len(b.LostCommits)); more > 0 {
		_, err := fmt.Fprintf(w, "and %d more\n", more)
		return err
	}
	return nil
}
