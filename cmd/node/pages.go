package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"everpage/chunk"
	"everpage/chunk/ingest"
	"everpage/cluster/placement"
	"everpage/pageapi"
	"everpage/pageapi/datadir"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// maxDamage bounds the damaged pages that a cluster state lists.
const maxDamage = 200

// pages answers the page service from the store.
type pages struct {
	store *chunk.Store
	main  func() uint32 // the number of the branch that the alias main (0 on the wire) names; 0: there is none yet
	maps  atomic.Pointer[placement.Map]
	usage *usage
	// budget wants to know what is read; nil without one.
	budget *budget
	// segmentBlocks is how many blocks a chunk has.
	segmentBlocks uint32
	// behind explains why an LSN is not readable yet: which link is behind.
	behind func(branch uint32, lsn pg.LSN) string
	// history is the descent of a timeline that a branch goes through.
	history func(branch uint32, tli pg.TimelineID) (wal.History, bool)
	// parent tells what a branch forked off and where.
	parent func(ctx context.Context, branch uint32) (uint32, pg.LSN)
	// isMain refuses a branch that main is not any more at an LSN, and waits where it is not yet.
	isMain func(ctx context.Context, branch uint32, lsn pg.LSN) error
}

func (p *pages) branch(n uint32) uint32 {
	if n == 0 {
		return p.main()
	}
	return n
}

// coded gives the store's errors their codes.
func coded(err error) error {
	if err == nil {
		return nil
	}
	var corrupt *chunk.CorruptError
	var damaged *chunk.DamagedError
	code := pageapi.Internal
	switch {
	case errors.As(err, &corrupt), errors.As(err, &damaged):
		code = pageapi.Corrupt
	case errors.Is(err, chunk.ErrBelowHorizon), errors.Is(err, chunk.ErrNotConsistent):
		code = pageapi.OutOfWindow
	case errors.Is(err, chunk.ErrNotHere):
		code = pageapi.WrongOwner
	case errors.Is(err, chunk.ErrNotFound), errors.Is(err, chunk.ErrNoBranch):
		code = pageapi.NotFound
	case errors.Is(err, chunk.ErrNotYet), errors.Is(err, chunk.ErrClosed), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		code = pageapi.Unavailable
	}
	return pageapi.Errorf(code, "%w", err)
}

func noData(branch uint32) error {
	if branch == 0 {
		return pageapi.Errorf(pageapi.NotFound, "the cluster has no data: everpage attach CONNINFO follows a primary")
	}
	return pageapi.Errorf(pageapi.NotFound, "branch %d has no data: everpage attach CONNINFO follows a primary", branch)
}

// Position waits until the LSN is readable.
func (p *pages) Position(ctx context.Context, at pageapi.Position, wait time.Duration) (pageapi.Position, error) {
	if at.Main {
		short, cancel := context.WithTimeout(ctx, wait)
		err := p.isMain(short, at.Branch, at.LSN)
		cancel()
		if err != nil {
			return at, err
		}
		at.Main = false
	}
	at.Branch = p.branch(at.Branch)
	progress, ok := p.store.Progress(at.Branch)
	if !ok {
		parent, fork := p.parent(ctx, at.Branch)
		switch {
		case parent == 0:
			return at, noData(at.Branch)
		case at.LSN != 0 && at.LSN <= fork: // the same there
			at.Branch = parent
			return p.Position(ctx, at, wait)
		}
		// The primary has just failed over. What is newest must not be answered from the timeline that it left.
		if err := p.forked(ctx, at.Branch, fork, wait); err != nil {
			return at, err
		}
		progress, _ = p.store.Progress(at.Branch)
	}
	switch {
	case at.LSN == 0 && progress.Consistent == 0:
		return at, pageapi.Errorf(pageapi.OutOfWindow, "branch %d is not consistent yet: %s", at.Branch, p.behind(at.Branch, 0))
	case at.LSN == 0:
		at.LSN = progress.Readable
	case progress.Consistent != 0 && at.LSN < p.store.Oldest(at.Branch):
		return at, tooOld(at, p.store.Oldest(at.Branch))
	}
	if at.LSN > progress.Readable { // no timer for what is there already
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	if err := p.store.Wait(ctx, at.Branch, at.LSN); err != nil {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			return at, pageapi.Errorf(pageapi.Unavailable, "%s is not readable yet: %s", at.LSN, p.behind(at.Branch, at.LSN))
		}
		return at, coded(err)
	}
	if progress, _ = p.store.Progress(at.Branch); progress.Consistent == 0 || at.LSN < progress.Consistent {
		return at, pageapi.Errorf(pageapi.OutOfWindow, "%s is before the oldest readable LSN of branch %d: %s", at.LSN, at.Branch, p.behind(at.Branch, 0))
	}
	if progress.Unproven != 0 && at.LSN >= progress.Unproven {
		return at, pageapi.Errorf(pageapi.Corrupt, "branch %d is unproven from %s on: %s; LSNs before it are answered", at.Branch, progress.Unproven, progress.UnprovenReason)
	}
	return at, nil
}

