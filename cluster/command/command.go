// Package command has the changes that a cluster's nodes agree on: a closed set of typed, versioned commands, and how they stand in the Raft log.
//
// An entry is the byte Version, the command's kind and the version of its body as uvarints, then the body: JSON whose unknown fields are
// errors. A number is never given to another kind. What a release doesn't know is an error, never
// skipped: nodes that skip a change no longer agree.
package command

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// Version is the version of the envelope.
const Version = 1

// Kind tells commands apart.
type Kind uint64

// Command is one change. The types of this package are all that there are.
type Command interface{ kind() Kind }

// UnknownError says that the log has a command of a newer release.
type UnknownError struct {
	What  string // what of it is unknown
	Got   uint64
	Known uint64 // the newest that is known; 0: not comparable
}

func (e *UnknownError) Error() string {
	if e.Known == 0 {
		return fmt.Sprintf("the cluster's log has a command with an unknown %s %d: a newer release wrote it; run that release on this node", e.What, e.Got)
	}
	return fmt.Sprintf("the cluster's log has a command with %s %d, this release knows up to %d: run the newer release on this node", e.What, e.Got, e.Known)
}

// ErrMalformed says that an entry is not a command at all.
var ErrMalformed = errors.New("not a command")

// bodyVersion is the version that a kind's body has now.
const bodyVersion = 1

// Encode makes a log entry.
func Encode(c Command) ([]byte, error) {
	b := []byte{Version}
	b = binary.AppendUvarint(b, uint64(c.kind()))
	b = binary.AppendUvarint(b, bodyVersion)
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("command %T: %w", c, err)
	}
	return append(b, body...), nil
}

// Decode reads a log entry. An *UnknownError says that it needs a newer release.
func Decode(b []byte) (Command, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrMalformed)
	}
	if b[0] != Version {
		return nil, &UnknownError{"version", uint64(b[0]), Version}
	}
	b = b[1:]
	kind, n := binary.Uvarint(b)
	if n <= 0 {
		return nil, fmt.Errorf("%w: cut short", ErrMalformed)
	}
	b = b[n:]
	version, n := binary.Uvarint(b)
	if n <= 0 {
		return nil, fmt.Errorf("%w: cut short", ErrMalformed)
	}
	b = b[n:]
	t, ok := types[Kind(kind)]
	if !ok {
		return nil, &UnknownError{What: "kind", Got: kind}
	}
	if version != bodyVersion {
		return nil, &UnknownError{fmt.Sprintf("body version (kind %d)", kind), version, bodyVersion}
	}
	c := reflect.New(t).Interface().(Command)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, fmt.Errorf("command of kind %d: %w", kind, err)
	}
	return c, nil
}

// IsReport tells whether a log entry is a ReportChunks.
func IsReport(b []byte) bool {
	if len(b) == 0 || b[0] != Version {
		return false
	}
	kind, _ := binary.Uvarint(b[1:])
	return Kind(kind) == kindReportChunks
}

// Name is the command's name, for logs and messages.
func Name(c Command) string { return reflect.TypeOf(c).Elem().Name() }
