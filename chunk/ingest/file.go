package ingest

import (
	"encoding/json"
	"fmt"
)

// ImportOrigin is the resource manager number in the origin of versions that came from a base backup. No resource manager has it.
const ImportOrigin = 0xFF

// ConfigFile is a configuration file of the base backup, as redo.MetaFile keeps it.
type ConfigFile struct {
	Path    string `json:"path"` // below PGDATA
	Mode    uint32 `json:"mode"` // permission bits
	Content []byte `json:"content"`
}

// EncodeFile makes the value of a redo.MetaFile.
func EncodeFile(f ConfigFile) []byte {
	b, err := json.Marshal(f)
	if err != nil {
		panic(err) // strings and bytes always encode
	}
	return b
}

// DecodeFile reads the value of a redo.MetaFile.
func DecodeFile(b []byte) (ConfigFile, error) {
	var f ConfigFile
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("configuration file: %w", err)
	}
	return f, nil
}
