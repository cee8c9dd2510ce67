package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"everpage/cluster/command"
	"everpage/cluster/raft"
)

const (
	leadEvery = 2 * time.Second
	// voterGone is how long a voter may be away until another node gets its vote.
	voterGone = 15 * time.Second
)

// lead keeps, while this node leads, the log's servers what the state and the gossip say.
func (c *Cluster) lead(ctx context.Context) error {
	tick := time.NewTicker(leadEvery)
	defer tick.Stop()
	for {
		_, changed := c.Watch()
		if c.raft.Leads() {
			if err := errors.Join(c.admit(ctx), c.vote(ctx)); err != nil && ctx.Err() == nil && !errors.Is(err, raft.ErrNotLeader) {
				c.cfg.Logger.Warn("the log's servers could not be changed", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.raft.LeaderChanges():
		case <-changed:
		case <-c.members.Changed():
		case <-tick.C:
		}
	}
}

// admit makes the log's servers the state's nodes.
func (c *Cluster) admit(ctx context.Context) error {
	servers, err := c.raft.Servers()
	if err != nil {
		return err
	}
	s := c.State()
	if len(s.Nodes) == 0 {
		return nil
	}
	for _, n := range s.Nodes {
		i := slices.IndexFunc(servers, func(x raft.Server) bool { return x.ID == n.ID })
		if i >= 0 && servers[i].Address == n.RaftAddress {
			continue
		}
		voter := i >= 0 && servers[i].Voter
		if err := c.raft.Put(ctx, raft.Server{ID: n.ID, Address: n.RaftAddress, Voter: voter}); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	for _, x := range servers {
		if s.Node(x.ID) == nil && x.ID != c.id.ID {
			if err := c.raft.Remove(ctx, x.ID); err != nil {
				return fmt.Errorf("node %s, which is no member: %w", x.ID, err)
			}
		}
	}
	return nil
}

// MayRemove tells why a member can't be removed now: without it the voters that answer would be too few to agree on anything, its removal included.
func (c *Cluster) MayRemove(id string) error {
	servers, err := c.raft.Servers()
	if err != nil {
		return err
	}
	s := c.State()
	if s.Node(id) == nil {
		return nil // the state machine says so in its words
	}
	answers := func(id string) bool {
		alive, _ := c.Alive(id)
		return s.Node(id) != nil && alive
	}
	voters, here, spare := 0, 0, false
	for _, x := range servers {
		switch {
		case x.ID == id:
		case x.Voter:
			voters++
			if answers(x.ID) {
				here++
			}
		case answers(x.ID):
			spare = true // it is given the vote first
		}
	}
	if here > voters/2 || voters == 0 && (spare || len(s.Nodes) == 1) {
		return nil
	}
	return fmt.Errorf("of the nodes with a vote that would be left %d of %d answer, too few to agree on anything: bring one back, or remove one of those that are gone first", here, voters)
}

// vote gives votes to an odd number of nodes, MaxVoters at most. A voter that is gone, or drained, hands its vote to a node that is there.
func (c *Cluster) vote(ctx context.Context) error {
	servers, err := c.raft.Servers()
	if err != nil {
		return err
	}
	s := c.State()
	good := func(id string) bool {
		n := s.Node(id)
		alive, _ := c.Alive(id)
		return n != nil && n.State == command.Active && alive
	}
	gone := func(id string) bool {
		n := s.Node(id)
		alive, since := c.Alive(id)
		return n == nil || n.State == command.Draining || !alive && !since.IsZero() && time.Since(since) > voterGone
	}
	var voters, spare []raft.Server
	for _, x := range servers {
		switch {
		case x.Voter:
			voters = append(voters, x)
		case good(x.ID):
			spare = append(spare, x)
		}
	}
	want := min(raft.MaxVoters, len(servers))
	if want%2 == 0 {
		want--
	}
	for len(voters) < want && len(spare) > 0 {
		spare[0].Voter = true
		if err := c.raft.Put(ctx, spare[0]); err != nil {
			return err
		}
		voters, spare = append(voters, spare[0]), spare[1:]
	}
	for _, x := range voters {
		if len(spare) == 0 || !gone(x.ID) {
			continue
		}
		spare[0].Voter = true
		if err := c.raft.Put(ctx, spare[0]); err != nil {
			return err
		}
		spare = spare[1:]
		if x.ID == c.id.ID { // a leader that is drained hands the lead over before its vote
			return c.raft.Transfer(ctx)
		}
		if err := c.raft.Demote(ctx, x.ID); err != nil {
			return err
		}
	}
	if len(voters) > want {
		for _, x := range slices.Backward(voters) {
			if x.ID != c.id.ID && (len(voters) > want+1 || gone(x.ID) || !good(x.ID)) {
				return c.raft.Demote(ctx, x.ID)
			}
		}
	}
	return nil
}
