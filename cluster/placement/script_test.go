package placement

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"everpage/wal/pg"
)

// TestScripts runs testdata: a layout, transitions and plans, and what came of them.
//
//	layout shards=N replicas=N    with nodes as name:zone lines
//	do                            one transition a line; an error is printed and changes nothing
//	plan                          what is planned now
//	settle                        plans, carries out and completes until nothing is left
//	usage                         shard bytes work | chunk REL SEGMENT bytes work
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &simulation{tb: t, policy: DefaultPolicy()}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "layout":
				var shards int
				s.l = &Layout{Epoch: 1}
				d.ScanArgs(t, "shards", &shards)
				d.MaybeScanArgs(t, "replicas", &s.l.Replicas)
				s.l.Shards, s.u = make([]Assignment, shards), Usage{Shards: make([]Load, shards), Chunks: map[Chunk]Load{}}
				for _, line := range lines(d.Input) {
					name, zone, _ := strings.Cut(line, ":")
					s.l.Members = append(s.l.Members, Member{ID: name, Zone: zone, State: Active})
				}
			case "usage":
				for _, line := range lines(d.Input) {
					f := strings.Fields(line)
					if f[0] == "chunk" {
						s.u.Chunks[chunkNamed(f[1])] = Load{number(f[2]), number(f[3])}
					} else {
						s.u.Shards[number(f[0])] = Load{number(f[1]), number(f[2])}
					}
				}
				return "ok"
			case "policy":
				d.MaybeScanArgs(t, "total", &s.policy.Total)
				d.MaybeScanArgs(t, "pernode", &s.policy.PerNode)
				s.policy.MinBytes, s.policy.MinWork = 1, 1
				return "ok"
			case "do":
				var out strings.Builder
				for _, line := range lines(d.Input) {
					next, err := transition(s.l, strings.Fields(line))
					if err != nil {
						fmt.Fprintf(&out, "%s\n  error: %v\n", line, err)
						continue
					}
					s.l = next
				}
				return out.String() + show(s.l)
			case "plan":
				return plan(s)
			case "settle":
				s.settle()
				s.check()
				return fmt.Sprintf("%d copies\n", s.moves) + show(s.l)
			default:
				t.Fatalf("no command %s", d.Cmd)
			}
			return show(s.l)
		})
	})
}

func plan(s *simulation) string {
	var out strings.Builder
	for _, m := range Plan(s.l, s.u, s.policy) {
		fmt.Fprintln(&out, m)
	}
	return out.String()
}

func lines(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == '\n' })
}

func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

// chunkNamed makes a chunk of rel.segment.
func chunkNamed(s string) Chunk {
	r, segment, _ := strings.Cut(s, ".")
	return Chunk{RelFork: rel(1663, 5, pg.Oid(number(r)), pg.MainFork), Segment: uint32(number(segment))}
}

func placeNamed(s string) Place {
	if strings.Contains(s, ".") {
		return Place{Chunk: chunkNamed(s)}
	}
	return Place{Shard: Shard(number(s))}
}

// transition reads one: add PLACE NODE [for NODE] [epoch N], and so on.
func transition(l *Layout, f []string) (*Layout, error) {
	epoch := uint64(0)
	if n := len(f); n > 2 && f[n-2] == "epoch" {
		epoch = number(f[n-1])
		f = f[:n-2]
	}
	since := func(p Place, node string) uint64 {
		if a := l.Assignment(p); a != nil && a.Replica(node) != nil {
			return a.Replica(node).Since
		}
		return 0
	}
	switch f[0] {
	case "add":
		replaces := ""
		if len(f) > 4 {
			replaces = f[4]
		}
		return l.Add(placeNamed(f[1]), epoch, f[2], replaces, Joining)
	case "promote":
		if epoch == 0 {
			epoch = since(placeNamed(f[1]), f[2])
		}
		return l.Promote(placeNamed(f[1]), f[2], epoch)
	case "lose":
		return l.Lose(placeNamed(f[1]), f[2])
	case "leave":
		return l.Leave(placeNamed(f[1]), epoch, f[2], false)
	case "stay":
		return l.Leave(placeNamed(f[1]), epoch, f[2], true)
	case "remove":
		return l.Remove(placeNamed(f[1]), epoch, f[2], false)
	case "prefer":
		return l.Prefer(placeNamed(f[1]), epoch, f[2])
	case "split":
		return l.Split(chunkNamed(f[1]), epoch, len(f) > 2)
	case "unsplit":
		return l.Unsplit(chunkNamed(f[1]), epoch)
	case "replicas":
		return l.SetReplicas(int(number(f[1])))
	case "node":
		if f[2] == "new" {
			next := *l
			next.Members = append(next.Members[:len(next.Members):len(next.Members)], Member{ID: f[1], Zone: f[3], State: Active})
			return &next, nil
		}
		if f[2] == "silent" {
			next, err := l.With(f[1], Active, false)
			if err == nil {
				next.Member(f[1]).Silent = true
			}
			return next, err
		}
		next, err := l.With(f[1], NodeState(f[2]), false)
		if err == nil && next.Member(f[1]) != nil {
			next.Member(f[1]).Silent = false
		}
		return next, err
	}
	return nil, errors.New("no transition " + f[0])
}

// show prints a layout: j joining, l leaving; the rest is full.
func show(l *Layout) string {
	var out strings.Builder
	line := func(what fmt.Stringer, a Assignment) {
		fmt.Fprintf(&out, "%s (%d):", what, a.Epoch)
		for _, r := range a.Replicas {
			fmt.Fprintf(&out, " %s%s", r.Node, map[Role]string{Joining: "/j", Leaving: "/l"}[r.Role])
		}
		fmt.Fprintln(&out)
	}
	for i, a := range l.Shards {
		line(Place{Shard: Shard(i)}, a)
	}
	for _, o := range l.Chunks {
		line(Place{Chunk: o.Chunk}, o.Assignment)
	}
	return out.String()
}
