package redo

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"everpage/wal"
	"everpage/wal/pg"
)

// realRecord is a record that a real server wrote: of each major one of each kind, with images and without.
type realRecord struct {
	major pg.Major
	name  string
	raw   []byte
}

func realRecords(t testing.TB) (records []realRecord) {
	t.Helper()
	f, err := os.Open("../wal/testdata/records.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, digits, _ := strings.Cut(lines.Text(), " ")
		r := realRecord{name: name}
		if r.raw, err = hex.DecodeString(digits); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscanf(name, "%d-", &r.major); err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	if err := lines.Err(); err != nil || len(records) < 100 {
		t.Fatalf("%d records: %v", len(records), err)
	}
	return records
}

// at places a decoded record in the WAL.
func at(rec *wal.Record) {
	rec.Start, rec.End = 0x5000_0028, 0x5000_0028+pg.LSN(rec.TotalLength+7)&^7
}

var realState = ControlState{NextXID: 700, NextMulti: 5, TrackCommitTimestamp: true, OldestCommitTs: 3, NewestCommitTs: 3}

// FuzzRealRecords takes records the whole way.
func FuzzRealRecords(f *testing.F) {
	empty := make([]byte, pg.BlockSize)
	for _, r := range realRecords(f) {
		f.Add(uint8(r.major-pg.MajorFirst), r.raw, empty[:64])
	}
	f.Fuzz(wholeWay)
}

// TestRealRecordsDamaged is the fuzz target's quick brother: real records with a few bytes damaged, over pages of all kinds.
func TestRealRecordsDamaged(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	contents := [][]byte{nil, heapPage(t, rows(5)...)}
	for _, seeds := range [][]func() (pg.Page, *Delta){btSeeds(t), haSeeds(t), gnSeeds(t), giSeeds(t), sgSeeds(t), brSeeds(t)} {
		p, _ := seeds[r.IntN(len(seeds))]()
		contents = append(contents, p)
	}
	for _, rec := range realRecords(t) {
		if len(rec.raw) == wal.RecordHeaderSize {
			continue
		}
		for range 40 {
			raw := slices.Clone(rec.raw)
			for range 1 + r.IntN(3) {
				i := wal.RecordHeaderSize + r.IntN(min(len(raw)-wal.RecordHeaderSize, 200))
				raw[i] = [...]byte{0, 0xFF, raw[i] ^ 1<<r.IntN(8), byte(r.Uint32())}[r.IntN(4)]
			}
			wholeWay(t, uint8(rec.major-pg.MajorFirst), raw, contents[r.IntN(len(contents))])
		}
	}
}

// wholeWay takes a record from its bytes to pages: whatever it says, it is redone or refused, and what it makes is bounded by how long it is.
func wholeWay(t *testing.T, major uint8, raw, content []byte) {
	var rec wal.Record
	if wal.Decode(&rec, pg.MajorFirst+pg.Major(major%5), raw) != nil {
		return
	}
	at(&rec)
	st := realState
	var ch Changes
	touchErr := Touch(&rec, &st, &ch)
	_, _ = st.Redo(&rec)
	if touchErr != nil {
		return
	}
	// A commit writes two bits for each of its transactions, and a commit time: the arena holds these by page.
	if n := len(ch.Pages) + len(ch.Meta) + len(ch.Sizes); n > len(raw)+8 || len(ch.arena) > 16*len(raw)+(len(rec.Blocks)+1)*pg.BlockSize {
		t.Fatalf("%d bytes make %d changes of %d bytes", len(raw), n, len(ch.arena))
	}
	seen := map[pg.PageKey]bool{}
	for i := range ch.Pages {
		c := &ch.Pages[i]
		if seen[c.Key] {
			t.Fatalf("%s is changed twice", c.Key)
		}
		seen[c.Key] = true
		if c.Kind == KindImage {
			if len(c.Image) != pg.BlockSize {
				t.Fatalf("an image of %d bytes", len(c.Image))
			}
			continue
		}
		for _, base := range [][]byte{content, nil} {
			p := pg.Page(make([]byte, pg.BlockSize))
			copy(p, base)
			if len(base) >= 8 {
				p.SetLSN(0)
			}
			_, _ = Redoer{rec.Major}.Redo(p, c.Key, ch.LSN, c.Kind == KindInit, AppendDelta(nil, &c.Delta))
		}
	}
	var scratch CheckScratch
	for i := range rec.Blocks {
		if b := &rec.Blocks[i]; b.HasImage && !b.Image.Apply {
			p := pg.Page(make([]byte, pg.BlockSize))
			copy(p, content)
			_, _ = CheckImage(&rec, b, p, &scratch)
		}
	}
}

// Records that real servers wrote are taken apart without an allocation, once there is memory for the largest.
func TestRealRecordsAllocateNothing(t *testing.T) {
	var ch Changes
	var encoded []byte
	for _, r := range realRecords(t) {
		var rec wal.Record
		if err := wal.Decode(&rec, r.major, r.raw); err != nil {
			t.Fatalf("%s: %v", r.name, err)
		}
		at(&rec)
		st := realState
		n := testing.AllocsPerRun(3, func() {
			if err := Touch(&rec, &st, &ch); err != nil {
				t.Fatalf("%s: %v", r.name, err)
			}
			for i := range ch.Pages {
				encoded = AppendDelta(encoded[:0], &ch.Pages[i].Delta)
			}
		})
		// What names files or marks is made of strings, and is rare.
		if n != 0 && len(ch.Meta)+len(ch.Sizes)+len(ch.DropDatabases) == 0 && ch.RestorePoint == "" {
			t.Errorf("%s: %v allocations", r.name, n)
		}
	}
}

// Every index manager changes a page that it has in hand without an allocation.
func TestApplyAllocatesNothing(t *testing.T) {
	for name, m := range map[string]struct {
		manager *manager
		seeds   []func() (pg.Page, *Delta)
	}{
		"Btree": {&btreeManager, btSeeds(t)}, "Hash": {&hashManager, haSeeds(t)}, "Gin": {&ginManager, gnSeeds(t)}, "Gist": {&gistManager, giSeeds(t)},
		"SPGist": {&spgistManager, sgSeeds(t)}, "BRIN": {&brinManager, brSeeds(t)}, "Generic": {&genericManager, geSeeds()},
	} {
		applied := 0
		for _, seed := range m.seeds {
			base, d := seed()
			p := slices.Clone(base)
			var err error
			n := testing.AllocsPerRun(10, func() {
				copy(p, base)
				err = m.manager.apply(p, d)
			})
			if err != nil && err != errKeepLSN && err != errNoChange {
				continue // a seed that is refused
			}
			applied++
			if n != 0 {
				t.Errorf("%s, info %02x, part %d: %v allocations", name, d.Info, d.Part, n)
			}
		}
		if applied == 0 {
			t.Errorf("%s: no seed is applied", name)
		}
	}
}
