package datadir

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"everpage/wal/pg"
)

// ControlPath is pg_control's path. A renderer that writes must write it last: without it no server starts.
const ControlPath = "global/pg_control"

// Options say which tree to make.
type Options struct {
	At pg.LSN
	// Timeline is the new timeline that the server will write. It must be above every timeline known of the system, and never given twice.
	Timeline pg.TimelineID
	// Parents is the content of the history file of the timeline that At lies on; empty on timeline 1.
	Parents []byte
	// Reason stands in the new history file, for people.
	Reason string
	// Now is the time that pg_control bears.
	Now time.Time
	// TablespaceTarget tells where the link of a tablespace points. Nil makes directories in pg_tblspc of all tablespaces.
	TablespaceTarget func(Tablespace) (string, error)
	// PathExists tells whether an absolute path outside of the data directory exists where the server will run, for settings that name one.
	// Nil takes none to exist.
	PathExists func(string) bool
	// AllowMissing leaves out damaged indexes of users and marks them invalid. Without it, and for all other relations, damage is an error.
	AllowMissing bool
}

// Tree is a data directory at an LSN.
type Tree struct {
	At         pg.LSN
	Major      pg.Major
	Timeline   pg.TimelineID
	CheckPoint pg.LSN // where the crafted checkpoint record starts; the server's WAL goes on behind it
	Bytes      int64  // the sum of all files' sizes
	Files      int
	// Missing are the indexes that were left out.
	Missing []DamagedRelation
	// Notes tell what was changed in the configuration, one sentence each.
	Notes []string

	entries []*Entry
}

// Entries are all files, directories and links, each directory before what is in it.
func (t *Tree) Entries() []*Entry { return t.entries }

// pgDirs are the directories that initdb makes.
func pgDirs(m pg.Major) []string {
	dirs := []string{"base", "global", "pg_commit_ts", "pg_dynshmem", "pg_logical", "pg_logical/mappings", "pg_logical/snapshots", "pg_multixact",
		"pg_multixact/members", "pg_multixact/offsets", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat", "pg_stat_tmp",
		"pg_subtrans", "pg_tblspc", "pg_twophase", "pg_wal", "pg_wal/archive_status", "pg_xact"}
	if m >= 17 {
		dirs = append(dirs, "pg_wal/summaries")
	}
	return dirs
}

const (
	dirMode  = fs.ModeDir | 0o700
	fileMode = fs.FileMode(0o600)
)

// builder gathers the entries of a tree.
type builder struct {
	src     Source
	o       Options
	c       *Cluster
	major   pg.Major
	tree    *Tree
	seen    map[string]bool
	missing map[pg.RelFileLocator]bool
	patches map[pg.RelFork][]patch
}

// Plan reads all but the pages of a branch at an LSN and makes the tree. It fails with a *DamagedError if relations cannot be restored.
func Plan(ctx context.Context, src Source, o Options) (*Tree, error) {
	c, err := src.Cluster(ctx, o.At)
	if err != nil {
		return nil, err
	}
	b := &builder{src: src, o: o, c: c, major: c.Control.Major, seen: map[string]bool{}, missing: map[pg.RelFileLocator]bool{},
		patches: map[pg.RelFork][]patch{}}
	b.tree = &Tree{At: o.At, Major: b.major, Timeline: o.Timeline}
	if err := b.preflight(ctx); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{b.fixed, b.control, b.relations, b.slrus, b.small, b.config} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(b.tree.entries, func(x, y *Entry) int { return cmp.Compare(x.Path, y.Path) })
	return b.tree, nil
}

// dir adds a directory and those above it, once.
func (b *builder) dir(p string) {
	if p == "." || b.seen[p] {
		return
	}
	b.dir(path.Dir(p))
	b.seen[p] = true
	b.tree.entries = append(b.tree.entries, &Entry{Path: p, Mode: dirMode})
}

func (b *builder) file(p string, mode fs.FileMode, size int64, c content) error {
	if b.seen[p] {
		return fmt.Errorf("%s would be written twice: the source is at odds with itself", p)
	}
	b.dir(path.Dir(p))
	b.seen[p] = true
	b.tree.entries = append(b.tree.entries, &Entry{Path: p, Mode: mode, Size: size, content: c})
	b.tree.Bytes += size
	b.tree.Files++
	return nil
}

func (b *builder) static(p string, data []byte) error {
	return b.file(p, fileMode, int64(len(data)), static(data))
}

// fixed adds the directories of every cluster and the user's tablespaces.
func (b *builder) fixed(context.Context) error {
	for _, d := range pgDirs(b.major) {
		b.dir(d)
	}
	targets := map[string]pg.Oid{}
	for _, t := range b.c.Tablespaces {
		p := fmt.Sprintf("pg_tblspc/%d", t.Oid)
		if b.seen[p] {
			return fmt.Errorf("tablespace %d is there twice: the source is at odds with itself", t.Oid)
		}
		if b.o.TablespaceTarget != nil && t.Location != "" {
			target, err := b.o.TablespaceTarget(t)
			if err != nil {
				return err
			}
			if other, taken := targets[path.Clean(target)]; taken {
				return fmt.Errorf("tablespaces %d and %d would both go to %s: map them apart", other, t.Oid, target)
			}
			targets[path.Clean(target)] = t.Oid
			b.seen[p] = true
			b.tree.entries = append(b.tree.entries, &Entry{Path: p, Mode: fs.ModeSymlink | 0o777, Link: target})
		}
		b.dir(p + "/" + b.major.TablespaceVersionDir())
	}
	return b.static("PG_VERSION", fmt.Appendf(nil, "%d\n", b.major))
}

