package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"everpage/cluster/command"
	"everpage/cluster/fsm"
	"everpage/cluster/raft"
)

// ErrNoLeader says that nothing can be agreed on now: too few voters reach each other.
var ErrNoLeader = errors.New("the cluster has no leader now")

// Refused is why the state machine refused a command.
type Refused = fsm.Refused

// proposeWait bounds a proposal whose context has no end.
const proposeWait = 15 * time.Second

// Propose has the cluster agree on a command, through whoever leads, and returns when it is applied on this node too. A *Refused says that the command
// doesn't fit the state. Where the leader is lost on the way the command is proposed again, so it may be carried out twice: all commands are made for that.
func (c *Cluster) Propose(ctx context.Context, cmd command.Command) (Outcome, error) {
	entry, err := command.Encode(cmd)
	if err != nil {
		return Outcome{}, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, proposeWait)
		defer cancel()
	}
	o, err := c.propose(ctx, entry)
	if err != nil {
		return o, fmt.Errorf("%s: %w", command.Name(cmd), err)
	}
	if _, err := c.Until(ctx, func(s *State) bool { return s.Index >= o.Index }); err != nil {
		return o, fmt.Errorf("%s was agreed on, but this node lags behind: %w", command.Name(cmd), err)
	}
	if o.Refused != "" {
		return o, &Refused{Reason: o.Refused}
	}
	return o, nil
}

// ProposeFor is Propose for a command with a result.
func ProposeFor[T any](ctx context.Context, c *Cluster, cmd command.Command) (T, error) {
	var result T
	o, err := c.Propose(ctx, cmd)
	if err != nil {
		return result, err
	}
	return result, json.Unmarshal(o.Result, &result)
}

// Sync waits until this node knows all that was agreed on before the call.
func (c *Cluster) Sync(ctx context.Context) error {
	_, err := c.Propose(ctx, &command.Sync{})
	return err
}

// Head is up to where this node must know the log to know all that was agreed on before the call: State's Index is then at least that. It needs a majority, but
// not that this node has the log already: the leader asks one that was away again after up to ten seconds only.
func (c *Cluster) Head(ctx context.Context) (index uint64, err error) {
	entry, err := command.Encode(&command.Sync{})
	if err != nil {
		return 0, err
	}
	o, err := c.propose(ctx, entry)
	return o.Index, err
}

func (c *Cluster) propose(ctx context.Context, entry []byte) (Outcome, error) {
	for {
		o, err := c.try(ctx, entry, false)
		if err == nil && o.Err != nil {
			return o, o.Err
		}
		if err == nil || ctx.Err() != nil {
			return o, err
		}
		select {
		case <-ctx.Done():
			return o, err
		case <-c.Failed():
			return o, c.Err()
		case <-time.After(retryWait):
		}
	}
}

// try proposes once, here or at the leader.
func (c *Cluster) try(ctx context.Context, entry []byte, forwarded bool) (Outcome, error) {
	o, err := c.enterLog(ctx, entry)
	if err == nil || !errors.Is(err, raft.ErrNotLeader) || forwarded {
		return o, err
	}
	leader := c.raft.Leader()
	if leader == "" || leader == c.id.ID {
		return o, fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	address := c.PageAddress(leader)
	if address == "" {
		return o, fmt.Errorf("%w: where the leader is is not known", ErrNoLeader)
	}
	return c.cfg.Peers.Propose(ctx, address, entry, true)
}

// enterLog puts an entry into the log, as the leader. Reports of chunks go in together.
func (c *Cluster) enterLog(ctx context.Context, entry []byte) (Outcome, error) {
	if c.raft.Leads() && command.IsReport(entry) {
		cmd, err := command.Decode(entry)
		if err != nil {
			return Outcome{}, err
		}
		return c.gather(ctx, cmd.(*command.ReportChunks))
	}
	return c.raft.Apply(ctx, entry)
}

// HandlePropose is Propose for another node.
func (c *Cluster) HandlePropose(ctx context.Context, entry []byte, forwarded bool) (Outcome, error) {
	if _, err := command.Decode(entry); err != nil { // what this release can't read must not enter the log through it
		return Outcome{}, err
	}
	o, err := c.try(ctx, entry, forwarded)
	if err == nil {
		err = o.Err
	}
	return o, err
}

// applyHere proposes as the leader.
func (c *Cluster) applyHere(ctx context.Context, cmd command.Command) (Outcome, error) {
	entry, err := command.Encode(cmd)
	if err != nil {
		return Outcome{}, err
	}
	o, err := c.raft.Apply(ctx, entry)
	if err == nil {
		err = o.Err
	}
	return o, err
}
