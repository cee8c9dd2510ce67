package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/deploy/restoretest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

type options struct {
	binary    string
	dir       string
	duration  time.Duration
	retention time.Duration
	seed      uint64
	logf      func(format string, args ...any)
}

// result is what a soak found.
type result struct {
	samples  []sample
	inside   int // LSNs whose pages were all compared
	pages    int
	outside  int // LSNs that were refused
	restored int // stock servers started inside the window
	wal      uint64
	local    plateau
	store    plateau
	swept    int64 // bytes in the store beside WAL and named layers, once all graces were over: in objects of which other layers are named
}

func (r *result) String() string {
	return fmt.Sprintf("%d LSNs inside the window right (%d pages), %d outside refused, %d restored servers balanced; %d MB of WAL; local bytes %s; store bytes %s, at the end %.2f MB beside them",
		r.inside, r.pages, r.outside, r.restored, r.wal>>20, r.local, r.store, float64(r.swept)/1e6)
}

const (
	clients      = 2
	transactions = 60  // a second, so that windows are alike
	scale        = 1   // of pgbench
	roundsEach   = 8   // looks in a window
	sampled      = 400 // pages of each LSN that are compared
)

// soaking is a soak under way.
type soaking struct {
	options
	random  *rand.Rand
	primary *pgtest.Server
	node    *nodetest.Node
	client  *pageapi.Client
	store   string
	restore *restoretest.History
	marks   []mark // oldest first
	result  result
}

// soak runs it all.
func soak(ctx context.Context, o options) (r *result, err error) {
	s := &soaking{options: o, random: rand.New(rand.NewPCG(o.seed, 0)), store: filepath.Join(o.dir, "store")}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	began, err := s.position(ctx)
	if err != nil {
		return nil, err
	}
	load, cancel := context.WithCancel(ctx)
	defer cancel()
	loaded := make(chan error, 1)
	go func() {
		out, err := s.primary.Pgbench(load, "-n", "-c", strconv.Itoa(clients), "-R", strconv.Itoa(transactions), "-T", strconv.Itoa(int(o.duration.Seconds())), "bench")
		if err != nil {
			err = fmt.Errorf("pgbench: %w\n%s", err, out)
		}
		loaded <- err
	}()
	if err := s.rounds(ctx, loaded); err != nil {
		cancel()
		return nil, fmt.Errorf("seed %d: %w\nlog of the node:\n%s", o.seed, err, s.node.Log())
	}
	ended, err := s.position(ctx)
	if err != nil {
		return nil, err
	}
	s.result.wal = uint64(ended - began)
	if err := s.swept(ctx); err != nil {
		return nil, fmt.Errorf("seed %d: %w\nlog of the node:\n%s", o.seed, err, s.node.Log())
	}
	return &s.result, s.judge()
}

// start makes primary and node, and sets the retention.
func (s *soaking) start(ctx context.Context) (err error) {
	if s.primary, err = pgtest.Start(ctx, pgtest.Config{Dir: filepath.Join(s.dir, "primary"), Settings: map[string]string{
		"wal_level": "replica", "max_wal_senders": "10", "max_replication_slots": "10", "max_wal_size": "64MB", "min_wal_size": "32MB", "checkpoint_timeout": "30s", "shared_buffers": "16MB",
	}}); err != nil {
		return err
	}
	if _, err := s.primary.SQL(ctx, "postgres", "create database bench"); err != nil {
		return err
	}
	if out, err := s.primary.Pgbench(ctx, "-q", "-i", "-s", strconv.Itoa(scale), "bench"); err != nil {
		return fmt.Errorf("pgbench -i: %w\n%s", err, out)
	}
	every := s.grace().String()
	if s.node, err = nodetest.Start(ctx, nodetest.Config{Binary: s.binary, Data: filepath.Join(s.dir, "node"), Args: []string{
		"--store", "file://" + s.store, "--segment-blocks", "512", "--shards", "16", "--archive-every", "1s", "--backup-every", every, "--gc-grace", every, "--spool-keep", "1",
		"--run", strconv.Itoa(2 << 20),
	}}); err != nil {
		return err
	}
	s.restore = restoretest.Of(s.node, s.dir, "", "")
	for _, args := range [][]string{{"attach", s.primary.URI("postgres"), "--wait", "--quiet"}, {"retention", "set", s.retention.String()}} {
		if r := s.node.Run(ctx, args...); r.Code != 0 {
			return fmt.Errorf("everpage %s: exit code %d: %s", args[0], r.Code, r.Stderr)
		}
	}
	s.client, err = pageapi.NewClient([]string{s.node.Address()})
	return err
}

// grace is how long what nobody needs stays in the store, and how often backups are made.
func (s *soaking) grace() time.Duration { return s.retention / 20 }

func (s *soaking) stop() (err error) {
	if s.client != nil {
		err = s.client.Close()
	}
	if s.node != nil {
		s.node.Kill9()
	}
	if s.primary != nil {
		err = errors.Join(err, s.primary.Close())
	}
	return err
}

// position is the end of the primary's WAL.
func (s *soaking) position(ctx context.Context) (pg.LSN, error) {
	text, err := s.primary.CurrentLSN(ctx)
	if err != nil {
		return 0, err
	}
	return pg.ParseLSN(text)
}

// rounds looks at everything, over and over, until the load has ended.
func (s *soaking) rounds(ctx context.Context, loaded <-chan error) error {
	tick := time.NewTicker(s.retention / roundsEach)
	defer tick.Stop()
	for began := time.Now(); ; {
		select {
		case err := <-loaded:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := s.round(ctx, time.Since(began)); err != nil {
			return err
		}
	}
}

func (s *soaking) round(ctx context.Context, at time.Duration) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	if err := s.record(ctx); err != nil {
		return err
	}
	w, err := s.window(ctx)
	if err != nil {
		return err
	}
	x, err := s.measure(ctx, at)
	if err != nil {
		return err
	}
	x.wal = int64(w.Newest - w.Oldest)
	s.result.samples = append(s.result.samples, x)
	s.logf("%4.0fs: window %s to %s; local %5.1f MB, store %5.1f MB and %5.1f that nobody names; %d LSNs right, %d refused, %d servers", at.Seconds(), w.Oldest, w.Newest,
		float64(x.local)/1e6, float64(x.store)/1e6, float64(x.left)/1e6, s.result.inside, s.result.outside, s.result.restored)
	return nil
}
