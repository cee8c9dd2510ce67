package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// smallDisk mounts a file system of so many bytes for as long as the test runs. It takes root.
func smallDisk(t *testing.T, dir string, bytes int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system takes root")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Fatalf("mount a tmpfs at %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill takes all but so many bytes of a file system and returns how to give them back.
func fill(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "hog")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	eventually(t, "the disk is full", func() (bool, string) { // others write to it meanwhile
		var fs syscall.Statfs_t
		if err := syscall.Statfs(dir, &fs); err != nil {
			t.Fatal(err)
		}
		n := int64(fs.Bavail)*fs.Bsize - leave
		if n <= 0 {
			return true, ""
		}
		err := syscall.Fallocate(int(f.Fd()), 0, 0, n)
		return err == nil, fmt.Sprint(err)
	})
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// stopsSoon stops a server fast. A walsender whose client answers without taking anything would keep it from ending.
func stopsSoon(t *testing.T, s *pgtest.Server) {
	t.Helper()
	began := time.Now()
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("the primary stopped in %s", took)
	if took > 20*time.Second {
		t.Errorf("the primary took %s to stop", took)
	}
}

// TestFullDiskOfTheSpool: the node disconnects, so that the primary can stop; what it has is served; it goes on when there is space.
func TestFullDiskOfTheSpool(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "node")
	smallDisk(t, data, 160<<20)
	s := newPrimary(t)
	s.MustSQL(t, "postgres", "create table t as select i, md5(i::text) v from generate_series(1, 1000) i")
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('t')")[0][0]
	n := nodetest.New(t, nodetest.Config{Binary: everpage, Data: data, Args: []string{"--segment-blocks", "16", "--spool-keep", "1"}})
	attach(t, n, s)
	first := waitState(t, n, "streaming", "").Consistent
	at := caughtUp(t, n, s)
	free := fill(t, data, 4<<20)
	for range 2 { // the next segment of the spool has no room
		s.MustSQL(t, "postgres", "update t set v = md5(v)", "select pg_switch_wal()")
	}
	waitState(t, n, "waiting", "no space left on device")
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	n.Must(t, "page", "get", rel, "0")
	s.MustSQL(t, "postgres", "update t set v = md5(v)")
	stopsSoon(t, s)
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())

	// Killed and started again on the full disk it still serves, and still loses nothing.
	n.Kill9()
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	free()
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.MustSQL(t, "postgres", "delete from t where i % 2 = 0")
	caughtUp(t, n, s)
	if f := waitState(t, n, "streaming", ""); f.Consistent != first || len(f.Warnings) > 0 {
		t.Errorf("after the disk was full: %+v, imported first at %s", f, first)
	}
	n.Must(t, "check", "--quiet")
	compareStopped(t, n, s)
}

// TestFullDiskOfTheStore: WAL is still received and acknowledged, what is stored is served, and the rest follows when there is space.
func TestFullDiskOfTheStore(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "node")
	store := filepath.Join(data, "store")
	smallDisk(t, store, 64<<20)
	s := newPrimary(t)
	s.MustSQL(t, "postgres", "create table t as select i, md5(i::text) v from generate_series(1, 2000) i")
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('t')")[0][0]
	n := nodetest.New(t, nodetest.Config{Binary: everpage, Data: data, Args: []string{"--segment-blocks", "16", "--run", "300000"}})
	attach(t, n, s)
	first := waitState(t, n, "streaming", "").Consistent
	at := caughtUp(t, n, s)
	free := fill(t, store, 0)
	// It takes a while: the store gives up the space it reserved, merges tables, and has memory.
	var end pg.LSN
	eventually(t, "the store is full", func() (bool, string) {
		s.MustSQL(t, "postgres", "update t set v = md5(v)", "update t set v = md5(v)", "vacuum t")
		end = parseLSN(t, s.MustSQL(t, "postgres", "select pg_current_wal_flush_lsn()")[0][0])
		// Longer than ingest waits for its next try: what has room in memory is taken.
		r := n.Run(t.Context(), "page", "get", rel, "0", "--lsn", end.String(), "--timeout", "2500ms")
		full := r.Code == 5 && strings.Contains(r.Stderr, "is not readable yet: it was received, but is ingested up to")
		f, err := n.Status(t.Context())
		return full && err == nil && strings.Contains(strings.Join(f.Warnings, " "), "the store can't write"), fmt.Sprint(r.Code, r.Stderr, f, err)
	})
	waitFollow(t, n, "WAL is received into the spool all the same", func(f nodetest.Follow) bool {
		received, err := pg.ParseLSN(f.Received)
		return err == nil && received >= end && f.State == "streaming"
	})
	n.Must(t, "page", "get", rel, "0", "--lsn", at.String())
	stopsSoon(t, s)
	free()
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, n, s)
	waitFollow(t, n, "streaming without a warning", func(f nodetest.Follow) bool {
		return f.State == "streaming" && len(f.Warnings) == 0 && f.Consistent == first
	})
	n.Must(t, "check", "--quiet")
	compareStopped(t, n, s)
}

