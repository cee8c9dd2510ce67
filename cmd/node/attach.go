package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"everpage/cluster"
	"everpage/cluster/command"
	"everpage/cluster/fsm"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// attach records the primary to follow; run does the rest.
func (f *follower) attach(ctx context.Context, conninfo string) error {
	server, where, err := f.identify(ctx, conninfo)
	if err != nil {
		return err
	}
	if err := server.CheckSource(); err != nil {
		return err
	}
	f.deciding.Lock()
	defer f.deciding.Unlock()
	st := f.view()
	switch {
	case st.SystemIdentifier != 0 && st.SystemIdentifier != server.SystemID:
		return fmt.Errorf("%w: this cluster holds the history of system %d, the server is %d; everpage detach removes it", stream.ErrSystem, st.SystemIdentifier, server.SystemID)
	case st.Major != 0 && st.Major != server.Major:
		return fmt.Errorf("%w: this cluster holds the history of PostgreSQL %d, the server is %d", stream.ErrMajor, st.Major, server.Major)
	case st.Conninfo == conninfo:
		return nil // attached already: the same words may be said twice
	}
	slots, err := f.slots()
	if err != nil {
		return err
	}
	if st.SystemIdentifier == server.SystemID && st.Imported {
		if server.Timeline < st.Timeline {
			return fmt.Errorf("%w: it is on timeline %d, we follow %d: it is a copy from before the last promotion, or the old primary", stream.ErrTimeline, server.Timeline, st.Timeline)
		}
		// A history that was kept goes on, or a standby that was promoted is followed. Detaching has dropped the slots, and a standby never had them; whether
		// the primary still has the WAL in between, the receivers see.
		there := st
		there.Conninfo = conninfo
		for _, there.Slot = range slots {
			if err := f.ensureSlot(ctx, there); err != nil {
				return err
			}
		}
	}
	importer := f.n.cluster.Leader()
	if importer == "" {
		importer = f.n.cluster.ID()
	}
	_, err = f.n.cluster.Propose(ctx, &command.Attach{
		Conninfo: conninfo, Primary: where, SystemIdentifier: server.SystemID, Major: server.Major, WALSegmentSize: uint32(server.SegmentSize), Importer: importer, Slots: slots,
	})
	return err
}

// slots are the names of all nodes' slots.
func (f *follower) slots() ([]string, error) {
	var out []string
	for _, n := range f.n.cluster.State().Nodes {
		slot, err := stream.NodeSlot(f.n.cfg.Cluster, n.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, slot)
	}
	return out, nil
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

// ensureSlot makes our slot, and the one that holds WAL for the store, where they are missing. Where WAL is followed already, a slot that is gone means that WAL
// may be, too.
func (f *follower) ensureSlot(ctx context.Context, st state) error {
	slots, err := f.holdSlots()
	if err != nil {
		return err
	}
	for _, slot := range append(slots, st.Slot) {
		if err := ensureSlot(ctx, st.Conninfo, slot, st.line()); err != nil {
			return err
		}
	}
	return nil
}

func ensureSlot(ctx context.Context, conninfo, slot string, line stream.Line) error {
	c, err := stream.ConnectOne(ctx, conninfo, stream.Replication, backupName, line)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = stream.EnsureSlot(ctx, c, slot)
	return err
}

// detachTimeout bounds what detach asks of the primary.
const detachTimeout = 10 * time.Second

// detach stops following, drops the slots of all nodes and, unless keep, the history.
func (f *follower) detach(ctx context.Context, keep bool) (*pb.DetachResponse, error) {
	f.deciding.Lock()
	defer f.deciding.Unlock()
	if err := f.n.cluster.Sync(ctx); err != nil {
		return nil, err
	}
	s := f.n.cluster.State()
	if s.Follow.Conninfo == "" && len(s.Left) == 0 && (keep || len(s.Branches) == 0 && s.Follow.SystemIdentifier == 0) {
		return nil, fmt.Errorf("%w: no primary is attached", errState)
	}
	followed := f.view().line()
	line := func(l fsm.LeftSlot) stream.Line {
		if l.Conninfo == s.Follow.Conninfo {
			return followed
		}
		return stream.Line{} // left behind on another primary before
	}
	if s.Follow.Conninfo != "" {
		if err := f.leave(ctx); err != nil {
			return nil, err
		}
	}
	resp := &pb.DetachResponse{}
	if left := f.n.cluster.State().Left; len(left) > 0 {
		if err := f.dropHold(ctx, left[0], line(left[0])); err != nil {
			f.warn(err.Error())
		}
	}
	var failed []string
	var reasons []error
	for _, l := range f.n.cluster.State().Left {
		if err := dropSlot(ctx, l, line(l)); err != nil {
			failed, reasons = append(failed, l.Slot), append(reasons, err)
			continue
		}
		if _, err := f.n.cluster.Propose(ctx, &command.ForgetSlot{Slot: l.Slot}); err != nil {
			return nil, err
		}
		resp.DroppedSlots = append(resp.DroppedSlots, l.Slot)
	}
	if len(failed) > 0 {
		resp.Message, resp.Sql = "the slot could not be dropped: "+reasons[0].Error(), stream.DropSlotSQL(failed...)
	}
	if keep {
		return resp, nil
	}
	return resp, f.forget(ctx)
}

// leave ends following for good, once what this node received is in the store durably: nobody may feed it again from the spool. On an error it is followed again.
func (f *follower) leave(ctx context.Context) error {
	f.mu.Lock()
	f.paused = true
	f.wake()
	idle := f.idle
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.paused = false
		f.wake()
		f.mu.Unlock()
	}()
	select { // until the receiver has let go of the slot
	case <-idle:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := f.n.store.Flush(); err != nil {
		return err
	}
	slots, err := f.slots()
	if err != nil {
		return err
	}
	if _, err := f.n.cluster.Propose(ctx, &command.Detach{Slots: slots}); err != nil {
		return err
	}
	return f.refresh(f.n.cluster.State())
}

// dropSlot drops a slot of a server on the line; of several hosts those that are not on it are passed over, since their having no such slot says nothing. The
// zero Line is any.
func dropSlot(ctx context.Context, l fsm.LeftSlot, line stream.Line) error {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	for {
		err := func() error {
			c, err := stream.ConnectOne(ctx, l.Conninfo, stream.Replication, "everpage detach", line)
			if err != nil {
				return err
			}
			defer c.Close()
			return stream.DropSlot(ctx, c, l.Slot)
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

// forget removes the history, here at once and on other nodes as soon as they hear of it.
func (f *follower) forget(ctx context.Context) error {
	if _, err := f.n.cluster.Propose(ctx, &command.DropBranches{}); err != nil {
		return err
	}
	if err := f.refresh(f.n.cluster.State()); err != nil {
		return err
	}
	f.mu.Lock()
	idle := f.idle
	f.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
		return ctx.Err()
	}
	return f.dropStale(ctx)
}

// reserveTimeline gives out a timeline id that was never given before and is above those of the primary.
func (f *follower) reserveTimeline(ctx context.Context) (pg.TimelineID, error) {
	return cluster.ProposeFor[pg.TimelineID](ctx, f.n.cluster, &command.ReserveTimeline{})
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
