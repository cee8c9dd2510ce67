// Package pg is the vocabulary of Everpage: PostgreSQL's identifiers, positions and on-disk page and file formats.
// It imports the standard library only and is imported by every other package.
package pg

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// LSN is a byte position in the WAL. The zero LSN is invalid (PostgreSQL's InvalidXLogRecPtr).
type LSN uint64

// String prints the LSN as PostgreSQL's pg_lsn does: two upper-case hexadecimal halves, X/Y.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// MarshalJSON prints the LSN as a string, since a JSON number would lose its upper bits.
func (l LSN) MarshalJSON() ([]byte, error) { return json.Marshal(l.String()) }

// UnmarshalJSON reads what MarshalJSON prints.
func (l *LSN) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := ParseLSN(s)
	if err != nil {
		return err
	}
	*l = v
	return nil
}

// ParseLSN reads X/Y in either case.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok || len(hi) == 0 || len(lo) == 0 || len(hi) > 8 || len(lo) > 8 {
		return 0, fmt.Errorf("invalid LSN %q: want two hexadecimal numbers as in 0/16B3740", s)
	}
	h, err := strconv.ParseUint(hi, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("invalid LSN %q: want two hexadecimal numbers as in 0/16B3740", s)
	}
	l, err := strconv.ParseUint(lo, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("invalid LSN %q: want two hexadecimal numbers as in 0/16B3740", s)
	}
	return LSN(h<<32 | l), nil
}

// MaxAlign rounds n up to PostgreSQL's MAXIMUM_ALIGNOF of 8 bytes.
func MaxAlign[T ~int | ~uint16 | ~uint32 | ~uint64](n T) T { return (n + 7) &^ 7 }
