package node

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"everpage/chunk"
	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/fsm"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// noPeers are other nodes, none of which answers.
type noPeers struct{}

func (noPeers) Join(context.Context, string, cluster.JoinRequest) (cluster.JoinAnswer, error) {
	return cluster.JoinAnswer{}, errors.New("nobody is there")
}

func (noPeers) Propose(context.Context, string, []byte, bool) (cluster.Outcome, error) {
	return cluster.Outcome{}, errors.New("nobody is there")
}

// TestWhatIsElsewhereIsDropped: a node drops a shard, or a chunk, that the cluster took from it; not while the cluster says otherwise, whatever the node
// knew, and not while the cluster can't be asked.
func TestWhatIsElsewhereIsDropped(t *testing.T) {
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	store := testPages(t, chunk.Progress{Start: 0x1000, Consistent: 0x2000, Readable: 0x5000, Resume: 0x5000}).store
	c, err := cluster.Start(t.Context(), cluster.Config{
		Dir: t.TempDir(), Name: "n1", Cluster: "main", Page: "h:1", Raft: "127.0.0.1:0", Gossip: "127.0.0.1:0", Shards: store.Shards(), SegmentBlocks: pg.SegmentBlocks,
		Peers: noPeers{}, Logger: log, RaftTimeout: 300 * time.Millisecond, FastGossip: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	open := true
	t.Cleanup(func() {
		if open {
			c.Close()
		}
	})
	n := &Node{cfg: Config{Logger: log}, store: store, cluster: c}
	propose := func(cmd command.Command) {
		t.Helper()
		if _, err := c.Propose(t.Context(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	give := func(shard placement.Shard) {
		t.Helper()
		propose(&command.AddReplica{Of: command.Of{Shard: shard}, Node: "other"})
		propose(&command.DropReplica{Of: command.Of{Shard: shard}, Node: c.ID()})
	}
	// long is what giveUp remembers of places that it saw for the first time long ago.
	long := func() map[placement.Place]time.Time {
		m := map[placement.Place]time.Time{}
		for shard := range placement.Shard(store.Shards()) {
			m[placement.Place{Shard: shard}] = time.Now().Add(-2 * dropAfter)
		}
		for _, k := range store.OwnedChunks(1) {
			m[placement.Place{Shard: placement.ShardOf(k, store.Shards()), Chunk: k}] = time.Now().Add(-2 * dropAfter)
		}
		return m
	}
	owned := func(shard placement.Shard) bool { return store.Coverage(1, shard).Owned }
	all := func() []placement.Shard { return c.State().Owned(c.ID()) }
	without := func(shard placement.Shard) (out []placement.Shard) {
		for _, k := range all() {
			if k != shard {
				out = append(out, k)
			}
		}
		return out
	}

	propose(&command.PutNode{ID: "other", Name: "n2", PageAddress: "h:2", Format: fsm.Format})
	give(3)
	n.giveUp(t.Context(), []uint32{1}, all(), nil, map[placement.Place]time.Time{})
	if !owned(3) {
		t.Fatal("shard 3 was dropped at once: readers with an older map are not answered")
	}
	n.giveUp(t.Context(), []uint32{1}, all(), nil, long())
	if owned(3) || !owned(4) {
		t.Fatalf("shard 3 is elsewhere, shard 4 is not: owned %v and %v", owned(3), owned(4))
	}
	// What this node knows is old: the cluster has given the shard back.
	n.giveUp(t.Context(), []uint32{1}, without(4), nil, long())
	if !owned(4) {
		t.Fatal("shard 4 was dropped, and the cluster says that it is here")
	}
	// A chunk of a shard that is elsewhere stays as long as it is wanted, and so does a shard of which a chunk is wanted.
	apart := placement.Chunk{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 1}}}
	for placement.ShardOf(apart, store.Shards()) != 3 {
		apart.Rel++
	}
	if _, err := store.OwnChunk(1, apart); err != nil {
		t.Fatal(err)
	}
	override := fsm.Override{Chunk: apart, Assignment: fsm.Assignment{Replicas: []fsm.Replica{{Node: c.ID()}}}}
	n.giveUp(t.Context(), []uint32{1}, all(), []fsm.Override{override}, long())
	if !store.ChunkCoverage(1, apart).Owned {
		t.Fatal("the chunk was dropped")
	}
	n.giveUp(t.Context(), []uint32{1}, all(), nil, long())
	if store.ChunkCoverage(1, apart).Owned {
		t.Fatal("the chunk is elsewhere, and is kept")
	}
	// Nobody answers for the cluster: nothing is dropped.
	give(5)
	if !owned(5) {
		t.Fatal("shard 5 is not here to begin with")
	}
	elsewhere := all()
	open = false
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	n.giveUp(t.Context(), []uint32{1}, elsewhere, nil, long())
	if !owned(5) {
		t.Fatal("shard 5 was dropped without asking the cluster")
	}
}
