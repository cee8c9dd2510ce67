package cluster

import (
	"bytes"
	"context"
	"sync"
	"time"

	"everpage/cluster/catalog"
	"everpage/cluster/command"
)

const (
	// gatherFor is how long the leader gathers reports of chunks before it proposes them.
	gatherFor = time.Second
	// reportBytes bounds what one entry of the log tells of chunks.
	reportBytes = 256 << 10
)

// Report tells the cluster what this node has seen of chunks. The leader gathers what the nodes report and proposes it together, so that it takes few entries of
// the log however many chunks are born at once.
func (c *Cluster) Report(ctx context.Context, b *catalog.Batch) error {
	for _, piece := range b.Encode(reportBytes) {
		if _, err := c.Propose(ctx, &command.ReportChunks{Reports: piece}); err != nil {
			return err
		}
	}
	return nil
}

// gathering are reports that wait at the leader.
type gathering struct {
	mu      sync.Mutex
	batch   catalog.Batch
	waiting []chan gathered
	wake    chan struct{}
}

type gathered struct {
	o   Outcome
	err error
}

// gather has reports proposed with those of others.
func (c *Cluster) gather(ctx context.Context, r *command.ReportChunks) (Outcome, error) {
	list, err := catalog.Decode(bytes.NewReader(r.Reports))
	if err != nil {
		return Outcome{}, err
	}
	g := &c.gathering
	w := make(chan gathered, 1)
	g.mu.Lock()
	for _, e := range list {
		g.batch.Add(e)
	}
	g.waiting = append(g.waiting, w)
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
	select {
	case r := <-w:
		return r.o, r.err
	case <-ctx.Done():
		return Outcome{}, context.Cause(ctx)
	}
}

// proposeGathered proposes what was gathered until ctx ends.
func (c *Cluster) proposeGathered(ctx context.Context) error {
	g := &c.gathering
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.wake:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(gatherFor):
		}
		g.mu.Lock()
		batch, waiting := g.batch, g.waiting
		g.batch, g.waiting = catalog.Batch{}, nil
		g.mu.Unlock()
		var r gathered
		for _, piece := range batch.Encode(reportBytes) {
			if r.o, r.err = c.applyHere(ctx, &command.ReportChunks{Reports: piece}); r.err != nil || r.o.Refused != "" {
				break
			}
		}
		for _, w := range waiting {
			w <- r
		}
	}
}
