package chunk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/wal/pg"
)

// truth is every version of some objects: pure functions of object and LSN, as those of the store are of its WAL.
type truth struct {
	objects []prefix
	lsns    [][]pg.LSN // ascending
	values  []map[pg.LSN][]byte
}

func makeTruth(rng *rand.Rand) *truth {
	x := &truth{}
	for i := range 4 {
		p := makePrefix(classMeta, 1, 1, uint32(i), 0, 0, 0)
		at := pg.LSN(7 * packBucket / 2)
		values := map[pg.LSN][]byte{}
		for range 20 + rng.IntN(200) {
			switch rng.IntN(12) {
			case 0:
				at = bucketEnd(at) + pg.LSN(rng.IntN(3)) // the last or first of a bucket
			case 1:
				at += pg.LSN(rng.IntN(3 * packBucket))
			default:
				at += pg.LSN(rng.IntN(5000))
			}
			at++
			n := 1 + rng.IntN(120)
			if rng.IntN(15) == 0 {
				n = packBytes/2 - 40 + rng.IntN(80)
			}
			v := make([]byte, n+valueOver)
			v[0], v[1], v[2] = metaSet, byte(i), byte(at)
			for j := range n {
				v[valueHead+j] = byte(at) + byte(j*i)
			}
			seal(p.appendKey(nil, at), v)
			values[at] = v
		}
		x.objects = append(x.objects, p)
		x.values = append(x.values, values)
		x.lsns = append(x.lsns, slices.Sorted(maps.Keys(values)))
	}
	return x
}

