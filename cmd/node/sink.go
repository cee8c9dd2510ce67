package node

import (
	"context"

	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// sink keeps received WAL in the spool.
type sink struct {
	spool   *wal.Spool
	history wal.History
	first   pg.LSN // where receiving starts if the spool is empty
	applied func() pg.LSN
}

// Resume makes sure that all that is told is on disk.
func (s *sink) Resume(context.Context) (stream.Position, error) {
	durable, err := s.spool.Sync()
	if err != nil {
		return stream.Position{}, err
	}
	p := stream.Position{Timeline: s.history.Timeline, First: s.first, Next: s.first, History: s.history}
	if durable != 0 {
		p.First, p.Next = s.spool.First(), durable
	}
	return p, nil
}

func (s *sink) ReadWAL(p []byte, at pg.LSN) error {
	for len(p) > 0 {
		n, err := s.spool.ReadWAL(p, at)
		if err != nil {
			return err
		}
		p, at = p[n:], at+pg.LSN(n)
	}
	return nil
}

func (s *sink) Append(at pg.LSN, p []byte) error { return s.spool.Append(at, p) }

func (s *sink) Flush() (pg.LSN, error) { return s.spool.Sync() }

func (s *sink) Applied() pg.LSN { return s.applied() }
