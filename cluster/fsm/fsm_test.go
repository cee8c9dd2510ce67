package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"everpage/cluster/catalog"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// draw makes a command that more often than not fits the state.
func draw(r *rand.Rand, s *State) command.Command {
	node := func() string { return fmt.Sprintf("id%d", r.IntN(6)) }
	shard := placement.Shard(r.IntN(9))
	epoch := uint64(r.IntN(4))
	if int(shard) < len(s.Map) && r.IntN(4) > 0 {
		epoch = s.Map[shard].Epoch
	}
	of, chunk := command.Of{Shard: shard}, placement.Chunk{Segment: uint32(r.IntN(3))}
	chunk.Rel = 1
	if len(s.Map) > 0 && r.IntN(3) == 0 {
		of.Shard = placement.ShardOf(chunk, uint32(len(s.Map)))
		of.Chunk = &chunk
		if o := s.Layout().Override(chunk); o != nil && r.IntN(4) > 0 {
			epoch = o.Epoch
		}
	}
	branch := uint32(r.IntN(3))
	lsn := pg.LSN(r.IntN(1000))
	switch r.IntN(28) {
	case 0, 1, 2:
		id := node()
		return &command.PutNode{ID: id, Name: "name" + id, PageAddress: fmt.Sprintf("h:%d", r.IntN(9)), Format: 1}
	case 3:
		return &command.PutNode{ID: node(), Name: "name" + node(), PageAddress: "h:1", Format: uint32(r.IntN(2)), ReplacesDeadNodeOfSameName: r.IntN(2) == 0}
	case 4:
		return &command.SetNodeState{ID: node(), State: []command.NodeState{command.Active, command.Draining}[r.IntN(2)]}
	case 5:
		return &command.RemoveNode{ID: node(), Force: r.IntN(4) == 0}
	case 6:
		return &command.SetReplicas{Replicas: r.IntN(5)}
	case 7, 8, 9, 10:
		return &command.AddReplica{Of: of, Node: node(), Epoch: epoch}
	case 11, 12, 13:
		c := &command.ReplicaReady{Of: of, Node: node()}
		if a := s.Layout().Assignment(of.Place()); a != nil {
			if rep := a.Replica(c.Node); rep != nil {
				c.Since = rep.Since
			}
		}
		return c
	case 14:
		return &command.DropReplica{Of: of, Node: node(), Epoch: epoch}
	case 15:
		return &command.LoseReplica{Of: of, Node: node()}
	case 16:
		return &command.Attach{Conninfo: "c", SystemIdentifier: 5, Major: 15, WALSegmentSize: 1 << 24, Importer: node()}
	case 17:
		if r.IntN(3) == 0 {
			return &command.Detach{Slots: []string{"a", "b"}}
		}
		return &command.TakeImport{From: s.Follow.Importer, Importer: node()}
	case 18:
		return &command.SetBranch{Number: uint32(1 + r.IntN(3)), Timeline: pg.TimelineID(1 + r.IntN(5)), Imported: r.IntN(2) == 0, Importer: s.Follow.Importer, Main: true}
	case 19:
		if r.IntN(4) == 0 {
			return &command.DropBranches{}
		}
		return &command.OrderReplicas{Of: of, First: node(), Epoch: epoch}
	case 20:
		return &command.ReserveTimeline{}
	case 21:
		m, _ := s.Manifest(branch, shard)
		return &command.SetManifest{Branch: branch, Shard: shard, Epoch: epoch, Old: m.Name, New: fmt.Sprint(r.IntN(99)), LSN: lsn, OldestUS: r.Int64N(50)}
	case 22:
		return []command.Command{&command.PlanHorizon{Branch: branch, LSN: lsn}, &command.ApplyHorizon{Branch: branch, LSN: lsn}, &command.SetRetention{Retention: time.Hour}}[r.IntN(3)]
	case 23:
		if r.IntN(2) == 0 {
			return &command.KeepReplica{Of: of, Node: node(), Epoch: epoch}
		}
		return &command.AddReplica{Of: of, Node: node(), Replaces: node()}
	case 25, 26:
		var b catalog.Batch
		for range 1 + r.IntN(4) {
			k := placement.Chunk{Segment: uint32(r.IntN(3))}
			k.Rel = uint32(r.IntN(5))
			b.Add(catalog.Entry{Key: catalog.Key{Branch: branch, Chunk: k}, Born: catalog.Birth(lsn), Last: catalog.Event(r.IntN(2000))})
		}
		return &command.ReportChunks{Reports: b.Encode(1 << 20)[0]}
	case 24:
		if r.IntN(2) == 0 {
			return &command.UnsplitChunk{Chunk: chunk}
		}
		return &command.SplitChunk{Chunk: chunk, Pinned: r.IntN(2) == 0}
	default:
		return []command.Command{&command.Lease{Branch: branch, LSN: lsn, Seconds: 9, Renew: uint64(r.IntN(3))}, &command.EndLeases{Leases: []uint64{uint64(r.IntN(5))}},
			&command.ForgetSlot{Slot: "a"}, &command.SetHole{Hole: "x"}, &command.Sync{}, &command.SetStore{URL: "file:///x"},
			&command.SetHole{Hole: "x", Branch: s.Main, Importer: node()},
			&command.ForkBranch{Parent: s.Main, Fork: lsn, Timeline: pg.TimelineID(2 + r.IntN(5)), History: []byte("1\t0/10\tx\n")},
			&command.CollectObjects{BeforeUS: r.Int64N(50)}}[r.IntN(9)]
	}
}

