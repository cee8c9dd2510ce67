package datadir

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"everpage/wal/pg"
)

// OIDs of system catalogs and of the schema of TOAST tables.
const (
	oidPgClass     pg.Oid = 1259
	oidPgIndex     pg.Oid = 2610
	oidPgNamespace pg.Oid = 2615
	oidPgToast     pg.Oid = 99
)

// catalog reads a database's system catalogs from their heap pages, as a session that starts at the LSN would see them: what is not committed
// there is aborted.
type catalog struct {
	src   Source
	at    pg.LSN
	major pg.Major
	db    Database
	sizes map[pg.RelFileLocator]pg.BlockNumber // of main forks
	clog  map[uint32]pg.Page
	maps  map[pg.Oid]pg.Oid // relation numbers of mapped catalogs
}

// classRow is a row of pg_class.
type classRow struct {
	oid       pg.Oid
	name      string
	namespace pg.Oid
	node      pg.Oid // relation number, looked up where the relation is mapped; 0 without storage
	spc       pg.Oid
	kind      byte
}

// heapTuple is a tuple and where it stands.
type heapTuple struct {
	block   pg.BlockNumber
	offset  int // of its data in the page
	data    []byte
	visible bool
}

const mapMagic = 0x592717 // RELMAPPER_FILEMAGIC

// parseRelMap reads the mappings of pg_filenode.map: catalog OIDs to relation numbers (RelMapFile, relmapper.c).
func parseRelMap(b []byte) (map[pg.Oid]pg.Oid, error) {
	le := binary.LittleEndian
	if len(b) < 8 || le.Uint32(b) != mapMagic {
		return nil, fmt.Errorf("pg_filenode.map is damaged: no magic number")
	}
	n := le.Uint32(b[4:])
	if n > 64 || len(b) < 8+8*int(n) {
		return nil, fmt.Errorf("pg_filenode.map is damaged: %d mappings in %d bytes", n, len(b))
	}
	m := map[pg.Oid]pg.Oid{}
	for i := range int(n) {
		m[le.Uint32(b[8+8*i:])] = le.Uint32(b[12+8*i:])
	}
	return m, nil
}

// openCatalog finds the catalogs of a database.
func openCatalog(src Source, at pg.LSN, c *Cluster, db pg.Oid, sizes map[pg.RelFileLocator]pg.BlockNumber) (*catalog, error) {
	k := &catalog{src: src, at: at, major: c.Control.Major, sizes: sizes, clog: map[uint32]pg.Page{}}
	for _, d := range c.Databases {
		for _, m := range c.RelMaps {
			if d.DB == db && m.DB == db && m.Spc == d.Spc {
				var err error
				k.db = d
				k.maps, err = parseRelMap(m.Data)
				return k, err
			}
		}
	}
	return nil, fmt.Errorf("database %d has no relation map", db)
}

// classes reads pg_class.
func (k *catalog) classes(ctx context.Context) ([]classRow, error) {
	var rows []classRow
	// relallfrozen shifts what follows it.
	shift := 0
	if k.major >= 18 {
		shift = 4
	}
	le := binary.LittleEndian
	err := k.scan(ctx, pg.RelFileLocator{Spc: k.db.Spc, DB: k.db.DB, Rel: k.maps[oidPgClass]}, 116+shift, func(t heapTuple) {
		if !t.visible {
			return
		}
		d := t.data
		r := classRow{oid: le.Uint32(d), name: nameAt(d[4:]), namespace: le.Uint32(d[68:]), node: le.Uint32(d[88:]), spc: le.Uint32(d[92:]), kind: d[115+shift]}
		if r.node == 0 {
			r.node = k.maps[r.oid]
		}
		if r.spc == 0 {
			r.spc = k.db.Spc
		}
		rows = append(rows, r)
	})
	return rows, err
}

func nameAt(d []byte) string {
	n, _, _ := bytes.Cut(d[:64], []byte{0})
	return string(n)
}

// find returns the storage of a catalog that is not mapped.
func (k *catalog) find(rows []classRow, oid pg.Oid) (pg.RelFileLocator, error) {
	for _, r := range rows {
		if r.oid == oid && r.node != 0 {
			return pg.RelFileLocator{Spc: r.spc, DB: k.db.DB, Rel: r.node}, nil
		}
	}
	return pg.RelFileLocator{}, fmt.Errorf("pg_class of database %d has no row for catalog %d", k.db.DB, oid)
}

// schemas reads the names of pg_namespace.
func (k *catalog) schemas(ctx context.Context, rows []classRow) (map[pg.Oid]string, error) {
	loc, err := k.find(rows, oidPgNamespace)
	if err != nil {
		return nil, err
	}
	names := map[pg.Oid]string{}
	return names, k.scan(ctx, loc, 68, func(t heapTuple) {
		if t.visible {
			names[binary.LittleEndian.Uint32(t.data)] = nameAt(t.data[4:])
		}
	})
}

