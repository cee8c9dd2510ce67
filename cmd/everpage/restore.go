package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	"everpage/pageapi/datadir"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

func newRestore(g *globals) *cobra.Command {
	var at targetFlags
	var mappings []string
	var allowMissing bool
	var workers int
	c := &cobra.Command{
		Use:   "restore DIR [--lsn L | --time T | --xid X | --name N] [--before]",
		Short: "Write a data directory as of any moment, on which a stock PostgreSQL starts at once",
		Long: `Write a data directory as of any moment. A stock PostgreSQL of the same major starts on it at once, without recovery, as after a clean shutdown.
Transactions that were open then count as rolled back; prepared ones can be committed.

DIR must be absent or empty. Tablespaces go to DIR.tablespaces/OID unless --tablespace-mapping names another place, never to where the primary has them.
Without a target the newest readable LSN is restored. pg_control is written last: after an interruption no server starts on DIR.`,
		Example: `  everpage restore /srv/before-the-accident --time '2026-03-01 12:00:00+00'
  everpage restore /srv/before-the-delete --xid 4711 --before
  everpage restore /srv/copy --lsn 0/16B3740 --tablespace-mapping /mnt/fast=/mnt/copy`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			client, err := g.client()
			if err != nil {
				return err
			}
			defer client.Close()
			r := restore{g: g, client: client, at: &at, dir: args[0], mappings: mappings, allowMissing: allowMissing, workers: workers}
			return r.run(ctx, cmd.OutOrStdout())
		},
	}
	at.allFlags(c.Flags())
	c.Flags().StringArrayVar(&mappings, "tablespace-mapping", nil, "`OLD=NEW` location of a tablespace; may be repeated")
	c.Flags().BoolVar(&allowMissing, "allow-missing", false, "leave out damaged indexes, marked invalid, and exit with 1")
	c.Flags().IntVar(&workers, "jobs", 4, "files written at a time")
	return c
}

type restore struct {
	g            *globals
	client       *pageapi.Client
	at           *targetFlags
	dir          string
	mappings     []string
	allowMissing bool
	workers      int
}

// restored is what the command prints.
type restored struct {
	Dir       string   `json:"dir"`
	LSN       pg.LSN   `json:"lsn"`
	Note      string   `json:"note,omitempty"`
	Timeline  uint32   `json:"timeline"`
	Major     pg.Major `json:"major"`
	Files     int      `json:"files"`
	Bytes     int64    `json:"bytes"`
	Seconds   float64  `json:"seconds"`
	Missing   []string `json:"missing"`
	Notes     []string `json:"notes"`
	StartWith string   `json:"start_with"`
}

func (r *restore) run(ctx context.Context, w io.Writer) error {
	began := time.Now()
	dir, err := filepath.Abs(r.dir)
	if err != nil {
		return err
	}
	tree, resolution, err := r.plan(ctx, dir)
	if err != nil {
		return err
	}
	p := newProgress(os.Stderr, r.g.quiet)
	err = datadir.Write(ctx, tree, dir, datadir.WriteOptions{
		Workers: r.workers, Every: 200 * time.Millisecond,
		Progress: func(d datadir.Progress) {
			p.show("restoring", d.Bytes, d.TotalBytes, fmt.Sprintf("%d of %d files", d.Files, d.TotalFiles))
		},
	})
	p.done()
	if err != nil {
		return err
	}
	v := restored{
		Dir: dir, LSN: tree.At, Note: resolution.Note, Timeline: tree.Timeline, Major: tree.Major, Files: tree.Files, Bytes: tree.Bytes,
		Seconds: time.Since(began).Seconds(), Missing: []string{}, Notes: append([]string{}, tree.Notes...),
		StartWith: fmt.Sprintf("pg_ctl -D %s start", dir),
	}
	for _, m := range tree.Missing {
		v.Missing = append(v.Missing, fmt.Sprintf("%s %s (%s): %v", m.Kind, m.Name, m.Path, m.Err))
	}
	if err := r.g.print(w, v, func(w io.Writer) error { return printRestored(w, v) }); err != nil {
		return err
	}
	if n := len(v.Missing); n > 0 {
		return fmt.Errorf("%d damaged indexes were left out and marked invalid: REINDEX them", n)
	}
	return nil
}

// plan resolves the target, reserves a timeline and describes the directory.
func (r *restore) plan(ctx context.Context, dir string) (*datadir.Tree, *pageapi.Resolution, error) {
	targets := map[string]string{}
	for _, m := range r.mappings {
		from, to, err := datadir.ParseTablespaceMapping(m)
		if err != nil {
			return nil, nil, usageError{err}
		}
		targets[filepath.Clean(from)] = to
	}
	short, cancel := context.WithTimeout(ctx, r.g.timeout)
	defer cancel()
	pos, resolution, err := r.at.resolve(short, r.client)
	if err != nil {
		return nil, nil, err
	}
	admin, address, err := r.client.Admin(short)
	if err != nil {
		return nil, nil, err
	}
	src, err := r.client.Snapshot(short, pos)
	if err != nil {
		return nil, nil, err
	}
	reserved, err := admin.ReserveTimeline(short, &pb.ReserveTimelineRequest{})
	if err != nil {
		return nil, nil, pageapi.CallError(address, err)
	}
	tree, err := datadir.Plan(ctx, src, datadir.Options{
		At: src.LSN(), Timeline: reserved.Timeline, Parents: src.History(), Reason: "restored by everpage at " + src.LSN().String(), Now: time.Now(),
		TablespaceTarget: datadir.TablespacesBeside(dir, targets),
		PathExists: func(path string) bool {
			_, err := os.Stat(path)
			return err == nil
		},
		AllowMissing: r.allowMissing,
	})
	return tree, resolution, err
}

func printRestored(w io.Writer, v restored) error {
	fmt.Fprintf(w, "restored PostgreSQL %d at %s to %s: %d files, %s in %.1f s, timeline %d\n", v.Major, v.LSN, v.Dir, v.Files, size(v.Bytes), v.Seconds, v.Timeline)
	if v.Note != "" {
		fmt.Fprintln(w, v.Note)
	}
	for _, n := range v.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	for _, m := range v.Missing {
		fmt.Fprintln(w, "left out:", m)
	}
	_, err := fmt.Fprintf(w, "start it with: %s\n", v.StartWith)
	return err
}
