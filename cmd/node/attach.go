package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// attach records the primary to follow; run does the rest.
func (f *follower) attach(ctx context.Context, conninfo string) error {
	slot, err := stream.NodeSlot(f.n.cfg.Cluster, f.n.cfg.Node)
	if err != nil {
		return err
	}
	server, where, err := f.identify(ctx, conninfo)
	if err != nil {
		return err
	}
	if err := server.CheckSource(); err != nil {
		return err
	}
	f.deciding.Lock()
	defer f.deciding.Unlock()
	f.mu.Lock()
	kept := f.st.Conninfo == "" && f.st.SystemIdentifier == server.SystemID && !f.needsImport()
	f.mu.Unlock()
	if kept {
		// A history that was kept goes on. Detaching has dropped the slot; whether the primary still has the WAL in between, the receiver sees.
		if err := f.ensureSlot(ctx, conninfo, slot); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.st.SystemIdentifier != 0 && f.st.SystemIdentifier != server.SystemID {
		return fmt.Errorf("%w: this node holds the history of system %d, the server is %d; everpage detach removes it", stream.ErrSystem, f.st.SystemIdentifier, server.SystemID)
	}
	if f.st.Major != 0 && f.st.Major != server.Major {
		return fmt.Errorf("%w: this node holds the history of PostgreSQL %d, the server is %d", stream.ErrMajor, f.st.Major, server.Major)
	}
	if f.st.Conninfo == conninfo {
		return nil // attached already: the same words may be said twice
	}
	next := f.st
	next.Primary = where
	if next.Left != nil && next.Left.Slot == slot && next.SystemIdentifier == server.SystemID {
		next.Left = nil // it is in use again
	}
	next.Conninfo, next.Slot, next.SystemIdentifier, next.Major, next.WALSegmentSize = conninfo, slot, server.SystemID, server.Major, uint32(server.SegmentSize)
	return f.change(next)
}

// change makes a new state durable and wakes run. The caller holds mu.
func (f *follower) change(next state) error {
	if err := next.save(f.n.cfg.Data); err != nil {
		return err
	}
	f.st = next
	f.n.redoer.set(next.Major)
	f.wake()
	return nil
}

// wake makes run look at the state again. The caller holds mu.
func (f *follower) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *follower) identify(ctx context.Context, conninfo string) (server stream.Server, where string, err error) {
	c, err := stream.Connect(ctx, conninfo, stream.Replication, f.n.cfg.Node)
	if err != nil {
		return server, "", err
	}
	defer c.Close()
	server, err = stream.Identify(ctx, c)
	return server, c.Where(), err
}

// ensureSlot makes our slot where it is missing. It is called for an import only: later, a slot that is gone means that WAL may be.
func (f *follower) ensureSlot(ctx context.Context, conninfo, slot string) error {
	slots, err := f.holdSlots()
	if err != nil {
		return err
	}
	for _, slot := range append(slots, slot) {
		if err := ensureSlot(ctx, conninfo, slot); err != nil {
			return err
		}
	}
	return nil
}

func ensureSlot(ctx context.Context, conninfo, slot string) error {
	c, err := stream.Connect(ctx, conninfo, stream.Replication, backupName)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = stream.EnsureSlot(ctx, c, slot)
	return err
}

// detachTimeout bounds what detach asks of the primary.
const detachTimeout = 10 * time.Second

// detach stops following, drops our slot and, unless keep, the history.
func (f *follower) detach(ctx context.Context, keep bool) (*pb.DetachResponse, error) {
	f.deciding.Lock()
	defer f.deciding.Unlock()
	f.mu.Lock()
	st := f.st
	if st.Conninfo == "" && st.Left == nil && (keep || st.SystemIdentifier == 0) {
		f.mu.Unlock()
		return nil, fmt.Errorf("%w: no primary is attached", errState)
	}
	f.st.Conninfo = ""
	if st.Conninfo != "" {
		f.st.Left = &leftSlot{Conninfo: st.Conninfo, Slot: st.Slot, Primary: st.Primary}
	}
	left := f.st.Left
	f.wake()
	idle := f.idle
	f.mu.Unlock()
	if err := f.leave(ctx, idle, st); err != nil {
		return nil, err
	}
	resp := &pb.DetachResponse{}
	if left != nil {
		if err := f.dropHold(ctx, left); err != nil {
			f.warn(err.Error())
		}
		if err := dropSlot(ctx, left); err != nil {
			resp.Message, resp.Sql = "the slot could not be dropped: "+err.Error(), stream.DropSlotSQL(left.Slot)
		} else if err := f.forgetSlot(); err != nil {
			return nil, err
		} else {
			resp.DroppedSlots = []string{left.Slot}
		}
	}
	if keep {
		return resp, nil
	}
	return resp, f.forget()
}

