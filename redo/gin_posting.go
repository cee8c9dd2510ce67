package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/wal/pg"
)

// A posting list segment (GinPostingList, ginblock.h) is {first TID, uint16 bytes that follow}, then the differences between one TID and the next
// as varbyte numbers: seven bits a byte, the low ones first, all bytes but the last with the high bit set. A byte of zero aligns its end to two.
// As a number a TID is its block number, shifted by 11 bits, and its offset number.
const (
	ginSegmentHeader = 8
	ginOffsetBits    = 11 // MaxHeapTuplesPerPageBits
	ginTIDBits       = 32 + ginOffsetBits
	ginVarbyteMax    = 7 // MaxBytesPerInteger
)

// What is done to a segment of a leaf (GIN_SEGMENT_*).
const (
	ginSegmentDelete   = 1
	ginSegmentInsert   = 2
	ginSegmentReplace  = 3
	ginSegmentAddItems = 4
)

var (
	errGinData    = errors.New("data end within the changes of a posting tree leaf")
	errGinSegment = errors.New("corrupt posting list")
	errGinOrder   = errors.New("TIDs of a posting list don't ascend")
	errGinSpace   = errors.New("the posting lists don't fit on the page")
)

// ginSegmentSize is SizeOfGinPostingList of the segment at the start of b, which holds it.
func ginSegmentSize(b []byte) (int, error) {
	if len(b) < ginSegmentHeader {
		return 0, errGinSegment
	}
	size := (ginSegmentHeader + int(binary.LittleEndian.Uint16(b[6:])) + 1) &^ 1
	if size > len(b) {
		return 0, errGinSegment
	}
	return size, nil
}

// ginRecompress is ginRedoRecompress: it changes posting list segments of a posting tree's leaf. Data: {uint16 actions}, then actions in the order of
// the segments: {uint8 segment's index before any change, uint8 action}, and for INSERT and REPLACE a segment, for ADDITEMS {uint16 count}, TIDs.
func ginRecompress(p pg.Page, o ginOpaque, data []byte) error {
	if len(data) < 2 {
		return errGinData
	}
	actions := int(binary.LittleEndian.Uint16(data))
	data = data[2:]
	if o.flags()&ginCompressed == 0 {
		if err := ginCompressLeaf(p, o); err != nil {
			return err
		}
	}
	if p.Lower() < ginDataStart {
		return fmt.Errorf("posting lists end at %d, before they begin", p.Lower())
	}

	// Up to the first segment that changes all stays in its place. From there on segments are written anew, from a copy of the old ones.
	var scratch [ginDataMax]byte
	area := p[ginDataStart:ginSpecial]
	old, copied := area[:int(p.Lower())-ginDataStart], false
	at, segment := 0, 0 // where the next segment goes, and the index of the first one in old
	put := func(b []byte) error {
		if len(b) > len(area)-at {
			return errGinSpace
		}
		at += copy(area[at:], b)
		return nil
	}
	for range actions {
		if len(data) < 2 {
			return errGinData
		}
		target, action := int(data[0]), data[1]
		data = data[2:]
		if target < segment {
			return fmt.Errorf("segment %d is changed after segment %d", target, segment)
		}
		for ; segment < target; segment++ {
			size, err := ginSegmentSize(old)
			if err != nil {
				return fmt.Errorf("segment %d of the page: %w", segment, err)
			}
			if !copied {
				at += size
			} else if err := put(old[:size]); err != nil {
				return err
			}
			old = old[size:]
		}
		if !copied {
			old, copied = scratch[:copy(scratch[:], old)], true
		}

		size := 0 // of the old segment, where the action has one
		if action != ginSegmentInsert {
			var err error
			if size, err = ginSegmentSize(old); err != nil {
				return fmt.Errorf("segment %d of the page: %w", segment, err)
			}
		}
		switch action {
		case ginSegmentDelete:
		case ginSegmentInsert, ginSegmentReplace:
			n, err := ginSegmentSize(data)
			if err != nil {
				return fmt.Errorf("new segment at %d: %w", segment, err)
			}
			if err := put(data[:n]); err != nil {
				return err
			}
			data = data[n:]
		case ginSegmentAddItems:
			if len(data) < 2 {
				return errGinData
			}
			n := tidSize * int(binary.LittleEndian.Uint16(data))
			data = data[2:]
			if len(data) < n {
				return errGinData
			}
			added, err := ginAddItems(area[at:], old[:size], data[:n])
			if err != nil {
				return fmt.Errorf("segment %d of the page: %w", segment, err)
			}
			at += added
			data = data[n:]
		default:
			return fmt.Errorf("unknown action %d on a posting list", action)
		}
		if action != ginSegmentInsert {
			old = old[size:]
			segment++
		}
	}
	if len(data) != 0 {
		return fmt.Errorf("%d bytes behind the last action", len(data))
	}
	if !copied {
		at += len(old)
	} else if err := put(old); err != nil {
		return err
	}
	ginSetDataSize(p, at)
	return nil
}

