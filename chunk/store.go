package chunk

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"

	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// formatVersion is the version of all that a store's directory holds. A store refuses a directory with a later one.
const formatVersion = 3

// Runs in memory: one that is filled, and at most maxFrozen that become tables.
const (
	maxFrozen = 2
	maxRuns   = maxFrozen + 1
)

// earlyRuns is how many runs are frozen before they are full after a writer was opened, each at twice the size of the one before, so that the first
// table doesn't wait until a whole run was filled.
const earlyRuns = 2

// maxSublevels is how many overlapping tables may lie on top of the database before new ones wait for compactions. Half as many are compacted.
const maxSublevels = 40

// Store is an open version store. Its methods may be called from any goroutine.
type Store struct {
	chunks
	opt    Options
	fs     vfs.FS
	log    *slog.Logger
	db     *pebble.DB
	dbOpt  *pebble.Options
	lock   io.Closer
	spare  spareSpace
	most   int // tables that may lie over each other on top: maxSublevels, or as many as Options.DiskBytes allows
	cache  *pageCache
	depths *depthTable
	broken brokenPages
	order  ordered // the flusher's
	memory *runMemory

	ids      atomic.Uint64
	branches sync.Map // uint32 → *branchState
	state    atomic.Pointer[state]
	iters    iterators
	readers  sync.WaitGroup

	// covering is held while coverage changes, before tables and mu.
	covering sync.Mutex
	imports  atomic.Uint64
	tables   sync.Mutex // held while tables come in or go, the run's own among them

	mu       sync.Mutex
	queue    queue
	dropping map[shardOf]bool
	cond     *sync.Cond // runs were frozen, written or failed
	active   *run
	frozen   []*run // oldest first
	gen      uint64
	frozenN  uint64 // runs ever frozen
	early    int    // how many runs more are frozen before they are full
	flushedN uint64 // runs ever written
	failures uint64 // attempts to write a run that failed
	writeErr error  // of the last attempt
	closing  bool
	stop     bool

	retry     chan struct{} // asks the flusher to try again
	compacted chan struct{} // a compaction ended: for who waits with a table
	replaced  chan struct{} // the same for idleLoop
	quit      chan struct{}
	flusher   sync.WaitGroup
	images    atomic.Uint64
	fetched   atomic.Uint64
	mended    atomic.Uint64
	decayed   sync.Map // shardOf → struct{}: those of which something corrupt was read
	lineage   atomic.Pointer[lineage]
	source    atomic.Pointer[sourceBox]
}