// leave ends following for good, once what was received is in the store durably: nobody will feed it again from the spool. On an error st is followed again.
func (f *follower) leave(ctx context.Context, idle <-chan struct{}, st state) error {
	err := func() error {
		select { // until the receiver has let go of the slot
		case <-idle:
		case <-ctx.Done():
			return ctx.Err()
		}
		return f.n.store.Flush()
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		err = f.st.save(f.n.cfg.Data)
	}
	if err != nil {
		f.st.Conninfo, f.st.Left = st.Conninfo, st.Left
		f.wake()
	}
	return err
}

// forgetSlot notes that the slot that was left is gone.
func (f *follower) forgetSlot() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.st
	next.Left = nil
	if err := next.save(f.n.cfg.Data); err != nil {
		return err
	}
	f.st = next
	return nil
}

func dropSlot(ctx context.Context, st *leftSlot) error {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	for {
		err := func() error {
			c, err := stream.Connect(ctx, st.Conninfo, stream.Replication, "everpage detach")
			if err != nil {
				return err
			}
			defer c.Close()
			return stream.DropSlot(ctx, c, st.Slot)
		}()
		if !errors.Is(err, stream.ErrSlotActive) {
			return err
		}
		select { // the server notices the end of our last connection in a moment
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// forget removes the history. Nothing is followed now.
func (f *follower) forget() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.st.Conninfo != "" {
		return fmt.Errorf("%w: a primary was attached meanwhile", errState)
	}
	if err := f.n.dropHistory(); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(f.n.cfg.Data, spoolDir)); err != nil {
		return err
	}
	fresh := state{Format: stateFormat, Cluster: f.st.Cluster, Node: f.st.Node, Shards: f.st.Shards, NextTimeline: f.st.NextTimeline, Left: f.st.Left}
	f.imported, f.importTotal, f.warnings = 0, 0, nil
	return f.change(fresh)
}

// reserveTimeline gives out a timeline id that was never given before and is above those of the primary. It is durable before it is told.
func (f *follower) reserveTimeline() (pg.TimelineID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.st.Timeline == 0 {
		return 0, fmt.Errorf("%w: there is no history yet", errState)
	}
	next := f.st
	tli := max(next.NextTimeline, next.Timeline+1)
	next.NextTimeline = tli + 1
	if err := next.save(f.n.cfg.Data); err != nil {
		return 0, err
	}
	f.st = next
	return tli, nil
}

// preflight tells what following that primary needs, and what of it is missing.
func (f *follower) preflight(ctx context.Context, conninfo string) ([]*pb.Preflight, error) {
	plan, err := stream.Preflight(ctx, stream.PlanOptions{Conninfo: conninfo, Cluster: f.n.cfg.Cluster, Node: f.n.cfg.Node})
	if err != nil {
		return nil, err
	}
	var checks []*pb.Preflight
	for _, n := range plan.Needs {
		level := map[stream.NeedState]string{stream.Met: levelOK, stream.Missing: levelError}[n.State]
		if level == "" {
			level = levelWarning
		}
		checks = append(checks, &pb.Preflight{Name: n.What, Level: level, Message: describeNeed(n), Remedy: strings.Join(n.Fix, "\n")})
	}
	return append(checks, f.diskCheck(plan.DatabaseBytes)), nil
}

func describeNeed(n stream.Need) string {
	text := n.Have
	if text == "" {
		text = string(n.State)
	}
	if n.Want != "" && n.State != stream.Met {
		text += ", want " + n.Want
	}
	if n.Why != "" && n.State != stream.Met {
		text += ": " + n.Why
	}
	return text
}

// The levels of a preflight check.
const (
	levelOK      = "ok"
	levelWarning = "warning"
	levelError   = "error"
)

// diskCheck holds the space that is left here against the base backup and the WAL kept in the spool.
func (f *follower) diskCheck(database int64) *pb.Preflight {
	c := &pb.Preflight{Name: "disk", Level: levelWarning}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(f.n.cfg.Data, &fs); err != nil || database < 0 {
		c.Message = "what the import needs is not known"
		return c
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	need := database + int64(f.n.cfg.SpoolKeep)
	c.Message = fmt.Sprintf("the base backup has %d MB, the spool keeps up to %d MB of WAL, %d MB are free in %s; history grows with the WAL",
		database>>20, f.n.cfg.SpoolKeep>>20, free>>20, f.n.cfg.Data)
	c.Level = levelOK
	if free < need { // an estimate: pages are compressed, and WAL comes slowly or fast
		c.Level, c.Remedy = levelWarning, fmt.Sprintf("make at least %d MB free, or give the node another --data", (need-free)>>20)
	}
	return c
}
