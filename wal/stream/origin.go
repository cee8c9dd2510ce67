package stream

import (
	"fmt"

	"everpage/wal"
	"everpage/wal/pg"
)

// expect is the cluster that a receiver follows.
type expect struct {
	systemID uint64
	major    pg.Major
	segment  wal.SegmentSize
}

// check refuses a server that is not of the cluster or cannot be followed.
func (e expect) check(s Server) error {
	if s.Major != e.major {
		return fmt.Errorf("%w: %d, we follow %d; correct the conninfo, or after pg_upgrade detach and attach anew", ErrMajor, s.Major, e.major)
	}
	if s.SystemID != e.systemID {
		return fmt.Errorf("%w: its system identifier is %d, ours %d; correct the conninfo, or detach and attach to follow the other one", ErrSystem, s.SystemID, e.systemID)
	}
	if s.SegmentSize != e.segment {
		return fmt.Errorf("%w: %d bytes, ours has %d; after pg_resetwal the cluster must be attached anew", ErrSegment, s.SegmentSize, e.segment)
	}
	return s.CheckSource()
}

// origin is where a stream starts.
type origin struct {
	start    pg.LSN // what is asked for: the start of a page
	limit    pg.LSN // what comes before is held and is compared; start if nothing is held
	switched bool   // the server has left our timeline
	at       pg.LSN // where
	next     pg.TimelineID
}

// locate finds where to start streaming, or why a server whose newest timeline has this history cannot be followed.
//
// The stream starts with the page that holds the last byte we have, which is thus fetched again and compared: a restored copy of the primary
// or one that lost its last WAL has other bytes there. Where nothing is held it starts with a segment, as walreceiver always does.
func locate(pos Position, s Server, h wal.History, segment wal.SegmentSize) (origin, error) {
	if segment.Offset(pos.First) != 0 || pos.Next < pos.First || pos.First == 0 || pos.History.Timeline != pos.Timeline {
		return origin{}, fmt.Errorf("position %s to %s on timeline %d (history of %d) does not begin with a segment", pos.First, pos.Next, pos.Timeline, pos.History.Timeline)
	}
	if err := descends(pos.History, h); err != nil {
		return origin{}, err
	}
	o := origin{limit: pos.Next}
	o.at, o.next, o.switched = h.SwitchFrom(pos.Timeline)
	switch {
	case o.switched:
		o.limit = min(pos.Next, o.at)
	case s.Position < pos.Next:
		return origin{}, fmt.Errorf("%w: it ends at %s, ours at %s: the server was rolled back or restored from a copy; detach and attach to follow it nevertheless", ErrBehind, s.Position, pos.Next)
	}
	o.start = o.limit
	if pos.First < o.limit {
		o.start = max(pos.First, (o.limit-1)&^(pg.BlockSize-1))
	}
	return o, nil
}

// descends sees that a server's history goes through all of ours.
func descends(ours, server wal.History) error {
	if server.Timeline < ours.Timeline {
		return fmt.Errorf("%w: it is on timeline %d, we follow %d: it is a copy from before the last promotion, or the old primary", ErrTimeline, server.Timeline, ours.Timeline)
	}
	for i, e := range ours.Parents {
		if i >= len(server.Parents) || server.Parents[i].Timeline != e.Timeline || server.Parents[i].Switch != e.Switch {
			return fmt.Errorf("%w: we left timeline %d at %s, its history (%v) does not", ErrTimeline, e.Timeline, e.Switch, server.Parents)
		}
	}
	if server.Timeline == ours.Timeline && len(server.Parents) != len(ours.Parents) || !server.Member(ours.Timeline) {
		return fmt.Errorf("%w: our timeline %d is not in the history of its timeline %d (%v)", ErrTimeline, ours.Timeline, server.Timeline, server.Parents)
	}
	if server.Timeline > ours.Timeline && server.Parents[len(ours.Parents)].Timeline != ours.Timeline {
		return fmt.Errorf("%w: its history (%v) comes to timeline %d another way than ours", ErrTimeline, server.Parents, ours.Timeline)
	}
	return nil
}
