package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

func newStatus(g *globals) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:     "status",
		Short:   "Nodes, the followed primary, LSNs and lag",
		Example: "  everpage status --watch",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := g.client()
			if err != nil {
				return err
			}
			defer client.Close()
			if !watch {
				return g.status(cmd.Context(), client, cmd.OutOrStdout())
			}
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				if g.output == "table" {
					fmt.Fprint(cmd.OutOrStdout(), "\033[H\033[2J")
				}
				if err := g.status(cmd.Context(), client, cmd.OutOrStdout()); err != nil {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-tick.C:
				}
			}
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "again every second, until Ctrl-C")
	return c
}

func (g *globals) status(ctx context.Context, client *pageapi.Client, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	admin, address, err := client.Admin(ctx)
	if err != nil {
		return err
	}
	st, err := admin.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return pageapi.CallError(address, err)
	}
	return g.print(w, statusJSON(st), func(w io.Writer) error { return printStatus(w, st) })
}

// statusView is status in JSON: LSNs as PostgreSQL prints them.
type statusView struct {
	Cluster string           `json:"cluster"`
	Nodes   []*pb.NodeStatus `json:"nodes"`
	Follow  followView       `json:"follow"`
}

type followView struct {
	State            string   `json:"state"`
	Message          string   `json:"message,omitempty"`
	Primary          string   `json:"primary,omitempty"`
	Major            uint32   `json:"major,omitempty"`
	SystemIdentifier string   `json:"system_identifier,omitempty"`
	Timeline         uint32   `json:"timeline,omitempty"`
	Slot             string   `json:"slot,omitempty"`
	Primary_         pg.LSN   `json:"primary_lsn"`
	Received         pg.LSN   `json:"received_lsn"`
	Durable          pg.LSN   `json:"durable_lsn"`
	Readable         pg.LSN   `json:"readable_lsn"`
	Stored           pg.LSN   `json:"stored_lsn"`
	Consistent       pg.LSN   `json:"consistent_lsn"`
	ImportDone       uint64   `json:"import_bytes_done,omitempty"`
	ImportTotal      uint64   `json:"import_bytes_total,omitempty"`
	Records          uint64   `json:"records"`
	Rate             float64  `json:"wal_bytes_per_second"`
	Warnings         []string `json:"warnings"`
}

func statusJSON(st *pb.StatusResponse) statusView {
	f := st.Follow
	v := followView{
		State: f.State, Message: f.Message, Primary: f.Primary, Major: f.Major, Timeline: f.Timeline, Slot: f.Slot,
		Primary_: pg.LSN(f.PrimaryLsn), Received: pg.LSN(f.ReceivedLsn), Durable: pg.LSN(f.DurableLsn), Readable: pg.LSN(f.ReadableLsn),
		Stored: pg.LSN(f.StoredLsn), Consistent: pg.LSN(f.ConsistentLsn), ImportDone: f.ImportBytesDone, ImportTotal: f.ImportBytesTotal,
		Records: f.Records, Rate: f.WalBytesPerSecond, Warnings: append([]string{}, f.Warnings...),
	}
	if f.SystemIdentifier != 0 {
		v.SystemIdentifier = strconv.FormatUint(f.SystemIdentifier, 10)
	}
	return statusView{Cluster: st.Cluster, Nodes: st.Nodes, Follow: v}
}

func printStatus(w io.Writer, st *pb.StatusResponse) error {
	rows := [][]string{{"NODE", "ADDRESS", "VERSION", "UP", "STORE", "SPOOL", "DISK FREE", "MEMORY"}}
	for _, n := range st.Nodes {
		rows = append(rows, []string{n.Name, n.Address, n.Version, (time.Duration(n.UptimeSeconds) * time.Second).String(), size(n.StoreBytes), size(n.SpoolBytes),
			size(n.DiskFreeBytes), size(n.RssBytes)})
	}
	if err := columns(w, rows...); err != nil {
		return err
	}
	f := st.Follow
	fmt.Fprintln(w)
	for _, n := range st.Nodes {
		if text := collectingText(n.Collecting); text != "" {
			fmt.Fprintf(w, "%s %s\n", n.Name, text)
		}
		if text := budgetText(n.Budget); text != "" {
			fmt.Fprintf(w, "%s %s\n", n.Name, text)
		}
	}
	rows = [][]string{{"cluster", st.Cluster}, {"state", f.State}}
	add := func(name, value string) {
		if value != "" && value != "0" && value != "0/0" {
			rows = append(rows, []string{name, value})
		}
	}
	add("", f.Message)
	add("primary", f.Primary)
	if f.Major != 0 {
		add("server", fmt.Sprintf("PostgreSQL %d, system identifier %d, timeline %d", f.Major, f.SystemIdentifier, f.Timeline))
	}
	add("slot", f.Slot)
	lsn := func(name string, at uint64) {
		text := pg.LSN(at).String()
		if at != 0 && f.PrimaryLsn > at {
			text += fmt.Sprintf("  (%s behind)", size(f.PrimaryLsn-at))
		}
		add(name, text)
	}
	lsn("primary at", f.PrimaryLsn)
	lsn("received", f.ReceivedLsn)
	lsn("durable (acknowledged)", f.DurableLsn)
	lsn("readable", f.ReadableLsn)
	lsn("stored", f.StoredLsn)
	add("readable from", pg.LSN(f.ConsistentLsn).String())
	if f.ImportBytesTotal > 0 && f.ConsistentLsn == 0 {
		add("imported", fmt.Sprintf("%s of %s", size(f.ImportBytesDone), size(f.ImportBytesTotal)))
	}
	add("records", strconv.FormatUint(f.Records, 10))
	for _, warning := range f.Warnings {
		rows = append(rows, []string{"warning", warning})
	}
	return columns(w, rows...)
}

// budgetText tells how a node keeps to its disk budget; "" without one.
func budgetText(b *pb.DiskBudget) string {
	if b.GetBytes() == 0 {
		return ""
	}
	text := fmt.Sprintf("takes %s of its disk budget of %s; %d chunks are read from the store; since it started %d were evicted and %d came back",
		size(b.UsedBytes), size(b.Bytes), b.EvictedChunks, b.Evictions, b.Fills)
	if b.Error != "" {
		text += "; it is not kept: " + b.Error
	}
	return text
}

// collectingText tells how collection below the horizon goes on a node; "" where there was none.
func collectingText(c *pb.Collecting) string {
	at := pg.LSN(c.GetHorizonLsn())
	switch {
	case c.GetError() != "":
		return "can't collect what lies below the horizon: " + c.Error
	case c.GetRunning():
		return fmt.Sprintf("collects branch %d below %s: %s looked at, %s gone", c.Branch, at, size(c.SeenBytes), size(c.GoneBytes))
	case c.GetPasses() > 0:
		return fmt.Sprintf("has collected below %s: %s gone, %s in %d passes since it started", at, size(c.GoneBytes), size(c.TotalGoneBytes), c.Passes)
	}
	return ""
}
