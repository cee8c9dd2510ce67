package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"everpage/deploy/pgtest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// flushes notes what nodes tell the primary that they have on disk: bytes that may stand for commits which returned.
func (l *load) flushes(ctx context.Context, s *pgtest.Server) {
	for ctx.Err() == nil {
		conn, err := s.Conn(ctx, "postgres")
		for err == nil && ctx.Err() == nil {
			var text string
			bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
			err = conn.QueryRow(bounded, "select coalesce(max(flush_lsn), '0/0')::text from pg_stat_replication where application_name ~ '^node'").Scan(&text)
			cancel()
			if at, perr := pg.ParseLSN(text); err == nil && perr == nil {
				l.mu.Lock()
				l.flushed = max(l.flushed, at)
				l.mu.Unlock()
			}
			breathe(ctx)
		}
		if conn != nil {
			conn.Close(context.WithoutCancel(ctx))
		}
		breathe(ctx)
	}
}

// blackout kills the primary and every node, and starts the nodes without the primary: every byte below any flush LSN that one of them ever sent is to be
// readable again, from whichever node is asked.
func (r *run) blackout(ctx context.Context) error {
	if err := r.told(ctx); err != nil {
		return err
	}
	r.readers.still.Lock() // nobody is there to answer
	defer r.readers.still.Unlock()
	if err := r.primary.Kill9(ctx); err != nil {
		return err
	}
	for _, i := range r.random.Perm(nodeCount) {
		r.cluster.Nodes[i].Kill9()
		if err := r.pause(ctx, r.between(0, 300)); err != nil {
			return err
		}
	}
	r.load.mu.Lock()
	flushed := r.load.flushed
	r.load.mu.Unlock()
	if err := r.pause(ctx, r.between(0, 1000)); err != nil {
		return err
	}
	for _, i := range r.random.Perm(nodeCount) {
		if err := r.cluster.Nodes[i].StartAgain(ctx); err != nil {
			return err
		}
	}
	if err := r.readableTo(ctx, flushed); err != nil {
		return err
	}
	return r.primary.StartAgain(ctx)
}

// told waits until it was seen that a node has told the primary of something that it flushed.
func (r *run) told(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		r.load.mu.Lock()
		flushed := r.load.flushed
		r.load.mu.Unlock()
		if flushed != 0 {
			return nil
		}
		if ctx.Err() != nil {
			return errors.New("no node has told the primary of anything that it flushed")
		}
		breathe(ctx)
	}
}

// readableTo waits until each node by itself answers at an LSN.
func (r *run) readableTo(ctx context.Context, at pg.LSN) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	page := make(pg.Page, pg.BlockSize)
	fork := pg.RelFork{RelFileLocator: r.acks, Fork: pg.MainFork}
	for i, n := range r.cluster.Nodes {
		c, err := pageapi.NewClient([]string{n.Address()})
		if err != nil {
			return err
		}
		for {
			if _, err = c.Pages(ctx, pageapi.Position{Branch: r.branch, LSN: at}, fork, []pg.BlockNumber{0}, page); err == nil {
				break
			}
			if r.pause(ctx, 100*time.Millisecond) != nil {
				err = fmt.Errorf("without the primary node%d does not answer at %s, which a node had said it flushed: %w", i+1, at, err)
				break
			}
		}
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
	}
	return nil
}
