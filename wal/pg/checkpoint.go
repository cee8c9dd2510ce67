package pg

import (
	"encoding/binary"
	"fmt"
)

// CheckPointSize is the size in bytes of the CheckPoint struct in all supported majors, in a checkpoint record and in pg_control.
const CheckPointSize = 88

// Offsets in the CheckPoint struct (pg_control.h). From 17 on wal_level stands where older majors have padding.
const (
	offCPRedo            = 0
	offCPTimeline        = 8
	offCPPrevTimeline    = 12
	offCPFullPageWrites  = 16
	offCPWALLevel        = 20
	offCPNextXID         = 24
	offCPNextOid         = 32
	offCPNextMulti       = 36
	offCPNextMultiOffset = 40
	offCPOldestXID       = 44
	offCPOldestXIDDB     = 48
	offCPOldestMulti     = 52
	offCPOldestMultiDB   = 56
	offCPTime            = 64
	offCPOldestCommitTs  = 72
	offCPNewestCommitTs  = 76
	offCPOldestActiveXID = 80
)

// Values of wal_level (xlog.h's WalLevel), as pg_control and WAL bear them.
const (
	WALLevelMinimal int32 = 0
	WALLevelReplica int32 = 1
	WALLevelLogical int32 = 2
)

// CheckPoint is the body of a checkpoint record, of which pg_control keeps a copy.
type CheckPoint struct {
	Redo           LSN // where redo starts
	Timeline       TimelineID
	PrevTimeline   TimelineID // the one before, if the record begins a timeline; equal to Timeline otherwise
	FullPageWrites bool
	WALLevel       int32 // 17 and later; 0 before

	NextXID         FullTransactionID
	NextOid         Oid
	NextMulti       MultiXactID
	NextMultiOffset uint32
	OldestXID       TransactionID
	OldestXIDDB     Oid
	OldestMulti     MultiXactID
	OldestMultiDB   Oid
	Time            int64 // seconds since 1970
	OldestCommitTs  TransactionID
	NewestCommitTs  TransactionID
	OldestActiveXID TransactionID // 0 in a shutdown checkpoint
}

// DecodeCheckPoint reads the CheckPoint struct at the start of b. What follows it is not looked at.
func DecodeCheckPoint(major Major, b []byte) (CheckPoint, error) {
	if len(b) < CheckPointSize {
		return CheckPoint{}, fmt.Errorf("checkpoint has %d bytes, want %d: the record or pg_control is cut off", len(b), CheckPointSize)
	}
	if major < MajorFirst || major > MajorLast {
		return CheckPoint{}, fmt.Errorf("checkpoint of PostgreSQL %d: supported are %d to %d", major, MajorFirst, MajorLast)
	}
	le := binary.LittleEndian
	c := CheckPoint{
		Redo:            LSN(le.Uint64(b[offCPRedo:])),
		Timeline:        le.Uint32(b[offCPTimeline:]),
		PrevTimeline:    le.Uint32(b[offCPPrevTimeline:]),
		FullPageWrites:  b[offCPFullPageWrites] != 0,
		NextXID:         FullTransactionID(le.Uint64(b[offCPNextXID:])),
		NextOid:         le.Uint32(b[offCPNextOid:]),
		NextMulti:       le.Uint32(b[offCPNextMulti:]),
		NextMultiOffset: le.Uint32(b[offCPNextMultiOffset:]),
		OldestXID:       le.Uint32(b[offCPOldestXID:]),
		OldestXIDDB:     le.Uint32(b[offCPOldestXIDDB:]),
		OldestMulti:     le.Uint32(b[offCPOldestMulti:]),
		OldestMultiDB:   le.Uint32(b[offCPOldestMultiDB:]),
		Time:            int64(le.Uint64(b[offCPTime:])),
		OldestCommitTs:  le.Uint32(b[offCPOldestCommitTs:]),
		NewestCommitTs:  le.Uint32(b[offCPNewestCommitTs:]),
		OldestActiveXID: le.Uint32(b[offCPOldestActiveXID:]),
	}
	if major >= 17 {
		c.WALLevel = int32(le.Uint32(b[offCPWALLevel:]))
	}
	return c, nil
}

// Append adds the struct as this major lays it out, padding zero, to b: CheckPointSize bytes.
func (c *CheckPoint) Append(major Major, b []byte) []byte {
	var s [CheckPointSize]byte
	le := binary.LittleEndian
	le.PutUint64(s[offCPRedo:], uint64(c.Redo))
	le.PutUint32(s[offCPTimeline:], c.Timeline)
	le.PutUint32(s[offCPPrevTimeline:], c.PrevTimeline)
	if c.FullPageWrites {
		s[offCPFullPageWrites] = 1
	}
	if major >= 17 {
		le.PutUint32(s[offCPWALLevel:], uint32(c.WALLevel))
	}
	le.PutUint64(s[offCPNextXID:], uint64(c.NextXID))
	le.PutUint32(s[offCPNextOid:], c.NextOid)
	le.PutUint32(s[offCPNextMulti:], c.NextMulti)
	le.PutUint32(s[offCPNextMultiOffset:], c.NextMultiOffset)
	le.PutUint32(s[offCPOldestXID:], c.OldestXID)
	le.PutUint32(s[offCPOldestXIDDB:], c.OldestXIDDB)
	le.PutUint32(s[offCPOldestMulti:], c.OldestMulti)
	le.PutUint32(s[offCPOldestMultiDB:], c.OldestMultiDB)
	le.PutUint64(s[offCPTime:], uint64(c.Time))
	le.PutUint32(s[offCPOldestCommitTs:], c.OldestCommitTs)
	le.PutUint32(s[offCPNewestCommitTs:], c.NewestCommitTs)
	le.PutUint32(s[offCPOldestActiveXID:], c.OldestActiveXID)
	return append(b, s[:]...)
}

// Encode is Append to nothing.
func (c *CheckPoint) Encode(major Major) []byte { return c.Append(major, nil) }
