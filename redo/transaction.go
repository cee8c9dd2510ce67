package redo

import (
	"encoding/binary"
	"hash/crc32"
	"slices"

	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the transaction manager (xact.h). The upper bit of info isn't part of the type: it tells that the body has an xinfo field.
const (
	xactCommit        = 0x00
	xactPrepare       = 0x10
	xactAbort         = 0x20
	xactCommitPrep    = 0x30
	xactAbortPrep     = 0x40
	xactAssignment    = 0x50
	xactInvalidations = 0x60

	xactOpMask  = 0x70
	xactHasInfo = 0x80
)

// Bits of xinfo that announce a part of the body, in the order of the parts, and those that announce nothing.
const (
	xinfoDBInfo       = 1 << 0
	xinfoSubxacts     = 1 << 1
	xinfoRels         = 1 << 2
	xinfoDroppedStats = 1 << 8 // 15 and later
	xinfoInvals       = 1 << 3 // commits only
	xinfoTwophase     = 1 << 4
	xinfoGID          = 1 << 7 // within the part of xinfoTwophase
	xinfoOrigin       = 1 << 5
	xinfoAELocks      = 1 << 6
	xinfoCompletion   = 7 << 29

	xinfoKnown = xinfoDBInfo | xinfoSubxacts | xinfoRels | xinfoDroppedStats | xinfoInvals | xinfoTwophase | xinfoGID | xinfoOrigin |
		xinfoAELocks | xinfoCompletion
)

// doNotReplicateID is DoNotReplicateId: an origin whose progress nobody tracks.
const doNotReplicateID = 0xFFFF

var xactNames = [8]string{"COMMIT", "PREPARE", "ABORT", "COMMIT_PREPARED", "ABORT_PREPARED", "ASSIGNMENT", "INVALIDATION"}

var transactionManager = manager{
	touch: touchTransaction,
	apply: applySLRU,
	name:  func(_ pg.Major, info uint8) string { return xactNames[info&xactOpMask>>4] },
}

// xidList is an array of transaction ids as a record bears it.
type xidList []byte

func (l xidList) len() int                  { return len(l) / 4 }
func (l xidList) at(i int) pg.TransactionID { return binary.LittleEndian.Uint32(l[4*i:]) }

// xactEnd is the body of a commit or an abort (xl_xact_parsed_commit).
type xactEnd struct {
	commit, prepared bool
	xid              pg.TransactionID // the transaction that ends; of a prepared one the record's own id is another
	time             pg.Timestamp
	subxacts         xidList
	rels             []byte // 12 bytes each
	hasOrigin        bool
	originLSN        pg.LSN
	originTime       pg.Timestamp
}

// decodeXactEnd is ParseCommitRecord and ParseAbortRecord. It copies nothing.
func decodeXactEnd(rec *wal.Record) (e xactEnd, err error) {
	op := rec.Info & xactOpMask
	e.commit = op == xactCommit || op == xactCommitPrep
	e.prepared = op == xactCommitPrep || op == xactAbortPrep
	e.xid = rec.XID
	r := bodyReader{b: rec.Main}
	e.time = pg.Timestamp(r.u64())
	if rec.Info&xactHasInfo != 0 {
		e.decodeInfo(&r, rec.Major, &err, rec)
	}
	switch {
	case err != nil:
	case r.short:
		err = malformed(rec, tooShort)
	case e.prepared && rec.Info&xactHasInfo == 0, e.xid == 0:
		err = malformed(rec, "it names no transaction")
	}
	return e, err
}

func (e *xactEnd) decodeInfo(r *bodyReader, major pg.Major, err *error, rec *wal.Record) {
	info := r.u32()
	if info&^uint32(xinfoKnown) != 0 || major < 15 && info&xinfoDroppedStats != 0 || e.prepared && info&xinfoTwophase == 0 {
		*err = malformed(rec, "its xinfo has bits that make no sense")
		return
	}
	if info&xinfoDBInfo != 0 {
		r.bytes(8)
	}
	if info&xinfoSubxacts != 0 {
		e.subxacts = r.list(4)
	}
	if info&xinfoRels != 0 {
		e.rels = r.list(12)
	}
	if info&xinfoDroppedStats != 0 {
		r.list(statsItemSize(major))
	}
	if info&xinfoInvals != 0 && e.commit {
		r.list(16)
	}
	if info&xinfoTwophase != 0 {
		xid := r.u32()
		if e.prepared {
			e.xid = xid
		}
		if info&xinfoGID != 0 {
			r.cstring()
		}
	}
	if info&xinfoOrigin != 0 {
		e.hasOrigin = true
		e.originLSN = pg.LSN(r.u64())
		e.originTime = pg.Timestamp(r.u64())
	}
}

// statsItemSize is the size of xl_xact_stats_item: 18 widened the object's id.
func statsItemSize(major pg.Major) int {
	if major >= 18 {
		return 16
	}
	return 12
}

// latest is TransactionIdLatest: the transaction of the tree that comes last in circular order.
func (e *xactEnd) latest() pg.TransactionID {
	max := e.xid
	for i := range e.subxacts.len() {
		if x := e.subxacts.at(i); xidPrecedes(max, x) {
			max = x
		}
	}
	return max
}

// touchTransaction is xact_redo.
func touchTransaction(rec *wal.Record, st *ControlState, ch *Changes) error {
	switch rec.Info & xactOpMask {
	case xactCommit, xactCommitPrep, xactAbort, xactAbortPrep:
		return touchXactEnd(rec, st, ch)
	case xactPrepare:
		return touchPrepare(rec, ch)
	case xactAssignment, xactInvalidations: // for hot standby and logical decoding
		return nil
	}
	ch.Unproven = unknownType(rec)
	return nil
}

// touchXactEnd is xact_redo_commit and xact_redo_abort.
func touchXactEnd(rec *wal.Record, st *ControlState, ch *Changes) error {
	e, err := decodeXactEnd(rec)
	if err != nil {
		return err
	}
	status := []byte{xactAborted}
	if e.commit {
		status[0] = xactCommitted
	}
	ch.addTree(rec, pg.Xact, status, e.xid, e.subxacts)
	if e.commit && st.TrackCommitTimestamp {
		var entry [commitTsHead]byte
		at := e.time
		if e.hasOrigin {
			at = e.originTime
		}
		binary.LittleEndian.PutUint64(entry[:], uint64(at))
		binary.LittleEndian.PutUint16(entry[8:], rec.Origin)
		ch.addTree(rec, pg.CommitTs, entry[:], e.xid, e.subxacts)
	}
	for r := (bodyReader{b: e.rels}); len(r.b) > 0; {
		ch.dropRelation(r.relFileLocator())
	}
	if e.prepared {
		ch.Meta = append(ch.Meta, MetaChange{Kind: MetaTwoPhase, ID: [2]uint32{e.xid}})
	}
	if e.hasOrigin {
		ch.advanceOrigin(rec.Origin, e.originLSN, false)
	}
	ch.Transactions = append(ch.Transactions, TransactionEnd{Commit: e.commit, XID: e.xid, Time: e.time, Origin: rec.Origin})
	return nil
}

// dropRelation is DropRelationFiles of one relation.
func (c *Changes) dropRelation(rel pg.RelFileLocator) {
	for fork := pg.MainFork; fork <= pg.InitFork; fork++ {
		c.Sizes = append(c.Sizes, SizeChange{Op: SizeDrop, Fork: pg.RelFork{RelFileLocator: rel, Fork: fork}})
	}
}

// addTree adds a payload for every SLRU page on which xid or one of its subtransactions has an entry: head, then the entries' indexes
// (TransactionIdSetTreeStatus, TransactionTreeSetCommitTsData).
func (c *Changes) addTree(rec *wal.Record, s pg.SLRU, head []byte, xid pg.TransactionID, sub xidList) {
	perPage := uint32(pg.XactsPerPage)
	if s == pg.CommitTs {
		perPage = pg.CommitTsPerPage
	}
	if !pagesInOrder(xid, sub, perPage) {
		c.addTreeSorted(rec, s, head, xid, sub, perPage)
		return
	}
	page, start := c.openTreePage(head, xid, perPage)
	for i := range sub.len() {
		x := sub.at(i)
		if x/perPage != page {
			c.addSLRU(rec, KindDelta, s, page, start)
			page, start = c.openTreePage(head, x, perPage)
			continue
		}
		c.arena = binary.LittleEndian.AppendUint16(c.arena, uint16(x%perPage))
	}
	c.addSLRU(rec, KindDelta, s, page, start)
}

func (c *Changes) openTreePage(head []byte, xid pg.TransactionID, perPage uint32) (page uint32, start int) {
	start = len(c.arena)
	c.arena = append(c.arena, head...)
	c.arena = binary.LittleEndian.AppendUint16(c.arena, uint16(xid%perPage))
	return xid / perPage, start
}

// pagesInOrder tells whether a walk over the tree comes to each page once: the ids ascend page by page, with at most one wraparound.
// So a server writes them.
func pagesInOrder(xid pg.TransactionID, sub xidList, perPage uint32) bool {
	first := xid / perPage
	last, wrapped := first, false
	for i := range sub.len() {
		page := sub.at(i) / perPage
		switch {
		case page == last:
			continue
		case page < last:
			if wrapped || page >= first {
				return false
			}
			wrapped = true
		case wrapped && page >= first:
			return false
		}
		last = page
	}
	return true
}

// addTreeSorted is addTree for ids in any other order: a page must not be named twice.
func (c *Changes) addTreeSorted(rec *wal.Record, s pg.SLRU, head []byte, xid pg.TransactionID, sub xidList, perPage uint32) {
	all := make([]pg.TransactionID, 1, 1+sub.len())
	all[0] = xid
	for i := range sub.len() {
		all = append(all, sub.at(i))
	}
	slices.Sort(all)
	for len(all) > 0 {
		page, start := c.openTreePage(head, all[0], perPage)
		for all = all[1:]; len(all) > 0 && all[0]/perPage == page; all = all[1:] {
			c.arena = binary.LittleEndian.AppendUint16(c.arena, uint16(all[0]%perPage))
		}
		c.addSLRU(rec, KindDelta, s, page, start)
	}
}

// xactPrepared is what redo needs of a PREPARE record's header (xl_xact_prepare, TwoPhaseFileHeader).
type xactPrepared struct {
	xid       pg.TransactionID
	originLSN pg.LSN
	subxacts  xidList
}

const twophaseMagic = 0x57F94534 // TWOPHASE_MAGIC, 14 to 18

// decodePrepare is ParsePrepareRecord. 15 put two counts of dropped statistics between the counts of relations and of invalidations.
func decodePrepare(rec *wal.Record) (p xactPrepared, err error) {
	r := bodyReader{b: rec.Main}
	magic, total := r.u32(), r.u32()
	p.xid = r.u32()
	r.bytes(4 + 8 + 4) // database, prepared_at, owner
	subxacts := int32(r.u32())
	r.bytes(4 + 4) // relations dropped on commit, on abort
	if rec.Major >= 15 {
		r.bytes(4 + 4)
	}
	r.bytes(4 + 1 + 1) // invalidations, initfileinval, padding
	gid := int(r.u16())
	p.originLSN = pg.LSN(r.u64())
	r.bytes(8) // origin_timestamp
	r.bytes(pg.MaxAlign(gid))
	p.subxacts = r.items(subxacts, 4)
	switch {
	case r.short:
		err = malformed(rec, tooShort)
	case magic != twophaseMagic, int64(total) != int64(len(rec.Main))+crc32.Size:
		err = malformed(rec, "its header is not that of a two-phase state file")
	case p.xid == 0:
		err = malformed(rec, "it names no transaction")
	}
	return p, err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// touchPrepare keeps the state of a prepared transaction as its file in pg_twophase would be: the record's main data and their CRC-32C
// (PrepareRedoAdd, RecreateTwoPhaseFile).
func touchPrepare(rec *wal.Record, ch *Changes) error {
	p, err := decodePrepare(rec)
	if err != nil {
		return err
	}
	start := len(ch.arena)
	ch.arena = append(ch.arena, rec.Main...)
	ch.arena = binary.LittleEndian.AppendUint32(ch.arena, crc32.Checksum(rec.Main, castagnoli))
	ch.Meta = append(ch.Meta, MetaChange{Kind: MetaTwoPhase, ID: [2]uint32{p.xid}, Value: ch.arena[start:len(ch.arena):len(ch.arena)]})
	if rec.Origin != 0 {
		ch.advanceOrigin(rec.Origin, p.originLSN, false)
	}
	return nil
}