func (o *Options) defaults() error {
	if o.Redoer == nil {
		return errors.New("open store: Options.Redoer is missing")
	}
	if o.Dir == "" {
		return errors.New("open store: Options.Dir is missing")
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	set := func(v *int64, def int64) {
		if *v == 0 {
			*v = def
		}
		*v = max(*v, 0)
	}
	set(&o.CacheBytes, 56<<20)
	set(&o.RunBytes, 32<<20)
	set(&o.PageCacheBytes, 48<<20)
	set(&o.DepthBytes, 16<<20)
	set(&o.ReserveBytes, 32<<20)
	if o.RunBytes > 512<<20 {
		return fmt.Errorf("open store: Options.RunBytes is %d, want at most 512 MiB", o.RunBytes)
	}
	if o.SegmentBlocks == 0 {
		o.SegmentBlocks = pg.SegmentBlocks
	}
	if o.Shards == 0 {
		o.Shards = placement.DefaultShards
	}
	if o.Shards > MaxShards {
		return fmt.Errorf("open store: Options.Shards is %d, want at most %d", o.Shards, MaxShards)
	}
	if o.MaxChain <= 0 {
		o.MaxChain = 400
	}
	if o.MaxChainBytes <= 0 {
		o.MaxChainBytes = 32 << 10
	}
	if o.Fatal == nil {
		o.Fatal = func(msg string) { panic("everpage store: " + msg) }
	}
	return nil
}

// Open opens the store in opt.Dir, making it if the directory is empty or absent.
// It fails with ErrLocked (naming the pid) if another process has it open, with ErrFormat if a newer release wrote it.
func Open(opt Options) (*Store, error) {
	if err := opt.defaults(); err != nil {
		return nil, err
	}
	s := &Store{
		opt:       opt,
		chunks:    chunks{opt.SegmentBlocks, opt.Shards},
		log:       opt.Logger,
		cache:     newPageCache(opt.PageCacheBytes),
		depths:    newDepthTable(opt.DepthBytes),
		memory:    newRunMemory(opt.RunBytes),
		retry:     make(chan struct{}, 1),
		compacted: make(chan struct{}, 1),
		replaced:  make(chan struct{}, 1),
		quit:      make(chan struct{}),
		dropping:  map[shardOf]bool{},
	}
	s.active = newRun(opt.RunBytes, s.memory)
	s.cond = sync.NewCond(&s.mu)
	s.lineage.Store(&lineage{})
	s.spare = spareSpace{fs: opt.FS, dir: opt.Dir, bytes: opt.ReserveBytes, log: opt.Logger}
	s.fs = vfs.OnDiskFull(opt.FS, s.spare.release)
	if err := s.fs.MkdirAll(opt.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := syncDir(s.fs, s.fs.PathDir(opt.Dir)); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	var err error
	if s.lock, err = lockDir(opt.FS, opt.Dir); err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok {
			s.lock.Close()
		}
	}()
	if err := s.checkFormat(); err != nil {
		return nil, err
	}
	tmp := s.fs.PathJoin(opt.Dir, ingestDir)
	if err := s.fs.RemoveAll(tmp); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := s.fs.MkdirAll(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := s.openQueue(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.spare.take()
	s.dbOpt = s.pebbleOptions()
	if s.db, err = pebble.Open(s.fs.PathJoin(opt.Dir, "pebble"), s.dbOpt); err != nil {
		s.dbOpt.Cache.Unref()
		return nil, fmt.Errorf("open store %s: %w", opt.Dir, err)
	}
	if err := syncDir(s.fs, opt.Dir); err != nil { // its database is new, perhaps
		return nil, errors.Join(fmt.Errorf("open store: %w", err), s.db.Close())
	}
	s.publish()
	err = s.loadBranches()
	if err == nil { // else a branch whose progress can't be read would be taken for one that nothing was committed to
		err = s.sweep()
	}
	if err != nil {
		s.dropIdle(true)
		s.db.Close()
		s.dbOpt.Cache.Unref()
		return nil, fmt.Errorf("open store %s: %w", opt.Dir, err)
	}
	s.loadBroken()
	ok = true
	s.flusher.Add(2)
	go s.flushLoop()
	go s.idleLoop()
	return s, nil
}

// Close makes everything that was committed durable and closes the store. Writers fail from here on. The store is closed also after an error, which
// tells that something committed is not durable and must be fed again.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closing = true
	s.branches.Range(func(_, b any) bool {
		b.(*branchState).wake(true)
		return true
	})
	s.mu.Unlock()
	err := s.flush(false)
	s.mu.Lock()
	s.stop = true
	close(s.quit)
	s.cond.Broadcast()
	s.mu.Unlock()
	s.flusher.Wait()
	s.dropIdle(true)
	s.readers.Wait()
	s.saveBroken()
	err = errors.Join(err, s.db.Close())
	s.dbOpt.Cache.Unref()
	return errors.Join(err, s.lock.Close())
}

// publish makes the runs as they are now what readers see. Under s.mu, or before the store is shared.
func (s *Store) publish() {
	st := &state{runs: make([]*run, 0, maxRuns), gen: s.gen}
	st.runs = append(st.runs, s.active)
	for i := len(s.frozen) - 1; i >= 0; i-- {
		st.runs = append(st.runs, s.frozen[i])
	}
	s.succeed(st)
}

func (s *Store) pebbleOptions() *pebble.Options {
	o := &pebble.Options{
		Cache:                       pebble.NewCache(s.opt.CacheBytes),
		Comparer:                    comparer,
		DisableWAL:                  true,
		FS:                          s.fs,
		FormatMajorVersion:          pebble.FormatTableFormatV6,
		Logger:                      pebbleLog{s},
		MaxOpenFiles:                500,
		MemTableSize:                1 << 20,
		L0CompactionThreshold:       maxSublevels, // twice the tables over each other at which they are compacted. Each time the level below is written again: rarer ones write less, and bloom filters keep reads from many tables cheap
		L0StopWritesThreshold:       1000,         // runs wait in flushLoop instead
		LBaseMaxBytes:               128 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		MaxManifestFileSize:         16 << 20,
		MemTableStopWritesThreshold: 4,
		EventListener: &pebble.EventListener{
			// By default this ends the process. Whoever reads the table gets the error, and all other tables are still good.
			DataCorruption: func(i pebble.DataCorruptionInfo) { s.log.Error("a table is corrupt", "err", i.Details, "path", i.Path) },
			CompactionEnd: func(pebble.CompactionInfo) {
				for _, c := range []chan struct{}{s.compacted, s.replaced} {
					select {
					case c <- struct{}{}:
					default:
					}
				}
			},
		},
	}
	// A read walks down an object's versions, so that older ones belong beside the newest, not in blocks of their own.
	o.Experimental.SpanPolicyFunc = func([]byte) (pebble.SpanPolicy, []byte, error) {
		return pebble.SpanPolicy{ValueStoragePolicy: pebble.ValueStorageLowReadLatency, DisableValueSeparationBySuffix: true}, nil, nil
	}
	o.BlockPropertyCollectors = []func() pebble.BlockPropertyCollector{newLSNCollector}
	compression := block.FastestCompression
	if s.opt.testCompression != nil {
		compression = s.opt.testCompression
	}
	for i := range o.Levels {
		l := &o.Levels[i]
		l.BlockSize = cmp.Or(s.opt.testBlockSize, 32<<10)
		l.IndexBlockSize = 64 << 10
		l.FilterPolicy = bloom.FilterPolicy(10)
		l.FilterType = pebble.TableFilter
		l.Compression = func() *block.CompressionProfile { return compression }
	}
	for i := range o.TargetFileSizes {
		o.TargetFileSizes[i] = 16 << 20
	}
	s.fit(o)
	s.most = o.L0CompactionThreshold
	o.EnsureDefaults()
	return o
}

// plentyOfDisk is from which Options.DiskBytes on two compactions side by side don't matter.
const plentyOfDisk = 16 << 30

// fit makes compactions so small that what one writes, while all that it replaces is still there, takes about a quarter of Options.DiskBytes at most: of the tables on
// top, as of the level that they are merged into, there is less, and what is merged further down is a few tables at a time.
func (s *Store) fit(o *pebble.Options) {
	d := s.opt.DiskBytes
	if d == 0 {
		return
	}
	// The first compactions take all tables on top; these may be twice as many until one ends.
	o.L0CompactionThreshold = int(min(int64(o.L0CompactionThreshold), max(2*(d/8/s.opt.RunBytes), 4)))
	o.LBaseMaxBytes = min(o.LBaseMaxBytes, max(d/16, 1<<20))
	for i := range o.TargetFileSizes {
		o.TargetFileSizes[i] = min(o.TargetFileSizes[i], max(d/256, 128<<10)) // up to 25 of them are merged at once
	}
	o.MaxManifestFileSize = min(o.MaxManifestFileSize, max(d/64, 256<<10))
	if d < plentyOfDisk {
		o.CompactionConcurrencyRange = func() (int, int) { return 1, 1 }
	}
}

// pebbleLog passes on what matters of the database's own log.
type pebbleLog struct{ s *Store }

func (l pebbleLog) Infof(string, ...any) {}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.s.log.Error("version store", "err", fmt.Sprintf(format, args...))
}

// Fatalf is called where the database can't go on, as when its manifest can't be written. It must not return.
func (l pebbleLog) Fatalf(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	l.s.log.Error("version store can't go on", "err", msg)
	l.s.opt.Fatal(msg)
	select {}
}

// lockDir takes the directory for this process.
func lockDir(fs vfs.FS, dir string) (io.Closer, error) {
	pidFile := fs.PathJoin(dir, "PID")
	c, err := fs.Lock(fs.PathJoin(dir, "LOCK"))
	if err != nil {
		who := "an unknown process"
		if b, rerr := readFile(fs, pidFile); rerr == nil {
			who = "process " + strings.TrimSpace(string(b))
		}
		return nil, fmt.Errorf("store %s is %w: %s has it open: %v", dir, ErrLocked, who, err)
	}
	if err := writeFile(fs, dir, "PID", fmt.Sprintf("%d\n", os.Getpid())); err != nil {
		c.Close()
		return nil, fmt.Errorf("open store: %w", err)
	}
	return c, nil
}

// checkFormat reads the format marker, or writes it in a new directory.
func (s *Store) checkFormat() error {
	name := s.fs.PathJoin(s.opt.Dir, "FORMAT")
	b, err := readFile(s.fs, name)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := s.fs.Stat(s.fs.PathJoin(s.opt.Dir, "pebble")); err == nil {
			return fmt.Errorf("store %s: %w: the file FORMAT is missing", s.opt.Dir, ErrFormat)
		}
		return writeFile(s.fs, s.opt.Dir, "FORMAT", fmt.Sprintf("everpage store %d\nsegment blocks %d\nshards %d\n", formatVersion, s.opt.SegmentBlocks, s.opt.Shards))
	}
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	var version int
	var blocks, shards uint32
	if _, err := fmt.Sscanf(string(b), "everpage store %d\n", &version); err != nil {
		return fmt.Errorf("store %s: %w: FORMAT says %q", s.opt.Dir, ErrFormat, b)
	}
	if version > formatVersion || version < 1 {
		return fmt.Errorf("store %s: %w: it has version %d, this release knows up to %d", s.opt.Dir, ErrFormat, version, formatVersion)
	}
	if version < formatVersion {
		return fmt.Errorf("store %s: %w: it has version %d of an older release, which kept versions in another way: import the database anew", s.opt.Dir, ErrFormat, version)
	}
	if _, err := fmt.Sscanf(string(b), "everpage store %d\nsegment blocks %d\nshards %d\n", &version, &blocks, &shards); err != nil {
		return fmt.Errorf("store %s: %w: FORMAT says %q", s.opt.Dir, ErrFormat, b)
	}
	if shards != s.opt.Shards {
		return fmt.Errorf("store %s was made with %d shards and can't be opened with %d", s.opt.Dir, shards, s.opt.Shards)
	}
	if blocks != s.opt.SegmentBlocks {
		return fmt.Errorf("store %s was made with chunks of %d blocks and can't be opened with %d", s.opt.Dir, blocks, s.opt.SegmentBlocks)
	}
	return nil
}

