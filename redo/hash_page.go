package redo

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	"everpage/wal/pg"
)

// Flags of a hash index page (HashPageOpaqueData.hasho_flag).
const (
	lhUnusedPage              = 0
	lhOverflowPage            = 1 << 0
	lhBucketPage              = 1 << 1
	lhBitmapPage              = 1 << 2
	lhMetaPage                = 1 << 3
	lhBucketNeedsSplitCleanup = 1 << 6
	lhPageHasDeadTuples       = 1 << 7

	lhPageType = lhOverflowPage | lhBucketPage | lhBitmapPage | lhMetaPage
)

const (
	hashSpecial  = pg.BlockSize - 16 // where HashPageOpaqueData starts
	hashPageID   = 0xFF80            // HASHO_PAGE_ID
	hashNoBucket = 0xFFFFFFFF        // InvalidBucket
)

// hashOpaque is HashPageOpaqueData: {uint32 page before (of a bucket's primary page: the greatest bucket when it was made or split),
// page behind, bucket, uint16 flags, page id}.
type hashOpaque []byte

func (o hashOpaque) flags() uint16            { return binary.LittleEndian.Uint16(o[12:]) }
func (o hashOpaque) setPrev(v uint32)         { binary.LittleEndian.PutUint32(o, v) }
func (o hashOpaque) setNext(b pg.BlockNumber) { binary.LittleEndian.PutUint32(o[4:], b) }
func (o hashOpaque) setFlags(v uint16)        { binary.LittleEndian.PutUint16(o[12:], v) }

// hashOpaqueOf is HashPageGetOpaque of a page that must be a hash index's.
func hashOpaqueOf(p pg.Page) (hashOpaque, error) {
	if !p.Valid() || p.Special() != hashSpecial {
		return nil, fmt.Errorf("the page is no hash index page: lower %d, upper %d, special %d", p.Lower(), p.Upper(), p.Special())
	}
	return hashOpaque(p[hashSpecial:]), nil
}

// hashInit is _hash_initbuf: an empty page without one behind it.
func hashInit(p pg.Page, prev, bucket uint32, flags uint16) {
	p.Init(pg.BlockSize - hashSpecial)
	o := hashOpaque(p[hashSpecial:])
	o.setPrev(prev)
	o.setNext(pg.InvalidBlock)
	binary.LittleEndian.PutUint32(o[8:], bucket)
	o.setFlags(flags)
	binary.LittleEndian.PutUint16(o[14:], hashPageID)
}

// hashInitBitmap is _hash_initbitmapbuffer: all overflow pages of the map are taken, or don't exist yet.
func hashInitBitmap(p pg.Page, size int) error {
	if size > hashSpecial-pg.PageHeaderSize {
		return fmt.Errorf("a bitmap of %d bytes", size)
	}
	hashInit(p, pg.InvalidBlock, hashNoBucket, lhBitmapPage)
	m := p[pg.PageHeaderSize : pg.PageHeaderSize+size]
	for i := range m {
		m[i] = 0xFF
	}
	p.SetLower(uint16(pg.PageHeaderSize + size))
	return nil
}

// hashData32 is block data of one uint32.
func hashData32(d *Delta) (uint32, error) {
	if len(d.Data) != 4 {
		return 0, fmt.Errorf("data of %d bytes, want 4", len(d.Data))
	}
	return binary.LittleEndian.Uint32(d.Data), nil
}

// hashSetBit sets or clears the bit of a bitmap page that the block's data name (SETBIT, CLRBIT).
func hashSetBit(p pg.Page, d *Delta, on bool) error {
	bit, err := hashData32(d)
	if err != nil {
		return err
	}
	if _, err := hashOpaqueOf(p); err != nil {
		return err
	}
	at := pg.PageHeaderSize + int(bit/8)
	if at >= int(p.Lower()) {
		return fmt.Errorf("bit %d is beyond the bitmap of %d bytes", bit, p.Lower()-pg.PageHeaderSize)
	}
	if on {
		p[at] |= 1 << (bit % 8)
	} else {
		p[at] &^= 1 << (bit % 8)
	}
	return nil
}

// hashAddTuples adds tuples to a page. data: their offsets, uint16 each, then the tuples.
func hashAddTuples(p pg.Page, data []byte, n int) error {
	if len(data) < 2*n {
		return fmt.Errorf("data of %d bytes, too few for %d tuples", len(data), n)
	}
	offsets, rest := data[:2*n], data[2*n:]
	for i := range n {
		tuple, tail, err := cutIndexTuple(rest)
		if err != nil {
			return fmt.Errorf("tuple %d of %d: %w", i+1, n, err)
		}
		rest = tail
		if err := addItem(p, tuple, binary.LittleEndian.Uint16(offsets[2*i:])); err != nil {
			return fmt.Errorf("tuple %d of %d: %w", i+1, n, err)
		}
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes behind %d tuples", len(rest), n)
	}
	return nil
}

// hashMeta is HashMetaPageData on a metapage.
type hashMeta []byte

// Where its fields are.
const (
	hashMetaTuples     = 8  // float64
	hashMetaMaxBucket  = 24 // uint32, as all that follow
	hashMetaHighMask   = 28
	hashMetaLowMask    = 32
	hashMetaSplitPoint = 36 // hashm_ovflpoint
	hashMetaFirstFree  = 40
	hashMetaBitmaps    = 44 // hashm_nmaps
	hashMetaSpares     = 52
	hashMetaMap        = hashMetaSpares + 4*hashMaxSplitPoints
	hashMetaSize       = hashMetaMap + 4*hashMaxBitmaps + 4 // with padding at the end

	hashMaxSplitPoints = (32-10)*4 + 10 // HASH_MAX_SPLITPOINTS
	hashMaxBitmaps     = 1024           // HASH_MAX_BITMAPS
)

