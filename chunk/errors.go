package chunk

import (
	"errors"
	"fmt"

	"everpage/wal/pg"
)

// What a read may be refused for. Errors that the store returns wrap these with the page, the LSN and the limit.
var (
	ErrNotFound      = errors.New("not found")                // no such relation, block, segment or object at that LSN
	ErrNoBranch      = errors.New("no such branch")           // nothing was ever committed for that branch
	ErrBelowHorizon  = errors.New("below the horizon")        // before the first LSN that the branch answers
	ErrNotYet        = errors.New("not yet received")         // beyond the last LSN that the branch answers
	ErrNotConsistent = errors.New("not yet consistent")       // the base import has not reached its end LSN
	ErrClosed        = errors.New("the store is closed")      //
	ErrNotHere       = errors.New("not on this node")         // the page's versions are on other nodes or in the store; a *NotHereError tells more
	ErrBusy          = errors.New("already in use")           // a second Writer for a branch, a shard that is being dropped
	ErrLocked        = errors.New("in use by another server") // the directory
	ErrFormat        = errors.New("unknown store format")     // the directory was written by another release
	ErrFull          = errors.New("store can't write")        // tables can't be written (disk full, …); what is in the store is still answered
)

// CorruptError says that what is stored for a key and LSN is not what was written. A page is never made of it.
type CorruptError struct {
	Branch uint32
	Key    string // the page or object
	LSN    pg.LSN
	Err    error

	at *prefix // of the page whose stored versions here are meant; nil: it is no page, or came from elsewhere
}

// Error names key, LSN and cause.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("branch %d: %s: stored version %s is corrupt: %v", e.Branch, e.Key, e.LSN, e.Err)
}

// Unwrap gives the cause.
func (e *CorruptError) Unwrap() error { return e.Err }

// DamagedError says that a page's content is not known at an LSN: a record that Everpage can't replay touched it, or WAL refers to a page that
// does not exist. It heals with the next full image.
type DamagedError struct {
	Branch uint32
	Key    pg.PageKey
	LSN    pg.LSN // of the version that can't be made
	Reason string
	Err    error // of Redoer; nil if there was none
}

// Error names page, LSN and cause.
func (e *DamagedError) Error() string {
	return fmt.Sprintf("branch %d: %s is damaged since %s: %s", e.Branch, e.Key, e.LSN, e.Reason)
}

// Unwrap gives Redoer's error.
func (e *DamagedError) Unwrap() error { return e.Err }
