package importer_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"everpage/chunk"
	"everpage/chunk/importer"
	"everpage/chunk/ingest"
	"everpage/chunk/offline"
	"everpage/chunk/verify"
	"everpage/deploy/pgtest"
	"everpage/deploy/workload"
	"everpage/redo"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

const branch = 1

func open(t *testing.T) *chunk.Store {
	t.Helper()
	store, err := chunk.Open(chunk.Options{Dir: t.TempDir(), Redoer: redo.Redoer{Major: 15}, Checksum: pg.Checksum})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

func file(name string, content []byte) stream.BackupFile {
	return stream.BackupFile{Name: name, Mode: 0o600, Size: int64(len(content)), Reader: bytes.NewReader(content)}
}

func page(lsn pg.LSN, block uint32, fill byte) pg.Page {
	p := make(pg.Page, pg.BlockSize)
	p.Init(0)
	for i := 4000; i < pg.BlockSize; i++ {
		p[i] = fill
	}
	p.SetUpper(4000)
	p.SetLSN(lsn)
	p.SetStoredChecksum(pg.Checksum(p, block))
	return p
}

// What a base backup brings lies at its start, and a page whose checksum is wrong is damaged whatever LSN it bears: maps alone are made of zeros.
func TestPages(t *testing.T) {
	const start = 0x2000028
	store := open(t)
	im, err := importer.New(store, importer.Options{Branch: branch, Major: 15, Start: start, DataChecksums: true})
	if err != nil {
		t.Fatal(err)
	}
	p, ok := store.Progress(branch)
	if !ok || !importer.Unfinished(p.Note) {
		t.Error("an import that has begun is not known as unfinished")
	}
	if _, err := importer.New(store, importer.Options{Branch: branch, Major: 15, Start: start}); err == nil {
		t.Error("a second import into the branch was begun")
	}
	good, old, torn, late := page(start-8, 0, 1), page(start-8, 1, 2), page(start+8, 2, 3), page(start+800, 3, 4)
	old[5000] ^= 1
	torn[8000] ^= 1
	zero := make(pg.Page, pg.BlockSize)
	rel := bytes.Join([][]byte{good, old, torn, late, zero, []byte("the rest of a torn extension")}, nil)
	vm := bytes.Join([][]byte{torn, page(start-8, 1, 7)}, nil)
	for _, f := range []stream.BackupFile{file("base/5/16384", rel), file("base/5/16384_vm", vm), file("base/5/16385", nil), file("base/5/16384_fsm", old)} {
		if err := im.File(f); err != nil {
			t.Fatal(err)
		}
	}
	if len(im.Damaged) != 2 {
		t.Errorf("damaged are %q, want blocks 1 and 2", im.Damaged)
	}
	b, err := os.ReadFile(filepath.Join(coldBase(t), "global", "pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	control, err := pg.ReadControl(b)
	if err != nil {
		t.Fatal(err)
	}
	body := control.Copy
	if err := im.Finish(start, body, start); err == nil {
		t.Error("an import without pg_control was finished")
	}
	if err := im.File(file("global/pg_control", b)); err != nil {
		t.Fatal(err)
	}
	if err := im.Finish(start, body, start); err == nil {
		t.Error("a checkpoint with another redo LSN was taken")
	}
	body.Redo = start
	if err := im.Finish(start, body, start); err != nil {
		t.Fatal(err)
	}
	im.Close()
	w, err := store.Writer(branch)
	if err != nil {
		t.Fatal(err)
	}
	p, _ = store.Progress(branch)
	if importer.Unfinished(p.Note) {
		t.Error("a finished import counts as unfinished")
	}
	if n, err := ingest.NoteOf(p.Note); err != nil || n.BackupEnd != start || n.SystemIdentifier != control.SystemID {
		t.Errorf("note %+v, %v", n, err)
	}
	p.Consistent = start
	if err := w.Commit(p); err != nil {
		t.Fatal(err)
	}
	w.Close()

	main := pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: pg.DefaultTablespace, DB: 5, Rel: 16384}}
	got := make(pg.Page, pg.BlockSize)
	for i, want := range []pg.Page{good, nil, nil, late, zero} {
		err := store.Page(t.Context(), branch, pg.PageKey{RelFork: main, Block: uint32(i)}, start, got)
		var damaged *chunk.DamagedError
		switch {
		case want == nil && (!errors.As(err, &damaged) || !strings.Contains(err.Error(), "checksum")):
			t.Errorf("block %d: %v, want it damaged", i, err)
		case want != nil && err != nil:
			t.Errorf("block %d: %v", i, err)
		case want != nil && !bytes.Equal(got, want):
			t.Errorf("block %d differs from the backup's", i)
		}
	}
	for fork, want := range map[pg.ForkNumber][]bool{pg.VMFork: {true, false}, pg.FSMFork: {true}} {
		for block, isZero := range want {
			key := pg.PageKey{RelFork: pg.RelFork{RelFileLocator: main.RelFileLocator, Fork: fork}, Block: uint32(block)}
			if err := store.Page(t.Context(), branch, key, start, got); err != nil || got.IsZero() != isZero {
				t.Errorf("%s: zero is %v, want %v; %v", key, got.IsZero(), isZero, err)
			}
		}
	}
	for rel, want := range map[uint32]uint32{16384: 5, 16385: 0} {
		main.Rel = rel
		if n, ok, err := store.Size(branch, main, start); err != nil || !ok || n != want {
			t.Errorf("relation %d has %d blocks (%v, %v), want %d", rel, n, ok, err, want)
		}
	}
}

// coldBase is the data directory of a new cluster.
func coldBase(t *testing.T) string {
	t.Helper()
	files, err := workload.Cached(t.Context(), 15, nil, workload.TPCB, workload.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	return files.Base
}

func TestReadOrigins(t *testing.T) {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0x1257DADE)
	for _, e := range []struct {
		origin uint16
		remote uint64
	}{{1, 0x16B3740}, {7, math.MaxUint64}} {
		b = append(le.AppendUint16(b, e.origin), 0xAA, 0xAA, 0xAA, 0xAA, 0xAA, 0xAA) // padding is what it happens to be
		b = le.AppendUint64(b, e.remote)
	}
	b = le.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	got, err := importer.ReadOrigins(b)
	if err != nil || len(got) != 2 || got[1] != 0x16B3740 || got[7] != math.MaxUint64 {
		t.Errorf("got %v, %v", got, err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		if _, err := importer.ReadOrigins(bad); err == nil {
			t.Errorf("a flipped bit in byte %d went unnoticed", i)
		}
	}
	for n := range b {
		if _, err := importer.ReadOrigins(b[:n]); err == nil {
			t.Errorf("the first %d bytes were taken", n)
		}
	}
}

// Tablespaces inside pg_tblspc come as files, in a base backup and in a directory that was stopped, and are verified like others. The server also
// replays replication origins.
func TestTablespacesInPlaceAndOrigins(t *testing.T) {
	dir := t.TempDir()
	s := pgtest.New(t, pgtest.Config{Dir: filepath.Join(dir, "server"), Settings: pgtest.Merge(pgtest.OracleSettings(15), map[string]string{"allow_in_place_tablespaces": "on"})})
	s.MustSQL(t, "postgres", "create tablespace before location ''", "create tablespace empty_before location ''",
		"create table a(x int) tablespace before", "insert into a select generate_series(1, 1000)",
		"select pg_replication_origin_create('one')", "select pg_replication_origin_create('two')", "select pg_replication_origin_create('gone')",
		"select pg_replication_origin_advance('one', '0/1234')", "select pg_replication_origin_advance('gone', '0/99')")
	if err := s.Basebackup(t.Context(), filepath.Join(dir, "base")); err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", "create tablespace after location ''", "create table b(x int primary key) tablespace after", "insert into b select generate_series(1, 1000)",
		"create tablespace empty_after location ''", "create tablespace dropped location ''", "drop tablespace dropped", "update a set x = x + 1",
		"select pg_replication_origin_advance('one', '0/777')", "select pg_replication_origin_drop('gone')",
		"select pg_replication_origin_session_setup('two'); begin; select pg_replication_origin_xact_setup('0/5678', now()); insert into a values (5); commit")
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.MoveWAL(filepath.Join(dir, "wal")), s.CopyCold(filepath.Join(dir, "final"))); err != nil {
		t.Fatal(err)
	}
	report, err := verify.Run(t.Context(), verify.Options{Base: filepath.Join(dir, "base"), WAL: filepath.Join(dir, "wal"), Final: filepath.Join(dir, "final")})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range report.Found {
		t.Errorf("%+v", m)
	}
	if !report.OK() {
		t.Errorf("%+v", report)
	}

	src, err := offline.Open(filepath.Join(dir, "base"), filepath.Join(dir, "wal"))
	if err != nil {
		t.Fatal(err)
	}
	store := open(t)
	if _, err := src.Import(t.Context(), store, branch); err != nil {
		t.Fatal(err)
	}
	spaces := 0
	err = store.MetaAll(branch, redo.MetaTablespace, src.Redo, func(id [2]uint32, _ pg.LSN, location []byte) error {
		if len(location) != 0 {
			t.Errorf("tablespace %d lies in %q, want it in pg_tblspc", id[0], location)
		}
		spaces++
		return nil
	})
	if err != nil || spaces != 2 {
		t.Errorf("%d tablespaces were imported, want 2; %v", spaces, err)
	}
}

