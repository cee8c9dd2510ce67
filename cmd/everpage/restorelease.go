package main

import (
	"context"
	"time"

	"everpage/pageapi"
)

// restoreLease is for how long a restore pins its LSN at a time: it is renewed until all is written, and ends by itself where nobody does that any more.
const restoreLease = time.Minute

// hold keeps an LSN from going out of the window until release is called.
func hold(ctx context.Context, c *pageapi.Client, pos pageapi.Position) (release func(), err error) {
	l, err := c.Lease(ctx, pageapi.Lease{Pos: pos, Holder: "restore"}, restoreLease)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(restoreLease / 6)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			short, end := context.WithTimeout(ctx, restoreLease/6)
			if renewed, err := c.Lease(short, l, restoreLease); err == nil { // else the next one tries again
				l = renewed
			}
			end()
		}
	}()
	return func() {
		cancel()
		<-done
		short, end := context.WithTimeout(context.WithoutCancel(ctx), restoreLease/12)
		defer end()
		_, _ = c.Lease(short, l, 0) // it ends by itself
	}, nil
}
