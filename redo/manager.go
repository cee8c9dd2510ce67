package redo

import (
	"everpage/wal"
	"everpage/wal/pg"
)

// manager is one resource manager: what its records change, and how. The functions stand side by side in the manager's own file.
type manager struct {
	// touch adds to ch what rec changes beyond its block references, and may change what was made of those. The pages that references name
	// are already in ch.Pages, in the order of the record. nil: the references are all.
	touch func(rec *wal.Record, st *ControlState, ch *Changes) error
	// apply is the redo of one page (of d.Part). The page is not new, its LSN is older, and the caller sets its LSN afterwards.
	// Where the record starts from a zero page (WILL_INIT) the page is all zero. nil: no record of this manager changes a page without an image.
	apply func(page pg.Page, d *Delta) error
	// afterImage is what redo still does to a page whose image was just restored; nil: nothing.
	afterImage func(page pg.Page, d *Delta) error
	// tags tells that deltas of records with several blocks bear the tags of the other ones.
	tags bool
	// mask clears what may differ between a primary's page and redo's (the manager's rm_mask); nil: its records never bear check images.
	mask func(page pg.Page, key pg.PageKey)
	// name is the record's name as pg_waldump prints it, without "+INIT" (rm_identify); "" where the manager has no such record.
	name func(major pg.Major, info uint8) string
}

// managers is indexed by wal.Rmgr. A nil entry is a manager whose redo doesn't exist (yet): its pages are damaged by its records, loudly.
var managers = [22]*manager{
	wal.RmXLOG:              &xlogManager,
	wal.RmTransaction:       &transactionManager,
	wal.RmStorage:           &storageManager,
	wal.RmCLOG:              &clogManager,
	wal.RmDatabase:          &databaseManager,
	wal.RmTablespace:        &tablespaceManager,
	wal.RmMultiXact:         &multiXactManager,
	wal.RmRelMap:            &relMapManager,
	wal.RmStandby:           &standbyManager,
	wal.RmSequence:          &sequenceManager,
	wal.RmCommitTs:          &commitTsManager,
	wal.RmReplicationOrigin: &originManager,
	wal.RmLogicalMessage:    &logicalMessageManager,
	wal.RmHeap2:             &heap2Manager,
	wal.RmHeap:              &heapManager,
	wal.RmHash:              &hashManager,
	wal.RmGin:               &ginManager,
	wal.RmGist:              &gistManager,
	wal.RmSPGist:            &spgistManager,
	wal.RmBRIN:              &brinManager,
	wal.RmGeneric:           &genericManager,
	wal.RmBtree:             &btreeManager,
}
