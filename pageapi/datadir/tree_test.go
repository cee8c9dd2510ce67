package datadir

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"everpage/wal/pg"
)

func plan(t *testing.T, s *fake, o Options) *Tree {
	t.Helper()
	tree, err := Plan(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func find(t *testing.T, tree *Tree, path string) *Entry {
	t.Helper()
	for _, e := range tree.Entries() {
		if e.Path == path {
			return e
		}
	}
	t.Fatalf("tree has no %s", path)
	return nil
}

func contentOf(t *testing.T, e *Entry) []byte {
	t.Helper()
	b := make([]byte, e.Size)
	if n, err := e.ReadAt(t.Context(), b, 0); n != len(b) || err != nil && !(errors.Is(err, io.EOF) && n == 0) {
		t.Fatalf("%s: %d, %v", e.Path, n, err)
	}
	return b
}

func TestTreeHoldsEachForkAsItMust(t *testing.T) {
	s := newFake(15)
	s.cluster.Control.DataChecksumVersion = 1
	s.add(100, pg.MainFork, 3)
	s.add(100, pg.FSMFork, 3)
	s.add(100, pg.VMFork, 1)
	s.add(200, pg.MainFork, 7) // unlogged
	s.add(200, pg.InitFork, 2)
	s.add(200, pg.VMFork, 1)
	s.add(300, pg.InitFork, 1) // unlogged, no main fork known
	s.add(400, pg.MainFork, 0)
	s.add(500, pg.MainFork, 2*pg.SegmentBlocks+1)
	s.add(600, pg.MainFork, pg.SegmentBlocks)
	tree := plan(t, s, s.options())
	sizes := map[string]int64{}
	for _, e := range tree.Entries() {
		if strings.HasPrefix(e.Path, "base/5/") && e.Mode.IsRegular() && !strings.Contains(e.Path, "/p") && !strings.Contains(e.Path, "/P") {
			sizes[strings.TrimPrefix(e.Path, "base/5/")] = e.Size / pg.BlockSize
		}
	}
	want := map[string]int64{"100": 3, "100_vm": 1, "200": 2, "200_init": 2, "300": 1, "300_init": 1, "400": 0, "500": pg.SegmentBlocks,
		"500.1": pg.SegmentBlocks, "500.2": 1, "600": pg.SegmentBlocks}
	if fmt.Sprint(sizes) != fmt.Sprint(want) {
		t.Errorf("files: %v\nwant   %v", sizes, want)
	}
	check := func(path string, block int64, rel, number uint32, fork pg.ForkNumber) {
		t.Helper()
		p := make(pg.Page, pg.BlockSize)
		if _, err := find(t, tree, "base/5/"+path).ReadAt(t.Context(), p, block*pg.BlockSize); err != nil {
			t.Fatal(err)
		}
		if r, b := binary.LittleEndian.Uint32(p[100:]), binary.LittleEndian.Uint32(p[104:]); r != rel || b != number || p[108] != byte(fork) {
			t.Errorf("%s block %d is block %d of %d fork %d", path, block, b, r, p[108])
		}
		if p.StoredChecksum() != pg.Checksum(p, number) {
			t.Errorf("%s block %d: checksum is not of block %d", path, block, number)
		}
	}
	check("100", 2, 100, 2, pg.MainFork)
	check("100_vm", 0, 100, 0, pg.VMFork)
	check("200", 1, 200, 1, pg.InitFork)
	check("200_init", 1, 200, 1, pg.InitFork)
	check("500", 5, 500, 5, pg.MainFork)
	check("500.1", 5, 500, pg.SegmentBlocks+5, pg.MainFork)
	check("500.2", 0, 500, 2*pg.SegmentBlocks, pg.MainFork)
}

func TestReadAtAnyOffset(t *testing.T) {
	s := newFake(15)
	s.add(100, pg.MainFork, 5)
	tree := plan(t, s, s.options())
	r := rand.New(rand.NewPCG(3, 4))
	for _, path := range []string{"base/5/100", ControlPath, "pg_wal/00000009.history", "pg_wal/000000090000000000000024", "pg_xact/0000"} {
		e := find(t, tree, path)
		whole := contentOf(t, e)
		for range 200 {
			off, n := r.Int64N(e.Size+10), r.IntN(3*pg.BlockSize)
			b := make([]byte, n)
			got, err := e.ReadAt(t.Context(), b, off)
			want := whole[min(off, e.Size):min(off+int64(n), e.Size)]
			if !bytes.Equal(b[:got], want) || (err == io.EOF) != (off+int64(n) > e.Size || off >= e.Size) || err != nil && err != io.EOF {
				t.Fatalf("%s: ReadAt(%d bytes, %d) = %d, %v", path, n, off, got, err)
			}
		}
	}
	if _, err := find(t, tree, "base").ReadAt(t.Context(), make([]byte, 1), 0); err == nil {
		t.Error("a directory was read")
	}
}

func TestSLRUs(t *testing.T) {
	s := newFake(15)
	next := &s.cluster.Control.Copy
	next.NextXID = pg.FullTransactionID(pg.XactsPerPage*pg.SLRUPagesPerSegment*2 + pg.XactsPerPage*3 + 5)
	next.NextMulti = pg.MultiXactOffsetsPerPage * 2
	next.NextMultiOffset = pg.MembersPerPage*40 + 3
	s.slrus[pg.Xact] = []SLRUSegment{{Number: 1, Pages: 32}, {Number: 2, Pages: 2}}
	s.slrus[pg.MultiXactOffsets] = []SLRUSegment{{Number: 0, Pages: 2}}
	s.slrus[pg.MultiXactMembers] = []SLRUSegment{{Number: 0, Pages: 32}}
	s.slrus[pg.CommitTs] = []SLRUSegment{{Number: 0, Pages: 1}}
	for _, track := range []bool{false, true} {
		s.cluster.Control.TrackCommitTimestamp = track
		got := map[string]int64{}
		tree := plan(t, s, s.options())
		for _, e := range tree.Entries() {
			if f, err := pg.Classify(e.Path); err == nil && f.Kind == pg.FileSLRU {
				got[e.Path] = e.Size / pg.BlockSize
			}
		}
		want := map[string]int64{"pg_xact/0001": 32, "pg_xact/0002": 4, "pg_multixact/offsets/0000": 3, "pg_multixact/members/0000": 32, "pg_multixact/members/0001": 9}
		if track {
			page := uint32(next.NextXID) / pg.CommitTsPerPage
			want["pg_commit_ts/0000"] = 1
			want["pg_commit_ts/"+pg.SLRUSegmentName(page/32)] = int64(page%32) + 1
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("segments: %v\nwant      %v", got, want)
		}
		b := contentOf(t, find(t, tree, "pg_xact/0002"))
		if pg.Page(b[pg.BlockSize:2*pg.BlockSize]).IsZero() || !pg.Page(b[2*pg.BlockSize:3*pg.BlockSize]).IsZero() || !pg.Page(b[3*pg.BlockSize:]).IsZero() {
			t.Error("known pages must be as they are, others zero")
		}
		if binary.LittleEndian.Uint32(b[104:]) != 64 {
			t.Error("the segment's first page is not page 64")
		}
	}
}

func TestControlAndHistory(t *testing.T) {
	for _, m := range pg.Majors() {
		s := newFake(m)
		s.cluster.Control.Copy.Timeline = 5
		s.cluster.TwoPhase = []TwoPhase{{XID: 999, State: fakeState(96)}, {XID: 4000000000, State: fakeState(96)}}
		s.cluster.Origins = []Origin{{ID: 3, RemoteLSN: 0xABC}}
		o := s.options()
		o.Parents = []byte("1\t0/1000\tno recovery target specified\n\n# comment\n4\t0/2000000\tx")
		o.Reason = "two\nlines"
		tree := plan(t, s, o)
		c, err := pg.ReadControl(contentOf(t, find(t, tree, ControlPath)))
		if err != nil {
			t.Fatal(err)
		}
		if c.State != pg.DBShutdowned || c.CheckPoint != 0x2400028 || tree.CheckPoint != c.CheckPoint || c.Copy.Redo != c.CheckPoint || c.Copy.Timeline != 9 ||
			c.Copy.PrevTimeline != 9 || !c.Copy.FullPageWrites || c.Copy.OldestActiveXID != 0 || c.Copy.NextXID != 5<<32|1000 || c.Time != 1700000000 ||
			c.UnloggedLSN != 1000 || c.MinRecoveryPoint != 0 || c.BackupEndRequired || m >= 17 && c.Copy.WALLevel != pg.WALLevelReplica {
			t.Errorf("%+v", c)
		}
		history := string(contentOf(t, find(t, tree, "pg_wal/00000009.history")))
		if history != string(o.Parents)+"\n5\t0/2345678\ttwo lines\n" {
			t.Errorf("history: %q", history)
		}
		page := contentOf(t, find(t, tree, "pg_wal/000000090000000000000024"))
		if len(page) != 1<<20 || binary.LittleEndian.Uint64(page[8:]) != 0x2400000 || !pg.Page(page[pg.BlockSize:2*pg.BlockSize]).IsZero() {
			t.Error("segment is wrong")
		}
		// The second transaction began an epoch earlier.
		names := []string{"000003E7", "EE6B2800"}
		if m >= 17 {
			names = []string{"00000005000003E7", "00000004EE6B2800"}
		}
		for _, n := range names {
			find(t, tree, "pg_twophase/"+n)
		}
		if b := contentOf(t, find(t, tree, "pg_logical/replorigin_checkpoint")); len(b) != 24 {
			t.Errorf("replorigin_checkpoint has %d bytes", len(b))
		}
		summaries := slices.ContainsFunc(tree.Entries(), func(e *Entry) bool { return e.Path == "pg_wal/summaries" })
		if summaries != (m >= 17) {
			t.Errorf("%d: pg_wal/summaries: %v", m, summaries)
		}
	}
}

// An LSN on a segment's start has its checkpoint one segment further, so that the new WAL begins beyond it.
func TestCheckPointIsBeyondTheLSN(t *testing.T) {
	s := newFake(15)
	for at, want := range map[pg.LSN]pg.LSN{0x2300000: 0x2400028, 0x23FFFFF: 0x2400028, 0x2400000: 0x2500028, 0x2400028: 0x2500028} {
		o := s.options()
		o.At = at
		if tree := plan(t, s, o); tree.CheckPoint != want {
			t.Errorf("at %s the checkpoint is at %s, want %s", at, tree.CheckPoint, want)
		}
	}
}

func TestTablespaces(t *testing.T) {
	s := newFake(15)
	s.cluster.Tablespaces = []Tablespace{{Oid: 7000, Location: "/data/a"}, {Oid: 7001, Location: "/data/b"}, {Oid: 7002}}
	for i, spc := range []pg.Oid{7000, 7001, 7002} {
		s.relations = append(s.relations, Relation{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: spc, DB: 5, Rel: 100}}, Blocks: pg.BlockNumber(i + 1)})
	}
	dir := filepath.Join(t.TempDir(), "d")
	mapped := filepath.Join(t.TempDir(), "deep", "mapped")
	o := s.options()
	o.TablespaceTarget = TablespacesBeside(dir, map[string]string{"/data/b": mapped})
	tree := plan(t, s, o)
	if err := Write(t.Context(), tree, dir, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	for path, size := range map[string]int64{dir + ".tablespaces/7000/PG_15_202209061/5/100": 1, mapped + "/PG_15_202209061/5/100": 2,
		dir + "/pg_tblspc/7002/PG_15_202209061/5/100": 3, dir + "/pg_tblspc/7000/PG_15_202209061/5/100": 1} {
		if info, err := os.Stat(path); err != nil || info.Size() != size*pg.BlockSize {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := os.Stat(dir + ".tablespaces/7002"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an in-place tablespace has a directory outside: %v", err)
	}
	// A second copy must not mix with the first.
	other := filepath.Join(t.TempDir(), "e")
	if err := Write(t.Context(), tree, other, WriteOptions{}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("an occupied tablespace was written to: %v", err)
	}
	if _, err := os.Stat(other); !errors.Is(err, fs.ErrNotExist) {
		t.Error("something was written before the refusal")
	}
	o.TablespaceTarget = TablespacesBeside(dir, map[string]string{"/data/b": "/data/b"})
	if _, err := Plan(t.Context(), s, o); err == nil {
		t.Error("a tablespace goes to its original path")
	}
	o.TablespaceTarget = TablespacesBeside(dir, map[string]string{"/data/a": mapped, "/data/b": mapped + "/"})
	if _, err := Plan(t.Context(), s, o); err == nil || !strings.Contains(err.Error(), "tablespaces 7000 and 7001 would both go to "+mapped) {
		t.Errorf("two tablespaces in one place: %v", err)
	}
	s.cluster.Tablespaces = s.cluster.Tablespaces[:2]
	if _, err := Plan(t.Context(), s, s.options()); err == nil || !strings.Contains(err.Error(), "tablespace 7002") {
		t.Errorf("a relation in no tablespace: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*fake, *Options)
		says   string
	}{
		"old timeline":     {func(_ *fake, o *Options) { o.Timeline = 1 }, "new timeline 1 is not above timeline 1"},
		"no history":       {func(s *fake, _ *Options) { s.cluster.Control.Copy.Timeline = 2 }, "history of timeline 2 is empty"},
		"other's history":  {func(s *fake, o *Options) { o.Parents = []byte("1\t0/1\tx\n") }, "history of timeline 1: bad line"},
		"bad history":      {func(s *fake, o *Options) { s.cluster.Control.Copy.Timeline = 4; o.Parents = []byte("2\t0/1\n2\t0/2\n") }, "bad line"},
		"no LSN":           {func(_ *fake, o *Options) { o.At = 0 }, "cannot craft"},
		"end of WAL":       {func(_ *fake, o *Options) { o.At = ^pg.LSN(0) }, "no WAL segment is left"},
		"segment size":     {func(s *fake, _ *Options) { s.cluster.Control.WALSegmentSize = 3 << 20 }, "WAL segment size"},
		"no xid":           {func(s *fake, _ *Options) { s.cluster.Control.Copy.NextXID = 0 }, "next transaction ID"},
		"no shared map":    {func(s *fake, _ *Options) { s.cluster.RelMaps = s.cluster.RelMaps[1:] }, "relation map of shared catalogs"},
		"database's major": {func(s *fake, _ *Options) { s.cluster.Databases[0].Version = []byte("14\n") }, "PG_VERSION of database 5"},
		"damaged state": {func(s *fake, _ *Options) {
			b := fakeState(96)
			b[3]++
			s.cluster.TwoPhase = []TwoPhase{{XID: 5, State: b}}
		}, "CRC"},
		"future state": {func(s *fake, _ *Options) {
			s.cluster.Control.Copy.NextXID = 10
			s.cluster.TwoPhase = []TwoPhase{{XID: 10, State: fakeState(96)}}
		}, "not below"},
		"fork twice":   {func(s *fake, _ *Options) { s.add(9, pg.MainFork, 1); s.add(9, pg.MainFork, 1) }, "base/5/9 would be written twice"},
		"not a config": {func(s *fake, _ *Options) { s.cluster.Files = []ConfigFile{{Path: "base/5/1"}} }, "not a configuration file"},
		"path upwards": {func(s *fake, _ *Options) { s.cluster.Files = []ConfigFile{{Path: "../x.conf"}} }, "not the path of a file"},
		"damage":       {func(s *fake, _ *Options) { s.damage = []Damage{{RelFork: pg.SLRUPage(pg.Xact, 0).RelFork}} }, "pg_xact: its content is not known"},
	} {
		s := newFake(15)
		o := s.options()
		c.change(s, &o)
		if _, err := Plan(t.Context(), s, o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestPageFromTheFutureIsRefused(t *testing.T) {
	s := newFake(15)
	s.add(100, pg.MainFork, 2)
	s.lsn = s.options().At
	tree := plan(t, s, s.options())
	contentOf(t, find(t, tree, "base/5/100"))
	s.lsn++
	if _, err := find(t, tree, "base/5/100").ReadAt(context.Background(), make([]byte, pg.BlockSize), 0); err == nil || !strings.Contains(err.Error(), "not of this LSN") {
		t.Errorf("%v", err)
	}
}
