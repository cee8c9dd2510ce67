package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"everpage/pageapi"
	"everpage/wal/pg"
)

// pageAt is a page of a branch at an LSN.
type pageAt struct {
	key pg.PageKey
	at  pageapi.Position
}

// readers read random pages all the while and hold each answer against what is known: a page at an LSN never changes, whoever answers and whatever was killed. At
// the LSNs of anchors that was proven against the stopped primary's own files; at others the first answer is the one that all later ones must equal.
type readers struct {
	client *pageapi.Client
	cancel context.CancelFunc
	done   sync.WaitGroup
	still  sync.RWMutex // locked while no node is there that could answer

	mu       sync.Mutex
	known    map[pageAt][sha256.Size]byte
	order    []pageAt // of known, to draw from
	rels     []pg.RelFork
	ats      []pageapi.Position // that every node can answer
	compared int
	read     int
	errors   []string
	wrong    []string
	longest  time.Duration // between two answers to one reader
}

const (
	readTimeout = 10 * time.Second
	knownPages  = 200_000
)

func startReaders(ctx context.Context, addresses []string, seed uint64) (*readers, error) {
	c, err := pageapi.NewClient(addresses)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &readers{client: c, cancel: cancel, known: map[pageAt][sha256.Size]byte{}}
	for i := range uint64(3) {
		random := rand.New(rand.NewPCG(seed, 100+i))
		r.done.Go(func() { r.loop(ctx, random) })
	}
	return r, nil
}

func (r *readers) stop() error {
	r.cancel()
	r.done.Wait()
	return r.client.Close()
}

// draw chooses what to read: half of the time something that was read before.
func (r *readers) draw(random *rand.Rand) (pageAt, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.order) > 0 && (random.IntN(2) == 0 || len(r.order) >= knownPages) {
		return r.order[random.IntN(len(r.order))], true
	}
	if len(r.rels) == 0 || len(r.ats) == 0 {
		return pageAt{}, false
	}
	return pageAt{pg.PageKey{RelFork: r.rels[random.IntN(len(r.rels))], Block: pg.BlockNumber(random.IntN(1700))}, r.ats[random.IntN(len(r.ats))]}, true
}

func (r *readers) loop(ctx context.Context, random *rand.Rand) {
	page := make(pg.Page, pg.BlockSize)
	last := time.Now()
	for ctx.Err() == nil {
		what, ok := r.draw(random)
		if !ok {
			last = time.Now()
			breathe(ctx)
			continue
		}
		if !r.still.TryRLock() {
			r.still.RLock()
			last = time.Now()
		}
		bounded, cancel := context.WithTimeout(ctx, readTimeout)
		_, err := r.client.Pages(bounded, what.at, what.key.RelFork, []pg.BlockNumber{what.key.Block}, page)
		cancel()
		r.still.RUnlock()
		if ctx.Err() != nil {
			return
		}
		absent := pageapi.CodeOf(err) == pageapi.NotFound
		now := time.Now()
		if err == nil || absent {
			r.mu.Lock()
			r.longest = max(r.longest, now.Sub(last))
			r.mu.Unlock()
			last = now
		}
		r.judge(what, page, absent, err)
		select { // leave the machine to those that are under test
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (r *readers) judge(what pageAt, page pg.Page, absent bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && !absent {
		r.errors = append(r.errors, fmt.Sprintf("%s at %s of branch %d: %v", what.key, what.at.LSN, what.at.Branch, err))
		return
	}
	sum := sha256.Sum256(page)
	if absent {
		sum = [sha256.Size]byte{}
	}
	r.read++
	if have, ok := r.known[what]; ok {
		r.compared++
		if have != sum {
			r.wrong = append(r.wrong, fmt.Sprintf("%s at %s of branch %d is not what it was", what.key, what.at.LSN, what.at.Branch))
		}
		return
	}
	if len(r.order) < knownPages {
		r.known[what] = sum
		r.order = append(r.order, what)
	}
}

// at lets the readers read at one more position, which every node can answer.
func (r *readers) at(at pageapi.Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ats) == 64 {
		r.ats = r.ats[1:]
	}
	r.ats = append(r.ats, at)
}

// tally is what the readers saw since the last one.
type tally struct {
	read, compared int
	errors, wrong  []string
	longest        time.Duration
}

func (r *readers) tally() tally {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := tally{r.read, r.compared, r.errors, r.wrong, r.longest}
	r.read, r.compared, r.errors, r.wrong, r.longest = 0, 0, nil, nil, 0
	return t
}

func breathe(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
}
