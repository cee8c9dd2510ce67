package redo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"everpage/redo/page"
	"everpage/wal/pg"
)

const (
	sequenceHeader = 12 // xl_seq_rec: the relation
	sequenceMagic  = 0x1717
	sequenceLog    = 0x00
)

var sequenceManager = manager{apply: applySequence, mask: maskSequence, name: names{"LOG"}.of}

// applySequence is seq_redo: a page with one tuple, made anew by each record.
func applySequence(p pg.Page, d *Delta) error {
	if d.Info&0xF0 != sequenceLog || d.Part != 0 {
		return errors.New("a sequence record changes block 0 by LOG and nothing else")
	}
	if len(d.Main) <= sequenceHeader {
		return errors.New(tooShort)
	}
	tuple := d.Main[sequenceHeader:]
	p.Init(8)
	binary.LittleEndian.PutUint32(p[p.Special():], sequenceMagic)
	if _, err := page.Add(p, tuple, 1, 0); err != nil {
		return fmt.Errorf("the sequence's tuple: %w", err)
	}
	return nil
}

// maskSequence is seq_mask.
func maskSequence(p pg.Page, _ pg.PageKey) {
	maskLSNAndChecksum(p)
	maskUnusedSpace(p)
}
