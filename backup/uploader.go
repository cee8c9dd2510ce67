package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"everpage/backup/store"
	"everpage/chunk"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// History is the version store that is backed up: *chunk.Store.
type History interface {
	Branches() []uint32
	Progress(branch uint32) (chunk.Progress, bool)
	Durable(branch uint32) (chunk.Progress, bool)
	Flush() error
	Since(branch uint32, shard placement.Shard) (from pg.LSN, whole bool)
	Shards() uint32
	SegmentBlocks() uint32
	ExportLayer(ctx context.Context, spec chunk.LayerSpec, w io.Writer) (chunk.Layer, error)
	ExportSmall(ctx context.Context, branch uint32, from, to pg.LSN, w io.Writer) (chunk.Layer, error)
}

// Options describe an Uploader. All but Log and Owns must be given.
type Options struct {
	Store     store.Store
	Registry  Registry
	History   History
	Root      func() (Root, bool)             // what of a root the node knows: all but the branches. false: nothing is followed yet
	Archived  func() pg.LSN                   // where the WAL in the store ends, on the node that leads: recovery goes on with it behind what is small
	Hurry     func()                          // asks for the newest WAL to be archived
	Known     func() []uint32                 // the branches that the registry may know: this node need not have them yet. nil: those of History
	Owns      func(ctx context.Context) error // makes sure that the store is this cluster's: Owner.Check
	Dir       string                          // for objects that are being gathered
	PackBytes int64                           // from which size on an object is uploaded and another one begun; packSize
	Every     time.Duration                   // at most between two uploads while there is something new
	Bytes     uint64                          // of WAL, after which an upload doesn't wait for Every
	Log       *slog.Logger
}

// Uploader brings the store up to the version store, over and over.
type Uploader struct {
	opt   Options
	now   chan chan error
	known map[shardKey]*Manifest // what Current refers to
	refs  map[shardKey]string
	most  int // layers of a shard
	packs atomic.Int64
	seen  map[uint32][]pg.LSN // where each branch was resumable, behind what is archived

	rooting chan struct{} // holds one while a root is being written, or must not be; it guards what follows
	roots   *rootWriter   // nil: not open
	root    string        // what its last root says; "": it wrote none

	mu   sync.Mutex
	st   Status
	want map[shardKey]bool // shards whose layers wait to be made fewer until all of them is here
}

type shardKey struct {
	branch uint32
	shard  placement.Shard
}

// Status is how uploading goes.
type Status struct {
	Uploads  uint64
	Last     time.Time // when the last one ended well
	LSN      pg.LSN    // up to which it went, of the newest branch
	Uploaded uint64    // bytes of layers
	Layers   uint64
	Err      error
}

// New makes an Uploader.
func New(opt Options) *Uploader {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Uploader{
		opt: opt, most: maxLayers, now: make(chan chan error), known: map[shardKey]*Manifest{}, refs: map[shardKey]string{}, seen: map[uint32][]pg.LSN{},
		rooting: make(chan struct{}, 1), want: map[shardKey]bool{},
	}
}

// Status is how uploading goes now.
func (u *Uploader) Status() Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.st
}

// Gathered is what the objects take on disk that are being gathered. Their files have no names.
func (u *Uploader) Gathered() int64 { return u.packs.Load() }

// Now uploads what is new and returns when it is in the store.
func (u *Uploader) Now(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case u.now <- done:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Wanted tells whether a shard's layers can't be made fewer until all of it is here.
func (u *Uploader) Wanted(branch uint32, shard placement.Shard) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.want[shardKey{branch, shard}]
}

const lookEvery = time.Second

