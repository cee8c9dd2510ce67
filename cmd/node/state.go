package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"everpage/wal"
	"everpage/wal/pg"
)

// stateFormat is raised when an older release can't read a data directory any more.
const stateFormat = 1

// state is what a node remembers beside its store and spool: who it is and which primary it follows. It is the file node.json.
type state struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	Shards  uint32 `json:"shards"`

	// What is followed. Conninfo is empty while nothing is.
	Conninfo         string        `json:"conninfo,omitempty"`
	Slot             string        `json:"slot,omitempty"`
	Branch           uint32        `json:"branch,omitempty"`
	Major            pg.Major      `json:"major,omitempty"`
	SystemIdentifier uint64        `json:"system_identifier,omitempty"`
	WALSegmentSize   uint32        `json:"wal_segment_size,omitempty"`
	Timeline         pg.TimelineID `json:"timeline,omitempty"`
	History          wal.History   `json:"history"`                 // of Timeline
	Primary          string        `json:"primary,omitempty"`       // where and as whom, for people
	NextTimeline     pg.TimelineID `json:"next_timeline,omitempty"` // for the next restore
	// Left is a slot that a detach has still to drop: until then the primary keeps WAL for it.
	Left *leftSlot `json:"left,omitempty"`
	Hole string    `json:"hole,omitempty"`
}

// leftSlot is where a slot is and how to get there.
type leftSlot struct {
	Conninfo string `json:"conninfo"`
	Slot     string `json:"slot"`
	Primary  string `json:"primary"`
}

func statePath(dir string) string { return filepath.Join(dir, "node.json") }

// loadState reads node.json; a new data directory gets one.
func loadState(cfg *Config) (state, error) {
	path := statePath(cfg.Data)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		s := state{Format: stateFormat, Cluster: cfg.Cluster, Node: cfg.Node, Shards: cfg.Shards}
		return s, s.save(cfg.Data)
	}
	if err != nil {
		return state{}, err
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return state{}, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if s.Format > stateFormat {
		return state{}, fmt.Errorf("%s has format %d, this release knows up to %d: use the newer release", cfg.Data, s.Format, stateFormat)
	}
	if s.Cluster != cfg.Cluster || s.Node != cfg.Node {
		return state{}, fmt.Errorf("%s belongs to node %s of cluster %s, not to node %s of cluster %s: name them as they were, or use another directory",
			cfg.Data, s.Node, s.Cluster, cfg.Node, cfg.Cluster)
	}
	cfg.Shards = s.Shards
	return s, nil
}

// save replaces node.json, durably and as a whole. It may hold a password, so nobody else may read it.
func (s state) save(dir string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := statePath(dir)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
