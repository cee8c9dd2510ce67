package redo

import (
	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the commit log and of the commit timestamps (clog.h, commit_ts.h).
const (
	slruZeroPage = 0x00
	slruTruncate = 0x10
)

var slruNames = names{"ZEROPAGE", "TRUNCATE"}

var clogManager = manager{touch: touchCLOG, apply: applySLRU, name: slruNames.of}

// clogTruncate is xl_clog_truncate.
type clogTruncate struct {
	page      uint32
	oldestXID pg.TransactionID
	oldestDB  pg.Oid
}

func decodeCLOGTruncate(rec *wal.Record) (t clogTruncate, err error) {
	r := bodyReader{b: rec.Main}
	t = clogTruncate{page: r.slruPage(rec.Major), oldestXID: r.u32(), oldestDB: r.u32()}
	if r.short {
		err = malformed(rec, tooShort)
	}
	return t, err
}

// touchCLOG is clog_redo.
func touchCLOG(rec *wal.Record, st *ControlState, ch *Changes) error {
	switch rec.Op() {
	case slruZeroPage:
		return touchZeroPage(rec, ch, pg.Xact)
	case slruTruncate:
		t, err := decodeCLOGTruncate(rec)
		if err != nil {
			return err
		}
		// SimpleLruTruncate refuses to remove the page that is in use: the ids seem to have wrapped around.
		if !PagePrecedes(pg.Xact, st.NextXID.XID()/pg.XactsPerPage, t.page) {
			ch.SLRUTruncates = append(ch.SLRUTruncates, SLRUTruncate{SLRU: pg.Xact, Page: t.page})
		}
	default:
		ch.Unproven = unknownType(rec)
	}
	return nil
}
