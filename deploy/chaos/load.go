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
	return l
}

func (l *load) stop() {
	l.cancel()
	l.done.Wait()
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

// missing counts the ids without a committed row, in the newest pages that the cluster serves.
func missing(ctx context.Context, c *pageapi.Client, acks pg.RelFileLocator, want []int) (int, error) {
	fork := pg.RelFork{RelFileLocator: acks, Fork: pg.MainFork}
	blocks, at, err := c.RelSize(ctx, pageapi.Position{}, fork)
	if err != nil {
		return len(want), err
	}
	page := make(pg.Page, pg.BlockSize)
	xids := map[int]pg.TransactionID{}
	for b := range blocks {
		if _, err := c.Pages(ctx, pageapi.Position{LSN: at}, fork, []pg.BlockNumber{b}, page); err != nil {
			return len(want), err
		}
		for i := range page.ItemCount() {
			item := page.Item(pg.OffsetNumber(i + 1))
			if item.Length() == 0 {
				continue
			}
			tuple := page[item.Offset() : item.Offset()+item.Length()]
			var id, again int
			if from := bytes.Index(tuple, []byte("<ack ")); from >= 0 {
				if _, err := fmt.Sscanf(string(tuple[from:]), "<ack %d of %d ack>", &id, &again); err == nil && id == again {
					xids[id] = binary.LittleEndian.Uint32(tuple) // t_xmin
				}
			}
		}
	}
	segments := map[uint32][]byte{}
	n := 0
	for _, id := range want {
		xid, ok := xids[id]
		if ok {
			if ok, err = committed(ctx, c, at, segments, xid); err != nil {
				return len(want), err
			}
		}
		if !ok {
			n++
		}
	}
	return n, nil
}

// committed asks the commit log at an LSN (TransactionIdGetStatus).
func committed(ctx context.Context, c *pageapi.Client, at pg.LSN, segments map[uint32][]byte, xid pg.TransactionID) (bool, error) {
	const perByte, committedBits = 4, 1
	page := xid / pg.XactsPerPage
	number := page / pg.SLRUPagesPerSegment
	segment := segments[number]
	if segment == nil {
		var err error
		if segment, err = c.SLRUSegment(ctx, pageapi.Position{LSN: at}, pg.Xact, number); err != nil {
			return false, err
		}
		segments[number] = segment
	}
	in := page%pg.SLRUPagesPerSegment*pg.BlockSize + xid%pg.XactsPerPage/perByte
	return int(in) < len(segment) && segment[in]>>(2*(xid%perByte))&3 == committedBits, nil
}
