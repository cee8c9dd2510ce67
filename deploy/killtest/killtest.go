// Package killtest kills a node and its primary, with SIGKILL and at random moments under load, and proves that nothing was lost and nothing is wrong: the
// node goes on where it was, its store is sound, every commit that a client saw return under synchronous replication can be read, with the primary gone too,
// and at the end every page equals the stopped primary's.
package killtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"everpage/chunk/verify"
	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

// Options say how much is killed.
type Options struct {
	Binary string // made by nodetest.Build
	Dir    string // an absent or empty directory; removed unless something failed
	Major  int    // of the primary; 0: 15
	Seed   uint64
	// NodeKills is how often the node is killed in all: three times around the base backup, the rest under load and while it catches up. At least 4.
	NodeKills    int
	PrimaryKills int // of the primary alone
	BothKills    int // of both at once; the node alone must then have every acknowledged commit
	Args         []string
	Logf         func(format string, args ...any)
}

// Report is what was done.
type Report struct {
	NodeKills, PrimaryKills, BothKills int
	Imports                            int // base backups that were begun
	Commits                            int // acknowledged ones that were looked for
	Final                              *verify.Report
}

// patience bounds each wait.
const patience = 2 * time.Minute

// Run does one run. The same seed kills after the same delays; what the servers do meanwhile is theirs.
func Run(ctx context.Context, o Options) (report *Report, err error) {
	r := &run{o: o, random: rand.New(rand.NewPCG(o.Seed, 0)), report: &Report{}}
	if o.Logf == nil {
		r.o.Logf = func(string, ...any) {}
	}
	defer func() {
		err = errors.Join(err, r.close())
		if err == nil {
			err = os.RemoveAll(o.Dir)
		} else {
			err = fmt.Errorf("seed %d: %w", o.Seed, err)
		}
	}()
	for _, step := range []func(context.Context) error{r.start, r.killImport, r.killUnderLoad, r.compare} {
		if err := step(ctx); err != nil {
			return r.report, err
		}
	}
	return r.report, nil
}

type run struct {
	o       Options
	random  *rand.Rand
	report  *Report
	primary *pgtest.Server
	node    *nodetest.Node
	load    *load
	acks    pg.RelFileLocator
	first   string // consistent LSN of the import that was completed
}

// settings make the primary wait for the node where a commit asks for it, and vacuum often.
func settings() map[string]string {
	return map[string]string{
		"wal_level": "replica", "max_wal_senders": "10", "max_replication_slots": "10", "max_prepared_transactions": "20", "shared_buffers": "16MB",
		"track_commit_timestamp": "on", "synchronous_standby_names": "node1", "synchronous_commit": "local", "max_wal_size": "128MB", "checkpoint_timeout": "30s",
		"autovacuum_naptime": "1s", "autovacuum_vacuum_threshold": "50", "autovacuum_vacuum_scale_factor": "0.05", "autovacuum_vacuum_cost_delay": "0",
	}
}

func (r *run) start(ctx context.Context) (err error) {
	if r.primary, err = pgtest.Start(ctx, pgtest.Config{Major: r.o.Major, Dir: filepath.Join(r.o.Dir, "primary"), Settings: settings(), InitdbArgs: []string{"--data-checksums"}}); err != nil {
		return err
	}
	if err := prepare(ctx, r.primary); err != nil {
		return err
	}
	path, err := r.primary.Value(ctx, "postgres", "select pg_relation_filepath('acks')")
	if err != nil {
		return err
	}
	if r.acks, err = pg.ParseRel(path); err != nil {
		return err
	}
	if r.node, err = nodetest.Start(ctx, nodetest.Config{Binary: r.o.Binary, Data: filepath.Join(r.o.Dir, "node"), Args: r.o.Args}); err != nil {
		return err
	}
	r.load = startLoad(ctx, r.primary, r.random.Uint64())
	return nil
}

