package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

// shownPage is what `page get -o json` prints.
type shownPage struct {
	LSN                          pg.LSN `json:"lsn"`
	Flags, Lower, Upper, Special int
	PageSize, Version            int
	PruneXID                     int64 `json:"prune_xid"`
	Items                        []struct {
		LP     int `json:"lp"`
		Offset int `json:"lp_off"`
		Flags  int `json:"lp_flags"`
		Length int `json:"lp_len"`
		Tuple  *struct {
			Xmin      int64  `json:"t_xmin"`
			Xmax      int64  `json:"t_xmax"`
			CTID      string `json:"t_ctid"`
			Infomask2 int    `json:"t_infomask2"`
			Hoff      int    `json:"t_hoff"`
		} `json:"tuple"`
	}
}

// `page get` shows a page as pageinspect does on the primary. Hint bits and what they sit in (t_infomask, prune_xid) are the primary's own.
func TestPageGetShowsWhatPageinspectShows(t *testing.T) {
	t.Parallel()
	s, n := newPrimary(t), newNode(t)
	attach(t, n, s)
	s.MustSQL(t, "postgres", "create extension pageinspect", "create table shown (id int primary key, v text) with (fillfactor = 60, autovacuum_enabled = off)",
		"insert into shown select i, repeat('v', i) from generate_series(1, 60) i", "delete from shown where id % 5 = 0",
		"update shown set v = v || 'x' where id % 3 = 0", "vacuum (freeze off) shown", "insert into shown select i, 'again' from generate_series(100, 110) i")
	at := caughtUp(t, n, s)
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('shown')")[0][0]

	var ours shownPage
	if err := n.JSON(t.Context(), &ours, "page", "get", rel, "0", "--lsn", at.String()); err != nil {
		t.Fatal(err)
	}
	var header []string
	for _, v := range s.MustSQL(t, "postgres", "select lsn, lower, upper, special, pagesize, version from page_header(get_raw_page('shown', 0))") {
		header = v
	}
	got := []string{ours.LSN.String(), fmt.Sprint(ours.Lower), fmt.Sprint(ours.Upper), fmt.Sprint(ours.Special), fmt.Sprint(ours.PageSize), fmt.Sprint(ours.Version)}
	if !slices.Equal(got, header) {
		t.Errorf("page header %v, pageinspect shows %v", got, header)
	}
	theirs := s.MustSQL(t, "postgres", "select lp, lp_off, lp_flags, lp_len, t_xmin, t_xmax, t_ctid, t_infomask2, t_hoff from heap_page_items(get_raw_page('shown', 0))")
	if len(theirs) == 0 || len(theirs) != len(ours.Items) {
		t.Fatalf("%d line pointers, pageinspect shows %d", len(ours.Items), len(theirs))
	}
	for i, item := range ours.Items {
		row := []string{fmt.Sprint(item.LP), fmt.Sprint(item.Offset), fmt.Sprint(item.Flags), fmt.Sprint(item.Length), "", "", "", "", ""}
		if u := item.Tuple; u != nil {
			row = append(row[:4], fmt.Sprint(u.Xmin), fmt.Sprint(u.Xmax), u.CTID, fmt.Sprint(u.Infomask2), fmt.Sprint(u.Hoff))
		}
		if !slices.Equal(row, theirs[i]) {
			t.Errorf("line pointer %d: %v, pageinspect shows %v", i+1, row, theirs[i])
		}
	}

	if raw := n.Must(t, "page", "get", rel, "0", "--lsn", at.String(), "--format", "raw"); len(raw) != pg.BlockSize {
		t.Errorf("--format raw wrote %d bytes", len(raw))
	}
	var history []struct {
		LSN    pg.LSN
		Kind   string
		Record string
	}
	if err := json.Unmarshal([]byte(n.Must(t, "page", "history", rel, "0", "-o", "json")), &history); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for i, v := range history {
		seen[v.Record] = true
		if i > 0 && v.LSN >= history[i-1].LSN {
			t.Errorf("version %d (%s) is not older than the one before it (%s)", i, v.LSN, history[i-1].LSN)
		}
	}
	for _, record := range []string{"Heap/INSERT+INIT", "Heap/INSERT", "Heap/DELETE", "Heap2/PRUNE"} {
		if !seen[record] {
			t.Errorf("the page's history has no %s: %v", record, seen)
		}
	}
}

// An idle primary's own position may lie behind the header of a page that it has only begun. Nothing ends there, so a read need not wait.
func TestReadAtThePositionOfAnIdlePrimary(t *testing.T) {
	t.Parallel()
	s, n := newPrimary(t, map[string]string{"autovacuum": "off", "checkpoint_timeout": "1h"}), newNode(t)
	attach(t, n, s)
	var at pg.LSN
	eventually(t, "the primary is behind the header of a segment", func() (bool, string) { // the background writer writes a record now and then (LogStandbySnapshot)
		s.MustSQL(t, "postgres", "checkpoint", "select pg_switch_wal()")
		at = parseLSN(t, s.MustSQL(t, "postgres", "select pg_current_wal_insert_lsn()")[0][0])
		return at%pg.BlockSize == 40, at.String()
	})
	n.Must(t, "rel", "size", "global/1262", "--lsn", at.String())
	refused(t, n, 5, []string{"the primary itself has written WAL up to"}, "rel", "size", "global/1262", "--lsn", (at + 1024).String(), "--timeout", "3s")
}

// A slot that could not be dropped is not forgotten.
func TestASlotThatIsLeftBehindIsToldAndDroppedLater(t *testing.T) {
	t.Parallel()
	s, n := newPrimary(t), newNode(t)
	attach(t, n, s)
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	if out := n.Must(t, "detach", "--keep-data"); !strings.Contains(out, "pg_drop_replication_slot") {
		t.Errorf("detach doesn't print the SQL that drops the slot:\n%s", out)
	}
	n.Kill9()
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f, err := n.Status(t.Context()); err != nil || !strings.Contains(strings.Join(f.Warnings, "\n"), slotName) {
		t.Errorf("status doesn't warn of the slot: %q, %v", f.Warnings, err)
	}
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := n.Must(t, "detach", "--keep-data"); !strings.Contains(out, "dropped slot "+slotName) {
		t.Errorf("the second detach doesn't drop the slot:\n%s", out)
	}
	if rows := s.MustSQL(t, "postgres", "select slot_name from pg_replication_slots"); len(rows) != 0 {
		t.Errorf("slots left: %v", rows)
	}
	if f, err := n.Status(t.Context()); err != nil || len(f.Warnings) != 0 {
		t.Errorf("status still warns: %q, %v", f.Warnings, err)
	}
}