// invalidate makes the patches that mark an index invalid and not ready, so that it is neither read nor written until REINDEX. All versions of its row
// are patched, since one that is not visible yet may become so by COMMIT PREPARED.
func (k *catalog) invalidate(ctx context.Context, rows []classRow, index pg.Oid) (pg.RelFork, []patch, error) {
	loc, err := k.find(rows, oidPgIndex)
	if err != nil {
		return pg.RelFork{}, nil, err
	}
	valid := 18
	if k.major < 15 {
		// Without indnullsnotdistinct.
		valid = 17
	}
	var patches []patch
	visible := false
	err = k.scan(ctx, loc, valid+5, func(t heapTuple) {
		if binary.LittleEndian.Uint32(t.data) == index {
			visible = visible || t.visible
			patches = append(patches, patch{block: t.block, offset: t.offset + valid}, patch{block: t.block, offset: t.offset + valid + 2})
		}
	})
	if err == nil && !visible {
		err = fmt.Errorf("pg_index of database %d has no row for index %d", k.db.DB, index)
	}
	return pg.RelFork{RelFileLocator: loc}, patches, err
}

// Bits of a heap tuple's t_infomask (htup_details.h).
const (
	heapXmaxKeyShare  = 0x0010
	heapXmaxExclusive = 0x0040
	heapXmaxLockOnly  = 0x0080
	heapXminCommitted = 0x0100
	heapXminInvalid   = 0x0200
	heapXmaxCommitted = 0x0400
	heapXmaxInvalid   = 0x0800
	heapXmaxIsMulti   = 0x1000

	heapHeaderSize = 23
)

// scan calls fn for every tuple of a heap that has at least least bytes of data, which those of its columns that are read take.
func (k *catalog) scan(ctx context.Context, loc pg.RelFileLocator, least int, fn func(heapTuple)) error {
	fork := pg.RelFork{RelFileLocator: loc}
	blocks, ok := k.sizes[loc]
	if !ok {
		return fmt.Errorf("catalog %s does not exist", loc)
	}
	page := make(pg.Page, pg.BlockSize)
	le := binary.LittleEndian
	for block := range blocks {
		if err := k.src.ReadBlocks(ctx, fork, block, k.at, page); err != nil {
			return err
		}
		if !page.Valid() {
			return fmt.Errorf("catalog %s block %d is damaged", loc, block)
		}
		for i := range page.ItemCount() {
			id := page.Item(pg.OffsetNumber(i + 1))
			if id.Flags() != pg.LPNormal {
				continue
			}
			if id.Length() < heapHeaderSize || id.Offset()+id.Length() > pg.BlockSize {
				return fmt.Errorf("catalog %s block %d item %d is damaged", loc, block, i+1)
			}
			tuple := page[id.Offset() : id.Offset()+id.Length()]
			hoff := int(tuple[22])
			if len(tuple) < hoff+least {
				return fmt.Errorf("catalog %s block %d item %d is damaged: %d bytes", loc, block, i+1, len(tuple))
			}
			visible, err := k.visible(ctx, le.Uint32(tuple), le.Uint32(tuple[4:]), le.Uint16(tuple[20:]))
			if err != nil {
				return fmt.Errorf("catalog %s block %d item %d: %w", loc, block, i+1, err)
			}
			fn(heapTuple{block: block, offset: id.Offset() + hoff, data: tuple[hoff:], visible: visible})
		}
	}
	return nil
}

// visible tells whether a tuple is seen by a session that starts when nothing else runs (HeapTupleSatisfiesMVCC).
func (k *catalog) visible(ctx context.Context, xmin, xmax pg.TransactionID, infomask uint16) (bool, error) {
	switch infomask & (heapXminCommitted | heapXminInvalid) {
	case heapXminInvalid:
		return false, nil
	case 0:
		if ok, err := k.committed(ctx, xmin); !ok || err != nil {
			return false, err
		}
	}
	switch {
	case infomask&heapXmaxInvalid != 0, infomask&heapXmaxLockOnly != 0,
		infomask&(heapXmaxIsMulti|heapXmaxExclusive|heapXmaxKeyShare) == heapXmaxExclusive:
		return true, nil
	case infomask&heapXmaxIsMulti != 0:
		return false, fmt.Errorf("the row was changed while others locked it (multixact %d): whether it is there cannot be told", xmax)
	case infomask&heapXmaxCommitted != 0:
		return false, nil
	}
	deleted, err := k.committed(ctx, xmax)
	return !deleted, err
}

// committed asks pg_xact. A subtransaction that is only sub-committed has no committed parent (TransactionIdDidCommit), since commits are written
// to the whole tree at once.
func (k *catalog) committed(ctx context.Context, xid pg.TransactionID) (bool, error) {
	if xid < pg.FirstNormalXID {
		return xid != 0, nil
	}
	n := xid / pg.XactsPerPage
	page, ok := k.clog[n]
	if !ok {
		page = make(pg.Page, pg.BlockSize)
		key := pg.SLRUPage(pg.Xact, n)
		if err := k.src.ReadBlocks(ctx, key.RelFork, key.Block, k.at, page); err != nil {
			return false, err
		}
		k.clog[n] = page
	}
	const statusCommitted = 1
	i := xid % pg.XactsPerPage
	return page[i/4]>>(2*(i%4))&3 == statusCommitted, nil
}
