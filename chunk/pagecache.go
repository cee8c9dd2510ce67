package chunk

import (
	"sync"

	"everpage/wal/pg"
)

// cacheFrom is the number of deltas from which on a page is worth keeping.
const cacheFrom = 8

// pageCache keeps pages that took many deltas to make, each under the version that it is: the newest delta in it. The next read of the page, at that LSN
// or a later one, starts from it. One slot for each hash: a page pushes another one out.
type pageCache struct {
	slots []cacheSlot
}

type cacheSlot struct {
	mu     sync.Mutex
	branch uint64 // branchState.id
	key    pg.PageKey
	lsn    pg.LSN // 0: empty
	page   pg.Page
}

func newPageCache(bytes int64) *pageCache {
	return &pageCache{slots: make([]cacheSlot, max(0, bytes/pg.BlockSize))}
}

func (c *pageCache) slot(branch uint64, key pg.PageKey) *cacheSlot {
	if len(c.slots) == 0 {
		return nil
	}
	p := makePrefix(classPage, uint32(branch), key.Spc, key.DB, key.Rel, uint8(key.Fork), key.Block)
	return &c.slots[p.hash()%uint64(len(c.slots))]
}

// newest tells which version of the page is kept; 0 if none.
func (c *pageCache) newest(branch uint64, key pg.PageKey) pg.LSN {
	s := c.slot(branch, key)
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.branch != branch || s.key != key {
		return 0
	}
	return s.lsn
}

func (c *pageCache) get(branch uint64, key pg.PageKey, lsn pg.LSN, dst pg.Page) bool {
	s := c.slot(branch, key)
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lsn != lsn || s.branch != branch || s.key != key {
		return false
	}
	copy(dst, s.page)
	return true
}

func (c *pageCache) put(branch uint64, key pg.PageKey, lsn pg.LSN, page pg.Page) {
	s := c.slot(branch, key)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.page == nil {
		s.page = make(pg.Page, pg.BlockSize)
	}
	s.branch, s.key, s.lsn = branch, key, lsn
	copy(s.page, page)
}
