package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"everpage/backup/store"
	"everpage/cluster/placement"
	"everpage/wal"
	"everpage/wal/pg"
)

// Root is where recovery begins: all that a new cluster must know to go on from the store alone. Each is an object of its own; the newest counts.
type Root struct {
	Format  int
	Epoch   uint64 // of the writing cluster: grows with every start and leader
	Counter uint64
	Written time.Time

	Cluster       string
	Shards        uint32
	SegmentBlocks uint32

	SystemID       uint64
	Major          pg.Major
	WALSegmentSize wal.SegmentSize
	History        wal.History // of the followed timeline
	Conninfo       string      // without its password
	Primary        string      // for people
	NextTimeline   pg.TimelineID
	Slots          []string `json:",omitempty"` // that the nodes have on the primary, and those that are still to be dropped there

	Branches []BranchRoot

	// Where the branches' history begins by what was agreed, and how long it is kept.
	Horizons       map[uint32]pg.LSN `json:",omitempty"`
	Retention      time.Duration     `json:",omitempty"`
	RetentionBytes uint64            `json:",omitempty"`

	// What main is, and how the branches descend from each other, as far as they have a base backup of their own or through another. A root of an older release
	// has neither: it knows one branch.
	Main  uint32 `json:",omitempty"`
	Lines []Line `json:",omitempty"`
}

// Line is how a branch came to be.
type Line struct {
	Branch   uint32
	Parent   uint32 // 0: it began with a base backup
	Fork     pg.LSN
	Timeline pg.TimelineID
	History  []byte // the .history file of Timeline
	Start    pg.LSN
}

// line is how a branch came to be.
func (r *Root) line(branch uint32) Line {
	for _, l := range r.Lines {
		if l.Branch == branch {
			return l
		}
	}
	return Line{Branch: branch}
}

// BranchRoot is a branch in a Root.
type BranchRoot struct {
	Branch    uint32
	Manifests []ManifestRoot // by shard
}

// whole tells whether a branch can be restored by itself: there is a manifest of each shard, and of what is small.
func (b *BranchRoot) whole(shards uint32) bool {
	return len(b.Manifests) == int(shards)+1 && slices.ContainsFunc(b.Manifests, func(m ManifestRoot) bool { return m.Shard == Small })
}

// ManifestRoot is a shard's manifest in a Root.
type ManifestRoot struct {
	Shard placement.Shard
	Ref   string
	LSN   pg.LSN
}

const rootDir = "root/"

func (r *Root) name() string { return fmt.Sprintf("%s%016x-%016x", rootDir, r.Epoch, r.Counter) }

// ErrNoRoot means that a store holds no backup.
var ErrNoRoot = errors.New("the store holds no backup of a cluster")

// roots lists the names of the root objects, oldest first.
func roots(ctx context.Context, s store.Store) (names []string, err error) {
	err = s.List(ctx, rootDir, func(i store.Info) error {
		if _, _, ok := parseRoot(i.Name); ok {
			names = append(names, i.Name)
		}
		return nil
	})
	return names, err
}

func parseRoot(name string) (epoch, counter uint64, ok bool) {
	a, b, ok := strings.Cut(strings.TrimPrefix(name, rootDir), "-")
	if !ok || len(a) != 16 || len(b) != 16 {
		return 0, 0, false
	}
	epoch, err1 := strconv.ParseUint(a, 16, 64)
	counter, err2 := strconv.ParseUint(b, 16, 64)
	return epoch, counter, err1 == nil && err2 == nil
}

// ReadRoot finds the newest root of a store. One that is damaged is passed over for the one before.
func ReadRoot(ctx context.Context, s store.Store) (*Root, error) {
	names, err := roots(ctx, s)
	if err != nil {
		return nil, err
	}
	var damaged error
	for _, name := range slices.Backward(names) {
		r, err := readRoot(ctx, s, name)
		if err != nil {
			if store.Temporary(err) {
				return nil, err
			}
			damaged = errors.Join(damaged, err)
			continue
		}
		if r.Format > rootFormat {
			return nil, fmt.Errorf("%s in %s has format %d, this release knows up to %d: use the newer release", name, s, r.Format, rootFormat)
		}
		return r, nil
	}
	if damaged != nil {
		return nil, damaged
	}
	return nil, fmt.Errorf("%w: %s", ErrNoRoot, s)
}

func readRoot(ctx context.Context, s store.Store, name string) (*Root, error) {
	b, err := store.ReadAll(ctx, s, name, 0, -1)
	if err != nil {
		return nil, err
	}
	var r Root
	if err := openJSON(b, &r); err != nil {
		return nil, &store.Error{Op: "get", Name: name, Kind: store.ErrCorrupt, Err: err}
	}
	return &r, nil
}

// keepRoots is how many older roots stay, against damage to the newest.
const keepRoots = 3

// rootWriter writes one leader's roots.
type rootWriter struct {
	store   store.Store
	term    uint64 // in which it leads
	epoch   uint64
	counter uint64
	names   []string // of those that are there
}

// openRoots finds out which roots there are, so that the next one is the newest.
func openRoots(ctx context.Context, s store.Store, term uint64) (*rootWriter, error) {
	names, err := roots(ctx, s)
	if err != nil {
		return nil, err
	}
	w := &rootWriter{store: s, term: term, names: names, epoch: 1}
	if n := len(names); n > 0 {
		epoch, _, _ := parseRoot(names[n-1])
		w.epoch = epoch + 1
	}
	return w, nil
}

// write writes the next root. After an error the writer is of no more use: the root may be there, and an epoch that another one has taken is not shared.
func (w *rootWriter) write(ctx context.Context, r Root) error {
	w.counter++
	r.Format, r.Epoch, r.Counter, r.Written = rootFormat, w.epoch, w.counter, time.Now().UTC()
	b, err := sealJSON(r)
	if err != nil {
		return err
	}
	if err := w.store.Put(ctx, r.name(), store.Bytes(b)); err != nil {
		return err
	}
	w.names = append(w.names, r.name())
	for len(w.names) > keepRoots+1 {
		if err := w.store.Delete(ctx, w.names[0]); err != nil {
			return nil // the next time
		}
		w.names = w.names[1:]
	}
	return nil
}
