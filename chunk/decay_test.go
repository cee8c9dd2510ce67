package chunk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Shards of which something is corrupt on disk are found, given up where another store has them, answered from there meanwhile, and right again by themselves once
// their layers are here: up to the newest LSN, as from another node, or with what is newer kept, as from a backup that is behind.
func TestRepair(t *testing.T) {
	rng, ctx := rand.New(rand.NewPCG(seedOf(t), 27)), context.Background()
	x := newWorld(t, rng)
	x.opt.testBlockSize = 1 << 10
	x.reopen()
	for range 3 {
		for range 80 {
			x.step()
		}
		x.commit()
		if err := x.s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string][]byte{}
	clone := x.fs.CrashClone(vfs.CrashCloneCfg{})
	copyFS(t, clone, "store", vfs.NewMem(), files)
	var tables []string
	for _, path := range slices.Sorted(mapKeys(files)) {
		if strings.HasSuffix(path, ".sst") && strings.Contains(path, "pebble") {
			tables = append(tables, path)
		}
	}
	repaired, beside, beyond := 0, 0, 0
	for round := range 12 {
		fs := vfs.NewMem()
		copyFS(t, clone, "store", fs, map[string][]byte{})
		path := tables[rng.IntN(len(tables))]
		b := slices.Clone(files[path])
		bit := rng.IntN(len(b) * 8 / 2) // in the blocks of data, where pages come first
		b[bit/8] ^= 1 << (bit % 8)
		putFile(t, fs, path, b)
		opt := x.opt
		opt.FS = fs
		s, err := Open(opt)
		if err != nil {
			continue
		}
		func() {
			defer s.Close() // may fail, the store may be broken
			s.SetSource(x.s)
			compare := func() error {
				for _, lsn := range []pg.LSN{x.high, x.randomLSN()} {
					for k := range x.m.pages {
						if err := samePage(s, k, lsn, x.m.pageAt(k, lsn)); err != nil {
							return err
						}
					}
				}
				return nil
			}
			found := 0
			if err := s.Scrub(ctx, testBranch, func(placement.Shard, error) { found++ }); err != nil {
				t.Fatal(err)
			}
			spans, err := s.Decayed(testBranch)
			if found == 0 || err != nil || len(spans) == 0 {
				if found == 0 && err != nil || found > 0 && err == nil {
					t.Errorf("round %d: %d shards are corrupt, to be repaired are %v, %v", round, found, spans, err)
				}
				beside++
				return
			}
			if err := compare(); err != nil {
				var c *CorruptError
				if errors.As(err, &c) && c.at == nil {
					beside++ // a small object
					return
				}
				t.Errorf("round %d: before: %v", round, err)
			}
			d, _ := s.Durable(testBranch)
			for _, span := range spans {
				var upTo []pg.LSN
				at := d.Resume
				if rng.IntN(2) == 0 {
					at = x.m.start + pg.LSN(rng.Uint64N(uint64(at-x.m.start)+1))
				}
				for range span.Last - span.First + 1 {
					upTo = append(upTo, at)
				}
				var c *CorruptError
				if err := s.EvictShards(ctx, testBranch, span.First, upTo); errors.As(err, &c) { // what is to stay is
					beyond++
					for i := range upTo {
						upTo[i] = d.Resume
					}
					err = s.EvictShards(ctx, testBranch, span.First, upTo)
					if err != nil {
						t.Fatalf("round %d: %v", round, err)
					}
				} else if err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			}
			if err := compare(); err != nil {
				t.Errorf("round %d: while it is away: %v", round, err)
			}
			for _, span := range spans {
				for shard := span.First; shard <= span.Last; shard++ {
					var buf bytes.Buffer
					if _, err := x.s.ExportLayer(ctx, LayerSpec{Branch: testBranch, Shard: shard}, &buf); err != nil {
						t.Fatal(err)
					}
					if _, err := s.ImportLayer(ctx, &buf); err != nil {
						t.Fatalf("round %d: %v", round, err)
					}
				}
			}
			s.SetSource(nil)
			mended := s.Stats().Mended
			if err := compare(); err != nil {
				t.Errorf("round %d: repaired: %v", round, err)
			}
			if spans, err := s.Decayed(testBranch); err != nil || len(spans) > 0 || s.Stats().Mended != mended {
				t.Errorf("round %d: still corrupt: %v, %v", round, spans, err)
			}
			if err := s.Scrub(ctx, testBranch, func(shard placement.Shard, err error) { t.Errorf("round %d: shard %d: %v", round, shard, err) }); err != nil {
				t.Error(err)
			}
			repaired++
		}()
	}
	t.Logf("%d stores repaired, %d not as other than pages was corrupt, %d where what is newer was corrupt", repaired, beside, beyond)
	if repaired == 0 {
		t.Error("nothing was repaired")
	}
	x.close()
}
