package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestAPartFails: what was measured before and after it is reported, and the run as a whole fails.
func TestAPartFails(t *testing.T) {
	b := &bench{}
	row := func(what string) { b.report.add(what, "", true, 0, "", of("x", "MB/s", 1)) }
	err := b.measure(t.Context(), []part{
		{"one", func(*bench, context.Context) error { row("first"); return nil }},
		{"two", func(*bench, context.Context) error { row("half"); return errors.New("no disk") }},
		{"three", func(*bench, context.Context) error { row("last"); return nil }},
	})
	if err == nil || err.Error() != "two: no disk" {
		t.Errorf("measured: %v", err)
	}
	dir := t.TempDir()
	if err := b.report.save(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "RESULTS.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| first ", "| half ", "| last ", "FAILED", "two: no disk"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the table lacks %q:\n%s", want, text)
		}
	}
	saved, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(saved, &r); err != nil || len(r.Rows) != 3 || len(r.Failed) != 1 {
		t.Errorf("results.json: %v\n%s", err, saved)
	}
}

// TestOnlyAPart: what is measured alone takes the place of the same lines, and the others say of which run they are.
func TestOnlyAPart(t *testing.T) {
	dir := t.TempDir()
	old, again := &bench{report: report{Commit: "c1"}}, &bench{report: report{Commit: "c2"}}
	line := func(b *bench, what string, v float64) { b.report.add(what, "", true, 0, "", of("x", "MB/s", v)) }
	for _, what := range []string{"first", "half", "last"} {
		line(old, what, 1)
	}
	old.report.Failed = []string{"two: no disk", "three: no net"}
	if err := old.report.save(dir); err != nil {
		t.Fatal(err)
	}
	saved, err := readReport(dir)
	if err != nil {
		t.Fatal(err)
	}
	line(again, "more", 2)
	line(again, "half", 2)
	again.report.onto(saved, []part{{name: "two"}})
	var got []string
	for _, l := range again.report.Rows {
		got = append(got, fmt.Sprintf("%s %v %v", l.What, l.Ours.Median, strings.Contains(l.From, "commit c1")))
	}
	if want := []string{"first 1 true", "half 2 false", "last 1 true", "more 2 false"}; !slices.Equal(got, want) || !slices.Equal(again.report.Failed, []string{"three: no net"}) {
		t.Errorf("%q, failed %q", got, again.report.Failed)
	}
	if none, err := readReport(t.TempDir()); none != nil || err != nil {
		t.Errorf("no report: %v, %v", none, err)
	}
}

// TestInterrupted: who ends a run gets no further parts.
func TestInterrupted(t *testing.T) {
	b := &bench{}
	ctx, cancel := context.WithCancel(t.Context())
	err := b.measure(ctx, []part{
		{"one", func(*bench, context.Context) error { cancel(); return nil }},
		{"two", func(*bench, context.Context) error { t.Error("another part was run"); return nil }},
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("measured: %v", err)
	}
}

func TestChoose(t *testing.T) {
	chosen, err := choose([]string{"collect", "redo"})
	if err != nil || len(chosen) != 2 || chosen[0].name != "redo" || chosen[1].name != "collect" {
		t.Errorf("chosen: %v, %v", chosen, err)
	}
	if _, err := choose([]string{"redo", "reedo"}); err == nil || !strings.Contains(err.Error(), "reedo") {
		t.Errorf("a part that isn't: %v", err)
	}
}