// tooOld refuses what lies below the horizon.
func tooOld(at pageapi.Position, oldest pg.LSN) error {
	return pageapi.Errorf(pageapi.OutOfWindow, "%s is before the oldest readable LSN of branch %d, which is %s", at.LSN, at.Branch, oldest)
}

// forked waits until a branch is here that forks off another one.
func (p *pages) forked(ctx context.Context, branch uint32, fork pg.LSN, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err := p.store.Wait(ctx, branch, fork)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return pageapi.Errorf(pageapi.Unavailable, "branch %d is not here yet: the primary went over to it at %s, up to which the old timeline is being read; LSNs up to there are answered", branch, fork)
	}
	return coded(err)
}

func (p *pages) Page(ctx context.Context, at pageapi.Position, key pg.PageKey, dst []byte) error {
	p.usage.read(key, p.segmentBlocks)
	p.budget.read(key, p.segmentBlocks)
	return coded(p.store.Page(ctx, at.Branch, key, at.LSN, dst))
}

func (p *pages) Size(_ context.Context, at pageapi.Position, fork pg.RelFork) (pg.BlockNumber, error) {
	blocks, ok, err := p.store.Size(at.Branch, fork, at.LSN)
	if err == nil && !ok {
		return 0, pageapi.Errorf(pageapi.NotFound, "relation %s does not exist at %s", fork, at.LSN)
	}
	return blocks, coded(err)
}

func (p *pages) Relations(ctx context.Context, at pageapi.Position, fn func(pg.RelFork, pg.BlockNumber) error) error {
	return coded(p.store.Relations(ctx, at.Branch, at.LSN, pg.RelFork{}, fn))
}

func (p *pages) SLRUSegments(_ context.Context, at pageapi.Position, slru pg.SLRU) ([]pageapi.SLRUSegment, error) {
	var list []pageapi.SLRUSegment
	err := p.store.SLRUSegments(at.Branch, slru, at.LSN, func(segment, pages uint32) error {
		list = append(list, pageapi.SLRUSegment{Number: segment, Pages: pages})
		return nil
	})
	return list, coded(err)
}

func (p *pages) SLRUSegment(ctx context.Context, at pageapi.Position, slru pg.SLRU, segment uint32) ([]byte, error) {
	var n uint32
	found := false
	err := p.store.SLRUSegments(at.Branch, slru, at.LSN, func(s, pages uint32) error {
		if s == segment {
			n, found = pages, true
		}
		return nil
	})
	if err != nil {
		return nil, coded(err)
	}
	if !found {
		return nil, pageapi.Errorf(pageapi.NotFound, "%s/%s does not exist at %s", slru, pg.SLRUSegmentName(segment), at.LSN)
	}
	b := make([]byte, n*pg.BlockSize)
	for i := range n {
		key := pg.SLRUPage(slru, segment*pg.SLRUPagesPerSegment+i)
		if err := p.store.Page(ctx, at.Branch, key, at.LSN, b[i*pg.BlockSize:(i+1)*pg.BlockSize]); err != nil {
			return nil, coded(err)
		}
	}
	return b, nil
}

var kindNames = map[chunk.VersionKind]string{
	chunk.KindImage: "image", chunk.KindDelta: "delta", chunk.KindInit: "init", chunk.KindOptional: "delta", chunk.KindZeroed: "delta",
	chunk.KindDamaged: "damaged", chunk.KindMissing: "missing",
}

var errEnough = errors.New("enough")

func (p *pages) History(ctx context.Context, at pageapi.Position, key pg.PageKey, fn func(pageapi.Version) error) error {
	note, err := p.note(at.Branch)
	if err != nil {
		return err
	}
	return coded(p.store.History(ctx, at.Branch, key, func(v chunk.Version) error {
		if v.LSN > at.LSN {
			return nil
		}
		record := "import"
		if v.Origin.Rmgr != ingest.ImportOrigin {
			rmgr := wal.Rmgr(v.Origin.Rmgr)
			record = rmgr.String() + "/" + redo.RecordName(note.Major, rmgr, v.Origin.Info)
		}
		if v.Reason != "" {
			record += ": " + v.Reason
		}
		return fn(pageapi.Version{LSN: v.LSN, Kind: kindNames[v.Kind], Record: record, Bytes: v.Bytes})
	}))
}

// Readable is the newest LSN that can be read of a branch.
func (p *pages) Readable(branch uint32) pg.LSN {
	progress, _ := p.store.Progress(p.branch(branch))
	if progress.Consistent == 0 {
		return 0
	}
	return progress.Readable
}

