package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"everpage/deploy/restoretest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// mark is an LSN, and what some pages were then, as they were read when it was new.
type mark struct {
	at     pg.LSN
	blocks []block
	sum    uint64
}

type block struct {
	fork pg.RelFork
	n    pg.BlockNumber
}

type window struct {
	Oldest pg.LSN `json:"oldest_lsn"`
	Newest pg.LSN `json:"newest_lsn"`
}

func (s *soaking) window(ctx context.Context) (window, error) {
	var v struct{ Branches []window }
	if err := s.ask(ctx, &v, "info"); err != nil {
		return window{}, err
	}
	if len(v.Branches) != 1 {
		return window{}, fmt.Errorf("info tells of %d branches", len(v.Branches))
	}
	return v.Branches[0], nil
}

// busy is how long a node that does not answer is asked again: on a machine that does much else it is silent for longer than clients wait.
const busy = time.Minute

// patiently repeats what fails because no answer came.
func patiently(ctx context.Context, fn func() error) error {
	for began := time.Now(); ; {
		err := fn()
		silent := pageapi.CodeOf(err) == pageapi.Unavailable || err != nil && strings.Contains(err.Error(), "exit code 5")
		if !silent || ctx.Err() != nil || time.Since(began) > busy {
			return err
		}
	}
}

// ask runs a command whose answer is JSON.
func (s *soaking) ask(ctx context.Context, into any, args ...string) error {
	return patiently(ctx, func() error { return s.node.JSON(ctx, into, args...) })
}

// page reads one.
func (s *soaking) page(ctx context.Context, at pg.LSN, b block, page []byte) error {
	return patiently(ctx, func() error {
		_, err := s.client.Pages(ctx, pageapi.Position{LSN: at}, b.fork, []pg.BlockNumber{b.n}, page)
		return err
	})
}

// record takes down what pages are at the newest LSN, chosen anew each time.
func (s *soaking) record(ctx context.Context) error {
	w, err := s.window(ctx)
	if err != nil {
		return err
	}
	m := mark{at: w.Newest}
	var all []block
	if err := patiently(ctx, func() error {
		all = all[:0]
		_, err := s.client.Relations(ctx, pageapi.Position{LSN: m.at}, func(f pg.RelFork, blocks pg.BlockNumber) error {
			for n := range blocks {
				all = append(all, block{f, n})
			}
			return nil
		})
		return err
	}); err != nil {
		return err
	}
	for _, i := range s.random.Perm(len(all))[:min(sampled, len(all))] {
		m.blocks = append(m.blocks, all[i])
	}
	if m.sum, err = s.digest(ctx, m); err != nil {
		return err
	}
	s.marks = append(s.marks, m)
	return nil
}

// digest is one number for a mark's pages as they are answered now.
func (s *soaking) digest(ctx context.Context, m mark) (uint64, error) {
	h := fnv.New64a()
	page := make([]byte, pg.BlockSize)
	for _, b := range m.blocks {
		if err := s.page(ctx, m.at, b, page); err != nil {
			return 0, fmt.Errorf("%s block %d at %s: %w", b.fork, b.n, m.at, err)
		}
		h.Write(page)
	}
	return h.Sum64(), nil
}

// look reads inside and outside of the window.
func (s *soaking) look(ctx context.Context) error {
	w, err := s.window(ctx)
	if err != nil {
		return err
	}
	var inside, outside []mark
	for _, m := range s.marks {
		if m.at >= w.Oldest {
			inside = append(inside, m)
		} else {
			outside = append(outside, m)
		}
	}
	if len(inside) > 0 {
		// The oldest, and any.
		for _, i := range slices.Compact([]int{0, s.random.IntN(len(inside))}) {
			if err := s.right(ctx, inside[i]); err != nil {
				return err
			}
		}
		if len(s.result.samples)%(roundsEach/2) == roundsEach/4 {
			if err := s.balanced(ctx, inside[s.random.IntN((len(inside)+1)/2)].at); err != nil {
				return err
			}
		}
	}
	for _, i := range s.random.Perm(len(outside))[:min(2, len(outside))] {
		if err := s.refused(ctx, outside[i], w.Oldest); err != nil {
			return err
		}
	}
	s.marks = slices.Concat(outside[max(0, len(outside)-roundsEach):], inside)
	return nil
}

