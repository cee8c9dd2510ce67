package node

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"everpage/backup/archive"
	"everpage/backup/store"
)

// TestStuck: a leader is stuck while there is WAL that does not get to the store, for a reason that another node may not have.
func TestStuck(t *testing.T) {
	away := fmt.Errorf("put: %w", &store.Error{Kind: store.ErrUnavailable})
	var x stuck
	now := time.Unix(1_000_000, 0)
	for i, c := range []struct {
		st   archive.Status
		pass time.Duration
		want time.Duration
	}{
		{archive.Status{}, 0, 0},
		{archive.Status{End: 10, Durable: 10}, time.Hour, 0},            // nothing to do
		{archive.Status{End: 10, Durable: 20, Err: away}, time.Hour, 0}, // just begun
		{archive.Status{End: 10, Durable: 30, Err: away}, 10 * time.Second, 10 * time.Second},
		{archive.Status{End: 10, Durable: 30}, 10 * time.Second, 20 * time.Second}, // tried again, hangs
		{archive.Status{End: 15, Durable: 30}, 10 * time.Second, 0},                // it moves
		{archive.Status{End: 15, Durable: 30, Err: away}, 30 * time.Second, 30 * time.Second},
		{archive.Status{End: 15, Durable: 30, Err: archive.ErrDiverged}, 30 * time.Second, 0}, // nobody else could
		{archive.Status{End: 15, Durable: 30, Err: away}, 30 * time.Second, 0},
		{archive.Status{End: 15, Durable: 30, Err: errors.New("the disk is full")}, 30 * time.Second, 0},
		{archive.Status{Durable: 30, Err: away}, 30 * time.Second, 0}, // a leader that can't even list
		{archive.Status{Durable: 30, Err: away}, 40 * time.Second, 40 * time.Second},
		{archive.Status{Durable: 30, Err: &store.Error{Kind: store.ErrCorrupt}}, time.Second, 0},
	} {
		now = now.Add(c.pass)
		if got := x.look(c.st, now); got != c.want {
			t.Errorf("%d: stuck for %s, want %s", i, got, c.want)
		}
	}
}
