package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"everpage/chunk"
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// budget keeps what a node takes on disk below Config.DiskBudget: beyond a mark the chunks that were read longest ago are evicted up to what the store has of
// them, until another mark is reached. Reads of those ask the store. What is read again comes back where there is room, or where others were not read for longer.
//
// Compactions write tables beside those that they replace. What they take for a while is not what eviction goes by, since nothing that is evicted would make it less: the
// marks leave room for it, and the store keeps its compactions as small as that (chunk.Options.DiskBytes).
type budget struct {
	n         *Node
	high, low uint64 // marks of what stays
	clock     atomic.Int64
	full      atomic.Bool // less is free than a mark, as of the last look
	held      *heldShard  // whose chunks come back, and stay until the backup has made of them what it wants; nil: none. One at a time: together they may be all
	reads     sync.Map    // placement.Chunk → *atomic.Int64: when it was read last, in seconds

	mu   sync.Mutex
	last pb.DiskBudget // as status shows it
	said time.Time     // when it was last said that it can't be met
}

type heldShard struct {
	branch uint32
	shard  placement.Shard
}

const (
	leastBudget = 16 << 20
	// mostPassing is what the compactions of any store take together, about.
	mostPassing = 2 << 30
	// budgetEvery is how often the disk is looked at, budgetShare bounds the part of its time that a node does.
	budgetEvery = 200 * time.Millisecond
	budgetShare = 50
	// Chunks that take less are not worth it, while there are others.
	leastChunk = 4 << 10
	// evictTogether is how many chunks go in one step.
	evictTogether = 64
	// colder is for how much longer a chunk must not have been read than another one that comes in its place.
	colder = 60
	// saidEvery is how often the log repeats that the budget can't be met.
	saidEvery = time.Minute
)

// complete checks a budget and fits to it what else takes disk space by its size.
func (c *Config) completeBudget() error {
	switch {
	case c.DiskBudget == 0:
		return nil
	case c.Store == "":
		return errors.New("--disk-budget needs --store: what leaves the disk must be somewhere else")
	case c.DiskBudget < leastBudget:
		return fmt.Errorf("--disk-budget %d: want at least %d", c.DiskBudget, leastBudget)
	}
	// Tables lie over each other before they are merged, and none of that can be evicted piece by piece.
	c.RunBytes = min(c.RunBytes, max(int64(c.DiskBudget/64), 512<<10))
	c.SpoolKeep = min(c.SpoolKeep, c.DiskBudget/16)
	return nil
}

// passing is how much of the budget is left free for compactions.
func (c *Config) passing() uint64 { return max(c.DiskBudget/16, min(c.DiskBudget/3, mostPassing)) }

// spare is what the store keeps back for when the disk is full; 0: what it keeps back by itself.
func (c *Config) spare() int64 { return int64(min(c.DiskBudget/32, 32<<20)) }

// backupBytes is after how much WAL what is new is uploaded before its time: with a budget it can't be evicted before.
func (c *Config) backupBytes() uint64 {
	if c.DiskBudget == 0 {
		return backupBytes
	}
	return min(backupBytes, c.DiskBudget/16)
}

// spoolReserve is how much of a WAL segment's space is taken at once; 0: all of it.
func (c *Config) spoolReserve() int64 {
	if c.DiskBudget == 0 {
		return 0
	}
	return 1 << 20
}

func newBudget(n *Node) *budget {
	if n.cfg.DiskBudget == 0 {
		return nil
	}
	b := &budget{n: n}
	b.high = n.cfg.DiskBudget - n.cfg.passing() - uint64(n.cfg.RunBytes)
	b.low = b.high - n.cfg.DiskBudget/8
	b.last.Bytes = n.cfg.DiskBudget
	b.clock.Store(time.Now().Unix())
	return b
}

// read notes that a page was asked for.
func (b *budget) read(key pg.PageKey, segmentBlocks uint32) {
	if b == nil {
		return
	}
	c := placement.ChunkOf(key, segmentBlocks)
	at, ok := b.reads.Load(c)
	if !ok {
		at, _ = b.reads.LoadOrStore(c, &atomic.Int64{})
	}
	at.(*atomic.Int64).Store(b.clock.Load())
}

// readAt is when a chunk was read last, 0 if it was not since the start.
func (b *budget) readAt(c placement.Chunk) int64 {
	if at, ok := b.reads.Load(c); ok {
		return at.(*atomic.Int64).Load()
	}
	return 0
}

// used is what the node takes on disk, and what of it stays once compactions are done.
func (b *budget) used() (all, stays uint64) {
	passing := b.n.store.Stats().Passing
	all = uint64(diskBytes(b.n.cfg.Data) + b.n.backups.uploader.Gathered())
	return all, all - min(passing, all)
}

