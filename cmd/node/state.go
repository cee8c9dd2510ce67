package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"everpage/cluster"
	"everpage/cluster/fsm"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// state is what the cluster agreed on that following needs, as seen from this node.
type state struct {
	Node string

	// What is followed. Conninfo is empty while nothing is.
	Conninfo         string
	Slot             string // this node's
	Primary          string // where and as whom, for people
	Major            pg.Major
	SystemIdentifier uint64
	WALSegmentSize   uint32
	Hole             string

	// The branch that main names.
	Branch   uint32
	Timeline pg.TimelineID
	History  wal.History   // of Timeline
	Imported bool          // its base backup is complete
	Importer string        // id of the node that takes the base backup which is not there yet
	Mine     bool          // that is this node
	Start    pg.LSN        // of the base backup
	Parent   uint32        // the branch that it forked off, 0: it began with the base backup
	Fork     pg.LSN        // where
	Newest   pg.TimelineID // of the branch that main names: servers on an older one are not asked
	Until    pg.LSN        // it is followed up to here only, where another branch forks off; 0: for ever
}

// viewOf picks out of the cluster's state what following needs.
func viewOf(cfg *Config, id string, s *cluster.State) (state, error) {
	f := s.Follow
	st := state{
		Node: cfg.Node, Conninfo: f.Conninfo, Primary: f.Primary, Major: f.Major, SystemIdentifier: f.SystemIdentifier, WALSegmentSize: f.WALSegmentSize, Hole: f.Hole,
		Importer: f.Importer, Mine: f.Importer == id,
	}
	var err error
	if st.Slot, err = stream.NodeSlot(cfg.Cluster, cfg.Node); err != nil {
		return st, err
	}
	b := s.Branch(0)
	if b == nil {
		return st, nil
	}
	st.Newest = b.Timeline
	return st.of(b)
}

// line is what servers must be on.
func (s state) line() stream.Line {
	return stream.Line{SystemID: s.SystemIdentifier, Timeline: s.Newest}
}

// of is the state for another branch of the same cluster.
func (s state) of(b *fsm.Branch) (state, error) {
	s.Branch, s.Timeline, s.Imported, s.Start, s.Parent, s.Fork, s.Until = b.Number, b.Timeline, b.Imported, b.Start, b.Parent, b.Fork, 0
	var err error
	s.History, err = historyOf(b)
	return s, err
}

// historyOf is the descent of a branch's timeline.
func historyOf(b *fsm.Branch) (wal.History, error) {
	h := wal.History{Timeline: b.Timeline}
	if len(b.History) == 0 {
		return h, nil
	}
	h, err := wal.ParseHistory(b.Timeline, b.History)
	if err != nil {
		return h, fmt.Errorf("branch %d: %w", b.Number, err)
	}
	return h, nil
}

// lineOf lists a branch and those that it descends from, the oldest first.
func lineOf(s *cluster.State, branch uint32) []*fsm.Branch {
	var line []*fsm.Branch
	for b := s.Branch(branch); b != nil && len(line) <= len(s.Branches); b = s.Branch(b.Parent) {
		line = append(line, b)
		if b.Parent == 0 {
			break
		}
	}
	slices.Reverse(line)
	return line
}

// differs tells whether what is followed must be followed anew. using is the branch that it is followed into. While a hole has this node import anew, main is the
// old branch still.
func (s state) differs(next state, using uint32) bool {
	switch {
	case s.Conninfo != next.Conninfo || s.Slot != next.Slot || s.SystemIdentifier != next.SystemIdentifier || s.Major != next.Major:
		return true
	case !next.Imported:
		return s.Mine != next.Mine
	case next.Mine:
		return !s.Mine
	}
	return next.Branch != using
}

// clusterDir is below Config.Data: who the node is, the cluster's log and its state.
const clusterDir = "cluster"

// refuseOld refuses a data directory of a release that knew no clusters.
func refuseOld(dir string) error {
	old, path := filepath.Join(dir, "node.json"), filepath.Join(dir, clusterDir)
	if _, err := os.Stat(old); err == nil {
		return fmt.Errorf("%s was made by a release that kept its state in node.json and its versions in another way: take an empty --data and attach anew", dir)
	}
	_, storeErr := os.Stat(filepath.Join(dir, storeDir, "FORMAT"))
	if _, err := os.Stat(path); storeErr == nil && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing, so nothing says what the history in %s is of: put it back, or take an empty --data and attach anew", path, dir)
	}
	return nil
}
