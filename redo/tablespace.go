package redo

import "everpage/wal"

// Records of the tablespace manager (tablespace.h).
const (
	tablespaceCreate = 0x00
	tablespaceDrop   = 0x10
)

var tablespaceManager = manager{touch: touchTablespace, name: names{"CREATE", "DROP"}.of}

// touchTablespace is tblspc_redo. DROP is logged only of a tablespace that holds no relation.
func touchTablespace(rec *wal.Record, _ *ControlState, ch *Changes) error {
	r := bodyReader{b: rec.Main}
	oid := r.u32()
	change := MetaChange{Kind: MetaTablespace, ID: [2]uint32{oid}}
	switch rec.Op() {
	case tablespaceCreate:
		change.Value = r.cstring() // not nil: an in-place tablespace has an empty path
	case tablespaceDrop:
	default:
		ch.Unproven = unknownType(rec)
		return nil
	}
	if r.short {
		return malformed(rec, tooShort)
	}
	ch.Meta = append(ch.Meta, change)
	return nil
}
