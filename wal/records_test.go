package wal_test

import (
	"bufio"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"everpage/deploy/workload"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waltest"
)

var rewrite = flag.Bool("rewrite", false, "make testdata/records.txt anew from real servers")

const recordsFile = "testdata/records.txt"

// realRecord is a record that a real server wrote.
type realRecord struct {
	major pg.Major
	name  string // major, resource manager, info and what is special about its parts
	raw   []byte
}

// realRecords reads a record of each kind that each major's corpora hold: testdata/records.txt has a name and the bytes on a line.
func realRecords(t testing.TB) []realRecord {
	t.Helper()
	f, err := os.Open(recordsFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var records []realRecord
	for s := bufio.NewScanner(f); s.Scan(); {
		name, digits, _ := strings.Cut(s.Text(), " ")
		r := realRecord{name: name}
		if r.raw, err = hex.DecodeString(digits); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscanf(name, "%d-", &r.major); err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	if len(records) < 100 {
		t.Fatalf("%s has only %d records", recordsFile, len(records))
	}
	return records
}

func kindOf(rec *wal.Record) string {
	kind := fmt.Sprintf("%d-%s-%02X", rec.Major, rec.Rmgr, rec.Info)
	for i := range rec.Blocks {
		if b := &rec.Blocks[i]; b.HasImage {
			kind += fmt.Sprintf("-image%02X", b.Image.Info)
			break
		}
	}
	if rec.TopLevelXID != 0 {
		kind += "-toplevel"
	}
	if rec.Origin != 0 {
		kind += "-origin"
	}
	return kind
}

func TestRewriteRealRecords(t *testing.T) {
	if !*rewrite {
		return // nothing to test: what is written is tested by TestRealRecordsDecode
	}
	var lines []string
	pglz := map[string]string{"wal_compression": "pglz", "wal_consistency_checking": ""}
	for _, c := range []corpus{
		unpacked, withZstd, withLZ4, withPGLZ14, withPGLZ18, {16, workload.TPCB, pglz, nil, wal.PGLZ, few}, {17, workload.TPCB, pglz, nil, wal.PGLZ, few},
	} {
		src, size := c.load(t)
		r, err := wal.NewReader(src, wal.ReaderOptions{SegmentSize: size})
		if err != nil {
			t.Fatal(err)
		}
		r.Find(src.Base)
		seen := map[string]bool{}
		for {
			rec, err := r.Next()
			if wal.IsEnd(err) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if kind := kindOf(rec); len(rec.Raw) <= 1500 && !seen[kind] {
				seen[kind] = true
				lines = append(lines, kind+" "+hex.EncodeToString(rec.Raw)+"\n")
			}
		}
	}
	slices.Sort(lines)
	if err := os.WriteFile(recordsFile, []byte(strings.Join(lines, "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRealRecordsDecode(t *testing.T) {
	var scratch wal.Scratch
	page := make(pg.Page, pg.BlockSize)
	for _, r := range realRecords(t) {
		var rec wal.Record
		if err := wal.Decode(&rec, r.major, r.raw); err != nil {
			t.Fatalf("%s: %v", r.name, err)
		}
		if rec.CRC != wal.RecordCRC(r.raw) {
			t.Fatalf("%s: CRC %08X, want %08X", r.name, rec.CRC, wal.RecordCRC(r.raw))
		}
		if kind := kindOf(&rec); kind != r.name {
			t.Fatalf("%s decodes as %s", r.name, kind)
		}
		for i := range rec.Blocks {
			if !rec.Blocks[i].HasImage {
				continue
			}
			if err := rec.Blocks[i].Image.Restore(page, &scratch); err != nil || !page.Valid() {
				t.Fatalf("%s: image of block %d: %v", r.name, i, err)
			}
		}
		// The builder makes of a record's parts the record itself.
		if again := waltest.Encode(rec.Major, rec.Prev, &rec); string(again) != string(r.raw) {
			t.Fatalf("%s: encoding it again gives other bytes", r.name)
		}
	}
}
