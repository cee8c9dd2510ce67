package verify_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"everpage/chunk/offline"
	"everpage/chunk/verify"
	"everpage/deploy/workload"
	"everpage/wal"
	"everpage/wal/pg"
)

// Hot base backups of servers with settings that WAL looks different under; every two of the values meet somewhere.
func TestHotBaseBackups(t *testing.T) {
	for _, c := range []struct {
		settings map[string]string
		initdb   []string
	}{
		{map[string]string{"full_page_writes": "off", "wal_compression": "lz4"}, []string{"--data-checksums"}},
		{map[string]string{"wal_level": "logical", "wal_log_hints": "on", "wal_compression": "zstd", "full_page_writes": "off"}, []string{"--wal-segsize=1"}},
		{map[string]string{"wal_level": "logical", "wal_compression": "pglz"}, []string{"--data-checksums", "--wal-segsize=1"}},
	} {
		t.Run(strings.ReplaceAll(fmt.Sprint(c.settings, c.initdb), " ", "_"), func(t *testing.T) {
			seed := rand.Uint64() >> 33
			t.Logf("seed %d", seed)
			files, err := workload.Hot(t.Context(), t.TempDir(), 15, c.settings, workload.Options{Seed: int64(seed), Rows: 200, Transactions: 50}, c.initdb...)
			if err != nil {
				t.Fatal(err)
			}
			verifyHot(t, files)
			torn := tear(t, files, rand.New(rand.NewPCG(seed, 1)))
			t.Logf("%d pages torn", torn)
			if torn < 20 {
				t.Errorf("only %d pages were there to tear", torn)
			}
			verifyHot(t, files)
		})
	}
}

func verifyHot(t *testing.T, files *workload.Files) {
	t.Helper()
	report, err := verify.Run(t.Context(), verify.Options{Base: files.Base, WAL: files.WAL, Final: files.Final})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range report.Found {
		t.Errorf("%+v", m)
	}
	if !report.OK() {
		t.Errorf("mismatches %d, damaged %d, %q, unknown %q, violations %q", report.Mismatches, report.Damaged, report.DamagedInBase, report.Unknown, report.Violations)
	}
	if report.Compared < 1000 || report.Final.Pages < 1000 {
		t.Errorf("only %d images and %d final pages were compared", report.Compared, report.Final.Pages)
	}
	t.Logf("%d records, %d images compared, final %+v", report.Records, report.Compared, report.Final)
}

// tear overwrites pages in the base that changed while the backup ran: whatever they were copied as, the WAL up to the backup's end has an image of
// each, or makes it from zeros. It returns how many.
func tear(t *testing.T, files *workload.Files, r *rand.Rand) int {
	t.Helper()
	src, err := offline.Open(files.Base, files.WAL)
	if err != nil {
		t.Fatal(err)
	}
	reader, dir, err := src.Reader(src.Redo)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	first := map[pg.PageKey]bool{} // whether the page's first change replaces it
	for {
		rec, err := reader.Next()
		if err != nil && !wal.IsEnd(err) {
			t.Fatal(err)
		}
		if err != nil || rec.End > src.End {
			break
		}
		for _, b := range rec.Blocks {
			if _, ok := first[b.PageKey]; !ok && b.Fork == pg.MainFork {
				first[b.PageKey] = b.WillInit || b.HasImage && b.Image.Apply
			}
		}
	}
	torn := 0
	for key, replaced := range first {
		if !replaced {
			continue
		}
		f, err := os.OpenFile(relationFile(files.Base, key), os.O_RDWR, 0)
		if os.IsNotExist(err) {
			continue // it came or went meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		page := make([]byte, pg.BlockSize)
		at := int64(key.Block%pg.SegmentBlocks) * pg.BlockSize
		if _, err := f.ReadAt(page, at); err == nil {
			from := r.IntN(pg.BlockSize / 512)
			for i := from * 512; i < min(from*512+1+r.IntN(pg.BlockSize), pg.BlockSize); i++ {
				page[i] = byte(r.Uint32())
			}
			if _, err := f.WriteAt(page, at); err != nil {
				t.Fatal(err)
			}
			torn++
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return torn
}

func relationFile(data string, key pg.PageKey) string {
	name := fmt.Sprint(key.Rel)
	if segment := key.Block / pg.SegmentBlocks; segment > 0 {
		name += fmt.Sprintf(".%d", segment)
	}
	switch key.Spc {
	case pg.GlobalTablespace:
		return filepath.Join(data, "global", name)
	case pg.DefaultTablespace:
		return filepath.Join(data, "base", fmt.Sprint(key.DB), name)
	}
	return filepath.Join(data, "pg_tblspc", fmt.Sprint(key.Spc), pg.Major(15).TablespaceVersionDir(), fmt.Sprint(key.DB), name)
}
