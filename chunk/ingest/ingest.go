// Package ingest turns WAL records into versions in the store: what redo.Touch says of each record, kept where this node owns the page.
package ingest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/chunk"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// Reader hands out records in WAL order (wal.Reader).
type Reader interface {
	// Next is the next record. wal.ErrMore: there is none yet.
	Next() (*wal.Record, error)
	// Position is the end of the last record that Next returned.
	Position() pg.LSN
	// Received is the end of the bytes that were read. After wal.ErrMore every record that ends at or before it was returned.
	Received() pg.LSN
}

// Options say what a pipeline does with records.
type Options struct {
	Branch uint32
	Major  pg.Major
	// Watch, where set, is called for each record after its versions were written and before they are visible. It must not keep rec or ch.
	Watch func(rec *wal.Record, ch *redo.Changes) error
	// Committed, where set, is called after each commit, when all records that Watch saw can be read.
	Committed func() error
	// From is where the pipeline starts instead of Progress.Resume: at the start of a record or the end of the one before, at or below Resume.
	// All that follows is then ingested once more, which leaves the store as it is. 0: Resume.
	From pg.LSN
	// Touch tells what records change; nil: redo.Touch. Verification spoils it, to see that faults are found.
	Touch func(rec *wal.Record, st *redo.ControlState, ch *redo.Changes) error
	// BatchBytes of WAL become visible together at most; 0: 1 MiB.
	BatchBytes uint64
}

// ErrRestartImport says that the base import can't become consistent: a database was copied while the backup ran, and the copy's source is torn.
// A new backup is needed.
var ErrRestartImport = errors.New("a database directory was copied while the base backup ran: the import must start again")

// Pipeline writes one branch. Its methods are for one goroutine.
type Pipeline struct {
	opts     Options
	w        *chunk.Writer
	progress chunk.Progress
	backup   pg.LSN // the base backup's stop LSN
	segment  uint32 // bytes in a WAL segment

	state   redo.ControlState
	origins map[uint32]uint64 // replication origin → remote LSN
	changes redo.Changes
	encoded []byte // scratch
	batch   pg.LSN // where the uncommitted batch started
	end     pg.LSN // of the record at hand

	Records uint64 // read so far
}

// Open continues a branch at its Progress.Resume.
func Open(store *chunk.Store, opts Options) (*Pipeline, error) {
	if opts.BatchBytes == 0 {
		opts.BatchBytes = 1 << 20
	}
	if opts.Touch == nil {
		opts.Touch = redo.Touch
	}
	progress, ok := store.Progress(opts.Branch)
	if !ok {
		return nil, fmt.Errorf("branch %d was never imported", opts.Branch)
	}
	if opts.From == 0 {
		opts.From = progress.Resume
	}
	if opts.From < progress.Start || opts.From > progress.Resume {
		return nil, fmt.Errorf("branch %d can't be ingested from %s on: its import starts at %s, and its WAL was read up to %s", opts.Branch, opts.From,
			progress.Start, progress.Resume)
	}
	n, err := decodeNote(progress.Note)
	if err != nil {
		return nil, fmt.Errorf("branch %d: %w", opts.Branch, err)
	}
	w, err := store.Writer(opts.Branch)
	if err != nil {
		return nil, err
	}
	p := &Pipeline{opts: opts, w: w, progress: progress, backup: n.BackupEnd, segment: n.WALSegmentSize, origins: map[uint32]uint64{}, batch: opts.From}
	if err := p.load(store); err != nil {
		w.Close()
		return nil, err
	}
	p.changes.Skip = p.skips
	return p, nil
}

// load reads the state as of the LSN where the pipeline starts.
func (p *Pipeline) load(store *chunk.Store) error {
	at := p.opts.From
	state, err := LoadState(store, p.opts.Branch, at)
	if err != nil {
		return err
	}
	p.state = *state
	return store.MetaAll(p.opts.Branch, redo.MetaOrigin, at, func(id [2]uint32, _ pg.LSN, value []byte) error {
		if len(value) != 8 {
			return fmt.Errorf("branch %d: replication origin %d: value of %d bytes", p.opts.Branch, id[0], len(value))
		}
		p.origins[id[0]] = binary.LittleEndian.Uint64(value)
		return nil
	})
}

