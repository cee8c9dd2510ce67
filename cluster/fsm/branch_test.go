package fsm

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"everpage/cluster/command"
	"everpage/wal/pg"
)

// line is a state machine that a test drives.
type line struct {
	t *testing.T
	s *State
	n uint64
}

func (l *line) must(c command.Command) any {
	l.t.Helper()
	l.n++
	next, result, err := l.s.Apply(l.n, c)
	if err != nil {
		l.t.Fatalf("%s: %v", command.Name(c), err)
	}
	l.s = next
	check(l.t, l.s)
	return result
}

func (l *line) refused(c command.Command, want string) {
	l.t.Helper()
	l.n++
	var r *Refused
	if _, _, err := l.s.Apply(l.n, c); !errors.As(err, &r) || !strings.Contains(err.Error(), want) {
		l.t.Fatalf("%s: %v, want %q", command.Name(c), err, want)
	}
}

func followed(t *testing.T) *line {
	l := &line{t: t, s: &State{}}
	l.must(&command.MakeCluster{ID: "c", Name: "main", Format: 1, Shards: 2, SegmentBlocks: 131072})
	l.must(&command.PutNode{ID: "a", Name: "n1", PageAddress: "h:1", Format: 1})
	l.must(&command.PutNode{ID: "b", Name: "n2", PageAddress: "h:2", Format: 1})
	l.must(&command.Attach{Conninfo: "c", SystemIdentifier: 5, Major: 15, WALSegmentSize: 1 << 24, Importer: "a"})
	l.must(&command.SetBranch{Number: 1, Timeline: 1, Start: 100, Importer: "a", Main: true})
	return l
}

// All nodes that see a switch say so: one branch comes of it, and nothing else moves main.
func TestForkBranch(t *testing.T) {
	l := followed(t)
	fork := command.ForkBranch{Parent: 1, Fork: 500, Timeline: 2, History: []byte("1\t0/1F4\tx\n")}
	l.refused(&fork, "base backup of branch 1 is not complete")
	l.must(&command.SetBranch{Number: 1, Timeline: 1, Start: 100, Imported: true, Main: true})
	l.refused(&command.ForkBranch{Parent: 7, Fork: 500, Timeline: 2, History: fork.History}, "branch 7 is not there")
	l.refused(&command.ForkBranch{Parent: 1, Fork: 99, Timeline: 2, History: fork.History}, "before branch 1 begins")
	l.refused(&command.ForkBranch{Parent: 1, Fork: 500, Timeline: 1, History: fork.History}, "does not follow timeline 1")
	l.refused(&command.ForkBranch{Parent: 1, Fork: 500, Timeline: 2}, "no history")
	l.must(&command.PlanHorizon{Branch: 1, LSN: 300})
	l.refused(&command.ForkBranch{Parent: 1, Fork: 299, Timeline: 2, History: fork.History}, "below the horizon")
	if n := l.must(&fork); n != uint32(2) {
		t.Fatalf("branch %v", n)
	}
	if n := l.must(&fork); n != uint32(2) || len(l.s.Branches) != 2 { // by another node
		t.Fatalf("branch %v of %+v", n, l.s.Branches)
	}
	l.refused(&command.ForkBranch{Parent: 1, Fork: 510, Timeline: 3, History: fork.History}, "main is branch 2 by now")
	b := l.s.Branch(0)
	if b.Number != 2 || b.Parent != 1 || b.Fork != 500 || b.Start != 100 || !b.Imported || string(b.History) != string(fork.History) {
		t.Fatalf("main is %+v", b)
	}
	l.refused(&command.ForkBranch{Parent: 2, Fork: 499, Timeline: 3, History: fork.History}, "before branch 2 begins")
	if n := l.must(&command.ForkBranch{Parent: 2, Fork: 900, Timeline: 4, History: fork.History}); n != uint32(3) {
		t.Fatalf("branch %v", n)
	}
	// A timeline that is reserved is above all that were seen.
	if tli := l.must(&command.ReserveTimeline{}); l.s.NextTimeline < 6 {
		t.Fatalf("timeline %v, next %d", tli, l.s.NextTimeline)
	}
}