// relations adds the files of all relations: no free space maps, which the WAL does not cover, and what unlogged relations have after a crash.
func (b *builder) relations(ctx context.Context) error {
	var all []Relation
	unlogged := map[pg.RelFileLocator]bool{}
	err := b.src.Relations(ctx, b.o.At, func(r Relation) error {
		if r.Fork == pg.InitFork {
			unlogged[r.RelFileLocator] = true
		}
		all = append(all, r)
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range all {
		if b.missing[r.RelFileLocator] {
			continue
		}
		if err := b.checkTablespace(r.RelFileLocator); err != nil {
			return err
		}
		switch {
		case r.Fork == pg.FSMFork, unlogged[r.RelFileLocator] && r.Fork != pg.InitFork:
			continue
		case r.Fork == pg.InitFork:
			// A server that starts without recovery does not make the main fork anew (ResetUnloggedRelations).
			if err := b.relation(r, pg.RelFork{RelFileLocator: r.RelFileLocator}); err != nil {
				return err
			}
		}
		if err := b.relation(r, r.RelFork); err != nil {
			return err
		}
	}
	// An index that is left out has an empty file, so that what only asks for its size finds one.
	for loc := range b.missing {
		if err := b.static(b.major.RelationPath(pg.RelFork{RelFileLocator: loc}, 0), nil); err != nil {
			return err
		}
	}
	return nil
}

// checkTablespace refuses a relation whose files would lie in a tablespace that is not there.
func (b *builder) checkTablespace(r pg.RelFileLocator) error {
	if r.Spc == pg.DefaultTablespace || r.Spc == pg.GlobalTablespace {
		return nil
	}
	if !slices.ContainsFunc(b.c.Tablespaces, func(t Tablespace) bool { return t.Oid == r.Spc }) {
		return fmt.Errorf("relation %s lies in tablespace %d, which does not exist at %s: the source is at odds with itself", r, r.Spc, b.o.At)
	}
	return nil
}

// relation adds the segments of one fork, read from r, as the files of fork as.
func (b *builder) relation(r Relation, as pg.RelFork) error {
	for segment := uint32(0); segment == 0 || uint64(segment)*pg.SegmentBlocks < uint64(r.Blocks); segment++ {
		first := segment * pg.SegmentBlocks
		blocks := min(r.Blocks-first, pg.SegmentBlocks)
		c := &pageFile{src: b.src, fork: r.RelFork, first: first, known: blocks, at: b.o.At, relation: true,
			checksums: b.c.Control.DataChecksumVersion != 0, patches: b.patches[r.RelFork]}
		if err := b.file(b.major.RelationPath(as, segment), fileMode, int64(blocks)*pg.BlockSize, c); err != nil {
			return err
		}
	}
	return nil
}

// slrus adds the segments of the SLRUs. The pages that a starting server reads are always there, zero where the source has none
// (TrimCLOG, TrimMultiXact).
func (b *builder) slrus(ctx context.Context) error {
	next := &b.c.Control.Copy
	for _, s := range pg.SLRUs() {
		var current uint32
		switch s {
		case pg.Xact:
			current = next.NextXID.XID() / pg.XactsPerPage
		case pg.MultiXactOffsets:
			current = next.NextMulti / pg.MultiXactOffsetsPerPage
		case pg.MultiXactMembers:
			current = next.NextMultiOffset / pg.MembersPerPage
		case pg.CommitTs:
			if !b.c.Control.TrackCommitTimestamp {
				continue
			}
			current = next.NextXID.XID() / pg.CommitTsPerPage
		}
		segments, err := b.src.SLRUSegments(ctx, b.o.At, s)
		if err != nil {
			return err
		}
		hasCurrent := false
		for _, seg := range segments {
			if seg.Pages > pg.SLRUPagesPerSegment {
				return fmt.Errorf("segment %s of %s has %d pages: the source is at odds with itself", pg.SLRUSegmentName(seg.Number), s, seg.Pages)
			}
			size := seg.Pages
			if seg.Number == current/pg.SLRUPagesPerSegment {
				hasCurrent = true
				size = max(size, current%pg.SLRUPagesPerSegment+1)
			}
			if err := b.slruSegment(s, seg, size); err != nil {
				return err
			}
		}
		if !hasCurrent {
			if err := b.slruSegment(s, SLRUSegment{Number: current / pg.SLRUPagesPerSegment}, current%pg.SLRUPagesPerSegment+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *builder) slruSegment(s pg.SLRU, seg SLRUSegment, pages uint32) error {
	key := pg.SLRUPage(s, seg.Number*pg.SLRUPagesPerSegment)
	c := &pageFile{src: b.src, fork: key.RelFork, first: key.Block, known: seg.Pages, at: b.o.At}
	return b.file(s.Dir()+"/"+pg.SLRUSegmentName(seg.Number), fileMode, int64(pages)*pg.BlockSize, c)
}