// check holds what is true of every state.
func check(t *testing.T, s *State) {
	t.Helper()
	names := map[string]bool{}
	for i, n := range s.Nodes {
		if names[n.Name] || i > 0 && s.Nodes[i-1].Name >= n.Name {
			t.Fatalf("nodes %+v", s.Nodes)
		}
		names[n.Name] = true
	}
	places := slices.Clone(s.Map)
	for _, o := range s.Chunks {
		places = append(places, o.Assignment)
	}
	for i, a := range places {
		seen := map[string]bool{}
		for _, r := range a.Replicas {
			if s.Node(r.Node) == nil || seen[r.Node] || r.Since > a.Epoch {
				t.Fatalf("shard or chunk %d: %+v", i, a)
			}
			seen[r.Node] = true
		}
	}
	if m := s.ClientMap(); m != nil {
		if err := m.Valid(); err != nil {
			t.Fatal(err)
		}
	}
	for e := range s.inventory().All(catalog.Key{}) {
		if s.Branch(e.Branch) == nil {
			t.Fatalf("chunk %+v of a branch that is not there", e)
		}
	}
	for _, l := range s.Leases {
		if h := s.Horizon(l.Branch); h.Applied > l.LSN {
			t.Fatalf("lease %+v is below the horizon %+v", l, h)
		}
	}
}

type sink struct {
	bytes.Buffer
	raft.SnapshotSink
}

func (s *sink) Write(p []byte) (int, error) { return s.Buffer.Write(p) }
func (s *sink) Close() error                { return nil }

// A state that was restored from a snapshot goes on as the one that it was taken of, and states that were published never change.
func TestSnapshotAndLogAgree(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 60 {
		whole := New(nil)
		entries := [][]byte{}
		add := func(c command.Command) {
			b, err := command.Encode(c)
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, b)
			before, _ := whole.State().Encode()
			old := whole.State()
			o := whole.Apply(&raft.Log{Index: uint64(len(entries)), Data: b}).(Outcome)
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			if after, _ := old.Encode(); !bytes.Equal(before, after) {
				t.Fatalf("%s changed the state before it", command.Name(c))
			}
			check(t, whole.State())
		}
		add(&command.MakeCluster{ID: "c", Name: "main", Format: 1, Shards: 8, SegmentBlocks: 131072})
		var middle *sink
		at := 0
		n := 50 + r.IntN(150)
		for i := range n {
			if i == n/2 {
				p, err := whole.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				middle, at = &sink{}, len(entries)
				if err := p.Persist(middle); err != nil {
					t.Fatal(err)
				}
			}
			add(draw(r, whole.State()))
		}
		restored := New(nil)
		if err := restored.Restore(io.NopCloser(&middle.Buffer)); err != nil {
			t.Fatal(err)
		}
		for i, b := range entries[at:] {
			restored.Apply(&raft.Log{Index: uint64(at + i + 1), Data: b})
		}
		a, _ := whole.State().Encode()
		b, _ := restored.State().Encode()
		if !bytes.Equal(a, b) {
			t.Fatalf("log:\n%s\nsnapshot and log:\n%s", a, b)
		}
	}
}

