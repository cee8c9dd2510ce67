package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"everpage/chunk"
	"everpage/chunk/offline"
	"everpage/redo"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// Pages is what a stopped primary is compared with, at one LSN: a store, or a node that is asked over the network.
type Pages interface {
	// Control is pg_control as a restore would write it.
	Control(ctx context.Context) (pg.ControlFile, error)
	// Size is the number of blocks of a fork, if it exists.
	Size(ctx context.Context, fork pg.RelFork) (blocks uint32, exists bool, err error)
	// Page reads a page of a relation or an SLRU. A page that is known to be damaged is a *chunk.DamagedError.
	Page(ctx context.Context, key pg.PageKey, dst pg.Page) error
	// Relations calls fn for every fork of every relation, until fn fails.
	Relations(ctx context.Context, fn func(fork pg.RelFork, blocks uint32) error) error
	// SLRUSegments lists the segments of an SLRU, with their pages.
	SLRUSegments(ctx context.Context, slru pg.SLRU) (map[uint32]uint32, error)
	// Objects calls fn for every small object of a kind, until fn fails. fn must not keep value.
	Objects(ctx context.Context, kind redo.MetaKind, fn func(id [2]uint32, value []byte) error) error
	// Lost tells whether a record of a database copy explains that visibility bits are missing.
	Lost(ctx context.Context, key pg.PageKey, missing []redo.VMBits) (bool, error)
}

// Final compares pages at an LSN with a data directory that was stopped there. The report is valid, as far as it got, even with an error; a mismatch is in
// the report and no error.
func Final(ctx context.Context, dir string, at pg.LSN, pages Pages) (*Report, error) {
	report := &Report{Types: map[string]*TypeReport{}, End: at}
	f := &final{ctx: ctx, dir: dir, at: at, pages: pages, report: report}
	return report, f.compare()
}

// final compares what Pages has at one LSN with a data directory that was stopped there.
type final struct {
	ctx    context.Context
	dir    string
	at     pg.LSN
	pages  Pages
	report *Report

	rep      *FinalReport
	control  pg.ControlFile // the directory's
	ourCtl   pg.ControlFile
	theirs   map[pg.RelFork]uint32 // blocks of each fork, as far as files were seen
	unlogged map[pg.RelFileLocator]bool
	slrus    map[slruSegment]bool
	sizes    map[pg.SLRU]map[uint32]uint32
	objects  map[objectKey]bool
	values   map[objectKey][]byte // ours
	ours     [pg.BlockSize]byte
	buf      []byte
	scratch  redo.CheckScratch
}

type slruSegment struct {
	slru    pg.SLRU
	segment uint32
}

type objectKey struct {
	kind redo.MetaKind
	id   [2]uint32
}

// The differences that WAL doesn't define.
const (
	tolLSN       = "page LSN, checksum and hint bits only"
	tolZero      = "a new page on one side"
	tolVMEmpty   = "empty visibility map page on one side"
	tolVMMissing = "visibility bits lost by CREATE DATABASE"
	tolSequence  = "sequence values logged ahead"
	tolSPGist    = "SP-GiST metapage cache"
	tolBloomInit = "bloom metapage of an unlogged table, which 16 and later do not log"
	tolBeyond    = "SLRU bytes beyond the next id"
	tolMoved     = "tablespace in another place, as in a copied directory"
	tolOrigin    = "replication origin that nothing was replayed from"
)

func (f *final) compare() error {
	f.rep = &FinalReport{Tolerated: map[string]uint64{}}
	f.report.Final = f.rep
	f.theirs, f.slrus, f.objects = map[pg.RelFork]uint32{}, map[slruSegment]bool{}, map[objectKey]bool{}
	f.unlogged, f.buf = map[pg.RelFileLocator]bool{}, make([]byte, pg.BlockSize)
	var err error
	if f.control, err = offline.ReadControl(f.dir); err != nil {
		return fmt.Errorf("final: %w", err)
	}
	if f.ourCtl, err = f.pages.Control(f.ctx); err != nil {
		return err
	}
	if f.control.SystemID != f.ourCtl.SystemID {
		return fmt.Errorf("final %s is of system %d, the base is of %d", f.dir, f.control.SystemID, f.ourCtl.SystemID)
	}
	if f.control.State != pg.DBShutdowned {
		return fmt.Errorf("final %s was not stopped cleanly", f.dir)
	}
	if err := f.load(); err != nil {
		return err
	}
	if err := f.controlState(); err != nil {
		return err
	}
	info, err := stream.Directory(f.ctx, f.dir, f.file)
	if err != nil {
		return err
	}
	f.tablespaces(info.Tablespaces)
	return f.onlyOurs()
}

