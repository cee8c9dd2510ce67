package redo_test

import (
	"slices"
	"strings"
	"testing"

	"everpage/deploy/pgtest"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// Faults of the other index managers are found too. Their pages have nothing to do with each other, so one run bears one fault of each.
func TestOracleFindsFaultsTogether(t *testing.T) {
	f := indexCorpus(t, pgtest.DefaultMajor, nil)
	for i, faults := range []map[wal.Rmgr]func(c *redo.PageChange){
		{
			wal.RmGin:    spoil(wal.RmGin, 0x60, 0, 16+12), // pending pages
			wal.RmSPGist: spoil(wal.RmSPGist, 0x50, 3, 8),  // a split's downlink
			wal.RmBRIN:   spoil(wal.RmBRIN, 0x10, 1, 8),    // where a range's tuple is
			wal.RmGeneric: func(c *redo.PageChange) {
				if d := &c.Delta; d.Rmgr == wal.RmGeneric && c.Kind == redo.KindDelta && len(d.Data) > 4 {
					d.Data = slices.Clone(d.Data)
					d.Data[4] ^= 1
				}
			},
		},
		{
			wal.RmGin:    spoil(wal.RmGin, 0x50, 0, 8),     // the deleting transaction, which the mask hides
			wal.RmSPGist: spoil(wal.RmSPGist, 0x20, 0, 12), // a redirection's transaction
			wal.RmBRIN:   spoil(wal.RmBRIN, 0x20, 2, 0),    // the tuple that goes
		},
	} {
		r := newReplayer(t, pg.Major(f.Major), f.Base)
		r.fault = func(c *redo.PageChange) {
			if fault := faults[c.Delta.Rmgr]; fault != nil {
				fault(c)
			}
		}
		r.replay(f.WAL)
		r.finish()
		r.compareIndexes(f.Final, indexManagers...)
		for rm := range faults {
			if !slices.ContainsFunc(r.mismatches, func(m string) bool { return strings.Contains(m, rm.String()) }) {
				t.Errorf("fault %d of %s went unnoticed", i, rm)
			}
		}
	}
}
