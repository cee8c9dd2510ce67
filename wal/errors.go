package wal

import (
	"errors"
	"fmt"

	"everpage/wal/pg"
)

// ErrMore says that the bytes asked for, or the rest of the record being read, were not written yet. Asking again later goes on where it stopped.
var ErrMore = errors.New("WAL not written yet")

// CorruptError says that WAL which should be there and valid is not.
type CorruptError struct {
	LSN    pg.LSN // of the record, page or byte at fault
	Reason string
}

func (e *CorruptError) Error() string { return fmt.Sprintf("invalid WAL at %s: %s", e.LSN, e.Reason) }

// EndError says that WAL ends here, as far as can be known: nothing that is valid follows.
type EndError struct {
	LSN    pg.LSN // where the next record would start
	Reason string // what stands there instead
}

func (e *EndError) Error() string { return fmt.Sprintf("WAL ends at %s: %s", e.LSN, e.Reason) }

// IsEnd tells whether err is the clean end of WAL.
func IsEnd(err error) bool {
	if err == nil { // the usual case, where errors.As's target need not be allocated
		return false
	}
	var e *EndError
	return errors.As(err, &e)
}

// invalidError is what the reader found wrong; whether that is the end or corruption is decided by Reader.judge.
type invalidError struct {
	at     pg.LSN
	reason string
}

func (e *invalidError) Error() string { return fmt.Sprintf("%s at %s", e.reason, e.at) }

func invalid(at pg.LSN, format string, args ...any) error {
	return &invalidError{at: at, reason: fmt.Sprintf(format, args...)}
}
