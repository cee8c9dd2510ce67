// Package losstest deletes the data directories of a cluster whose history goes to an S3 server, under load: of two of its three nodes, of all three with the
// primary alive, and of all three with the primary dead. What was there must be there again, page by page, and every commit that a client saw.
package losstest

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
	"everpage/deploy/restoretest"
	"everpage/deploy/s3test"
	"everpage/wal/pg"
)

// Options say how much is made, and how much of it is held against what was recorded.
type Options struct {
	Binary string // of everpage
	Dir    string // for all that is made; removed if all was right
	Seed   uint64
	Scale  int // of pgbench
	Load   time.Duration
	LSNs   int // of which all pages are recorded and compared
	Stock  int // of these, each held against a stock server recovered from an independent archive
	Args   []string
	Logf   func(format string, args ...any)
}

// Report tells what was seen.
type Report struct {
	LSNs, Stock   int
	Pages         int           // compared, over all steps
	Commits       int           // that clients saw
	Up            time.Duration // of the node made of the store alone, until it could be read at the WAL's end there
	Fetched       uint64        // bytes, until then
	Lost          uint64        // bytes of WAL, with the primary dead
	LostCommits   int
	Lag           uint64 // that was shown before
	StoreBytes    uint64
	Uploaded, WAL uint64
}

// run is one run's state.
type run struct {
	o       Options
	r       *Report
	random  *rand.Rand
	s3      *s3test.Server
	primary *pgtest.Server
	cluster *nodetest.Cluster
	archive *independent
	load    *load
	digests map[pg.LSN]uint64
	args    []string
}

const patience = 3 * time.Minute

// Run makes a cluster and takes it away again, in three ways.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	x := &run{o: o, r: &Report{}, random: rand.New(rand.NewPCG(o.Seed, 0)), digests: map[pg.LSN]uint64{}}
	defer func() {
		err = errors.Join(err, x.close())
		if err == nil {
			err = os.RemoveAll(o.Dir)
		} else if x.cluster != nil {
			for i, n := range x.cluster.Nodes {
				o.Logf("log of node%d:\n%s", i+1, n.Log())
			}
		}
	}()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"set up", x.setUp}, {"record", x.record}, {"two of three are lost", x.loseTwo}, {"all are lost, the primary is alive", x.loseAll},
		{"against stock servers", x.againstStock}, {"all are lost, and the primary", x.loseEverything},
	} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return x.r, fmt.Errorf("%s: %w", step.what, err)
		}
		o.Logf("%s: %s", step.what, time.Since(began).Round(time.Millisecond))
	}
	return x.r, nil
}

func (x *run) close() error {
	if x.load != nil {
		x.load.stop()
	}
	if x.archive != nil {
		x.archive.stop()
	}
	var err error
	if x.cluster != nil {
		err = x.cluster.Close()
	}
	if x.primary != nil {
		err = errors.Join(err, x.primary.Close())
	}
	if x.s3 != nil {
		x.s3.Kill()
	}
	return err
}

func (x *run) setUp(ctx context.Context) (err error) {
	if x.s3, err = s3test.Start(ctx, filepath.Join(x.o.Dir, "s3")); err != nil {
		return err
	}
	if err := x.s3.Bucket("history"); err != nil {
		return err
	}
	x.primary, err = pgtest.Start(ctx, pgtest.Config{Dir: filepath.Join(x.o.Dir, "primary"), Settings: map[string]string{
		"wal_level": "replica", "max_wal_senders": "20", "max_replication_slots": "20", "max_prepared_transactions": "10", "shared_buffers": "32MB", "track_commit_timestamp": "on",
	}})
	if err != nil {
		return err
	}
	x.args = append([]string{"--store", x.s3.URL("history", "cluster"), "--archive-every", "300ms", "--backup-every", "2s", "--dead-after", "5s"}, x.o.Args...)
	base := nodetest.Config{Binary: x.o.Binary, Data: filepath.Join(x.o.Dir, "nodes"), Env: x.s3.Env(), Args: x.args}
	if x.cluster, err = nodetest.StartCluster(ctx, 3, base, func(i int, c *nodetest.Config) {
		if i == 0 {
			c.Args = append(c.Args, "--shards", fmt.Sprint(shards), "--segment-blocks", fmt.Sprint(segmentBlocks))
		} else {
			c.Args = append(c.Args, "--segment-blocks", fmt.Sprint(segmentBlocks))
		}
	}); err != nil {
		return err
	}
	if _, err := x.primary.SQL(ctx, "postgres", "create database bench"); err != nil {
		return err
	}
	if _, err := x.primary.Pgbench(ctx, "-i", "-q", "-s", fmt.Sprint(x.o.Scale), "bench"); err != nil {
		return err
	}
	if r := x.cluster.Nodes[0].Run(ctx, "attach", x.primary.URI("postgres"), "--wait", "--quiet"); r.Code != 0 {
		return fmt.Errorf("attach: %s", r.Stderr)
	}
	if err := x.settled(ctx); err != nil {
		return err
	}
	if x.archive, err = startArchive(ctx, x.primary, x.o.Dir); err != nil {
		return err
	}
	x.load, err = startLoad(ctx, x.primary)
	return err
}

