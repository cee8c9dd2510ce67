package chunk

import (
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"

	"everpage/wal/pg"
)

// Every block of a table, and the table itself, bears the interval of its versions' LSNs, so that whoever looks for new versions passes over all that is
// older. The name is part of the store's format.
const lsnProperty = "everpage.lsn"

func newLSNCollector() pebble.BlockPropertyCollector {
	return sstable.NewBlockIntervalCollector(lsnProperty, lsnMapper{}, nil)
}

type lsnMapper struct{}

// MapPointKey implements sstable.IntervalMapper. A pair's key has the newest of its versions' LSNs.
func (lsnMapper) MapPointKey(key sstable.InternalKey, _ []byte) (sstable.BlockInterval, error) {
	_, lsn, ok := splitKey(key.UserKey)
	if !ok {
		return sstable.BlockInterval{Lower: 0, Upper: ^uint64(0)}, nil
	}
	return sstable.BlockInterval{Lower: uint64(lsn), Upper: uint64(lsn) + 1}, nil
}

// MapRangeKeys implements sstable.IntervalMapper: there are none.
func (lsnMapper) MapRangeKeys(sstable.Span) (sstable.BlockInterval, error) {
	return sstable.BlockInterval{}, nil
}

// newerThan makes an iterator that may pass over objects without a version beyond an LSN; nil for 0, where none may be.
func newerThan(lsn pg.LSN) *pebble.IterOptions {
	if lsn == 0 {
		return nil
	}
	return &pebble.IterOptions{PointKeyFilters: []pebble.BlockPropertyFilter{sstable.NewBlockIntervalFilter(lsnProperty, uint64(lsn)+1, ^uint64(0), nil)}}
}
