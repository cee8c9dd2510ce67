package cluster_test

import (
	"context"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/placement"
)

// mapStep is what a client did to shard 0: it read the shard's epoch after a barrier, or changed the shard if it had an epoch.
type mapStep struct {
	change bool
	epoch  uint64
	// maybe: a change that was refused or not answered. Where the leader was lost on the way the first try may have taken effect.
	maybe bool
}

// shardRegister is the shard's epoch: a change under epoch e makes it e+1, a read sees it.
var shardRegister = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{uint64(0)} },
	Step: func(state, input, _ any) []any {
		s, in := state.(uint64), input.(mapStep)
		switch {
		case s == 0: // the first read tells where it begins
			if in.change {
				return nil
			}
			return []any{in.epoch}
		case !in.change && in.epoch == s:
			return []any{s}
		case in.change && in.maybe && in.epoch == s:
			return []any{s, s + 1}
		case in.change && in.maybe:
			return []any{s}
		case in.change && in.epoch == s:
			return []any{s + 1}
		}
		return nil
	},
	Equal: func(a, b any) bool { return a.(uint64) == b.(uint64) },
}).ToModel()

// TestShardMapIsLinearizable: what clients of all three nodes see of a shard's epoch after a barrier, and what their changes answer, is one order of events,
// while whoever leads is killed and comes back.
func TestShardMapIsLinearizable(t *testing.T) {
	_, nodes := three(t)
	began := time.Now()
	var mu sync.Mutex
	var operations []porcupine.Operation
	note := func(client int, called time.Duration, s mapStep) {
		back := int64(time.Since(began))
		if s.maybe {
			back = math.MaxInt64 // it may still take effect
		}
		mu.Lock()
		defer mu.Unlock()
		operations = append(operations, porcupine.Operation{ClientId: client, Input: s, Call: int64(called), Return: back})
	}
	read := func(ctx context.Context, client int, c *cluster.Cluster) (placement.Assignment, bool) {
		called := time.Since(began)
		if err := c.Sync(ctx); err != nil {
			return placement.Assignment{}, false
		}
		a := c.State().Map[0]
		note(client, called, mapStep{epoch: a.Epoch})
		return a, true
	}
	ids := []string{nodes[0].ID(), nodes[1].ID(), nodes[2].ID()}
	if _, ok := read(t.Context(), 9, nodes[0].Cluster); !ok {
		t.Fatal("no first read")
	}
	work := func(ctx context.Context, client int, c *cluster.Cluster) {
		for i := 0; ctx.Err() == nil; i++ {
			bounded, cancel := context.WithTimeout(ctx, 2*time.Second)
			if a, ok := read(bounded, client, c); ok && i%2 == client%2 {
				id := ids[(i+client)%3]
				var cmd command.Command = &command.AddReplica{Node: id, Epoch: a.Epoch}
				if a.Replica(id) != nil {
					cmd = &command.DropReplica{Node: id, Epoch: a.Epoch}
				}
				called := time.Since(began)
				_, err := c.Propose(bounded, cmd)
				note(client, called, mapStep{change: true, epoch: a.Epoch, maybe: err != nil})
			}
			cancel()
			select {
			case <-ctx.Done():
			case <-time.After(30 * time.Millisecond):
			}
		}
	}
	client := 0
	for range 3 {
		leader := -1
		eventually(t, "a leader", func() bool {
			leader = slices.IndexFunc(nodes, func(n *node) bool { return n.IsLeader() })
			return leader >= 0
		})
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i, n := range nodes {
			if i == leader {
				continue
			}
			client++
			id := client
			wg.Go(func() { work(ctx, id, n.Cluster) })
		}
		first, stopFirst := context.WithCancel(ctx)
		var of sync.WaitGroup
		client++
		id, c := client, nodes[leader].Cluster
		of.Go(func() { work(first, id, c) })
		pause := func(d time.Duration) {
			select {
			case <-t.Context().Done():
			case <-time.After(d):
			}
		}
		pause(400 * time.Millisecond)
		stopFirst()
		of.Wait()
		nodes[leader].kill()
		pause(time.Second)
		nodes[leader].again(t)
		pause(400 * time.Millisecond)
		stop()
		wg.Wait()
	}
	changes := 0
	for _, o := range operations {
		if s := o.Input.(mapStep); s.change && !s.maybe {
			changes++
		}
	}
	t.Logf("%d operations, %d of them changes that were answered", len(operations), changes)
	if changes < 10 {
		t.Errorf("only %d changes were made", changes)
	}
	if r := porcupine.CheckOperationsTimeout(shardRegister, operations, 20*time.Second); r != porcupine.Ok {
		t.Errorf("the map is not linearizable: %s", r)
	}
}