func TestNewerCommandsStopTheMachine(t *testing.T) {
	good, _ := command.Encode(&command.Sync{})
	for _, b := range [][]byte{{2, 1, 1}, {1, 200, 1, 1}, append([]byte{1, good[1], 2}, good[3:]...), {1}, {}, append(good[:3:3], `{"New":1}`...)} {
		f := New(nil)
		o := f.Apply(&raft.Log{Index: 1, Data: b}).(Outcome)
		if o.Err == nil || f.Err() == nil {
			t.Fatalf("entry % x was taken", b)
		}
		select {
		case <-f.Failed():
		default:
			t.Fatal("nobody is told")
		}
		if o := f.Apply(&raft.Log{Index: 2, Data: good}).(Outcome); o.Err == nil {
			t.Fatal("it went on behind what it can't read")
		}
	}
	var unknown *command.UnknownError
	if _, err := command.Decode([]byte{2, 1, 1}); !errors.As(err, &unknown) || !strings.Contains(err.Error(), "newer release") {
		t.Fatalf("error %v", err)
	}
	if _, err := Decode([]byte("everpage cluster state 9\n{}")); !errors.As(err, &unknown) {
		t.Fatalf("error %v", err)
	}
}

func TestShardsMoveWithoutALastReplicaLost(t *testing.T) {
	s := &State{}
	n := uint64(0)
	must := func(c command.Command) {
		t.Helper()
		n++
		next, _, err := s.Apply(n, c)
		if err != nil {
			t.Fatalf("%s: %v", command.Name(c), err)
		}
		s = next
	}
	refused := func(c command.Command, want string) {
		t.Helper()
		n++
		var r *Refused
		if _, _, err := s.Apply(n, c); !errors.As(err, &r) || !strings.Contains(err.Error(), want) {
			t.Fatalf("%s: %v, want %q", command.Name(c), err, want)
		}
	}
	must(&command.MakeCluster{ID: "c", Name: "main", Format: 1, Shards: 2, SegmentBlocks: 131072})
	must(&command.PutNode{ID: "a", Name: "n1", PageAddress: "h:1", Format: 1})
	must(&command.PutNode{ID: "b", Name: "n2", PageAddress: "h:2", Format: 1})
	must(&command.Attach{Conninfo: "c", SystemIdentifier: 5, Major: 15, WALSegmentSize: 1 << 24, Importer: "a"})
	must(&command.SetBranch{Number: 1, Timeline: 1, Imported: true, Importer: "a", Main: true})
	refused(&command.AddReplica{Of: command.Of{Shard: 2}, Node: "b"}, "the cluster has 2")
	refused(&command.AddReplica{Of: command.Of{Shard: 0}, Node: "z"}, "no such node")
	refused(&command.RemoveNode{ID: "a"}, "only full replica")
	refused(&command.SetReplicas{Replicas: 3}, "need as many nodes")
	epoch := s.Map[0].Epoch
	must(&command.AddReplica{Of: command.Of{Shard: 0}, Node: "b", Epoch: epoch})
	refused(&command.AddReplica{Of: command.Of{Shard: 0}, Node: "b", Epoch: epoch}, "older map")
	refused(&command.AddReplica{Of: command.Of{Shard: 0}, Node: "b", Epoch: s.Map[0].Epoch + 1}, "newer map than this one")
	refused(&command.DropReplica{Of: command.Of{Shard: 0}, Node: "a"}, "last complete replica")
	if full := s.ClientMap().Replicas[0]; len(full) != 1 {
		t.Fatalf("clients are sent to a replica that is joining: %v", full)
	}
	since := s.Map[0].Replica("b").Since
	refused(&command.ReplicaReady{Of: command.Of{Shard: 0}, Node: "b", Since: since - 1}, "what it has may be dropped")
	must(&command.ReplicaReady{Of: command.Of{Shard: 0}, Node: "b", Since: since})
	must(&command.DropReplica{Of: command.Of{Shard: 0}, Node: "a", Epoch: s.Map[0].Epoch})
	must(&command.PlanHorizon{Branch: 1, LSN: 100})
	refused(&command.Lease{Branch: 1, LSN: 99, Seconds: 9}, "below the horizon")
	must(&command.Lease{Branch: 1, LSN: 150, Seconds: 9})
	must(&command.PlanHorizon{Branch: 1, LSN: 200})
	refused(&command.ApplyHorizon{Branch: 1, LSN: 200}, "a lease pins")
	must(&command.EndLeases{Leases: []uint64{1}})
	must(&command.ApplyHorizon{Branch: 1, LSN: 200})
}