func (r *run) close() error {
	var errs []error
	if r.load != nil {
		r.load.stop()
	}
	if r.node != nil {
		r.node.Kill9()
	}
	if r.primary != nil {
		errs = append(errs, r.primary.Close())
	}
	return errors.Join(errs...)
}

// wait waits until status shows what ok looks for. It looks often where often is set: what it waits for may pass quickly.
func (r *run) wait(ctx context.Context, what string, ok func(f nodetest.Follow) bool) error {
	end := time.Now().Add(patience)
	for {
		f, err := r.node.Status(ctx)
		if err == nil && ok(f) {
			return nil
		}
		if f.State == "stopped" {
			return fmt.Errorf("waiting until %s: the node follows no longer: %s", what, f.Message)
		}
		if time.Now().After(end) {
			return fmt.Errorf("waiting until %s: not within %s; status %+v, error %v; log:\n%s", what, patience, f, err, r.node.Log())
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// killImport kills the node during the base backup, just after it, and while it catches up to the consistency point.
func (r *run) killImport(ctx context.Context) error {
	if res := r.node.Run(ctx, "attach", r.primary.URI("postgres"), "--quiet"); res.Code != 0 {
		return fmt.Errorf("attach: exit code %d: %s", res.Code, res.Stderr)
	}
	moments := []struct {
		what string
		now  func(f nodetest.Follow) bool
	}{
		{"the base backup runs", func(f nodetest.Follow) bool { return f.State == "importing" }},
		{"the base backup is over", func(f nodetest.Follow) bool { return f.State != "importing" && f.State != "connecting" }},
		{"the node is consistent", func(f nodetest.Follow) bool { return f.Consistent != "0/0" }},
	}
	for _, m := range moments {
		if err := r.wait(ctx, m.what, m.now); err != nil {
			return err
		}
		if err := r.killNode(ctx, "when "+m.what, time.Duration(r.random.IntN(60))*time.Millisecond); err != nil {
			return err
		}
		if err := r.node.StartAgain(ctx); err != nil {
			return err
		}
	}
	if err := r.wait(ctx, "the node is consistent", func(f nodetest.Follow) bool {
		consistent, err := pg.ParseLSN(f.Consistent)
		readable, err2 := pg.ParseLSN(f.Readable)
		return err == nil && err2 == nil && consistent != 0 && readable >= consistent
	}); err != nil {
		return err
	}
	f, err := r.node.Status(ctx)
	r.first = f.Consistent
	return errors.Join(err, r.sound(ctx))
}

func (r *run) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d): // the random moment, no waiting for a condition
		return nil
	}
}

func (r *run) killNode(ctx context.Context, when string, after time.Duration) error {
	if err := r.pause(ctx, after); err != nil {
		return err
	}
	r.node.Kill9()
	r.report.NodeKills++
	r.o.Logf("node killed %s, %s later", when, after)
	return nil
}

// kill is one kind of blow.
type kill int

const (
	killNode kill = iota
	killPrimary
	killBoth
)

// killUnderLoad deals the remaining blows in random order.
func (r *run) killUnderLoad(ctx context.Context) error {
	var blows []kill
	for range r.o.NodeKills - r.report.NodeKills {
		blows = append(blows, killNode)
	}
	for range r.o.PrimaryKills {
		blows = append(blows, killPrimary)
	}
	for range r.o.BothKills {
		blows = append(blows, killBoth)
	}
	r.random.Shuffle(len(blows), func(i, j int) { blows[i], blows[j] = blows[j], blows[i] })
	for i, b := range blows {
		err := [...]func(context.Context) error{r.nodeBlow, r.primaryBlow, r.bothBlow}[b](ctx)
		if err == nil {
			err = r.sound(ctx)
		}
		if err != nil {
			return fmt.Errorf("blow %d: %w", i+1, err)
		}
	}
	return nil
}

func (r *run) delay() time.Duration { return time.Duration(r.random.IntN(1500)) * time.Millisecond }

