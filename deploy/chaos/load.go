package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"everpage/deploy/pgtest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// load is pgbench, and a session that notes each commit that returned to it: those must never be lost, since two nodes had them on disk.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	acked   []int
	last    time.Time
	longest time.Duration // between two commits that returned
	flushed pg.LSN        // the furthest that a node said it has on disk
}

// mark is what tells a row of acks in raw pages.
func mark(id int) string { return fmt.Sprintf("<ack %08d of %08d ack>", id, id) }

func startLoad(ctx context.Context, s *pgtest.Server, from int) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel, last: time.Now()}
	l.done.Go(func() {
		for ctx.Err() == nil {
			_, _ = s.Pgbench(ctx, "-n", "-c", "2", "-T", "600", "-R", "40")
			breathe(ctx)
		}
	})
	l.done.Go(func() { l.acknowledge(ctx, s, from) })
	l.done.Go(func() { l.flushes(ctx, s) })
	return l
}

func (l *load) stop() {
	l.cancel()
	l.done.Wait()
}

// follows makes the gap between the last commit of the load before and the first one of this one count.
func (l *load) follows(before *load) {
	before.mu.Lock()
	last, longest := before.last, before.longest
	before.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.acked) == 0 {
		l.last = last
	}
	l.longest = max(l.longest, longest)
}

func (l *load) acknowledge(ctx context.Context, s *pgtest.Server, id int) {
	for ctx.Err() == nil {
		conn, err := s.Conn(ctx, "postgres")
		for err == nil && ctx.Err() == nil {
			id++
			// A cancelled wait for the nodes returns as if it were committed, with a warning: such a commit is not counted, as no client may.
			bounded, cancel := context.WithTimeout(ctx, 2*time.Minute)
			if _, err = conn.Exec(bounded, fmt.Sprintf("insert into acks values (%d, '%s')", id, mark(id))); err == nil {
				l.mu.Lock()
				l.acked = append(l.acked, id)
				l.longest, l.last = max(l.longest, time.Since(l.last)), time.Now()
				l.mu.Unlock()
			}
			cancel()
			breathe(ctx)
		}
		if conn != nil {
			conn.Close(context.WithoutCancel(ctx))
		}
		breathe(ctx)
	}
}

// acknowledged are the ids whose commit returned until now, and the longest time without one since the last call.
func (l *load) acknowledged() ([]int, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	longest := l.longest
	l.longest = 0
	return append([]int{}, l.acked...), longest
}

// missing counts the ids without a committed row in the newest pages of any of the branches: what an asynchronous standby had not got when it was promoted is on the
// branch that was left then.
func missing(ctx context.Context, c *pageapi.Client, acks pg.RelFileLocator, want []int, branches ...uint32) (int, error) {
	for _, b := range branches {
		there, err := rows(ctx, c, acks, b)
		if err != nil {
			return len(want), fmt.Errorf("branch %d: %w", b, err)
		}
		var still []int
		for _, id := range want {
			if !there[id] {
				still = append(still, id)
			}
		}
		want = still
	}
	return len(want), nil
}

// rows are the ids whose row is committed in the newest pages of a branch, 0 for main.
func rows(ctx context.Context, c *pageapi.Client, acks pg.RelFileLocator, branch uint32) (map[int]bool, error) {
	fork := pg.RelFork{RelFileLocator: acks, Fork: pg.MainFork}
	blocks, end, err := c.RelSize(ctx, pageapi.Position{Branch: branch}, fork)
	if err != nil {
		return nil, err
	}
	at := pageapi.Position{Branch: branch, LSN: end}
	page := make(pg.Page, pg.BlockSize)
	there, segments := map[int]bool{}, map[uint32][]byte{}
	for b := range blocks {
		if _, err := c.Pages(ctx, at, fork, []pg.BlockNumber{b}, page); err != nil {
			return nil, err
		}
		for i := range page.ItemCount() {
			item := page.Item(pg.OffsetNumber(i + 1))
			if item.Length() == 0 {
				continue
			}
			tuple := page[item.Offset() : item.Offset()+item.Length()]
			var id, again int
			from := bytes.Index(tuple, []byte("<ack "))
			if from < 0 {
				continue
			}
			if _, err := fmt.Sscanf(string(tuple[from:]), "<ack %d of %d ack>", &id, &again); err != nil || id != again {
				continue
			}
			xmin := binary.LittleEndian.Uint32(tuple)
			if ok, err := committed(ctx, c, at, segments, xmin); err != nil {
				return nil, err
			} else if ok {
				there[id] = true
			}
		}
	}
	return there, nil
}

// committed asks the commit log at an LSN (TransactionIdGetStatus).
func committed(ctx context.Context, c *pageapi.Client, at pageapi.Position, segments map[uint32][]byte, xid pg.TransactionID) (bool, error) {
	const perByte, committedBits = 4, 1
	page := xid / pg.XactsPerPage
	number := page / pg.SLRUPagesPerSegment
	segment := segments[number]
	if segment == nil {
		var err error
		if segment, err = c.SLRUSegment(ctx, at, pg.Xact, number); err != nil {
			return false, err
		}
		segments[number] = segment
	}
	in := page%pg.SLRUPagesPerSegment*pg.BlockSize + xid%pg.XactsPerPage/perByte
	return int(in) < len(segment) && segment[in]>>(2*(xid%perByte))&3 == committedBits, nil
}
