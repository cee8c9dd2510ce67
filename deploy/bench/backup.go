package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/deploy/s3test"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// stored is the part of `backup list` that is measured.
type stored struct {
	Lag     uint64 `json:"lag_bytes"`
	Error   string `json:"error"`
	Archive *struct {
		End pg.LSN `json:"end_lsn"`
	} `json:"archive"`
	Branches []struct {
		Newest pg.LSN `json:"newest_lsn"`
		Layers int
		Bytes  float64
	}
	ToRestore  int                `json:"shards_to_restore"`
	Requests   map[string]float64 `json:"requests"`
	Uploaded   float64            `json:"uploaded_bytes"`
	Downloaded float64            `json:"downloaded_bytes"`
}

func (s *stored) requests() (n float64) {
	for what, count := range s.Requests {
		if what != "failed" {
			n += count
		}
	}
	return n
}

// backupBench is one node whose history goes to an S3 server on this machine.
type backupBench struct {
	b    *bench
	dir  string
	s3   *s3test.Server
	s    *pgtest.Server
	peer peerRestore
	node *nodetest.Node
	size float64 // of the database
	rel  string  // pgbench_accounts
}

// backup measures what the store costs and gives: bytes and requests, how fast it is filled, how soon a page can be read from it, how fast all is back.
func (b *bench) backup(ctx context.Context) (err error) {
	x := &backupBench{b: b, dir: filepath.Join(b.work, "backup")}
	if !b.keep {
		defer os.RemoveAll(x.dir)
	}
	defer func() { err = errors.Join(err, x.close()) }()
	if err := x.start(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{x.first, x.load, x.firstPage, x.all} {
		settle()
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (x *backupBench) close() error {
	if x.node != nil {
		x.node.Kill9()
	}
	var err error
	if x.s != nil {
		err = x.s.Close()
	}
	if x.s3 != nil {
		x.s3.Kill()
	}
	return err
}

func (x *backupBench) start(ctx context.Context) (err error) {
	if err := os.MkdirAll(x.dir, 0o755); err != nil {
		return err
	}
	if x.s3, err = s3test.Start(ctx, filepath.Join(x.dir, "s3")); err != nil {
		return err
	}
	if err := x.s3.Bucket("bench"); err != nil {
		return err
	}
	backrest, err := x.b.fetchBackrest(ctx)
	if err != nil {
		progress("pgBackRest is not to be had: %v", err)
	}
	sized := *x.b
	sized.nodeScale = x.b.storeScale
	if x.s, x.peer, err = sized.primary(ctx, filepath.Join(x.dir, "primary"), backrest); err != nil {
		return err
	}
	if x.size, err = databaseSize(ctx, x.s); err != nil {
		return err
	}
	x.rel, err = x.s.Value(ctx, "postgres", "select pg_relation_filepath('pgbench_accounts')")
	return err
}

// run starts the node, on its data or on nothing.
func (x *backupBench) run(ctx context.Context, args ...string) (err error) {
	x.node, err = nodetest.Start(ctx, nodetest.Config{Binary: x.b.everpage, Data: filepath.Join(x.dir, "node"), Env: x.s3.Env(),
		Args: append([]string{"--store", x.s3.URL("bench", "cluster")}, args...)})
	return err
}

func (x *backupBench) must(ctx context.Context, args ...string) error {
	if r := x.node.Run(ctx, args...); r.Code != 0 {
		return fmt.Errorf("%s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return nil
}

func (x *backupBench) list(ctx context.Context) (l stored, err error) {
	return l, x.node.JSON(ctx, &l, "backup", "list")
}

// first measures the first backup of a database.
func (x *backupBench) first(ctx context.Context) error {
	if err := x.run(ctx); err != nil {
		return err
	}
	if err := x.must(ctx, "attach", x.s.URI("postgres"), "--wait", "--quiet"); err != nil {
		return err
	}
	began := time.Now()
	if err := x.must(ctx, "backup", "now"); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	began = time.Now()
	if err := x.peer.backup(ctx); err != nil {
		return err
	}
	theirs := time.Since(began).Seconds()
	l, err := x.list(ctx)
	if err != nil {
		return err
	}
	if len(l.Branches) != 1 {
		return fmt.Errorf("backup list: %+v", l)
	}
	x.b.report.add("first backup", "", true, 0, fmt.Sprintf("a database of %.0f MB, imported before, into S3 on this machine; the peer reads the server's files and writes its repository on the same disk", x.size/1e6),
		of("backup now", "MB/s", x.size/1e6/took), of(strings.Replace(x.peer.name(), "restore + replay", "backup", 1), "MB/s", x.size/1e6/theirs))
	x.b.report.add("store bytes per database byte", "", true, 0, fmt.Sprintf("%.0f MB of layers in %d layers", l.Branches[0].Bytes/1e6, l.Branches[0].Layers),
		of("layers", "bytes", l.Branches[0].Bytes/x.size))
	return nil
}

// load measures what a GB of WAL costs in the store.
func (x *backupBench) load(ctx context.Context) error {
	before, err := x.list(ctx)
	if err != nil {
		return err
	}
	from, err := quiet(ctx, x.s)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := x.s.Pgbench(ctx, "-n", "-c", "4", "-j", "2", "-T", strconv.Itoa(x.b.storeSeconds)); err != nil {
		return err
	}
	to, err := quiet(ctx, x.s)
	if err != nil {
		return err
	}
	if err := x.must(ctx, "backup", "now"); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := x.list(ctx)
	if err != nil {
		return err
	}
	wal := float64(to - from)
	layers := after.Branches[0].Bytes - before.Branches[0].Bytes
	up := after.Uploaded - before.Uploaded
	note := fmt.Sprintf("%.0f MB of WAL of pgbench in %s, archived at once as whole segments and every 10 s in pieces, layers every minute", wal/1e6, took.Round(time.Second))
	x.b.report.add("store bytes per WAL byte", "", true, 0, note, of("layers kept", "bytes", layers/wal), of("uploaded: WAL, layers, manifests", "bytes", up/wal))
	requests := of("requests", "a GB of WAL", (after.requests()-before.requests())/(wal/1e9))
	x.b.report.add("store requests per GB of WAL", "", true, 0, fmt.Sprintf("%.0f a minute; put, get, stat, delete, list: %v", (after.requests()-before.requests())/took.Minutes(), after.Requests), requests)
	return nil
}

// lost ends the node and deletes its data.
func (x *backupBench) lost() error {
	x.node.Kill9()
	return os.RemoveAll(x.node.Data())
}

const firstPages = 7 // how often a first page is read: each time by a node that has nothing

// firstPage measures how soon a node that has nothing but the store answers for a page of a relation's segment.
func (x *backupBench) firstPage(ctx context.Context) error {
	l, err := x.list(ctx)
	if err != nil {
		return err
	}
	fork, err := relOf(x.rel)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(uint64(x.b.seed), 7))
	var up, took, bytes, requests, shown []float64
	var blocks pg.BlockNumber
	for range firstPages {
		if err := x.lost(); err != nil {
			return err
		}
		began := time.Now()
		// The filler gets next to nothing, so that what is counted is the page's.
		if err := x.run(ctx, "--recover", "--restore-rate", "1"); err != nil {
			return err
		}
		up = append(up, time.Since(began).Seconds()*1e3)
		before, err := x.list(ctx)
		if err != nil {
			return err
		}
		c, err := pageapi.NewClient([]string{x.node.Address()})
		if err != nil {
			return err
		}
		at := pageapi.Position{LSN: l.Branches[0].Newest}
		page := make(pg.Page, pg.BlockSize)
		blocks, _, err = c.RelSize(ctx, at, fork) // opens the connection, too
		if err == nil {
			block := pg.BlockNumber(random.IntN(int(min(blocks, pg.SegmentBlocks))))
			began = time.Now()
			_, err = c.Pages(ctx, at, fork, []pg.BlockNumber{block}, page)
			took = append(took, time.Since(began).Seconds()*1e3)
		}
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
		after, err := x.list(ctx)
		if err != nil {
			return err
		}
		bytes = append(bytes, (after.Downloaded-before.Downloaded)/1e3)
		requests = append(requests, after.requests()-before.requests())
		shown = append(shown, float64(after.Branches[0].Layers))
	}
	m, kb := of("first page", "ms", took...), of("transferred", "KB", bytes...)
	met := m.Median <= 200 && kb.Median <= 1000
	x.b.report.add("first page from the store", "≤ 200 ms, ≤ 1 MB", met, 0,
		fmt.Sprintf("a random page of a segment of %.0f MB, at the backup's LSN, of a node made of the store alone, whose manifests name %.0f layers", float64(min(blocks, pg.SegmentBlocks))*pg.BlockSize/1e6, shown[0]),
		m, kb, of("requests", "", requests...), of("node up from nothing", "ms", up...))
	return x.beyond(ctx, fork)
}

// beyond measures a page above the layers: WAL must be replayed first.
func (x *backupBench) beyond(ctx context.Context, fork pg.RelFork) error {
	if _, err := x.s.Pgbench(ctx, "-n", "-c", "4", "-j", "2", "-T", strconv.Itoa(max(x.b.storeSeconds/4, 2))); err != nil {
		return err
	}
	end, err := quiet(ctx, x.s)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	var l stored
	for l.Archive == nil || l.Archive.End < end {
		select {
		case <-bounded.Done():
			return fmt.Errorf("the WAL up to %s is not archived: %+v", end, l)
		case <-time.After(200 * time.Millisecond):
		}
		if l, err = x.list(ctx); err != nil {
			return err
		}
	}
	newest := l.Branches[0].Newest
	if err := x.lost(); err != nil {
		return err
	}
	began := time.Now()
	if err := x.run(ctx, "--recover", "--restore-rate", "1"); err != nil {
		return err
	}
	c, err := pageapi.NewClient([]string{x.node.Address()})
	if err != nil {
		return err
	}
	defer c.Close()
	page := make(pg.Page, pg.BlockSize)
	for {
		if _, err = c.Pages(bounded, pageapi.Position{LSN: end}, fork, []pg.BlockNumber{77}, page); err == nil || bounded.Err() != nil {
			break
		}
	}
	if err != nil {
		return err
	}
	x.b.report.add("first page beyond the layers", "", true, 0, fmt.Sprintf("from the start of a node made of the store alone; %.1f MB of WAL are read from the store and replayed first", float64(end-newest)/1e6),
		of("first page", "ms", time.Since(began).Seconds()*1e3))
	return nil
}

// all measures how long it takes until everything is back.
func (x *backupBench) all(ctx context.Context) error {
	if err := x.must(ctx, "backup", "now"); err != nil {
		return err
	}
	if err := archived(ctx, x.s); err != nil {
		return err
	}
	target, err := quiet(ctx, x.s)
	if err != nil {
		return err
	}
	if err := x.must(ctx, "backup", "now"); err != nil {
		return err
	}
	want, err := x.s.Value(ctx, "postgres", firstSelect)
	if err != nil {
		return err
	}
	if err := archived(ctx, x.s); err != nil {
		return err
	}
	if err := x.lost(); err != nil {
		return err
	}
	settle()
	began := time.Now()
	if err := x.run(ctx, "--recover"); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	for {
		l, err := x.list(ctx)
		if err != nil {
			return err
		}
		if l.ToRestore == 0 && l.Branches != nil && time.Since(began) > 2*time.Second {
			break
		}
		select {
		case <-bounded.Done():
			return fmt.Errorf("not all is restored: %+v", l)
		case <-time.After(50 * time.Millisecond):
		}
	}
	filled := time.Since(began).Seconds()
	if err := x.lost(); err != nil {
		return err
	}
	settle()
	// A directory out of nothing but the store: the node comes up, the directory's pages are read through it.
	ours, err := x.b.restored(ctx, want, func(data string) error {
		return errors.Join(x.run(ctx, "--recover"), x.must(ctx, "restore", data, "--lsn", target.String(), "--quiet"))
	})
	if err != nil {
		return err
	}
	settle()
	theirs, err := x.b.restored(ctx, want, func(data string) error {
		return errors.Join(x.s.MakeDir(data), x.peer.restore(ctx, data, target))
	})
	if err != nil {
		return fmt.Errorf("%s: %w", x.peer.name(), err)
	}
	x.b.report.add("a node's data restored from the store", "", true, 0, "all shards of the node above, with all of their history; reads are answered meanwhile", of("restore", "MB/s of database", x.size/1e6/filled))
	x.b.report.add("a data directory restored from the store alone", "", true, theirs.written/ours.written,
		fmt.Sprintf("node up from nothing, then everpage restore of %.0f MB; the first SELECT came after %.1f s, the peer's after %.1f s; the ratio is their time to ours", x.size/1e6, ours.total, theirs.total),
		of("recover + restore", "MB/s", x.size/1e6/ours.written), of(x.peer.name()+", written", "MB/s", x.size/1e6/theirs.written))
	return nil
}

// relOf reads what pg_relation_filepath prints for a relation in the default tablespace.
func relOf(path string) (f pg.RelFork, err error) {
	var db, rel uint32
	if _, err := fmt.Sscanf(path, "base/%d/%d", &db, &rel); err != nil {
		return f, fmt.Errorf("the path %q: %w", path, err)
	}
	return pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: pg.DefaultTablespace, DB: db, Rel: rel}, Fork: pg.MainFork}, nil
}
