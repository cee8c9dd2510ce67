package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"everpage/backup"
	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/cluster/fsm"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// backups is a node's part in the backup: the store, and what goes there.
type backups struct {
	store    *store.Counter
	limited  store.Store // for uploads of layers
	registry registry
	owner    *backup.Owner
	source   *backup.Source
	filler   *backup.Filler
	uploader *backup.Uploader

	mu       sync.Mutex
	archiver *archive.Archiver // while something is followed
}

// registry is where manifests are agreed on.
type registry interface {
	backup.Registry
	// Restore takes what a root says, in place of all that was known.
	Restore(ctx context.Context, root *backup.Root) error
}

// openBackups opens the store that the node is told of; nil if it is told of none.
func openBackups(ctx context.Context, cfg *Config) (*backups, error) {
	if cfg.Store == "" {
		return nil, nil
	}
	s, err := store.Open(ctx, cfg.Store)
	if err != nil {
		return nil, err
	}
	b := &backups{store: store.Count(s)}
	b.limited = store.Limit(b.store, cfg.BackupRate)
	return b, nil
}

// status is how archiving goes; ok is false while nothing is archived.
func (b *backups) status() (st archive.Status, ok bool) {
	if b == nil {
		return st, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.archiver == nil {
		return st, false
	}
	return b.archiver.Status(), true
}

// archived is up to where the spool may be trimmed: all of it where there is no store. A node that doesn't archive itself keeps what recovery would need.
func (b *backups) archived(branch uint32) pg.LSN {
	if b == nil {
		return ^pg.LSN(0)
	}
	st, _ := b.status()
	if b.registry.Leads() {
		return st.End
	}
	return max(st.End, b.registry.Current(branch, backup.Small).LSN)
}

// archive uploads the spool's WAL until ctx ends or the spool fails. That the store is away or holds another history ends nothing else: status tells it.
func (f *follower) archive(ctx context.Context, spool *wal.Spool, st state) error {
	b := f.n.backups
	if b == nil {
		return nil
	}
	slot, err := stream.HoldSlot(f.n.cfg.Cluster)
	if err != nil {
		return err
	}
	h := &holder{conninfo: st.Conninfo, slot: slot, line: st.line()}
	defer h.close()
	a := archive.New(archive.Options{
		Store: b.store, ID: archive.ID{SystemID: st.SystemIdentifier, SegmentSize: wal.SegmentSize(st.WALSegmentSize)}, History: st.History,
		Every: f.n.cfg.ArchiveEvery, Log: f.log, Advance: h.advance, Dir: filepath.Join(f.n.cfg.Data, packDir),
		Elsewhere: func(ctx context.Context, from, to pg.LSN) (wal.Source, func(), error) {
			return f.elsewhere(ctx, st, from, to)
		},
	})
	b.mu.Lock()
	b.archiver = a
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.archiver = nil
		b.mu.Unlock()
	}()
	err = f.whileLeading(ctx, func(ctx context.Context) error { return a.Run(ctx, spool) })
	if errors.Is(err, archive.ErrDiverged) {
		f.warn("nothing is backed up: " + err.Error())
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return err
}

// whileLeading runs fn while this node leads the cluster, until ctx ends or fn fails: one node writes the WAL in the store.
func (f *follower) whileLeading(ctx context.Context, fn func(context.Context) error) error {
	tick := time.NewTicker(leadEvery)
	defer tick.Stop()
	for {
		if f.n.cluster.IsLeader() {
			leading, cancel := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() { done <- fn(leading) }()
			var err error
			for running := true; running; {
				select {
				case err = <-done:
					running = false
				case <-tick.C:
					if !f.n.cluster.IsLeader() {
						cancel()
					}
				}
			}
			lost := leading.Err() != nil && ctx.Err() == nil
			cancel()
			if !lost {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// holder moves the hold slot, with which the primary keeps WAL until the store has it.
type holder struct {
	conninfo, slot string
	line           stream.Line
	conn           *stream.Conn
	after          time.Time // not to be tried again before
}

func (h *holder) close() {
	if h.conn != nil {
		h.conn.Close()
		h.conn = nil
	}
}

const (
	holdTimeout = 10 * time.Second
	holdRetry   = 10 * time.Second
)

// advance lets the primary remove the WAL before end. A primary that is away is left alone for a while: the WAL in the store doesn't wait for it.
func (h *holder) advance(ctx context.Context, end pg.LSN) error {
	if time.Now().Before(h.after) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	err := h.move(ctx, end)
	if err != nil {
		h.close()
		h.after = time.Now().Add(holdRetry)
	}
	return err
}

func (h *holder) move(ctx context.Context, end pg.LSN) (err error) {
	if h.conn == nil {
		if h.conn, err = stream.ConnectOne(ctx, h.conninfo, stream.SQL, "everpage hold", h.line); err != nil {
			return err
		}
	}
	err = stream.AdvanceSlot(ctx, h.conn, h.slot, end)
	if errors.Is(err, stream.ErrSlotMissing) || errors.Is(err, stream.ErrSlotLost) {
		// What it would have kept is in the store or in a spool; from here on it keeps again.
		return ensureSlot(ctx, h.conninfo, h.slot, h.line)
	}
	return err
}

// holdSlots are the slots that the primary needs for this cluster beside the node's own.
func (f *follower) holdSlots() ([]string, error) {
	if f.n.backups == nil {
		return nil, nil
	}
	slot, err := stream.HoldSlot(f.n.cfg.Cluster)
	return []string{slot}, err
}

// dropHold drops the hold slot, as a detach does.
func (f *follower) dropHold(ctx context.Context, left fsm.LeftSlot, line stream.Line) error {
	slots, err := f.holdSlots()
	for _, slot := range slots {
		err = errors.Join(err, dropSlot(ctx, fsm.LeftSlot{Conninfo: left.Conninfo, Slot: slot}, line))
	}
	if err != nil {
		return fmt.Errorf("the slot that holds WAL for the store could not be dropped: %w", err)
	}
	return nil
}
