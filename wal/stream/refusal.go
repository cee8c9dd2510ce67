package stream

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"everpage/wal"
	"everpage/wal/pg"
)

// Why a server is not streamed from, or no longer. ErrStandby and ErrWALLevel are of this list too.
var (
	ErrSystem     = errors.New("another database cluster answers at the address")
	ErrMajor      = errors.New("server has another major version")
	ErrSegment    = errors.New("server has another WAL segment size")
	ErrTimeline   = errors.New("server is not on a descendant of our timeline")
	ErrBehind     = errors.New("server's WAL ends before ours")
	ErrDiverged   = errors.New("server's WAL differs from ours")
	ErrWALRemoved = errors.New("server has removed WAL that we need")
	ErrShutdown   = errors.New("server shut down")
	ErrSilent     = errors.New("server is silent")
	ErrStalled    = errors.New("received WAL was not taken in time")
)

// refusals end Run: no retry mends them without someone's decision.
var refusals = []error{ErrSystem, ErrMajor, ErrSegment, ErrTimeline, ErrBehind, ErrDiverged, ErrWALRemoved, ErrWALLevel, ErrSlotMissing, ErrSlotLost, ErrSlotLogical,
	ErrUnsupported, ErrConninfo}

// Refused tells whether an error is one that trying again does not mend: another cluster, diverged WAL, a hole, or WAL that a sink found
// invalid or different from what it holds.
func Refused(err error) bool {
	var corrupt *wal.CorruptError
	var diverged *wal.DivergedError
	if errors.As(err, &corrupt) || errors.As(err, &diverged) {
		return true
	}
	for _, r := range refusals {
		if errors.Is(err, r) {
			return true
		}
	}
	return false
}

// EndOfTimeline ends a Run when the primary has gone on to another timeline, as after a promotion. All WAL of Timeline up to
// min(Switch, End) is held and durable. What is held beyond Switch is not part of the new timeline.
type EndOfTimeline struct {
	Timeline pg.TimelineID // the one that was followed
	End      pg.LSN        // end of what is held of it
	Switch   pg.LSN        // where the primary's history left it
	Next     pg.TimelineID // the one that follows it in the primary's history
	Newest   pg.TimelineID // the one the primary is on
	History  wal.History   // of Newest, as the primary has it
}

// NextHistory is the history of the timeline that follows.
func (e *EndOfTimeline) NextHistory() (wal.History, bool) {
	for i, p := range e.History.Parents {
		if p.Timeline == e.Timeline && p.Switch == e.Switch {
			h := wal.History{Timeline: e.Next, Parents: e.History.Parents[: i+1 : i+1]}
			return h, h.Check() == nil && e.History.Member(e.Next)
		}
	}
	return wal.History{}, false
}

func (e *EndOfTimeline) Error() string {
	s := fmt.Sprintf("timeline %d was left at %s for timeline %d", e.Timeline, e.Switch, e.Next)
	if e.End > e.Switch {
		s += fmt.Sprintf("; the WAL held from there to %s is on no other timeline", e.End)
	}
	return s
}

// SinkError is a failure to keep received WAL. The connection was closed, so that the server does not wait for acknowledgements.
type SinkError struct {
	Op  string // resume, read, append or flush
	Err error
}

func (e *SinkError) Error() string { return "received WAL: " + e.Op + ": " + e.Err.Error() }

// Unwrap gives the cause.
func (e *SinkError) Unwrap() error { return e.Err }

// adviseSlot adds the next step to an error that says that our slot is gone.
func adviseSlot(slot string, from pg.LSN, err error) error {
	if !errors.Is(err, ErrSlotMissing) {
		return err
	}
	return fmt.Errorf("%w; WAL may be missing from %s on: make the slot again with %s and see whether the server still has it", err, from, CreateSlotSQL(slot))
}

// explainStream finds out why the server ended or refused the stream.
func explainStream(slot string, from pg.LSN, err error) error {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return err
	}
	switch pe.Code {
	case codeUndefinedObject:
		return adviseSlot(slot, from, fmt.Errorf("slot %s: %w: %w", slot, ErrSlotMissing, err))
	case codeObjectInUse:
		return fmt.Errorf("slot %s: %w: %w", slot, ErrSlotActive, err)
	case codeUndefinedFile:
		return fmt.Errorf("%w from %s: %w; take it from an archive, another node or the store, or attach anew", ErrWALRemoved, from, err)
	case codeNotInState:
		if pe.Routine == "StartReplication" {
			return fmt.Errorf("slot %s: %w: %w", slot, ErrSlotLogical, err)
		}
		return fmt.Errorf("slot %s: %w: %w", slot, ErrSlotLost, err)
	case codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow:
		return fmt.Errorf("%w: %w", ErrShutdown, err)
	}
	if pe.Routine == "StartReplication" {
		return fmt.Errorf("%w: %w", ErrDiverged, err)
	}
	return err
}
