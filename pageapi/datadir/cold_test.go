package datadir_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"everpage/pageapi/datadir"
	"everpage/wal/pg"
)

// cold is a Source over the data directory of a server that was stopped cleanly. It knows one LSN: that of its end.
type cold struct {
	dir       string
	end       pg.LSN
	cluster   datadir.Cluster
	relations map[pg.RelFork]pg.BlockNumber
	slrus     map[pg.SLRU][]datadir.SLRUSegment
	damage    []datadir.Damage
}

func openCold(dir string) (*cold, error) {
	s := &cold{dir: dir, relations: map[pg.RelFork]pg.BlockNumber{}, slrus: map[pg.SLRU][]datadir.SLRUSegment{}}
	b, err := os.ReadFile(filepath.Join(dir, datadir.ControlPath))
	if err != nil {
		return nil, err
	}
	if s.cluster.Control, err = pg.ReadControl(b); err != nil {
		return nil, err
	}
	if s.cluster.Control.State != pg.DBShutdowned {
		return nil, fmt.Errorf("%s was not stopped cleanly", dir)
	}
	s.end = s.cluster.Control.CheckPoint + 120
	if err := s.walk(dir, ""); err != nil {
		return nil, err
	}
	spaces, err := os.ReadDir(filepath.Join(dir, "pg_tblspc"))
	if err != nil {
		return nil, err
	}
	for _, e := range spaces {
		f, err := pg.Classify("pg_tblspc/" + e.Name())
		if err != nil || f.Kind != pg.FileTablespaceLink {
			return nil, fmt.Errorf("pg_tblspc/%s: %+v, %v", e.Name(), f, err)
		}
		t := datadir.Tablespace{Oid: f.Spc}
		if e.Type() == fs.ModeSymlink {
			link := filepath.Join(dir, "pg_tblspc", e.Name())
			if t.Location, err = os.Readlink(link); err != nil {
				return nil, err
			}
			target, err := filepath.EvalSymlinks(link)
			if err != nil {
				return nil, err
			}
			if err := s.walk(target, "pg_tblspc/"+e.Name()+"/"); err != nil {
				return nil, err
			}
		}
		s.cluster.Tablespaces = append(s.cluster.Tablespaces, t)
	}
	return s, nil
}

func (s *cold) walk(root, prefix string) error {
	return filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		f, err := pg.Classify(prefix + strings.TrimPrefix(p, root+"/"))
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		blocks := pg.BlockNumber(info.Size() / pg.BlockSize)
		var content []byte
		switch f.Kind {
		case pg.FileRelMap, pg.FileVersion, pg.FileTwoPhase, pg.FileOrigins, pg.FileConfig:
			if content, err = os.ReadFile(p); err != nil {
				return err
			}
		}
		c := &s.cluster
		switch f.Kind {
		case pg.FileRelation:
			s.relations[f.Rel] += blocks
		case pg.FileSLRU:
			s.slrus[f.SLRU] = append(s.slrus[f.SLRU], datadir.SLRUSegment{Number: f.Segment, Pages: blocks})
		case pg.FileRelMap:
			c.RelMaps = append(c.RelMaps, datadir.RelMap{Spc: f.Spc, DB: f.DB, Data: content})
		case pg.FileVersion:
			if f.DB != 0 {
				c.Databases = append(c.Databases, datadir.Database{Spc: f.Spc, DB: f.DB, Version: content})
			}
		case pg.FileTwoPhase:
			c.TwoPhase = append(c.TwoPhase, datadir.TwoPhase{XID: f.XID.XID(), State: content})
		case pg.FileOrigins:
			for i := 4; i+16 < len(content); i += 16 {
				c.Origins = append(c.Origins, datadir.Origin{ID: binary.LittleEndian.Uint16(content[i:]), RemoteLSN: pg.LSN(binary.LittleEndian.Uint64(content[i+8:]))})
			}
		case pg.FileConfig:
			c.Files = append(c.Files, datadir.ConfigFile{Path: prefix + strings.TrimPrefix(p, root+"/"), Mode: info.Mode().Perm(), Content: content})
		case pg.FileUnknown:
			return fmt.Errorf("%s is unknown", p)
		}
		return nil
	})
}

func (s *cold) check(at pg.LSN) error {
	if at != s.end {
		return fmt.Errorf("only %s is known, not %s", s.end, at)
	}
	return nil
}

func (s *cold) Cluster(_ context.Context, at pg.LSN) (*datadir.Cluster, error) {
	c := s.cluster
	// What the tree must set by itself.
	c.Control.State, c.Control.Time, c.Control.CheckPoint, c.Control.Copy.Redo, c.Control.Copy.OldestActiveXID = pg.DBInProduction, 1, 2, 3, 4
	c.Control.MinRecoveryPoint, c.Control.BackupStart, c.Control.BackupEndRequired, c.Control.Copy.FullPageWrites = 5, 6, true, false
	return &c, s.check(at)
}

func (s *cold) Relations(_ context.Context, at pg.LSN, fn func(datadir.Relation) error) error {
	for f, n := range s.relations {
		if err := fn(datadir.Relation{RelFork: f, Blocks: n}); err != nil {
			return err
		}
	}
	return s.check(at)
}

func (s *cold) SLRUSegments(_ context.Context, at pg.LSN, slru pg.SLRU) ([]datadir.SLRUSegment, error) {
	return s.slrus[slru], s.check(at)
}

func (s *cold) ReadBlocks(_ context.Context, f pg.RelFork, first pg.BlockNumber, at pg.LSN, dst []byte) error {
	segment, path := first/pg.SegmentBlocks, ""
	per := pg.BlockNumber(pg.SegmentBlocks)
	if slru, ok := (pg.PageKey{RelFork: f}).SLRU(); ok {
		per = pg.SLRUPagesPerSegment
		segment = first / per
		path = slru.Dir() + "/" + pg.SLRUSegmentName(segment)
	} else {
		path = s.cluster.Control.Major.RelationPath(f, segment)
	}
	file, err := os.Open(filepath.Join(s.dir, path))
	if err != nil {
		return err
	}
	_, err = file.ReadAt(dst, int64(first%per)*pg.BlockSize)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s is shorter than its size said", path)
	}
	if _, slru := (pg.PageKey{RelFork: f}).SLRU(); !slru {
		// Checksums are the tree's work.
		for i := 0; i < len(dst); i += pg.BlockSize {
			if p := pg.Page(dst[i : i+pg.BlockSize]); !p.IsNew() {
				p.SetStoredChecksum(0)
			}
		}
	}
	return errors.Join(err, file.Close(), s.check(at))
}

func (s *cold) Damaged(_ context.Context, at pg.LSN, fn func(datadir.Damage) error) error {
	for _, d := range s.damage {
		if err := fn(d); err != nil {
			return err
		}
	}
	return s.check(at)
}
