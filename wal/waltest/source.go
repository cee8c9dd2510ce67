package waltest

import (
	"everpage/wal"
	"everpage/wal/pg"
)

// Source is WAL in memory. Bytes from Limit on count as not written yet if Growing, else as not there.
type Source struct {
	Base    pg.LSN
	Data    []byte
	Limit   pg.LSN
	Growing bool
	Chunk   int   // bytes handed out at once at most, 0: as many as asked for
	Err     error // if not nil, returned by the next read, once

	Reads int64 // bytes handed out so far
}

// ReadWAL implements wal.Source.
func (s *Source) ReadWAL(p []byte, at pg.LSN) (int, error) {
	if err := s.Err; err != nil {
		s.Err = nil
		return 0, err
	}
	end := min(s.Limit, s.Base+pg.LSN(len(s.Data)))
	if at < s.Base || at >= end {
		if s.Growing && at >= end {
			return 0, wal.ErrMore
		}
		return 0, &wal.EndError{LSN: at, Reason: "no more bytes"}
	}
	if s.Chunk > 0 {
		p = p[:min(len(p), s.Chunk)]
	}
	n := copy(p, s.Data[at-s.Base:end-s.Base])
	s.Reads += int64(n)
	return n, nil
}
