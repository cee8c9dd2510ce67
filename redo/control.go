package redo

import (
	"everpage/wal"
	"everpage/wal/pg"
)

// ControlState is what pg_control says of a cluster at an LSN, as far as WAL changes it. It is exact at every LSN, not only at checkpoints:
// a server started from it must find every counter beyond what the pages use.
type ControlState struct {
	// Group ControlXID: moves with every transaction.
	NextXID        pg.FullTransactionID
	NewestCommitTs pg.TransactionID

	// Group ControlMulti.
	NextMulti       pg.MultiXactID // may be 0 after a wraparound, which means 1
	NextMultiOffset uint32         // likewise

	// Group ControlRest.
	NextOid                    pg.Oid
	OldestXID                  pg.TransactionID
	OldestXIDDB                pg.Oid
	OldestMulti                pg.MultiXactID
	OldestMultiDB              pg.Oid
	OldestCommitTs             pg.TransactionID
	Timeline, PrevTimeline     pg.TimelineID
	FullPageWrites             bool
	CheckPointRedo, CheckPoint pg.LSN // of the last checkpoint record: its redo pointer and its own start
	CheckPointTime             int64  // seconds since 1970
	WALLevel                   int32
	WALLogHints                bool
	TrackCommitTimestamp       bool
	MaxConnections             int32
	MaxWorkerProcesses         int32
	MaxWALSenders              int32
	MaxPreparedXacts           int32
	MaxLocksPerXact            int32

	// Fixed by initdb; kept with ControlRest.
	DataChecksums bool
}

// ControlGroup is a part of the control state that is versioned by itself. The numbers are part of the store's key format.
type ControlGroup uint8

// The groups.
const (
	ControlXID   ControlGroup = 0
	ControlMulti ControlGroup = 1
	ControlRest  ControlGroup = 2
)

// ControlGroups is a set of groups, a bit each.
type ControlGroups uint8

// AllControlGroups has every group.
const AllControlGroups = ControlGroups(1<<ControlXID | 1<<ControlMulti | 1<<ControlRest)

// Has tells whether g is in the set.
func (s ControlGroups) Has(g ControlGroup) bool { return s>>g&1 != 0 }

// NewControlState is the state with which recovery starts: the counters of the checkpoint record cp, which begins at at and whose redo pointer
// is where replay begins, and the settings of pg_control (StartupXLOG). Of pg_control itself only the settings are used: in a copy of a
// running server's directory its checkpoint may be a later one than the backup's.
func NewControlState(cp pg.CheckPoint, at pg.LSN, ctl *pg.ControlFile) ControlState {
	s := ControlState{
		NextXID: cp.NextXID, NewestCommitTs: cp.NewestCommitTs,
		NextMulti: cp.NextMulti, NextMultiOffset: cp.NextMultiOffset,
		NextOid: cp.NextOid, OldestXID: cp.OldestXID, OldestXIDDB: cp.OldestXIDDB, OldestMulti: cp.OldestMulti, OldestMultiDB: cp.OldestMultiDB,
		OldestCommitTs: cp.OldestCommitTs, Timeline: cp.Timeline, PrevTimeline: cp.PrevTimeline, FullPageWrites: cp.FullPageWrites,
		CheckPointRedo: cp.Redo, CheckPoint: at, CheckPointTime: cp.Time,
		WALLevel: ctl.WALLevel, WALLogHints: ctl.WALLogHints, TrackCommitTimestamp: ctl.TrackCommitTimestamp,
		MaxConnections: ctl.MaxConnections, MaxWorkerProcesses: ctl.MaxWorkerProcesses, MaxWALSenders: ctl.MaxWALSenders,
		MaxPreparedXacts: ctl.MaxPreparedXacts, MaxLocksPerXact: ctl.MaxLocksPerXact, DataChecksums: ctl.DataChecksumVersion != 0,
	}
	if s.TrackCommitTimestamp {
		s.activateCommitTs()
	}
	return s
}

