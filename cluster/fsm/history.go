package fsm

import (
	"fmt"
	"slices"
	"time"

	"everpage/cluster/command"
)

func (s *State) attach(c *command.Attach) error {
	f := s.Follow
	switch {
	case c.Conninfo == "" || c.SystemIdentifier == 0 || c.Major == 0 || c.WALSegmentSize == 0:
		return refuse("a primary needs a connection string, a system identifier, a major version and a segment size")
	case f.SystemIdentifier != 0 && f.SystemIdentifier != c.SystemIdentifier:
		return refuse("the server is another database system than the one attached before: this cluster holds the history of system %d, the server is %d; everpage detach removes it",
			f.SystemIdentifier, c.SystemIdentifier)
	case f.Major != 0 && f.Major != c.Major:
		return refuse("this cluster holds the history of PostgreSQL %d, the server is %d", f.Major, c.Major)
	case f.Conninfo == c.Conninfo:
		return nil // the same words may be said twice
	}
	f.Epoch++
	f.Conninfo, f.Primary, f.SystemIdentifier, f.Major, f.WALSegmentSize = c.Conninfo, c.Primary, c.SystemIdentifier, c.Major, c.WALSegmentSize
	if s.Branch(0) == nil || !s.Branch(0).Imported {
		if s.Node(c.Importer) == nil {
			return refuse("node %s, which is to take the base backup, is not a member", c.Importer)
		}
		f.Importer = c.Importer
		s.giveAll(c.Importer)
	}
	s.Follow = f
	s.Left = slices.DeleteFunc(slices.Clone(s.Left), func(l LeftSlot) bool { return slices.Contains(c.Slots, l.Slot) || slices.Contains(c.Former, l.Slot) })
	for _, slot := range c.Former {
		s.Left = append(s.Left, LeftSlot{Slot: slot, Conninfo: c.Conninfo, Primary: c.Primary, Former: true})
	}
	return nil
}

func (s *State) detach(c *command.Detach) error {
	if s.Follow.Conninfo == "" {
		return refuse("no primary is attached")
	}
	s.Left = slices.Clone(s.Left)
	for _, slot := range c.Slots {
		s.Left = append(slices.DeleteFunc(s.Left, func(l LeftSlot) bool { return l.Slot == slot }), LeftSlot{Slot: slot, Conninfo: s.Follow.Conninfo, Primary: s.Follow.Primary})
	}
	s.Follow.Conninfo, s.Follow.Importer = "", ""
	s.Follow.Epoch++
	return nil
}

func (s *State) takeImport(c *command.TakeImport) error {
	switch {
	case s.Follow.Conninfo == "":
		return refuse("no primary is attached")
	case s.Follow.Importer != c.From:
		return refuse("the import is no longer that node's")
	case s.Branch(0) != nil && s.Branch(0).Imported && c.From == "" && s.Follow.Hole == "":
		return refuse("the import is complete")
	case s.Node(c.Importer) == nil:
		return refuse("node %s is not a member", c.Importer)
	}
	s.Follow.Importer = c.Importer
	s.Follow.Epoch++
	if s.Follow.Hole != "" {
		s.takeAll(c.Importer)
	} else {
		s.giveAll(c.Importer)
	}
	return nil
}

// setHole says that main can't go on, and who imports anew.
func (s *State) setHole(c *command.SetHole) error {
	if c.Importer == "" {
		s.Follow.Hole = c.Hole
		return nil
	}
	main := s.Branch(0)
	switch {
	case s.Follow.Conninfo == "":
		return refuse("no primary is attached")
	case c.Hole == "":
		return refuse("a new import needs a reason")
	case main == nil || main.Number != c.Branch || !main.Imported:
		return refuse("main is no longer branch %d, or its base backup is not complete", c.Branch)
	case s.Follow.Importer != "":
		return refuse("a base backup is being taken already")
	case s.Node(c.Importer) == nil:
		return refuse("node %s is not a member", c.Importer)
	}
	s.Follow.Hole, s.Follow.Importer = c.Hole, c.Importer
	s.Follow.Epoch++
	s.takeAll(c.Importer)
	return nil
}

// setBranch answers the branch's number.
func (s *State) setBranch(c *command.SetBranch) (any, error) {
	if c.Timeline == 0 {
		return nil, refuse("a branch needs a timeline")
	}
	number := c.Number
	if number == 0 {
		number = s.NextBranch
	}
	s.Branches = slices.Clone(s.Branches)
	i := slices.IndexFunc(s.Branches, func(b Branch) bool { return b.Number == number })
	if i < 0 {
		if c.Imported && number > s.NextBranch {
			s.NextBranch = number // history that is recovered keeps its numbers
		}
		if number != s.NextBranch {
			return nil, refuse("branch %d: the next one is %d", number, s.NextBranch)
		}
		if c.Parent != 0 && s.Branch(c.Parent) == nil {
			return nil, refuse("branch %d has no parent %d", c.Number, c.Parent)
		}
		if err := s.forkable(c.Parent, c.Fork); err != nil {
			return nil, err
		}
		s.Branches = append(slices.DeleteFunc(s.Branches, func(b Branch) bool { return b.Parent == 0 && !b.Imported }), Branch{Number: number, Parent: c.Parent, Fork: c.Fork})
		s.NextBranch++
		i = len(s.Branches) - 1
	} else if s.Branches[i].Parent != c.Parent || s.Branches[i].Fork != c.Fork {
		return nil, refuse("branch %d is there already, with another parent or fork", number)
	}
	b := &s.Branches[i]
	if c.Importer != "" && !b.Imported && s.Follow.Importer != c.Importer {
		return nil, refuse("the import is no longer that node's")
	}
	b.Timeline, b.History, b.Start, b.Imported, b.Importer = c.Timeline, c.History, c.Start, c.Imported, c.Importer
	s.forgetUnfinished()
	s.raiseTimeline(c.Timeline)
	s.NextTimeline = max(s.NextTimeline, c.NextTimeline)
	if old := s.Branch(0); c.Main && c.Imported && old != nil && old.Number != number && old.Imported && s.Follow.Hole != "" {
		old.Hole = fmt.Sprintf("%s; branch %d begins with a base backup at %s", s.Follow.Hole, number, c.Start)
	}
	if c.Main {
		s.Main = number
	}
	if c.Imported {
		s.Follow.Importer, s.Follow.Hole = "", ""
	}
	s.Follow.Epoch++
	return number, nil
}

