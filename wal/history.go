package wal

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"everpage/wal/pg"
)

// History is a timeline's descent: what a .history file says. Timeline 1 has no file and no parents.
type History struct {
	Timeline pg.TimelineID
	Parents  []HistoryEntry // oldest first; timelines and switch points ascend
}

// HistoryEntry is a timeline that was left at Switch: WAL from Switch on belongs to the next one.
type HistoryEntry struct {
	Timeline pg.TimelineID `json:"timeline"`
	Switch   pg.LSN        `json:"switch"`
	Reason   string        `json:"reason,omitempty"`
}

// HistoryName is the name of a timeline's .history file.
func HistoryName(tli pg.TimelineID) string { return fmt.Sprintf("%08X.history", tli) }

// ParseHistoryName reads the name of a .history file.
func ParseHistoryName(name string) (pg.TimelineID, error) {
	base, ok := strings.CutSuffix(name, ".history")
	if !ok || len(base) != 8 || !isHex(base) {
		return 0, fmt.Errorf("%q is not the name of a timeline history file", name)
	}
	return hex8(base), nil
}

// ParseHistory reads the .history file of timeline tli (readTimeLineHistory): a line per parent with its number, the LSN it was left at and
// a reason, behind tabs or blanks; comments start with #. Numbers must ascend and stay below tli.
func ParseHistory(tli pg.TimelineID, data []byte) (History, error) {
	h := History{Timeline: tli}
	for n, line := range strings.Split(string(data), "\n") {
		text := strings.TrimLeft(strings.TrimSuffix(line, "\r"), " \t")
		if text == "" || text[0] == '#' {
			continue
		}
		bad := func(why string) (History, error) {
			return History{}, fmt.Errorf("history of timeline %d, line %d: %s", tli, n+1, why)
		}
		first, rest, ok := cutBlank(text)
		if !ok {
			return bad("want a timeline, a switch point and a reason")
		}
		id, err := strconv.ParseUint(first, 10, 32)
		if err != nil || id == 0 {
			return bad(fmt.Sprintf("%q is not a timeline", first))
		}
		second, reason, _ := cutBlank(rest)
		at, err := pg.ParseLSN(second)
		if err != nil {
			return bad(err.Error())
		}
		h.Parents = append(h.Parents, HistoryEntry{Timeline: pg.TimelineID(id), Switch: at, Reason: reason})
	}
	return h, h.Check()
}

// cutBlank cuts at the first run of blanks.
func cutBlank(s string) (word, rest string, found bool) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, "", false
	}
	return s[:i], strings.TrimLeft(s[i:], " \t"), true
}

// Check tells what is wrong with a history: timelines must ascend, switch points must not descend.
func (h History) Check() error {
	if h.Timeline == 0 {
		return errors.New("timeline 0 has no history")
	}
	var last HistoryEntry
	for _, e := range h.Parents {
		if e.Timeline <= last.Timeline || e.Timeline >= h.Timeline {
			return fmt.Errorf("history of timeline %d: timeline %d is out of order", h.Timeline, e.Timeline)
		}
		if e.Switch < last.Switch {
			return fmt.Errorf("history of timeline %d: timeline %d was left at %s, before its parent at %s", h.Timeline, e.Timeline, e.Switch, last.Switch)
		}
		last = e
	}
	return nil
}

// Format writes the .history file as a server does (writeTimeLineHistory).
func (h History) Format() []byte {
	var b strings.Builder
	for _, e := range h.Parents {
		fmt.Fprintf(&b, "%d\t%s\t%s\n", e.Timeline, e.Switch, e.Reason)
	}
	return []byte(b.String())
}

// TimelineAt is the timeline that WAL starting at lsn belongs to (tliOfPointInHistory).
func (h History) TimelineAt(lsn pg.LSN) pg.TimelineID {
	for _, e := range h.Parents {
		if lsn < e.Switch {
			return e.Timeline
		}
	}
	return h.Timeline
}

// Member tells whether tli is this timeline or an ancestor (tliInHistory).
func (h History) Member(tli pg.TimelineID) bool {
	_, _, ok := h.Range(tli)
	return ok
}

// Range is the part of the WAL that timeline tli gave to this history: from begin up to end. end is 0 for the newest timeline, which
// has none yet. ok is false if tli is no member.
func (h History) Range(tli pg.TimelineID) (begin, end pg.LSN, ok bool) {
	for _, e := range h.Parents {
		if e.Timeline == tli {
			return begin, e.Switch, true
		}
		begin = e.Switch
	}
	return begin, 0, tli == h.Timeline
}

// ContainsBranch tells whether this history goes through the point lsn of timeline tli: whether WAL received on tli up to lsn is this history's
// own. It is what must hold before a follower of tli at lsn goes on with a server of this history.
func (h History) ContainsBranch(tli pg.TimelineID, lsn pg.LSN) bool {
	_, end, ok := h.Range(tli)
	return ok && (end == 0 || lsn <= end)
}

// SwitchFrom is where timeline tli was left and which timeline followed. ok is false if tli is no ancestor.
func (h History) SwitchFrom(tli pg.TimelineID) (at pg.LSN, next pg.TimelineID, ok bool) {
	for i, e := range h.Parents {
		if e.Timeline != tli {
			continue
		}
		if i+1 < len(h.Parents) {
			return e.Switch, h.Parents[i+1].Timeline, true
		}
		return e.Switch, h.Timeline, true
	}
	return 0, 0, false
}