// Fill sets those fields of pg_control and of its checkpoint copy that the state knows. The positions are those of the last checkpoint record.
func (s *ControlState) Fill(ctl *pg.ControlFile) {
	ctl.CheckPoint = s.CheckPoint
	ctl.WALLevel, ctl.WALLogHints, ctl.TrackCommitTimestamp = s.WALLevel, s.WALLogHints, s.TrackCommitTimestamp
	ctl.MaxConnections, ctl.MaxWorkerProcesses, ctl.MaxWALSenders = s.MaxConnections, s.MaxWorkerProcesses, s.MaxWALSenders
	ctl.MaxPreparedXacts, ctl.MaxLocksPerXact = s.MaxPreparedXacts, s.MaxLocksPerXact
	cp := &ctl.Copy
	cp.Redo, cp.Time = s.CheckPointRedo, s.CheckPointTime
	cp.Timeline, cp.PrevTimeline, cp.FullPageWrites = s.Timeline, s.PrevTimeline, s.FullPageWrites
	cp.NextXID, cp.NextOid, cp.NextMulti, cp.NextMultiOffset = s.NextXID, s.NextOid, s.NextMulti, s.NextMultiOffset
	cp.OldestXID, cp.OldestXIDDB, cp.OldestMulti, cp.OldestMultiDB = s.OldestXID, s.OldestXIDDB, s.OldestMulti, s.OldestMultiDB
	cp.OldestCommitTs, cp.NewestCommitTs = s.OldestCommitTs, s.NewestCommitTs
}

// Redo changes the state as a stock server's recovery does at this record, and tells which groups it changed. Every record must be given to it,
// in order. It is the part of xlog_redo and its like that doesn't concern pages. An error means that the record is malformed; s is then
// as it was.
func (s *ControlState) Redo(rec *wal.Record) (ControlGroups, error) {
	before := s.NextXID
	s.advancePast(rec.XID)
	s.advancePast(rec.TopLevelXID)
	if !s.concerns(rec) {
		if s.NextXID != before {
			return 1 << ControlXID, nil
		}
		return 0, nil
	}
	old := *s
	old.NextXID = before
	if err := s.redo(rec); err != nil {
		*s = old
		return 0, err
	}
	return s.diff(&old), nil
}

// concerns tells whether a record may change more than the next transaction id, and that by more than its own ids.
func (s *ControlState) concerns(rec *wal.Record) bool {
	switch rec.Rmgr {
	case wal.RmTransaction:
		return rec.Info != xactAbort && (rec.Info != xactCommit || s.TrackCommitTimestamp)
	case wal.RmXLOG, wal.RmCLOG, wal.RmMultiXact, wal.RmCommitTs:
		return true
	}
	return false
}

// diff tells in which groups s differs from old.
func (s *ControlState) diff(old *ControlState) (g ControlGroups) {
	rest := *old
	if s.NextXID != old.NextXID || s.NewestCommitTs != old.NewestCommitTs {
		g |= 1 << ControlXID
		rest.NextXID, rest.NewestCommitTs = s.NextXID, s.NewestCommitTs
	}
	if s.NextMulti != old.NextMulti || s.NextMultiOffset != old.NextMultiOffset {
		g |= 1 << ControlMulti
		rest.NextMulti, rest.NextMultiOffset = s.NextMulti, s.NextMultiOffset
	}
	if rest != *s {
		g |= 1 << ControlRest
	}
	return g
}

