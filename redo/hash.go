package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/wal"
	"everpage/wal/pg"
)

// Records of the hash resource manager (hash_xlog.h).
const (
	hashInitMetaPage      = 0x00
	hashInitBitmapPage    = 0x10
	hashInsert            = 0x20
	hashAddOvflPage       = 0x30
	hashSplitAllocatePage = 0x40
	hashSplitPage         = 0x50
	hashSplitComplete     = 0x60
	hashMovePageContents  = 0x70
	hashSqueezePage       = 0x80
	hashDelete            = 0x90
	hashSplitCleanup      = 0xA0
	hashUpdateMetaPage    = 0xB0
	hashVacuumOnePage     = 0xC0
)

var hashNames = names{
	hashInitMetaPage >> 4:      "INIT_META_PAGE",
	hashInitBitmapPage >> 4:    "INIT_BITMAP_PAGE",
	hashInsert >> 4:            "INSERT",
	hashAddOvflPage >> 4:       "ADD_OVFL_PAGE",
	hashSplitAllocatePage >> 4: "SPLIT_ALLOCATE_PAGE",
	hashSplitPage >> 4:         "SPLIT_PAGE",
	hashSplitComplete >> 4:     "SPLIT_COMPLETE",
	hashMovePageContents >> 4:  "MOVE_PAGE_CONTENTS",
	hashSqueezePage >> 4:       "SQUEEZE_PAGE",
	hashDelete >> 4:            "DELETE",
	hashSplitCleanup >> 4:      "SPLIT_CLEANUP",
	hashUpdateMetaPage >> 4:    "UPDATE_META_PAGE",
	hashVacuumOnePage >> 4:     "VACUUM_ONE_PAGE",
}

// hashManager redoes hash indexes.
var hashManager = manager{
	touch:      hashTouch,
	apply:      hashApply,
	afterImage: hashAfterImage,
	tags:       true, // pages of a bucket name each other
	mask:       hashMask,
	name:       hashNames.of,
}

// hashTouch leaves out the pages that a record names only so that recovery locks them.
func hashTouch(_ *wal.Record, _ *ControlState, ch *Changes) error {
	kept := ch.Pages[:0]
	for i := range ch.Pages {
		if c := &ch.Pages[i]; c.Kind != KindDelta || !hashLocksOnly(&c.Delta) {
			kept = append(kept, *c)
		}
	}
	ch.Pages = kept
	return nil
}

// hashLocksOnly tells that a record names a page without changing it: the primary page of the bucket whose other pages it changes. From 17 on also
// the page that a squeeze writes to, if nothing was to be written; before, its LSN moves.
func hashLocksOnly(d *Delta) bool {
	switch d.Info & 0xF0 {
	case hashMovePageContents, hashDelete:
		return d.Part == 0
	case hashSqueezePage:
		if d.Part == 1 && d.Major >= 17 {
			s, err := decodeHashSqueeze(d.Main)
			return err == nil && s.tuples == 0 && !s.prevIsWritten
		}
		return d.Part == 0
	}
	return false
}

// hashApply is hash_redo, one page at a time.
func hashApply(p pg.Page, d *Delta) error {
	if hashLocksOnly(d) {
		return errNoChange
	}
	switch op := d.Info & 0xF0; op {
	case hashInitMetaPage:
		if d.Part == 0 {
			return hashRestoreMeta(p, d)
		}
	case hashInitBitmapPage:
		return hashApplyInitBitmap(p, d)
	case hashInsert:
		return hashApplyInsert(p, d)
	case hashAddOvflPage:
		return hashApplyAddOvfl(p, d)
	case hashSplitAllocatePage:
		return hashApplySplitAllocate(p, d)
	case hashSplitPage:
		return errors.New("the record has no image of the page")
	case hashSplitComplete:
		return hashApplySplitComplete(p, d)
	case hashMovePageContents:
		return hashApplyMove(p, d)
	case hashSqueezePage:
		return hashApplySqueeze(p, d)
	case hashDelete:
		if d.Part == 1 {
			return hashApplyDelete(p, d)
		}
	case hashSplitCleanup:
		if d.Part == 0 {
			return hashClearFlag(p, lhBucketNeedsSplitCleanup)
		}
	case hashUpdateMetaPage:
		if d.Part == 0 {
			return hashApplyUpdateMeta(p, d)
		}
	case hashVacuumOnePage:
		return hashApplyVacuumOnePage(p, d)
	default:
		return fmt.Errorf("unknown record type %02X", op)
	}
	return errNoSuchBlock
}