// stays is what of all that the node takes does not go by itself.
func (b *budget) stays() uint64 {
	_, n := b.used()
	return n
}

// room tells whether something may come that takes so much.
func (b *budget) room(bytes int64) bool { return b.stays()+uint64(max(bytes, 0)) <= b.low }

// diskBytes is the disk space that a directory takes.
func diskBytes(dir string) (sum int64) {
	seen := map[uint64]bool{} // files with several names
	filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil // it went meanwhile
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok:
			sum += info.Size()
		case st.Nlink > 1 && seen[st.Ino]:
		default:
			seen[st.Ino] = st.Nlink > 1
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}

// keepBudget watches the disk until ctx ends.
func (n *Node) keepBudget(ctx context.Context) error {
	b := n.budget
	if b == nil {
		return nil
	}
	wait := budgetEvery
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-time.After(wait):
			b.clock.Store(now.Unix())
		}
		began := time.Now()
		all, used := b.used()
		wait = max(budgetEvery, budgetShare*time.Since(began))
		b.full.Store(used > b.low)
		b.note(func(l *pb.DiskBudget) { l.UsedBytes, l.EvictedChunks = all, b.evicted() })
		var err error
		if used > b.high {
			err = b.shed(ctx, used-b.low, math.MaxInt64, nil)
			if used = b.stays(); err == nil && used > b.high {
				err = b.why(used)
			}
		} else {
			err = b.fill(ctx, used)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.say(err)
	}
}

// note changes what status shows.
func (b *budget) note(fn func(l *pb.DiskBudget)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn(&b.last)
}

// say tells that the budget can't be met, or can again. The node goes on either way.
func (b *budget) say(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	b.mu.Lock()
	before := b.last.Error
	b.last.Error = text
	loud := text != "" && time.Since(b.said) >= saidEvery
	if loud {
		b.said = time.Now()
	}
	b.mu.Unlock()
	switch {
	case loud:
		b.n.cfg.Logger.Error("the disk budget is not kept; the node goes on", "error", text)
	case text == "" && before != "":
		b.n.cfg.Logger.Info("the disk budget is kept again", "used", b.stays(), "budget", b.n.cfg.DiskBudget)
	}
}

// evicted counts the chunks of which less is here than of their shards.
func (b *budget) evicted() (n uint64) {
	for _, branch := range b.n.store.Branches() {
		n += uint64(len(b.n.store.Evicted(branch)))
	}
	return n
}

// why explains that nothing more can go.
func (b *budget) why(used uint64) error {
	spool := uint64(diskBytes(filepath.Join(b.n.cfg.Data, spoolDir)))
	lag, at := b.n.backupLag()
	return fmt.Errorf("%d bytes are taken, of these %d of WAL, and a budget of %d leaves %d for what stays: what is here is newer than the backup, which is %d bytes behind at %s, or is small, or is being written",
		used, spool, b.n.cfg.DiskBudget, b.high, lag, at)
}

// victim is a chunk that may be evicted.
type victim struct {
	branch uint32
	shard  placement.Shard
	what   chunk.Eviction
	bytes  uint64
	read   int64
}

