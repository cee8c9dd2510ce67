package node

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// progressWait is how long other nodes may take to say how far they are.
const progressWait = time.Second

// nodesProgress asks all nodes how far they are, this one included. Those that don't answer in time are missing.
func (n *Node) nodesProgress(ctx context.Context, s *cluster.State) map[string]*pb.NodeProgress {
	ctx, cancel := context.WithTimeout(ctx, progressWait)
	defer cancel()
	out := map[string]*pb.NodeProgress{n.cluster.ID(): n.progress()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, x := range s.Nodes {
		if x.ID == n.cluster.ID() {
			continue
		}
		c, err := n.peers.at(n.cluster.PageAddress(x.ID))
		if err != nil {
			continue
		}
		wg.Go(func() {
			if r, err := c.State(ctx, &pb.StateRequest{}); err == nil && r.Progress.GetId() == x.ID {
				mu.Lock()
				defer mu.Unlock()
				out[x.ID] = r.Progress
			}
		})
	}
	wg.Wait()
	return out
}

// clusterStatus is the state of all nodes as far as this one can tell.
func (n *Node) clusterStatus(ctx context.Context) *pb.StatusResponse {
	s := n.cluster.State()
	resp := &pb.StatusResponse{Cluster: n.cfg.Cluster, Follow: n.follow.status(), Shards: s.Shards, Replicas: uint32(s.WantReplicas())}
	progress := n.nodesProgress(ctx, s)
	voters := map[string]bool{}
	if servers, err := n.cluster.Servers(); err == nil {
		for _, x := range servers {
			voters[x.ID] = x.Voter
		}
	}
	full, joining := map[string]uint32{}, map[string]uint32{}
	for _, a := range s.Map {
		have := 0
		for _, r := range a.Replicas {
			if r.Role == placement.Joining {
				joining[r.Node]++
				resp.JoiningReplicas++
				continue
			}
			full[r.Node]++
			if alive, _ := n.cluster.Alive(r.Node); alive {
				have++
			}
		}
		resp.MissingReplicas += uint32(max(0, s.WantReplicas()-have))
	}
	for _, x := range s.Nodes {
		alive, _ := n.cluster.Alive(x.ID)
		ns := &pb.NodeStatus{
			Name: x.Name, Address: x.PageAddress, Id: x.ID, Zone: x.Zone, State: string(x.State), Alive: alive, Leader: x.ID == n.cluster.Leader(), Voter: voters[x.ID],
			FullShards: full[x.ID], JoiningShards: joining[x.ID],
		}
		if ns.Leader {
			resp.Leader = x.Name
		}
		if p := progress[x.ID]; p != nil {
			ns.Version, ns.UptimeSeconds, ns.StoreBytes, ns.SpoolBytes, ns.DiskFreeBytes, ns.RssBytes = p.Version, p.UptimeSeconds, p.StoreBytes, p.SpoolBytes, p.DiskFreeBytes, p.RssBytes
			ns.FollowState, ns.FollowMessage, ns.Warnings = p.FollowState, p.FollowMessage, p.Warnings
			ns.Collecting, ns.Budget = p.Collecting, p.Budget
			for _, b := range p.Branches {
				if b.Branch == s.Main {
					ns.DurableLsn, ns.ReadableLsn = b.SpoolDurable, b.Readable
				}
			}
		}
		resp.Nodes = append(resp.Nodes, ns)
	}
	return resp
}

// named finds a node for an administrator.
func named(s *cluster.State, name string) (string, error) {
	n := s.NodeNamed(name)
	if n == nil {
		return "", status.Error(codes.FailedPrecondition, fmt.Sprintf("node %s is not a member of the cluster; everpage node list shows who is", name))
	}
	return n.ID, nil
}

func (a *admin) SetNode(ctx context.Context, r *pb.SetNodeRequest) (*pb.SetNodeResponse, error) {
	if err := a.n.cluster.Sync(ctx); err != nil {
		return nil, adminError(err)
	}
	id, err := named(a.n.cluster.State(), r.Name)
	if err != nil {
		return nil, err
	}
	var cmd command.Command
	switch r.Action {
	case "drain":
		cmd = &command.SetNodeState{ID: id, State: command.Draining}
	case "undrain":
		cmd = &command.SetNodeState{ID: id, State: command.Active}
	case "remove":
		slot, err := stream.NodeSlot(a.n.cfg.Cluster, r.Name)
		if err != nil {
			return nil, adminError(err)
		}
		if err := a.n.cluster.MayRemove(id); err != nil {
			return nil, status.Error(codes.FailedPrecondition, fmt.Sprintf("node %s can't be removed now: %v", r.Name, err))
		}
		cmd = &command.RemoveNode{ID: id, Force: r.Force, Slot: slot}
	default:
		return nil, status.Error(codes.InvalidArgument, fmt.Sprintf("action %q is not known", r.Action))
	}
	_, err = a.n.cluster.Propose(ctx, cmd)
	return &pb.SetNodeResponse{}, adminError(err)
}

func (a *admin) ListShards(context.Context, *pb.ListShardsRequest) (*pb.ListShardsResponse, error) {
	s := a.n.cluster.State()
	resp := &pb.ListShardsResponse{Epoch: s.MapEpoch}
	for i, x := range s.Map {
		info := &pb.ShardInfo{Shard: uint32(i), Epoch: x.Epoch}
		info.Replicas = a.replicasOf(s, x)
		resp.Shards = append(resp.Shards, info)
	}
	return resp, nil
}

func (a *admin) MoveShard(ctx context.Context, r *pb.MoveShardRequest) (*pb.MoveShardResponse, error) {
	if err := a.n.cluster.Sync(ctx); err != nil {
		return nil, adminError(err)
	}
	s := a.n.cluster.State()
	to, err := named(s, r.To)
	if err != nil {
		return nil, err
	}
	if int(r.Shard) >= len(s.Map) {
		return nil, status.Error(codes.FailedPrecondition, fmt.Sprintf("shard %d: the cluster has %d, from 0 on", r.Shard, len(s.Map)))
	}
	if alive, _ := a.n.cluster.Alive(to); !alive {
		return nil, status.Error(codes.FailedPrecondition, fmt.Sprintf("node %s does not answer: no shard can be moved to it", r.To))
	}
	from := ""
	if r.From != "" {
		if from, err = named(s, r.From); err != nil {
			return nil, err
		}
		if s.Map[r.Shard].Replica(from) == nil {
			return nil, status.Error(codes.FailedPrecondition, fmt.Sprintf("node %s has no replica of shard %d", r.From, r.Shard))
		}
	}
	_, err = a.n.cluster.Propose(ctx, &command.AddReplica{Of: command.Of{Shard: placement.Shard(r.Shard)}, Node: to, Epoch: s.Map[r.Shard].Epoch, Replaces: from})
	return &pb.MoveShardResponse{}, adminError(err)
}

// settings are what SetCluster can set.
var settings = []string{"replicas"}

func (a *admin) SetCluster(ctx context.Context, r *pb.SetClusterRequest) (*pb.SetClusterResponse, error) {
	if !slices.Contains(settings, r.Key) {
		return nil, status.Error(codes.InvalidArgument, fmt.Sprintf("setting %q is not known; there is %q", r.Key, settings))
	}
	n, err := strconv.Atoi(r.Value)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, fmt.Sprintf("%s %q: want a number", r.Key, r.Value))
	}
	_, err = a.n.cluster.Propose(ctx, &command.SetReplicas{Replicas: n})
	return &pb.SetClusterResponse{}, adminError(err)
}

// walNotes says where received WAL ends, over all nodes, and whether all could be asked: a commit that waited for some of them is on at least one of those.
func (n *Node) walNotes(ctx context.Context) []string {
	s := n.cluster.State()
	if len(s.Nodes) < 2 || s.Main == 0 {
		return nil
	}
	var end pg.LSN
	where := ""
	var silent []string
	progress := n.nodesProgress(ctx, s)
	for _, x := range s.Nodes {
		p := progress[x.ID]
		if p == nil {
			silent = append(silent, x.Name)
			continue
		}
		for _, b := range p.Branches {
			if at := pg.LSN(max(b.SpoolDurable, b.Stored)); b.Branch == s.Main && at > end {
				end, where = at, x.Name
			}
		}
	}
	notes := []string{fmt.Sprintf("the WAL that nodes have ends at %s, on %s", end, where)}
	if len(silent) > 0 {
		notes = append(notes, fmt.Sprintf("%d of %d nodes do not answer (%s): a commit that was acknowledged by these alone may lie behind that end", len(silent), len(s.Nodes),
			strings.Join(silent, ", ")))
	}
	return notes
}
