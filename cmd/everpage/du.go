package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	pb "everpage/pageapi/pagepb/everpage/v1"
)

type usageView struct {
	Branch    uint32          `json:"branch"`
	Relations []relationUsage `json:"relations"` // largest first
	Others    uint64          `json:"others_bytes"`
	Databases []relationUsage `json:"databases"`
	Pages     uint64          `json:"history_bytes"` // of all relations, one copy
	Local     uint64          `json:"local_bytes"`   // of all nodes' stores
	Spool     uint64          `json:"spool_bytes"`
	Store     uint64          `json:"store_bytes"`
	StoreWAL  uint64          `json:"store_wal_bytes"`
	Silent    []string        `json:"silent"` // nodes that did not answer
}

type relationUsage struct {
	Name    string `json:"name"`
	Bytes   uint64 `json:"history_bytes"`
	Current uint64 `json:"current_bytes"`
}

func newDU(g *globals) *cobra.Command {
	var top int
	var branch string
	cmd := &cobra.Command{
		Use: "du", Short: "What the history of each relation takes on disk",
		Long: `What the history of each relation takes on disk, largest first: all its versions inside the window, one copy of them, compressed, beside the size that it has
now. What is in memory still is not counted. Databases and relations are named as rel list does: tablespace, database and relation number.`,
		Example: `  everpage du --top 10
  everpage du -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			number, err := parseBranch(branch)
			if err != nil {
				return err
			}
			if top < 0 {
				return usageError{fmt.Errorf("--top %d: want a number of relations, or 0 for all", top)}
			}
			return g.withBackup(cmd.Context(), func(ctx context.Context, service pb.BackupServiceClient) error {
				resp, err := service.DiskUsage(ctx, &pb.DiskUsageRequest{Branch: number})
				if err != nil {
					return err
				}
				v := usageOf(resp, top)
				return g.print(cmd.OutOrStdout(), v, func(w io.Writer) error { return printUsage(w, v) })
			})
		},
	}
	cmd.Flags().IntVar(&top, "top", 20, "`relations` that are listed; 0 for all")
	cmd.Flags().StringVar(&branch, "branch", "main", "branch `number`, or main")
	return cmd
}

func usageOf(r *pb.DiskUsageResponse, top int) usageView {
	v := usageView{
		Branch: r.Branch, Relations: []relationUsage{}, Databases: []relationUsage{}, Local: r.LocalBytes, Spool: r.SpoolBytes, Store: r.StoreBytes, StoreWAL: r.WalBytes,
		Silent: append([]string{}, r.Silent...),
	}
	databases := map[string]int{}
	for i, rel := range r.Relations {
		v.Pages += rel.Bytes
		if top == 0 || i < top {
			v.Relations = append(v.Relations, relationUsage{rel.Relation, rel.Bytes, rel.CurrentBytes})
		} else {
			v.Others += rel.Bytes
		}
		part := strings.Split(rel.Relation, "/")
		if len(part) != 3 {
			continue
		}
		name := part[0] + "/" + part[1]
		j, ok := databases[name]
		if !ok {
			j = len(v.Databases)
			databases[name] = j
			v.Databases = append(v.Databases, relationUsage{Name: name})
		}
		v.Databases[j].Bytes += rel.Bytes
		v.Databases[j].Current += rel.CurrentBytes
	}
	return v
}

func printUsage(w io.Writer, v usageView) error {
	rows := [][]string{{"RELATION", "HISTORY", "NOW"}}
	for _, r := range v.Relations {
		rows = append(rows, []string{r.Name, size(r.Bytes), size(r.Current)})
	}
	if v.Others > 0 {
		rows = append(rows, []string{"others", size(v.Others), ""})
	}
	if err := columns(w, rows...); err != nil {
		return err
	}
	fmt.Fprintln(w)
	rows = [][]string{{"DATABASE", "HISTORY", "NOW"}}
	for _, r := range v.Databases {
		rows = append(rows, []string{r.Name, size(r.Bytes), size(r.Current)})
	}
	if err := columns(w, rows...); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s of pages; the nodes take %s and %s of WAL", size(v.Pages), size(v.Local), size(v.Spool))
	if v.Store > 0 || v.StoreWAL > 0 {
		fmt.Fprintf(w, ", the store %s and %s of WAL", size(v.Store), size(v.StoreWAL))
	}
	fmt.Fprintln(w)
	if len(v.Silent) > 0 {
		fmt.Fprintf(w, "not counted, since they do not answer: %s\n", strings.Join(v.Silent, ", "))
	}
	return nil
}