// Small chunks and few shards: small relations lie in several.
const (
	shards        = 8
	segmentBlocks = 64
)

func (x *run) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return x.cluster.Settled(ctx, shards*len(x.cluster.Nodes))
}

// caughtUp waits until all nodes have what the primary has written, and returns up to where that is.
func (x *run) caughtUp(ctx context.Context) (pg.LSN, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	text, err := x.primary.CurrentLSN(ctx)
	if err != nil {
		return 0, err
	}
	at, err := pg.ParseLSN(text)
	if err != nil {
		return 0, err
	}
	return at, x.cluster.Readable(ctx, at)
}

// record makes load and then notes the digests of all pages at random LSNs, where records end.
func (x *run) record(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(x.o.Load):
	}
	if r := x.cluster.Nodes[0].Run(ctx, "backup", "now"); r.Code != 0 {
		return fmt.Errorf("backup now: %s", r.Stderr)
	}
	select { // and some that comes back from WAL at first
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(x.o.Load / 4):
	}
	if err := x.archive.sealed(ctx); err != nil {
		return err
	}
	ends, err := x.archive.recordEnds()
	if err != nil {
		return err
	}
	if _, err := x.caughtUp(ctx); err != nil {
		return err
	}
	for len(x.digests) < x.o.LSNs {
		at := ends[x.random.IntN(len(ends))]
		if len(x.digests) == 0 {
			at = ends[len(ends)-1]
		}
		n := x.cluster.Nodes[x.random.IntN(3)]
		if x.digests[at], _, err = digest(ctx, n, at); err != nil {
			return err
		}
	}
	x.r.LSNs = len(x.digests)
	return nil
}

// compare holds all pages at the recorded LSNs against what they were.
func (x *run) compare(ctx context.Context, nodes ...*nodetest.Node) error {
	i := 0
	for at, want := range x.digests {
		n := nodes[i%len(nodes)]
		i++
		sum, pages, err := digest(ctx, n, at)
		if err != nil {
			return err
		}
		if sum != want {
			return fmt.Errorf("at %s all pages have the digest %x, it was %x", at, sum, want)
		}
		x.r.Pages += pages
	}
	return nil
}

// loseTwo deletes two nodes' data. The third one goes on reading, is made a cluster of its own, and the two join it under their names.
func (x *run) loseTwo(ctx context.Context) error {
	left := x.random.IntN(3)
	survivor := x.cluster.Nodes[left]
	var lost []*nodetest.Node
	for i, n := range x.cluster.Nodes {
		if i != left {
			lost = append(lost, n)
			if err := wipe(n); err != nil {
				return err
			}
		}
	}
	for at, want := range x.digests { // what is left still answers
		sum, _, err := digest(ctx, survivor, at)
		if err != nil || sum != want {
			return fmt.Errorf("the node that is left: at %s %x, it was %x: %w", at, sum, want, err)
		}
		break
	}
	survivor.Kill9()
	if r := survivor.Run(ctx, "node", "survive", "--data", survivor.Data(), "--node", name(left)); r.Code != 0 {
		return fmt.Errorf("node survive: %s", r.Stderr)
	}
	if err := survivor.StartAgain(ctx); err != nil {
		return err
	}
	if err := x.join(ctx, survivor, lost); err != nil {
		return err
	}
	if _, err := x.caughtUp(ctx); err != nil {
		return err
	}
	if err := x.compare(ctx, lost...); err != nil {
		return err
	}
	return x.commits(ctx)
}

func name(i int) string { return fmt.Sprintf("node%d", i+1) }

// wipe ends a node as a loss of power would, and deletes its data.
func wipe(n *nodetest.Node) error {
	n.Kill9()
	return os.RemoveAll(n.Data())
}

// join starts nodes that have nothing, and waits until they have their share.
func (x *run) join(ctx context.Context, to *nodetest.Node, nodes []*nodetest.Node) error {
	for _, n := range nodes {
		i := slices.Index(x.cluster.Nodes, n)
		n.SetArgs(append(slices.Clone(x.args), "--node", name(i), "--segment-blocks", fmt.Sprint(segmentBlocks), "--join", to.Address())...)
		if err := n.StartAgain(ctx); err != nil {
			return fmt.Errorf("%s: %w", name(i), err)
		}
	}
	return x.settled(ctx)
}

// recovered deletes every node's data and makes the first one anew of the store alone.
func (x *run) recovered(ctx context.Context, end pg.LSN) error {
	for _, n := range x.cluster.Nodes {
		if err := wipe(n); err != nil {
			return err
		}
	}
	first := x.cluster.Nodes[0]
	first.SetArgs(append(slices.Clone(x.args), "--node", name(0), "--recover")...)
	began := time.Now()
	if err := first.StartAgain(ctx); err != nil {
		return err
	}
	if err := restoretest.WaitReadable(ctx, first, end); err != nil {
		return err
	}
	x.r.Up = max(x.r.Up, time.Since(began))
	b, err := first.Backups(ctx)
	x.r.Fetched = max(x.r.Fetched, b.Downloaded)
	return err
}

