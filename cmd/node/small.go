package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal"
	"everpage/wal/pg"
)

// copySmall makes branches here of what every node keeps whole, from nodes that have it, each after the one that it forked off. The slot is made before, so that
// the primary keeps the WAL that comes behind.
func (f *follower) copySmall(ctx context.Context, line []state) error {
	f.set(stateImporting, "")
	if len(f.n.store.Branches()) == 0 {
		if err := os.RemoveAll(filepath.Join(f.n.cfg.Data, spoolDir)); err != nil {
			return err
		}
	}
	if err := f.ensureSlot(ctx, line[len(line)-1]); err != nil {
		return err
	}
	for _, st := range line {
		if _, here := f.n.store.Progress(st.Branch); here {
			continue
		}
		if err := f.copyBranch(ctx, st); err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) copyBranch(ctx context.Context, st state) error {
	if err := f.n.store.Flush(); err != nil { // another branch may have been fed from that timeline's spool
		return err
	}
	if err := removeTimeline(filepath.Join(f.n.cfg.Data, spoolDir), st); err != nil {
		return err
	}
	var errs []error
	for _, address := range f.n.others() {
		r, err := f.n.peers.small(ctx, address, st.Branch)
		if err == nil {
			p, err := f.n.store.ImportSmall(ctx, st.Branch, r)
			if err == nil {
				f.log.Info("the branch is here, without pages as yet", "branch", st.Branch, "of", address, "readable", p.Readable)
				return nil
			}
			errs = append(errs, err)
			continue
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("no node has branch %d for this one: %w", st.Branch, errors.Join(errs...))
}

// others are the page addresses of the other nodes, those that gossip sees first.
func (n *Node) others() []string {
	var alive, silent []string
	for _, x := range n.cluster.State().Nodes {
		if x.ID == n.cluster.ID() {
			continue
		}
		address := n.cluster.PageAddress(x.ID)
		if ok, _ := n.cluster.Alive(x.ID); ok {
			alive = append(alive, address)
		} else {
			silent = append(silent, address)
		}
	}
	return append(alive, silent...)
}

// fill takes WAL into the spool from other nodes, from its end, or from first where it is empty, up to the furthest that any of them has. It never goes back:
// what is there already is compared.
func (f *follower) fill(ctx context.Context, spool *wal.Spool, branch uint32, first pg.LSN) error {
	var errs []error
	for _, address := range f.n.others() {
		errs = append(errs, f.fillFrom(ctx, spool, branch, first, address, false))
	}
	return errors.Join(errs...)
}

// fillFrom takes WAL from one node; with follow it goes on as that node gets more.
func (f *follower) fillFrom(ctx context.Context, spool *wal.Spool, branch uint32, first pg.LSN, address string, follow bool) error {
	at, err := spool.Sync()
	if err != nil {
		return err
	}
	if at == 0 {
		at = first
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := f.n.peers.at(address)
	if err != nil {
		return err
	}
	s, err := c.FetchWAL(ctx, &pb.FetchWALRequest{Branch: branch, Timeline: spool.Timeline(), From: uint64(at), Follow: follow})
	if err != nil {
		return pageapi.CallError(address, err)
	}
	r := &walStream{stream: s, address: address}
	for {
		more, err := r.next()
		if err != nil {
			return err
		}
		if !more {
			_, err := spool.Sync()
			return err
		}
		if err := spool.Append(pg.LSN(r.at), r.wal); err != nil {
			return fmt.Errorf("WAL of node %s: %w", address, err)
		}
		if r.at+uint64(len(r.wal)) < r.durable && !follow {
			continue
		}
		if _, err := spool.Sync(); err != nil {
			return err
		}
	}
}

// spoolStart says from where on this node has WAL of a branch that forked off here, or came from the store. The file copied.json lists them; of branches that were
// copied from other nodes the store itself says it, in the same step that makes them known.
type spoolStart struct {
	Branch uint32 `json:"branch"`
	At     pg.LSN `json:"at"`
}

const copiedFile = "copied.json"

func readCopied(dir string) (list []spoolStart) {
	b, err := os.ReadFile(filepath.Join(dir, copiedFile))
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil {
		return nil
	}
	return list
}

func markCopy(dir string, s spoolStart) error {
	list := slices.DeleteFunc(readCopied(dir), func(x spoolStart) bool { return x.Branch == s.Branch })
	b, err := json.Marshal(append(list, s))
	if err != nil {
		return err
	}
	path := filepath.Join(dir, copiedFile)
	if err := writeSynced(path+".new", b); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(dir)
}

// writeSynced writes a file that is whole or not there after a power loss, once it is renamed.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// copied tells whether the branch began here at at, so that nothing of its WAL before that was ever relied on here.
func (f *follower) copied(branch uint32, at pg.LSN) bool {
	if p, ok := f.n.store.Progress(branch); ok && p.Copied != 0 && p.Copied == at {
		return true
	}
	return slices.Contains(readCopied(f.n.cfg.Data), spoolStart{branch, at})
}