// Below a planned horizon nothing is forked off or leased any more, and no horizon passes what a branch or a lease needs, be it by way of another branch.
func TestHorizonKeepsWhatOthersNeed(t *testing.T) {
	s := &State{}
	n := uint64(0)
	must := func(c command.Command) {
		t.Helper()
		n++
		next, _, err := s.Apply(n, c)
		if err != nil {
			t.Fatalf("%s: %v", command.Name(c), err)
		}
		s = next
	}
	refused := func(c command.Command, want string) {
		t.Helper()
		n++
		var r *Refused
		if _, _, err := s.Apply(n, c); !errors.As(err, &r) || !strings.Contains(err.Error(), want) {
			t.Fatalf("%s: %v, want %q", command.Name(c), err, want)
		}
	}
	must(&command.MakeCluster{ID: "c", Name: "main", Format: 1, Shards: 2, SegmentBlocks: 131072})
	must(&command.PutNode{ID: "a", Name: "n1", PageAddress: "h:1", Format: 1})
	must(&command.Attach{Conninfo: "c", SystemIdentifier: 5, Major: 15, WALSegmentSize: 1 << 24, Importer: "a"})
	must(&command.SetBranch{Number: 1, Timeline: 1, Imported: true, Importer: "a", Main: true})
	refused(&command.SetRetention{Retention: -1}, "positive")
	refused(&command.SetRetention{Retention: time.Hour, Bytes: 1}, "positive")
	must(&command.SetRetention{Bytes: 1 << 30})
	must(&command.PlanHorizon{Branch: 1, LSN: 100})
	refused(&command.SetBranch{Number: 2, Parent: 1, Fork: 99, Timeline: 2, Imported: true}, "can't be forked at")
	must(&command.SetBranch{Number: 2, Parent: 1, Fork: 150, Timeline: 2, Imported: true, Main: true})
	refused(&command.PlanHorizon{Branch: 1, LSN: 151}, "forked off")
	// What the second branch has at 120 is the first one's.
	refused(&command.Lease{Branch: 2, LSN: 99, Seconds: 9}, "below the horizon")
	must(&command.Lease{Branch: 2, LSN: 120, Seconds: 9})
	must(&command.PlanHorizon{Branch: 1, LSN: 150})
	refused(&command.ApplyHorizon{Branch: 1, LSN: 130}, "a lease pins")
	must(&command.ApplyHorizon{Branch: 1, LSN: 120})
	must(&command.PlanHorizon{Branch: 2, LSN: 300})
	must(&command.ApplyHorizon{Branch: 2, LSN: 300})
	refused(&command.SetBranch{Number: 3, Parent: 2, Fork: 110, Timeline: 3, Imported: true}, "can't be forked at")
	must(&command.SetBranch{Number: 3, Parent: 2, Fork: 150, Timeline: 3, Imported: true})
	if at := s.OldestFork(1); at != 150 {
		t.Fatalf("oldest fork %s", at)
	}
	if at := s.OldestFork(2); at != 0 {
		t.Fatalf("oldest fork %s", at)
	}
	// Once the history of all that forked off begins later, what the first branch got beyond goes, too.
	refused(&command.PlanHorizon{Branch: 1, LSN: 400}, "forked off")
	must(&command.PlanHorizon{Branch: 3, LSN: 200})
	refused(&command.PlanHorizon{Branch: 1, LSN: 400}, "forked off")
	must(&command.ApplyHorizon{Branch: 3, LSN: 200})
	// A retention that is set withdraws what is not yet final, and what was worked out for the one before comes too late.
	must(&command.PlanHorizon{Branch: 1, LSN: 400, For: s.Kept()})
	before := s.Kept()
	must(&command.SetRetention{})
	if h := s.Horizon(1); h.Planned != 120 || h.Applied != 120 {
		t.Fatalf("after a retention was set the horizon is planned at %s and is at %s", h.Planned, h.Applied)
	}
	refused(&command.ApplyHorizon{Branch: 1, LSN: 400}, "not 0/190")
	refused(&command.PlanHorizon{Branch: 1, LSN: 400, For: before}, "has been changed")
	must(&command.PlanHorizon{Branch: 1, LSN: 400, For: s.Kept()})
	refused(&command.ApplyHorizon{Branch: 1, LSN: 400}, "a lease pins") // at 120, by way of the second branch
	must(&command.EndLeases{Leases: []uint64{1}})
	must(&command.ApplyHorizon{Branch: 1, LSN: 400})
}