// forkBranch answers the number of the branch that goes on where the parent's timeline was left.
func (s *State) forkBranch(c *command.ForkBranch) (any, error) {
	parent := s.Branch(c.Parent)
	if c.Parent == 0 || parent == nil {
		return nil, refuse("branch %d is not there", c.Parent)
	}
	for _, b := range s.Branches {
		if b.Parent == c.Parent && b.Fork == c.Fork && b.Timeline == c.Timeline {
			return b.Number, nil // said twice, or by another node
		}
	}
	switch {
	case s.Main != c.Parent:
		return nil, refuse("main is branch %d by now, not %d", s.Main, c.Parent)
	case !parent.Imported:
		return nil, refuse("the base backup of branch %d is not complete", c.Parent)
	case c.Timeline <= parent.Timeline:
		return nil, refuse("timeline %d does not follow timeline %d of branch %d", c.Timeline, parent.Timeline, c.Parent)
	case c.Fork < parent.Start || c.Fork < parent.Fork:
		return nil, refuse("timeline %d was left at %s, before branch %d begins at %s", parent.Timeline, c.Fork, c.Parent, max(parent.Start, parent.Fork))
	case len(c.History) == 0:
		return nil, refuse("timeline %d has no history", c.Timeline)
	}
	if h := s.Horizon(c.Parent); c.Fork < h.Planned {
		return nil, refuse("timeline %d was left at %s, below the horizon of branch %d, which is planned at %s", parent.Timeline, c.Fork, c.Parent, h.Planned)
	}
	b := Branch{Number: s.NextBranch, Parent: c.Parent, Fork: c.Fork, Timeline: c.Timeline, History: c.History, Start: parent.Start, Imported: true, Importer: parent.Importer}
	s.Branches = append(slices.Clone(s.Branches), b)
	s.NextBranch++
	s.Main = b.Number
	s.raiseTimeline(c.Timeline)
	s.Follow.Epoch++
	return b.Number, nil
}

// dropBranches keeps timeline and branch numbers: they are never given again.
func (s *State) dropBranches() error {
	if s.Follow.Conninfo != "" {
		return refuse("a primary is attached")
	}
	s.Branches, s.Main, s.Manifests, s.Horizons, s.Leases, s.Inventory = nil, 0, nil, nil, nil, nil
	s.Follow = Follow{Epoch: s.Follow.Epoch + 1}
	// Nobody has anything now: joining replicas have nothing left to get.
	s.Map = slices.Clone(s.Map)
	for i := range s.Map {
		a := &s.Map[i]
		a.Replicas = slices.Clone(a.Replicas)
		a.Epoch++
		for j := range a.Replicas {
			a.Replicas[j].Role = full
		}
	}
	s.Chunks = nil
	s.MapEpoch++
	return nil
}

func (s *State) setManifest(c *command.SetManifest) error {
	if s.Branch(c.Branch) == nil || c.Branch == 0 {
		return refuse("branch %d is not there", c.Branch)
	}
	if int(c.Shard) < len(s.Map) {
		if have := s.Map[c.Shard].Epoch; have != c.Epoch {
			return refuse("shard %d has epoch %d, the manifest was written under %d", c.Shard, have, c.Epoch)
		}
	}
	old, _ := s.Manifest(c.Branch, c.Shard)
	if old.Name == c.New {
		return nil // said twice
	}
	if old.Name != c.Old {
		return refuse("the manifest of shard %d is %q, not %q", c.Shard, old.Name, c.Old)
	}
	if c.LSN < old.LSN {
		return refuse("the manifest of shard %d reaches %s already, the new one %s only", c.Shard, old.LSN, c.LSN)
	}
	if c.OldestUS != 0 && c.OldestUS < s.CollectedUS {
		return refuse("the upload of shard %d took so long that gc may have taken its objects for garbage: the first was written at %s, older ones than %s are collected",
			c.Shard, time.UnixMicro(c.OldestUS).UTC().Format(time.RFC3339), time.UnixMicro(s.CollectedUS).UTC().Format(time.RFC3339))
	}
	s.Manifests = slices.DeleteFunc(slices.Clone(s.Manifests), func(m Manifest) bool { return m.Branch == c.Branch && m.Shard == c.Shard })
	s.Manifests = append(s.Manifests, Manifest{c.Branch, c.Shard, c.New, c.LSN, c.Epoch})
	slices.SortFunc(s.Manifests, func(a, b Manifest) int {
		if a.Branch != b.Branch {
			return int(a.Branch) - int(b.Branch)
		}
		return int(a.Shard) - int(b.Shard)
	})
	return nil
}