// Run uploads until ctx ends. What fails is tried again, slower and slower.
func (u *Uploader) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var last, notBefore time.Time
	retry := minRetry
	for {
		var asked chan error
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case asked = <-u.now:
			if err := u.awaitArchive(ctx); err != nil {
				asked <- err
				continue
			}
		case <-tick.C:
			u.look()
			if time.Now().Before(notBefore) || time.Since(last) < u.opt.Every && u.behind() < u.opt.Bytes || u.behind() == 0 {
				continue
			}
		}
		err := u.upload(ctx)
		for range maxOvertaken {
			if asked == nil || ctx.Err() != nil || !errors.Is(err, ErrConflict) && !errors.Is(err, store.ErrNotExist) {
				break
			}
			err = u.upload(ctx)
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		u.note(err)
		if asked != nil {
			asked <- err
		}
		if err != nil {
			u.opt.Log.Warn("the backup is not up to date", "error", err, "retry_in", retry)
			notBefore = time.Now().Add(retry)
			retry = min(2*retry, maxRetry)
			continue
		}
		last, retry = time.Now(), minRetry
	}
}

// maxSeen bounds what is remembered of where a branch was resumable.
const maxSeen = 600

// look remembers where the branches can be resumed: between records.
func (u *Uploader) look() {
	for _, b := range u.opt.History.Branches() {
		p, ok := u.opt.History.Progress(b)
		if !ok || p.Consistent == 0 {
			continue
		}
		if l := u.seen[b]; len(l) == 0 || l[len(l)-1] < p.Resume {
			if l = append(l, p.Resume); len(l) > maxSeen {
				l = l[len(l)-maxSeen:]
			}
			u.seen[b] = l
		}
	}
}

const archiveWait = 20 * time.Second

