package chunk

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

// upTo is a source that has nothing beyond an LSN, as a backup that is behind.
type upTo struct {
	*Store
	lsn pg.LSN
}

func (u upTo) Versions(ctx context.Context, branch uint32, key pg.PageKey, at pg.LSN) ([]PageVersion, error) {
	if at > u.lsn {
		return nil, ErrNotYet
	}
	return u.Store.Versions(ctx, branch, key, at)
}

// A page whose stored versions are corrupt is answered with those of the source; without one it stays an error, and it is never another page.
func TestMend(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 23))
	x := newWorld(t, rng)
	x.opt.testBlockSize = 1 << 10
	x.reopen()
	for range 150 {
		x.step()
	}
	x.commit()
	if err := x.s.Flush(); err != nil {
		t.Fatal(err)
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
	lsns := []pg.LSN{x.high, x.randomLSN()}
	mended, corrupt := uint64(0), 0
	for round := range 4 {
		fs := vfs.NewMem()
		copyFS(t, clone, "store", fs, map[string][]byte{})
		path := tables[rng.IntN(len(tables))]
		b := slices.Clone(files[path])
		for range 3 { // in the blocks of data, where pages come first
			bit := rng.IntN(len(b) * 8 / 2)
			b[bit/8] ^= 1 << (bit % 8)
		}
		putFile(t, fs, path, b)
		opt := x.opt
		opt.FS = fs
		s, err := Open(opt)
		if err != nil {
			continue
		}
		compare := func(all bool) {
			for _, lsn := range lsns {
				for k := range x.m.pages {
					want := x.m.pageAt(k, lsn)
					err := samePage(s, k, lsn, want)
					var c *CorruptError
					switch {
					case err == nil:
					case !errors.As(err, &c), all && strings.HasPrefix(c.Key, k.RelFork.String()+" block"):
						t.Errorf("round %d: %v", round, err)
					default:
						corrupt++
					}
				}
			}
		}
		compare(false)
		if n := s.Stats().Mended; n != 0 {
			t.Errorf("%d pages were mended without a source", n)
		}
		s.SetSource(upTo{x.s, lsns[1]})
		compare(false)
		s.SetSource(x.s)
		compare(true)
		mended += s.Stats().Mended
		s.Close() // may fail, the store is broken
	}
	t.Logf("%d pages mended, %d refused", mended, corrupt)
	if mended == 0 || corrupt == 0 {
		t.Error("nothing was mended, or nothing was corrupt without a source")
	}
	x.close()
}