// flip inverts one bit of a file.
func flip(t *testing.T, path string, offset int64, bit uint8) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << bit
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
}

// TestFlippedBitsInTheSpool: WAL that was acknowledged and isn't what it was any more is never ingested.
func TestFlippedBitsInTheSpool(t *testing.T) {
	t.Parallel()
	s := newPrimary(t, map[string]string{"autovacuum": "off"})
	n := newNode(t)
	attach(t, n, s)
	s.MustSQL(t, "postgres", "create table t as select i, md5(i::text) v from generate_series(1, 3000) i")
	rel := s.MustSQL(t, "postgres", "select pg_relation_filepath('t')")[0][0]
	damaged := caughtUp(t, n, s)
	s.MustSQL(t, "postgres", "select pg_switch_wal()", "update t set v = md5(v)")
	at := caughtUp(t, n, s)
	n.Kill9() // what is readable now is not in the store yet: it comes again from the spool
	segments, err := pgtest.Segments(filepath.Join(n.Data(), "spool"))
	if err != nil || len(segments) < 2 {
		t.Fatalf("segments %v, error %v", segments, err)
	}
	path := filepath.Join(n.Data(), "spool", segments[len(segments)-2])
	const segment = 16 << 20
	offset := int64(damaged)%segment - 5000
	flip(t, path, offset, 3)
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitState(t, n, "stopped", "spool")
	refused(t, n, 5, []string{"is not readable yet"}, "page", "get", rel, "0", "--lsn", at.String(), "--timeout", "3s")
	n.Kill9()
	flip(t, path, offset, 3)
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitReadable(t, n, at)

	// In the last segment it can't be told from a write that a crash tore: it is cut off there and received again.
	n.Kill9()
	flip(t, filepath.Join(n.Data(), "spool", segments[len(segments)-1]), int64(at)%segment-3000, 5)
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	compareStopped(t, n, s)
}

// TestFlippedBitsInTheStore: a page is what it was, or there is an error; and check finds it.
func TestFlippedBitsInTheStore(t *testing.T) {
	t.Parallel()
	random := dice(t)
	s := newPrimary(t, map[string]string{"autovacuum": "off"})
	n := newNode(t, "--run", "500000")
	attach(t, n, s)
	s.MustSQL(t, "postgres", "create table t as select i, md5(i::text) v from generate_series(1, 5000) i", "update t set v = md5(v) where i % 3 = 0")
	path := s.MustSQL(t, "postgres", "select pg_relation_filepath('t')")[0][0]
	at := caughtUp(t, n, s)
	if err := s.Stop(t.Context(), pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	rel, err := pg.ParseRel(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func() (pages [][]byte, failed int) {
		t.Helper()
		c := newClient(t, n)
		pos, fork := pageapi.Position{LSN: at}, pg.RelFork{RelFileLocator: rel, Fork: pg.MainFork}
		for b := range pg.BlockNumber(50) {
			page := make([]byte, pg.BlockSize)
			if _, err := c.Pages(t.Context(), pos, fork, []pg.BlockNumber{b}, page); err != nil {
				if code := pageapi.CodeOf(err); code != pageapi.Corrupt {
					t.Errorf("block %d: %v, code %v", b, err, code)
				}
				page = nil
				failed++
			}
			pages = append(pages, page)
		}
		return pages, failed
	}
	right, failed := read()
	if failed > 0 {
		t.Fatalf("%d pages can't be read before any damage", failed)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(n.Data(), "store", "pebble", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables %v, error %v", tables, err)
	}
	for _, table := range tables {
		damage(t, random, table)
	}
	if err := n.StartAgain(t.Context()); err != nil {
		t.Logf("the node refuses the store: %v", err) // the damage hit what opening reads
		if !strings.Contains(err.Error(), "corrupt") && !strings.Contains(err.Error(), "checksum") {
			t.Error("the error doesn't say so")
		}
		return
	}
	pages, failed := read()
	for b, page := range pages {
		if page != nil && !bytes.Equal(page, right[b]) {
			t.Errorf("block %d is not what it was, and was served", b)
		}
	}
	t.Logf("%d of %d pages refused", failed, len(pages))
	if r := n.Run(t.Context(), "check", "--quiet"); r.Code != 6 && r.Code != 1 {
		t.Errorf("check after bits were flipped: %+v", r)
	}
}

// damage flips some bits in the part of a table that holds data.
func damage(t *testing.T, random *rand.Rand, table string) {
	t.Helper()
	info, err := os.Stat(table)
	if err != nil {
		t.Fatal(err)
	}
	for range 1 + info.Size()/(64<<10) {
		flip(t, table, random.Int64N(max(info.Size()*9/10, 1)), uint8(random.IntN(8)))
	}
}
