package node

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"everpage/chunk"
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

const (
	// usageEvery is how often a node measures what its chunks take on disk, and the leader asks all nodes.
	usageEvery = 30 * time.Second
	// usageShare bounds the part of its time that a node measures.
	usageShare = 20
	// readsOver is how long it takes until a change of the rate of reads is seen for the most part.
	readsOver = time.Minute
	// sampled is how many reads go by for one that is counted for its chunk.
	sampled = 32
	// sampledChunks bounds the chunks that reads are counted for, reported those that are told to the leader.
	sampledChunks, reportedChunks = 4096, 32
)

// usage is what this node's shards cost it: bytes on disk, and pages read.
type usage struct {
	reads []atomic.Uint64 // by shard, since the start
	turn  atomic.Uint64

	mu     sync.Mutex
	hot    map[placement.Chunk]uint64 // sampled reads since the last look
	at     time.Time                  // of the last look
	seen   []uint64                   // reads at that time
	rates  []float64
	hotter map[placement.Chunk]float64
	bytes  []uint64
	huge   []chunk.ChunkUsage // the largest, by size
}

func newUsage(shards uint32) *usage {
	return &usage{reads: make([]atomic.Uint64, shards), seen: make([]uint64, shards), rates: make([]float64, shards), bytes: make([]uint64, shards),
		hot: map[placement.Chunk]uint64{}, hotter: map[placement.Chunk]float64{}, at: time.Now()}
}

// read counts the read of a page.
func (u *usage) read(key pg.PageKey, segmentBlocks uint32) {
	c := placement.ChunkOf(key, segmentBlocks)
	u.reads[placement.ShardOf(c, uint32(len(u.reads)))].Add(1)
	if u.turn.Add(1)%sampled != 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, known := u.hot[c]; known || len(u.hot) < sampledChunks {
		u.hot[c]++
	}
}

// look brings the rates up to a time.
func (u *usage) look(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	seconds := now.Sub(u.at).Seconds()
	if seconds <= 0 {
		return
	}
	u.at = now
	weight := 1 - math.Exp(-seconds/readsOver.Seconds())
	for i := range u.rates {
		n := u.reads[i].Load()
		u.rates[i] += weight * (float64(n-u.seen[i])/seconds - u.rates[i])
		u.seen[i] = n
	}
	for c := range u.hotter {
		if u.hotter[c] -= weight * u.hotter[c]; u.hotter[c] < 1 {
			delete(u.hotter, c)
		}
	}
	for c, n := range u.hot {
		u.hotter[c] += weight * float64(n) * sampled / seconds
	}
	clear(u.hot)
}

// measure looks at what is on disk and read, again and again.
func (n *Node) measure(ctx context.Context) error {
	wait := usageEvery / 10
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		began := time.Now()
		n.usage.look(began)
		bytes := make([]uint64, n.store.Shards())
		var huge []chunk.ChunkUsage
		for _, b := range n.store.Branches() {
			err := n.store.Usage(ctx, b, func(c chunk.ChunkUsage) error {
				bytes[c.Shard] += c.Bytes
				if c.Bytes >= placement.DefaultPolicy().MinBytes/2 {
					huge = append(huge, c)
				}
				return nil
			})
			if err != nil && ctx.Err() == nil {
				n.cfg.Logger.Warn("what shards take on disk could not be measured", "branch", b, "error", err)
			}
		}
		slices.SortFunc(huge, func(a, b chunk.ChunkUsage) int { return cmp.Compare(b.Bytes, a.Bytes) })
		n.usage.mu.Lock()
		n.usage.bytes, n.usage.huge = bytes, huge[:min(len(huge), reportedChunks)]
		n.usage.mu.Unlock()
		wait = max(usageEvery, usageShare*time.Since(began))
	}
}

// report is what the leader is told: all shards that cost something, and the chunks that stand out.
func (u *usage) report() []*pb.PlaceUsage {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []*pb.PlaceUsage
	for i := range u.bytes {
		if u.bytes[i] > 0 || u.rates[i] >= 1 {
			out = append(out, &pb.PlaceUsage{Shard: uint32(i), Bytes: u.bytes[i], Reads: uint64(u.rates[i])})
		}
	}
	chunks := map[placement.Chunk]*pb.PlaceUsage{}
	of := func(c placement.Chunk) *pb.PlaceUsage {
		if chunks[c] == nil {
			chunks[c] = &pb.PlaceUsage{Shard: uint32(placement.ShardOf(c, uint32(len(u.bytes)))), Rel: relWire(c), Segment: c.Segment, Reads: uint64(u.hotter[c])}
			out = append(out, chunks[c])
		}
		return chunks[c]
	}
	for _, c := range u.huge {
		of(c.Chunk).Bytes += c.Bytes
	}
	list := make([]placement.Chunk, 0, len(u.hotter))
	for c := range u.hotter {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b placement.Chunk) int { return cmp.Or(cmp.Compare(u.hotter[b], u.hotter[a]), a.Compare(b)) })
	for _, c := range list[:min(len(list), reportedChunks)] {
		of(c)
	}
	return out
}

func relWire(c placement.Chunk) *pb.RelFork {
	return &pb.RelFork{Spc: c.Spc, Db: c.DB, Rel: c.Rel, Fork: uint32(c.Fork)}
}

// chunkFrom is the chunk that a message names, the zero one if it names none.
func chunkFrom(rel *pb.RelFork, segment uint32) placement.Chunk {
	if rel == nil {
		return placement.Chunk{}
	}
	return placement.Chunk{Segment: segment, RelFork: pg.RelFork{
		RelFileLocator: pg.RelFileLocator{Spc: rel.Spc, DB: rel.Db, Rel: rel.Rel}, Fork: pg.ForkNumber(rel.Fork),
	}}
}

// Usage tells another node what this one's shards cost.
func (s *nodeService) Usage(context.Context, *pb.UsageRequest) (*pb.UsageResponse, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	return &pb.UsageResponse{Places: s.n.usage.report()}, nil
}