// ginCompressLeaf makes a compressed leaf of one of a server before 9.4, which bears plain TIDs, as ginRedoRecompress does first.
//
//go:noinline
func ginCompressLeaf(p pg.Page, o ginOpaque) error {
	var scratch [ginDataMax]byte
	n := tidSize * int(o.maxOff())
	if n > ginDataMax {
		return fmt.Errorf("%d TIDs on a posting tree's leaf", o.maxOff())
	}
	size := 0
	if n > 0 {
		items := scratch[:copy(scratch[:], p[ginDataStart:ginDataStart+n])]
		var err error
		if size, err = ginAddItems(p[ginDataStart:ginSpecial], nil, items); err != nil {
			return err
		}
	}
	ginSetDataSize(p, size)
	o.setFlags(o.flags() | ginCompressed)
	o.setMaxOff(0)
	return nil
}

// ginAddItems merges packed TIDs into a segment and writes the new segment to dst, padding included; it returns its size
// (ginPostingListDecode, ginMergeItemPointers, ginCompressPostingList). TIDs that are in both are kept once.
// Without an old segment (nil) there is one of the TIDs alone.
func ginAddItems(dst, segment, items []byte) (int, error) {
	w := ginWriter{b: dst}
	old := ginReader{first: true, rest: segment}
	a, more, err := old.next()
	if err != nil {
		return 0, err
	}
	if more && len(items) > 0 {
		// What comes before the first new TID stays as it is.
		b, err := ginTID(items)
		if err != nil {
			return 0, err
		}
		if a < b {
			kept := 0 // bytes of the segment behind the last TID kept
			for more && a < b {
				w.last, kept = a, len(old.rest)
				a, more, err = old.next()
				if err != nil {
					return 0, err
				}
				if more && a <= w.last {
					return 0, errGinOrder
				}
			}
			end := ginSegmentHeader + int(binary.LittleEndian.Uint16(segment[6:]))
			w.n = end - kept
			if w.n > len(dst) {
				return 0, errGinSpace
			}
			copy(dst, segment[:w.n])
		}
	}
	for ; len(items) > 0; items = items[tidSize:] {
		b, err := ginTID(items)
		if err != nil {
			return 0, err
		}
		for more && a <= b {
			if a < b {
				if err := w.add(a); err != nil {
					return 0, err
				}
			}
			if a, more, err = old.next(); err != nil {
				return 0, err
			}
		}
		if err := w.add(b); err != nil {
			return 0, err
		}
	}
	for more {
		if err := w.add(a); err != nil {
			return 0, err
		}
		if a, more, err = old.next(); err != nil {
			return 0, err
		}
	}
	return w.finish()
}

// ginTID is itemptr_to_uint64 of the TID at the start of b.
func ginTID(b []byte) (uint64, error) {
	off := binary.LittleEndian.Uint16(b[4:])
	if off == 0 || off >= 1<<ginOffsetBits {
		return 0, fmt.Errorf("%w: offset number %d", errGinSegment, off)
	}
	return uint64(blockID(b))<<ginOffsetBits | uint64(off), nil
}

// ginReader goes through the TIDs of a segment.
type ginReader struct {
	rest  []byte // the segment, then what is left of its bytes
	value uint64
	first bool
}

// next returns the next TID; false at the end.
func (r *ginReader) next() (uint64, bool, error) {
	if r.first {
		r.first = false
		if len(r.rest) == 0 {
			return 0, false, nil
		}
		n := int(binary.LittleEndian.Uint16(r.rest[6:])) // ginSegmentSize has checked it
		v, err := ginTID(r.rest)
		r.value, r.rest = v, r.rest[ginSegmentHeader:ginSegmentHeader+n]
		return v, true, err
	}
	if len(r.rest) == 0 {
		return 0, false, nil
	}
	delta, shift := uint64(0), 0
	for i, c := range r.rest {
		delta |= uint64(c&0x7F) << shift
		if c&0x80 == 0 {
			r.rest = r.rest[i+1:]
			r.value += delta
			// A server writes no number longer than it must be.
			if r.value >= 1<<ginTIDBits || r.value&(1<<ginOffsetBits-1) == 0 || c == 0 {
				return 0, false, errGinSegment
			}
			return r.value, true, nil
		}
		if shift += 7; i+1 == ginVarbyteMax {
			break
		}
	}
	return 0, false, errGinSegment
}

// ginWriter writes a segment.
type ginWriter struct {
	b    []byte
	n    int // bytes written, 0 before the first TID
	last uint64
}

// add appends a TID greater than all before.
func (w *ginWriter) add(v uint64) error {
	if w.n == 0 {
		if len(w.b) < ginSegmentHeader {
			return errGinSpace
		}
		tid := makeTID(pg.BlockNumber(v>>ginOffsetBits), pg.OffsetNumber(v&(1<<ginOffsetBits-1)))
		copy(w.b, tid[:])
		w.n, w.last = ginSegmentHeader, v
		return nil
	}
	if v <= w.last {
		return errGinOrder
	}
	delta := v - w.last
	w.last = v
	for {
		if w.n >= len(w.b) {
			return errGinSpace
		}
		if delta < 0x80 {
			w.b[w.n] = byte(delta)
			w.n++
			return nil
		}
		w.b[w.n] = byte(delta) | 0x80
		w.n++
		delta >>= 7
	}
}

// finish writes the header's length and the padding.
func (w *ginWriter) finish() (int, error) {
	if w.n == 0 {
		return 0, fmt.Errorf("%w: no TID", errGinSegment)
	}
	binary.LittleEndian.PutUint16(w.b[6:], uint16(w.n-ginSegmentHeader))
	if w.n%2 != 0 {
		if w.n >= len(w.b) {
			return 0, errGinSpace
		}
		w.b[w.n] = 0
		w.n++
	}
	return w.n, nil
}