// loseAll deletes all three nodes' data under load.
func (x *run) loseAll(ctx context.Context) error {
	if r := x.cluster.Nodes[0].Run(ctx, "backup", "now"); r.Code != 0 {
		return fmt.Errorf("backup now: %s", r.Stderr)
	}
	before, err := x.leader(ctx)
	if err != nil {
		return err
	}
	if err := x.recovered(ctx, before.Archive.End); err != nil {
		return err
	}
	first := x.cluster.Nodes[0]
	if err := x.compare(ctx, first); err != nil { // before the rest has come
		return err
	}
	if err := x.join(ctx, first, x.cluster.Nodes[1:]); err != nil {
		return err
	}
	if _, err := x.caughtUp(ctx); err != nil {
		return err
	}
	if err := x.compare(ctx, x.cluster.Nodes...); err != nil {
		return err
	}
	if err := x.commits(ctx); err != nil {
		return err
	}
	return x.sound(ctx)
}

// sound checks that the store has no hole and nothing in it is wrong, and that every node's own data is consistent.
func (x *run) sound(ctx context.Context) error {
	if r := x.cluster.Nodes[0].Run(ctx, "backup", "now"); r.Code != 0 {
		return fmt.Errorf("backup now: %s", r.Stderr)
	}
	b, err := x.leader(ctx)
	if err != nil {
		return err
	}
	if len(b.Archive.Gaps) > 0 || b.Archive.Error != "" || b.Error != "" {
		return fmt.Errorf("backup list: %+v", b)
	}
	for _, branch := range b.Branches {
		x.r.StoreBytes += branch.Bytes
	}
	if r := x.cluster.Nodes[0].Run(ctx, "verify"); r.Code != 0 {
		return fmt.Errorf("verify: %s%s", r.Stdout, r.Stderr)
	}
	for i, n := range x.cluster.Nodes {
		if r := n.Run(ctx, "check"); r.Code != 0 {
			return fmt.Errorf("check of %s: %s%s", name(i), r.Stdout, r.Stderr)
		}
	}
	return nil
}

// againstStock restores at some of the recorded LSNs and holds the directories against stock servers made of the independent archive.
func (x *run) againstStock(ctx context.Context) error {
	h := restoretest.Of(x.cluster.Nodes[0], filepath.Join(x.o.Dir, "restored"), x.archive.base, x.archive.wal)
	for at := range x.digests {
		if x.r.Stock == x.o.Stock {
			return nil
		}
		res, err := h.Check(ctx, at, restoretest.Checks{Stock: true})
		if err != nil {
			return err
		}
		x.o.Logf("%s", res)
		x.r.Stock++
	}
	return nil
}

// loseEverything has the store away for a moment, so that there is a lag, and then deletes the nodes and the primary. What is lost is that lag.
func (x *run) loseEverything(ctx context.Context) error {
	if err := x.cutOff(ctx); err != nil {
		return err
	}
	x.load.stop()
	if _, err := x.caughtUp(ctx); err != nil {
		return err
	}
	if err := x.primary.Kill9(ctx); err != nil {
		return err
	}
	durable, err := x.evened(ctx)
	if err != nil {
		return err
	}
	before, err := x.leader(ctx)
	if err != nil {
		return err
	}
	if x.r.Lag = before.Archive.Lag; x.r.Lag == 0 {
		return fmt.Errorf("there is no archive lag: %+v", before)
	}
	if shown, err := x.infoLag(ctx); err != nil || shown != x.r.Lag {
		return fmt.Errorf("info shows an archive lag of %d bytes, backup list of %d: %w", shown, x.r.Lag, err)
	}
	if end := before.Archive.End + pg.LSN(before.Archive.Lag); end != durable {
		return fmt.Errorf("the nodes have WAL up to %s, by the archive's end and lag it is %s", durable, end)
	}
	// Nobody may archive more once the store is back.
	for _, n := range x.cluster.Nodes {
		n.Kill9()
	}
	if err := x.s3.StartAgain(ctx); err != nil {
		return err
	}
	if err := x.recovered(ctx, before.Archive.End); err != nil {
		return err
	}
	first := x.cluster.Nodes[0]
	st, err := first.Status(ctx)
	if err != nil {
		return err
	}
	end, err := pg.ParseLSN(st.Readable)
	if err != nil {
		return err
	}
	if x.r.Lost = uint64(durable - end); x.r.Lost != before.Archive.Lag {
		return fmt.Errorf("the history goes to %s: %d bytes of WAL are lost, the archive lag was %d", end, x.r.Lost, before.Archive.Lag)
	}
	if err := x.compare(ctx, first); err != nil {
		return err
	}
	return x.commitsAt(ctx, end)
}
