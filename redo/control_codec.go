package redo

import (
	"encoding/binary"
	"fmt"

	"everpage/wal/pg"
)

// controlVersion is the first byte of every encoded group.
const controlVersion = 1

// Sizes of the encoded groups, version included.
const (
	controlXIDSize   = 1 + 8 + 4
	controlMultiSize = 1 + 4 + 4
	controlRestSize  = 1 + 8*4 + 3*8 + 6*4 + 1
)

// Bits of the last byte of ControlRest.
const (
	controlFullPageWrites = 1 << iota
	controlLogHints
	controlTrackCommitTs
	controlChecksums

	controlBits = controlFullPageWrites | controlLogHints | controlTrackCommitTs | controlChecksums
)

// AppendGroup appends one group, encoded: a version byte, then its fields in the order of the struct, little-endian and fixed in width.
func (s *ControlState) AppendGroup(b []byte, g ControlGroup) []byte {
	le := binary.LittleEndian
	b = append(b, controlVersion)
	switch g {
	case ControlXID:
		b = le.AppendUint64(b, uint64(s.NextXID))
		return le.AppendUint32(b, s.NewestCommitTs)
	case ControlMulti:
		b = le.AppendUint32(b, s.NextMulti)
		return le.AppendUint32(b, s.NextMultiOffset)
	}
	for _, v := range [...]uint32{s.NextOid, s.OldestXID, s.OldestXIDDB, s.OldestMulti, s.OldestMultiDB, s.OldestCommitTs, s.Timeline, s.PrevTimeline} {
		b = le.AppendUint32(b, v)
	}
	for _, v := range [...]uint64{uint64(s.CheckPointRedo), uint64(s.CheckPoint), uint64(s.CheckPointTime)} {
		b = le.AppendUint64(b, v)
	}
	for _, v := range [...]int32{s.WALLevel, s.MaxConnections, s.MaxWorkerProcesses, s.MaxWALSenders, s.MaxPreparedXacts, s.MaxLocksPerXact} {
		b = le.AppendUint32(b, uint32(v))
	}
	return append(b, bit(s.FullPageWrites, controlFullPageWrites)|bit(s.WALLogHints, controlLogHints)|
		bit(s.TrackCommitTimestamp, controlTrackCommitTs)|bit(s.DataChecksums, controlChecksums))
}

func bit(on bool, mask uint8) uint8 {
	if on {
		return mask
	}
	return 0
}

// DecodeGroup sets the fields of one group from what AppendGroup wrote.
func (s *ControlState) DecodeGroup(g ControlGroup, b []byte) error {
	size := controlRestSize
	switch g {
	case ControlXID:
		size = controlXIDSize
	case ControlMulti:
		size = controlMultiSize
	case ControlRest:
	default:
		return fmt.Errorf("control group %d does not exist", g)
	}
	if len(b) != size || b[0] != controlVersion {
		return fmt.Errorf("control group %d has %d bytes, want %d of version %d: it is damaged or was written by a later release", g, len(b), size, controlVersion)
	}
	r := bodyReader{b: b[1:]}
	switch g {
	case ControlXID:
		s.NextXID, s.NewestCommitTs = pg.FullTransactionID(r.u64()), r.u32()
		return nil
	case ControlMulti:
		s.NextMulti, s.NextMultiOffset = r.u32(), r.u32()
		return nil
	}
	bits := b[len(b)-1]
	if bits&^uint8(controlBits) != 0 {
		return fmt.Errorf("control group %d has unknown bits %02X: it is damaged or was written by a later release", g, bits)
	}
	for _, v := range [...]*uint32{&s.NextOid, &s.OldestXID, &s.OldestXIDDB, &s.OldestMulti, &s.OldestMultiDB, &s.OldestCommitTs, &s.Timeline, &s.PrevTimeline} {
		*v = r.u32()
	}
	s.CheckPointRedo, s.CheckPoint, s.CheckPointTime = pg.LSN(r.u64()), pg.LSN(r.u64()), int64(r.u64())
	for _, v := range [...]*int32{&s.WALLevel, &s.MaxConnections, &s.MaxWorkerProcesses, &s.MaxWALSenders, &s.MaxPreparedXacts, &s.MaxLocksPerXact} {
		*v = int32(r.u32())
	}
	s.FullPageWrites, s.WALLogHints = bits&controlFullPageWrites != 0, bits&controlLogHints != 0
	s.TrackCommitTimestamp, s.DataChecksums = bits&controlTrackCommitTs != 0, bits&controlChecksums != 0
	return nil
}
