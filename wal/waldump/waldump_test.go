package waldump_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"everpage/deploy/postgres"
	"everpage/deploy/workload"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waldump"
	"everpage/wal/waltest"
)

// Every record of real WAL of 15 is printed as pg_waldump 15 prints it, the text of a record's contents apart.
func TestEqualsPgWaldump(t *testing.T) {
	ctx := context.Background()
	bin, err := postgres.Fetch(ctx, 15)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		which    workload.Which
		settings map[string]string
		initdb   []string
	}{
		{workload.Mixed, nil, nil},
		{workload.Indexes, nil, nil},
		{workload.TPCB, map[string]string{"wal_compression": "zstd", "wal_consistency_checking": ""}, []string{"--wal-segsize=1"}},
		{workload.Concurrent, map[string]string{"wal_compression": "lz4", "wal_level": "logical"}, nil},
	} {
		t.Run(string(c.which), func(t *testing.T) {
			corpus, err := workload.Cached(ctx, 15, c.settings, c.which, workload.Options{Seed: 1}, c.initdb...)
			if err != nil {
				t.Fatal(err)
			}
			records, images := compare(t, filepath.Join(bin, "pg_waldump"), corpus.WAL)
			if records < 10_000 || images < 1000 {
				t.Fatalf("%d records with %d images are too few to prove anything", records, images)
			}
		})
	}
}

// compare holds a directory's records against what pg_waldump says of them, from the first to where both end.
func compare(t *testing.T, program, dir string) (records, images int) {
	r, closer, err := waldump.Open(dir, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	var first, last string
	size, err := wal.DetectSegmentSize(dir)
	if err != nil {
		t.Fatal(err)
	}
	segments, _, err := wal.ListDir(dir, size)
	if err != nil {
		t.Fatal(err)
	}
	first, last = segments[0].Name(size), segments[len(segments)-1].Name(size)
	cmd := exec.Command(program, "-p", dir, first, last)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	refs, bad := 0, 0
	names := map[string]bool{}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), "rmgr: ") {
			continue // a record's contents, such as a message, may go over lines
		}
		theirs, err := waldump.Parse(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		rec, err := r.Next()
		if err != nil {
			t.Fatalf("pg_waldump has a record at %s, but: %v", theirs.Start, err)
		}
		ours := waldump.Of(rec, redo.RecordName)
		if d := ours.Diff(&theirs); d != "" {
			t.Errorf("record at %s: %s", theirs.Start, d)
			if bad++; bad > 20 {
				t.FailNow()
			}
		}
		// What is printed is what was compared.
		again, err := waldump.Parse(string(ours.AppendText(nil)))
		if err != nil {
			t.Fatal(err)
		}
		if d := again.Diff(&theirs); d != "" {
			t.Fatalf("printed record at %s: %s", theirs.Start, d)
		}
		records++
		refs += len(ours.Blocks)
		names[ours.Rmgr+"/"+ours.Record] = true
		for i := range ours.Blocks {
			if ours.Blocks[i].Image != nil {
				images++
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	// It ends with an error at the end of WAL, which must be where ours ends.
	_ = cmd.Wait()
	rec, err := r.Next()
	if !wal.IsEnd(err) {
		t.Fatalf("behind pg_waldump's last record: %v, %v; it said %s", rec, err, complaint.String())
	}
	t.Logf("%d records of %d types, %d block references, %d images equal", records, len(names), refs, images)
	return records, images
}

func name(pg.Major, wal.Rmgr, uint8) string { return "SOME_NAME" }

func TestFormats(t *testing.T) {
	b := waltest.New(waltest.Options{})
	page := pg.PageKey{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}}, Block: 7}
	vm := page
	vm.Fork, vm.Block = pg.VMFork, 0
	start, _ := b.Add(&wal.Record{Rmgr: wal.RmHeap, XID: 731, Origin: 3, TopLevelXID: 730, Main: []byte("abc"), Blocks: []wal.Block{
		{ID: 0, PageKey: page, WillInit: true, Data: []byte("x"), Image: wal.Image{Apply: true, HoleOffset: 100, HoleLength: 8000, Data: make([]byte, 192)}},
		{ID: 2, PageKey: vm, Image: wal.Image{Data: make([]byte, 8192)}},
	}})
	read := func(asJSON bool) string {
		r, err := wal.NewReader(b.Source(), wal.ReaderOptions{SegmentSize: wal.MinSegmentSize})
		if err != nil {
			t.Fatal(err)
		}
		r.Seek(start)
		var out bytes.Buffer
		n, err := waldump.Write(&out, r, name, asJSON)
		if n != 1 || !wal.IsEnd(err) {
			t.Fatalf("%d records, %v", n, err)
		}
		return out.String()
	}
	text := "rmgr: Heap        len (rec/tot):     76/  8460, tx:        731, lsn: 0/00100028, prev 0/00000000, desc: SOME_NAME, origin 3, toplevel tx 730, " +
		"blkref #0: rel 1663/5/16384 blk 7 FPW, blkref #2: rel 1663/5/16384 fork vm blk 0 FPW for WAL verification\n"
	if got := read(false); got != text {
		t.Errorf("got  %swant %s", got, text)
	}
	var e waldump.Entry
	if err := json.Unmarshal([]byte(read(true)), &e); err != nil {
		t.Fatal(err)
	}
	theirs, err := waldump.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if d := e.Diff(&theirs); d != "" {
		t.Error(d)
	}
	if e.Blocks[0].Image.HoleLength != 8000 || !e.Blocks[0].Init || e.Blocks[0].Data != 1 || e.Main != 3 || e.End != b.End() {
		t.Errorf("JSON says %+v", e)
	}
	e.Blocks[1].Fork = "fsm"
	if d := e.Diff(&theirs); !strings.Contains(d, "block reference 1") {
		t.Errorf("another fork is called no difference: %q", d)
	}
}

