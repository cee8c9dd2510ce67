package chunk

import (
	"encoding/binary"
	"fmt"

	"everpage/wal/pg"
)

// A pair of the database holds one version of an object, or a pack of several that one run (or layer) brought: most of what a pair costs, when it
// is written and when it is compacted, does not depend on its length.
//
// One version: key prefix · ~LSN, value sealed. A pack: key prefix · ~LSN of its newest version · number of versions · CRC-32C of their LSNs; value
// packMark · sealed values, newest first · directory · number of versions · CRC-32C of (key, directory, number). The directory has, for each version, the
// LSN's lower three bytes and where its value ends.
//
// Packs may overlap in any way: WAL that is ingested once more is cut into other packs, layers and runs may share an interval. Two rules keep a read
// at L, which must find the newest version at or below L whatever there is, right and quick:
//
//   - All versions of a pack lie in one bucket, an aligned interval of packBucket bytes of WAL. So every pair that may hold a version at or below L
//     stands at or behind the key of the last LSN of L's bucket, where reads start; what starts later has only newer versions.
//   - A pair's key is that of its newest version. So once the next pair's newest version is older than the newest one at hand, no other can be newer.
//
// The number and the checksum in the key keep a pack from taking the place of one with other versions that ends at the same LSN: the database keeps one
// pair a key. The same pack written twice is one pair.
const (
	packBucket  = 1 << 24 // its bits are part of the format, what follows is not
	packBytes   = 4 << 10 // of sealed values; one of more than half stands alone
	packMark    = 0xFF    // no kind of version
	packOver    = 1 + 2 + 4
	packEntry   = 3 + 2
	packKeyTail = 2 + 4
	packKeyLen  = keyLen + packKeyTail
)

// bucketEnd is the last LSN of the bucket that holds lsn.
func bucketEnd(lsn pg.LSN) pg.LSN { return lsn | (packBucket - 1) }

// pairWriter makes pairs of versions. They must come object by object in key order, each object's newest first and each LSN once.
type pairWriter struct {
	set    func(key, value []byte) error // it must not keep what it gets
	prefix prefix
	lsns   []pg.LSN
	ends   []uint16
	buf    []byte // packMark and what was gathered
	key    [packKeyLen]byte
}

// add takes one version. finish must follow the last one.
func (w *pairWriter) add(p *prefix, lsn pg.LSN, sealed []byte) error {
	n := len(w.lsns)
	if n > 0 && (w.prefix != *p || len(w.buf)-1+len(sealed) > packBytes || bucketEnd(lsn) != bucketEnd(w.lsns[0])) {
		if err := w.finish(); err != nil {
			return err
		}
		n = 0
	}
	if n > 0 && lsn >= w.lsns[n-1] {
		return fmt.Errorf("%s: the version of %s comes after that of %s", p, lsn, w.lsns[n-1])
	}
	if len(sealed) > packBytes/2 {
		if err := w.finish(); err != nil {
			return err
		}
		return w.set(p.appendKey(w.key[:0], lsn), sealed)
	}
	if n == 0 {
		w.prefix = *p
		w.buf = append(w.buf[:0], packMark)
	}
	w.buf = append(w.buf, sealed...)
	w.lsns = append(w.lsns, lsn)
	w.ends = append(w.ends, uint16(len(w.buf)-1))
	return nil
}

// finish writes what was gathered.
func (w *pairWriter) finish() error {
	n := len(w.lsns)
	if n == 0 {
		return nil
	}
	key := w.prefix.appendKey(w.key[:0], w.lsns[0])
	if n == 1 {
		w.lsns, w.ends = w.lsns[:0], w.ends[:0]
		return w.set(key, w.buf[1:])
	}
	start := len(w.buf)
	sum := uint32(0)
	for i, lsn := range w.lsns {
		w.buf = append(w.buf, byte(lsn>>16), byte(lsn>>8), byte(lsn), byte(w.ends[i]>>8), byte(w.ends[i]))
		sum = pg.CRC32C(sum, w.buf[len(w.buf)-packEntry:len(w.buf)-2])
	}
	w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(n))
	key = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(key, uint16(n)), sum)
	w.buf = binary.BigEndian.AppendUint32(w.buf, packSum(key, w.buf[start:]))
	w.lsns, w.ends = w.lsns[:0], w.ends[:0]
	return w.set(key, w.buf)
}

func packSum(key, directory []byte) uint32 {
	return pg.CRC32C(pg.CRC32C(0, key), directory)
}

// pack is a stored pair opened: versions 0 to n-1, newest first. It refers to the pair's value.
type pack struct {
	hi     pg.LSN // of version 0
	n      int
	dir    []byte // nil: the pair is one version
	values []byte
}

// openPair opens a stored pair, whose key splitKey has taken apart. It verifies the directory; each value bears its own checksum.
func openPair(key []byte, hi pg.LSN, value []byte) (pack, error) {
	if len(key) == keyLen {
		return pack{hi: hi, n: 1, values: value}, nil
	}
	if len(value) < packOver || value[0] != packMark {
		return pack{}, errShape
	}
	tail := len(value) - 6
	n := int(binary.BigEndian.Uint16(value[tail:]))
	start := tail - n*packEntry
	if start < 1 || n < 2 {
		return pack{}, errShape
	}
	if binary.BigEndian.Uint32(value[tail+2:]) != packSum(key, value[start:tail+2]) {
		return pack{}, errChecksum
	}
	k := pack{hi: hi, n: n, dir: value[start:tail], values: value[1:start]}
	if k.lsn(0) != hi || k.end(n-1) != len(k.values) {
		return pack{}, errShape
	}
	return k, nil
}

// lsn is that of version i.
func (k *pack) lsn(i int) pg.LSN {
	if k.dir == nil {
		return k.hi
	}
	d := k.dir[i*packEntry:]
	return k.hi&^(packBucket-1) | pg.LSN(d[0])<<16 | pg.LSN(d[1])<<8 | pg.LSN(d[2])
}

func (k *pack) end(i int) int {
	return int(binary.BigEndian.Uint16(k.dir[i*packEntry+3:]))
}

// value is version i's sealed value, not yet verified; nil if the directory makes no sense.
func (k *pack) value(i int) []byte {
	if k.dir == nil {
		return k.values
	}
	start, end := 0, k.end(i)
	if i > 0 {
		start = k.end(i - 1)
	}
	if start > end || end > len(k.values) {
		return nil
	}
	return k.values[start:end:end]
}

// seek is the first version at or below lsn; n if there is none.
func (k *pack) seek(lsn pg.LSN) int {
	lo, hi := 0, k.n
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); k.lsn(mid) > lsn {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// versionsOf calls fn with the LSN and the sealed value of each version in a stored pair, newest first, all of it verified. Pairs of one object may
// overlap and repeat each other: versions of several pairs are not in order, and the same LSN may come again.
func versionsOf(key, value []byte, fn func(p *prefix, lsn pg.LSN, sealed []byte) error) error {
	p, hi, ok := splitKey(key)
	if !ok {
		return errShape
	}
	k, err := openPair(key, hi, value)
	if err != nil {
		return err
	}
	var buf [keyLen]byte
	for i := range k.n {
		lsn, v := k.lsn(i), k.value(i)
		if i > 0 && lsn >= k.lsn(i-1) {
			return errShape
		}
		if !sealed(p.appendKey(buf[:0], lsn), v) {
			return errChecksum
		}
		if err := fn(&p, lsn, v); err != nil {
			return err
		}
	}
	return nil
}