// left tells whether an LSN has gone out of the window meanwhile, so that an answer may be a refusal.
func (s *soaking) left(ctx context.Context, at pg.LSN) bool {
	w, err := s.window(ctx)
	return err == nil && at < w.Oldest
}

// leaves waits until an LSN that was refused has gone out of the window: that is announced, and leases are refused, a grace before it is so.
func (s *soaking) leaves(ctx context.Context, at pg.LSN) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !s.left(ctx, at) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(100 * time.Millisecond):
		}
	}
	return true
}

// right compares what a mark's pages are now with what they were.
func (s *soaking) right(ctx context.Context, m mark) error {
	sum, err := s.digest(ctx, m)
	if pageapi.CodeOf(err) == pageapi.OutOfWindow && s.left(ctx, m.at) {
		return nil
	}
	if err != nil {
		return err
	}
	if sum != m.sum {
		return fmt.Errorf("%d pages at %s are not what they were", len(m.blocks), m.at)
	}
	s.result.inside++
	s.result.pages += len(m.blocks)
	return nil
}

// balanced has a stock server start on what the window gives, and pgbench's invariant checked by it.
func (s *soaking) balanced(ctx context.Context, at pg.LSN) error {
	err := patiently(ctx, func() error {
		_, err := s.restore.Check(ctx, at, restoretest.Checks{})
		return err
	})
	if err != nil && strings.Contains(err.Error(), "exit code 4") && s.leaves(ctx, at) { // the command's: it was too late
		return nil
	}
	if err != nil {
		return fmt.Errorf("restored: %w", err)
	}
	s.result.restored++
	return nil
}

// refused makes sure that reads outside of the window fail as they should, by the command line once a round.
func (s *soaking) refused(ctx context.Context, m mark, oldest pg.LSN) error {
	b := m.blocks[s.random.IntN(len(m.blocks))]
	page := make([]byte, pg.BlockSize)
	if err := s.page(ctx, m.at, b, page); pageapi.CodeOf(err) != pageapi.OutOfWindow {
		return fmt.Errorf("%s block %d at %s, before %s where the window begins: %v", b.fork, b.n, m.at, oldest, err)
	}
	if err := patiently(ctx, func() error {
		if r := s.node.Run(ctx, "page", "get", "global/1262", "0", "--lsn", m.at.String()); r.Code != 4 {
			return fmt.Errorf("page get at %s, before %s where the window begins: exit code %d: %s", m.at, oldest, r.Code, r.Stderr)
		}
		return nil
	}); err != nil {
		return err
	}
	s.result.outside++
	return nil
}

// sample is what was taken at a moment.
type sample struct {
	at    time.Duration
	wal   int64 // in the window
	local int64
	store int64 // of WAL, and of layers that manifests name
	left  int64 // all else that lies in the store: what was replaced, until its grace is over or nothing else in its object is named
}

func (s *soaking) measure(ctx context.Context, at time.Duration) (sample, error) {
	x := sample{at: at}
	var err error
	if x.local, err = bytesUnder(s.node.Data()); err != nil {
		return x, err
	}
	named, err := s.named(ctx)
	if err != nil {
		return x, err
	}
	wal, err := bytesUnder(filepath.Join(s.store, "wal"))
	if err != nil {
		return x, err
	}
	all, err := bytesUnder(s.store)
	x.store = named + wal
	x.left = max(all-x.store, 0) // a manifest may be replaced between two looks
	return x, err
}

