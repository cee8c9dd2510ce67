package redo

import (
	"encoding/binary"

	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the replication origin manager (origin.h).
const (
	originSet  = 0x00
	originDrop = 0x10
)

var originManager = manager{touch: touchOrigin, name: names{"SET", "DROP"}.of}

// touchOrigin is replorigin_redo.
func touchOrigin(rec *wal.Record, _ *ControlState, ch *Changes) error {
	r := bodyReader{b: rec.Main}
	switch rec.Op() {
	case originSet:
		lsn := pg.LSN(r.u64())
		origin := r.u16()
		force := r.u8() != 0
		if r.short {
			return malformed(rec, tooShort)
		}
		ch.advanceOrigin(origin, lsn, force)
	case originDrop:
		origin := r.u16()
		if r.short {
			return malformed(rec, tooShort)
		}
		ch.Meta = append(ch.Meta, MetaChange{Kind: MetaOrigin, ID: [2]uint32{uint32(origin)}})
	default:
		ch.Unproven = unknownType(rec)
	}
	return nil
}

// advanceOrigin is replorigin_advance: progress goes back only by force.
func (c *Changes) advanceOrigin(origin uint16, remote pg.LSN, force bool) {
	if origin == 0 || origin == doNotReplicateID {
		return
	}
	start := len(c.arena)
	c.arena = binary.LittleEndian.AppendUint64(c.arena, uint64(remote))
	c.Meta = append(c.Meta, MetaChange{
		Kind: MetaOrigin, ID: [2]uint32{uint32(origin)}, Value: c.arena[start:len(c.arena):len(c.arena)], IfGreater: !force,
	})
}
