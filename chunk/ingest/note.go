package ingest

import (
	"encoding/json"
	"fmt"

	"everpage/wal/pg"
)

// Note is what a branch's Progress.Note holds: what the pipeline must know of the import, and what never changes.
type Note struct {
	Major            pg.Major      `json:"major"`
	SystemIdentifier uint64        `json:"system_identifier"`
	WALSegmentSize   uint32        `json:"wal_segment_size"`
	Timeline         pg.TimelineID `json:"timeline"`   // of the backup
	Checkpoint       pg.LSN        `json:"checkpoint"` // the checkpoint record that the backup started from
	BackupEnd        pg.LSN        `json:"backup_end"` // reads begin here
	ControlFile      []byte        `json:"control_file"`
}

// Encode makes the bytes for Progress.Note.
func (n Note) Encode() []byte {
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // numbers and bytes always encode
	}
	return b
}

func decodeNote(b []byte) (Note, error) {
	var n Note
	if err := json.Unmarshal(b, &n); err != nil {
		return n, fmt.Errorf("the note of its import can't be read: %w", err)
	}
	return n, nil
}

// NoteOf reads the note of a branch's progress.
func NoteOf(b []byte) (Note, error) { return decodeNote(b) }
