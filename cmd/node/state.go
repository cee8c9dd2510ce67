package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"everpage/cluster"
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
	History  wal.History // of Timeline
	Imported bool        // its base backup is complete
	Importer string      // id of the node that takes the base backup which is not there yet
	Mine     bool        // that is this node
	Start    pg.LSN      // of the base backup
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
	st.Branch, st.Timeline, st.Imported, st.Start = b.Number, b.Timeline, b.Imported, b.Start
	st.History = wal.History{Timeline: b.Timeline}
	if len(b.History) > 0 {
		if st.History, err = wal.ParseHistory(b.Timeline, b.History); err != nil {
			return st, fmt.Errorf("branch %d: %w", b.Number, err)
		}
	}
	return st, nil
}

// differs tells whether what is followed must be followed anew. using is the branch that it is followed into.
func (s state) differs(next state, using uint32) bool {
	return s.Conninfo != next.Conninfo || s.Slot != next.Slot || s.SystemIdentifier != next.SystemIdentifier || s.Major != next.Major ||
		next.Imported && next.Branch != using || !next.Imported && s.Mine != next.Mine
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