// victims lists what may be evicted, what was read longest ago first.
func (b *budget) victims(ctx context.Context, before int64) (list []victim, err error) {
	n := b.n
	for _, branch := range n.store.Branches() {
		durable, _ := n.store.Durable(branch)
		err := n.store.Usage(ctx, branch, func(u chunk.ChunkUsage) error {
			upTo := min(n.backups.registry.Current(branch, u.Shard).LSN, durable.Resume)
			have := n.store.ChunkCoverage(branch, u.Chunk)
			v := victim{branch, u.Shard, chunk.Eviction{Chunk: u.Chunk, UpTo: upTo}, u.Bytes, b.readAt(u.Chunk)}
			switch {
			case upTo == 0, !have.Owned, have.From > upTo, !have.Complete && have.From == upTo, u.Bytes < leastChunk, v.read > before, b.held != nil && *b.held == heldShard{branch, u.Shard}:
				return nil
			case !have.Complete: // only what came since it was evicted before
				if p, _ := n.store.Progress(branch); p.Readable > have.From {
					v.bytes = uint64(float64(u.Bytes) * float64(upTo-have.From) / float64(p.Readable-have.From))
				}
			}
			list = append(list, v)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(x, y victim) int { return cmp.Or(cmp.Compare(x.read, y.read), cmp.Compare(y.bytes, x.bytes)) })
	return list, nil
}

// shed evicts about so many bytes of chunks that were not read after a time.
func (b *budget) shed(ctx context.Context, bytes uint64, before int64, spare func(v *victim) bool) error {
	list, err := b.victims(ctx, before)
	if err != nil {
		return err
	}
	var gone uint64
	var errs []error
	for len(list) > 0 && gone < bytes {
		var together []victim
		for len(list) > 0 && gone < bytes && len(together) < evictTogether && (len(together) == 0 || list[0].branch == together[0].branch) {
			if spare == nil || !spare(&list[0]) {
				gone += list[0].bytes
				together = append(together, list[0])
			}
			list = list[1:]
		}
		if err := b.evict(ctx, together); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, b.n.store.Reclaim(ctx))...)
}

// evict evicts chunks of a branch in one step, or, where that can't be, each for itself.
func (b *budget) evict(ctx context.Context, list []victim) error {
	if len(list) == 0 {
		return nil
	}
	what := make([]chunk.Eviction, len(list))
	for i := range list {
		what[i] = list[i].what
	}
	err := b.n.store.Evict(ctx, list[0].branch, what...)
	if err == nil {
		b.note(func(l *pb.DiskBudget) { l.Evictions += uint64(len(list)) })
		b.n.cfg.Logger.Info("chunks are evicted to the store", "branch", list[0].branch, "chunks", len(list), "read_last", list[len(list)-1].read)
		return nil
	}
	if len(list) == 1 || ctx.Err() != nil {
		return err
	}
	var errs []error
	for i := range list {
		errs = append(errs, b.evict(ctx, list[i:i+1]))
	}
	return errors.Join(errs...)
}

// back is a chunk that is to come back.
type back struct {
	branch uint32
	chunk  placement.Chunk
	read   int64
	wanted bool // its shard's layers in the store wait for it
}

// fill brings a chunk back that was read lately, or that the backup waits for.
func (b *budget) fill(ctx context.Context, used uint64) error {
	n := b.n
	if b.held != nil && !n.backups.uploader.Wanted(b.held.branch, b.held.shard) {
		b.held = nil
	}
	var best *back
	for _, branch := range n.store.Branches() {
		for _, c := range n.store.Evicted(branch) {
			of := heldShard{branch, placement.ShardOf(c, n.store.Shards())}
			x := back{branch, c, b.readAt(c), n.backups.uploader.Wanted(branch, of.shard) && (b.held == nil || *b.held == of)}
			if (x.wanted || x.read >= b.clock.Load()-colder) && (best == nil || x.wanted && !best.wanted || x.wanted == best.wanted && x.read > best.read) {
				best = &x
			}
		}
	}
	if best == nil {
		return nil
	}
	if best.wanted {
		b.held = &heldShard{best.branch, placement.ShardOf(best.chunk, n.store.Shards())}
	}
	size, err := n.backups.filler.ChunkBytes(ctx, best.branch, best.chunk)
	if err != nil {
		return nil // the store is away: backups say so
	}
	if used+uint64(size) > b.low {
		before := best.read - colder
		if best.wanted {
			before = math.MaxInt64
		}
		shard := placement.ShardOf(best.chunk, n.store.Shards())
		err := b.shed(ctx, used+uint64(size)-b.low, before, func(v *victim) bool { return v.branch == best.branch && v.shard == shard })
		if used = b.stays(); err != nil || used+uint64(size) > b.high {
			if best.wanted && err == nil {
				err = fmt.Errorf("shard %d of branch %d is to get fewer layers in the store, and there is no room for it here: they grow in number", shard, best.branch)
			}
			return err
		}
	}
	if err := n.backups.filler.Chunk(ctx, best.branch, best.chunk); err != nil {
		if ctx.Err() == nil {
			n.cfg.Logger.Warn("a chunk that is read doesn't come back from the store; reads go on there", "branch", best.branch, "chunk", best.chunk, "error", err)
		}
		return nil
	}
	b.note(func(l *pb.DiskBudget) { l.Fills++ })
	n.cfg.Logger.Info("a chunk came back from the store", "branch", best.branch, "chunk", best.chunk, "bytes", size)
	return nil
}

// status is how the budget is kept; nil without one.
func (b *budget) status() *pb.DiskBudget {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := &b.last
	return &pb.DiskBudget{Bytes: l.Bytes, UsedBytes: l.UsedBytes, EvictedChunks: l.EvictedChunks, Evictions: l.Evictions, Fills: l.Fills, Error: l.Error}
}

// served tells whether reads of a shard find all they need here or, where a node may take so much only, in the store.
func (n *Node) served(branch uint32, p placement.Place) bool {
	have := n.coverage(branch, p)
	if have.Complete || n.budget == nil || p.Chunk != (placement.Chunk{}) || !have.Owned {
		return have.Complete
	}
	c := n.backups.registry.Current(branch, p.Shard)
	return c.Ref != "" && have.From <= c.LSN && n.budget.full.Load()
}
