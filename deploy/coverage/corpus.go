package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"everpage/deploy/pgtest"
	"everpage/deploy/workload"
)

// corpus is what a run's server leaves: like workload.Files, with directories of stops on the way.
type corpus struct {
	base, wal, final string
	stops            []string
	version          string
}

// rows and transactions keep a run small: many of them with different settings say more than a large one.
var runOptions = workload.Options{Rows: 150, Transactions: 60, Burn: 3000}

// maker makes a corpus.
type maker struct {
	dir    string
	run    plannedRun
	log    func(step string)
	server *pgtest.Server
	corpus corpus
}

// make runs every workload on a new server, which is stopped twice, killed and promoted on the way.
func makeCorpus(ctx context.Context, dir string, run plannedRun, log func(string)) (c *corpus, err error) {
	m := &maker{dir: dir, run: run, log: log, corpus: corpus{base: filepath.Join(dir, "base"), wal: filepath.Join(dir, "wal"), final: filepath.Join(dir, "final")}}
	settings, initdb := run.server()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m.server, err = pgtest.Init(ctx, pgtest.Config{
		Major: run.Major, Dir: filepath.Join(dir, "server"), InitdbArgs: initdb, Settings: pgtest.Merge(pgtest.OracleSettings(run.Major), settings),
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.server.Close()) }()
	if run.states > 0 {
		if err := m.states(ctx); err != nil {
			return nil, fmt.Errorf("states: %w", err)
		}
		return &m.corpus, os.RemoveAll(filepath.Join(dir, "server"))
	}
	if run.large {
		m.log("large relations")
		if err := m.large(ctx); err != nil {
			return nil, fmt.Errorf("large relations: %w", err)
		}
		return &m.corpus, os.RemoveAll(filepath.Join(dir, "server"))
	}
	m.log("mixed workload")
	if err := m.first(ctx); err != nil {
		return nil, fmt.Errorf("mixed workload: %w", err)
	}
	m.log("indexes")
	if err := m.second(ctx); err != nil {
		return nil, fmt.Errorf("indexes and rare records: %w", err)
	}
	m.log("crashes")
	if err := m.third(ctx); err != nil {
		return nil, fmt.Errorf("crash, promotion and truncated logs: %w", err)
	}
	return &m.corpus, os.RemoveAll(filepath.Join(dir, "server"))
}

func (m *maker) first(ctx context.Context) error {
	if err := m.start(ctx); err != nil {
		return err
	}
	if err := m.work(ctx, workload.Mixed); err != nil {
		return err
	}
	return m.stop(ctx, "stop1")
}

// start keeps the base and starts the server.
func (m *maker) start(ctx context.Context) error {
	if err := m.advance(ctx); err != nil {
		return err
	}
	if err := m.server.CopyCold(m.corpus.base); err != nil {
		return err
	}
	if err := m.server.StartAgain(ctx); err != nil {
		return err
	}
	var err error
	m.corpus.version, err = m.server.Value(ctx, "postgres", "show server_version")
	return err
}

// states stops the server after each of many small rounds. Before some stops it was killed.
func (m *maker) states(ctx context.Context) error {
	if err := m.start(ctx); err != nil {
		return err
	}
	for round := 1; ; round++ {
		if err := workload.States(ctx, m.server, round); err != nil {
			return err
		}
		if round%5 == 0 {
			if err := workload.Crash(ctx, m.server); err != nil {
				return err
			}
		}
		if round == m.run.states {
			break
		}
		m.log(fmt.Sprintf("stop %d", round))
		if err := m.stop(ctx, fmt.Sprintf("stop%d", round)); err != nil {
			return err
		}
		if err := m.server.StartAgain(ctx); err != nil {
			return err
		}
	}
	return m.last(ctx)
}

func (m *maker) large(ctx context.Context) error {
	if err := m.start(ctx); err != nil {
		return err
	}
	if err := m.work(ctx, workload.Large); err != nil {
		return err
	}
	return m.last(ctx)
}

// last stops the server for good, and keeps what it left.
func (m *maker) last(ctx context.Context) error {
	if err := m.server.Stop(ctx, pgtest.Fast); err != nil {
		return err
	}
	if err := m.server.MoveWAL(m.corpus.wal); err != nil {
		return err
	}
	return m.server.CopyCold(m.corpus.final)
}

// advance sets the new cluster's counters.
func (m *maker) advance(ctx context.Context) error {
	if !m.run.wraps {
		return advance(m.server.DataDir(), endOfSegment)
	}
	m.log("counters")
	for _, to := range wrapping {
		if err := m.server.StartAgain(ctx); err != nil {
			return err
		}
		for range 2 { // the second finds what the first one left behind in shared catalogs
			if err := workload.Freeze(ctx, m.server, 1); err != nil {
				return err
			}
		}
		if err := m.server.Stop(ctx, pgtest.Fast); err != nil {
			return err
		}
		if err := advance(m.server.DataDir(), to); err != nil {
			return err
		}
	}
	return nil
}

func (m *maker) second(ctx context.Context) error {
	if err := m.server.StartAgain(ctx); err != nil {
		return err
	}
	// It keeps vacuum from removing anything.
	if _, err := m.server.SQL(ctx, "postgres", "commit prepared 'p_stays'"); err != nil {
		return err
	}
	if err := m.work(ctx, workload.Indexes); err != nil {
		return err
	}
	m.log("rare records")
	if err := workload.Rare(ctx, m.server); err != nil {
		return err
	}
	// Standbys follow these, so a change is logged.
	if _, err := m.server.SQL(ctx, "postgres", "alter system set max_connections = 90", "alter system set max_locks_per_transaction = 70"); err != nil {
		return err
	}
	return m.stop(ctx, "stop2")
}

func (m *maker) third(ctx context.Context) error {
	if err := m.server.StartAgain(ctx); err != nil {
		return err
	}
	for range 2 {
		if err := workload.Crash(ctx, m.server); err != nil {
			return err
		}
	}
	if err := m.server.Stop(ctx, pgtest.Fast); err != nil {
		return err
	}
	m.log("promotion")
	if err := workload.Promote(ctx, m.server); err != nil {
		return err
	}
	if _, err := m.server.SQL(ctx, "postgres", "commit prepared 'rare_stays'"); err != nil {
		return err
	}
	for range 3 { // each removes a segment of commit times
		m.log("freeze")
		if err := workload.Freeze(ctx, m.server, 28000); err != nil {
			return err
		}
	}
	return m.last(ctx)
}

func (m *maker) work(ctx context.Context, which workload.Which) error {
	o := runOptions
	o.Seed, o.Dir = m.run.Seed, filepath.Join(m.dir, "workload")
	_, err := workload.Run(ctx, m.server, which, o)
	return err
}

// stop stops the server and keeps what it left. WAL that it doesn't need any more goes where all of it will be.
func (m *maker) stop(ctx context.Context, name string) error {
	if err := m.server.Stop(ctx, pgtest.Fast); err != nil {
		return err
	}
	if err := m.server.MoveWAL(m.corpus.wal); err != nil {
		return err
	}
	left, err := pgtest.Segments(m.server.WALDir())
	if err != nil {
		return err
	}
	for _, segment := range left { // it goes on writing these
		if err := os.Remove(filepath.Join(m.corpus.wal, segment)); err != nil {
			return err
		}
	}
	dir := filepath.Join(m.dir, name)
	m.corpus.stops = append(m.corpus.stops, dir)
	return m.server.CopyCold(dir)
}