// hashAfterImage is what redo still does to a restored page: the flags of the buckets of a split are not in the images.
func hashAfterImage(p pg.Page, d *Delta) error {
	switch d.Info & 0xF0 {
	case hashSplitAllocatePage:
		if d.Part == 0 {
			return hashApplySplitAllocate(p, d)
		}
	case hashSplitComplete:
		return hashApplySplitComplete(p, d)
	}
	return nil
}

// hashApplyInitBitmap is hash_xlog_init_bitmap_page. Block 0 is the bitmap page, 1 the metapage. Main data: {uint16 bitmap bytes}.
func hashApplyInitBitmap(p pg.Page, d *Delta) error {
	switch d.Part {
	case 0:
		if len(d.Main) < 2 {
			return errMainLength(2, len(d.Main))
		}
		return hashInitBitmap(p, int(binary.LittleEndian.Uint16(d.Main)))
	case 1:
		m, err := hashMetaOf(p)
		if err != nil {
			return err
		}
		return m.addBitmap(m.maxBucket() + 2) // buckets are 0 to maxBucket in blocks 1 and on; the bitmap comes behind
	}
	return errNoSuchBlock
}

// hashApplyInsert is hash_xlog_insert. Block 0 gets the tuple, block 1 is the metapage. Main data: {uint16 offset}.
func hashApplyInsert(p pg.Page, d *Delta) error {
	switch d.Part {
	case 0:
		if len(d.Main) < 2 {
			return errMainLength(2, len(d.Main))
		}
		if _, err := hashOpaqueOf(p); err != nil {
			return err
		}
		if size, err := indexTupleSize(d.Data); err != nil {
			return err
		} else if size != len(d.Data) {
			return fmt.Errorf("tuple of %d bytes in data of %d bytes", size, len(d.Data))
		}
		return addItem(p, d.Data, binary.LittleEndian.Uint16(d.Main))
	case 1:
		m, err := hashMetaOf(p)
		if err != nil {
			return err
		}
		m.setTuples(m.tuples() + 1)
		return nil
	}
	return errNoSuchBlock
}

// hashApplyAddOvfl is hash_xlog_add_ovfl_page. Block 0 is the new overflow page, 1 the page before it in the bucket, 2 the bitmap page whose bit is
// taken, 3 a new bitmap page, 4 the metapage. Main data: {uint16 bitmap bytes, bool a free page was found in a bitmap}.
func hashApplyAddOvfl(p pg.Page, d *Delta) error {
	if len(d.Main) < 3 {
		return errMainLength(3, len(d.Main))
	}
	switch d.Part {
	case 0:
		left, ok := d.Tag(1)
		if !ok {
			return errors.New("no reference to the page before")
		}
		bucket, err := hashData32(d)
		if err != nil {
			return err
		}
		hashInit(p, left.Block, bucket, lhOverflowPage)
		return nil
	case 1:
		right, ok := d.Tag(0)
		if !ok {
			return errors.New("no reference to the new page")
		}
		o, err := hashOpaqueOf(p)
		if err != nil {
			return err
		}
		o.setNext(right.Block)
		return nil
	case 2:
		return hashSetBit(p, d, true)
	case 3:
		return hashInitBitmap(p, int(binary.LittleEndian.Uint16(d.Main)))
	case 4:
		m, err := hashMetaOf(p)
		if err != nil {
			return err
		}
		free, err := hashData32(d)
		if err != nil {
			return err
		}
		m.setFirstFree(free)
		if d.Main[2] != 0 {
			return nil
		}
		bitmap, added := d.Tag(3)
		if !added {
			return m.addSpares(1)
		}
		if err := m.addBitmap(bitmap.Block); err != nil {
			return err
		}
		return m.addSpares(2)
	}
	return errNoSuchBlock
}