// LoadState is the control state at an LSN.
func LoadState(store *chunk.Store, branch uint32, at pg.LSN) (*redo.ControlState, error) {
	state := &redo.ControlState{}
	for g := redo.ControlXID; g <= redo.ControlRest; g++ {
		value, _, ok, err := store.Meta(branch, redo.MetaControl, [2]uint32{uint32(g)}, at)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("branch %d has no control state at %s", branch, at)
		}
		if err := state.DecodeGroup(g, value); err != nil {
			return nil, fmt.Errorf("branch %d: control state at %s: %w", branch, at, err)
		}
	}
	return state, nil
}

// Close gives up the branch; what was not committed is read again next time.
func (p *Pipeline) Close() { p.w.Close() }

// Progress is what the last commit said.
func (p *Pipeline) Progress() chunk.Progress { return p.progress }

// State is the control state after the last record.
func (p *Pipeline) State() *redo.ControlState { return &p.state }

// Drain ingests all records that r has, and commits. It returns nil when r has no more for now, or r's final error; what was read before it is
// committed even then.
func (p *Pipeline) Drain(ctx context.Context, r Reader) error {
	for {
		rec, err := r.Next()
		if err != nil {
			readable := r.Position()
			if errors.Is(err, wal.ErrMore) {
				readable, err = p.behindHeader(r.Received()), nil
			}
			return errors.Join(err, p.commit(readable, r.Position()))
		}
		if err := p.Record(rec); err != nil {
			return err
		}
		if uint64(rec.End-p.batch) >= p.opts.BatchBytes {
			if err := p.commit(rec.End, rec.End); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
}

// behindHeader is the LSN behind the page header that starts at lsn, if lsn is where a page does: no record can end in between, and a server that has
// just begun a page tells that LSN as its own position.
func (p *Pipeline) behindHeader(lsn pg.LSN) pg.LSN {
	switch {
	case lsn%pg.BlockSize != 0:
		return lsn
	case p.segment != 0 && lsn%pg.LSN(p.segment) == 0:
		return lsn + wal.LongPageHeaderSize
	}
	return lsn + wal.ShortPageHeaderSize
}

// commit makes everything up to readable visible. position is where the reader must start again after a crash.
func (p *Pipeline) commit(readable, position pg.LSN) error {
	next := p.progress
	next.Readable = max(next.Readable, readable)
	next.Resume = max(next.Resume, position)
	if next.Consistent == 0 && next.Readable >= p.backup {
		next.Consistent = p.backup
	}
	next.Timeline = p.state.Timeline
	if err := p.w.Commit(next); err != nil {
		return fmt.Errorf("commit up to %s: %w", readable, err)
	}
	p.progress, p.batch = next, position
	if p.opts.Committed != nil {
		return p.opts.Committed()
	}
	return nil
}

// Record writes all that a record changes. It becomes visible with the next commit.
func (p *Pipeline) Record(rec *wal.Record) error {
	p.Records++
	if rec.Major != p.opts.Major {
		return fmt.Errorf("record at %s is of PostgreSQL %d, this branch is of %d", rec.Start, rec.Major, p.opts.Major)
	}
	ch := &p.changes
	p.end = rec.End
	if err := p.opts.Touch(rec, &p.state, ch); err != nil {
		return err
	}
	if err := p.write(rec, ch); err != nil {
		return fmt.Errorf("record %s/%s at %s: %w", rec.Rmgr, redo.RecordName(rec.Major, rec.Rmgr, rec.Info), rec.Start, err)
	}
	groups, err := p.state.Redo(rec)
	if err != nil {
		return fmt.Errorf("control state after the record at %s: %w", rec.Start, err)
	}
	if groups != 0 {
		if err := p.writeState(groups, rec.End); err != nil {
			return err
		}
		if p.state.WALLevel < pg.WALLevelReplica {
			p.unproven(rec.End, "the primary runs with wal_level=minimal: not all changes are in its WAL")
		}
	}
	if p.opts.Watch != nil {
		return p.opts.Watch(rec, ch)
	}
	return nil
}

// skips tells that a page's content is not needed, since other nodes keep it. The writer repeats an error when it is given the record's changes.
func (p *Pipeline) skips(key pg.PageKey) bool {
	kept, err := p.w.Keeps(key, p.end)
	return err != nil || !kept
}

func (p *Pipeline) unproven(lsn pg.LSN, reason string) {
	if p.progress.Unproven == 0 {
		p.progress.Unproven, p.progress.UnprovenReason = lsn, reason
	}
}

func (p *Pipeline) writeState(groups redo.ControlGroups, lsn pg.LSN) error {
	for g := redo.ControlXID; g <= redo.ControlRest; g++ {
		if !groups.Has(g) {
			continue
		}
		p.encoded = p.state.AppendGroup(p.encoded[:0], g)
		if err := p.w.Meta(redo.MetaControl, [2]uint32{uint32(g)}, lsn, p.encoded); err != nil {
			return err
		}
	}
	return nil
}

// write hands the changes to the store in the order that redo.Changes prescribes.
func (p *Pipeline) write(rec *wal.Record, ch *redo.Changes) error {
	if ch.Unproven != nil {
		p.unproven(rec.End, ch.Unproven.Error())
	}
	for _, d := range ch.DropDatabases {
		if err := p.w.DropDatabase(d, rec.End); err != nil {
			return err
		}
	}
	for _, c := range ch.CopyDatabases {
		if rec.Start < p.backup {
			return ErrRestartImport
		}
		if err := p.w.CopyDatabase(c.From, c.To, rec.End); err != nil {
			return err
		}
	}
	for i := range ch.Sizes {
		if err := p.size(&ch.Sizes[i], rec.End); err != nil {
			return err
		}
	}
	origin := chunk.Origin{Rmgr: uint8(rec.Rmgr), Info: rec.Info}
	for i := range ch.Pages {
		if err := p.page(&ch.Pages[i], rec.End, origin); err != nil {
			return err
		}
	}
	for i := range ch.Damaged {
		d := &ch.Damaged[i]
		if err := p.w.Damaged(d.Key, rec.End, origin, d.Err.Error()); err != nil {
			return err
		}
	}
	for i := range ch.SLRUTruncates {
		t := &ch.SLRUTruncates[i]
		if err := p.w.TruncateSLRU(t.SLRU, rec.End, t.Deletes); err != nil {
			return err
		}
	}
	for i := range ch.Meta {
		if err := p.meta(&ch.Meta[i], rec.End); err != nil {
			return err
		}
	}
	for _, t := range ch.Transactions {
		if err := p.w.Transaction(t, rec.Start, rec.End); err != nil {
			return err
		}
	}
	if ch.RestorePoint != "" {
		return p.w.RestorePoint(ch.RestorePoint, ch.RestoreTime, rec.Start, rec.End)
	}
	return nil
}

func (p *Pipeline) size(s *redo.SizeChange, lsn pg.LSN) error {
	switch s.Op {
	case redo.SizeCreate:
		return p.w.Create(s.Fork, lsn)
	case redo.SizeTruncate:
		return p.w.Truncate(s.Fork, lsn, s.Blocks)
	case redo.SizeDrop:
		return p.w.Drop(s.Fork, lsn)
	}
	return fmt.Errorf("unknown size change %d of %s", s.Op, s.Fork)
}

func (p *Pipeline) page(c *redo.PageChange, lsn pg.LSN, origin chunk.Origin) error {
	kept := !c.Skipped
	if kept && c.Delta.Part > wal.MaxBlockID { // no block reference names it
		var err error
		if kept, err = p.w.Keeps(c.Key, lsn); err != nil {
			return err
		}
	}
	if c.Kind == redo.KindImage {
		return p.w.Image(c.Key, lsn, origin, c.Image)
	}
	base := chunk.BaseRequired
	switch {
	case c.Kind == redo.KindInit:
		base = chunk.BaseInit
	case c.Zeroed:
		base = chunk.BaseZeroed
	case c.Optional:
		base = chunk.BaseOptional
	}
	p.encoded = p.encoded[:0]
	if kept {
		p.encoded = redo.AppendDelta(p.encoded, &c.Delta)
	}
	return p.w.Delta(c.Key, lsn, origin, base, p.encoded)
}

func (p *Pipeline) meta(m *redo.MetaChange, lsn pg.LSN) error {
	if m.Kind == redo.MetaOrigin {
		if m.Value == nil {
			delete(p.origins, m.ID[0])
		} else {
			remote := binary.LittleEndian.Uint64(m.Value)
			if m.IfGreater && p.origins[m.ID[0]] >= remote {
				return nil
			}
			p.origins[m.ID[0]] = remote
		}
	}
	return p.w.Meta(m.Kind, m.ID, lsn, m.Value)
}
