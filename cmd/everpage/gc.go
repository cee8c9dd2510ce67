package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

type gcView struct {
	Horizon pg.LSN        `json:"horizon_lsn"`
	Local   []garbageView `json:"local"`
	Objects []string      `json:"objects"`
	Bytes   uint64        `json:"bytes"`
	Store   bool          `json:"store"` // there is one
	DryRun  bool          `json:"dry_run"`
}

type garbageView struct {
	Node     string `json:"node"`
	Branch   uint32 `json:"branch"`
	Horizon  pg.LSN `json:"horizon_lsn"`
	Seen     uint64 `json:"seen_bytes"`
	Gone     uint64 `json:"gone_bytes"`
	Versions uint64 `json:"gone_versions"`
	Error    string `json:"error,omitempty"`
}

func newGC(g *globals) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "gc", Short: "Remove what lies below the horizon, on the nodes and in the store, now",
		Long: `Move the horizon as far as retention, leases and the backup let it go, collect what lies below it on all nodes, and delete from the store what nothing needs.
All of that happens by itself, bit by bit. With --dry-run nothing changes; what would go is told.`,
		Example: `  everpage gc --dry-run
  everpage gc -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := g.client()
			if err != nil {
				return err
			}
			defer client.Close()
			service, address, err := client.Backup(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := service.CollectGarbage(cmd.Context(), &pb.CollectGarbageRequest{DryRun: dryRun})
			if err != nil {
				return pageapi.CallError(address, err)
			}
			v := gcView{Horizon: pg.LSN(resp.HorizonLsn), Local: []garbageView{}, Objects: append([]string{}, resp.Objects...), Bytes: resp.Bytes, Store: resp.Store, DryRun: dryRun}
			var failed error
			for _, l := range resp.Local {
				v.Local = append(v.Local, garbageView{l.Node, l.Branch, pg.LSN(l.HorizonLsn), l.SeenBytes, l.GoneBytes, l.GoneVersions, l.Error})
				if l.Error != "" {
					failed = errors.Join(failed, fmt.Errorf("%s could not collect: %s", l.Node, l.Error))
				}
			}
			if err := g.print(cmd.OutOrStdout(), v, func(w io.Writer) error { return printGC(w, v) }); err != nil {
				return err
			}
			return failed
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell what would be removed")
	return cmd
}

func printGC(w io.Writer, v gcView) error {
	what := "removed"
	if v.DryRun {
		what = "to be removed"
	}
	if len(v.Local) > 0 {
		rows := [][]string{{"NODE", "BRANCH", "HORIZON", "LOOKED AT", "GOES", "VERSIONS", ""}}
		for _, l := range v.Local {
			rows = append(rows, []string{l.Node, strconv.Itoa(int(l.Branch)), l.Horizon.String(), size(l.Seen), size(l.Gone), strconv.FormatUint(l.Versions, 10), l.Error})
		}
		if err := columns(w, rows...); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(w, "nothing lies below a horizon: everpage retention set says how long history is kept")
	}
	if !v.Store {
		return nil
	}
	for _, o := range v.Objects {
		fmt.Fprintln(w, o)
	}
	_, err := fmt.Fprintf(w, "%d objects of the store %s, %s\n", len(v.Objects), what, size(v.Bytes))
	return err
}
