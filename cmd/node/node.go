package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"everpage/chunk"
	"everpage/cluster"
	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// Directories below Config.Data.
const (
	storeDir = "store"
	spoolDir = "spool"
)

// Node is a running node.
type Node struct {
	cfg     Config
	started time.Time
	store   *chunk.Store
	redoer  *redoer
	pages   *pages
	follow  *follower
	backups *backups // nil without a store
	peers   *peers
	usage   *usage
	budget  *budget // nil without one
	cluster *cluster.Cluster

	collecting collecting
	repairs    repairs
}

// Run runs a node until ctx ends or it can't go on. ready, where set, is called with the address of its page service once that answers.
func Run(ctx context.Context, cfg Config, ready func(address string)) (err error) {
	if err := cfg.complete(); err != nil {
		return err
	}
	if err := makeData(cfg.Data); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	lock, err := lockData(cfg.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := refuseOld(cfg.Data); err != nil {
		return err
	}
	n := &Node{cfg: cfg, started: time.Now(), redoer: &redoer{}, peers: newPeers()}
	if n.backups, err = openBackups(ctx, &cfg); err != nil {
		return err
	}
	root, err := n.recoverRoot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.peers.close()) }()
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("page service: %w", err)
	}
	n.cfg.Listen = listener.Addr().String()
	if n.cluster, err = n.join(ctx); err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() { err = errors.Join(err, n.cluster.Close()) }()
	cfg = n.cfg // the cluster knows better how many shards there are
	n.store, err = chunk.Open(chunk.Options{
		Dir: filepath.Join(cfg.Data, storeDir), Redoer: n.redoer, Logger: cfg.Logger, CacheBytes: cfg.CacheBytes, RunBytes: cfg.RunBytes,
		DiskBytes: int64(cfg.DiskBudget), ReserveBytes: cfg.spare(),
		SegmentBlocks: cfg.SegmentBlocks, Shards: cfg.Shards, Checksum: pg.Checksum,
		Fatal: func(msg string) {
			cfg.Logger.Error("the store can't go on; what was acknowledged is in the spool and is read again at the next start", "reason", msg)
			os.Exit(1)
		},
	})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer func() { err = errors.Join(err, n.store.Close()) }()
	if err := n.openRegistry(ctx, root); err != nil {
		return errors.Join(err, listener.Close())
	}
	n.follow, err = newFollower(n)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	n.usage, n.budget = newUsage(n.store.Shards()), newBudget(n)
	n.pages = &pages{store: n.store, usage: n.usage, budget: n.budget, segmentBlocks: cfg.SegmentBlocks, behind: n.follow.behind, history: n.follow.history, main: n.follow.main, parent: n.follow.parent, isMain: n.follow.isMain}
	if err := n.startBackups(); err != nil {
		return errors.Join(err, listener.Close())
	}
	n.store.SetSource(source{n})
	n.pages.maps.Store(n.cluster.State().ClientMap())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.serveGRPC(ctx, listener) })
	if cfg.HTTP != "" {
		httpListener, err := net.Listen("tcp", cfg.HTTP)
		if err != nil {
			listener.Close()
			return fmt.Errorf("metrics service: %w", err)
		}
		g.Go(func() error { return n.serveHTTP(ctx, httpListener) })
	}
	g.Go(func() error { return n.follow.run(ctx) })
	g.Go(func() error { return n.runBackups(ctx) })
	g.Go(func() error { return n.watchCluster(ctx) })
	g.Go(func() error { return n.keepShards(ctx) })
	g.Go(func() error { return n.measure(ctx) })
	g.Go(func() error { return n.keepCatalog(ctx) })
	g.Go(func() error { return n.lead(ctx) })
	g.Go(func() error { return n.keepHorizon(ctx) })
	g.Go(func() error { return n.keepBudget(ctx) })
	if ready != nil {
		ready(n.cfg.Listen)
	}
	cfg.Logger.Info("node is up", "node", cfg.Node, "cluster", cfg.Cluster, "listen", n.cfg.Listen, "data", cfg.Data)
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// makeData makes the data directory and those above it, and fsyncs what names them: all that is acknowledged lies in it.
func makeData(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := makeData(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// stopWait is how long requests under way may take when the node stops.
const stopWait = 2 * time.Second

func (n *Node) serveGRPC(ctx context.Context, l net.Listener) error {
	s := grpc.NewServer(pageapi.ServerOptions()...)
	pb.RegisterPageServiceServer(s, pageapi.NewServer(n.pages).WithLeases(leases{n}))
	pb.RegisterAdminServiceServer(s, &admin{n: n})
	pb.RegisterBackupServiceServer(s, &backupService{n: n})
	pb.RegisterNodeServiceServer(s, &nodeService{n: n})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	hard := time.AfterFunc(stopWait, s.Stop)
	defer hard.Stop()
	s.GracefulStop()
	<-served
	return ctx.Err()
}

func (n *Node) serveHTTP(ctx context.Context, l net.Listener) error {
	s := &http.Server{Handler: n.httpHandler(), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	s.Close()
	<-served
	return ctx.Err()
}
