package main

import (
	"context"
	"errors"
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
	var allowMissing, scan bool
	var workers int
	c := &cobra.Command{
		Use:   "restore DIR [--lsn L | --time T | --xid X | --name N]",
		Short: "Write a data directory as of any moment, on which a stock PostgreSQL starts at once",
		Long: `Write a data directory as of any moment. A stock PostgreSQL of the same major starts on it at once, without recovery, as after a clean shutdown.
Transactions that were open then count as rolled back; prepared ones can be committed.

DIR must be absent or empty. Tablespaces go to DIR.tablespaces/OID unless --tablespace-mapping names another place, never to where the primary has them.
Without a target the newest readable LSN is restored. pg_control is written last: after an interruption no server starts on DIR.

Archiving, standbys and subscriptions of the primary are switched off in the copy's postgresql.auto.conf, and it listens on localhost only.
PostgreSQL refuses root. What root restores therefore belongs to the owner of DIR, or of the directory that DIR is made in.`,
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
			r := restore{g: g, client: client, at: &at, dir: args[0], mappings: mappings, allowMissing: allowMissing, scan: scan, workers: workers}
			return r.run(ctx, cmd.OutOrStdout())
		},
	}
	at.allFlags(c.Flags())
	c.Flags().StringArrayVar(&mappings, "tablespace-mapping", nil, "`OLD=NEW`: put the tablespace that the primary has in OLD into NEW; may be repeated")
	c.Flags().BoolVar(&allowMissing, "allow-missing", false, "leave out damaged indexes, marked invalid, and exit with 1 (without it nothing is written then)")
	c.Flags().BoolVar(&scan, "scan", false, "read all pages first, so that relations that can't be read are named before anything is written")
	c.Flags().IntVar(&workers, "jobs", 4, "`files` written at a time")
	return c
}

type restore struct {
	release      func() // of the lease of what is restored
	g            *globals
	client       *pageapi.Client
	at           *targetFlags
	dir          string
	mappings     []string
	allowMissing bool
	scan         bool
	workers      int
}

// restored is what the command prints.
type restored struct {
	Dir       string   `json:"dir"`
	LSN       pg.LSN   `json:"lsn"`
	Note      string   `json:"note,omitempty"`
	Last      *ending  `json:"last_transaction,omitempty"`
	Timeline  uint32   `json:"timeline"`
	Major     pg.Major `json:"major"`
	Files     int      `json:"files"`
	Bytes     int64    `json:"bytes"`
	Seconds   float64  `json:"seconds"`
	Missing   []string `json:"missing"`
	Notes     []string `json:"notes"`
	StartWith string   `json:"start_with"`
}

// ending is the last transaction that the restored server knows the end of.
type ending struct {
	Kind string   `json:"kind"`
	XID  uint32   `json:"xid"`
	End  pg.LSN   `json:"end_lsn"`
	Time jsonTime `json:"time"`
}

func (r *restore) run(ctx context.Context, w io.Writer) error {
	began := time.Now()
	dir, err := filepath.Abs(r.dir)
	if err != nil {
		return err
	}
	// Before a timeline is reserved for what cannot be written.
	if err := datadir.CheckEmpty(dir); err != nil {
		return err
	}
	owner, err := ownerOf(dir)
	if err != nil {
		return err
	}
	tree, resolution, err := r.plan(ctx, dir)
	if r.release != nil {
		defer r.release()
	}
	if err != nil {
		return err
	}
	p := newProgress(os.Stderr, r.g.quiet)
	err = datadir.Write(ctx, tree, dir, datadir.WriteOptions{
		Workers: r.workers, Every: 200 * time.Millisecond, Owner: owner.Owner,
		Progress: func(d datadir.Progress) {
			p.show("restoring", d.Bytes, d.TotalBytes, fmt.Sprintf("%d of %d files", d.Files, d.TotalFiles))
		},
	})
	p.done()
	if incomplete, ok := errors.AsType[*datadir.IncompleteError](err); ok && ctx.Err() != nil {
		incomplete.Err = errors.New("interrupted")
		return incomplete
	}
	if err != nil {
		return err
	}
	v := restored{
		Dir: dir, LSN: tree.At, Note: resolution.Note, Timeline: tree.Timeline, Major: tree.Major, Files: tree.Files, Bytes: tree.Bytes,
		Seconds: time.Since(began).Seconds(), Missing: []string{}, Notes: append([]string{}, tree.Notes...),
		StartWith: fmt.Sprintf("pg_ctl -D %s start", shellQuote(dir)),
	}
	for _, e := range resolution.Around {
		if e.End <= tree.At {
			v.Last = &ending{e.Kind, e.XID, e.End, jsonTime(e.Time)}
		}
	}
	v.Notes = append(v.Notes, ownerNote(tree, dir, owner)...)
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
	if pos.Branch == 0 { // main may move while a directory is written
		if pinned, err := r.client.Resolve(short, pageapi.Target{LSN: pos.LSN}); err == nil {
			pos.Branch = pinned.Branch
		}
	}
	admin, address, err := r.client.Admin(short)
	if err != nil {
		return nil, nil, err
	}
	src, err := r.client.Snapshot(short, pos)
	if err != nil {
		return nil, nil, err
	}
	if r.release, err = hold(short, r.client, pageapi.Position{Branch: pos.Branch, LSN: src.LSN()}); err != nil {
		return nil, nil, err
	}
	// What surrounds the target is known only now that it has been received.
	if found, err := r.client.Resolve(short, pageapi.Target{Branch: pos.Branch, LSN: src.LSN()}); err == nil {
		resolution.Around = found.Around
	}
	if r.scan {
		if err := r.scanAll(ctx, src); err != nil {
			return nil, nil, err
		}
		short, cancel = context.WithTimeout(ctx, r.g.timeout) // the scan may have used up the first
		defer cancel()
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

// scanAll reads all pages before anything is written.
func (r *restore) scanAll(ctx context.Context, src *pageapi.Snapshot) error {
	p := newProgress(os.Stderr, r.g.quiet)
	defer p.done()
	return src.Scan(ctx, r.workers, func(bytes int64) { p.show("reading all pages", 0, 0, size(bytes)) })
}

func printRestored(w io.Writer, v restored) error {
	fmt.Fprintf(w, "restored PostgreSQL %d at %s to %s: %d files, %s in %.1f s, timeline %d\n", v.Major, v.LSN, v.Dir, v.Files, size(v.Bytes), v.Seconds, v.Timeline)
	if v.Last != nil {
		fmt.Fprintf(w, "the last %s in it is transaction %d at %s\n", v.Last.Kind, v.Last.XID, formatTime(pg.Timestamp(v.Last.Time)))
	}
	if v.Note != "" {
		fmt.Fprintln(w, "note:", v.Note)
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
