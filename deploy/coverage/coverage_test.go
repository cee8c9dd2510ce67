package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"everpage/wal/pg"
)

const (
	journalFile = "journal.jsonl"
	tableFile   = "../../redo/COVERAGE.md"
)

// The committed table is what the committed journal makes, and every run in it was right.
func TestTableIsGenerated(t *testing.T) {
	entries, err := readJournal(journalFile)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) == 0 {
		t.Fatal("the journal is empty")
	}
	b, err := os.ReadFile(tableFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != render(entries) {
		t.Errorf("%s is not what %s makes: run go run ./deploy/coverage -table-only", tableFile, journalFile)
	}
	for _, e := range entries {
		if !e.ok() {
			t.Errorf("seed %d: %d mismatches, %s", e.Seed, e.Mismatches, e.Failed)
		}
	}
}

// Whoever reads a seed gets the settings that the journal names.
func TestJournalIsPlanned(t *testing.T) {
	entries, err := readJournal(journalFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		p := plan(e.Major, int(e.Seed%seedsPerMajor))
		if p.Seed != e.Seed || p.settings() != e.Settings {
			t.Errorf("seed %d has settings %q, the plan has %s", e.Seed, e.Settings, p)
		}
	}
}

func TestArrayCoversAllPairs(t *testing.T) {
	for _, major := range pg.Majors() {
		fs := factors(int(major))
		rows := array(fs)
		open := pairs(fs)
		seen := map[string]bool{}
		for _, c := range rows {
			seen[c.text(fs)] = true
			for i := range c {
				for j := i + 1; j < len(c); j++ {
					delete(open, pair{i, j, c[i], c[j]})
				}
			}
		}
		if len(open) > 0 || len(seen) != len(rows) {
			t.Errorf("PostgreSQL %d: %d pairs are in no row, %d rows of %d differ", major, len(open), len(seen), len(rows))
		}
		if len(rows) > 12 {
			t.Errorf("PostgreSQL %d has %d rows", major, len(rows))
		}
	}
}

// A later line of a seed replaces an earlier one.
func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	for _, e := range []*entry{
		{Major: 14, Seed: 1400000, Mismatches: 2, Types: map[string]typeEntry{"Heap/INSERT": {Records: 5, Pages: 3, Mismatches: 2}}},
		{Major: 14, Seed: 1400001, Types: map[string]typeEntry{"Heap/INSERT": {Records: 70, Pages: 60}, "CLOG/TRUNCATE": {Records: 4, Stops: 2}}},
		{Major: 14, Seed: 1400000, Types: map[string]typeEntry{"Heap/INSERT": {Records: 40, Pages: 30}},
			Forms: map[string]typeEntry{"seldom": {Records: 7, Pages: 5, Stops: 1}}},
	} {
		if err := appendJournal(path, e); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := readJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 || !entries[0].ok() {
		t.Fatalf("%d entries", len(entries))
	}
	text := render(entries)
	for _, want := range []string{"| INSERT | 110 / 90 | 0 / 0 |", "| TRUNCATE | 4 / 2 |", "short on 15, 16, 17, 18", "| seldom | 7 / 5 / 1 | 0 / 0 / 0 |"} {
		if !strings.Contains(text, want) {
			t.Errorf("the table lacks %q", want)
		}
	}
	wrong := render([]*entry{{Major: 18, Seed: 1800000, Mismatches: 7, Failed: "x", Types: map[string]typeEntry{"Heap/LOCK": {Records: 9, Pages: 2, Mismatches: 7}}}})
	if !strings.Contains(wrong, "9 / 2, **7 wrong**") || !strings.Contains(wrong, "7 (1 runs failed)") {
		t.Error("mismatches don't show in the table")
	}
}

// A record's bytes go on behind the page header that lies in it.
func TestRecordBytes(t *testing.T) {
	segment := make([]byte, 2*pg.BlockSize)
	parts, err := recordBytes(segment, pg.BlockSize-10, 30)
	if err != nil || len(parts) != 2 || len(parts[0]) != 10 || &parts[1][0] != &segment[pg.BlockSize+24] || len(parts[1]) != 20 {
		t.Errorf("got %d parts, error %v", len(parts), err)
	}
	if _, err := recordBytes(segment, 2*pg.BlockSize-10, 30); err == nil {
		t.Error("a record that ends in another segment is found whole")
	}
}
