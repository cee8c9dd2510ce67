package main

import (
	"fmt"
	"slices"
	"strings"
)

// factor is a setting and the values that it may have. The order of factors and values is part of what a seed means.
type factor struct {
	name   string
	values []string
}

// The first two are no settings of postgresql.conf.
const (
	checksums    = "checksums"
	segmentSize  = "wal_segment_size" // MB
	trackCommits = "track_commit_timestamp"
)

// factors are a major's: its servers' builds differ in what they compress with.
func factors(major int) []factor {
	compression := []string{"off", "pglz"}
	switch major {
	case 14:
		compression = []string{"off", "on"}
	case 15:
		compression = append(compression, "lz4", "zstd")
	}
	return []factor{
		{"wal_compression", compression},
		{segmentSize, []string{"16", "1", "64"}},
		{checksums, []string{"off", "on"}},
		{"wal_log_hints", []string{"off", "on"}},
		{"full_page_writes", []string{"on", "off"}},
		{"wal_level", []string{"replica", "logical"}},
		{trackCommits, []string{"on", "off"}},
	}
}

// combination is a value of each factor, in their order.
type combination []string

func (c combination) text(fs []factor) string {
	parts := make([]string, len(c))
	for i, v := range c {
		parts[i] = fs[i].name + "=" + v
	}
	return strings.Join(parts, " ")
}

// pair is two values of two factors.
type pair struct {
	i, j int
	a, b string
}

func pairs(fs []factor) map[pair]bool {
	all := map[pair]bool{}
	for i := range fs {
		for j := i + 1; j < len(fs); j++ {
			for _, a := range fs[i].values {
				for _, b := range fs[j].values {
					all[pair{i, j, a, b}] = true
				}
			}
		}
	}
	return all
}

func (c combination) pairs(yield func(pair) bool) {
	for i := range c {
		for j := i + 1; j < len(c); j++ {
			if !yield(pair{i, j, c[i], c[j]}) {
				return
			}
		}
	}
}

// minimumRows is how long an array is at least: short of it combinations that cover nothing new are added, which differ most from what there is.
const minimumRows = 8

// array is a pairwise covering array: for any two factors every two of their values meet in one row. Each row is, of all combinations, the first that
// covers most of what no row before it does.
func array(fs []factor) []combination {
	every := product(fs)
	open := pairs(fs)
	var rows []combination
	for len(open) > 0 || len(rows) < minimumRows {
		best, most := -1, -1
		for i, c := range every {
			n := 0
			for p := range c.pairs {
				if open[p] {
					n++
				}
			}
			if n > most && !slices.ContainsFunc(rows, func(r combination) bool { return slices.Equal(r, c) }) {
				best, most = i, n
			}
		}
		rows = append(rows, every[best])
		for p := range every[best].pairs {
			delete(open, p)
		}
	}
	return rows
}

func product(fs []factor) []combination {
	all := []combination{{}}
	for _, f := range fs {
		var longer []combination
		for _, c := range all {
			for _, v := range f.values {
				longer = append(longer, append(slices.Clone(c), v))
			}
		}
		all = longer
	}
	return all
}

// plannedRun is one entry of a major's plan.
type plannedRun struct {
	Major int
	Seed  int64
	combo combination
	wraps bool // transaction ids, multixacts and their members begin just before their wraparound, not just before the end of a segment of their logs
	// states is how often the server stops, between rounds of what changes no page of a relation; 0: a run of the workloads.
	states int
	large  bool // relations of more than a gigabyte instead, and posting trees of three levels
}

// seedsPerMajor is how far the seeds of two majors are apart.
const seedsPerMajor = 100_000

// The runs of states are counted from statesFrom on, the large ones from largeFrom on.
const (
	statesFrom  = 50_000
	statesStops = 21
	largeFrom   = 90_000
)

// plan is the major's i-th run. Its seed tells all of it.
func plan(major, i int) plannedRun {
	rows := array(factors(major))
	if i >= largeFrom {
		return plannedRun{Major: major, Seed: int64(major)*seedsPerMajor + int64(i), combo: rows[(i-largeFrom)%len(rows)], large: true}
	}
	if i >= statesFrom {
		rows = slices.DeleteFunc(rows, func(c combination) bool { return !c.tracksCommits(factors(major)) })
		return plannedRun{Major: major, Seed: int64(major)*seedsPerMajor + int64(i), combo: rows[(i-statesFrom)%len(rows)], states: statesStops}
	}
	return plannedRun{Major: major, Seed: int64(major)*seedsPerMajor + int64(i), combo: rows[i%len(rows)], wraps: i%3 == 2}
}

func (c combination) tracksCommits(fs []factor) bool {
	return c[slices.IndexFunc(fs, func(f factor) bool { return f.name == trackCommits })] == "on"
}

// settings is what the journal calls the run.
func (p plannedRun) settings() string {
	text := p.combo.text(factors(p.Major))
	if p.wraps {
		text += " counters=wrapping"
	}
	if p.states > 0 {
		text += fmt.Sprintf(" stops=%d", p.states)
	}
	if p.large {
		text += " workload=large"
	}
	return text
}

func (p plannedRun) String() string {
	return fmt.Sprintf("PostgreSQL %d seed=%d %s", p.Major, p.Seed, p.settings())
}

// server translates the combination for initdb and postgresql.conf.
func (p plannedRun) server() (settings map[string]string, initdb []string) {
	// Recovery refuses a tablespace without a link otherwise.
	settings = map[string]string{"allow_in_place_tablespaces": "on"}
	if p.wraps {
		settings["autovacuum_freeze_max_age"], settings["autovacuum_multixact_freeze_max_age"] = "2000000000", "2000000000"
	}
	if p.states > 0 {
		settings["wal_consistency_checking"] = "" // the records in question have no images
	}
	for i, f := range factors(p.Major) {
		v := p.combo[i]
		switch {
		case f.name == checksums && v == "on":
			initdb = append(initdb, "--data-checksums")
		case f.name == checksums && p.Major >= 18:
			initdb = append(initdb, "--no-data-checksums")
		case f.name == checksums:
		case f.name == segmentSize:
			initdb = append(initdb, "--wal-segsize="+v)
			if v == "64" {
				settings["min_wal_size"] = "160MB"
			}
		default:
			settings[f.name] = v
		}
	}
	return settings, initdb
}
