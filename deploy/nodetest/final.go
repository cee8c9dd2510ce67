package nodetest

import (
	"context"
	"encoding/binary"
	"fmt"

	"everpage/chunk/offline"
	"everpage/chunk/verify"
	"everpage/pageapi"
	"everpage/redo"
	"everpage/wal/pg"
)

// CompareStopped compares all that a node serves at the end of the WAL with the data directory of a primary that was stopped cleanly. It waits, as long as ctx
// allows, until the node has that end.
func CompareStopped(ctx context.Context, address, pgdata string) (*verify.Report, error) {
	return CompareBranch(ctx, address, 0, pgdata)
}

// CompareBranch is CompareStopped for a branch: the history of a primary that was left.
func CompareBranch(ctx context.Context, address string, branch uint32, pgdata string) (*verify.Report, error) {
	control, err := offline.ReadControl(pgdata)
	if err != nil {
		return nil, err
	}
	c, err := pageapi.NewClient([]string{address})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// The last record is the shutdown checkpoint. Where it ends depends on page boundaries; nothing follows it, so any LSN behind it that is readable will do.
	const checkpointRecord = 24 + 2 + pg.CheckPointSize
	if _, err := c.State(ctx, pageapi.Position{Branch: branch, LSN: control.CheckPoint + checkpointRecord}); err != nil {
		return nil, fmt.Errorf("the shutdown checkpoint at %s: %w", control.CheckPoint, err)
	}
	st, err := c.State(ctx, pageapi.Position{Branch: branch})
	if err != nil {
		return nil, err
	}
	return verify.Final(ctx, pgdata, st.LSN, &served{c, pageapi.Position{Branch: branch, LSN: st.LSN}, st})
}

// served is what a node answers at one LSN.
type served struct {
	client *pageapi.Client
	at     pageapi.Position
	state  *pageapi.ClusterState
}

var _ verify.Pages = (*served)(nil)

func (s *served) Control(context.Context) (pg.ControlFile, error) {
	return s.state.Cluster.Control, nil
}

func (s *served) Size(ctx context.Context, fork pg.RelFork) (uint32, bool, error) {
	blocks, _, err := s.client.RelSize(ctx, s.at, fork)
	if pageapi.CodeOf(err) == pageapi.NotFound {
		return 0, false, nil
	}
	return blocks, err == nil, err
}

func (s *served) Page(ctx context.Context, key pg.PageKey, dst pg.Page) error {
	slru, ok := key.SLRU()
	if !ok {
		_, err := s.client.Pages(ctx, s.at, key.RelFork, []pg.BlockNumber{key.Block}, dst)
		return err
	}
	segment, err := s.client.SLRUSegment(ctx, s.at, slru, key.Block/pg.SLRUPagesPerSegment)
	if err != nil {
		return err
	}
	from := int(key.Block%pg.SLRUPagesPerSegment) * pg.BlockSize
	if from+pg.BlockSize > len(segment) {
		return fmt.Errorf("the segment of %s has %d bytes only", key, len(segment))
	}
	copy(dst, segment[from:])
	return nil
}

func (s *served) Relations(ctx context.Context, fn func(pg.RelFork, uint32) error) error {
	_, err := s.client.Relations(ctx, s.at, fn)
	return err
}

func (s *served) SLRUSegments(ctx context.Context, slru pg.SLRU) (map[uint32]uint32, error) {
	list, err := s.client.SLRUSegments(ctx, s.at, slru)
	segments := map[uint32]uint32{}
	for _, seg := range list {
		segments[seg.Number] = seg.Pages
	}
	return segments, err
}

func (s *served) Objects(_ context.Context, kind redo.MetaKind, fn func([2]uint32, []byte) error) error {
	c := &s.state.Cluster
	switch kind {
	case redo.MetaRelMap:
		for _, m := range c.RelMaps {
			if err := fn([2]uint32{m.Spc, m.DB}, m.Data); err != nil {
				return err
			}
		}
	case redo.MetaTwoPhase:
		for _, p := range c.TwoPhase {
			if err := fn([2]uint32{p.XID}, p.State); err != nil {
				return err
			}
		}
	case redo.MetaDatabase:
		for _, d := range c.Databases {
			if err := fn([2]uint32{d.Spc, d.DB}, d.Version); err != nil {
				return err
			}
		}
	case redo.MetaTablespace:
		for _, t := range c.Tablespaces {
			if err := fn([2]uint32{t.Oid}, []byte(t.Location)); err != nil {
				return err
			}
		}
	case redo.MetaOrigin:
		for _, o := range c.Origins {
			if err := fn([2]uint32{uint32(o.ID)}, binary.LittleEndian.AppendUint64(nil, uint64(o.RemoteLSN))); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("objects of kind %d are not served", kind)
	}
	return nil
}

// Lost explains nothing: who copies databases by WAL while this compares will see the bits that such copies lose.
func (s *served) Lost(context.Context, pg.PageKey, []redo.VMBits) (bool, error) { return false, nil }
