// Package importer makes the first versions of a branch from one base backup, or from a data directory that was stopped.
package importer

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"

	"everpage/chunk"
	"everpage/chunk/ingest"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// Options say what is imported.
type Options struct {
	Branch        uint32
	Major         pg.Major
	Start         pg.LSN // the backup's start (redo) LSN, where all of its pages lie whatever their pd_lsn says
	DataChecksums bool   // pages bear checksums: one that is wrong makes its page damaged until WAL replaces it
}

// Importer writes a base backup into a branch that holds nothing. All its versions lie at Options.Start, so that no page outranks the
// record that repairs it. Its methods are for one goroutine.
type Importer struct {
	opts    Options
	w       *chunk.Writer
	control []byte // pg_control as the backup has it
	buf     []byte
	pending int64           // bytes since the last commit
	spaces  map[pg.Oid]bool // tablespaces: true where Tablespaces named it, false where only files did

	Damaged []string // pages whose checksum is wrong, at most maxDamaged of them. Of a server that ran, WAL may yet replace them
	Bytes   int64    // read so far
}

const (
	maxDamaged   = 100
	commitBytes  = 16 << 20
	maxSmallFile = 64 << 20 // of files that are kept whole: configuration, relation maps, two-phase states
	readPages    = 64
)

// importing is the note of a branch whose import has not finished: it must be dropped and made again.
const importing = "importing"

// Unfinished tells whether a branch's note says that its import was interrupted.
func Unfinished(note []byte) bool { return string(note) == importing }

var importOrigin = chunk.Origin{Rmgr: ingest.ImportOrigin}

// New starts an import. The branch must be empty: one that an interrupted import left is dropped first (chunk.Store.DropBranch).
func New(store *chunk.Store, opts Options) (*Importer, error) {
	if _, ok := store.Progress(opts.Branch); ok {
		return nil, fmt.Errorf("branch %d holds data already", opts.Branch)
	}
	if opts.Start == 0 {
		return nil, errors.New("a base backup without a start LSN can't be imported")
	}
	w, err := store.Writer(opts.Branch)
	if err != nil {
		return nil, err
	}
	im := &Importer{opts: opts, w: w, buf: make([]byte, readPages*pg.BlockSize), spaces: map[pg.Oid]bool{}}
	if err := im.commit(); err != nil {
		w.Close()
		return nil, err
	}
	return im, nil
}

// Close gives up the branch. An import that was not finished is found by Unfinished.
func (im *Importer) Close() { im.w.Close() }

func (im *Importer) progress() chunk.Progress {
	at := im.opts.Start
	return chunk.Progress{Start: at, Readable: at, Resume: at, DataChecksums: im.opts.DataChecksums, Note: []byte(importing)}
}

func (im *Importer) commit() error {
	im.pending = 0
	return im.w.Commit(im.progress())
}

// Tablespaces records the user tablespaces of the backup. Those that lie in pg_tblspc itself may be missing from the list, as they are from a base
// backup's: their files tell of them.
func (im *Importer) Tablespaces(list []stream.Tablespace) error {
	for _, t := range list {
		if t.Oid == 0 {
			continue // PGDATA itself
		}
		im.spaces[t.Oid] = true
		if err := im.w.Meta(redo.MetaTablespace, [2]uint32{t.Oid}, im.opts.Start, []byte(t.Location)); err != nil {
			return err
		}
	}
	return nil
}

// File imports one file.
func (im *Importer) File(f stream.BackupFile) error {
	kind, err := pg.Classify(f.Name)
	if err != nil {
		return err
	}
	if err := im.file(f, kind); err != nil {
		return fmt.Errorf("import of %s: %w", f.Name, err)
	}
	im.Bytes += f.Size
	im.pending += f.Size
	if im.pending >= commitBytes {
		return im.commit()
	}
	return nil
}

func (im *Importer) file(f stream.BackupFile, kind pg.File) error {
	at := im.opts.Start
	if kind.Major != 0 {
		if _, known := im.spaces[kind.Spc]; !known {
			im.spaces[kind.Spc] = false
		}
	}
	switch kind.Kind {
	case pg.FileRelation:
		return im.relation(f, kind)
	case pg.FileSLRU:
		return im.slru(f, kind)
	case pg.FileControl, pg.FileRelMap, pg.FileVersion, pg.FileTwoPhase, pg.FileOrigins, pg.FileConfig:
	default:
		return nil
	}
	b, err := small(f)
	if err != nil {
		return err
	}
	switch kind.Kind {
	case pg.FileControl:
		im.control = b
		return nil
	case pg.FileRelMap:
		return im.w.Meta(redo.MetaRelMap, [2]uint32{kind.Spc, kind.DB}, at, b)
	case pg.FileVersion:
		if kind.DB == 0 {
			return nil // the cluster's own
		}
		return im.w.Meta(redo.MetaDatabase, [2]uint32{kind.Spc, kind.DB}, at, b)
	case pg.FileTwoPhase:
		return im.w.Meta(redo.MetaTwoPhase, [2]uint32{kind.XID.XID()}, at, b)
	case pg.FileOrigins:
		return im.origins(b)
	}
	return im.w.Meta(redo.MetaFile, fileID(f.Name), at, ingest.EncodeFile(ingest.ConfigFile{Path: f.Name, Mode: uint32(f.Mode.Perm()), Content: b}))
}

func small(f stream.BackupFile) ([]byte, error) {
	if f.Size > maxSmallFile {
		return nil, fmt.Errorf("%d bytes are more than such a file may have (%d)", f.Size, maxSmallFile)
	}
	b := make([]byte, f.Size)
	_, err := io.ReadFull(f.Reader, b)
	return b, err
}

