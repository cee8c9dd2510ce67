package redo

import (
	"strconv"

	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the database manager (dbcommands_xlog.h). 15 put CREATE_WAL_LOG before DROP; 14 knows copying of files only.
const (
	dbCreateFileCopy = 0x00
	dbDrop14         = 0x10
	dbCreateWALLog   = 0x10
	dbDrop           = 0x20
)

var databaseManager = manager{touch: touchDatabase, name: databaseName}

func databaseName(major pg.Major, info uint8) string {
	if major < 15 {
		return names{"CREATE", "DROP"}[info>>4]
	}
	return names{"CREATE_FILE_COPY", "CREATE_WAL_LOG", "DROP"}[info>>4]
}

// touchDatabase is dbase_redo.
func touchDatabase(rec *wal.Record, _ *ControlState, ch *Changes) error {
	r := bodyReader{b: rec.Main}
	op := rec.Op()
	switch {
	case op == dbCreateFileCopy:
		to := DatabaseDir{DB: r.u32(), Spc: r.u32()}
		from := DatabaseDir{DB: r.u32(), Spc: r.u32()}
		if r.short {
			return malformed(rec, tooShort)
		}
		// A directory that is there already goes first, with its map and version file: the copy brings others.
		ch.DropDatabases = append(ch.DropDatabases, to)
		ch.CopyDatabases = append(ch.CopyDatabases, DatabaseCopy{From: from, To: to})
	case op == dbCreateWALLog && rec.Major >= 15:
		dir := DatabaseDir{DB: r.u32(), Spc: r.u32()}
		if r.short {
			return malformed(rec, tooShort)
		}
		// CreateDirAndVersionFile. What the directory holds already, stays.
		version := append(strconv.AppendUint(ch.alloc(4)[:0], uint64(rec.Major), 10), '\n')
		ch.Meta = append(ch.Meta, MetaChange{Kind: MetaDatabase, ID: [2]uint32{dir.Spc, dir.DB}, Value: version})
	case op == dbDrop && rec.Major >= 15, op == dbDrop14 && rec.Major < 15:
		db := r.u32()
		spaces := r.list(4)
		if r.short {
			return malformed(rec, tooShort)
		}
		for s := (bodyReader{b: spaces}); len(s.b) > 0; {
			spc := s.u32()
			ch.DropDatabases = append(ch.DropDatabases, DatabaseDir{Spc: spc, DB: db})
			ch.Meta = append(ch.Meta,
				MetaChange{Kind: MetaRelMap, ID: [2]uint32{spc, db}},
				MetaChange{Kind: MetaDatabase, ID: [2]uint32{spc, db}})
		}
	default:
		ch.Unproven = unknownType(rec)
	}
	return nil
}