// redo is Redo for the managers that do more than bear a transaction id. It reads a record whole before it changes anything.
func (s *ControlState) redo(rec *wal.Record) error {
	switch rec.Rmgr {
	case wal.RmXLOG:
		return s.redoXLOG(rec)
	case wal.RmTransaction:
		return s.redoTransaction(rec)
	case wal.RmMultiXact:
		return s.redoMultiXact(rec)
	case wal.RmCLOG:
		if rec.Op() != slruTruncate {
			return nil
		}
		t, err := decodeCLOGTruncate(rec)
		if err != nil {
			return err
		}
		// Recovery moves its own oldestClogXid only (AdvanceOldestClogXid) and learns oldestXid by the next checkpoint. pg_control has one
		// field for both, and a server that starts between the two must not look for what is cut off. The primary sets oldestXid to the
		// same id next (vac_truncate_clog).
		if xidPrecedes(s.OldestXID, t.oldestXID) {
			s.OldestXID, s.OldestXIDDB = t.oldestXID, t.oldestDB
		}
	case wal.RmCommitTs:
		if rec.Op() != slruTruncate {
			return nil
		}
		t, err := decodeCommitTsTruncate(rec)
		if err != nil {
			return err
		}
		s.advanceOldestCommitTs(t.oldestXID)
	}
	return nil
}

func (s *ControlState) redoXLOG(rec *wal.Record) error {
	r := bodyReader{b: rec.Main}
	switch rec.Op() {
	case xlogCheckpointShutdown, xlogCheckpointOnline:
		cp, err := pg.DecodeCheckPoint(rec.Major, rec.Main)
		if err != nil {
			return malformed(rec, err.Error())
		}
		s.redoCheckpoint(&cp, rec)
	case xlogNextOid:
		oid := r.u32()
		if r.short {
			return malformed(rec, tooShort)
		}
		s.NextOid = oid
	case xlogParameterChange:
		p, err := decodeParameterChange(rec)
		if err != nil {
			return err
		}
		s.redoParameterChange(&p)
	case xlogFPWChange:
		on := r.u8() != 0
		if r.short {
			return malformed(rec, tooShort)
		}
		s.FullPageWrites = on
	case xlogEndOfRecovery:
		e, err := decodeEndOfRecovery(rec)
		if err != nil {
			return err
		}
		s.Timeline, s.PrevTimeline = e.timeline, e.prevTimeline
	}
	return nil
}

// redoCheckpoint believes a shutdown checkpoint's counters exactly. An online one's are from when it began: minima, and its nextOid is ignored.
func (s *ControlState) redoCheckpoint(cp *pg.CheckPoint, rec *wal.Record) {
	if rec.Op() == xlogCheckpointShutdown {
		s.NextXID, s.NextOid = cp.NextXID, cp.NextOid
		s.NextMulti, s.NextMultiOffset = cp.NextMulti, cp.NextMultiOffset
		s.OldestXID, s.OldestXIDDB = cp.OldestXID, cp.OldestXIDDB
	} else {
		s.NextXID = max(s.NextXID, cp.NextXID)
		s.advanceMulti(cp.NextMulti, cp.NextMultiOffset)
		if s.OldestXID == cp.OldestXID || xidPrecedes(s.OldestXID, cp.OldestXID) {
			s.OldestXID, s.OldestXIDDB = cp.OldestXID, cp.OldestXIDDB
		}
	}
	// Redo takes the database with an advance only (MultiXactAdvanceOldest). Vacuum names another one for the same id without WAL, and recovery that
	// starts from this checkpoint would begin with it (SetMultiXactIdLimit): the old one may have been dropped.
	if s.OldestMulti == cp.OldestMulti || multiPrecedes(s.OldestMulti, cp.OldestMulti) {
		s.OldestMulti, s.OldestMultiDB = cp.OldestMulti, cp.OldestMultiDB
	}
	// The primary moves it without WAL where no segment goes; recovery that starts from this checkpoint would begin with it (SetCommitTsLimit).
	if cp.OldestCommitTs != 0 {
		s.advanceOldestCommitTs(cp.OldestCommitTs)
	}
	s.Timeline, s.PrevTimeline, s.FullPageWrites = cp.Timeline, cp.PrevTimeline, cp.FullPageWrites
	s.CheckPointRedo, s.CheckPoint, s.CheckPointTime = cp.Redo, rec.Start, cp.Time
}