// load reads what is compared as a whole.
func (f *final) load() error {
	f.sizes, f.values = map[pg.SLRU]map[uint32]uint32{}, map[objectKey][]byte{}
	for _, slru := range pg.SLRUs() {
		segments, err := f.pages.SLRUSegments(f.ctx, slru)
		if err != nil {
			return err
		}
		f.sizes[slru] = segments
	}
	for _, kind := range []redo.MetaKind{redo.MetaRelMap, redo.MetaTwoPhase, redo.MetaDatabase, redo.MetaTablespace, redo.MetaOrigin} {
		if err := f.pages.Objects(f.ctx, kind, func(id [2]uint32, value []byte) error {
			f.values[objectKey{kind, id}] = bytes.Clone(value)
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (f *final) differs(what, text string) {
	f.report.mismatch(Mismatch{LSN: f.at, Record: "final", Page: what, Text: text})
}

func (f *final) file(b stream.BackupFile) error {
	kind, err := pg.Classify(b.Name)
	if err != nil {
		return err
	}
	switch kind.Kind {
	case pg.FileRelation:
		err = f.relation(b, kind)
	case pg.FileSLRU:
		err = f.slru(b, kind)
	case pg.FileRelMap:
		err = f.object(b, redo.MetaRelMap, [2]uint32{kind.Spc, kind.DB})
	case pg.FileTwoPhase:
		err = f.object(b, redo.MetaTwoPhase, [2]uint32{kind.XID.XID()})
	case pg.FileOrigins:
		err = f.origins(b)
	case pg.FileVersion:
		if kind.DB != 0 {
			err = f.object(b, redo.MetaDatabase, [2]uint32{kind.Spc, kind.DB})
		}
	}
	if err != nil {
		return fmt.Errorf("final: %s: %w", b.Name, err)
	}
	return f.ctx.Err()
}

// relation compares one segment file of a fork, block by block.
func (f *final) relation(b stream.BackupFile, kind pg.File) error {
	first := kind.Segment * pg.SegmentBlocks
	blocks := uint32(b.Size / pg.BlockSize)
	f.theirs[kind.Rel] = max(f.theirs[kind.Rel], first+blocks)
	if kind.Rel.Fork == pg.InitFork {
		f.unlogged[kind.Rel.RelFileLocator] = true
	}
	if kind.Rel.Fork == pg.FSMFork {
		return nil // free space maps are not logged
	}
	size, exists, err := f.pages.Size(f.ctx, kind.Rel)
	if err != nil {
		return err
	}
	if !exists {
		return f.unknownRelation(b, kind, blocks)
	}
	for i := range blocks {
		if _, err := io.ReadFull(b.Reader, f.buf); err != nil {
			return err
		}
		if err := f.block(pg.PageKey{RelFork: kind.Rel, Block: first + i}, size, f.buf); err != nil {
			return err
		}
	}
	return nil
}

// unknownRelation is a fork that only the primary has: of pages that are all empty, or a wrong store.
func (f *final) unknownRelation(b stream.BackupFile, kind pg.File, blocks uint32) error {
	for range blocks {
		if _, err := io.ReadFull(b.Reader, f.buf); err != nil {
			return err
		}
		page := pg.Page(f.buf)
		switch {
		case page.IsZero():
			f.rep.Tolerated[tolZero]++
		case kind.Rel.Fork == pg.VMFork && emptyMap(page):
			f.rep.Tolerated[tolVMEmpty]++
		default:
			f.differs(kind.Rel.String(), fmt.Sprintf("only the primary has it, with %d blocks", blocks))
			return nil
		}
	}
	return nil
}

func emptyMap(p pg.Page) bool { return pg.Page(p[pg.PageHeaderSize:]).IsZero() }

// block compares one page.
func (f *final) block(key pg.PageKey, size uint32, theirs pg.Page) error {
	f.rep.Pages++
	ours := pg.Page(f.ours[:])
	if key.Block >= size {
		clear(ours)
	} else if err := f.pages.Page(f.ctx, key, ours); err != nil {
		var damaged *chunk.DamagedError
		if errors.As(err, &damaged) {
			f.report.Damaged++
			return nil
		}
		f.differs(key.String(), err.Error())
		return nil
	}
	if key.Fork == pg.VMFork {
		return f.visibilityMap(key, ours, theirs)
	}
	switch {
	case bytes.Equal(ours, theirs):
		f.rep.Identical++
		return nil
	case theirs.IsZero() && ours.IsZero():
		return nil
	case theirs.IsZero() && key.Block >= size, ours.IsZero() && theirs.IsNew():
		f.rep.Tolerated[tolZero]++
		return nil
	case f.control.Major >= 16 && key.Block >= size && unloggedBloom(key, theirs):
		f.rep.Tolerated[tolBloomInit]++
		return nil
	}
	kind := kindOf(theirs)
	if kind == pageHeap && ours.Flags()&^theirs.Flags()&pg.PageAllVisible != 0 {
		f.differs(key.String(), "ours is marked all-visible, the primary's is not")
		return nil
	}
	image := append(pg.Page{}, theirs...)
	if kind == pageSequence && kindOf(ours) == pageSequence {
		maskSequenceValue(ours)
		maskSequenceValue(theirs)
	}
	for _, p := range []pg.Page{ours, theirs} {
		if err := maskKind(kind, p, key); err != nil {
			f.differs(key.String(), err.Error())
			return nil
		}
	}
	if at := firstDiff(ours, theirs); at >= 0 {
		if kind == pageSPGist && key.Block == 0 && spgistCacheOnly(ours, theirs) {
			f.rep.Tolerated[tolSPGist]++
			return nil
		}
		f.report.mismatch(Mismatch{
			LSN: f.at, Record: "final", Page: key.String(), Offset: at, Ours: firstBytes(ours, at), Theirs: firstBytes(theirs, at),
			Text: fmt.Sprintf("%s page with LSN %s", kind, image.LSN()),
		})
		return nil
	}
	if kind == pageSequence {
		f.rep.Tolerated[tolSequence]++
	} else {
		f.rep.Tolerated[tolLSN]++
	}
	return nil
}

func firstDiff(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// visibilityMap: our bits must be the primary's. Its LSN and hint bits don't count.
func (f *final) visibilityMap(key pg.PageKey, ours, theirs pg.Page) error {
	at := -1
	for i := pg.PageHeaderSize; i < pg.BlockSize && at < 0; i++ {
		if ours[i] != theirs[i] {
			at = i
		}
	}
	if at < 0 {
		f.rep.Identical++
		return nil
	}
	bits := redo.CompareVM(key.Block, ours, theirs, &f.scratch)
	m := Mismatch{LSN: f.at, Record: "final", Page: key.String(), Offset: at, Ours: firstBytes(ours, at), Theirs: firstBytes(theirs, at)}
	if len(bits.Extra) > 0 {
		m.Text = fmt.Sprintf("visibility bits that the primary does not have, of heap block %d", bits.Extra[0].Heap)
		f.report.mismatch(m)
		return nil
	}
	ok, err := f.pages.Lost(f.ctx, key, bits.Missing)
	if err != nil {
		return err
	}
	if !ok {
		m.Text = fmt.Sprintf("visibility bits that only the primary has, of heap block %d, and no record of a database copy explains it", bits.Missing[0].Heap)
		f.report.mismatch(m)
		return nil
	}
	f.rep.Tolerated[tolVMMissing]++
	return nil
}

// onlyOurs looks for what the primary doesn't have.
func (f *final) onlyOurs() error {
	err := f.pages.Relations(f.ctx, func(fork pg.RelFork, blocks uint32) error {
		theirs, ok := f.theirs[fork]
		if fork.Fork == pg.FSMFork || f.unlogged[fork.RelFileLocator] && fork.Fork != pg.InitFork {
			return nil
		}
		if !ok && blocks > 0 || blocks > theirs {
			return f.surplus(fork, theirs, blocks)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, slru := range pg.SLRUs() {
		for segment := range f.sizes[slru] {
			if !f.slrus[slruSegment{slru, segment}] {
				f.differs(slru.Dir()+"/"+pg.SLRUSegmentName(segment), "the primary does not have this segment")
			}
		}
	}
	for key := range f.values {
		if !f.objects[key] {
			f.differs(objectName(key.kind, key.id), "the primary does not have it")
		}
	}
	return nil
}

// surplus are blocks that only we have: they must be zero (a visibility map's may be empty pages).
func (f *final) surplus(fork pg.RelFork, theirs, ours uint32) error {
	page := pg.Page(f.ours[:])
	for b := theirs; b < ours; b++ {
		key := pg.PageKey{RelFork: fork, Block: b}
		if err := f.pages.Page(f.ctx, key, page); err != nil {
			var damaged *chunk.DamagedError
			if errors.As(err, &damaged) {
				f.report.Damaged++
				continue
			}
			return err
		}
		switch {
		case page.IsZero():
			f.rep.Tolerated[tolZero]++
		case fork.Fork == pg.VMFork && emptyMap(page):
			f.rep.Tolerated[tolVMEmpty]++
		default:
			f.differs(key.String(), fmt.Sprintf("only we have it: the primary's fork has %d blocks", theirs))
			return nil
		}
	}
	return nil
}
