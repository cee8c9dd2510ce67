package verify

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"

	"everpage/chunk/importer"
	"everpage/redo"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

func objectName(kind redo.MetaKind, id [2]uint32) string {
	switch kind {
	case redo.MetaRelMap:
		return fmt.Sprintf("relation map of database %d in tablespace %d", id[1], id[0])
	case redo.MetaTwoPhase:
		return fmt.Sprintf("state of prepared transaction %d", id[0])
	case redo.MetaTablespace:
		return fmt.Sprintf("tablespace %d", id[0])
	case redo.MetaOrigin:
		return fmt.Sprintf("replication origin %d", id[0])
	case redo.MetaDatabase:
		return fmt.Sprintf("PG_VERSION of database %d in tablespace %d", id[1], id[0])
	}
	return fmt.Sprintf("object %d %v", kind, id)
}

// object compares a small file.
func (f *final) object(b stream.BackupFile, kind redo.MetaKind, id [2]uint32) error {
	theirs, err := io.ReadAll(b.Reader)
	if err != nil {
		return err
	}
	f.objects[objectKey{kind, id}] = true
	ours, ok := f.values[objectKey{kind, id}]
	f.rep.Objects++
	if !ok {
		f.differs(objectName(kind, id), "only the primary has it")
	} else if at := firstDiff(ours[:min(len(ours), len(theirs))], theirs); len(ours) != len(theirs) || at >= 0 {
		f.differs(objectName(kind, id), fmt.Sprintf("%d bytes of ours differ from the primary's %d at offset %d", len(ours), len(theirs), at))
	}
	return nil
}

// controlState compares the counters of pg_control with the shutdown checkpoint's.
func (f *final) controlState() error {
	ours, theirs := f.ourCtl, f.control.Copy
	c := ours.Copy
	f.rep.Objects++
	for _, v := range []struct {
		name         string
		ours, theirs uint64
	}{
		{"next transaction id", uint64(c.NextXID), uint64(theirs.NextXID)},
		{"next OID", uint64(c.NextOid), uint64(theirs.NextOid)},
		{"next multixact", uint64(c.NextMulti), uint64(theirs.NextMulti)},
		{"next multixact offset", uint64(c.NextMultiOffset), uint64(theirs.NextMultiOffset)},
		{"oldest transaction id", uint64(c.OldestXID), uint64(theirs.OldestXID)},
		{"database of the oldest transaction id", uint64(c.OldestXIDDB), uint64(theirs.OldestXIDDB)},
		{"oldest multixact", uint64(c.OldestMulti), uint64(theirs.OldestMulti)},
		{"database of the oldest multixact", uint64(c.OldestMultiDB), uint64(theirs.OldestMultiDB)},
		{"oldest commit timestamp", uint64(c.OldestCommitTs), uint64(theirs.OldestCommitTs)},
		{"newest commit timestamp", uint64(c.NewestCommitTs), uint64(theirs.NewestCommitTs)},
		{"timeline", uint64(c.Timeline), uint64(theirs.Timeline)},
		{"max_worker_processes", uint64(ours.MaxWorkerProcesses), uint64(f.control.MaxWorkerProcesses)},
		{"max_wal_senders", uint64(ours.MaxWALSenders), uint64(f.control.MaxWALSenders)},
		{"max_prepared_transactions", uint64(ours.MaxPreparedXacts), uint64(f.control.MaxPreparedXacts)},
		{"max_locks_per_transaction", uint64(ours.MaxLocksPerXact), uint64(f.control.MaxLocksPerXact)},
		{"wal_log_hints", number(ours.WALLogHints), number(f.control.WALLogHints)},
		{"track_commit_timestamp", number(ours.TrackCommitTimestamp), number(f.control.TrackCommitTimestamp)},
		{"max_connections", uint64(ours.MaxConnections), uint64(f.control.MaxConnections)},
		{"wal_level", uint64(ours.WALLevel), uint64(f.control.WALLevel)},
	} {
		if v.ours != v.theirs {
			f.differs("pg_control", fmt.Sprintf("%s: ours %d, the primary's %d", v.name, v.ours, v.theirs))
		}
	}
	return nil
}

