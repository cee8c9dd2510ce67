package redo

import (
	"bytes"

	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the XLOG manager (pg_control.h).
const (
	xlogCheckpointShutdown  = 0x00
	xlogCheckpointOnline    = 0x10
	xlogNoop                = 0x20
	xlogNextOid             = 0x30
	xlogSwitch              = 0x40
	xlogBackupEnd           = 0x50
	xlogParameterChange     = 0x60
	xlogRestorePoint        = 0x70
	xlogFPWChange           = 0x80
	xlogEndOfRecovery       = 0x90
	xlogFPIForHint          = 0xA0
	xlogFPI                 = 0xB0
	xlogOverwriteContrecord = 0xD0
	xlogCheckpointRedo      = 0xE0 // 17 and later
)

const restorePointName = 64 // MAXFNAMELEN

var xlogNames = names{
	xlogCheckpointShutdown >> 4:  "CHECKPOINT_SHUTDOWN",
	xlogCheckpointOnline >> 4:    "CHECKPOINT_ONLINE",
	xlogNoop >> 4:                "NOOP",
	xlogNextOid >> 4:             "NEXTOID",
	xlogSwitch >> 4:              "SWITCH",
	xlogBackupEnd >> 4:           "BACKUP_END",
	xlogParameterChange >> 4:     "PARAMETER_CHANGE",
	xlogRestorePoint >> 4:        "RESTORE_POINT",
	xlogFPWChange >> 4:           "FPW_CHANGE",
	xlogEndOfRecovery >> 4:       "END_OF_RECOVERY",
	xlogFPIForHint >> 4:          "FPI_FOR_HINT",
	xlogFPI >> 4:                 "FPI",
	xlogOverwriteContrecord >> 4: "OVERWRITE_CONTRECORD",
	xlogCheckpointRedo >> 4:      "CHECKPOINT_REDO",
}

// xlogManager has no apply: its records change pages by images only, and a page named without one by an FPI record is damaged.
var xlogManager = manager{touch: touchXLOG, name: xlogName}

func xlogName(major pg.Major, info uint8) string {
	if info&0xF0 == xlogCheckpointRedo && major < 17 {
		return ""
	}
	return xlogNames[info>>4]
}

// touchXLOG is xlog_redo, but for what it does to the control state (ControlState.Redo).
func touchXLOG(rec *wal.Record, st *ControlState, ch *Changes) error {
	switch rec.Op() {
	case xlogFPIForHint:
		// With full_page_writes off the record may come without images. It then says nothing.
		kept := ch.Pages[:0]
		for i := range ch.Pages {
			if ch.Pages[i].Kind == KindImage {
				kept = append(kept, ch.Pages[i])
			}
		}
		ch.Pages = kept
	case xlogRestorePoint:
		r := bodyReader{b: rec.Main}
		ch.RestoreTime = pg.Timestamp(r.u64())
		name := r.bytes(min(len(r.b), restorePointName))
		if r.short {
			return malformed(rec, tooShort)
		}
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		ch.RestorePoint = string(name)
	case xlogParameterChange:
		p, err := decodeParameterChange(rec)
		if err != nil {
			return err
		}
		if st.TrackCommitTimestamp && !p.trackCommitTimestamp { // DeactivateCommitTs
			ch.SLRUTruncates = append(ch.SLRUTruncates, SLRUTruncate{SLRU: pg.CommitTs, All: true})
		}
	}
	return nil
}

// parameterChange is xl_parameter_change.
type parameterChange struct {
	maxConnections, maxWorkerProcesses, maxWALSenders, maxPreparedXacts, maxLocksPerXact, walLevel int32
	walLogHints, trackCommitTimestamp                                                              bool
}

func decodeParameterChange(rec *wal.Record) (p parameterChange, err error) {
	r := bodyReader{b: rec.Main}
	p = parameterChange{
		maxConnections:       int32(r.u32()),
		maxWorkerProcesses:   int32(r.u32()),
		maxWALSenders:        int32(r.u32()),
		maxPreparedXacts:     int32(r.u32()),
		maxLocksPerXact:      int32(r.u32()),
		walLevel:             int32(r.u32()),
		walLogHints:          r.u8() != 0,
		trackCommitTimestamp: r.u8() != 0,
	}
	if r.short {
		err = malformed(rec, tooShort)
	}
	return p, err
}

// endOfRecovery is xl_end_of_recovery; 17 added wal_level, which pg_control has from elsewhere.
type endOfRecovery struct {
	timeline, prevTimeline pg.TimelineID
}

func decodeEndOfRecovery(rec *wal.Record) (e endOfRecovery, err error) {
	r := bodyReader{b: rec.Main}
	r.bytes(8) // time
	e = endOfRecovery{timeline: r.u32(), prevTimeline: r.u32()}
	if r.short {
		err = malformed(rec, tooShort)
	}
	return e, err
}
