package wal_test

import (
	"strings"
	"testing"

	"everpage/wal"
	"everpage/wal/pg"
)

func TestSegmentNames(t *testing.T) {
	for _, c := range []struct {
		lsn  string
		tli  pg.TimelineID
		size wal.SegmentSize
		name string
	}{
		{"0/1000000", 1, 16 << 20, "000000010000000000000001"},
		{"0/FF123456", 1, 16 << 20, "0000000100000000000000FF"},
		{"1/0", 1, 16 << 20, "000000010000000100000000"},
		{"ABCD/FFFFFFFF", 0xA, 16 << 20, "0000000A0000ABCD000000FF"},
		{"2/FFFFFFFF", 3, 1 << 20, "000000030000000200000FFF"},
		{"2/FFFFFFFF", 3, 1 << 30, "000000030000000200000003"},
	} {
		lsn, err := pg.ParseLSN(c.lsn)
		if err != nil {
			t.Fatal(err)
		}
		g := wal.Segment{Timeline: c.tli, Number: c.size.Number(lsn)}
		if g.Name(c.size) != c.name {
			t.Errorf("%s is in %s, want %s", c.lsn, g.Name(c.size), c.name)
		}
		for _, partial := range []bool{false, true} {
			g.Partial = partial
			if back, err := wal.ParseSegmentName(g.Name(c.size), c.size); err != nil || back != g {
				t.Errorf("%s reads as %v, %v", g.Name(c.size), back, err)
			}
		}
		if f := c.size.Floor(lsn); f > lsn || lsn-f >= pg.LSN(c.size) || c.size.Start(g.Number) != f || uint64(f)+uint64(c.size.Offset(lsn)) != uint64(lsn) {
			t.Errorf("segment of %s starts at %s", c.lsn, f)
		}
	}
	for _, bad := range []string{"", "00000001000000000000001", "0000000100000000000000001", "00000001000000000000000a", "000000010000000000000100",
		"000000000000000000000001", "000000010000000000000001.part", "00000001.history"} {
		if g, err := wal.ParseSegmentName(bad, 16<<20); err == nil {
			t.Errorf("%q reads as %v", bad, g)
		}
	}
	for _, size := range []wal.SegmentSize{0, 1 << 19, 3 << 20, 1 << 31} {
		if size.Valid() {
			t.Errorf("%d is called a segment size", size)
		}
	}
}

func TestHistory(t *testing.T) {
	text := "# a comment\n1\t0/3000060\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-01-01 00:00:00+00\n4\t0/5000000\t\r\n"
	h, err := wal.ParseHistory(7, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Parents) != 3 || h.Parents[1].Reason != "before 2026-01-01 00:00:00+00" || h.Parents[2].Switch != 0x5000000 {
		t.Fatalf("read %+v", h)
	}
	again, err := wal.ParseHistory(7, h.Format())
	if err != nil || len(again.Parents) != 3 || again.Parents[0] != h.Parents[0] || again.Parents[1] != h.Parents[1] {
		t.Fatalf("%+v, %v", again, err)
	}
	for lsn, tli := range map[pg.LSN]pg.TimelineID{1: 1, 0x300005F: 1, 0x3000060: 2, 0x4FFFFFF: 2, 0x5000000: 7, 1 << 60: 7} {
		if got := h.TimelineAt(lsn); got != tli {
			t.Errorf("%s is of timeline %d, want %d", lsn, got, tli)
		}
	}
	for _, c := range []struct {
		tli pg.TimelineID
		lsn pg.LSN
		ok  bool
	}{{1, 0x3000060, true}, {1, 0x3000061, false}, {2, 0x5000000, true}, {3, 1, false}, {4, 0x5000000, true}, {7, 1 << 60, true}, {8, 1, false}} {
		if got := h.ContainsBranch(c.tli, c.lsn); got != c.ok {
			t.Errorf("timeline %d at %s: %t", c.tli, c.lsn, got)
		}
	}
	if at, next, ok := h.SwitchFrom(2); !ok || at != 0x5000000 || next != 4 {
		t.Errorf("timeline 2 was left at %s for %d", at, next)
	}
	if _, next, ok := h.SwitchFrom(4); !ok || next != 7 {
		t.Errorf("timeline 4 was left for %d", next)
	}
	if _, _, ok := h.SwitchFrom(7); ok {
		t.Error("timeline 7 was left")
	}
	for bad, want := range map[string]string{
		"1":                            "line 1",
		"x\t0/1\tno":                   "not a timeline",
		"1\t01\tno":                    "invalid LSN",
		"2\t0/1\ta\n1\t0/2\tb":         "out of order",
		"1\t0/2\ta\n2\t0/1\tb":         "before its parent",
		"7\t0/2\tits own":              "out of order",
		"0\t0/2\tzero":                 "not a timeline",
		"99999999999\t0/2\ttoo big":    "not a timeline",
		"1\t0/2\ta\n1\t0/3\tthe same.": "out of order",
	} {
		if _, err := wal.ParseHistory(7, []byte(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", bad, err, want)
		}
	}
	if tli, err := wal.ParseHistoryName(wal.HistoryName(0xAB)); err != nil || tli != 0xAB {
		t.Errorf("history name: %d, %v", tli, err)
	}
	if _, err := wal.ParseHistoryName("000000AB.hist"); err == nil {
		t.Error("a wrong history name is accepted")
	}
}