func (s *ControlState) redoParameterChange(p *parameterChange) {
	s.MaxConnections, s.MaxWorkerProcesses, s.MaxWALSenders = p.maxConnections, p.maxWorkerProcesses, p.maxWALSenders
	s.MaxPreparedXacts, s.MaxLocksPerXact = p.maxPreparedXacts, p.maxLocksPerXact
	s.WALLevel, s.WALLogHints = p.walLevel, p.walLogHints
	switch { // CommitTsParameterChange
	case p.trackCommitTimestamp && !s.TrackCommitTimestamp:
		s.activateCommitTs()
	case !p.trackCommitTimestamp && s.TrackCommitTimestamp:
		s.OldestCommitTs, s.NewestCommitTs = 0, 0
	}
	s.TrackCommitTimestamp = p.trackCommitTimestamp
}

// activateCommitTs is ActivateCommitTs.
func (s *ControlState) activateCommitTs() {
	if s.OldestCommitTs == 0 {
		s.OldestCommitTs, s.NewestCommitTs = s.NextXID.XID(), s.NextXID.XID()
	}
}

// advanceOldestCommitTs is AdvanceOldestCommitTsXid.
func (s *ControlState) advanceOldestCommitTs(xid pg.TransactionID) {
	if s.OldestCommitTs != 0 && xidPrecedes(s.OldestCommitTs, xid) {
		s.OldestCommitTs = xid
	}
}

func (s *ControlState) redoTransaction(rec *wal.Record) error {
	switch rec.Info & xactOpMask {
	case xactCommit, xactCommitPrep, xactAbort, xactAbortPrep:
		e, err := decodeXactEnd(rec)
		if err != nil {
			return err
		}
		s.advancePast(e.latest())
		if e.commit && s.TrackCommitTimestamp {
			newest := e.xid
			if n := e.subxacts.len(); n > 0 {
				newest = e.subxacts.at(n - 1)
			}
			if xidPrecedes(s.NewestCommitTs, newest) {
				s.NewestCommitTs = newest
			}
		}
	case xactPrepare:
		p, err := decodePrepare(rec)
		if err != nil {
			return err
		}
		// Recovery does this at its end, for all that are still prepared (PrescanPreparedTransactions).
		s.advancePast(p.xid)
		for i := range p.subxacts.len() {
			s.advancePast(p.subxacts.at(i))
		}
	}
	return nil
}

func (s *ControlState) redoMultiXact(rec *wal.Record) error {
	switch rec.Op() {
	case multiCreate:
		m, err := decodeMultiCreate(rec)
		if err != nil {
			return err
		}
		s.advanceMulti(m.id+1, m.offset+m.count())
		for i := range m.count() {
			xid, _ := m.member(i)
			s.advancePast(xid)
		}
	case multiTruncate:
		t, err := decodeMultiTruncate(rec)
		if err != nil {
			return err
		}
		s.OldestMulti, s.OldestMultiDB = t.endMulti, t.oldestDB // SetMultiXactIdLimit
	}
	return nil
}

// advanceMulti is MultiXactAdvanceNextMXact.
func (s *ControlState) advanceMulti(multi pg.MultiXactID, offset uint32) {
	if multiPrecedes(s.NextMulti, multi) {
		s.NextMulti = multi
	}
	if multiPrecedes(s.NextMultiOffset, offset) {
		s.NextMultiOffset = offset
	}
}

// advancePast moves the next transaction id beyond xid, into the next epoch where the 32 bits wrap around
// (AdvanceNextFullTransactionIdPastXid).
func (s *ControlState) advancePast(xid pg.TransactionID) {
	next := s.NextXID.XID()
	if xid == 0 || xidPrecedes(xid, next) {
		return
	}
	epoch := s.NextXID.Epoch()
	if xid++; xid < pg.FirstNormalXID {
		xid = pg.FirstNormalXID
	}
	if xid < next {
		epoch++
	}
	s.NextXID = pg.FullTransactionID(epoch)<<32 | pg.FullTransactionID(xid)
}
