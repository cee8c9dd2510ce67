package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

func newBackup(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "backup", Short: "The history in the store"}
	cmd.AddCommand(
		&cobra.Command{
			Use: "list", Short: "What the store has of each branch, how far it is behind, and what was asked of it", Args: cobra.NoArgs,
			Example: "  everpage backup list -o json",
			RunE: func(cmd *cobra.Command, _ []string) error {
				return g.withClient(cmd.Context(), func(ctx context.Context, c *pageapi.Client) error {
					service, address, err := c.Backup(ctx)
					if err != nil {
						return err
					}
					resp, err := service.Backups(ctx, &pb.BackupsRequest{})
					if err != nil {
						return pageapi.CallError(address, err)
					}
					return printBackups(g, cmd.OutOrStdout(), resp)
				})
			},
		},
		&cobra.Command{
			Use: "now", Short: "Bring the store up to date and wait for it", Args: cobra.NoArgs,
			Example: "  everpage backup now && everpage backup list",
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
				resp, err := service.BackupNow(cmd.Context(), &pb.BackupNowRequest{})
				if err != nil {
					return pageapi.CallError(address, err)
				}
				return printBackups(g, cmd.OutOrStdout(), resp)
			},
		},
	)
	return cmd
}

type backupsView struct {
	Store         string             `json:"store"`
	Retention     string             `json:"retention,omitempty"`
	Lag           uint64             `json:"lag_bytes"`
	LagSeconds    float64            `json:"lag_seconds"`
	LocalBytes    uint64             `json:"local_bytes"`
	Bytes         uint64             `json:"bytes"` // of layers in the store
	LastUpload    string             `json:"last_upload,omitempty"`
	Error         string             `json:"error,omitempty"`
	Archive       *archiveView       `json:"archive,omitempty"`
	Branches      []branchBackupView `json:"branches"`
	ToRestore     uint32             `json:"shards_to_restore"`
	RestoreError  string             `json:"restore_error,omitempty"`
	Requests      map[string]uint64  `json:"requests"`
	UploadedByte  uint64             `json:"uploaded_bytes"`
	DownloadBytes uint64             `json:"downloaded_bytes"`
}

type archiveView struct {
	Begin pg.LSN   `json:"begin_lsn"`
	End   pg.LSN   `json:"end_lsn"`
	Lag   uint64   `json:"lag_bytes"`
	LagS  float64  `json:"lag_seconds"`
	Gaps  []string `json:"gaps"`
	Error string   `json:"error,omitempty"`
}

type branchBackupView struct {
	Branch uint32 `json:"branch"`
	Oldest pg.LSN `json:"oldest_lsn"`
	Newest pg.LSN `json:"newest_lsn"`
	Shards uint32 `json:"shards"`
	Layers uint64 `json:"layers"`
	Bytes  uint64 `json:"bytes"`
}

func backupsOf(r *pb.BackupsResponse) backupsView {
	u := r.GetUsage()
	v := backupsView{
		Store: r.Store, Retention: r.Retention, Lag: r.LagBytes, LagSeconds: r.LagSeconds, LocalBytes: r.LocalBytes, Bytes: r.ObjectBytes, Error: r.Error, Branches: []branchBackupView{}, ToRestore: r.ShardsToRestore, RestoreError: r.RestoreError,
		Requests:     map[string]uint64{"put": u.GetPuts(), "get": u.GetGets(), "stat": u.GetStats(), "delete": u.GetDeletes(), "list": u.GetLists(), "failed": u.GetFailures()},
		UploadedByte: u.GetUploadedBytes(), DownloadBytes: u.GetDownloadedBytes(),
	}
	if r.LastUploadUs != 0 {
		v.LastUpload = time.UnixMicro(r.LastUploadUs).Format(time.RFC3339)
	}
	if a := r.Archive; a != nil {
		v.Archive = &archiveView{Begin: pg.LSN(a.BeginLsn), End: pg.LSN(a.EndLsn), Lag: a.LagBytes, LagS: a.LagSeconds, Gaps: append([]string{}, a.Gaps...), Error: a.Error}
	}
	for _, b := range r.Branches {
		v.Branches = append(v.Branches, branchBackupView{Branch: b.Branch, Oldest: pg.LSN(b.OldestLsn), Newest: pg.LSN(b.NewestLsn), Shards: b.Shards, Layers: b.Layers, Bytes: b.Bytes})
	}
	return v
}

