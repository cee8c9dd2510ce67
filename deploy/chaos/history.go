package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "everpage/pageapi/pagepb/everpage/v1"
)

// history watches what the nodes agree on, each by itself.
//
// Timeline ids are given out through the log by whichever node is asked: as a counter that is read and raised they must be linearizable, whatever is killed or cut
// off. The shard map is read from each node's own memory, which may be behind, so that reads of it are no linearizable history; but what a node says under an
// epoch must be what every other says under it, and no node may go back while it runs. (One that was killed comes back with what it had on disk, and is behind
// until it hears of the leader.)
type history struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	conns  []*grpc.ClientConn

	mu         sync.Mutex
	operations []porcupine.Operation
	shards     map[shardEpoch]string // who has a shard under an epoch
	seen       int
	wrong      []string
	began      time.Time
}

func startHistory(ctx context.Context, addresses []string) (*history, error) {
	ctx, cancel := context.WithCancel(ctx)
	h := &history{cancel: cancel, shards: map[shardEpoch]string{}, began: time.Now()}
	for i, a := range addresses {
		conn, err := grpc.NewClient(a, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, errors.Join(err, h.stop())
		}
		h.conns = append(h.conns, conn)
		admin := pb.NewAdminServiceClient(conn)
		h.done.Go(func() { h.reserve(ctx, i, admin) })
		h.done.Go(func() { h.observe(ctx, addresses[i], admin) })
	}
	return h, nil
}

func (h *history) stop() error {
	h.cancel()
	h.done.Wait()
	var errs []error
	for _, c := range h.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

const historyEvery = 500 * time.Millisecond

// reserve asks one node for one timeline id after the other.
func (h *history) reserve(ctx context.Context, client int, admin pb.AdminServiceClient) {
	for ctx.Err() == nil {
		called := time.Since(h.began)
		bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
		r, err := admin.ReserveTimeline(bounded, &pb.ReserveTimelineRequest{})
		cancel()
		if err == nil { // of a call that failed nobody knows whether it took effect; it can only have skipped an id, which the model allows
			h.mu.Lock()
			h.operations = append(h.operations, porcupine.Operation{ClientId: client, Call: int64(called), Output: r.Timeline, Return: int64(time.Since(h.began))})
			h.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(historyEvery):
		}
	}
}

// counter is how ids are given out: each is above all that were given before. Calls that failed may have used ids up.
var counter = porcupine.Model{
	Init: func() any { return uint32(0) },
	Step: func(state, _, output any) (bool, any) {
		id := output.(uint32)
		return id > state.(uint32), id
	},
}

// observe reads one node's map.
func (h *history) observe(ctx context.Context, address string, admin pb.AdminServiceClient) {
	newest := uint64(0)
	epochs := map[uint32]uint64{}
	for ctx.Err() == nil {
		bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
		r, err := admin.ListShards(bounded, &pb.ListShardsRequest{})
		cancel()
		if err == nil {
			h.mu.Lock()
			h.seen++
			if r.Epoch < newest {
				h.wrong = append(h.wrong, fmt.Sprintf("node %s went back from map %d to %d", address, newest, r.Epoch))
			}
			newest = r.Epoch
			for _, s := range r.Shards {
				text := ""
				for _, x := range s.Replicas {
					text += x.Node + "/" + x.Role + " "
				}
				if s.Epoch < epochs[s.Shard] {
					h.wrong = append(h.wrong, fmt.Sprintf("node %s went back from epoch %d of shard %d to %d", address, epochs[s.Shard], s.Shard, s.Epoch))
				}
				epochs[s.Shard] = s.Epoch
				h.same(shardEpoch{s.Shard, s.Epoch}, text, fmt.Sprintf("shard %d under epoch %d", s.Shard, s.Epoch))
			}
			h.mu.Unlock()
		} else {
			// It may have been killed. A node writes the state that it serves beside the log at most every 200 ms, and its log tells what is committed only once
			// a leader has said so: one that comes back says for a moment what it knew a little earlier. That is a local look at the map, not a barrier read
			// (those are held against one order of events by cluster's TestShardMapIsLinearizable), and nothing is dropped or deleted by it.
			newest = 0
			clear(epochs)
		}
		select {
		case <-ctx.Done():
		case <-time.After(historyEvery):
		}
	}
}

type shardEpoch struct {
	shard uint32
	epoch uint64
}

// same holds what one node says under an epoch against what another said.
func (h *history) same(key shardEpoch, text, what string) {
	if have, ok := h.shards[key]; ok && have != text {
		h.wrong = append(h.wrong, fmt.Sprintf("%s is %q to one node and %q to another", what, have, text))
		return
	}
	h.shards[key] = text
}

// judge tells what was wrong since the last call, how often maps were read, and how many operations were linearizable.
func (h *history) judge() (wrong []string, seen, operations int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	wrong, seen, operations = h.wrong, h.seen, len(h.operations)
	h.wrong, h.seen = nil, 0
	switch porcupine.CheckOperationsTimeout(counter, h.operations, 20*time.Second) {
	case porcupine.Illegal:
		wrong = append(wrong, "the timeline ids that were given out are not linearizable")
	case porcupine.Unknown:
		wrong = append(wrong, "whether the timeline ids are linearizable was not found out in 20 s")
	}
	h.operations = nil
	return wrong, seen, operations
}