// add ingests a table with the chosen versions of each object.
func (x *truth) add(t *testing.T, s *Store, n int, chosen func(object int) []pg.LSN) {
	t.Helper()
	path := s.fs.PathJoin(s.opt.Dir, ingestDir, fmt.Sprintf("test%d.sst", n))
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	opt := s.dbOpt.MakeWriterOptions(0, s.db.TableFormat())
	opt.DisableValueBlocks = true
	sw := sstable.NewWriter(objstorageprovider.NewFileWritable(f), opt)
	w := pairWriter{set: func(key, value []byte) error {
		p, hi, ok := splitKey(key)
		if !ok || len(value) > packBytes+packOver+(packBytes/valueOver+1)*packEntry {
			return fmt.Errorf("pair of %d and %d bytes", len(key), len(value))
		}
		return errors.Join(versionsOf(key, value, func(q *prefix, lsn pg.LSN, v []byte) error {
			i := slices.Index(x.objects, p)
			if *q != p || lsn > hi || bucketEnd(lsn) != bucketEnd(hi) || !bytes.Equal(v, x.values[i][lsn]) {
				return fmt.Errorf("pack of %s at %s has another version at %s", p, hi, lsn)
			}
			return nil
		}), sw.Set(key, value))
	}}
	any := false
	for i := range x.objects {
		lsns := chosen(i)
		slices.Sort(lsns)
		for _, lsn := range slices.Backward(slices.Compact(lsns)) {
			any = true
			if err := w.add(&x.objects[i], lsn, x.values[i][lsn]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.finish(), sw.Close()); err != nil {
		t.Fatal(err)
	}
	if !any {
		if err := s.fs.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := s.db.Ingest(context.Background(), []string{path}); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.gen++
	s.publish()
	s.mu.Unlock()
}

// TestOverlappingPacks puts arbitrary subsets of an object's versions into tables, in any order and more than once, and holds every read against
// the newest version that any table has.
func TestOverlappingPacks(t *testing.T) {
	seed := seedOf(t)
	for round := range 30 {
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		opt := testOptions(vfs.NewMem())
		s, err := Open(opt)
		if err != nil {
			t.Fatal(err)
		}
		x := makeTruth(rng)
		have := make([]map[pg.LSN]bool, len(x.objects))
		for i := range have {
			have[i] = map[pg.LSN]bool{}
		}
		for n := range 1 + rng.IntN(10) {
			x.add(t, s, n, func(i int) (out []pg.LSN) {
				all := x.lsns[i]
				lo := rng.IntN(len(all))
				hi := lo + rng.IntN(len(all)-lo) + 1
				switch rng.IntN(4) {
				case 0: // with holes
					for _, lsn := range all[lo:hi] {
						if rng.IntN(3) > 0 {
							out = append(out, lsn)
						}
					}
				case 1: // ends where another may end
					out = append(out, all[lo:]...)
				case 2:
					if rng.IntN(2) == 0 {
						return nil
					}
					fallthrough
				default:
					out = append(out, all[lo:hi]...)
				}
				for _, lsn := range out {
					have[i][lsn] = true
				}
				return out
			})
			if rng.IntN(4) == 0 {
				if err := s.db.Compact(context.Background(), []byte{0}, []byte{0xFF}, false); err != nil {
					t.Fatal(err)
				}
				s.mu.Lock()
				s.gen++
				s.publish()
				s.mu.Unlock()
			}
			x.compare(t, s, rng, have)
			if t.Failed() {
				t.Fatalf("round %d, after table %d", round, n)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func (x *truth) compare(t *testing.T, s *Store, rng *rand.Rand, have []map[pg.LSN]bool) {
	t.Helper()
	r, err := s.reader()
	if err != nil {
		t.Fatal(err)
	}
	defer r.release()
	for i := range x.objects {
		held := slices.Sorted(maps.Keys(have[i]))
		var probes []pg.LSN
		for _, lsn := range x.lsns[i] {
			probes = append(probes, lsn-1, lsn, lsn+1)
		}
		probes = append(probes, 0, ^pg.LSN(0))
		for range 10 {
			probes = append(probes, pg.LSN(rng.Uint64N(uint64(x.lsns[i][len(x.lsns[i])-1])+1000)))
		}
		for _, at := range probes {
			n, found := slices.BinarySearch(held, at)
			if found {
				n++
			}
			r.seek(&x.objects[i], at)
			for steps := 1 + rng.IntN(300); steps > 0; steps-- {
				v, ok, err := r.next()
				if err != nil {
					t.Fatal(err)
				}
				if n--; n < 0 {
					if ok {
						t.Errorf("object %d at %s: found a version of %s, want none", i, at, v.lsn)
					}
					break
				}
				if !ok || v.lsn != held[n] || !bytes.Equal(v.value, x.values[i][held[n]]) {
					t.Errorf("object %d at %s: found %v of %s, want that of %s", i, at, ok, v.lsn, held[n])
					break
				}
			}
		}
	}
}

// TestCorruptPack flips every bit of a pack and of its key: it opens with all its versions as they were, or not at all.
func TestCorruptPack(t *testing.T) {
	x := makeTruth(rand.New(rand.NewPCG(seedOf(t), 0)))
	var key, value []byte
	w := pairWriter{set: func(k, v []byte) error {
		key, value = bytes.Clone(k), bytes.Clone(v)
		return nil
	}}
	const base = pg.LSN(5 * packBucket)
	p := x.objects[0]
	for lsn := base + 10; lsn > base; lsn-- {
		v := make([]byte, 12+valueOver)
		v[0] = metaSet
		seal(p.appendKey(nil, lsn), v)
		if err := w.add(&p, lsn, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.finish(); err != nil {
		t.Fatal(err)
	}
	count := func() (n int, err error) {
		err = versionsOf(key, value, func(*prefix, pg.LSN, []byte) error { n++; return nil })
		return n, err
	}
	if n, err := count(); n != 10 || err != nil {
		t.Fatalf("%d versions, %v", n, err)
	}
	for _, b := range [][]byte{key, value} {
		for i := range 8 * len(b) {
			b[i/8] ^= 1 << (i % 8)
			if n, err := count(); err == nil {
				t.Errorf("with bit %d of %d bytes flipped there are %d versions and no error", i, len(b), n)
			}
			b[i/8] ^= 1 << (i % 8)
		}
	}
	for n := range value {
		if err := versionsOf(key, value[:n], func(*prefix, pg.LSN, []byte) error { return nil }); err == nil {
			t.Errorf("the first %d bytes pass for the pack", n)
		}
	}
}