// Files tell of a tablespace that nobody named, as those of a base backup over the network do.
func TestTablespaceByItsFiles(t *testing.T) {
	store := open(t)
	im, err := importer.New(store, importer.Options{Branch: branch, Major: 15, Start: 0x2000028})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := im.Tablespaces([]stream.Tablespace{{Oid: 0, Location: "/data"}, {Oid: 16400, Location: "/ssd"}}); err != nil {
		t.Fatal(err)
	}
	control, err := os.ReadFile(filepath.Join(coldBase(t), "global", "pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []stream.BackupFile{
		file("pg_tblspc/16400/PG_15_202209061/5/16384", page(1, 0, 1)), file("pg_tblspc/16401/PG_15_202209061/5/16385", page(1, 0, 1)), file("global/pg_control", control),
	} {
		if err := im.File(f); err != nil {
			t.Fatal(err)
		}
	}
	c, err := pg.ReadControl(control)
	if err != nil {
		t.Fatal(err)
	}
	body := c.Copy
	body.Redo = 0x2000028
	if err := im.Finish(0x2000028, body, 0x2000028); err != nil {
		t.Fatal(err)
	}
	got := map[uint32]string{}
	if err := store.MetaAll(branch, redo.MetaTablespace, 0x2000028, func(id [2]uint32, _ pg.LSN, location []byte) error {
		got[id[0]] = string(location)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if at, ok := got[16401]; len(got) != 2 || got[16400] != "/ssd" || !ok || at != "" {
		t.Errorf("tablespaces are %v", got)
	}
}