// Behind a hole another import begins, main stays where it is until that is complete, and nobody gives up what is older.
func TestHoleIsImportedAnew(t *testing.T) {
	l := followed(t)
	hole := command.SetHole{Hole: "WAL is missing", Branch: 1, Importer: "b"}
	l.refused(&hole, "not complete")
	l.must(&command.SetBranch{Number: 1, Timeline: 1, Start: 100, Imported: true, Main: true})
	l.refused(&command.SetHole{Branch: 1, Importer: "b"}, "reason")
	l.refused(&command.SetHole{Hole: "x", Branch: 2, Importer: "b"}, "main is no longer branch 2")
	l.refused(&command.SetHole{Hole: "x", Branch: 1, Importer: "z"}, "not a member")
	l.must(&hole)
	l.refused(&hole, "being taken already")
	for i, a := range l.s.Map {
		if first := a.Replicas[0]; first.Node != "b" || first.Role != full {
			t.Fatalf("shard %d: %+v", i, a)
		}
		if r := a.Replica("a"); r == nil || r.Role != joining {
			t.Fatalf("shard %d: %+v: what a node has of the old branch is to stay", i, a)
		}
	}
	l.must(&command.SetBranch{Timeline: 2, Start: 900, Importer: "b"})
	if l.s.Main != 1 {
		t.Fatalf("main is branch %d while branch 2 is imported", l.s.Main)
	}
	l.must(&command.SetBranch{Number: 2, Timeline: 2, Start: 900, Importer: "b", Imported: true, Main: true})
	if l.s.Main != 2 || l.s.Follow.Hole != "" || l.s.Follow.Importer != "" || !strings.Contains(l.s.Branch(1).Hole, "WAL is missing; branch 2 begins") {
		t.Fatalf("main %d, follow %+v, old branch %+v", l.s.Main, l.s.Follow, l.s.Branch(1))
	}
}

// Slots of a cluster that this one took the place of are to be dropped, unless a node has them again.
func TestFormerSlots(t *testing.T) {
	l := followed(t)
	again := command.Attach{Conninfo: "d", Primary: "p", SystemIdentifier: 5, Major: 15, WALSegmentSize: 1 << 24, Importer: "a", Former: []string{"x", "y"}}
	l.must(&again)
	if len(l.s.Left) != 2 || l.s.Left[0] != (LeftSlot{Slot: "x", Conninfo: "d", Primary: "p", Former: true}) {
		t.Fatalf("left are %+v", l.s.Left)
	}
	l.must(&command.ForgetSlot{Slot: "x"})
	again.Conninfo, again.Former, again.Slots = "e", nil, []string{"y"}
	l.must(&again)
	if len(l.s.Left) != 0 {
		t.Fatalf("left are %+v", l.s.Left)
	}
}

// A manifest that needs objects as old as what is collected is refused, and not one that is current already.
func TestManifestsOfCollectedObjects(t *testing.T) {
	l := followed(t)
	set := func(old, next string, lsn pg.LSN, written int64) *command.SetManifest {
		return &command.SetManifest{Branch: 1, Shard: 0, Epoch: l.s.Map[0].Epoch, Old: old, New: next, LSN: lsn, OldestUS: written}
	}
	l.must(set("", "m1", 100, 500))
	l.must(&command.CollectObjects{BeforeUS: 1000})
	l.must(&command.CollectObjects{BeforeUS: 900}) // said late
	l.must(set("", "m1", 100, 500))                // said twice
	l.refused(set("m1", "m2", 200, 999), "taken its objects for garbage")
	l.must(set("m1", "m2", 200, 1000))
	l.must(set("m2", "m3", 200, 0)) // all of its objects are those of m2
	var b bytes.Buffer
	if err := l.s.Write(&b); err != nil {
		t.Fatal(err)
	}
	s, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	l.s = s
	l.refused(set("m3", "m4", 200, 999), "taken its objects for garbage")
}