// fileID tells configuration files apart.
func fileID(path string) [2]uint32 {
	h := fnv.New64a()
	io.WriteString(h, path)
	sum := h.Sum64()
	return [2]uint32{uint32(sum >> 32), uint32(sum)}
}

// relation imports one segment file of a fork. What a torn extension left behind the last whole block is not a block.
func (im *Importer) relation(f stream.BackupFile, kind pg.File) error {
	first := kind.Segment * pg.SegmentBlocks
	blocks := uint32(f.Size / pg.BlockSize)
	if blocks > pg.SegmentBlocks {
		return fmt.Errorf("%d blocks are more than a segment has: the server was built with another segment size", blocks)
	}
	if err := im.w.Create(kind.Rel, im.opts.Start); err != nil {
		return err
	}
	if blocks == 0 {
		return nil
	}
	if err := im.w.Extend(kind.Rel, im.opts.Start, first+blocks); err != nil {
		return err
	}
	return im.pages(f.Reader, blocks, func(i uint32, page pg.Page) error {
		return im.page(pg.PageKey{RelFork: kind.Rel, Block: first + i}, page)
	})
}

func (im *Importer) pages(r io.Reader, n uint32, fn func(i uint32, page pg.Page) error) error {
	for i := uint32(0); i < n; {
		k := min(n-i, readPages)
		b := im.buf[:k*pg.BlockSize]
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		for j := range k {
			if err := fn(i+j, b[j*pg.BlockSize:(j+1)*pg.BlockSize]); err != nil {
				return err
			}
		}
		i += k
		im.pending += int64(len(b))
		if im.pending >= commitBytes {
			if err := im.commit(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (im *Importer) page(key pg.PageKey, page pg.Page) error {
	if page.IsZero() {
		return nil // inside the fork's size a page without a version is zero
	}
	if im.opts.DataChecksums && !page.IsNew() && page.StoredChecksum() != pg.Checksum(page, key.Block) {
		// A page that changed since the backup began may be torn, whatever its LSN says. The image that repairs it is in the WAL then, as backups
		// force images. Maps are read as zeros instead (vm_readbuf, fsm_readbuf): what clears bits of theirs is not logged for itself.
		if key.Fork == pg.VMFork || key.Fork == pg.FSMFork {
			return nil
		}
		if len(im.Damaged) < maxDamaged {
			im.Damaged = append(im.Damaged, key.String())
		}
		return im.w.Damaged(key, im.opts.Start, importOrigin, "the page has a wrong checksum in the base backup, and no WAL up to the backup's end replaced it")
	}
	return im.w.Image(key, im.opts.Start, importOrigin, page)
}

func (im *Importer) slru(f stream.BackupFile, kind pg.File) error {
	pages := uint32(f.Size / pg.BlockSize)
	if pages > pg.SLRUPagesPerSegment {
		return fmt.Errorf("%d pages are more than a segment has", pages)
	}
	return im.pages(f.Reader, pages, func(i uint32, page pg.Page) error {
		return im.w.Image(pg.SLRUPage(kind.SLRU, kind.Segment*pg.SLRUPagesPerSegment+i), im.opts.Start, importOrigin, page)
	})
}

// Control is the backup's pg_control, once its file was imported.
func (im *Importer) Control() (pg.ControlFile, error) {
	if im.control == nil {
		return pg.ControlFile{}, errors.New("the backup has no global/pg_control")
	}
	return pg.ReadControl(im.control)
}

// Finish makes the branch ready for ingest from Options.Start on. checkpoint is the start of the checkpoint record that the backup began with,
// body what it says; end is the backup's stop LSN, from where on reads are answered.
//
// The control state starts from that record and not from the copied pg_control, which may be of a later checkpoint.
func (im *Importer) Finish(checkpoint pg.LSN, body pg.CheckPoint, end pg.LSN) error {
	control, err := im.Control()
	if err != nil {
		return err
	}
	if body.Redo != im.opts.Start {
		return fmt.Errorf("the checkpoint record at %s redoes from %s, the backup starts at %s", checkpoint, body.Redo, im.opts.Start)
	}
	if err := im.inPlace(); err != nil {
		return err
	}
	state := redo.NewControlState(body, checkpoint, &control)
	for g := redo.ControlXID; g <= redo.ControlRest; g++ {
		if err := im.w.Meta(redo.MetaControl, [2]uint32{uint32(g)}, im.opts.Start, state.AppendGroup(nil, g)); err != nil {
			return err
		}
	}
	p := im.progress()
	p.Timeline = body.Timeline
	p.Note = ingest.Note{
		Major: control.Major, SystemIdentifier: control.SystemID, WALSegmentSize: control.WALSegmentSize, Timeline: body.Timeline,
		Checkpoint: checkpoint, BackupEnd: end, ControlFile: im.control,
	}.Encode()
	return im.w.Commit(p)
}

// CheckPointOf reads a checkpoint record.
func CheckPointOf(rec *wal.Record) (pg.CheckPoint, error) {
	if rec.Rmgr != wal.RmXLOG || rec.Op() != xlogCheckpointShutdown && rec.Op() != xlogCheckpointOnline {
		return pg.CheckPoint{}, fmt.Errorf("the record at %s is %s with info %02X, not a checkpoint", rec.Start, rec.Rmgr, rec.Info)
	}
	return pg.DecodeCheckPoint(rec.Major, rec.Main)
}

// XLOG_CHECKPOINT_SHUTDOWN and XLOG_CHECKPOINT_ONLINE (pg_control.h).
const (
	xlogCheckpointShutdown = 0x00
	xlogCheckpointOnline   = 0x10
)
