package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report is what a run has found.
type report struct {
	Began     time.Time `json:"began"`
	Took      float64   `json:"took_seconds"`
	Commit    string    `json:"commit"`
	Modified  bool      `json:"modified"` // there were changes that no commit has
	CPU       string    `json:"cpu"`
	Cores     int       `json:"cores"`
	MemoryGiB float64   `json:"memory_gib"`
	Kernel    string    `json:"kernel"`
	Go        string    `json:"go"`
	Postgres  string    `json:"postgres"`
	LoadStart string    `json:"load_start"` // 1, 5 and 15 minutes, before anything was run
	LoadEnd   string    `json:"load_end"`
	Runs      int       `json:"runs"`
	Seed      int64     `json:"seed"`
	Rows      []row     `json:"rows"`
	Failed    []string  `json:"failed,omitempty"` // parts that were not measured to their end, and why
}

// row is one line of the table: what was measured, beside what.
type row struct {
	What  string     `json:"what"`
	Ours  measured   `json:"everpage"`
	Peers []measured `json:"peers,omitempty"`
	Ratio float64    `json:"ratio,omitempty"` // ours to the first peer's, as Reach counts it
	Reach string     `json:"reach,omitempty"` // what it should be
	Met   *bool      `json:"met,omitempty"`
	Note  string     `json:"note,omitempty"`
	From  string     `json:"from,omitempty"` // the run that it is of, where that isn't the report's
}

// measured is the median of some runs, and all of them.
type measured struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Median float64   `json:"median"`
	Values []float64 `json:"values"`
}

func of(name, unit string, values ...float64) measured {
	m := measured{Name: name, Unit: unit, Values: values}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n > 0 {
		m.Median = (sorted[(n-1)/2] + sorted[n/2]) / 2
	}
	return m
}

// String is the median with three digits, and the spread.
func (m measured) String() string {
	s := number(m.Median) + " " + m.Unit
	if len(m.Values) > 1 {
		s += fmt.Sprintf(" (%s–%s)", number(slices.Min(m.Values)), number(slices.Max(m.Values)))
	}
	return s
}

func number(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *report) add(what, reach string, met bool, ratio float64, note string, ours measured, peers ...measured) {
	line := row{What: what, Ours: ours, Peers: peers, Ratio: ratio, Reach: reach, Note: note}
	if reach != "" {
		line.Met = &met
	}
	r.Rows = append(r.Rows, line)
	progress("%s: %s%s", what, ours, beside(peers))
}

func beside(peers []measured) string {
	var b strings.Builder
	for _, p := range peers {
		fmt.Fprintf(&b, " | %s %s", p.Name, p)
	}
	return b.String()
}

func newReport(ctx context.Context, b *bench) report {
	r := report{Began: time.Now().UTC(), Cores: runtime.NumCPU(), Go: runtime.Version(), Runs: b.runs, Seed: b.seed, LoadStart: load(), CPU: cpuModel()}
	git := func(args ...string) string {
		out, err := exec.CommandContext(ctx, "git", args...).Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	r.Commit, r.Modified = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no") != ""
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		r.MemoryGiB = float64(si.Totalram) * float64(si.Unit) / (1 << 30)
	}
	return r
}

func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for _, line := range strings.Split(string(b), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

func (r *report) finish() {
	r.LoadEnd, r.Took = load(), time.Since(r.Began).Seconds()
}

// facts are the lines above the table.
func (r *report) facts() []string {
	return []string{
		fmt.Sprintf("%s, %d cores, %.0f GiB, Linux %s, %s, PostgreSQL %s", r.CPU, r.Cores, r.MemoryGiB, r.Kernel, r.Go, r.Postgres),
		fmt.Sprintf("%s, %.0f s, medians of %d (least–most), seed %d", r.run(), r.Took, r.Runs, r.Seed),
		fmt.Sprintf("load average before %s, after %s", r.LoadStart, r.LoadEnd),
	}
}

// run names the run among others.
func (r *report) run() string {
	commit := r.Commit
	if r.Modified {
		commit += " with changes"
	}
	return fmt.Sprintf("commit %s, %s", commit, r.Began.Format(time.DateOnly))
}

// onto puts what was measured in place of the same lines of an older report, whose other lines stay and say of which run they are. A part that failed then and not
// now is not told of any more.
func (r *report) onto(old *report, parts []part) {
	var rows []row
	for _, l := range old.Rows {
		if i := slices.IndexFunc(r.Rows, func(n row) bool { return n.What == l.What }); i >= 0 {
			rows = append(rows, r.Rows[i])
			r.Rows = slices.Delete(r.Rows, i, i+1)
			continue
		}
		if l.From == "" {
			l.From = old.run()
		}
		rows = append(rows, l)
	}
	r.Rows = append(rows, r.Rows...)
	for _, f := range old.Failed {
		if !slices.ContainsFunc(parts, func(p part) bool { return strings.HasPrefix(f, p.name+": ") }) {
			r.Failed = append(r.Failed, f)
		}
	}
}

func (r *report) cells() [][]string {
	rows := [][]string{{"what", "everpage", "beside", "ratio", "reach", ""}}
	for _, l := range r.Rows {
		ratio, met := "", ""
		if l.Ratio != 0 {
			ratio = number(l.Ratio) + "×"
		}
		if l.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*l.Met]
		}
		var peers []string
		for _, p := range l.Peers {
			peers = append(peers, p.Name+": "+p.String())
		}
		rows = append(rows, []string{l.What, l.Ours.String(), strings.Join(peers, "; "), ratio, l.Reach, met})
	}
	return rows
}

func (r *report) notes() []string {
	var notes []string
	for _, l := range r.Rows {
		if l.Note != "" {
			notes = append(notes, l.What+": "+l.Note)
		}
		if l.From != "" {
			notes = append(notes, l.What+": measured in another run, "+l.From)
		}
	}
	for _, f := range r.Failed {
		notes = append(notes, "FAILED, so that lines are missing: "+strings.ReplaceAll(f, "\n", " "))
	}
	return notes
}

func (r *report) write(w io.Writer) error {
	for _, f := range r.facts() {
		fmt.Fprintln(w, f)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range r.cells() {
		fmt.Fprintln(t, strings.Join(c, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, n := range r.notes() {
		fmt.Fprintln(w, n)
	}
	return nil
}

// readReport reads what save wrote; nil if it is not there.
func readReport(dir string) (*report, error) {
	b, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &report{}
	return r, json.Unmarshal(b, r)
}

// save writes results.json and RESULTS.md.
func (r *report) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	j, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(j, '\n'), 0o644); err != nil {
		return err
	}
	var b bytes.Buffer
	b.WriteString("# Measured\n\nWritten by `make bench`; the same in results.json. What stands beside each other was measured in the same run on the same machine.\n\n")
	for _, f := range r.facts() {
		b.WriteString("- " + f + "\n")
	}
	b.WriteString("\n")
	for i, c := range r.cells() {
		b.WriteString("| " + strings.Join(c, " | ") + " |\n")
		if i == 0 {
			b.WriteString(strings.Repeat("|---", len(c)) + "|\n")
		}
	}
	b.WriteString("\n")
	for _, n := range r.notes() {
		b.WriteString("- " + n + "\n")
	}
	return os.WriteFile(filepath.Join(dir, "RESULTS.md"), b.Bytes(), 0o644)
}
