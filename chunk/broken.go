package chunk

import (
	"slices"
	"sync"

	"everpage/wal/pg"
)

// maxBroken bounds how many pages are remembered. Whoever has more has been told enough.
const maxBroken = 10_000

// brokenPages remembers pages of which a read saw that redo of a version fails. Nothing on disk tells that: whether a version can be made shows when it is
// made. What is here need not be broken at another LSN, and is asked again.
type brokenPages struct {
	mu    sync.Mutex
	pages map[brokenPage]struct{}
}

type brokenPage struct {
	branch uint32
	key    pg.PageKey
}

func (b *brokenPages) add(branch uint32, key pg.PageKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pages == nil {
		b.pages = map[brokenPage]struct{}{}
	}
	if len(b.pages) < maxBroken {
		b.pages[brokenPage{branch, key}] = struct{}{}
	}
}

// of lists the pages of a branch in key order.
func (b *brokenPages) of(branch uint32) (keys []pg.PageKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := range b.pages {
		if p.branch == branch {
			keys = append(keys, p.key)
		}
	}
	slices.SortFunc(keys, pg.PageKey.Compare)
	return keys
}
