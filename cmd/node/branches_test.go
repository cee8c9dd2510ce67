package node

import (
	"slices"
	"testing"
	"time"

	"everpage/backup"
	"everpage/chunk"
	"everpage/cluster"
	"everpage/cluster/fsm"
	"everpage/wal/pg"
)

// What a store gives back: branches with a whole backup, and those that can be made anew out of their parents.
func TestRecoverLines(t *testing.T) {
	root := &backup.Root{Main: 3, Lines: []backup.Line{{Branch: 1, Timeline: 1}, {Branch: 2, Parent: 1, Fork: 50, Timeline: 2}, {Branch: 3, Parent: 2, Fork: 90, Timeline: 3}}}
	old := &backup.Root{}
	old.History.Timeline = 1
	for _, c := range []struct {
		what  string
		root  *backup.Root
		whole []uint32
		lines int
		main  uint32
	}{
		{"all are whole", root, []uint32{1, 2, 3}, 3, 3},
		{"the newest was not uploaded yet", root, []uint32{1, 2}, 3, 3},
		{"only the oldest was", root, []uint32{1}, 3, 3},
		{"a root of an older release", old, []uint32{1}, 1, 1},
		{"nothing is whole", root, nil, 0, 0},
	} {
		resume := map[uint32]chunk.Progress{}
		for _, b := range c.whole {
			resume[b] = chunk.Progress{Start: 10}
		}
		lines, main, err := recoverLines(c.root, resume)
		if (err != nil) != (c.lines == 0) || len(lines) != c.lines || main != c.main {
			t.Errorf("%s: %+v, main %d, error %v", c.what, lines, main, err)
		}
	}
	// A new import behind a hole which is not in the store yet: the old one is what there is.
	second := &backup.Root{Main: 2, Lines: []backup.Line{{Branch: 1, Timeline: 1}, {Branch: 2, Timeline: 2, Start: 70}}}
	if lines, main, err := recoverLines(second, map[uint32]chunk.Progress{1: {}}); err != nil || len(lines) != 1 || main != 1 {
		t.Errorf("an import that is not uploaded: %+v, main %d, error %v", lines, main, err)
	}
}

func TestLineOf(t *testing.T) {
	s := &cluster.State{Main: 4, Branches: []fsm.Branch{{Number: 1}, {Number: 2, Parent: 1}, {Number: 3}, {Number: 4, Parent: 2}}}
	var got []uint32
	for _, b := range lineOf(s, 0) {
		got = append(got, b.Number)
	}
	if len(got) != 3 || got[0] != 1 || got[1] != 2 || got[2] != 4 {
		t.Errorf("line %v", got)
	}
	if line := lineOf(s, 9); len(line) != 0 {
		t.Errorf("line of a branch that is not there: %v", line)
	}
}

// What the cluster knows counts for the store, whether this node has it or not: a leader that has just joined must not take layers for garbage.
func TestBranchesOf(t *testing.T) {
	s := &cluster.State{Branches: []fsm.Branch{{Number: 2}, {Number: 3, Parent: 2}}}
	if got := branchesOf(s, []uint32{1, 2}); !slices.Equal(got, []uint32{1, 2, 3}) {
		t.Errorf("%v", got)
	}
}

// A base backup that was in vain many times is not taken over and over.
func TestRestartWait(t *testing.T) {
	for n, want := range map[int]time.Duration{manyRestarts: time.Minute, manyRestarts + 1: 2 * time.Minute, manyRestarts + 5: 32 * time.Minute, manyRestarts + 99: time.Hour} {
		if got := restartWait(n); got != want {
			t.Errorf("%d restarts: %s, want %s", n, got, want)
		}
	}
}

// Main has another branch's versions up to where it was left, and not beyond.
func TestSameOnMain(t *testing.T) {
	s := &cluster.State{Main: 4, Branches: []fsm.Branch{{Number: 1}, {Number: 2, Parent: 1, Fork: 100}, {Number: 3}, {Number: 4, Parent: 2, Fork: 200}}}
	for _, c := range []struct {
		branch uint32
		at     pg.LSN
		want   bool
	}{{4, 0, true}, {4, 999, true}, {2, 200, true}, {2, 201, false}, {2, 0, false}, {1, 100, true}, {1, 101, false}, {3, 1, false}, {9, 1, false}} {
		if got := sameOnMain(s, c.branch, c.at); got != c.want {
			t.Errorf("branch %d at %s: %v, want %v", c.branch, c.at, got, c.want)
		}
	}
}

// A change of what is agreed on interrupts following only where something else is to be followed.
func TestDiffers(t *testing.T) {
	main := state{Conninfo: "c", Branch: 1, Imported: true}
	importing := state{Conninfo: "c", Branch: 1, Imported: true, Mine: true} // behind a hole
	done := state{Conninfo: "c", Branch: 2, Imported: true}
	for _, c := range []struct {
		what      string
		now, next state
		using     uint32
		want      bool
	}{
		{"nothing changed", main, main, 1, false},
		{"main moved", main, done, 1, true},
		{"main moved while a branch was being forked for it", main, done, 2, false},
		{"this node is to import", main, importing, 1, true},
		{"while it does so", importing, importing, 0, false},
		{"with its branch", importing, importing, 2, false},
		{"when that is complete", importing, done, 2, false},
		{"another node took the import", importing, main, 2, true},
		{"a first import", state{Conninfo: "c", Mine: true}, state{Conninfo: "c"}, 0, true},
		{"another primary", main, state{Conninfo: "d", Branch: 1, Imported: true}, 1, true},
	} {
		if got := c.now.differs(c.next, c.using); got != c.want {
			t.Errorf("%s: %t", c.what, got)
		}
	}
}