func TestOpenFollowsTheNewestTimeline(t *testing.T) {
	// Timeline 1 has three segments; 2 leaves it in the second and goes on.
	old := waltest.New(waltest.Options{})
	for len(old.Bytes()) < 3<<20-100_000 {
		old.Filler(5000)
	}
	dir := t.TempDir()
	if _, err := old.WriteDir(dir); err != nil {
		t.Fatal(err)
	}
	fresh := waltest.New(waltest.Options{})
	for len(fresh.Bytes()) < 1<<20+300_000 {
		fresh.Filler(5000)
	}
	switched := fresh.End()
	fresh.Promote(2)
	start, _ := fresh.AddRecord(wal.RmXLOG, 0x20, 77, nil, []byte("the first of timeline 2"))
	for len(fresh.Bytes()) < 2<<20+200_000 {
		fresh.Filler(4000)
	}
	files, err := fresh.WriteDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files[1:] {
		if err := os.Rename(f, filepath.Join(dir, filepath.Base(f))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "00000002.history"), wal.History{Timeline: 2, Parents: []wal.HistoryEntry{{Timeline: 1, Switch: switched, Reason: "no recovery target specified"}}}.Format(), 0o600); err != nil {
		t.Fatal(err)
	}
	r, closer, err := waldump.Open(dir, 0, fresh.End())
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	seen := false
	var last pg.LSN
	for {
		rec, err := r.Next()
		if wal.IsEnd(err) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen = seen || rec.Start == start && rec.XID == 77
		last = rec.End
	}
	if !seen || last != fresh.End() {
		t.Fatalf("timeline 2's first record seen: %t; read up to %s of %s", seen, last, fresh.End())
	}
	// A single file, from any LSN in it.
	one, closer, err := waldump.Open(filepath.Join(dir, "000000020000000000000002"), start-1, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	if rec, err := one.Next(); err != nil || rec.Start != start {
		t.Fatalf("got %v, %v", rec, err)
	}
	if _, _, err := waldump.Open(dir, 5, 0); err == nil {
		t.Fatal("WAL before the first segment can be dumped")
	}
}
