package verify

import (
	"context"
	"errors"

	"everpage/chunk"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// lostBits explains visibility bits that only the primary has. Redo sets and clears bits where the primary does, so there is one reason only:
// CREATE DATABASE … STRATEGY wal_log logs the new map's pages as pages with a standard header (RelationCopyStorageUsingBuffer), which makes their
// whole body a hole. The primary keeps its bits; whoever replays that image has none, until they are set again.
//
// So a bit may be missing where the page's newest image or initialisation is an XLOG/FPI without a body, and our page has not had the bit since.
type lostBits struct {
	store *chunk.Store
	pages map[pg.PageKey]*lostPage
}

// lostPage is what is known of one page of a map, up to an LSN.
type lostPage struct {
	seen  pg.LSN // versions up to here were looked at
	begin pg.LSN // of the image without a body; 0: the page does not begin with one
	had   [pg.BlockSize]byte
}

// xlogFPI is XLOG_FPI, full-page images that no other change comes with.
const xlogFPI = 0xB0

// maxCopies bounds how many database copies a map may be a copy of.
const maxCopies = 64

var errSeen = errors.New("looked at before")

// explained tells whether all those bits may be missing from page key at an LSN. Calls for one page come in the order of LSNs.
func (l *lostBits) explained(ctx context.Context, key pg.PageKey, at pg.LSN, missing []redo.VMBits) (bool, error) {
	p := l.pages[key]
	if p == nil {
		p = &lostPage{}
		if l.pages == nil {
			l.pages = map[pg.PageKey]*lostPage{}
		}
		l.pages[key] = p
	}
	if err := l.read(ctx, key, at, p); err != nil || p.begin == 0 {
		return false, err
	}
	for _, m := range missing {
		in := int(m.Heap % vmBlocksPerPage)
		if p.had[pg.PageHeaderSize+in/4]>>(2*(in%4))&m.Bits != 0 {
			return false, nil
		}
	}
	return true, nil
}

// vmBlocksPerPage is how many heap blocks a page of the map tells of.
const vmBlocksPerPage = (pg.BlockSize - pg.PageHeaderSize) * 4

// version is one of a page that may lie in another database by its name now.
type version struct {
	key pg.PageKey
	chunk.Version
}

// read takes account of the versions since p.seen.
func (l *lostBits) read(ctx context.Context, key pg.PageKey, at pg.LSN, p *lostPage) error {
	cut, source, err := l.cut(ctx, key, at)
	if err != nil {
		return err
	}
	if cut > p.seen {
		*p = lostPage{seen: cut}
	} else {
		source = pg.RelFileLocator{}
	}
	fresh, began, err := l.versions(ctx, nil, key, p.seen, at)
	for range maxCopies {
		if err != nil || began || source == (pg.RelFileLocator{}) {
			break
		}
		key.RelFileLocator = source
		upTo := cut - 1
		if cut, source, err = l.cut(ctx, key, upTo); err == nil {
			fresh, began, err = l.versions(ctx, fresh, key, cut, upTo)
		}
	}
	if err != nil {
		return err
	}
	p.seen = at
	return l.take(ctx, fresh, p)
}

// versions appends a page's versions beyond since up to at, newest first, and ends at one that doesn't need those before it.
func (l *lostBits) versions(ctx context.Context, to []version, key pg.PageKey, since, at pg.LSN) (out []version, began bool, err error) {
	err = l.store.History(ctx, branch, key, func(v chunk.Version) error {
		switch {
		case v.LSN > at:
			return nil
		case v.LSN <= since:
			return errSeen
		}
		to = append(to, version{key, v})
		if began = begins(v); began {
			return errSeen
		}
		return nil
	})
	if errors.Is(err, errSeen) {
		err = nil
	}
	return to, began, err
}

func begins(v chunk.Version) bool { return v.Kind == chunk.KindImage || v.Kind == chunk.KindInit }

// cut is the newest LSN at or before at from where on a page's versions count, and what the page was a copy of there, if it was.
func (l *lostBits) cut(ctx context.Context, key pg.PageKey, at pg.LSN) (cut pg.LSN, source pg.RelFileLocator, err error) {
	err = l.store.Sizes(ctx, branch, key.RelFork, func(v chunk.SizeVersion) error {
		if v.LSN > at || !v.Cuts(key.Block) {
			return nil
		}
		cut, source = v.LSN, v.Source
		return errSeen
	})
	if errors.Is(err, errSeen) {
		err = nil
	}
	return cut, source, err
}

// take enters versions, newest first, of which the last may be a beginning.
func (l *lostBits) take(ctx context.Context, versions []version, p *lostPage) error {
	progress, _ := l.store.Progress(branch)
	page := make(pg.Page, pg.BlockSize)
	for i := len(versions) - 1; i >= 0; i-- {
		v := versions[i]
		if begins(v.Version) {
			p.begin = 0
			clear(p.had[:])
			if wal.Rmgr(v.Origin.Rmgr) == wal.RmXLOG && v.Origin.Info&0xF0 == xlogFPI && v.Bytes <= emptyImage {
				p.begin = v.LSN
				continue
			}
		}
		err := l.store.Page(ctx, branch, v.key, max(v.LSN, progress.Consistent), page)
		if errors.Is(err, chunk.ErrNotFound) && v.LSN < progress.Consistent {
			continue // gone before the first LSN that can be read
		}
		if err != nil {
			return err
		}
		for i := range page {
			p.had[i] |= page[i]
		}
	}
	return nil
}

// emptyImage bounds the content of an image of a map's page that has no bits: the page header and where the hole is.
const emptyImage = pg.PageHeaderSize + 4