// MaxShards is the greatest number of shards: keys bear it in two bytes.
const MaxShards = 1 << 16

// Shards is the number of shards that chunks hash into.
func (s *Store) Shards() uint32 { return s.opt.Shards }

// Shard is the shard of a page.
func (s *Store) Shard(key pg.PageKey) placement.Shard { return s.shard(key) }

// SegmentBlocks is the number of blocks in one chunk of a relation fork.
func (s *Store) SegmentBlocks() uint32 { return s.opt.SegmentBlocks }

func readFile(fs vfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<16))
}

// writeFile replaces a small file, durably.
func writeFile(fs vfs.FS, dir, name, text string) error {
	tmp, path := fs.PathJoin(dir, name+".tmp"), fs.PathJoin(dir, name)
	f, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(text))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(fs, dir)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Stats is what the store uses.
type Stats struct {
	RunBytes    int64  // of versions in memory, not yet in tables
	FrozenRuns  int    // runs waiting to become tables
	Flushes     uint64 // runs that became tables
	Images      uint64 // images added to bound chains
	QueueBytes  int64  // of tables that wait for the backup
	Queued      int    // runs that do
	QueueLost   uint64 // runs that do no more because the queue was full
	Fetched     uint64 // reads that took versions from the source
	Mended      uint64 // of these, because what is here is corrupt
	DiskBytes   uint64
	Passing     uint64 // of these, what compactions write and what they have replaced: it goes by itself
	Tables      int64
	CacheHits   int64 // of the block cache
	CacheMisses int64
	ReadAmp     int    // tables that a read may have to look into
	Compacting  int64  // compactions under way
	DebtBytes   uint64 // still to be compacted
	Written     uint64 // bytes written by flushes and compactions
	WriteErr    error  // why tables can't be written now, or nil
}

