package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// What redo is held against: redo of the same two kinds by a PostgreSQL process to which each page and record is sent, as Neon's documentation
// of its WAL redo benchmarks tells. It is a published figure, not one of this run.
const (
	processShort = 32
	processMany  = 139
)

var benchLine = regexp.MustCompile(`(?m)^Benchmark(RedoInsert|Redo200)(?:-\d+)?\s+\d+\s+([0-9.]+) ns/op`)

// redo runs the benchmarks of package redo.
func (b *bench) redo(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^Benchmark(RedoInsert|Redo200)$", "-benchtime", "1s", "-count", strconv.Itoa(b.runs), "everpage/redo")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	took := map[string][]float64{}
	for _, m := range benchLine.FindAllSubmatch(out, -1) {
		ns, err := strconv.ParseFloat(string(m[2]), 64)
		if err != nil {
			return err
		}
		took[string(m[1])] = append(took[string(m[1])], ns/1000)
	}
	if len(took["RedoInsert"]) != b.runs || len(took["Redo200"]) != b.runs {
		return fmt.Errorf("the benchmarks printed something else: %s", out)
	}
	short, many := of("redo", "µs", took["RedoInsert"]...), of("redo", "µs", took["Redo200"]...)
	b.report.add("redo of a short record", "≤ 2 µs", short.Median <= 2, 0, "", short, of("Neon's redo process (published)", "µs", processShort))
	b.report.add("redo of 200 records on one page", "≤ 100 µs", many.Median <= 100, 0, "", many, of("Neon's redo process (published)", "µs", processMany))
	return nil
}
