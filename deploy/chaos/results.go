package main

import (
	"fmt"
	"runtime"
	"strings"
	"time"
)

func (o *outcome) line() string {
	return fmt.Sprintf("%-16s %d replicas: %d injections in %.0f s; %d pages read, %d compared, %d wrong, %d errors; longest gap of reads %s, of commits %s; %d commits, %d lost; %d blocks held against the stopped primary; "+
		"%d maps, %d reservations; seed %d", o.Kind, o.Replicas, o.Injections, o.Seconds, o.Read, o.Compared, len(o.Wrong), len(o.Errors), o.Gap.Round(time.Millisecond), o.CommitGap.Round(time.Millisecond),
		o.Commits, o.Lost, o.Final, o.Agreed, o.Reserved, o.Seed)
}

// summary is RESULTS.md.
func summary(all []outcome, shards int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# What chaos found

Written by `+"`make chaos`"+` on %s, %d cores. Each line is one kind of fault, injected so often into a cluster of three nodes with %d shards that follows a PostgreSQL 15
under pgbench with `+"`synchronous_standby_names = 'ANY 2 (…)'`"+`.

- **Read**: pages that readers asked the cluster for while faults went on; **compared**: those that had been read before, at the same LSN, and must be the same.
- **Gap**: the longest time that one of three readers waited for an answer, and a client for a commit.
- **Commits**: those that returned to a client up to the end of the line, looked for in the pages that the cluster serves; **lost** are those not found.
- **Held against files**: blocks compared with those of the primary, stopped cleanly after the last injection. One restore at a random LSN was started by a stock server too, and pgbench's four sums agreed.
- **Maps**: how often a node was asked for its shard map (no two may contradict each other under one epoch, none may go back). **Ids**: numbers reserved through the log, checked for linearizability.

| fault | replicas | injections | read | compared | wrong | errors | gap of reads | gap of commits | commits | lost | held against files | maps | ids | seed | |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
`, time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), shards)
	for _, o := range all {
		verdict := "survived"
		switch {
		case o.Failed != "":
			verdict = "FAILED: " + strings.ReplaceAll(strings.SplitN(o.Failed, "\n", 2)[0], "|", "/")
		case !o.ok():
			verdict = "NOT AS IT SHOULD BE"
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d | %s | %s | %d | %d | %d | %d | %d | %d | %s |\n", o.Kind, o.Replicas, o.Injections, o.Read, o.Compared, len(o.Wrong), len(o.Errors),
			o.Gap.Round(time.Millisecond), o.CommitGap.Round(time.Millisecond), o.Commits, o.Lost, o.Final, o.Agreed, o.Reserved, o.Seed, verdict)
	}
	b.WriteString(`
Not injected: delays of single packets (netem is not in every kernel: a bad link loses a fifth of its packets instead).
`)
	return b.String()
}
