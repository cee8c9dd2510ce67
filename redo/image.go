package redo

import (
	"fmt"

	"everpage/wal"
	"everpage/wal/pg"
)

// RestoreImage unpacks a block's image to page as recovery does before it replays the record further: with the LSN of the record's end, lsn,
// unless the page is new (RestoreBlockImage, XLogReadBufferForRedoExtended).
func RestoreImage(page pg.Page, blk *wal.Block, lsn pg.LSN, scratch *wal.Scratch) error {
	if err := blk.Image.Restore(page, scratch); err != nil {
		return fmt.Errorf("image of block %d: %w", blk.ID, err)
	}
	if !page.IsNew() {
		page.SetLSN(lsn)
	}
	return nil
}
