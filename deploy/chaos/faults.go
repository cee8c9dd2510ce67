package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// faults are the kinds: each injects one, and heals it.
var faults = map[string]func(*run, context.Context) error{
	"kill":            (*run).kill,
	"pause":           (*run).stopped,
	"partition":       func(r *run, ctx context.Context) error { return r.cut(ctx, "drop", "drop") },
	"partition-in":    func(r *run, ctx context.Context) error { return r.cut(ctx, "drop", "") },
	"partition-out":   func(r *run, ctx context.Context) error { return r.cut(ctx, "", "drop") },
	"slow-link":       func(r *run, ctx context.Context) error { return r.cut(ctx, lossy, lossy) },
	"full-disk":       (*run).fullDisk,
	"slow-disk":       (*run).slowDisk,
	"wipe":            (*run).wipe,
	"rolling-restart": (*run).rolling,
	"primary":         (*run).killPrimary,
	"promotion":       (*run).promote,
	"blackout":        (*run).blackout,
	"leader-in-move":  (*run).leaderInMove,
}

// kindsFor are the kinds that a cluster of three nodes with so many replicas can have, in the order in which they are injected.
func kindsFor(replicas int) []string {
	if replicas < nodeCount {
		return []string{"leader-in-move", "kill", "partition"}
	}
	return []string{"kill", "pause", "partition", "partition-in", "partition-out", "slow-link", "full-disk", "slow-disk", "rolling-restart", "primary", "blackout", "promotion", "wipe"}
}

// lossy is a bad link: a fifth of all packets is lost. (netem's delays are not in every kernel; a lost packet delays what comes behind it by 200 ms and more.)
const lossy = "numgen random mod 10 < 2 drop"

func (r *run) victim() int { return r.random.IntN(nodeCount) }

func (r *run) kill(ctx context.Context) error {
	n := r.cluster.Nodes[r.victim()]
	n.Kill9()
	if err := r.pause(ctx, r.between(200, 4000)); err != nil {
		return err
	}
	return n.StartAgain(ctx)
}

// stopped has a node sleep for longer than the others wait for it. What it says when it wakes up must still be right.
func (r *run) stopped(ctx context.Context) error {
	n := r.cluster.Nodes[r.victim()]
	if err := n.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	err := r.pause(ctx, r.between(6000, 12000))
	return errors.Join(err, n.Signal(syscall.SIGCONT))
}

// cut parts a node from the other nodes and the primary; clients still reach it.
func (r *run) cut(ctx context.Context, in, out string) error {
	v := r.victim()
	if err := r.net.rules(ctx, v, in, out, append(r.net.others(v), r.net.host())...); err != nil {
		return err
	}
	// The primary and the clients have one address: their connections are told apart by the primary's port.
	err := r.pause(ctx, r.between(2000, 9000))
	return errors.Join(err, r.net.heal(context.WithoutCancel(ctx), v))
}

// fullDisk fills the file system of one node to the last byte for a while.
func (r *run) fullDisk(ctx context.Context) error {
	ballast := filepath.Join(r.tmpfs, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(block)
		if err != nil && len(block) > 1 {
			block, err = block[:len(block)/2], nil
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return errors.Join(err, f.Close())
	}
	err = r.pause(ctx, r.between(2000, 6000))
	return errors.Join(err, f.Close(), os.Remove(ballast))
}

// slowDisk has every write and every fsync of one node take as long as on a disk that is about to fail.
func (r *run) slowDisk(ctx context.Context) error {
	r.disk.delay.Store(int64(r.between(100, 1000)))
	err := r.pause(ctx, r.between(3000, 8000))
	r.disk.delay.Store(0)
	return err
}

// wipe takes a node's data directory away: it must come back as a new one, and fetch all from the others. The first node, which would make a cluster of its own,
// is told to join like the others.
func (r *run) wipe(ctx context.Context) error {
	v := r.victim()
	n := r.cluster.Nodes[v]
	n.Kill9()
	entries, err := os.ReadDir(n.Data())
	if err != nil {
		return err
	}
	for _, e := range entries { // the directory itself may be a mount
		if err := os.RemoveAll(filepath.Join(n.Data(), e.Name())); err != nil {
			return err
		}
	}
	if err := r.pause(ctx, r.between(500, 3000)); err != nil {
		return err
	}
	other := r.cluster.Nodes[(v+1)%nodeCount]
	n.SetArgs("--node", fmt.Sprintf("node%d", v+1), "--join", other.Address(), "--dead-after", "30s", "--spool-keep", fmt.Sprint(128<<20), "--run", fmt.Sprint(8<<20))
	return n.StartAgain(ctx)
}

// rolling stops and starts one node after the other, as an upgrade does.
func (r *run) rolling(ctx context.Context) error {
	for i, n := range r.cluster.Nodes {
		if err := n.Stop(); err != nil {
			return fmt.Errorf("node%d does not stop in order: %w", i+1, err)
		}
		if err := n.StartAgain(ctx); err != nil {
			return err
		}
		if err := r.settled(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) killPrimary(ctx context.Context) error {
	if err := r.primary.Kill9(ctx); err != nil {
		return err
	}
	if err := r.pause(ctx, r.between(200, 3000)); err != nil {
		return err
	}
	return r.primary.StartAgain(ctx)
}

// leaderInMove has a shard moved to the node that hasn't got it, and kills the leader while it is on its way.
func (r *run) leaderInMove(ctx context.Context) error {
	var list struct {
		Shards []struct {
			Replicas []struct {
				Node string `json:"node"`
			} `json:"replicas"`
		} `json:"shards"`
	}
	if err := r.cluster.Nodes[r.victim()].JSON(ctx, &list, "shard", "list"); err != nil {
		return err
	}
	shard := r.random.IntN(len(list.Shards))
	has := map[string]bool{}
	for _, x := range list.Shards[shard].Replicas {
		has[x.Node] = true
	}
	to := ""
	for i := range nodeCount {
		if name := fmt.Sprintf("node%d", i+1); !has[name] {
			to = name
		}
	}
	if to == "" {
		return fmt.Errorf("shard %d is on all nodes: there is nothing to move", shard)
	}
	from := list.Shards[shard].Replicas[0].Node
	members, err := r.cluster.Nodes[0].Members(ctx)
	if err != nil {
		return err
	}
	if res := r.cluster.Nodes[0].Run(ctx, "shard", "move", fmt.Sprint(shard), to, "--from", from); res.Code != 0 {
		return fmt.Errorf("shard move: exit code %d: %s", res.Code, res.Stderr)
	}
	for i, m := range members {
		if m.Leader {
			n := r.cluster.Nodes[i]
			if err := r.pause(ctx, time.Duration(r.random.IntN(150))*time.Millisecond); err != nil {
				return err
			}
			n.Kill9()
			if err := r.pause(ctx, r.between(200, 4000)); err != nil {
				return err
			}
			return n.StartAgain(ctx)
		}
	}
	return errors.New("nobody leads")
}