// hashApplySplitAllocate is hash_xlog_split_allocate_page. Block 0 is the old bucket (also after its image), 1 the new one, 2 the metapage.
// Main data: {uint32 new bucket, uint16 old bucket's flags, new bucket's flags, uint8 what changes in the metapage}.
// The metapage's data: [uint32 low mask, high mask] [uint32 split point, spare pages].
func hashApplySplitAllocate(p pg.Page, d *Delta) error {
	const updateMasks, updateSplitPoint = 1, 2 // XLH_SPLIT_META_UPDATE_MASKS, XLH_SPLIT_META_UPDATE_SPLITPOINT
	if len(d.Main) < 9 {
		return errMainLength(9, len(d.Main))
	}
	bucket := binary.LittleEndian.Uint32(d.Main)
	switch d.Part {
	case 0:
		o, err := hashOpaqueOf(p)
		if err != nil {
			return err
		}
		o.setFlags(binary.LittleEndian.Uint16(d.Main[4:]))
		o.setPrev(bucket)
		return nil
	case 1:
		hashInit(p, bucket, bucket, binary.LittleEndian.Uint16(d.Main[6:]))
		return nil
	case 2:
		m, err := hashMetaOf(p)
		if err != nil {
			return err
		}
		m.setMaxBucket(bucket)
		data := d.Data
		if d.Main[8]&updateMasks != 0 {
			if len(data) < 8 {
				return errors.New("data ends before the masks")
			}
			m.setMasks(binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:]))
			data = data[8:]
		}
		if d.Main[8]&updateSplitPoint != 0 {
			if len(data) < 8 {
				return errors.New("data ends before the split point")
			}
			return m.setSplitPoint(binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:]))
		}
		return nil
	}
	return errNoSuchBlock
}

// hashApplySplitComplete is hash_xlog_split_complete, also after the image. Block 0 is the old bucket, 1 the new one.
// Main data: {uint16 old bucket's flags, new bucket's flags}.
func hashApplySplitComplete(p pg.Page, d *Delta) error {
	if len(d.Main) < 4 {
		return errMainLength(4, len(d.Main))
	}
	if d.Part > 1 {
		return errNoSuchBlock
	}
	o, err := hashOpaqueOf(p)
	if err != nil {
		return err
	}
	o.setFlags(binary.LittleEndian.Uint16(d.Main[2*d.Part:]))
	return nil
}

// hashApplyMove is hash_xlog_move_page_contents. Block 1 gets the tuples, block 2 loses them. Main data: {uint16 tuples, bool}.
func hashApplyMove(p pg.Page, d *Delta) error {
	if len(d.Main) < 3 {
		return errMainLength(3, len(d.Main))
	}
	if _, err := hashOpaqueOf(p); err != nil {
		return err
	}
	switch d.Part {
	case 1:
		return hashAddTuples(p, d.Data, int(binary.LittleEndian.Uint16(d.Main)))
	case 2:
		return indexMultiDelete(p, d.Data)
	}
	return errNoSuchBlock
}

// hashSqueeze is xl_hash_squeeze_page: {uint32 page before the freed one, page behind it, uint16 tuples, bool primary page is written to,
// bool the page before is written to}.
type hashSqueeze struct {
	prev, next    pg.BlockNumber
	tuples        int
	prevIsWritten bool
}

func decodeHashSqueeze(main []byte) (hashSqueeze, error) {
	if len(main) < 12 {
		return hashSqueeze{}, errMainLength(12, len(main))
	}
	return hashSqueeze{
		prev: binary.LittleEndian.Uint32(main), next: binary.LittleEndian.Uint32(main[4:]),
		tuples: int(binary.LittleEndian.Uint16(main[8:])), prevIsWritten: main[11] != 0,
	}, nil
}

