package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// promote kills the primary for good and promotes a standby, which replicates asynchronously: it may not have all that the nodes have acknowledged.
func (r *run) promote(ctx context.Context) (err error) {
	r.moves++
	name := fmt.Sprintf("standby-%d", r.moves)
	standby, err := r.primary.Standby(ctx, name, r.server(name))
	if err != nil {
		return err
	}
	defer func() {
		if r.primary != standby {
			err = errors.Join(err, standby.Close())
		}
	}()
	both := fmt.Sprintf("host=%s,%s port=%d,%d user=postgres dbname=postgres sslmode=disable connect_timeout=5 target_session_attrs=read-write",
		r.net.host(), r.net.host(), r.primary.Port(), standby.Port())
	if res := r.cluster.Nodes[r.victim()].Run(ctx, "attach", both, "--wait", "--quiet"); res.Code != 0 {
		return fmt.Errorf("attach: exit code %d: %s", res.Code, res.Stderr)
	}
	if err := r.pause(ctx, r.between(300, 2000)); err != nil {
		return err
	}
	old := r.primary
	if err := old.Kill9(ctx); err != nil {
		return err
	}
	before := r.load
	before.stop()
	acked, longest := before.acknowledged()
	before.longest = longest // it is taken over below
	r.acked = append(r.acked, acked...)
	if n := len(acked); n > 0 {
		r.number = acked[n-1] + 10
	}
	if err := r.pause(ctx, r.between(0, 2000)); err != nil {
		return err
	}
	if _, err := standby.SQL(ctx, "postgres", "select pg_promote()"); err != nil {
		return err
	}
	r.primary = standby
	r.load = startLoad(ctx, r.primary, r.number)
	r.load.follows(before)
	if err := r.onNewBranch(ctx); err != nil {
		return err
	}
	if err := old.Close(); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Dir(old.DataDir()))
}

// onNewBranch waits until every node says that main is a branch after the one that it was.
func (r *run) onNewBranch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	was, is := r.branch, uint32(0)
	for _, n := range r.cluster.Nodes {
		for {
			var info struct {
				Branches []struct {
					Number uint32
					Alias  string
				}
			}
			err := n.JSON(ctx, &info, "info")
			is = was
			for _, b := range info.Branches {
				if b.Alias == "main" {
					is = b.Number
				}
			}
			if err == nil && is != was {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("main stays branch %d after a promotion: %+v, error %v", was, info, err)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	r.branch, r.left = is, append(r.left, was)
	return nil
}
