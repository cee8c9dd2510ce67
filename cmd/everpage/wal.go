package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"everpage/chunk/verify"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waldump"
)

func newWAL(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "wal", Short: "Read and verify WAL, without a node or a server"}
	c.AddCommand(newWALDump(g), newWALVerify(g))
	return c
}

func newWALDump(g *globals) *cobra.Command {
	var start, end string
	c := &cobra.Command{
		Use:   "dump FILE|DIR",
		Short: "Print WAL records as pg_waldump does, of PostgreSQL 14 to 18",
		Long: `Print the records of a WAL segment file, or of a directory of them, as pg_waldump does: resource manager, lengths, transaction, LSN, the record
before, its name and block references. The major version is what the segments say. -o json prints an object a line.

The end of the WAL is no error; bytes that are damaged before the end are.`,
		Example: `  everpage wal dump /var/lib/postgresql/15/main/pg_wal --start 0/16B3740 --end 0/17B3740
  everpage wal dump 000000010000000000000001 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := optionalLSN("--start", start)
			if err != nil {
				return err
			}
			to, err := optionalLSN("--end", end)
			if err != nil {
				return err
			}
			r, closer, err := waldump.Open(args[0], from, to)
			if err != nil {
				return err
			}
			defer closer.Close()
			w := bufio.NewWriterSize(cmd.OutOrStdout(), 1<<16)
			n, err := waldump.Write(w, r, redo.RecordName, g.output == "json")
			if flushErr := w.Flush(); flushErr != nil {
				return flushErr
			}
			if wal.IsEnd(err) {
				if !g.quiet {
					fmt.Fprintf(os.Stderr, "%d records; %v\n", n, err)
				}
				return nil
			}
			return err
		},
	}
	c.Flags().StringVar(&start, "start", "", "first `LSN`: the first record that starts at or after it")
	c.Flags().StringVar(&end, "end", "", "`LSN` up to which records are printed")
	return c
}

func optionalLSN(flag, s string) (pg.LSN, error) {
	if s == "" {
		return 0, nil
	}
	l, err := pg.ParseLSN(s)
	if err != nil {
		return 0, usageError{fmt.Errorf("%s: %w", flag, err)}
	}
	return l, nil
}

func newWALVerify(g *globals) *cobra.Command {
	var o verify.Options
	c := &cobra.Command{
		Use:   "verify --base PGDATA --wal DIR [--final PGDATA]",
		Short: "Replay WAL offline and hold every page against PostgreSQL's own",
		Long: `Import a data directory that was stopped (or an unpacked base backup), ingest a directory of WAL segments through the same reader, redo, store
and read path that serve pages, and compare every page with the after-image that a primary with wal_consistency_checking = all logs with its records.
--final also compares every block of every relation, every SLRU segment and pg_control with the data directory stopped where the WAL ends.

Exit code 6 where anything differs; the LSN, the page and the first differing bytes are printed. Record types that nobody knows are listed.`,
		Example: `  everpage wal verify --base /srv/cold-copy --wal /srv/archive --final /srv/stopped`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Base == "" || o.WAL == "" {
				return usageError{fmt.Errorf("--base and --wal are needed")}
			}
			p := newProgress(os.Stderr, g.quiet)
			o.Progress = func(at pg.LSN, _ uint64) { p.show("verifying", 0, 0, "at "+at.String()) }
			began := time.Now()
			report, err := verify.Run(cmd.Context(), o)
			p.done()
			if printErr := g.print(cmd.OutOrStdout(), report, func(w io.Writer) error { return printReport(w, report, time.Since(began)) }); printErr != nil {
				return printErr
			}
			if err != nil {
				return err
			}
			return verdict(report)
		},
	}
	c.Flags().StringVar(&o.Base, "base", "", "data directory that was stopped, or unpacked base backup")
	c.Flags().StringVar(&o.WAL, "wal", "", "directory with all segments from the base's checkpoint on")
	c.Flags().StringVar(&o.Final, "final", "", "data directory that was stopped where the WAL ends")
	c.Flags().StringVar(&o.Store, "store", "", "where to keep the versions (default: a temporary directory, removed at the end)")
	return c
}

// verdict is the error of a verification that found something, with all that counts.
func verdict(r *verify.Report) error {
	if r.OK() {
		return nil
	}
	return verifyError{fmt.Errorf("verification failed: %d mismatches, %d damaged pages, %d pages of the base that can't be made, %d broken invariants, %d unknown record types",
		r.Mismatches, r.Damaged, len(r.DamagedInBase), len(r.Violations), len(r.Unknown))}
}

func printReport(w io.Writer, r *verify.Report, took time.Duration) error {
	fmt.Fprintf(w, "PostgreSQL %d, %s to %s: %d records in %s (%s)\n\n", r.Major, r.Start, r.End, r.Records, took.Round(time.Millisecond), r.EndReason)
	rows := [][]string{{"RECORD", "RECORDS", "PAGES COMPARED", "MISMATCHES"}}
	var names []string
	for name := range r.Types {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t := r.Types[name]
		rows = append(rows, []string{name, strconv.FormatUint(t.Records, 10), strconv.FormatUint(t.Pages, 10), strconv.FormatUint(t.Mismatches, 10)})
	}
	rows = append(rows, []string{"all", strconv.FormatUint(r.Records, 10), strconv.FormatUint(r.Compared, 10), strconv.FormatUint(r.Mismatches, 10)})
	if err := columns(w, rows...); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nvisibility map pages compared: %d; bits that only the primary has (safe): %d\n", r.VMCompared, r.VMMissing)
	if f := r.Final; f != nil {
		fmt.Fprintf(w, "final directory: %d pages compared, %d identical, %d SLRU segments and small files\n", f.Pages, f.Identical, f.Objects)
		var kinds []string
		for kind := range f.Tolerated {
			kinds = append(kinds, kind)
		}
		slices.Sort(kinds)
		for _, kind := range kinds {
			fmt.Fprintf(w, "  tolerated, as WAL does not define it: %s: %d\n", kind, f.Tolerated[kind])
		}
	}
	for _, m := range r.Found {
		fmt.Fprintf(w, "MISMATCH at %s, %s, %s", m.LSN, m.Record, m.Page)
		if m.Ours != "" {
			fmt.Fprintf(w, ", from byte %d: ours %s, PostgreSQL's %s", m.Offset, m.Ours, m.Theirs)
		}
		if m.Text != "" {
			fmt.Fprintf(w, " (%s)", m.Text)
		}
		fmt.Fprintln(w)
	}
	for _, l := range []struct {
		what string
		list []string
	}{{"unknown", r.Unknown}, {"wrong checksum in the base", r.DamagedInBase}, {"broken invariant", r.Violations}} {
		for _, text := range l.list {
			fmt.Fprintf(w, "%s: %s\n", l.what, text)
		}
	}
	if r.Damaged > 0 {
		fmt.Fprintf(w, "%d after-images of pages that can't be made\n", r.Damaged)
	}
	return nil
}