// awaitArchive waits until the WAL of what was ingested by now is archived, where this node is the one that archives.
func (u *Uploader) awaitArchive(ctx context.Context) error {
	if !u.opt.Registry.Leads() {
		return nil
	}
	u.look()
	var want pg.LSN
	for _, l := range u.seen {
		want = max(want, l[len(l)-1])
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(archiveWait)
	for u.opt.Archived() < want {
		u.opt.Hurry()
		if time.Now().After(end) {
			return fmt.Errorf("the WAL in the store ends at %s, a backup up to %s waits for it", u.opt.Archived(), want)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// maxOvertaken is how often an upload that somebody waits for is made again at once, where a collection or another node was faster. Others have their time.
const maxOvertaken = 2

const (
	minRetry = time.Second
	maxRetry = 30 * time.Second
)

func (u *Uploader) note(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.st.Err = err; err == nil {
		u.st.Uploads++
		u.st.Last = time.Now()
	}
}

// behind is how many bytes of WAL were made versions that the store does not have.
func (u *Uploader) behind() (most uint64) {
	for _, b := range u.opt.History.Branches() {
		p, ok := u.opt.History.Progress(b)
		if !ok || p.Consistent == 0 {
			continue
		}
		for _, shard := range u.opt.Registry.Mine(b) {
			if at := u.opt.Registry.Current(b, shard).LSN; at < p.Readable {
				most = max(most, uint64(p.Readable-at))
			}
		}
	}
	return most
}

// upload brings every branch up to date, then says so in a root.
func (u *Uploader) upload(ctx context.Context) error {
	if u.opt.Owns != nil {
		if err := u.opt.Owns(ctx); err != nil {
			return err
		}
	}
	var errs []error
	for _, b := range u.opt.History.Branches() {
		if err := u.branch(ctx, b); err != nil {
			errs = append(errs, fmt.Errorf("branch %d: %w", b, err))
		}
	}
	return errors.Join(append(errs, u.writeRoot(ctx))...)
}

// change is a manifest that is being made.
type change struct {
	key      shardKey
	old      Current
	manifest *Manifest
}

// branch uploads the shards of a branch that are this node's, then, where it leads, what is small: never beyond the shard that is behind most, so that what
// is small and all shards together always make a whole as of the former's end, and never beyond the WAL in the store, which recovery goes on with there.
func (u *Uploader) branch(ctx context.Context, branch uint32) error {
	mine := slices.DeleteFunc(slices.Clone(u.opt.Registry.Mine(branch)), func(s placement.Shard) bool { return s == Small })
	p, ok := u.opt.History.Progress(branch)
	u.look()
	seen := u.seen[branch]
	if !ok || p.Consistent == 0 || len(seen) == 0 || seen[len(seen)-1] < p.Consistent {
		return nil
	}
	to := seen[len(seen)-1]
	if d, _ := u.opt.History.Durable(branch); d.Readable < to {
		if err := u.opt.History.Flush(); err != nil {
			return err
		}
	}
	if err := u.shards(ctx, branch, mine, to); err != nil || !u.opt.Registry.Leads() {
		return err
	}
	limit := min(to, u.opt.Archived())
	for shard := range u.opt.History.Shards() {
		at := u.opt.Registry.Current(branch, placement.Shard(shard)).LSN
		seen = append(slices.Clone(seen), at) // where its node could be resumed, so that it is between records
		limit = min(limit, at)
	}
	to = 0
	for _, at := range seen {
		if at <= limit {
			to = max(to, at)
		}
	}
	if to < p.Consistent {
		return nil
	}
	if err := u.shards(ctx, branch, []placement.Shard{Small}, to); err != nil {
		return err
	}
	u.mu.Lock()
	u.st.LSN = to
	u.mu.Unlock()
	return nil
}

// shards uploads the layers of some shards up to an LSN.
func (u *Uploader) shards(ctx context.Context, branch uint32, shards []placement.Shard, to pg.LSN) error {
	g := &gathering{u: u, branch: branch}
	defer g.close()
	for _, shard := range shards {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err := u.begin(ctx, branch, shard, to)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		if err := g.add(ctx, c, to); err != nil {
			return err
		}
	}
	if err := g.seal(ctx); err != nil {
		return err
	}
	if err := g.publish(ctx); err != nil {
		return err
	}
	return errors.Join(g.refused...)
}

// gathering packs layers into objects. An object stays in the store as long as one of its layers is named, so that layers go together that cost little beside what
// keeps them: one that is large has an object of its own, and of the others bases, which are replaced seldom, lie apart from deltas, and small ones, as a quiet shard
// has them, from those that aren't.
type gathering struct {
	u       *Uploader
	branch  uint32
	epoch   uint64
	changes []*change // whose manifests aren't published yet
	packs   map[packKind]*gathered
	oldest  time.Time // when the first object was written that those manifests need, by the store's clock
	since   time.Time // then, by ours
	refused []error   // manifests that were not made the current ones: the others go on
}

// publishEvery is how long objects wait for their manifests while more are uploaded: what is not named is lost work should the node stop, and garbage some day.
const publishEvery = time.Minute

// gathered is an object that is being gathered.
type gathered struct {
	*pack
	layers []*Layer // in it: they get to know the object's name
}

type packKind struct{ delta, small bool }

// From which size on a layer has an object of its own, and up to which it is a small one. A base is written seldom, so that one more request for it costs little.
const (
	ownBase    = 128 << 10
	ownDelta   = 1 << 20
	smallLayer = 32 << 10
)

func (g *gathering) close() {
	for _, p := range g.packs {
		p.close()
	}
}

func (g *gathering) add(ctx context.Context, c *change, to pg.LSN) (err error) {
	g.epoch = max(g.epoch, c.old.Epoch)
	// How large it is is known when it is written.
	one, err := newPack(g.u.opt.Dir, &g.u.packs)
	if err != nil {
		return err
	}
	defer one.close()
	l, err := g.u.export(ctx, one, c, to)
	if err != nil {
		return err
	}
	g.changes = append(g.changes, c)
	if l.Length >= ownDelta || !l.Delta && l.Length >= ownBase {
		return g.put(ctx, &gathered{one, []*Layer{l}})
	}
	kind := packKind{l.Delta, l.Length < smallLayer}
	p := g.packs[kind]
	if p == nil {
		p = &gathered{}
		if p.pack, err = newPack(g.u.opt.Dir, &g.u.packs); err != nil {
			return err
		}
		if g.packs == nil {
			g.packs = map[packKind]*gathered{}
		}
		g.packs[kind] = p
	}
	p.begin()
	if _, err := io.Copy(p, io.NewSectionReader(one.f, 0, one.size)); err != nil {
		return err
	}
	if p.length() != l.Length || p.part.Sum32() != l.CRC {
		return fmt.Errorf("the layer of shard %d is another one as it is read again", c.key.shard)
	}
	l.Offset = p.from
	p.layers = append(p.layers, l)
	if p.size < cmp.Or(g.u.opt.PackBytes, packSize) {
		return nil
	}
	delete(g.packs, kind)
	return errors.Join(g.put(ctx, p), p.close())
}

// publish makes the manifests of which all objects are there the current ones.
func (g *gathering) publish(ctx context.Context) error {
	var whole, rest []*change
	for _, c := range g.changes {
		if c.manifest.Layers[len(c.manifest.Layers)-1].Object != "" {
			whole = append(whole, c)
		} else {
			rest = append(rest, c)
		}
	}
	if len(whole) == 0 {
		return nil
	}
	err := g.u.publish(ctx, g.branch, g.epoch, whole, g.oldest)
	g.changes, g.oldest, g.since = rest, time.Time{}, time.Time{}
	if errors.Is(err, ErrConflict) {
		g.refused = append(g.refused, err)
		return nil
	}
	return err
}

// seal uploads the objects that are being gathered.
func (g *gathering) seal(ctx context.Context) error {
	for kind, p := range g.packs {
		delete(g.packs, kind)
		if err := errors.Join(g.put(ctx, p), p.close()); err != nil {
			return err
		}
	}
	return nil
}

// put uploads an object.
func (g *gathering) put(ctx context.Context, p *gathered) error {
	object, err := p.upload(ctx, g.u.opt.Store, "layers", g.branch, g.epoch)
	if err != nil {
		return err
	}
	for _, l := range p.layers {
		l.Object = object.Name
	}
	g.u.mu.Lock()
	g.u.st.Uploaded += uint64(p.size)
	g.u.mu.Unlock()
	if g.since.IsZero() {
		g.oldest, g.since = object.Modified, time.Now()
	}
	if object.Modified.Before(g.oldest) {
		g.oldest = object.Modified
	}
	if time.Since(g.since) < publishEvery {
		return nil
	}
	return g.publish(ctx)
}

// begin starts the next manifest of a shard; nil if there is nothing to add.
func (u *Uploader) begin(ctx context.Context, branch uint32, shard placement.Shard, to pg.LSN) (*change, error) {
	c := &change{key: shardKey{branch, shard}, old: u.opt.Registry.Current(branch, shard)}
	next := &Manifest{Format: manifestFormat, Branch: branch, Shard: shard, Shards: u.opt.History.Shards(), SegmentBlocks: u.opt.History.SegmentBlocks(), Epoch: c.old.Epoch}
	if c.old.Ref != "" {
		m, err := u.manifest(ctx, c.key, c.old.Ref)
		if err != nil {
			return nil, err
		}
		if m.Hi >= to && !(m.Hi == to && u.shrinks(m)) {
			return nil, nil
		}
		next.Hi = m.Hi
		next.Layers = append(next.Layers, m.Layers...)
	}
	c.manifest = next
	return c, nil
}

// shrinks tells whether a shard is made anew though there is nothing to add: where main left its branch, and most of its layers lie below the horizon.
func (u *Uploader) shrinks(m *Manifest) bool {
	root, ok := u.opt.Root()
	now, _ := u.opt.History.Progress(m.Branch)
	garbage := m.garbage(now.Horizon)
	return ok && root.Main != 0 && root.Main != m.Branch && garbage > 0 && garbage >= m.Bytes()/2
}

// manifest is what the registry refers to, from memory or from the store.
func (u *Uploader) manifest(ctx context.Context, key shardKey, ref string) (*Manifest, error) {
	if u.refs[key] == ref && u.known[key] != nil {
		return u.known[key], nil
	}
	m, err := ReadManifest(ctx, u.opt.Store, ref)
	if err != nil {
		return nil, err
	}
	if m.Branch != key.branch || m.Shard != key.shard {
		return nil, &store.Error{Op: "get", Name: ref, Kind: store.ErrCorrupt, Err: fmt.Errorf("it is the manifest of shard %d of branch %d", m.Shard, m.Branch)}
	}
	u.known[key], u.refs[key] = m, ref
	return m, nil
}

// ReadManifest reads a manifest and checks it.
func ReadManifest(ctx context.Context, s store.Store, text string) (*Manifest, error) {
	ref, err := ParseRef(text)
	if err != nil {
		return nil, err
	}
	b, err := store.ReadAll(ctx, s, ref.Object, ref.Offset, ref.Length)
	if err != nil {
		return nil, err
	}
	var m Manifest
	if err = openJSON(b, &m); err == nil {
		err = m.check()
	}
	if err != nil {
		return nil, &store.Error{Op: "get", Name: text, Kind: store.ErrCorrupt, Err: err}
	}
	return &m, nil
}

// export adds a shard's layer to a pack. Its object has no name yet.
func (u *Uploader) export(ctx context.Context, p *pack, c *change, to pg.LSN) (_ *Layer, err error) {
	m := c.manifest
	var l chunk.Layer
	p.begin()
	now, _ := u.opt.History.Progress(m.Branch)
	keep, base := m.next(now.Horizon, u.most)
	if m.Shard != Small {
		// What was evicted here can't go into a base, nor into a delta in place of others. Then the layers grow by one more.
		since, whole := u.opt.History.Since(m.Branch, m.Shard)
		waits := len(m.Layers) > 0 && (base && !whole || !base && since > m.Layers[keep-1].Hi)
		if waits {
			keep, base = len(m.Layers), false
		}
		u.mu.Lock()
		if delete(u.want, c.key); waits {
			u.want[c.key] = true
		}
		u.mu.Unlock()
	}
	if m.Layers = m.Layers[:keep]; base {
		m.Hi = 0
	} else {
		m.Hi = m.Layers[keep-1].Hi
	}
	switch {
	case m.Shard == Small && base:
		l, err = u.opt.History.ExportSmall(ctx, m.Branch, 0, to, p)
	case m.Shard == Small:
		l, err = u.opt.History.ExportSmall(ctx, m.Branch, m.Hi, to, p)
	case base:
		l, err = u.opt.History.ExportLayer(ctx, chunk.LayerSpec{Branch: m.Branch, Shard: m.Shard, To: to}, p)
	default:
		l, err = u.opt.History.ExportLayer(ctx, chunk.LayerSpec{Branch: m.Branch, Shard: m.Shard, From: m.Hi, To: to, Delta: true}, p)
	}
	if err != nil {
		return nil, err
	}
	if m.Hi != 0 && l.Lo != m.Hi || l.Hi < to {
		return nil, fmt.Errorf("the layer of shard %d goes from %s to %s, wanted was %s to %s", m.Shard, l.Lo, l.Hi, m.Hi, to)
	}
	m.Layers = append(m.Layers, Layer{Offset: p.from, Length: p.length(), CRC: p.part.Sum32(), Delta: l.Delta, Lo: l.Lo, Hi: l.Hi})
	m.Hi = l.Hi
	u.mu.Lock()
	u.st.Layers++
	u.mu.Unlock()
	return &m.Layers[len(m.Layers)-1], nil
}

// publish writes manifests, all in one object, and makes them the current ones. oldest is when the first of the objects was written that are new in them.
func (u *Uploader) publish(ctx context.Context, branch uint32, epoch uint64, changes []*change, oldest time.Time) error {
	p, err := newPack(u.opt.Dir, &u.packs)
	if err != nil {
		return err
	}
	defer p.close()
	refs := make([]Ref, len(changes))
	for i, c := range changes {
		if err := c.manifest.check(); err != nil {
			return err
		}
		b, err := sealJSON(c.manifest)
		if err != nil {
			return err
		}
		p.begin()
		if _, err := p.Write(b); err != nil {
			return err
		}
		refs[i] = Ref{Offset: p.from, Length: p.length(), CRC: p.part.Sum32()}
	}
	object, err := p.upload(ctx, u.opt.Store, "manifests", branch, epoch)
	if err != nil {
		return err
	}
	if object.Modified.Before(oldest) {
		oldest = object.Modified
	}
	var errs []error
	for i, c := range changes {
		refs[i].Object = object.Name
		ref := refs[i].String()
		if err := u.opt.Registry.Set(ctx, branch, c.key.shard, c.old, Next{ref, c.manifest.Hi, oldest}); err != nil {
			errs = append(errs, fmt.Errorf("manifest of shard %d: %w", c.key.shard, err))
			continue
		}
		u.known[c.key], u.refs[c.key] = c.manifest, ref
	}
	return errors.Join(errs...)
}

// writeRoot writes a root if what it would say has changed.
func (u *Uploader) writeRoot(ctx context.Context) error {
	release, err := u.holdRoots(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := u.writeHeld(ctx); !errors.Is(err, ErrNotLeader) && !errors.Is(err, errNothingFollowed) {
		return err
	}
	return nil
}

var errNothingFollowed = errors.New("there is no complete base backup to go by yet")

func (u *Uploader) holdRoots(ctx context.Context) (release func(), err error) {
	select {
	case u.rooting <- struct{}{}:
		return func() { <-u.rooting }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// HoldRoots makes sure that the newest root is one that this node wrote as the leader it is now, and that no other is written until release. What is needed by the
// newest root and by the manifests that are current then is all that later roots can refer to, too, but for what is uploaded later. ErrNotLeader if it isn't.
func (u *Uploader) HoldRoots(ctx context.Context) (release func(), err error) {
	if release, err = u.holdRoots(ctx); err != nil {
		return nil, err
	}
	err = u.writeHeld(ctx)
	if errors.Is(err, errNothingFollowed) && len(u.branches()) == 0 {
		return release, nil // nor does a root say of anything
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// branches are those that the registry may know.
func (u *Uploader) branches() []uint32 {
	if u.opt.Known != nil {
		return u.opt.Known()
	}
	return u.opt.History.Branches()
}

// writeHeld is writeRoot while rooting is held.
func (u *Uploader) writeHeld(ctx context.Context) (err error) {
	term := u.opt.Registry.Term()
	if !u.opt.Registry.Leads() {
		u.roots = nil // whoever leads next numbers anew
		return ErrNotLeader
	}
	if u.roots == nil || u.roots.term != term {
		if u.roots, err = openRoots(ctx, u.opt.Store, term); err != nil {
			return err
		}
		u.root = ""
		// Whoever led after this one would find its epoch taken, or takes a later one: it must still have led when it looked.
		if err := u.opt.Registry.Sync(ctx); err != nil {
			u.roots = nil
			return err
		}
		if !u.opt.Registry.Leads() || u.opt.Registry.Term() != term {
			u.roots = nil
			return ErrNotLeader
		}
	}
	r, ok := u.nextRoot()
	if !ok {
		return errNothingFollowed
	}
	text := fmt.Sprintf("%+v", r)
	if text == u.root {
		return nil
	}
	if err := u.roots.write(ctx, r); err != nil {
		u.roots = nil // it may be there or not, and another one may have taken the epoch
		return err
	}
	u.root = text
	return nil
}

// nextRoot is what a root would say now; false while there is nothing to say.
func (u *Uploader) nextRoot() (Root, bool) {
	r, ok := u.opt.Root()
	if !ok {
		return r, false
	}
	r.Shards, r.SegmentBlocks = u.opt.History.Shards(), u.opt.History.SegmentBlocks()
	for _, b := range u.branches() {
		br := BranchRoot{Branch: b}
		for shard := range r.Shards {
			if c := u.opt.Registry.Current(b, placement.Shard(shard)); c.Ref != "" {
				br.Manifests = append(br.Manifests, ManifestRoot{placement.Shard(shard), c.Ref, c.LSN})
			}
		}
		if c := u.opt.Registry.Current(b, Small); c.Ref != "" {
			br.Manifests = append(br.Manifests, ManifestRoot{Small, c.Ref, c.LSN})
		}
		if len(br.Manifests) > 0 {
			r.Branches = append(r.Branches, br)
		}
	}
	if now, ok := u.opt.Root(); ok { // no manifest that was listed begins beyond this
		r.Horizons = now.Horizons
	}
	return r, true
}