// Stats tells what the store uses now.
func (s *Store) Stats() Stats {
	st := Stats{Images: s.images.Load(), Fetched: s.fetched.Load(), Mended: s.mended.Load()}
	s.mu.Lock()
	if s.stop {
		s.mu.Unlock()
		return st
	}
	st.RunBytes = s.active.size.Load()
	for _, r := range s.frozen {
		st.RunBytes += r.size.Load()
	}
	st.QueueBytes, st.Queued, st.QueueLost = s.queue.bytes, len(s.queue.list), s.queue.lost
	st.FrozenRuns, st.Flushes, st.WriteErr = len(s.frozen), s.flushedN, s.writeErr
	m := s.db.Metrics()
	s.mu.Unlock()
	st.DiskBytes = m.DiskSpaceUsage()
	st.Passing = m.Table.Local.ObsoleteSize + m.Table.Local.ZombieSize + uint64(max(m.Compact.InProgressBytes, 0))
	st.CacheHits, st.CacheMisses = m.BlockCache.Hits, m.BlockCache.Misses
	st.ReadAmp, st.Compacting, st.DebtBytes = m.ReadAmp(), m.Compact.NumInProgress, m.Compact.EstimatedDebt
	t := m.Total()
	st.Tables = t.TablesCount
	st.Written = t.TableBytesIngested + t.TableBytesCompacted + t.TableBytesFlushed
	return st
}

const retryEvery = time.Second
