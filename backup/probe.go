package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"everpage/backup/store"
)

// probeDir has objects that nodes write to see whether they can. One that stays is garbage.
const probeDir = "probe/"

// Probe writes an object under a node's id and removes it. It returns when that was, by the store's clock.
func Probe(ctx context.Context, s store.Store, node string) (time.Time, error) {
	name := fmt.Sprintf("%s%s-%016x", probeDir, node, time.Now().UnixNano())
	if err := s.Put(ctx, name, store.Bytes([]byte(name))); err != nil {
		return time.Time{}, err
	}
	i, err := s.Stat(ctx, name)
	return i.Modified, errors.Join(err, s.Delete(ctx, name))
}
