package stream

import (
	"context"

	"everpage/wal"
	"everpage/wal/pg"
)

// Sink keeps the WAL that a Receiver receives. Resume is never called while another call is under way. Append and ReadWAL are called by one
// goroutine, Flush by another at the same time, Applied by any.
type Sink interface {
	// Resume tells what is held, before each connection. What it reports must be durable: after an error of Append or Flush, and at the
	// first call, that takes an fsync or giving up the part in doubt. An error, as of a disk that is still full, puts the connection off.
	Resume(ctx context.Context) (Position, error)
	// ReadWAL fills p with the WAL held at an LSN between First and Next.
	ReadWAL(p []byte, at pg.LSN) error
	// Append takes WAL. The first call begins at Next, each one where the last ended. p is valid until it returns. It may block for as
	// long as the sink cannot take more, within the Receiver's stall timeout.
	Append(at pg.LSN, p []byte) error
	// Flush makes what was appended before the call durable and returns the LSN up to which it may be acknowledged. A sink that counts whole
	// records stays behind the bytes of a record whose end has not come yet.
	Flush() (pg.LSN, error)
	// Applied is the LSN up to which pages can be read.
	Applied() pg.LSN
}

// Position is what a sink holds: the WAL of one timeline from First to Next, durably.
type Position struct {
	Timeline pg.TimelineID
	First    pg.LSN      // at the start of a segment, so that segment files are whole
	Next     pg.LSN      // the next byte to receive; equal to First if nothing is held yet
	History  wal.History // of Timeline: its ancestors and where they were left
}
