package redo

import (
	"errors"

	"everpage/wal"
	"everpage/wal/pg"
)

// restoreImage unpacks a block's image into page (RestoreBlockImage).
func restoreImage(page pg.Page, blk *wal.Block) error {
	img := &blk.Image
	if img.Compression != wal.NoCompression {
		return errors.New("compressed images can't be unpacked")
	}
	start, end := int(img.HoleOffset), int(img.HoleOffset)+int(img.HoleLength)
	if end > pg.BlockSize || len(img.Data) != pg.BlockSize-int(img.HoleLength) {
		return errors.New("image and hole don't make a page")
	}
	copy(page, img.Data[:start])
	clear(page[start:end])
	copy(page[end:], img.Data[start:])
	return nil
}
