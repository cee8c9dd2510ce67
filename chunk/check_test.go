package chunk

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"everpage/wal/pg"
)

// stored is a version as it lies in the database.
type stored struct {
	p   prefix
	lsn pg.LSN
	v   []byte // sealed
}

// rewrite replaces all that a store has by what change makes of each version, sealed anew unless it is nil.
func rewrite(t *testing.T, s *Store, change func(e stored) []stored) {
	t.Helper()
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	it, err := s.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	b := s.db.NewBatch()
	defer b.Close()
	set := func(e stored) {
		key := e.p.appendKey(nil, e.lsn)
		v := bytes.Clone(e.v)
		seal(key, v)
		if err := b.Set(key, v, nil); err != nil {
			t.Fatal(err)
		}
	}
	for it.First(); it.Valid(); it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Delete(it.Key(), nil); err != nil {
			t.Fatal(err)
		}
		if err := versionsOf(it.Key(), v, func(p *prefix, lsn pg.LSN, sealed []byte) error {
			for _, e := range change(stored{*p, lsn, bytes.Clone(sealed)}) {
				set(e)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
}

// TestCheckFinds breaks each of the invariants that Check knows.
func TestCheckFinds(t *testing.T) {
	// one applies a change to the n-th version that it is for, wherever that stands.
	one := func(n int, is func(e stored) bool, change func(e stored) []stored) func(*testing.T, *Store) {
		return func(t *testing.T, s *Store) {
			at := map[prefix]map[pg.LSN]bool{}
			seen, found := 0, false
			var p prefix
			var lsn pg.LSN
			rewrite(t, s, func(e stored) []stored {
				if !found && is(e) && !at[e.p][e.lsn] {
					if at[e.p] == nil {
						at[e.p] = map[pg.LSN]bool{}
					}
					at[e.p][e.lsn] = true
					if seen++; seen > n {
						found, p, lsn = true, e.p, e.lsn
					}
				}
				return []stored{e}
			})
			if !found {
				t.Fatal("there is no such version")
			}
			rewrite(t, s, func(e stored) []stored {
				if e.p == p && e.lsn == lsn {
					return change(e)
				}
				return []stored{e}
			})
		}
	}
	of := func(class uint8) func(e stored) bool {
		return func(e stored) bool { return e.p.class() == class && e.p.branch() == testBranch }
	}
	kind := func(class, kind uint8) func(e stored) bool {
		return func(e stored) bool { return of(class)(e) && e.v[0] == kind }
	}
	gone := func(stored) []stored { return nil }
	content := func(fn func(b []byte)) func(e stored) []stored {
		return func(e stored) []stored {
			fn(body(e.v))
			return []stored{e}
		}
	}
	le := binary.LittleEndian
	transaction := func(e stored) bool { return of(classCommit)(e) && le.Uint32(body(e.v)[1:]) != 0 }
	for name, c := range map[string]struct {
		spoil func(*testing.T, *Store)
		says  string
	}{
		"a version of a page in another shard": {one(3, kind(classPage, byte(KindImage)), func(e stored) []stored {
			binary.BigEndian.PutUint16(e.p[5:], (e.p.shard()+1)%uint16(testOptions(nil).Shards))
			return []stored{e}
		}), "but belongs to"},
		"no base": {func(t *testing.T, s *Store) {
			rewrite(t, s, func(e stored) []stored {
				if of(classPage)(e) && VersionKind(e.v[0]) != KindDelta {
					return nil
				}
				return []stored{e}
			})
		}, "has nothing under it"},
		"an unknown kind":       {one(5, of(classPage), func(e stored) []stored { e.v[0] = 99; return []stored{e} }), "has unknown kind 99"},
		"an image that is none": {one(2, kind(classPage, byte(KindImage)), content(func(b []byte) { le.PutUint16(b[2:], 7777) })), "malformed content"},
		"beyond the last LSN":   {one(5, of(classPage), func(e stored) []stored { e.lsn += 1 << 40; return []stored{e} }), "lies beyond the last LSN"},
		"no size": {func(t *testing.T, s *Store) {
			rewrite(t, s, func(e stored) []stored {
				if of(classSize)(e) {
					return nil
				}
				return []stored{e}
			})
		}, "lies beyond the end of its fork"},
		"a link to no shrink":           {one(9, of(classSize), content(func(b []byte) { le.PutUint64(b[9:], le.Uint64(b[9:])+1) })), "says that the fork was last cut off"},
		"growth that shrinks":           {one(9, kind(classSize, sizeGrow), content(func(b []byte) { le.PutUint32(b[1:], 0) })), "grows from"},
		"a truncation that grows":       {one(1, kind(classSize, sizeTruncate), content(func(b []byte) { le.PutUint32(b[1:], 1<<20) })), "truncates to"},
		"a running maximum":             {one(3, of(classCommit), content(func(b []byte) { b[23] ^= 1 })), "its running maximum of times"},
		"commits that overlap":          {one(3, of(classCommit), content(func(b []byte) { le.PutUint64(b[15:], 5) })), "its record starts at"},
		"a transaction of another time": {one(3, of(classXID), content(func(b []byte) { b[5] ^= 1 })), "differs from the commit index"},
		"a commit that is gone":         {one(3, transaction, gone), "differs from the commit index"},
		"a transaction that is gone":    {one(3, of(classXID), gone), "can't be found by its number"},
		"progress that is gone":         {one(0, of(classProgress), gone), "is missing"},
		"a small object's kind":         {one(3, of(classMeta), func(e stored) []stored { e.v[0] = 99; return []stored{e} }), "has unknown kind 99"},
		"a class of another release":    {one(3, of(classMeta), func(e stored) []stored { e.p[0] = 77; return []stored{e} }), "is none of the store's"},
		"damage that is none":           {one(0, of(classDamage), func(e stored) []stored { e.lsn--; return []stored{e} }), "the page has no damaged version there"},
		"damage that is not told":       {one(0, of(classDamage), gone), "is damaged, but not told to be"},
		"a branch that is none":         {one(3, of(classMeta), func(e stored) []stored { e.p[4]++; return []stored{e} }), "belongs to a branch without progress"},
		"a bit": {func(t *testing.T, s *Store) {
			var key, value []byte
			it, err := s.db.NewIter(nil)
			if err != nil {
				t.Fatal(err)
			}
			for it.First(); it.Valid() && key == nil; it.Next() {
				if v, err := it.ValueAndErr(); err == nil && len(v) > 40 {
					key, value = bytes.Clone(it.Key()), bytes.Clone(v)
				}
			}
			it.Close()
			value[len(value)/2] ^= 1
			if err := s.db.Set(key, value, pebble.NoSync); err != nil {
				t.Fatal(err)
			}
		}, "checksum mismatch"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newWorld(t, rand.New(rand.NewPCG(5, 5)))
			for i := range 1500 {
				x.step()
				if i%50 == 49 {
					x.commit()
				}
			}
			x.commit()
			rewrite(t, x.s, func(e stored) []stored { return []stored{e} })
			x.check()
			c.spoil(t, x.s)
			if name != "progress that is gone" && name != "a branch that is none" { // for readers that were made before
				if err := x.s.db.Flush(); err != nil {
					t.Fatal(err)
				}
				x.reopen()
			}
			var found []string
			if _, err := x.s.Check(t.Context(), func(v Violation) { found = append(found, v.Key+" "+v.Text) }); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(found, "\n"), c.says) {
				t.Errorf("%d violations, none of which says %q: %.300q", len(found), c.says, found)
			}
			x.w.Close()
			if err := x.s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