func (p *pages) note(branch uint32) (ingest.Note, error) {
	progress, ok := p.store.Progress(branch)
	if !ok {
		return ingest.Note{}, pageapi.Errorf(pageapi.NotFound, "branch %d has no data", branch)
	}
	n, err := ingest.NoteOf(progress.Note)
	if err != nil {
		return n, pageapi.Errorf(pageapi.Internal, "branch %d: %w", branch, err)
	}
	return n, nil
}

func (p *pages) State(ctx context.Context, at pageapi.Position) (*pageapi.ClusterState, error) {
	note, err := p.note(at.Branch)
	if err != nil {
		return nil, err
	}
	control, err := ingest.LoadState(p.store, at.Branch, at.LSN)
	if err != nil {
		return nil, coded(err)
	}
	file, err := pg.ReadControl(note.ControlFile)
	if err != nil {
		return nil, pageapi.Errorf(pageapi.Corrupt, "branch %d: pg_control of the import: %w", at.Branch, err)
	}
	control.Fill(&file)
	st := &pageapi.ClusterState{LSN: at.LSN, Cluster: datadir.Cluster{Control: file}}
	if h, ok := p.history(at.Branch, control.Timeline); ok && len(h.Parents) > 0 {
		st.TimelineHistory = h.Format()
	} else if control.Timeline > 1 {
		return nil, pageapi.Errorf(pageapi.Internal, "the history of timeline %d is not known", control.Timeline)
	}
	for kind, add := range objectReaders {
		if err := p.store.MetaAll(at.Branch, kind, at.LSN, func(id [2]uint32, _ pg.LSN, value []byte) error {
			return add(&st.Cluster, id, append([]byte{}, value...))
		}); err != nil {
			return nil, coded(err)
		}
	}
	err = p.store.DamagedPages(ctx, at.Branch, at.LSN, func(e *chunk.DamagedError) error {
		if len(st.Damage) == maxDamage {
			return errEnough
		}
		st.Damage = append(st.Damage, pageapi.Damage{Key: e.Key, Since: e.LSN, Reason: e.Reason})
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, coded(err)
	}
	return st, nil
}

// objectReaders put the small objects of each kind where a data directory has them.
var objectReaders = map[redo.MetaKind]func(c *datadir.Cluster, id [2]uint32, value []byte) error{
	redo.MetaRelMap: func(c *datadir.Cluster, id [2]uint32, value []byte) error {
		c.RelMaps = append(c.RelMaps, datadir.RelMap{Spc: id[0], DB: id[1], Data: value})
		return nil
	},
	redo.MetaTwoPhase: func(c *datadir.Cluster, id [2]uint32, value []byte) error {
		c.TwoPhase = append(c.TwoPhase, datadir.TwoPhase{XID: id[0], State: value})
		return nil
	},
	redo.MetaTablespace: func(c *datadir.Cluster, id [2]uint32, value []byte) error {
		c.Tablespaces = append(c.Tablespaces, datadir.Tablespace{Oid: id[0], Location: string(value)})
		return nil
	},
	redo.MetaDatabase: func(c *datadir.Cluster, id [2]uint32, value []byte) error {
		c.Databases = append(c.Databases, datadir.Database{Spc: id[0], DB: id[1], Version: value})
		return nil
	},
	redo.MetaOrigin: func(c *datadir.Cluster, id [2]uint32, value []byte) error {
		if len(value) != 8 {
			return fmt.Errorf("replication origin %d: value of %d bytes", id[0], len(value))
		}
		c.Origins = append(c.Origins, datadir.Origin{ID: uint16(id[0]), RemoteLSN: pg.LSN(binary.LittleEndian.Uint64(value))})
		return nil
	},
	redo.MetaFile: func(c *datadir.Cluster, _ [2]uint32, value []byte) error {
		f, err := ingest.DecodeFile(value)
		c.Files = append(c.Files, datadir.ConfigFile{Path: f.Path, Mode: fs.FileMode(f.Mode), Content: f.Content})
		return err
	},
}

func (p *pages) Map() *placement.Map { return p.maps.Load() }

// Main is the number of the branch that main is.
func (p *pages) Main() uint32 { return p.main() }

// resolveWait is how long a target waits for a branch that is about to be here.
const resolveWait = 5 * time.Second

// Resolve turns a target into an LSN.
func (p *pages) Resolve(ctx context.Context, t pageapi.Target) (*pageapi.Resolution, error) {
	branch := p.branch(t.Branch)
	progress, ok := p.store.Progress(branch)
	if !ok {
		parent, fork := p.parent(ctx, branch)
		switch {
		case parent == 0:
			return nil, noData(branch)
		case t.LSN != 0 && !t.Before && t.LSN <= fork: // the same there
			t.Branch = parent
			return p.Resolve(ctx, t)
		}
		if err := p.forked(ctx, branch, fork, resolveWait); err != nil {
			return nil, err
		}
		progress, _ = p.store.Progress(branch)
	}
	if progress.Consistent == 0 {
		return nil, pageapi.Errorf(pageapi.OutOfWindow, "branch %d can't be read yet: %s", branch, p.behind(branch, 0))
	}
	r, err := p.target(branch, progress, t)
	if err != nil {
		return nil, err
	}
	r.Branch = branch
	if oldest := p.store.Oldest(branch); r.LSN < oldest {
		return nil, pageapi.Errorf(pageapi.OutOfWindow, "the target is %s, before the oldest readable LSN %s", r.LSN, oldest)
	}
	before, after, err := p.store.Neighbours(branch, r.LSN)
	if err != nil {
		return nil, coded(err)
	}
	for _, c := range []*chunk.Commit{before, after} {
		if c != nil {
			r.Around = append(r.Around, commitEntry(*c))
		}
	}
	return r, nil
}

func commitEntry(c chunk.Commit) pageapi.CommitEntry {
	kind := "abort"
	if c.Commit {
		kind = "commit"
	}
	return pageapi.CommitEntry{Start: c.Start, End: c.End, Kind: kind, XID: c.XID, Time: c.Time}
}

func (p *pages) target(branch uint32, progress chunk.Progress, t pageapi.Target) (*pageapi.Resolution, error) {
	switch {
	case t.LSN != 0 && t.Before:
		return &pageapi.Resolution{LSN: t.LSN - 1}, nil
	case t.LSN != 0:
		return &pageapi.Resolution{LSN: t.LSN}, nil
	case t.Time != nil:
		return p.timeTarget(branch, progress, *t.Time, t.Before)
	case t.XID != nil:
		c, ok, err := p.store.CommitOfXID(branch, *t.XID)
		if err != nil {
			return nil, coded(err)
		}
		if !ok {
			return nil, pageapi.Errorf(pageapi.NotFound, "transaction %d has no commit in the window: it may be open, a subtransaction, older than %s, or not yet received", *t.XID, p.store.Oldest(branch))
		}
		r := &pageapi.Resolution{LSN: c.End}
		if t.Before {
			r.LSN = c.Start
		}
		if !c.Commit {
			r.Note = fmt.Sprintf("transaction %d was rolled back", *t.XID)
		}
		return r, nil
	case t.Name != "":
		points, err := p.store.RestorePoints(branch, t.Name)
		if err != nil {
			return nil, coded(err)
		}
		if len(points) == 0 {
			return nil, pageapi.Errorf(pageapi.NotFound, "no restore point is named %q", t.Name)
		}
		r := &pageapi.Resolution{LSN: points[0].End}
		if t.Before {
			r.LSN = points[0].Start
		}
		if n := len(points); n > 1 {
			r.Note = fmt.Sprintf("%d restore points are named %q: this is the first, the last is at %s", n, t.Name, points[n-1].End)
		}
		return r, nil
	}
	return &pageapi.Resolution{LSN: progress.Readable}, nil
}

// timeTarget finds the first commit or abort in WAL order whose time is after t (at or after with before).
func (p *pages) timeTarget(branch uint32, progress chunk.Progress, t pg.Timestamp, before bool) (*pageapi.Resolution, error) {
	if p.store.Oldest(branch) == progress.Consistent { // else the first commit that is there tells
		state, err := ingest.LoadState(p.store, branch, progress.Start)
		if err != nil {
			return nil, coded(err)
		}
		if oldest := pg.TimestampOf(unixTime(state.CheckPointTime)); t < oldest {
			return nil, pageapi.Errorf(pageapi.OutOfWindow, "%s is before the base backup of %s", t.Time().Format(timeLayout), oldest.Time().Format(timeLayout))
		}
	}
	c, ok, err := p.store.FirstCommitAfter(branch, t, before)
	if err != nil {
		return nil, coded(err)
	}
	if ok {
		return &pageapi.Resolution{LSN: c.Start}, nil
	}
	r := &pageapi.Resolution{LSN: progress.Readable}
	r.Note = fmt.Sprintf("%s is after the last commit received; using the newest readable LSN %s", t.Time().Format(timeLayout), r.LSN)
	last, _, err := p.store.Neighbours(branch, r.LSN)
	if err != nil {
		return nil, coded(err)
	}
	if last != nil {
		r.Note = fmt.Sprintf("%s is after the last commit received (%s, LSN %s); using the newest readable LSN %s",
			t.Time().Format(timeLayout), last.Time.Time().Format(timeLayout), last.End, r.LSN)
	}
	return r, nil
}
