package redo_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"everpage/deploy/workload"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// clusterState keeps what is no relation page: the control state, SLRU pages and small objects. It replays WAL as a store does, deltas taken
// through their encoding, but remembers the newest version only.
type clusterState struct {
	t      *testing.T
	redoer redo.Redoer
	state  redo.ControlState
	slru   map[pg.PageKey]pg.Page
	meta   map[metaID]string
	types  map[string]int // records by name

	changes redo.Changes
	encoded []byte
}

type metaID struct {
	kind redo.MetaKind
	id   [2]uint32
}

func (m metaID) String() string { return fmt.Sprintf("object %d of kind %d", m.id, m.kind) }

func readFile(t *testing.T, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readControl(t *testing.T, dir string) *pg.ControlFile {
	t.Helper()
	ctl, err := pg.ReadControl(readFile(t, dir, "global", "pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	return &ctl
}

// loadSLRUs reads every page of every segment of a data directory's persistent SLRUs.
func loadSLRUs(t *testing.T, dir string) map[pg.PageKey]pg.Page {
	t.Helper()
	pages := map[pg.PageKey]pg.Page{}
	for _, s := range pg.SLRUs() {
		entries, err := os.ReadDir(filepath.Join(dir, s.Dir()))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			segment, err := strconv.ParseUint(e.Name(), 16, 32)
			if err != nil {
				t.Fatalf("%s: %v", s.Dir(), err)
			}
			b := readFile(t, dir, s.Dir(), e.Name())
			for i := 0; i < len(b)/pg.BlockSize; i++ {
				pages[pg.SLRUPage(s, uint32(segment)*pg.SLRUPagesPerSegment+uint32(i))] = b[i*pg.BlockSize : (i+1)*pg.BlockSize]
			}
		}
	}
	return pages
}

var databasePath = regexp.MustCompile(`^(?:base|pg_tblspc/(\d+)/PG_[0-9_]+)/(\d+)$`)

// loadMeta reads a data directory's small objects. A tablespace's location is left out: the copy of a directory has others.
func loadMeta(t *testing.T, dir string) map[metaID]string {
	t.Helper()
	meta := map[metaID]string{}
	number := func(s string, base int) uint32 {
		n, err := strconv.ParseUint(s, base, 64) // 17 and later have the epoch before a transaction id
		if err != nil {
			t.Fatal(err)
		}
		return uint32(n)
	}
	glob := func(pattern string) []string {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	meta[metaID{redo.MetaRelMap, [2]uint32{pg.GlobalTablespace, 0}}] = string(readFile(t, dir, "global", "pg_filenode.map"))
	for _, path := range append(glob("base/*"), glob("pg_tblspc/*/PG_*/*")...) {
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			t.Fatal(err)
		}
		m := databasePath.FindStringSubmatch(rel)
		if m == nil {
			continue
		}
		spc := uint32(pg.DefaultTablespace)
		if m[1] != "" {
			spc = number(m[1], 10)
		}
		id := [2]uint32{spc, number(m[2], 10)}
		for kind, name := range map[redo.MetaKind]string{redo.MetaRelMap: "pg_filenode.map", redo.MetaDatabase: "PG_VERSION"} {
			// A tablespace that is not the database's default has neither.
			if b, err := os.ReadFile(filepath.Join(path, name)); err == nil {
				meta[metaID{kind, id}] = string(b)
			} else if !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
	}
	for _, path := range glob("pg_tblspc/*") {
		meta[metaID{redo.MetaTablespace, [2]uint32{number(filepath.Base(path), 10)}}] = ""
	}
	for _, path := range glob("pg_twophase/*") {
		meta[metaID{redo.MetaTwoPhase, [2]uint32{number(filepath.Base(path), 16)}}] = string(readFile(t, path))
	}
	if b, err := os.ReadFile(filepath.Join(dir, "pg_logical", "replorigin_checkpoint")); err == nil {
		for b = b[4 : len(b)-4]; len(b) > 0; b = b[16:] {
			meta[metaID{redo.MetaOrigin, [2]uint32{uint32(binary.LittleEndian.Uint16(b))}}] = string(b[8:16])
		}
	}
	return meta
}

func loadState(t *testing.T, dir string) *clusterState {
	t.Helper()
	ctl := readControl(t, dir)
	return &clusterState{
		t: t, redoer: redo.Redoer{Major: ctl.Major}, state: redo.NewControlState(ctl.Copy, ctl.CheckPoint, ctl),
		slru: loadSLRUs(t, dir), meta: loadMeta(t, dir), types: map[string]int{},
	}
}

func (c *clusterState) replay(rec *wal.Record) {
	c.t.Helper()
	ch := &c.changes
	if err := redo.Touch(rec, &c.state, ch); err != nil {
		c.t.Fatal(err)
	}
	if ch.Unproven != nil {
		c.t.Fatal(ch.Unproven)
	}
	for _, d := range ch.DropDatabases {
		delete(c.meta, metaID{redo.MetaRelMap, [2]uint32{d.Spc, d.DB}})
		delete(c.meta, metaID{redo.MetaDatabase, [2]uint32{d.Spc, d.DB}})
	}
	for _, d := range ch.CopyDatabases {
		for _, kind := range []redo.MetaKind{redo.MetaRelMap, redo.MetaDatabase} {
			if v, ok := c.meta[metaID{kind, [2]uint32{d.From.Spc, d.From.DB}}]; ok {
				c.meta[metaID{kind, [2]uint32{d.To.Spc, d.To.DB}}] = v
			}
		}
	}
	for i := range ch.Pages {
		c.changeSLRU(&ch.Pages[i])
	}
	for i := range ch.SLRUTruncates {
		tr := &ch.SLRUTruncates[i]
		for k := range c.slru {
			if s, _ := k.SLRU(); s == tr.SLRU && tr.Deletes(k.Block/pg.SLRUPagesPerSegment) {
				delete(c.slru, k)
			}
		}
	}
	for _, m := range ch.Meta {
		id := metaID{m.Kind, m.ID}
		switch old, ok := c.meta[id]; {
		case m.Value == nil:
			delete(c.meta, id)
		case m.Kind == redo.MetaTablespace:
			c.meta[id] = ""
		case m.IfGreater && ok && binary.LittleEndian.Uint64([]byte(old)) >= binary.LittleEndian.Uint64(m.Value):
		default:
			c.meta[id] = string(m.Value)
		}
	}
	c.types[rec.Rmgr.String()+"/"+redo.RecordName(rec.Major, rec.Rmgr, rec.Info)]++
	c.control(rec)
}

func (c *clusterState) changeSLRU(p *redo.PageChange) {
	c.t.Helper()
	if _, ok := p.Key.SLRU(); !ok {
		return
	}
	page := c.slru[p.Key]
	if page == nil {
		page = make(pg.Page, pg.BlockSize)
		c.slru[p.Key] = page
	}
	c.encoded = redo.AppendDelta(c.encoded[:0], &p.Delta)
	if _, err := c.redoer.Redo(page, p.Key, p.Delta.LSN, p.Kind == redo.KindInit, c.encoded); err != nil {
		c.t.Fatal(err)
	}
}

// control gives a record to the control state. Checkpoints say what the primary's counters were: ours must have come there without them.
func (c *clusterState) control(rec *wal.Record) {
	c.t.Helper()
	before := c.state
	groups, err := c.state.Redo(rec)
	if err != nil {
		c.t.Fatal(err)
	}
	for g := redo.ControlXID; g <= redo.ControlRest; g++ {
		if same := bytes.Equal(before.AppendGroup(nil, g), c.state.AppendGroup(nil, g)); same == groups.Has(g) {
			c.t.Fatalf("%s: group %d changed: %v, but told %v", rec.Start, g, !same, groups.Has(g))
		}
	}
	if c.types["XLOG/CHECKPOINT_SHUTDOWN"] < 2 && rec.Op() == 0 || rec.Rmgr != wal.RmXLOG || rec.Op() > 0x10 {
		return
	}
	cp, err := pg.DecodeCheckPoint(rec.Major, rec.Main)
	if err != nil {
		c.t.Fatal(err)
	}
	if rec.Op() == 0x10 {
		// Ahead of us may be what its sessions had taken and not logged yet.
		const sessions = 64
		if ahead := int64(cp.NextXID) - int64(before.NextXID); ahead > sessions {
			c.t.Errorf("before the checkpoint at %s: next xid %x, the primary had %x", rec.Start, before.NextXID, cp.NextXID)
		}
		if ahead := int32(cp.NextMulti - before.NextMulti); ahead > sessions {
			c.t.Errorf("before the checkpoint at %s: next multixact %d, the primary had %d", rec.Start, before.NextMulti, cp.NextMulti)
		}
		if ahead := int32(cp.NextMultiOffset - before.NextMultiOffset); ahead > sessions*sessions {
			c.t.Errorf("before the checkpoint at %s: next member %d, the primary had %d", rec.Start, before.NextMultiOffset, cp.NextMultiOffset)
		}
		return
	}
	// The server logs an OID up to which it may go on without WAL (VAR_OID_PREFETCH).
	if ahead := before.NextOid - cp.NextOid; ahead > 8192 {
		c.t.Errorf("before the shutdown checkpoint at %s: next OID %d, the primary had %d", rec.Start, before.NextOid, cp.NextOid)
	}
	type counters struct {
		xid                  pg.FullTransactionID
		multi, offset        uint32
		newestTs             uint32
		timeline             uint32
		writes, trackingSame bool
	}
	got := counters{before.NextXID, before.NextMulti, before.NextMultiOffset, before.NewestCommitTs, before.Timeline, before.FullPageWrites, before.OldestCommitTs != 0}
	want := counters{cp.NextXID, cp.NextMulti, cp.NextMultiOffset, cp.NewestCommitTs, cp.Timeline, cp.FullPageWrites, cp.OldestCommitTs != 0}
	if got != want {
		c.t.Errorf("before the shutdown checkpoint at %s: %+v, the primary had %+v", rec.Start, got, want)
	}
}

func (c *clusterState) replayAll(f *workload.Files) {
	c.t.Helper()
	size, err := wal.DetectSegmentSize(f.WAL)
	if err != nil {
		c.t.Fatal(err)
	}
	dir, err := wal.OpenDir(f.WAL, size, wal.History{Timeline: c.state.Timeline})
	if err != nil {
		c.t.Fatal(err)
	}
	defer dir.Close()
	reader, err := wal.NewReader(dir, wal.ReaderOptions{SegmentSize: size, Major: c.redoer.Major})
	if err != nil {
		c.t.Fatal(err)
	}
	reader.Seek(c.state.CheckPointRedo)
	for {
		rec, err := reader.Next()
		if wal.IsEnd(err) {
			return
		}
		if err != nil {
			c.t.Fatal(err)
		}
		c.replay(rec)
	}
}

// compare holds the state against a cleanly stopped data directory.
func (c *clusterState) compare(dir string) {
	c.t.Helper()
	ctl := readControl(c.t, dir)
	got := *ctl
	c.state.Fill(&got)
	if got != *ctl {
		c.t.Errorf("pg_control: got %+v, want %+v", got, *ctl)
	}
	c.compareSLRUs(loadSLRUs(c.t, dir))
	want := loadMeta(c.t, dir)
	for id, v := range want {
		if mine, ok := c.meta[id]; !ok || mine != v {
			c.t.Errorf("%s: present %v, %d bytes %.60x, want %d bytes %.60x", id, ok, len(mine), mine, len(v), v)
		}
	}
	kinds := map[redo.MetaKind]int{}
	for id := range c.meta {
		kinds[id.kind]++
		if _, ok := want[id]; !ok {
			c.t.Errorf("%s should not be there", id)
		}
	}
	c.t.Logf("compared objects, by kind: %v", kinds)
}

// compareSLRUs knows one tolerance: pages of zeros may lack on either side, as the end of a file does.
func (c *clusterState) compareSLRUs(want map[pg.PageKey]pg.Page) {
	c.t.Helper()
	keys := map[pg.PageKey]bool{}
	for k := range want {
		keys[k] = true
	}
	for k := range c.slru {
		keys[k] = true
	}
	sorted := make([]pg.PageKey, 0, len(keys))
	for k := range keys {
		sorted = append(sorted, k)
	}
	slices.SortFunc(sorted, pg.PageKey.Compare)
	pages := map[string]int{}
	segments := func(m map[pg.PageKey]pg.Page) (names []string) {
		for _, k := range sorted {
			s, _ := k.SLRU()
			if name := s.Dir() + "/" + pg.SLRUSegmentName(k.Block/pg.SLRUPagesPerSegment); m[k] != nil && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		return names
	}
	if mine, theirs := segments(c.slru), segments(want); !slices.Equal(mine, theirs) {
		c.t.Errorf("segments %v, want %v", mine, theirs)
	}
	for _, k := range sorted {
		mine, theirs := c.slru[k], want[k]
		if mine == nil {
			mine = pg.ZeroPage
		}
		if theirs == nil {
			theirs = pg.ZeroPage
		}
		s, _ := k.SLRU()
		pages[s.Dir()]++
		for i := range mine {
			if mine[i] != theirs[i] {
				c.t.Errorf("%s (on disk %v, ours %v) differs from byte %d on: %x, want %x", k, want[k] != nil, c.slru[k] != nil, i, mine[i:min(i+20, 8192)], theirs[i:min(i+20, 8192)])
				break
			}
		}
	}
	c.t.Logf("compared SLRU pages: %v of segments %v", pages, segments(want))
}

// TestStateOfStoppedPrimary replays the mixed workload and holds all that is no relation page against the primary's files.
func TestStateOfStoppedPrimary(t *testing.T) {
	for _, major := range pg.Majors() {
		t.Run(strconv.Itoa(int(major)), func(t *testing.T) {
			f, err := workload.Cached(t.Context(), int(major), nil, workload.Mixed, workload.Options{Seed: 1})
			if err != nil {
				t.Fatal(err)
			}
			c := loadState(t, f.Base)
			c.replayAll(f)
			c.compare(f.Final)
			t.Logf("records: %v", c.types)
		})
	}
}