// hashApplySqueeze is hash_xlog_squeeze_page. Block 1 gets the freed page's tuples, 2 is the freed page, 3 and 4 are those before and behind it in the
// bucket, 5 is the bitmap page, 6 the metapage.
func hashApplySqueeze(p pg.Page, d *Delta) error {
	s, err := decodeHashSqueeze(d.Main)
	if err != nil {
		return err
	}
	switch d.Part {
	case 5:
		return hashSetBit(p, d, false)
	case 6:
		m, err := hashMetaOf(p)
		if err != nil {
			return err
		}
		free, err := hashData32(d)
		if err != nil {
			return err
		}
		m.setFirstFree(free)
		return nil
	}
	o, err := hashOpaqueOf(p)
	if err != nil {
		return err
	}
	switch d.Part {
	case 1:
		if err := hashAddTuples(p, d.Data, s.tuples); err != nil {
			return err
		}
		if s.prevIsWritten {
			o.setNext(s.next)
		}
	case 2:
		hashInit(p, pg.InvalidBlock, hashNoBucket, lhUnusedPage)
	case 3:
		if s.prevIsWritten {
			return errNoSuchBlock
		}
		o.setNext(s.next)
	case 4:
		o.setPrev(s.prev)
	default:
		return errNoSuchBlock
	}
	return nil
}

// hashApplyDelete is hash_xlog_delete for the page that loses tuples, block 1. Main data: {bool clear the mark of dead tuples, bool}.
// Data: the offsets.
func hashApplyDelete(p pg.Page, d *Delta) error {
	if len(d.Main) < 2 {
		return errMainLength(2, len(d.Main))
	}
	o, err := hashOpaqueOf(p)
	if err != nil {
		return err
	}
	if err := indexMultiDelete(p, d.Data); err != nil {
		return err
	}
	if d.Main[0] != 0 {
		o.setFlags(o.flags() &^ lhPageHasDeadTuples)
	}
	return nil
}

// hashClearFlag is hash_xlog_split_cleanup.
func hashClearFlag(p pg.Page, flag uint16) error {
	o, err := hashOpaqueOf(p)
	if err != nil {
		return err
	}
	o.setFlags(o.flags() &^ flag)
	return nil
}

// hashApplyUpdateMeta is hash_xlog_update_meta_page. Main data: {float64 tuples}.
func hashApplyUpdateMeta(p pg.Page, d *Delta) error {
	if len(d.Main) < 8 {
		return errMainLength(8, len(d.Main))
	}
	m, err := hashMetaOf(p)
	if err != nil {
		return err
	}
	m.setTuples(leFloat64(d.Main))
	return nil
}

// hashApplyVacuumOnePage is hash_xlog_vacuum_one_page. Block 0 is the page, 1 the metapage.
// Main data: {uint32 horizon, count, offsets}; the count is an int32 in 14 and 15, a uint16 with a bool and a byte of padding behind it later.
func hashApplyVacuumOnePage(p pg.Page, d *Delta) error {
	if len(d.Main) < 8 {
		return errMainLength(8, len(d.Main))
	}
	count := int64(binary.LittleEndian.Uint16(d.Main[4:]))
	if d.Major < 16 {
		count = int64(int32(binary.LittleEndian.Uint32(d.Main[4:])))
	}
	if offsets := len(d.Main) - 8; count < 0 || 2*count > int64(offsets) {
		return fmt.Errorf("%d offsets in %d bytes", count, offsets)
	}
	switch d.Part {
	case 0:
		if _, err := hashOpaqueOf(p); err != nil {
			return err
		}
		if err := indexMultiDelete(p, d.Main[8:8+2*count]); err != nil {
			return err
		}
		return hashClearFlag(p, lhPageHasDeadTuples)
	case 1:
		m, err := hashMetaOf(p)
		if err != nil {
			return err
		}
		m.setTuples(m.tuples() - float64(count))
		return nil
	}
	return errNoSuchBlock
}

// hashMask is hash_mask.
func hashMask(p pg.Page, _ pg.PageKey) {
	maskLSNAndChecksum(p)
	maskHintBits(p)
	maskUnusedSpace(p)
	o, err := hashOpaqueOf(p)
	if err != nil {
		return
	}
	switch o.flags() & lhPageType {
	case lhUnusedPage:
		maskContent(p)
	case lhBucketPage, lhOverflowPage:
		maskItemFlags(p)
	}
	o.setFlags(o.flags() &^ lhPageHasDeadTuples)
}