// named is what layers take that manifests name.
func (s *soaking) named(ctx context.Context) (int64, error) {
	var l struct {
		Branches []struct{ Bytes int64 }
		Error    string
	}
	if err := s.ask(ctx, &l, "backup", "list"); err != nil {
		return 0, err
	}
	if len(l.Branches) != 1 || l.Branches[0].Bytes == 0 {
		return 0, fmt.Errorf("backup list: %+v", l)
	}
	return l.Branches[0].Bytes, nil
}

// swept makes sure that no object stays in the store for good that no manifest names, once the load has ended and graces are over. An object stays as long as one
// of its layers is named: what the others take is told.
func (s *soaking) swept(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute+2*s.grace())
	defer cancel()
	for {
		var gc struct{ Objects []string }
		var verify struct{ Notes []string }
		err := errors.Join(s.ask(ctx, &gc, "gc", "--timeout", "1m"), s.ask(ctx, &verify, "verify", "--timeout", "1m"))
		if err == nil && len(gc.Objects) == 0 && !strings.Contains(fmt.Sprint(verify.Notes), "orphan") {
			x, err := s.measure(ctx, 0)
			s.result.swept = x.left
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("what no manifest names stays in the store: gc removed %v, verify notes %v: %w", gc.Objects, verify.Notes, errors.Join(err, context.Cause(ctx)))
		case <-time.After(s.grace()):
		}
	}
}

// bytesUnder adds up the files of a directory; what vanishes meanwhile doesn't count.
func bytesUnder(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	return sum, err
}

// plateau compares what was taken in the second and in the last third of a soak, on average and at most: where one is reached both are alike. What is collected,
// and what is made anew, goes in steps; the least of a third would tell where in a step it began.
type plateau struct{ middle, last span }

// span is what was taken at least, at most and on average, and how much WAL the window had at most and on average.
type span struct {
	least, most, mostWAL int64
	mean, meanWAL        float64
}

// By how much the last third may be above the second, for as much WAL in the window: a machine that does much else lets the load through in bursts.
const slack = 1.3

func (p plateau) reached() bool {
	return p.last.mean <= slack*grown(p.middle.meanWAL, p.last.meanWAL)*p.middle.mean &&
		float64(p.last.most) <= slack*grown(float64(p.middle.mostWAL), float64(p.last.mostWAL))*float64(p.middle.most)
}

// grown is by how much more WAL the windows had later; 1 where it is no more.
func grown(before, after float64) float64 {
	if before <= 0 {
		return 1
	}
	return max(1, after/before)
}

func (s span) String() string {
	return fmt.Sprintf("%.1f MB (%.1f to %.1f; %.1f MB of WAL in the window)", s.mean/1e6, float64(s.least)/1e6, float64(s.most)/1e6, s.meanWAL/1e6)
}

func (p plateau) String() string {
	return fmt.Sprintf("%s in the second third, %s in the last", p.middle, p.last)
}

func plateauOf(samples []sample, of func(sample) int64) plateau {
	n := len(samples)
	return plateau{middle: spanOf(samples[n/3:2*n/3], of), last: spanOf(samples[2*n/3:], of)}
}

func spanOf(samples []sample, of func(sample) int64) (s span) {
	for i, x := range samples {
		v := of(x)
		if i == 0 {
			s.least = v
		}
		s.least, s.most, s.mostWAL = min(s.least, v), max(s.most, v), max(s.mostWAL, x.wal)
		s.mean += float64(v) / float64(len(samples))
		s.meanWAL += float64(x.wal) / float64(len(samples))
	}
	return s
}

// judge tells whether the soak was long enough to say something, and what it says.
func (s *soaking) judge() error {
	r := &s.result
	r.local = plateauOf(r.samples, func(x sample) int64 { return x.local })
	r.store = plateauOf(r.samples, func(x sample) int64 { return x.store })
	switch {
	case r.inside == 0 || r.outside == 0 || r.restored == 0:
		return fmt.Errorf("seed %d: nothing was proven: %s", s.seed, r)
	case !r.local.reached() || !r.store.reached():
		return fmt.Errorf("seed %d: no plateau is reached: %s", s.seed, r)
	}
	return nil
}
