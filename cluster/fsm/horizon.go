package fsm

import (
	"slices"

	"everpage/cluster/command"
	"everpage/wal/pg"
)

// The horizon of a branch moves in two steps: once it is planned nothing new may rely on what lies below, and only when it is applied the nodes take it away.

func (s *State) setRetention(c *command.SetRetention) error {
	if c.Retention < 0 || c.Retention > 0 && c.Bytes > 0 {
		return refuse("retention of %s and %d bytes: want a positive time, or bytes of WAL, or neither to keep all", c.Retention, c.Bytes)
	}
	s.Retention, s.RetentionBytes = c.Retention, c.Bytes
	s.Horizons = slices.Clone(s.Horizons)
	for i := range s.Horizons { // who asks for more history to be kept must not lose what was still there
		s.Horizons[i].Planned = s.Horizons[i].Applied
	}
	return nil
}

// Kept is the retention that is in force.
func (s *State) Kept() *command.SetRetention {
	return &command.SetRetention{Retention: s.Retention, Bytes: s.RetentionBytes}
}

// keeper is the branch that has the versions of another one at an LSN: below the LSN where a branch forked off that is the one it comes from.
func (s *State) keeper(branch uint32, at pg.LSN) uint32 {
	for range s.Branches { // a bound, should parents ever go in a circle
		b := s.Branch(branch)
		if b == nil || b.Parent == 0 || at > b.Fork {
			break
		}
		branch = b.Parent
	}
	return branch
}

// forkable refuses a fork at an LSN below which the parent's versions may be gone.
func (s *State) forkable(parent uint32, at pg.LSN) error {
	if parent == 0 {
		return nil
	}
	if h := s.Horizon(s.keeper(parent, at)); at < h.Planned {
		return refuse("branch %d can't be forked at %s: its horizon is planned at %s", parent, at, h.Planned)
	}
	return nil
}

// OldestFork is the oldest LSN at which a branch forked off another one whose own history does not begin later by now, 0 if none did. Where it does, nobody reads
// what lies before the fork through it, and of the other one's versions there it needs no more than each page's newest, which stays.
func (s *State) OldestFork(branch uint32) pg.LSN {
	var oldest pg.LSN
	for _, b := range s.Branches {
		if b.Parent != 0 && s.Horizon(b.Number).Applied <= b.Fork && s.keeper(b.Parent, b.Fork) == branch && (oldest == 0 || b.Fork < oldest) {
			oldest = b.Fork
		}
	}
	return oldest
}

// setHorizon is where both horizons change.
func (s *State) setHorizon(branch uint32, change func(*Horizon)) {
	s.Horizons = slices.Clone(s.Horizons)
	for i := range s.Horizons {
		if s.Horizons[i].Branch == branch {
			change(&s.Horizons[i])
			return
		}
	}
	h := Horizon{Branch: branch}
	change(&h)
	s.Horizons = append(s.Horizons, h)
	slices.SortFunc(s.Horizons, func(a, b Horizon) int { return int(a.Branch) - int(b.Branch) })
}

func (s *State) planHorizon(c *command.PlanHorizon) error {
	if s.Branch(c.Branch) == nil || c.Branch == 0 {
		return refuse("branch %d is not there", c.Branch)
	}
	if c.For != nil && *c.For != *s.Kept() {
		return refuse("the retention has been changed since the horizon of branch %d was worked out", c.Branch)
	}
	if have := s.Horizon(c.Branch).Planned; c.LSN < have {
		return refuse("the horizon of branch %d is planned at %s already", c.Branch, have)
	}
	if at := s.OldestFork(c.Branch); at != 0 && c.LSN > at {
		return refuse("a branch forked off branch %d at %s", c.Branch, at)
	}
	s.setHorizon(c.Branch, func(h *Horizon) { h.Planned = c.LSN })
	return nil
}

func (s *State) applyHorizon(c *command.ApplyHorizon) error {
	h := s.Horizon(c.Branch)
	if c.LSN > h.Planned {
		return refuse("the horizon of branch %d is planned at %s, not %s", c.Branch, h.Planned, c.LSN)
	}
	if c.LSN < h.Applied {
		return refuse("the horizon of branch %d is at %s already", c.Branch, h.Applied)
	}
	if pin := s.OldestLease(c.Branch); pin != 0 && c.LSN > pin {
		return refuse("a lease pins %s of branch %d", pin, c.Branch)
	}
	s.setHorizon(c.Branch, func(h *Horizon) { h.Applied = c.LSN })
	s.forgetDropped(c.Branch)
	return nil
}

// OldestLease is the oldest LSN of a branch that a lease pins, 0 if there is none. A lease of a branch that forked off later counts.
func (s *State) OldestLease(branch uint32) pg.LSN {
	var oldest pg.LSN
	for _, l := range s.Leases {
		if s.keeper(l.Branch, l.LSN) == branch && (oldest == 0 || l.LSN < oldest) {
			oldest = l.LSN
		}
	}
	return oldest
}

// lease answers the lease's number.
func (s *State) lease(c *command.Lease) (any, error) {
	s.Leases = slices.Clone(s.Leases)
	if c.Renew != 0 {
		for i := range s.Leases {
			if l := &s.Leases[i]; l.Number == c.Renew {
				l.Seconds, l.Renewed = c.Seconds, s.Index
				return l.Number, nil
			}
		}
		return nil, refuse("lease %d has ended", c.Renew)
	}
	if s.Branch(c.Branch) == nil || c.Branch == 0 {
		return nil, refuse("branch %d is not there", c.Branch)
	}
	if h := s.Horizon(s.keeper(c.Branch, c.LSN)); c.LSN < h.Planned {
		return nil, refuse("%s is below the horizon of branch %d, which is planned at %s", c.LSN, c.Branch, h.Planned)
	}
	l := Lease{s.NextLease, c.Branch, c.LSN, c.Seconds, s.Index}
	s.NextLease++
	s.Leases = append(s.Leases, l)
	return l.Number, nil
}
