// Package restoretest restores a node's history at many LSNs and holds each directory against stock PostgreSQL servers, for tests and long runs.
package restoretest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/deploy/workload"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waldump"
)

// Options say what history is made.
type Options struct {
	Binary     string // of everpage, made by nodetest.Build
	Major      int    // 0: pgtest.DefaultMajor
	InitdbArgs []string
	Workload   workload.Options
}

// History is what a node has followed of a primary that is stopped by now, with all that a stock server needs to be recovered to any LSN of it.
type History struct {
	Node *nodetest.Node
	// From and To are the LSNs between which both the node and a stock server can be asked.
	From, To pg.LSN
	Marks    []workload.Mark

	dir, base, wal string
	major          int
	locations      []string // of tablespaces, as the WAL names them
}

// Make starts a primary and a node in dir, attaches, takes a base backup for the stock servers and runs the mixed workload to its end. The caller
// must Close the history.
func Make(ctx context.Context, dir string, o Options) (*History, error) {
	h := &History{dir: dir, base: filepath.Join(dir, "base"), wal: filepath.Join(dir, "wal"), major: o.Major}
	if h.major == 0 {
		h.major = pgtest.DefaultMajor
	}
	if err := h.make(ctx, o); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (h *History) make(ctx context.Context, o Options) error {
	// Consistency images would make a stock server check itself and stop at a known quirk of GiST.
	settings := pgtest.Merge(pgtest.OracleSettings(h.major), map[string]string{"wal_consistency_checking": ""})
	primary, err := pgtest.Start(ctx, pgtest.Config{Major: h.major, Dir: filepath.Join(h.dir, "primary"), InitdbArgs: o.InitdbArgs, Settings: settings})
	if err != nil {
		return err
	}
	return errors.Join(h.follow(ctx, primary, o), primary.Close())
}

func (h *History) follow(ctx context.Context, primary *pgtest.Server, o Options) (err error) {
	if h.Node, err = nodetest.Start(ctx, nodetest.Config{Binary: o.Binary, Data: filepath.Join(h.dir, "node")}); err != nil {
		return err
	}
	if r := h.Node.Run(ctx, "attach", primary.URI("postgres"), "--wait", "--quiet"); r.Code != 0 {
		return fmt.Errorf("attach: exit code %d: %s", r.Code, r.Stderr)
	}
	if err := primary.Basebackup(ctx, h.base); err != nil {
		return err
	}
	if h.From, err = position(ctx, primary); err != nil {
		return err
	}
	o.Workload.Dir = filepath.Join(h.dir, "workload")
	result, err := workload.Run(ctx, primary, workload.Mixed, o.Workload)
	if err != nil {
		return err
	}
	h.Marks, h.locations = result.Marks, result.Tablespaces
	if h.To, err = position(ctx, primary); err != nil {
		return err
	}
	if err := WaitReadable(ctx, h.Node, h.To); err != nil {
		return err
	}
	if err := primary.Stop(ctx, pgtest.Fast); err != nil {
		return err
	}
	if err := primary.MoveWAL(h.wal); err != nil {
		return err
	}
	return os.RemoveAll(primary.DataDir())
}

// Of is the history of a node that others made, with a base backup and WAL for stock servers of the default major. dir is for what is restored.
func Of(n *nodetest.Node, dir, base, wal string) *History {
	return &History{Node: n, dir: dir, base: base, wal: wal, major: pgtest.DefaultMajor}
}

// Close ends the node.
func (h *History) Close() {
	if h.Node != nil {
		h.Node.Kill9()
	}
}

func position(ctx context.Context, s *pgtest.Server) (pg.LSN, error) {
	text, err := s.CurrentLSN(ctx)
	if err != nil {
		return 0, err
	}
	return pg.ParseLSN(text)
}

// readableTimeout bounds how long a node may be behind.
const readableTimeout = 3 * time.Minute

// WaitReadable waits until a node can be asked at an LSN.
func WaitReadable(ctx context.Context, n *nodetest.Node, at pg.LSN) error {
	ctx, cancel := context.WithTimeout(ctx, readableTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if readable, err := pg.ParseLSN(st.Readable); err == nil && readable >= at {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s is readable: %w; status: %+v", at, ctx.Err(), st)
		case <-tick.C:
		}
	}
}

// Boundaries draws n LSNs at which a record ends, in ascending order. Every second one is drawn from all of the WAL's bytes, the others from the
// PREPAREs and then from the records of the workload's sections in turn, the last one first, as some are short. A stock server that is recovered to
// such an LSN has replayed exactly the records that end at or before it.
func (h *History) Boundaries(r *rand.Rand, n int) ([]pg.LSN, error) {
	ends, prepares, err := h.recordEnds()
	if err != nil {
		return nil, err
	}
	var sections [][]pg.LSN
	rest := ends
	for _, m := range h.Marks {
		at, err := pg.ParseLSN(m.LSN)
		if err != nil {
			return nil, err
		}
		if k, _ := slices.BinarySearch(rest, at+1); k > 0 {
			sections, rest = append(sections, rest[:k]), rest[k:]
		}
	}
	if len(sections) == 0 {
		return nil, fmt.Errorf("the workload has no sections between %s and %s", h.From, h.To)
	}
	if len(prepares) > 0 {
		sections = append(sections, prepares)
	}
	drawn := make([]pg.LSN, n)
	for i := range drawn {
		if i%2 == 1 {
			records := sections[len(sections)-1-i/2%len(sections)]
			drawn[i] = records[r.IntN(len(records))]
			continue
		}
		k, _ := slices.BinarySearch(ends, ends[0]+pg.LSN(r.Int64N(int64(ends[len(ends)-1]-ends[0]))))
		drawn[i] = ends[k]
	}
	slices.Sort(drawn)
	return drawn, nil
}

// recordEnds are the ends of all records between From and To, and of those that prepare a transaction.
func (h *History) recordEnds() (ends, prepares []pg.LSN, err error) {
	reader, closer, err := waldump.Open(h.wal, h.From, h.To)
	if err != nil {
		return nil, nil, err
	}
	defer closer.Close()
	for {
		rec, err := reader.Next()
		if errors.As(err, new(*wal.EndError)) && len(ends) > 0 {
			return ends, prepares, nil
		}
		if err != nil {
			return nil, nil, err
		}
		ends = append(ends, rec.End)
		const xactPrepare = 0x10
		if rec.Rmgr == wal.RmTransaction && rec.Info&0x70 == xactPrepare {
			prepares = append(prepares, rec.End)
		}
	}
}
