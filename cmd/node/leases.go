package node

import (
	"context"
	"errors"
	"time"

	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/pageapi"
)

// leases are agreed on by the cluster; the leader ends those that were not renewed in time.
type leases struct{ n *Node }

// maxLease bounds a lease: whoever wants more renews it.
const maxLease = 24 * time.Hour

// Lease implements pageapi.Leases.
func (l leases) Lease(ctx context.Context, lease pageapi.Lease, d time.Duration) (pageapi.Lease, error) {
	c := l.n.cluster
	if d <= 0 {
		_, err := c.Propose(ctx, &command.EndLeases{Leases: []uint64{lease.ID}})
		return lease, leaseError(err)
	}
	d = min(max(d, time.Second), maxLease)
	lease.Pos.Branch = l.n.pages.branch(lease.Pos.Branch)
	if lease.ID == 0 {
		p, ok := l.n.store.Progress(lease.Pos.Branch)
		switch {
		case !ok:
			return lease, noData(lease.Pos.Branch)
		case lease.Pos.LSN == 0:
			lease.Pos.LSN = p.Readable
		case p.Consistent == 0 || lease.Pos.LSN < l.n.store.Oldest(lease.Pos.Branch):
			return lease, tooOld(lease.Pos, l.n.store.Oldest(lease.Pos.Branch))
		}
	}
	began := time.Now() // the leader counts from when it hears of it, which is later
	id, err := cluster.ProposeFor[uint64](ctx, c, &command.Lease{
		Branch: lease.Pos.Branch, LSN: lease.Pos.LSN, Seconds: uint32((d + time.Second - 1) / time.Second), Renew: lease.ID,
	})
	if err != nil {
		return lease, leaseError(err)
	}
	lease.ID, lease.Expires = id, began.Add(d)
	return lease, nil
}

func leaseError(err error) error {
	var refused *cluster.Refused
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return pageapi.Errorf(pageapi.OutOfWindow, "%w", err)
	}
	return pageapi.Errorf(pageapi.Unavailable, "%w", err)
}
