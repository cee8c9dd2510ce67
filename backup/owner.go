package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"everpage/backup/store"
)

// ErrTaken means that another cluster has a store: it was recovered from there, or it has been there first. Whoever is told so must neither write layers,
// manifests and roots nor delete anything.
var ErrTaken = errors.New("the store is another cluster's")

// Owner is a cluster's claim on a store. Two clusters must not write to one: each would take the other's objects for garbage. Claims are objects with a
// number, made once and never changed; the newest says whose the store is. A cluster claims it once: whoever finds a newer claim than its own was followed
// by another cluster, however long it was paused meanwhile.
type Owner struct {
	Store  store.Store
	ID     string          // of the cluster
	Name   string          // of cluster and node, for people
	Former func() []string // ids that the cluster had before

	mu     sync.Mutex
	number uint64 // of our claim; 0: not known yet
}

// claim is one claim.
type claim struct {
	ID   string
	Name string
	Time time.Time
}

const ownerDir = "owner/"

func claimName(number uint64) string { return fmt.Sprintf("%s%016x", ownerDir, number) }

// Check makes sure that the store is this cluster's, and makes it so where it is nobody's. It costs one request where that is so.
func (o *Owner) Check(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.number == 0 {
		return o.settle(ctx, false)
	}
	_, err := o.Store.Stat(ctx, claimName(o.number+1))
	switch {
	case errors.Is(err, store.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return o.settle(ctx, false)
}

// Take makes the store this cluster's, whoever had it: as a recovery does.
func (o *Owner) Take(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.settle(ctx, true)
}

func (o *Owner) settle(ctx context.Context, take bool) error {
	for {
		numbers, err := claims(ctx, o.Store)
		if err != nil {
			return err
		}
		var newest uint64
		if len(numbers) > 0 {
			newest = numbers[len(numbers)-1]
			c, err := readClaim(ctx, o.Store, newest)
			if err != nil {
				return err
			}
			switch {
			case c.ID == o.ID:
				o.number = newest
				return nil
			case take, o.number == 0 && slices.Contains(o.Former(), c.ID):
			default:
				return fmt.Errorf("%w: %s (cluster id %s) took %s at %s, this is cluster id %s: give this one another --store", ErrTaken, c.Name, c.ID, o.Store,
					c.Time.Format(time.RFC3339), o.ID)
			}
		}
		b, err := sealJSON(claim{o.ID, o.Name, time.Now().UTC()})
		if err != nil {
			return err
		}
		err = o.Store.Put(ctx, claimName(newest+1), store.Bytes(b))
		if err == nil {
			o.number = newest + 1
			return nil
		}
		if !errors.Is(err, store.ErrExists) { // else: another node of this cluster, or of another one, was faster; or an answer was lost
			return err
		}
	}
}

func claims(ctx context.Context, s store.Store) (numbers []uint64, err error) {
	err = s.List(ctx, ownerDir, func(i store.Info) error {
		n, err := strconv.ParseUint(strings.TrimPrefix(i.Name, ownerDir), 16, 64)
		if err == nil && claimName(n) == i.Name {
			numbers = append(numbers, n)
		}
		return nil
	})
	slices.Sort(numbers)
	return numbers, err
}

func readClaim(ctx context.Context, s store.Store, number uint64) (c claim, err error) {
	name := claimName(number)
	b, err := store.ReadAll(ctx, s, name, 0, -1)
	if err == nil {
		if err = openJSON(b, &c); err != nil {
			err = &store.Error{Op: "get", Name: name, Kind: store.ErrCorrupt, Err: err}
		}
	}
	return c, err
}
