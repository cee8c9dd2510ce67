package chunk

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"everpage/cluster/placement"
	"everpage/redo"
	"everpage/wal/pg"
)

// Every key of the store is class · branch · shard · four numbers and a byte that the class defines · ~LSN (pack.go: and a tail, if the pair
// holds several versions), all big-endian and of fixed width, so that
// byte order is the order of (class, branch, shard, object) and, within an object, newest first. Only pages have a shard: all that a shard keeps of a
// branch is one range of keys. It is 0 elsewhere.
const (
	prefixLen = 1 + 4 + 2 + 4 + 4 + 4 + 1 + 4
	keyLen    = prefixLen + 8
)

// Classes of key. The numbers are part of the store's format.
const (
	classPage     = 1  // shard, tablespace, database, relation, fork, block
	classSize     = 2  // tablespace, database, relation, fork; an SLRU segment is tablespace 0, database = SLRU, relation = segment
	classMeta     = 3  // kind, ID[0], ID[1]
	classCommit   = 4  // all commits and aborts of a branch, by LSN
	classXID      = 5  // transaction ID / xidsTogether
	classRestore  = 6  // hash of the restore point's name
	classDamage   = 7  // as classPage, without the shard: where damage to a page begins
	classCopy     = 8  // tablespace, database: as whose copies other databases were made
	classProgress = 9  // the branch itself; LSN 0
	classCoverage = 10 // what the store has of the branch: its default, of a shard, of a chunk; LSN 0. See cover.go
	classEnd      = 11
)

// prefix is a key without its LSN: it names an object.
type prefix [prefixLen]byte

func makePrefix(class uint8, branch, a, b, c uint32, d uint8, e uint32) (p prefix) {
	p[0] = class
	binary.BigEndian.PutUint32(p[1:], branch)
	binary.BigEndian.PutUint32(p[7:], a)
	binary.BigEndian.PutUint32(p[11:], b)
	binary.BigEndian.PutUint32(p[15:], c)
	p[19] = d
	binary.BigEndian.PutUint32(p[20:], e)
	return p
}

// chunks tells how pages lie in chunks and chunks in shards.
type chunks struct {
	segmentBlocks, shards uint32
}

func (c chunks) shard(k pg.PageKey) placement.Shard {
	return placement.ShardOf(placement.ChunkOf(k, c.segmentBlocks), c.shards)
}

func (c chunks) pagePrefix(branch uint32, k pg.PageKey) prefix {
	p := makePrefix(classPage, branch, k.Spc, k.DB, k.Rel, uint8(k.Fork), k.Block)
	binary.BigEndian.PutUint16(p[5:], uint16(c.shard(k)))
	return p
}

