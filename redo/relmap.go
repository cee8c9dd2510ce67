package redo

import (
	"everpage/wal"
	"everpage/wal/pg"
)

// relMapUpdate is the only record of the relation map manager (relmapper.h).
const relMapUpdate = 0x00

var relMapManager = manager{touch: touchRelMap, name: names{"UPDATE"}.of}

// relMapSize is the size of pg_filenode.map in bytes (RelMapFile): 62 entries and padding, from 16 on 64 entries.
func relMapSize(major pg.Major) int32 {
	if major >= 16 {
		return 524
	}
	return 512
}

// touchRelMap is relmap_redo: the record bears the whole file. That of the shared catalogs has no database and pg_global as its tablespace.
func touchRelMap(rec *wal.Record, _ *ControlState, ch *Changes) error {
	if rec.Op() != relMapUpdate {
		ch.Unproven = unknownType(rec)
		return nil
	}
	r := bodyReader{b: rec.Main}
	db, spc := r.u32(), r.u32()
	size := int32(r.u32())
	if size != relMapSize(rec.Major) {
		return malformed(rec, "the relation map has a wrong size")
	}
	file := r.bytes(int(size))
	if r.short {
		return malformed(rec, tooShort)
	}
	ch.Meta = append(ch.Meta, MetaChange{Kind: MetaRelMap, ID: [2]uint32{spc, db}, Value: file})
	return nil
}
