package pageapi

import (
	"context"
	"fmt"
	"sync"
	"time"

	"everpage/pageapi/datadir"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// Snapshot reads a whole branch at one LSN through a client: it is the source of data directories. It may be used by many goroutines. A node that is
// away for a while, as for a restart, is waited for: what is read takes long and is the same afterwards.
type Snapshot struct {
	client *Client
	pos    Position
	state  *ClusterState

	mu       sync.Mutex
	segments map[slruSegment][]byte
	found    []datadir.Damage // by Scan
}

type slruSegment struct {
	slru   pg.SLRU
	number uint32
}

var _ datadir.Source = (*Snapshot)(nil)

// Snapshot settles the position and reads all that is not a page there.
func (c *Client) Snapshot(ctx context.Context, at Position) (*Snapshot, error) {
	st, err := c.State(ctx, at)
	if err != nil {
		return nil, err
	}
	// Main may move while the snapshot is read: all of it is of the branch that main was.
	at = Position{Branch: st.Branch, LSN: st.LSN}
	if err := c.damageElsewhere(ctx, at, st); err != nil {
		return nil, err
	}
	return &Snapshot{client: c, pos: at, state: st, segments: map[slruSegment][]byte{}}, nil
}

// damageWait bounds how long nodes are waited for that are asked for what they know of damage.
const damageWait = 3 * time.Second

// damageElsewhere adds the damage that other nodes know of: each knows that of its own shards. A node that doesn't answer is left out: its replicas' pages are
// read from others.
func (c *Client) damageElsewhere(ctx context.Context, at Position, st *ClusterState) error {
	nodes, err := c.anyNodes(at)
	if err != nil || len(nodes) < 2 {
		return err
	}
	short, cancel := context.WithTimeout(ctx, damageWait)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	known := map[pg.PageKey]bool{}
	for _, d := range st.Damage {
		known[d.Key] = true
	}
	for _, n := range nodes {
		if n.suspect.Load() {
			continue
		}
		wg.Go(func() {
			req := &pb.GetClusterStateRequest{At: positionToWire(at), TimeoutMs: timeoutMS(short)}
			resp, err := n.pages.GetClusterState(short, req)
			if err != nil || check(n.address, "GetClusterState", req, unary, resp) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, d := range damageFromWire(resp.Damage) {
				if !known[d.Key] {
					known[d.Key] = true
					st.Damage = append(st.Damage, d)
				}
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// LSN is the one that is read.
func (s *Snapshot) LSN() pg.LSN { return s.pos.LSN }

// History is the .history file of the LSN's timeline, empty for 1.
func (s *Snapshot) History() []byte { return s.state.TimelineHistory }

// own refuses another LSN than the snapshot's.
func (s *Snapshot) own(at pg.LSN) error {
	if at != s.pos.LSN {
		return fmt.Errorf("a snapshot at %s was asked for %s", s.pos.LSN, at)
	}
	return nil
}

// Cluster implements datadir.Source.
func (s *Snapshot) Cluster(_ context.Context, at pg.LSN) (*datadir.Cluster, error) {
	return &s.state.Cluster, s.own(at)
}

// Relations implements datadir.Source.
func (s *Snapshot) Relations(ctx context.Context, at pg.LSN, fn func(datadir.Relation) error) error {
	if err := s.own(at); err != nil {
		return err
	}
	_, err := s.client.Relations(ctx, s.pos, func(fork pg.RelFork, blocks pg.BlockNumber) error {
		return fn(datadir.Relation{RelFork: fork, Blocks: blocks})
	})
	return err
}

// SLRUSegments implements datadir.Source.
func (s *Snapshot) SLRUSegments(ctx context.Context, at pg.LSN, slru pg.SLRU) ([]datadir.SLRUSegment, error) {
	if err := s.own(at); err != nil {
		return nil, err
	}
	list, err := s.client.SLRUSegments(ctx, s.pos, slru)
	if err != nil {
		return nil, err
	}
	out := make([]datadir.SLRUSegment, len(list))
	for i, seg := range list {
		out[i] = datadir.SLRUSegment{Number: seg.Number, Pages: seg.Pages}
	}
	return out, nil
}

// ReadBlocks implements datadir.Source.
func (s *Snapshot) ReadBlocks(ctx context.Context, fork pg.RelFork, first pg.BlockNumber, at pg.LSN, dst []byte) error {
	if err := s.own(at); err != nil {
		return err
	}
	n := uint32(len(dst) / pg.BlockSize)
	if slru, ok := (pg.PageKey{RelFork: fork}).SLRU(); ok {
		return s.readSLRU(ctx, slru, first, dst)
	}
	blocks := make([]pg.BlockNumber, n)
	for i := range blocks {
		blocks[i] = first + uint32(i)
	}
	return patiently(ctx, func() error {
		_, err := s.client.Pages(ctx, s.pos, fork, blocks, dst)
		return err
	})
}

const (
	awayFor   = time.Minute // how long a node may not answer before a snapshot gives up
	retryWait = 200 * time.Millisecond
)

// patiently calls read again while no node answers.
func patiently(ctx context.Context, read func() error) error {
	var timer *time.Timer
	for began := time.Now(); ; {
		err := read()
		if CodeOf(err) != Unavailable || ctx.Err() != nil || time.Since(began) > awayFor {
			return err
		}
		if timer == nil {
			timer = time.NewTimer(retryWait)
			defer timer.Stop()
		} else {
			timer.Reset(retryWait)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}

// readSLRU copies pages out of their segments; pages past a segment's end are zero.
func (s *Snapshot) readSLRU(ctx context.Context, slru pg.SLRU, first uint32, dst []byte) error {
	for i := uint32(0); int(i) < len(dst)/pg.BlockSize; i++ {
		page := first + i
		segment, err := s.segment(ctx, slruSegment{slru, page / pg.SLRUPagesPerSegment})
		if err != nil {
			return err
		}
		out := dst[i*pg.BlockSize : (i+1)*pg.BlockSize]
		clear(out)
		if offset := int(page%pg.SLRUPagesPerSegment) * pg.BlockSize; offset < len(segment) {
			copy(out, segment[offset:offset+pg.BlockSize])
		}
	}
	return nil
}

// segment fetches an SLRU segment; the last one of each SLRU is kept, as its pages are read one after another.
func (s *Snapshot) segment(ctx context.Context, key slruSegment) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.segments[key]; ok {
		return b, nil
	}
	var b []byte
	err := patiently(ctx, func() (err error) {
		b, err = s.client.SLRUSegment(ctx, s.pos, key.slru, key.number)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(b)%pg.BlockSize != 0 {
		return nil, Errorf(Internal, "segment %s of %s has %d bytes", pg.SLRUSegmentName(key.number), key.slru, len(b))
	}
	for k := range s.segments {
		if k.slru == key.slru {
			delete(s.segments, k)
		}
	}
	s.segments[key] = b
	return b, nil
}

// Damaged implements datadir.Source: what nodes know, and what Scan found.
func (s *Snapshot) Damaged(_ context.Context, at pg.LSN, fn func(datadir.Damage) error) error {
	if err := s.own(at); err != nil {
		return err
	}
	for _, d := range s.state.Damage {
		err := fmt.Errorf("block %d: %s (since %s)", d.Key.Block, d.Reason, d.Since)
		if err := fn(datadir.Damage{RelFork: d.Key.RelFork, Err: err}); err != nil {
			return err
		}
	}
	s.mu.Lock()
	found := s.found
	s.mu.Unlock()
	for _, d := range found {
		if err := fn(d); err != nil {
			return err
		}
	}
	return nil
}