// slru compares one segment. Bytes beyond the next id are not defined: a primary may have them from transactions that crashed.
func (f *final) slru(b stream.BackupFile, kind pg.File) error {
	f.slrus[slruSegment{kind.SLRU, kind.Segment}] = true
	pages, exists := f.sizes[kind.SLRU][kind.Segment]
	name := kind.SLRU.Dir() + "/" + pg.SLRUSegmentName(kind.Segment)
	if !exists {
		f.differs(name, "only the primary has this segment")
		return nil
	}
	f.rep.Objects++
	n := uint32(b.Size / pg.BlockSize)
	for i := range max(n, pages) {
		key := pg.SLRUPage(kind.SLRU, kind.Segment*pg.SLRUPagesPerSegment+i)
		ours, theirs := pg.Page(f.ours[:]), f.buf
		clear(ours)
		clear(theirs)
		if i < pages {
			if err := f.pages.Page(f.ctx, key, ours); err != nil {
				f.differs(key.String(), err.Error())
				continue
			}
		}
		if i < n {
			if _, err := io.ReadFull(b.Reader, theirs); err != nil {
				return err
			}
		}
		at := firstDiff(ours, theirs)
		if at < 0 {
			continue
		}
		if f.beyond(kind.SLRU, key.Block, at, ours[at]^theirs[at]) {
			f.rep.Tolerated[tolBeyond]++
			continue
		}
		f.report.mismatch(Mismatch{LSN: f.at, Record: "final", Page: key.String(), Offset: at, Ours: firstBytes(ours, at), Theirs: firstBytes(theirs, at)})
	}
	return nil
}

// beyond tells whether what differs at an offset of an SLRU page, and so all behind it, belongs to ids that were not given out yet.
func (f *final) beyond(slru pg.SLRU, page uint32, offset int, differ byte) bool {
	entry := func(perPage, id uint32) bool { return id >= page*perPage && page == id/perPage }
	switch slru {
	case pg.Xact:
		next := f.ourCtl.Copy.NextXID.XID()
		first, left := uint32(offset)*4, next%pg.XactsPerPage
		if first < left && left-first < 4 {
			differ &= 1<<(2*(left-first)) - 1 // of the byte's four transactions those that were given out
		} else if first >= left {
			differ = 0
		}
		return entry(pg.XactsPerPage, next) && differ == 0
	case pg.CommitTs:
		next := f.ourCtl.Copy.NextXID.XID()
		return entry(pg.CommitTsPerPage, next) && uint32(offset)/pg.CommitTsEntrySize >= next%pg.CommitTsPerPage
	case pg.MultiXactOffsets:
		next := f.ourCtl.Copy.NextMulti
		return entry(pg.MultiXactOffsetsPerPage, next) && uint32(offset)/4 >= next%pg.MultiXactOffsetsPerPage
	case pg.MultiXactMembers:
		next := f.ourCtl.Copy.NextMultiOffset
		group := next % pg.MembersPerPage / pg.MembersPerGroup
		return entry(pg.MembersPerPage, next) && uint32(offset)/pg.MemberGroupSize > group
	}
	return false
}

func number(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// origins compares replorigin_checkpoint, which the primary writes at every checkpoint from what it holds in memory: also origins that a session has
// set up without anything having been replayed.
func (f *final) origins(b stream.BackupFile) error {
	content, err := io.ReadAll(b.Reader)
	if err != nil {
		return err
	}
	theirs, err := importer.ReadOrigins(content)
	if err != nil {
		return err
	}
	for _, origin := range slices.Sorted(maps.Keys(theirs)) {
		key, remote := objectKey{redo.MetaOrigin, [2]uint32{origin}}, theirs[origin]
		f.objects[key] = true
		f.rep.Objects++
		value, ok := f.values[key]
		switch {
		case !ok && remote == 0:
			f.rep.Tolerated[tolOrigin]++
		case !ok:
			f.differs(objectName(key.kind, key.id), fmt.Sprintf("only the primary has it, at %s", remote))
		case len(value) != 8:
			f.differs(objectName(key.kind, key.id), fmt.Sprintf("ours has %d bytes", len(value)))
		case pg.LSN(binary.LittleEndian.Uint64(value)) != remote:
			f.differs(objectName(key.kind, key.id), fmt.Sprintf("ours is at %s, the primary's at %s", pg.LSN(binary.LittleEndian.Uint64(value)), remote))
		}
	}
	return nil
}

// tablespaces compares the links in pg_tblspc. A copied directory's may have been moved, but one inside pg_tblspc has no location on either side.
func (f *final) tablespaces(theirs []stream.Tablespace) {
	for _, t := range theirs {
		key := objectKey{redo.MetaTablespace, [2]uint32{t.Oid}}
		f.objects[key] = true
		f.rep.Objects++
		location, ok := f.values[key]
		switch {
		case !ok:
			f.differs(objectName(key.kind, key.id), fmt.Sprintf("only the primary has it, in %q", t.Location))
		case (len(location) == 0) != (t.Location == ""):
			f.differs(objectName(key.kind, key.id), fmt.Sprintf("ours lies in %q, the primary's in %q", location, t.Location))
		case string(location) != t.Location:
			f.rep.Tolerated[tolMoved]++
		}
	}
}
