package verify_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"everpage/chunk/verify"
	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

// From 16 on no record has the metapage in the init fork of an unlogged table's bloom index: WAL doesn't define it, and nothing can be held against it. Before,
// and wherever a record has made the page, it counts as every other page does.
func TestUnloggedBloomIndex(t *testing.T) {
	for _, major := range []pg.Major{15, 16, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			base, wal, final, fork := unloggedBloom(t, major)
			o := verify.Options{Base: base, WAL: wal, Final: final}
			report, err := verify.Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if !report.OK() {
				t.Errorf("mismatches %d: %+v, damaged %d, unknown %q, violations %q", report.Mismatches, report.Found, report.Damaged, report.Unknown, report.Violations)
			}
			var tolerated uint64
			for kind, n := range report.Final.Tolerated {
				if strings.HasPrefix(kind, "bloom") {
					tolerated += n
				}
			}
			want := uint64(0)
			if major >= 16 {
				want = 1
			}
			if tolerated != want {
				t.Errorf("%d bloom metapages tolerated, want %d", tolerated, want)
			}

			if major != 16 {
				return
			}
			page, err := os.ReadFile(fork)
			if err != nil {
				t.Fatal(err)
			}
			for name, spoil := range map[string]func(p []byte){
				"its magic number is another": func(p []byte) { p[pg.PageHeaderSize] ^= 1 },
				"a record stamped it":         func(p []byte) { p[7] = 1 },
				"it is no page of a bloom":    func(p []byte) { p[pg.BlockSize-2] ^= 0x40 },
			} {
				spoilt := slices.Clone(page)
				spoil(spoilt)
				if err := os.WriteFile(fork, spoilt, 0o600); err != nil {
					t.Fatal(err)
				}
				report, err := verify.Run(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				if report.Mismatches != 1 || !strings.HasSuffix(report.Found[0].Page, "_init block 0") {
					t.Errorf("%s: %d mismatches: %+v", name, report.Mismatches, report.Found)
				}
			}
		})
	}
}

// unloggedBloom makes a cluster with an unlogged table that has a bloom index, and stops it.
func unloggedBloom(t *testing.T, major pg.Major) (base, wal, final, fork string) {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	base, wal, final = filepath.Join(dir, "base"), filepath.Join(dir, "wal"), filepath.Join(dir, "final")
	s, err := pgtest.Init(ctx, pgtest.Config{Major: int(major), Dir: filepath.Join(dir, "server"), Settings: pgtest.OracleSettings(int(major))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.CopyCold(base); err != nil {
		t.Fatal(err)
	}
	if err := s.StartAgain(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Psql(ctx, "postgres", `
		create extension bloom;
		create unlogged table u (a int);
		create index u_bloom on u using bloom (a);
		insert into u select generate_series(1, 100);
		create table l (a int);
		create index l_bloom on l using bloom (a);
		insert into l select generate_series(1, 100);`, nil); err != nil {
		t.Fatal(err)
	}
	path, err := s.Value(ctx, "postgres", "select pg_relation_filepath('u_bloom')")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(ctx, pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	if err := s.MoveWAL(wal); err != nil {
		t.Fatal(err)
	}
	if err := s.CopyCold(final); err != nil {
		t.Fatal(err)
	}
	return base, wal, final, filepath.Join(final, path+"_init")
}