// shardRange is where the pages of a branch's shard lie.
func shardRange(branch uint32, shard placement.Shard) (lo, hi prefix) {
	lo = makePrefix(classPage, branch, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(lo[5:], uint16(shard))
	hi = makePrefix(classPage, branch, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFF, 0xFFFFFFFF)
	binary.BigEndian.PutUint16(hi[5:], uint16(shard))
	return lo, hi.next()
}

func damagePrefix(branch uint32, k pg.PageKey) prefix {
	return makePrefix(classDamage, branch, k.Spc, k.DB, k.Rel, uint8(k.Fork), k.Block)
}

func sizePrefix(branch uint32, f pg.RelFork) prefix {
	return makePrefix(classSize, branch, f.Spc, f.DB, f.Rel, uint8(f.Fork), 0)
}

func metaPrefix(branch uint32, kind redo.MetaKind, id [2]uint32) prefix {
	return makePrefix(classMeta, branch, uint32(kind), id[0], id[1], 0, 0)
}

func copyPrefix(branch, spc, db uint32) prefix {
	return makePrefix(classCopy, branch, spc, db, 0, 0, 0)
}

func commitPrefix(branch uint32) prefix { return makePrefix(classCommit, branch, 0, 0, 0, 0, 0) }

// xidsTogether is how many transaction IDs in a row are one object, so that its versions share pairs.
const xidsTogether = 256

func xidPrefix(branch uint32, xid pg.TransactionID) prefix {
	return makePrefix(classXID, branch, xid/xidsTogether, 0, 0, 0, 0)
}

func progressPrefix(branch uint32) prefix { return makePrefix(classProgress, branch, 0, 0, 0, 0, 0) }

func (p *prefix) class() uint8          { return p[0] }
func (p *prefix) branch() uint32        { return binary.BigEndian.Uint32(p[1:]) }
func (p *prefix) shard() uint16         { return binary.BigEndian.Uint16(p[5:]) }
func (p *prefix) num(i int) uint32      { return binary.BigEndian.Uint32(p[7+4*i:]) }
func (p *prefix) small() bool           { return p[0] != classPage }
func (p *prefix) compare(o *prefix) int { return bytes.Compare(p[:], o[:]) }

// pageKey is the page that a prefix of classPage or classDamage names, or of classSize with block 0.
func (p *prefix) pageKey() pg.PageKey {
	return pg.PageKey{
		RelFork: pg.RelFork{
			RelFileLocator: pg.RelFileLocator{Spc: p.num(0), DB: p.num(1), Rel: p.num(2)},
			Fork:           pg.ForkNumber(p[19]),
		},
		Block: binary.BigEndian.Uint32(p[20:]),
	}
}

// String names the object for messages.
func (p prefix) String() string {
	switch p.class() {
	case classPage:
		return p.pageKey().String()
	case classDamage:
		return "damage of " + p.pageKey().String()
	case classSize:
		f := p.pageKey().RelFork
		if f.Spc == 0 {
			return fmt.Sprintf("size of %s segment %s", pg.SLRU(f.DB), pg.SLRUSegmentName(f.Rel))
		}
		return "size of " + f.String()
	case classMeta:
		return fmt.Sprintf("object %d/%d/%d", p.num(0), p.num(1), p.num(2))
	case classCommit:
		return "commit index"
	case classXID:
		return fmt.Sprintf("transactions from %d", p.num(0)*xidsTogether)
	case classRestore:
		return fmt.Sprintf("restore point %08x%08x%08x", p.num(0), p.num(1), p.num(2))
	case classCopy:
		return fmt.Sprintf("copies of database %d/%d", p.num(0), p.num(1))
	case classProgress:
		return "progress"
	case classCoverage:
		switch k := coverKeyOf(&p); {
		case k.rest:
			return "coverage"
		case k.one:
			return "coverage of chunk " + k.chunk.String()
		default:
			return fmt.Sprintf("coverage of shard %d", k.shard)
		}
	}
	return fmt.Sprintf("key %x", p[:])
}

// next is the smallest prefix beyond p.
func (p prefix) next() prefix {
	for i := prefixLen - 1; i >= 0; i-- {
		p[i]++
		if p[i] != 0 {
			break
		}
	}
	return p
}

// appendKey appends the key of p's version at lsn.
func (p *prefix) appendKey(dst []byte, lsn pg.LSN) []byte {
	return binary.BigEndian.AppendUint64(append(dst, p[:]...), ^uint64(lsn))
}

// splitKey takes a key of the database apart. lsn is that of the newest version in the pair.
func splitKey(key []byte) (p prefix, lsn pg.LSN, ok bool) {
	if len(key) != keyLen && len(key) != packKeyLen {
		return p, 0, false
	}
	copy(p[:], key)
	return p, pg.LSN(^binary.BigEndian.Uint64(key[prefixLen:])), true
}

// forkOf is the fork whose size a page depends on, and its block number there. An SLRU segment stands as a fork of its own:
// tablespace 0, database = the SLRU, relation = the segment.
func forkOf(k pg.PageKey) (pg.RelFork, uint32) {
	if k.Spc == 0 {
		f := pg.RelFork{RelFileLocator: pg.RelFileLocator{DB: k.DB, Rel: k.Block / pg.SLRUPagesPerSegment}}
		return f, k.Block % pg.SLRUPagesPerSegment
	}
	return k.RelFork, k.Block
}

// comparer orders keys by their bytes; its Split ends before the LSN, so that bloom filters and prefix seeks know whole objects.
// Name and order are part of the store's format.
var comparer = newComparer()

func newComparer() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "everpage.version.2"
	c.Split = func(k []byte) int { return min(len(k), prefixLen) }
	c.ComparePointSuffixes = bytes.Compare
	c.CompareRangeSuffixes = bytes.Compare
	c.ImmediateSuccessor = func(dst, a []byte) []byte {
		n := len(dst)
		dst = append(dst, a...)
		if len(a) < prefixLen {
			return append(dst, 0)
		}
		for i := len(dst) - 1; i >= n; i-- {
			dst[i]++
			if dst[i] != 0 {
				break
			}
		}
		return dst
	}
	return &c
}
