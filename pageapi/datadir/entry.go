package datadir

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"everpage/wal/pg"
)

// Entry is one file, directory or symbolic link of a tree. Its content is made when it is read. It may be read concurrently.
type Entry struct {
	Path string // below the data directory, with slashes
	Mode fs.FileMode
	Size int64
	Link string // a symbolic link's target

	content content
}

// content makes the bytes of a file: dst full, from an offset, both multiples of the page size but at the file's end, never beyond it.
type content interface {
	read(ctx context.Context, offset int64, dst []byte) error
}

// ReadAt fills dst from the offset. It is short at the end of the file only, with io.EOF. Reads of whole pages at page boundaries are the fast
// ones.
func (e *Entry) ReadAt(ctx context.Context, dst []byte, offset int64) (int, error) {
	if e.content == nil {
		return 0, fmt.Errorf("%s is not a regular file", e.Path)
	}
	if offset < 0 {
		return 0, fmt.Errorf("%s: negative offset %d", e.Path, offset)
	}
	var end error
	if offset >= e.Size {
		return 0, io.EOF
	}
	if int64(len(dst)) > e.Size-offset {
		dst, end = dst[:e.Size-offset], io.EOF
	}
	if len(dst) == 0 {
		return 0, nil
	}
	first := offset &^ (pg.BlockSize - 1)
	last := min((offset+int64(len(dst))+pg.BlockSize-1)&^(pg.BlockSize-1), e.Size)
	if first == offset && last == offset+int64(len(dst)) {
		if err := e.content.read(ctx, offset, dst); err != nil {
			return 0, fmt.Errorf("%s: %w", e.Path, err)
		}
		return len(dst), end
	}
	whole := make([]byte, last-first)
	if err := e.content.read(ctx, first, whole); err != nil {
		return 0, fmt.Errorf("%s: %w", e.Path, err)
	}
	return copy(dst, whole[offset-first:]), end
}

// static is content that is kept.
type static []byte

func (s static) read(_ context.Context, offset int64, dst []byte) error {
	copy(dst, s[offset:])
	return nil
}

// padded is kept content with zeros behind it.
type padded []byte

func (p padded) read(_ context.Context, offset int64, dst []byte) error {
	n := 0
	if offset < int64(len(p)) {
		n = copy(dst, p[offset:])
	}
	clear(dst[n:])
	return nil
}

// pageFile is the pages of one file of a relation fork or of an SLRU.
type pageFile struct {
	src       Source
	fork      pg.RelFork
	first     pg.BlockNumber // of the file
	known     pg.BlockNumber // blocks that the source has; what is behind is zero
	at        pg.LSN
	relation  bool // pages have a header
	checksums bool
	patches   []patch
}

// patch sets one byte of a page.
type patch struct {
	block  pg.BlockNumber
	offset int
	value  byte
}

func (p *pageFile) read(ctx context.Context, offset int64, dst []byte) error {
	block := p.first + pg.BlockNumber(offset/pg.BlockSize)
	n := 0
	if end := p.first + p.known; block < end {
		n = min(len(dst), int(end-block)*pg.BlockSize)
		if err := p.src.ReadBlocks(ctx, p.fork, block, p.at, dst[:n]); err != nil {
			return err
		}
	}
	clear(dst[n:])
	if !p.relation {
		return nil
	}
	for i := 0; i < n; i += pg.BlockSize {
		page := pg.Page(dst[i : i+pg.BlockSize])
		if page.IsNew() {
			continue
		}
		b := block + pg.BlockNumber(i/pg.BlockSize)
		if page.LSN() > p.at {
			return fmt.Errorf("block %d bears LSN %s, which is beyond %s: the page is not of this LSN", b, page.LSN(), p.at)
		}
		for _, c := range p.patches {
			if c.block == b {
				page[c.offset] = c.value
			}
		}
		if p.checksums {
			page.SetChecksum(b)
		}
	}
	return nil
}
