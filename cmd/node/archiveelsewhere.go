package node

import (
	"context"
	"errors"
	"fmt"

	"everpage/backup/archive"
	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal"
	"everpage/wal/pg"
)

// elsewhere reads WAL out of other nodes' spools: all keep what the store lacks.
func (f *follower) elsewhere(ctx context.Context, st state, from, to pg.LSN) (wal.Source, func(), error) {
	others := f.n.others()
	if len(others) == 0 {
		return nil, nil, archive.ErrNowhere
	}
	var errs []error
	for _, address := range others {
		src, done, err := f.peerWAL(ctx, address, st, from, to)
		if err == nil {
			f.log.Info("WAL that the store lacks comes from another node", "from", from, "to", to, "of", address)
			return src, done, nil
		}
		errs = append(errs, err)
	}
	return nil, nil, fmt.Errorf("no other node gives it: %w", errors.Join(errs...))
}

// peerWAL begins to read at one node, which must have all of it.
func (f *follower) peerWAL(ctx context.Context, address string, st state, from, to pg.LSN) (wal.Source, func(), error) {
	c, err := f.n.peers.at(address)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s, err := c.FetchWAL(ctx, &pb.FetchWALRequest{Branch: st.Branch, Timeline: st.Timeline, From: uint64(from)})
	if err != nil {
		cancel()
		return nil, nil, pageapi.CallError(address, err)
	}
	src := &peerSource{r: &walStream{stream: s, address: address}, at: from}
	err = src.more()
	if err == nil && pg.LSN(src.r.durable) < to {
		err = fmt.Errorf("node %s has WAL up to %s only", address, pg.LSN(src.r.durable))
	}
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return src, cancel, nil
}

// peerSource is the WAL of a peer, which can only be read in order.
type peerSource struct {
	r   *walStream
	at  pg.LSN
	buf []byte
}

func (p *peerSource) more() error {
	more, err := p.r.next()
	switch {
	case err != nil:
		return err
	case !more:
		return fmt.Errorf("node %s: its WAL ends at %s", p.r.address, p.at)
	case pg.LSN(p.r.at) != p.at:
		return fmt.Errorf("node %s sends WAL from %s on, %s was asked for", p.r.address, pg.LSN(p.r.at), p.at)
	}
	p.buf = p.r.wal
	return nil
}

// ReadWAL implements wal.Source.
func (p *peerSource) ReadWAL(b []byte, at pg.LSN) (int, error) {
	if at != p.at {
		return 0, fmt.Errorf("WAL of node %s is read at %s behind %s", p.r.address, at, p.at)
	}
	for len(p.buf) == 0 {
		if err := p.more(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.buf)
	p.buf, p.at = p.buf[n:], p.at+pg.LSN(n)
	return n, nil
}
