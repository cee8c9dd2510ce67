package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// entry is one run: a line of the journal. A later line of the same seed replaces it.
type entry struct {
	Major      int                  `json:"major"`
	Seed       int64                `json:"seed"`
	Settings   string               `json:"settings"`
	Server     string               `json:"server"` // the version that the server names
	Records    uint64               `json:"records"`
	Compared   uint64               `json:"compared"` // pages that redo made, held against the primary's after-images
	Final      uint64               `json:"final"`    // pages held against data directories of the stopped primary
	Objects    uint64               `json:"objects"`  // SLRU segments and small objects there
	Stops      int                  `json:"stops"`    // such directories, each at its own LSN
	Mismatches uint64               `json:"mismatches"`
	Failed     string               `json:"failed,omitempty"`
	Seconds    int                  `json:"seconds"`
	Types      map[string]typeEntry `json:"types"`
	Forms      map[string]typeEntry `json:"forms,omitempty"` // those of redo.RareForm; runs of before they were counted have none
}

// typeEntry counts a record type, or a rare form of one, in a run.
type typeEntry struct {
	Records    uint64 `json:"records"`
	Pages      uint64 `json:"pages,omitempty"`
	Mismatches uint64 `json:"mismatches,omitempty"`
	Stops      uint64 `json:"stops,omitempty"` // compared LSNs that such records come before, and after the compared LSN before
}

func (e *entry) ok() bool { return e.Failed == "" && e.Mismatches == 0 }

// readJournal returns the newest entry of each seed, in the order in which the seeds came first. A journal that does not exist is empty.
func readJournal(path string) (entries []*entry, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	at := map[int64]int{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		e := &entry{}
		if err := json.Unmarshal(lines.Bytes(), e); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, n, err)
		}
		if i, ok := at[e.Seed]; ok {
			entries[i] = e
			continue
		}
		at[e.Seed] = len(entries)
		entries = append(entries, e)
	}
	return entries, lines.Err()
}

func appendJournal(path string, e *entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}
