package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Inventory is what a store holds of layers and manifests, and what the registry needs of it.
type Inventory struct {
	Objects map[string]store.Info
	Bytes   int64
	Needed  map[string]bool // objects that a current manifest refers to, and the manifests' own
	Lists   []*Manifest     // the current manifests
	Rooted  []*Manifest     // those of the newest root that are not current
	Oldest  map[uint32]pg.LSN
	Strange []string // objects that nobody of this release writes
	// WALFrom is from where recovery by the newest root would read WAL. 0: there is no root.
	WALFrom pg.LSN
	read    map[string]bool
}

// The kinds of objects, as their names begin.
const (
	layersDir    = "layers/"
	manifestsDir = "manifests/"
	walDir       = "wal/"
)

// TakeInventory lists a store and reads the current manifests of the branches.
func TakeInventory(ctx context.Context, s store.Store, r Registry, branches []uint32, shards uint32) (*Inventory, error) {
	inv := &Inventory{Objects: map[string]store.Info{}, Needed: map[string]bool{}, read: map[string]bool{}, Oldest: map[uint32]pg.LSN{}}
	// The listing comes first: what is uploaded meanwhile is not in it, so that it can't be taken for garbage.
	err := s.List(ctx, "", func(i store.Info) error {
		switch {
		case strings.HasPrefix(i.Name, layersDir), strings.HasPrefix(i.Name, manifestsDir), strings.HasPrefix(i.Name, probeDir):
			inv.Objects[i.Name] = i
			inv.Bytes += i.Size
		case strings.HasPrefix(i.Name, walDir), strings.HasPrefix(i.Name, rootDir), strings.HasPrefix(i.Name, ownerDir):
		default:
			inv.Strange = append(inv.Strange, i.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := r.Sync(ctx); err != nil {
		return nil, err
	}
	for _, b := range branches {
		// What is small comes first: it never goes beyond the shards, and these go on meanwhile.
		for _, shard := range append([]placement.Shard{Small}, allShards(shards)...) {
			c := r.Current(b, shard)
			if c.Ref == "" {
				continue
			}
			m, err := ReadManifest(ctx, s, c.Ref)
			if err != nil {
				return nil, fmt.Errorf("manifest of shard %d of branch %d: %w", shard, b, err)
			}
			inv.Lists = append(inv.Lists, m)
			inv.read[c.Ref] = true
			ref, err := ParseRef(c.Ref)
			if err != nil {
				return nil, err
			}
			inv.Needed[ref.Object] = true
			for _, l := range m.Layers {
				inv.Needed[l.Object] = true
			}
			if shard == Small {
				inv.Oldest[b] = max(inv.Oldest[b], m.Hi)
			}
		}
	}
	if err := inv.needRoot(ctx, s); err != nil {
		return nil, err
	}
	return inv, inv.newer(ctx, s)
}

// newer adds the needed objects that came after the listing.
func (inv *Inventory) newer(ctx context.Context, s store.Store) error {
	for _, name := range inv.Missing() {
		i, err := s.Stat(ctx, name)
		if errors.Is(err, store.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		inv.Objects[name] = i
		inv.Bytes += i.Size
	}
	return nil
}

// needRoot adds what the newest root refers to: where it was not replaced since, as after a stop, recovery would begin with older manifests than the current.
func (inv *Inventory) needRoot(ctx context.Context, s store.Store) error {
	root, err := ReadRoot(ctx, s)
	if errors.Is(err, ErrNoRoot) {
		return nil
	}
	if err != nil {
		return err
	}
	whole := map[uint32]bool{}
	for _, b := range root.Branches {
		whole[b.Branch] = b.whole(root.Shards)
		for _, have := range b.Manifests {
			if have.Shard == Small && (inv.WALFrom == 0 || have.LSN < inv.WALFrom) {
				inv.WALFrom = have.LSN
			}
			ref, err := ParseRef(have.Ref)
			if err != nil {
				return err
			}
			if inv.read[have.Ref] {
				continue
			}
			inv.Needed[ref.Object] = true
			m, err := ReadManifest(ctx, s, have.Ref)
			if err != nil {
				return fmt.Errorf("the newest root's manifest of shard %d of branch %d: %w", have.Shard, b.Branch, err)
			}
			inv.Rooted = append(inv.Rooted, m)
			for _, l := range m.Layers {
				inv.Needed[l.Object] = true
			}
		}
	}
	for _, l := range root.Lines { // what forked off and is not whole is made anew out of WAL, from there on
		if !whole[l.Branch] && l.Parent != 0 && inv.WALFrom != 0 {
			inv.WALFrom = min(inv.WALFrom, l.Fork)
		}
	}
	return nil
}

// Orphans lists the objects that no current manifest needs and that were written before then: later ones may be of uploads that are under way.
func (inv *Inventory) Orphans(before time.Time) (list []store.Info) {
	for name, i := range inv.Objects {
		if !inv.Needed[name] && i.Modified.Before(before) {
			list = append(list, i)
		}
	}
	slices.SortFunc(list, func(a, b store.Info) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Missing lists the objects that are needed and not there.
func (inv *Inventory) Missing() (list []string) {
	for name := range inv.Needed {
		if _, ok := inv.Objects[name]; !ok {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// Collector deletes what nobody needs.
type Collector struct {
	Store    store.Store
	Registry Registry
	Branches func() []uint32 // all that the registry may know, whether this node has them or not: what is not of one of these is garbage
	Shards   uint32
	ID       func() (archive.ID, bool) // of the followed primary's WAL
	// WALFrom is the LSN from which on WAL is needed: that of the oldest layers' end that recovery may go on from. 0: all of it.
	WALFrom func() pg.LSN
	Grace   time.Duration
	Owns    func(ctx context.Context) error // makes sure that the store is this cluster's; nil: it is
	// HoldRoots keeps roots from being written while what is needed is found out: Uploader.HoldRoots. nil: nobody writes any.
	HoldRoots func(ctx context.Context) (release func(), err error)
}

// ErrNotLeader means that another node collects.
var ErrNotLeader = errors.New("another node leads the cluster: it is the one that deletes")

// Collect deletes the orphans and the WAL that no recovery reads, or lists them with dryRun.
func (c *Collector) Collect(ctx context.Context, dryRun bool) (removed []store.Info, err error) {
	term := c.Registry.Term()
	if !c.Registry.Leads() {
		return nil, ErrNotLeader
	}
	if c.Owns != nil {
		if err := c.Owns(ctx); err != nil {
			return nil, err
		}
	}
	// What is older than this and not needed now never is again: manifests of uploads that are under way are refused if they need it, and so uploaded anew, and the
	// roots that follow go by current manifests.
	now := time.Now() // may be hours off, which does not matter to a list
	if !dryRun {
		if now, err = Probe(ctx, c.Store, "collect"); err != nil {
			return nil, err
		}
	}
	before := now.Add(-c.Grace).Truncate(time.Microsecond)
	if !dryRun {
		if err := c.Registry.Collecting(ctx, before); err != nil {
			return nil, err
		}
	}
	list, err := c.garbage(ctx, before, dryRun)
	if err != nil || dryRun {
		return list, err
	}
	for _, i := range list {
		// The check is made anew for each: a node that was paused for long must not delete by what it knew then.
		if err := c.still(ctx, term, i.Name); err != nil {
			return removed, err
		}
		if err := c.Store.Delete(ctx, i.Name); err != nil {
			return removed, err
		}
		removed = append(removed, i)
	}
	return removed, nil
}

// garbage lists what was written before then and is not needed.
func (c *Collector) garbage(ctx context.Context, before time.Time, dryRun bool) ([]store.Info, error) {
	if c.HoldRoots != nil && !dryRun {
		release, err := c.HoldRoots(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	inv, err := c.inventory(ctx)
	if err != nil {
		return nil, err
	}
	list := inv.Orphans(before)
	if id, ok := c.ID(); ok {
		// By the root, not by what is current: whoever recovers knows nothing newer.
		old, err := archive.Before(ctx, c.Store, id, min(c.WALFrom(), inv.WALFrom), before)
		if err != nil {
			return nil, err
		}
		list = append(list, old...)
	}
	return list, nil
}

// inventory takes one in which nothing is missing that is needed. It looks so, too, where a manifest was replaced and collected for while it was taken; then it is
// taken again, and what is still needed and still missing is.
func (c *Collector) inventory(ctx context.Context) (*Inventory, error) {
	var before []string
	for {
		inv, err := TakeInventory(ctx, c.Store, c.Registry, c.Branches(), c.Shards)
		if err != nil {
			return nil, err
		}
		missing := inv.Missing()
		if len(missing) == 0 {
			return inv, nil
		}
		if still := slices.DeleteFunc(before, func(name string) bool { return !slices.Contains(missing, name) }); len(still) > 0 {
			return nil, fmt.Errorf("nothing is deleted while objects are missing that are needed: %s", strings.Join(still, ", "))
		}
		before = missing
	}
}

// still makes sure that an object is not needed now and that this node has led since the term began.
func (c *Collector) still(ctx context.Context, term uint64, name string) error {
	if err := c.Registry.Sync(ctx); err != nil {
		return err
	}
	if !c.Registry.Leads() || c.Registry.Term() != term { // whoever led in between may have written a root that this one does not know
		return ErrNotLeader
	}
	if c.Owns != nil {
		if err := c.Owns(ctx); err != nil {
			return err
		}
	}
	for _, b := range c.Branches() {
		for _, shard := range append(allShards(c.Shards), Small) {
			if ref, err := ParseRef(c.Registry.Current(b, shard).Ref); err != nil || ref.Object == name {
				return fmt.Errorf("%s is in use again: %w", name, errors.Join(ErrConflict, err))
			}
		}
	}
	return nil
}

// BranchSummary is how much of a branch is in the store.
type BranchSummary struct {
	Branch         uint32
	Oldest, Newest pg.LSN
	Shards         int
	Layers         int
	Bytes          int64
}

// Summarize adds up manifests by branch.
func Summarize(list []*Manifest) (out []BranchSummary) {
	for _, m := range list {
		i := slices.IndexFunc(out, func(b BranchSummary) bool { return b.Branch == m.Branch })
		if i < 0 {
			out = append(out, BranchSummary{Branch: m.Branch})
			i = len(out) - 1
		}
		b := &out[i]
		b.Layers += len(m.Layers)
		b.Bytes += m.Bytes()
		if m.Shard == Small {
			b.Newest = m.Hi
			continue
		}
		b.Shards++
		b.Oldest = max(b.Oldest, m.Lo())
	}
	return out
}

// Manifests are the current manifests of some branches.
func (s *Source) Manifests(ctx context.Context, branches []uint32, shards uint32) (list []*Manifest, err error) {
	for _, b := range branches {
		for _, shard := range append(allShards(shards), Small) {
			if s.registry.Current(b, shard).Ref == "" {
				continue
			}
			m, err := s.manifest(ctx, shardKey{b, shard})
			if err != nil {
				return nil, err
			}
			list = append(list, m)
		}
	}
	return list, nil
}
