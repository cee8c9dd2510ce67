package wal

import "fmt"

// Rmgr is a resource manager's number, the same in all supported majors (rmgrlist.h). Numbers from 128 are extensions' (15 and later).
type Rmgr uint8

// The built-in resource managers.
const (
	RmXLOG              Rmgr = 0
	RmTransaction       Rmgr = 1
	RmStorage           Rmgr = 2
	RmCLOG              Rmgr = 3
	RmDatabase          Rmgr = 4
	RmTablespace        Rmgr = 5
	RmMultiXact         Rmgr = 6
	RmRelMap            Rmgr = 7
	RmStandby           Rmgr = 8
	RmHeap2             Rmgr = 9
	RmHeap              Rmgr = 10
	RmBtree             Rmgr = 11
	RmHash              Rmgr = 12
	RmGin               Rmgr = 13
	RmGist              Rmgr = 14
	RmSequence          Rmgr = 15
	RmSPGist            Rmgr = 16
	RmBRIN              Rmgr = 17
	RmCommitTs          Rmgr = 18
	RmReplicationOrigin Rmgr = 19
	RmGeneric           Rmgr = 20
	RmLogicalMessage    Rmgr = 21
)

// FirstCustomRmgr is RM_MIN_CUSTOM_ID.
const FirstCustomRmgr Rmgr = 128

var rmgrNames = [...]string{"XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby", "Heap2", "Heap",
	"Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic", "LogicalMessage"}

// String is the name that pg_waldump prints.
func (r Rmgr) String() string {
	if int(r) < len(rmgrNames) {
		return rmgrNames[r]
	}
	if r >= FirstCustomRmgr {
		return fmt.Sprintf("custom%03d", uint8(r))
	}
	return fmt.Sprintf("rmgr%03d", uint8(r))
}
