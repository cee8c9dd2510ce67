package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

// TestRecoverAtASegmentBoundary: layers and WAL end where a segment does, as after pg_switch_wal on an idle server, and nothing but the store is left.
func TestRecoverAtASegmentBoundary(t *testing.T) {
	t.Parallel()
	random := dice(t)
	s, b := newPrimary(t), newBackedUp(t)
	pgbench(t, s, "-i", "-s", "1")
	attach(t, b.node, s)
	first := caughtUp(t, b.node, s)
	bytes, err := strconv.ParseUint(s.MustSQL(t, "postgres", "select setting from pg_settings where name = 'wal_segment_size'")[0][0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	segment := pg.LSN(bytes)
	var end pg.LSN
	// A running server may log something by itself at any time: then another switch is waited for.
	eventually(t, "the backup ends at a segment's end", func() (bool, string) {
		pgbench(t, s, "-c", "2", "-t", "50")
		switched := parseLSN(t, s.MustSQL(t, "postgres", "select pg_switch_wal()")[0][0])
		end = (switched + segment - 1) / segment * segment
		waitReadable(t, b.node, end)
		l := backupList(t, b.node, "backup", "now")
		return len(l.Branches) == 1 && l.Branches[0].Newest == end && l.Archive.End == end, fmt.Sprintf("%s: %+v", end, l)
	})
	if err := s.Kill9(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := recordedDigests(t, b.node, random, first, end, 4)
	// All WAL below the backup's end goes from the store but for the segment that shows where it goes on.
	last := wal.Segment{Timeline: 1, Number: uint64((end - 1) / segment)}.Name(wal.SegmentSize(segment))
	eventually(t, "older WAL goes from the store", func() (bool, string) {
		b.node.Must(t, "gc")
		var names []string
		err := filepath.WalkDir(b.s3.Path("history", "cluster/wal"), func(path string, d fs.DirEntry, err error) error {
			if name := d.Name(); err == nil && !d.IsDir() && len(name) >= len(last) {
				names = append(names, name)
			}
			return err
		})
		old := slices.ContainsFunc(names, func(name string) bool { return name < last })
		return err == nil && !old && slices.Contains(names, last), fmt.Sprint(names, err)
	})
	b.node.Kill9()
	if err := os.RemoveAll(b.node.Data()); err != nil {
		t.Fatal(err)
	}
	n := b.recovered(t)
	waitReadable(t, n, end)
	compareDigests(t, n, want)
	n.Kill9()
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitReadable(t, n, end)
	compareDigests(t, n, want)
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgbench(t, s, "-c", "2", "-t", "50")
	caughtUp(t, n, s)
	backupList(t, n, "backup", "now")
	n.Must(t, "verify")
	compareStopped(t, n, s)
}
