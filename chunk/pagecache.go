package chunk

import (
	"math/bits"
	"sync"

	"everpage/wal/pg"
)

// cacheFrom is the number of deltas from which on a page is dear: the cache keeps it rather than one that is made quickly.
const cacheFrom = 8

// cacheWays is the number of pages whose keys hash to the same set.
const cacheWays = 8

// pageCache keeps pages as they were made, each under the version that it is: its newest delta or image. A read of the page at a later LSN starts from it.
//
// Each page also bears the highest LSN that it was read at. What was readable then is complete, so the page is the same at every LSN between its version
// and that one, and a read there needs nothing else.
type pageCache struct {
	sets []cacheSet
}

type cacheSet struct {
	mu   sync.Mutex
	hand uint8
	ways [cacheWays]cacheSlot
}

type cacheSlot struct {
	branch uint64 // branchState.id
	key    pg.PageKey
	lsn    pg.LSN // 0: empty
	upto   pg.LSN // the page is the same up to here
	page   pg.Page
	sum    uint16 // pd_checksum, which page doesn't have, where summed
	summed bool
	used   bool // since the hand passed
	dear   bool
}

func newPageCache(bytes int64) *pageCache {
	return &pageCache{sets: make([]cacheSet, max(0, bytes/pg.BlockSize/cacheWays))}
}

// set locks the set that a page belongs to; nil where nothing is kept.
func (c *pageCache) set(branch uint64, key pg.PageKey) *cacheSet {
	if len(c.sets) == 0 {
		return nil
	}
	h1, l1 := bits.Mul64(uint64(key.Rel)<<32|uint64(key.Block)^0x9E3779B97F4A7C15, uint64(key.DB)<<32|uint64(key.Spc)^0xD6E8FEB86659FD93)
	h2, l2 := bits.Mul64(h1^l1^0xA0761D6478BD642F, branch<<8^uint64(key.Fork)^0xE7037ED1A0B428DB)
	s := &c.sets[(h2^l2)%uint64(len(c.sets))]
	s.mu.Lock()
	return s
}

func (s *cacheSet) find(branch uint64, key pg.PageKey) *cacheSlot {
	for i := range s.ways {
		if w := &s.ways[i]; w.key == key && w.branch == branch && w.lsn != 0 {
			return w
		}
	}
	return nil
}

// newest tells which version of the page is kept; 0 if none.
func (c *pageCache) newest(branch uint64, key pg.PageKey) (lsn pg.LSN) {
	s := c.set(branch, key)
	if s == nil {
		return 0
	}
	defer s.mu.Unlock()
	if w := s.find(branch, key); w != nil {
		lsn = w.lsn
	}
	return lsn
}

// get copies the version at lsn.
func (c *pageCache) get(branch uint64, key pg.PageKey, lsn pg.LSN, dst pg.Page) bool {
	s := c.set(branch, key)
	if s == nil {
		return false
	}
	defer s.mu.Unlock()
	w := s.find(branch, key)
	if w == nil || w.lsn != lsn {
		return false
	}
	w.used = true
	copy(dst, w.page)
	return true
}

// at copies the page as it is at an LSN, if that is known without looking further. summed tells that dst has pd_checksum set.
func (c *pageCache) at(branch uint64, key pg.PageKey, at pg.LSN, dst pg.Page) (ok, summed bool) {
	s := c.set(branch, key)
	if s == nil {
		return false, false
	}
	defer s.mu.Unlock()
	w := s.find(branch, key)
	if w == nil || at < w.lsn || at > w.upto {
		return false, false
	}
	w.used = true
	copy(dst, w.page)
	if w.summed {
		dst.SetStoredChecksum(w.sum)
	}
	return true, w.summed
}

// put keeps a version that was made.
func (c *pageCache) put(branch uint64, key pg.PageKey, lsn pg.LSN, page pg.Page) {
	c.keep(branch, key, lsn, lsn, true, page)
}

// keep keeps a page that is the same from lsn up to another LSN. A page that is not dear takes no place of one that was used lately.
func (c *pageCache) keep(branch uint64, key pg.PageKey, lsn, upto pg.LSN, dear bool, page pg.Page) {
	s := c.set(branch, key)
	if s == nil {
		return
	}
	defer s.mu.Unlock()
	w := s.find(branch, key)
	switch {
	case w == nil:
		if w = s.victim(dear); w == nil {
			return
		}
	case w.lsn == lsn:
		w.upto = max(w.upto, upto)
		return
	case w.lsn > lsn: // someone reads the past; the newer version serves the writer too
		if w.used {
			w.used = false
			return
		}
	}
	if w.page == nil {
		w.page = make(pg.Page, pg.BlockSize)
	}
	*w = cacheSlot{branch: branch, key: key, lsn: lsn, upto: upto, page: w.page, dear: dear, used: dear}
	copy(w.page, page)
}

// victim is the slot to be filled next. Each page that was used has a second chance, a dear one two.
func (s *cacheSet) victim(dear bool) *cacheSlot {
	for range 2*cacheWays + 1 {
		w := &s.ways[s.hand%cacheWays]
		s.hand++
		switch {
		case w.lsn == 0 || !w.used && (dear || !w.dear):
			return w
		case w.used:
			w.used = false
		default:
			w.dear = false
		}
		if !dear && s.hand%cacheWays == 0 {
			return nil // the hand went once around a set of pages that are in use
		}
	}
	return nil
}

// sum adds the page's pd_checksum to what is kept of it.
func (c *pageCache) sum(branch uint64, key pg.PageKey, lsn pg.LSN, sum uint16) {
	s := c.set(branch, key)
	if s == nil {
		return
	}
	defer s.mu.Unlock()
	if w := s.find(branch, key); w != nil && w.lsn == lsn {
		w.sum, w.summed = sum, true
	}
}