func printBackups(g *globals, out io.Writer, r *pb.BackupsResponse) error {
	v := backupsOf(r)
	return g.print(out, v, func(w io.Writer) error {
		rows := [][]string{{"store", v.Store}}
		add := func(name, value string) {
			if value != "" {
				rows = append(rows, []string{name, value})
			}
		}
		for _, b := range v.Branches {
			add(fmt.Sprintf("branch %d", b.Branch), fmt.Sprintf("%s to %s, %d layers of %d shards, %s", b.Oldest, b.Newest, b.Layers, b.Shards, size(b.Bytes)))
		}
		if len(v.Branches) == 0 {
			add("branches", "none is in the store yet")
		}
		add("pages", behindText(v.Lag, v.LagSeconds))
		add("bytes", fmt.Sprintf("%s on this node, %s of pages in the store", size(v.LocalBytes), size(v.Bytes)))
		add("last upload", v.LastUpload)
		add("error", v.Error)
		if a := v.Archive; a != nil {
			add("WAL", fmt.Sprintf("%s to %s, %s", a.Begin, a.End, behindText(a.Lag, a.LagS)))
			add("WAL missing", strings.Join(a.Gaps, ", "))
			add("WAL error", a.Error)
		}
		if v.ToRestore > 0 {
			add("restoring", fmt.Sprintf("%d shards are still to come; reads of them go to the store", v.ToRestore))
			add("restore error", v.RestoreError)
		}
		add("retention", v.Retention)
		n := v.Requests
		add("requests", fmt.Sprintf("%d put, %d get, %d stat, %d delete, %d list, %d failed; %s up, %s down",
			n["put"], n["get"], n["stat"], n["delete"], n["list"], n["failed"], size(v.UploadedByte), size(v.DownloadBytes)))
		return columns(w, rows...)
	})
}

func newVerify(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "Read all of the backup and report what is wrong with it",
		Long: `Read every object of the store that recovery needs, hold it against its checksums and manifests, look for holes in the WAL, and make a sample of
pages from two sources: this node's store and the backup. Exit code 6 where anything is wrong.`,
		Example: "  everpage verify\n  everpage verify -o json",
		Args:    cobra.NoArgs,
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
			stream, err := service.VerifyBackup(cmd.Context(), &pb.VerifyBackupRequest{})
			if err != nil {
				return pageapi.CallError(address, err)
			}
			v := struct {
				Objects  uint64   `json:"objects"`
				Bytes    uint64   `json:"bytes"`
				Layers   uint64   `json:"layers"`
				Pages    uint64   `json:"pages_compared"`
				Problems []string `json:"problems"`
				Notes    []string `json:"notes"`
			}{Problems: []string{}, Notes: []string{}}
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return errors.New("verify ended early: the node gave no result")
				}
				if err != nil {
					return pageapi.CallError(address, err)
				}
				if m.Problem != "" {
					v.Problems = append(v.Problems, m.Problem)
				}
				if m.Note != "" {
					v.Notes = append(v.Notes, m.Note)
				}
				if m.Done {
					v.Objects, v.Bytes, v.Layers, v.Pages = m.Objects, m.Bytes, m.Layers, m.Pages
					break
				}
			}
			if err := g.print(cmd.OutOrStdout(), v, func(w io.Writer) error {
				for _, text := range append(v.Notes, v.Problems...) {
					fmt.Fprintln(w, text)
				}
				_, err := fmt.Fprintf(w, "%d objects, %s, %d layers read, %d pages made twice, %d problems\n", v.Objects, size(v.Bytes), v.Layers, v.Pages, len(v.Problems))
				return err
			}); err != nil {
				return err
			}
			if n := len(v.Problems); n > 0 {
				return verifyError{fmt.Errorf("the backup has %d problems", n)}
			}
			return nil
		},
	}
}
