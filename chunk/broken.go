package chunk

import (
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"everpage/wal/pg"
)

// maxBroken bounds how many pages are remembered. Whoever has more has been told enough.
const maxBroken = 10_000

// brokenFile lists them, so that they are known after a start, too.
const brokenFile = "BROKEN"

// brokenEvery is how often the list is written at most while reads find more.
const brokenEvery = time.Second

// brokenPages remembers pages of which a read saw that redo of a version fails. Nothing in the tables tells that: whether a version can be made shows when it is
// made. What is here need not be broken at another LSN, and is asked again.
type brokenPages struct {
	mu    sync.Mutex
	pages map[brokenPage]struct{}
	dirty bool
	saved time.Time
}

type brokenPage struct {
	Branch uint32
	Key    pg.PageKey
}

func (s *Store) addBroken(branch uint32, key pg.PageKey) {
	b := &s.broken
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pages == nil {
		b.pages = map[brokenPage]struct{}{}
	}
	if _, known := b.pages[brokenPage{branch, key}]; known || len(b.pages) >= maxBroken {
		return
	}
	b.pages[brokenPage{branch, key}] = struct{}{}
	b.dirty = true
	if time.Since(b.saved) >= brokenEvery {
		s.writeBroken()
	}
}

// writeBroken writes the list. Under broken.mu.
func (s *Store) writeBroken() {
	b := &s.broken
	if !b.dirty {
		return
	}
	b.saved = time.Now()
	text, err := json.Marshal(slices.Collect(maps.Keys(b.pages)))
	if err == nil {
		err = writeFile(s.fs, s.opt.Dir, brokenFile, string(text))
	}
	if err != nil {
		s.log.Warn("what is known of pages that can't be made is not kept", "err", err)
		return
	}
	b.dirty = false
}

// saveBroken writes the list at the end.
func (s *Store) saveBroken() {
	s.broken.mu.Lock()
	defer s.broken.mu.Unlock()
	s.writeBroken()
}

// loadBroken reads the list, if there is one. One that can't be read is as good as none: reads find the pages again.
func (s *Store) loadBroken() {
	f, err := s.fs.Open(s.fs.PathJoin(s.opt.Dir, brokenFile))
	if err != nil {
		return
	}
	defer f.Close()
	var list []brokenPage
	if json.NewDecoder(f).Decode(&list) != nil {
		return
	}
	s.broken.pages = map[brokenPage]struct{}{}
	for _, p := range list[:min(len(list), maxBroken)] {
		s.broken.pages[p] = struct{}{}
	}
}

// of lists the pages of a branch in key order.
func (b *brokenPages) of(branch uint32) (keys []pg.PageKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := range b.pages {
		if p.Branch == branch {
			keys = append(keys, p.Key)
		}
	}
	slices.SortFunc(keys, pg.PageKey.Compare)
	return keys
}
