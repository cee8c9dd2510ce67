package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

func (o *outcome) line() string {
	return fmt.Sprintf("%-16s %d replicas: %d injections in %.0f s; %d pages read, %d compared, %d wrong, %d errors; longest gap of reads %s, of commits %s; %d commits, %d lost; %d blocks held against the stopped primary; "+
		"%d maps, %d reservations; seed %d", o.Kind, o.Replicas, o.Injections, o.Seconds, o.Read, o.Compared, len(o.Wrong), len(o.Errors), o.Gap.Round(time.Millisecond), o.CommitGap.Round(time.Millisecond),
		o.Commits, o.Lost, o.Final, o.Agreed, o.Reserved, o.Seed)
}

// journal holds the last outcome of each kind of fault, over all runs.
type journal struct {
	path     string // of the summary; "": nothing is kept
	outcomes []outcome
}

func (j *journal) file() string { return strings.TrimSuffix(j.path, ".md") + ".json" }

func openJournal(path string) (*journal, error) {
	j := &journal{path: path}
	if path == "" {
		return j, nil
	}
	b, err := os.ReadFile(j.file())
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &j.outcomes); err != nil {
		return nil, fmt.Errorf("%s: %w", j.file(), err)
	}
	return j, nil
}

func (j *journal) has(kind string, replicas, injections int) bool {
	return slices.ContainsFunc(j.outcomes, func(o outcome) bool {
		return o.Kind == kind && o.Replicas == replicas && o.Injections >= injections && o.ok()
	})
}

// add takes the place of what was known of the kind, and writes journal and summary.
func (j *journal) add(o outcome) error {
	if j.path == "" {
		return nil
	}
	j.outcomes = slices.DeleteFunc(j.outcomes, func(x outcome) bool { return x.Kind == o.Kind && x.Replicas == o.Replicas })
	j.outcomes = append(j.outcomes, o)
	slices.SortStableFunc(j.outcomes, func(a, b outcome) int {
		return cmp.Or(cmp.Compare(b.Replicas, a.Replicas), cmp.Compare(slices.Index(kindsFor(a.Replicas), a.Kind), slices.Index(kindsFor(b.Replicas), b.Kind)))
	})
	b, err := json.MarshalIndent(j.outcomes, "", " ")
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(j.file(), append(b, '\n'), 0o644), os.WriteFile(j.path, []byte(summary(j.outcomes)), 0o644))
}

// summary is RESULTS.md.
func summary(all []outcome) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# What chaos found

Written by `+"`make chaos`"+`, %d cores. Each line is one kind of fault, injected so often into a cluster of three nodes that follows a PostgreSQL 15 under pgbench with `+"`synchronous_standby_names = 'ANY 2 (…)'`"+`.

- **Read**: pages that readers asked the cluster for while faults went on; **compared**: those that had been read before, at the same LSN, and must be the same.
- **Gap**: the longest time that one of three readers waited for an answer, and a client for a commit.
- **blackout** kills the primary and all nodes at once, and starts the nodes alone: each must answer at the furthest LSN that any of them ever told the primary it had flushed.
- **Commits**: those that returned to a client up to the end of the line, looked for in the pages that the cluster serves; **lost** are those not found.
- **Held against files**: blocks compared with those of the primary, stopped cleanly after the last injection. One restore at a random LSN was started by a stock server too, and pgbench's four sums agreed.
- **Maps**: how often a node was asked for its shard map (no two may contradict each other under one epoch, none may go back). **Ids**: numbers reserved through the log, checked for linearizability.

| fault | replicas | injections | read | compared | wrong | errors | gap of reads | gap of commits | commits | lost | held against files | maps | ids | shards | seed | day | commit | |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
`, runtime.NumCPU())
	for _, o := range all {
		verdict := "survived"
		switch {
		case o.Failed != "":
			verdict = "FAILED: " + strings.ReplaceAll(strings.SplitN(o.Failed, "\n", 2)[0], "|", "/")
		case !o.ok():
			verdict = "NOT AS IT SHOULD BE"
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d | %s | %s | %d | %d | %d | %d | %d | %d | %d | %s | %s | %s |\n", o.Kind, o.Replicas, o.Injections, o.Read, o.Compared, len(o.Wrong), len(o.Errors),
			o.Gap.Round(time.Millisecond), o.CommitGap.Round(time.Millisecond), o.Commits, o.Lost, o.Final, o.Agreed, o.Reserved, o.Shards, o.Seed, o.Day, o.Commit, verdict)
	}
	b.WriteString(`
Not injected: delays of single packets (netem is not in every kernel: a bad link loses a fifth of its packets instead).
`)
	return b.String()
}