// nodeBlow kills the node, leaves it away for a while, and may kill it again while it catches up.
func (r *run) nodeBlow(ctx context.Context) error {
	if err := r.killNode(ctx, "under load", r.delay()); err != nil {
		return err
	}
	if err := r.pause(ctx, r.delay()); err != nil {
		return err
	}
	if err := r.node.StartAgain(ctx); err != nil {
		return err
	}
	if r.report.NodeKills < r.o.NodeKills && r.random.IntN(3) == 0 {
		if err := r.killNode(ctx, "while it catches up", time.Duration(r.random.IntN(300))*time.Millisecond); err != nil {
			return err
		}
		return r.node.StartAgain(ctx)
	}
	return nil
}

func (r *run) primaryBlow(ctx context.Context) error {
	d := r.delay()
	if err := r.pause(ctx, d); err != nil {
		return err
	}
	if err := r.primary.Kill9(ctx); err != nil {
		return err
	}
	r.report.PrimaryKills++
	r.o.Logf("primary killed after %s", d)
	return r.primary.StartAgain(ctx)
}

// bothBlow kills both, in random order. The node comes back alone and must have every commit that a client saw return.
func (r *run) bothBlow(ctx context.Context) error {
	d := r.delay()
	if err := r.pause(ctx, d); err != nil {
		return err
	}
	if r.random.IntN(2) == 0 {
		r.node.Kill9()
	}
	if err := r.primary.Kill9(ctx); err != nil {
		return err
	}
	r.node.Kill9()
	r.report.BothKills++
	r.o.Logf("node and primary killed after %s", d)
	if err := r.node.StartAgain(ctx); err != nil {
		return err
	}
	if err := r.acknowledged(ctx); err != nil {
		return fmt.Errorf("with the primary gone: %w", err)
	}
	return r.primary.StartAgain(ctx)
}

// sound waits until the node has all that the primary has by now, and holds it to its own history: the same import, an unbroken store.
func (r *run) sound(ctx context.Context) error {
	at, err := r.primary.CurrentLSN(ctx)
	if err != nil {
		return err
	}
	want, err := pg.ParseLSN(at)
	if err != nil {
		return err
	}
	err = r.wait(ctx, at+" is readable and the node streams", func(f nodetest.Follow) bool {
		readable, err := pg.ParseLSN(f.Readable)
		return err == nil && readable >= want && f.State == "streaming"
	})
	if err != nil {
		return err
	}
	f, err := r.node.Status(ctx)
	if err != nil {
		return err
	}
	if f.Consistent != r.first {
		return fmt.Errorf("the import of %s was replaced by one of %s", r.first, f.Consistent)
	}
	if len(f.Warnings) > 0 {
		return fmt.Errorf("the node warns: %q", f.Warnings)
	}
	began := time.Now()
	res := r.node.Run(ctx, "check", "--quiet")
	if res.Code != 0 {
		return fmt.Errorf("check: exit code %d: %s%s", res.Code, res.Stdout, res.Stderr)
	}
	r.o.Logf("at %s: check in %.1f s: %s", at, time.Since(began).Seconds(), strings.TrimSpace(res.Stdout))
	return nil
}

// compare ends the load, stops the primary cleanly and compares everything.
func (r *run) compare(ctx context.Context) error {
	r.load.stop()
	if err := r.sound(ctx); err != nil {
		return err
	}
	if err := r.acknowledged(ctx); err != nil {
		return err
	}
	if err := r.primary.Stop(ctx, pgtest.Fast); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	final, err := nodetest.CompareStopped(ctx, r.node.Address(), r.primary.DataDir())
	r.report.Final = final
	if err != nil {
		return err
	}
	if !final.OK() {
		return fmt.Errorf("the stopped primary differs: %d mismatches, %d damaged; the first: %+v", final.Mismatches, final.Damaged, final.Found[:min(5, len(final.Found))])
	}
	return nil
}
