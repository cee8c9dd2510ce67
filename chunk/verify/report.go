package verify

import (
	"fmt"

	"everpage/wal/pg"
)

// Report is what a verification found.
type Report struct {
	Major     pg.Major `json:"major"`
	Start     pg.LSN   `json:"start"`
	End       pg.LSN   `json:"end"`
	EndReason string   `json:"end_reason"` // why the WAL ends there
	Records   uint64   `json:"records"`

	Types map[string]*TypeReport `json:"types"` // by resource manager and record type
	Forms map[string]*TypeReport `json:"forms"` // those of redo.RareForm; they are in Types, too

	Compared   uint64     `json:"compared"` // pages that redo made and that equal the primary's after-image
	Mismatches uint64     `json:"mismatches"`
	Found      []Mismatch `json:"found"` // the first ones

	VMCompared uint64 `json:"vm_compared"`
	VMMissing  uint64 `json:"vm_missing"` // visibility bits that only the primary has: safe

	Unknown       []string `json:"unknown"`         // record types that nobody knows here
	Damaged       uint64   `json:"damaged"`         // after-images of pages that can't be made
	DamagedInBase []string `json:"damaged_in_base"` // pages that can't be made where reads begin: wrong or missing in the base, and not replaced by WAL
	Violations    []string `json:"violations"`      // broken invariants of the store

	Final  *FinalReport   `json:"final,omitempty"`
	Stops  []*FinalReport `json:"stops,omitempty"`  // of Options.Stops
	Digest string         `json:"digest,omitempty"` // over all pages, sizes, SLRUs and small objects at several LSNs

	found func(m Mismatch)
}

// TypeReport counts one record type, or one rare form of it.
type TypeReport struct {
	Records    uint64 `json:"records"`
	Pages      uint64 `json:"pages"` // compared and equal
	Mismatches uint64 `json:"mismatches"`
	// Stops counts the LSNs of Options.Stops and Options.Final that have such a record since the one before: what it left beside pages was compared there.
	Stops uint64 `json:"stops,omitempty"`

	fresh   bool // there was one since the last stop
	unknown bool // one was not understood, and told
}

func (t *TypeReport) count() {
	t.Records++
	t.fresh = true
}

// Mismatch is a page of ours that differs from PostgreSQL's.
type Mismatch struct {
	LSN    pg.LSN `json:"lsn"`
	Record string `json:"record"`
	Page   string `json:"page"`
	Offset int    `json:"offset"` // of the first byte that differs
	Ours   string `json:"ours"`   // bytes from there on, hexadecimal
	Theirs string `json:"theirs"`
	Text   string `json:"text,omitempty"`

	form string // redo.RareForm of the record
}

// FinalReport is the comparison with the data directory that was stopped at the end.
type FinalReport struct {
	Pages     uint64            `json:"pages"`     // compared
	Identical uint64            `json:"identical"` // byte for byte, without LSN, checksum and hints
	Tolerated map[string]uint64 `json:"tolerated"` // differences that WAL doesn't define, by kind
	Objects   uint64            `json:"objects"`   // SLRU segments, relation maps, two-phase states and their like
}

// maxFound bounds the lists of a report.
const maxFound = 50

// OK tells whether nothing was found.
func (r *Report) OK() bool {
	return r.Mismatches == 0 && len(r.Violations) == 0 && len(r.Unknown) == 0 && r.Damaged == 0 && len(r.DamagedInBase) == 0
}

func (r *Report) of(record string) *TypeReport { return entryOf(r.Types, record) }

func entryOf(all map[string]*TypeReport, name string) *TypeReport {
	t := all[name]
	if t == nil {
		t = &TypeReport{}
		all[name] = t
	}
	return t
}

func (r *Report) mismatch(m Mismatch) {
	r.Mismatches++
	if t := r.Types[m.Record]; t != nil {
		t.Mismatches++
	}
	if t := r.Forms[m.form]; t != nil {
		t.Mismatches++
	}
	if r.found != nil {
		r.found(m)
	}
	if len(r.Found) < maxFound {
		r.Found = append(r.Found, m)
	}
}

func (r *Report) unknown(text string) {
	if len(r.Unknown) < maxFound {
		r.Unknown = append(r.Unknown, text)
	}
}

func (r *Report) violation(text string) {
	if len(r.Violations) < maxFound {
		r.Violations = append(r.Violations, text)
	}
}

// firstBytes prints some bytes from an offset on.
func firstBytes(p []byte, at int) string {
	return fmt.Sprintf("%x", p[at:min(len(p), at+16)])
}