// hashMetaOf is HashPageGetMeta.
func hashMetaOf(p pg.Page) (hashMeta, error) {
	o, err := hashOpaqueOf(p)
	if err != nil {
		return nil, err
	}
	if o.flags()&lhPageType != lhMetaPage {
		return nil, fmt.Errorf("the page is no hash index's metapage: flags %04X", o.flags())
	}
	return hashMeta(p[pg.PageHeaderSize : pg.PageHeaderSize+hashMetaSize]), nil
}

func leFloat64(b []byte) float64 { return math.Float64frombits(binary.LittleEndian.Uint64(b)) }

func (m hashMeta) get(at int) uint32     { return binary.LittleEndian.Uint32(m[at:]) }
func (m hashMeta) set(at int, v uint32)  { binary.LittleEndian.PutUint32(m[at:], v) }
func (m hashMeta) tuples() float64       { return leFloat64(m[hashMetaTuples:]) }
func (m hashMeta) maxBucket() uint32     { return m.get(hashMetaMaxBucket) }
func (m hashMeta) setMaxBucket(v uint32) { m.set(hashMetaMaxBucket, v) }
func (m hashMeta) setFirstFree(v uint32) { m.set(hashMetaFirstFree, v) }

func (m hashMeta) setTuples(v float64) {
	binary.LittleEndian.PutUint64(m[hashMetaTuples:], math.Float64bits(v))
}

func (m hashMeta) setMasks(low, high uint32) {
	m.set(hashMetaLowMask, low)
	m.set(hashMetaHighMask, high)
}

// setSplitPoint begins a split point with this many spare pages before it.
func (m hashMeta) setSplitPoint(point, spares uint32) error {
	if point >= hashMaxSplitPoints {
		return fmt.Errorf("split point %d, at most %d", point, hashMaxSplitPoints-1)
	}
	m.set(hashMetaSpares+4*int(point), spares)
	m.set(hashMetaSplitPoint, point)
	return nil
}

// addSpares counts new overflow pages at the current split point.
func (m hashMeta) addSpares(n uint32) error {
	point := m.get(hashMetaSplitPoint)
	if point >= hashMaxSplitPoints {
		return fmt.Errorf("the metapage's split point is %d, at most %d", point, hashMaxSplitPoints-1)
	}
	at := hashMetaSpares + 4*int(point)
	m.set(at, m.get(at)+n)
	return nil
}

// addBitmap adds a bitmap page to the list.
func (m hashMeta) addBitmap(b pg.BlockNumber) error {
	n := m.get(hashMetaBitmaps)
	if n >= hashMaxBitmaps {
		return fmt.Errorf("the metapage lists %d bitmap pages, and no more fit", n)
	}
	m.set(hashMetaMap+4*int(n), b)
	m.set(hashMetaBitmaps, n+1)
	return nil
}

// hashRestoreMeta is _hash_init_metabuffer: the metapage of a new index, its number of buckets chosen for the tuples expected.
// Main data: {float64 tuples, uint32 hash function, uint16 fill factor}.
func hashRestoreMeta(p pg.Page, d *Delta) error {
	const magic, version = 0x6440640, 4 // HASH_MAGIC, HASH_VERSION
	if len(d.Main) < 14 {
		return errMainLength(14, len(d.Main))
	}
	fill := binary.LittleEndian.Uint16(d.Main[12:])
	wanted := leFloat64(d.Main) / float64(fill)
	buckets := uint32(2)
	switch {
	case fill == 0 || math.IsNaN(wanted):
		return fmt.Errorf("fill factor %d for %v tuples", fill, leFloat64(d.Main))
	case wanted >= 0x40000000:
		buckets = 0x40000000
	case wanted > 2:
		buckets = hashTotalBuckets(hashSpareIndex(uint32(wanted)))
	}

	hashInit(p, pg.InvalidBlock, hashNoBucket, lhMetaPage)
	m := hashMeta(p[pg.PageHeaderSize : pg.PageHeaderSize+hashMetaSize])
	m.set(0, magic)
	m.set(4, version)
	binary.LittleEndian.PutUint16(m[16:], fill)
	const bitmapSpace = hashSpecial - pg.PageHeaderSize
	shift := bits.Len(bitmapSpace) - 1 // the largest power of two that fits
	binary.LittleEndian.PutUint16(m[18:], bitmapSpace)
	binary.LittleEndian.PutUint16(m[20:], 1<<shift)
	binary.LittleEndian.PutUint16(m[22:], uint16(shift+3)) // the same in bits
	m.setMaxBucket(buckets - 1)
	high := uint32(1)<<bits.Len32(buckets) - 1 // the next power of two above, less one
	m.setMasks(high>>1, high)
	copy(m[48:], d.Main[8:12])
	p.SetLower(pg.PageHeaderSize + hashMetaSize)
	return m.setSplitPoint(hashSpareIndex(buckets), 1)
}

// hashSpareIndex is _hash_spareindex: the split point phase that holds a number of buckets. Each of the first ten split points doubles the buckets
// at once, each later one in four phases.
func hashSpareIndex(buckets uint32) uint32 {
	group := uint32(bits.Len32(buckets - 1)) // its logarithm, rounded up
	if group < 10 {
		return group
	}
	return 10 + (group-10)<<2 + (buckets-1)>>(group-3)&3
}

// hashTotalBuckets is _hash_get_totalbuckets: all buckets up to a split point phase.
func hashTotalBuckets(phase uint32) uint32 {
	if phase < 10 {
		return 1 << phase
	}
	half := uint32(1) << (10 + (phase-10)>>2 - 1)
	return half + half>>2*((phase-10)&3+1)
}
