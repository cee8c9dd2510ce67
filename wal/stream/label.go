package stream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"everpage/wal/pg"
)

// BackupLabel is what a backup_label file says.
type BackupLabel struct {
	Start       pg.LSN        `json:"start"` // START WAL LOCATION: the checkpoint's redo LSN, where replay begins
	StartFile   string        `json:"start_file"`
	Checkpoint  pg.LSN        `json:"checkpoint"` // CHECKPOINT LOCATION: the start of the checkpoint record
	Method      string        `json:"method"`
	From        string        `json:"from"` // primary or standby
	Time        string        `json:"time"`
	Label       string        `json:"label"`
	Timeline    pg.TimelineID `json:"timeline"`
	Incremental bool          `json:"incremental,omitempty"` // 17 and later: only changed blocks, no complete base
}

// labelLimit bounds backup_label and tablespace_map, which are read whole.
const labelLimit = 1 << 20

// ParseBackupLabel reads a backup_label file (read_backup_label). Start, Checkpoint and Timeline must be there and agree.
func ParseBackupLabel(b []byte) (BackupLabel, error) {
	var l BackupLabel
	var err error
	seen := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ": ")
		if !ok {
			continue
		}
		seen[key] = true
		switch key {
		case "START WAL LOCATION":
			lsn, file, _ := strings.Cut(value, " (file ")
			l.StartFile = strings.TrimSuffix(file, ")")
			l.Start, err = pg.ParseLSN(lsn)
		case "CHECKPOINT LOCATION":
			l.Checkpoint, err = pg.ParseLSN(value)
		case "START TIMELINE":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 32)
			l.Timeline = pg.TimelineID(n)
		case "BACKUP METHOD":
			l.Method = value
		case "BACKUP FROM":
			l.From = value
		case "START TIME":
			l.Time = value
		case "LABEL":
			l.Label = value
		case "INCREMENTAL FROM LSN":
			l.Incremental = true
		}
		if err != nil {
			return BackupLabel{}, fmt.Errorf("backup_label: %s: %w", key, err)
		}
	}
	for _, key := range []string{"START WAL LOCATION", "CHECKPOINT LOCATION", "START TIMELINE"} {
		if !seen[key] {
			return BackupLabel{}, fmt.Errorf("backup_label: no %s: not of PostgreSQL 14 to 18, or cut off", key)
		}
	}
	if l.Start == 0 || l.Timeline == 0 || l.Checkpoint < l.Start {
		return BackupLabel{}, fmt.Errorf("backup_label: start %s, checkpoint %s and timeline %d do not go together", l.Start, l.Checkpoint, l.Timeline)
	}
	if len(l.StartFile) >= 8 {
		if tli, err := strconv.ParseUint(l.StartFile[:8], 16, 32); err != nil || pg.TimelineID(tli) != l.Timeline {
			return BackupLabel{}, fmt.Errorf("backup_label: start file %s is not of timeline %d", l.StartFile, l.Timeline)
		}
	}
	return l, nil
}

// ParseTablespaceMap reads a tablespace_map file: lines of OID and location, where a backslash keeps the byte behind it, a newline too
// (read_tablespace_map).
func ParseTablespaceMap(b []byte) ([]Tablespace, error) {
	var spaces []Tablespace
	var line bytes.Buffer
	end := func() error {
		defer line.Reset()
		if line.Len() == 0 {
			return nil
		}
		oid, location, ok := strings.Cut(line.String(), " ")
		n, err := strconv.ParseUint(oid, 10, 32)
		if !ok || err != nil || n == 0 || location == "" {
			return fmt.Errorf("tablespace_map: line %q: want an OID and a location", line.String())
		}
		spaces = append(spaces, Tablespace{Oid: pg.Oid(n), Location: location})
		return nil
	}
	for i := 0; i < len(b); i++ {
		switch c := b[i]; c {
		case '\\':
			if i++; i == len(b) {
				return nil, errors.New("tablespace_map: cut off behind a backslash")
			}
			line.WriteByte(b[i])
		case '\n', '\r':
			if err := end(); err != nil {
				return nil, err
			}
		default:
			line.WriteByte(c)
		}
	}
	if err := end(); err != nil {
		return nil, err
	}
	return spaces, nil
}

// readSmall reads a file that must be small.
func readSmall(f BackupFile) ([]byte, error) {
	if f.Size > labelLimit {
		return nil, fmt.Errorf("%s has %d bytes, want at most %d", f.Name, f.Size, labelLimit)
	}
	b := make([]byte, f.Size)
	if _, err := io.ReadFull(f.Reader, b); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	return b, nil
}
