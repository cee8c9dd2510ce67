package redo

import (
	"everpage/wal"
	"everpage/wal/pg"
)

var commitTsManager = manager{touch: touchCommitTs, apply: applySLRU, name: slruNames.of}

// commitTsTruncate is xl_commit_ts_truncate.
type commitTsTruncate struct {
	page      uint32
	oldestXID pg.TransactionID
}

func decodeCommitTsTruncate(rec *wal.Record) (t commitTsTruncate, err error) {
	r := bodyReader{b: rec.Main}
	t = commitTsTruncate{page: r.slruPage(rec.Major), oldestXID: r.u32()}
	if r.short {
		err = malformed(rec, tooShort)
	}
	return t, err
}

// touchCommitTs is commit_ts_redo.
func touchCommitTs(rec *wal.Record, _ *ControlState, ch *Changes) error {
	switch rec.Op() {
	case slruZeroPage:
		return touchZeroPage(rec, ch, pg.CommitTs)
	case slruTruncate:
		t, err := decodeCommitTsTruncate(rec)
		if err != nil {
			return err
		}
		ch.SLRUTruncates = append(ch.SLRUTruncates, SLRUTruncate{SLRU: pg.CommitTs, Page: t.page})
	default:
		ch.Unproven = unknownType(rec)
	}
	return nil
}
