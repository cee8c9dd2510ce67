package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"everpage/backup"
	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/chunk"
	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal"
	"everpage/wal/pg"
)

// backupService answers what the commands around the store ask.
type backupService struct {
	pb.UnimplementedBackupServiceServer
	n *Node
}

func (s *backupService) backups() (*backups, error) {
	if s.n.backups == nil {
		return nil, status.Error(codes.FailedPrecondition, "this node has no store: start it with --store")
	}
	return s.n.backups, nil
}

// storeStatus gives the errors of a store their codes.
func storeStatus(err error) error {
	code := codes.Internal
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrThrottled):
		code = codes.Unavailable
	case errors.Is(err, backup.ErrNotLeader), errors.Is(err, backup.ErrTaken):
		code = codes.FailedPrecondition
	}
	return status.Error(code, err.Error())
}

func (s *backupService) Backups(ctx context.Context, _ *pb.BackupsRequest) (*pb.BackupsResponse, error) {
	b, err := s.backups()
	if err != nil {
		return nil, err
	}
	resp := &pb.BackupsResponse{Store: b.store.String()}
	if st, ok := b.status(); ok {
		resp.Archive = &pb.WalArchive{BeginLsn: uint64(st.Begin), EndLsn: uint64(st.End), LagBytes: st.Lag()}
		for _, g := range st.Gaps {
			resp.Archive.Gaps = append(resp.Archive.Gaps, g.String())
		}
		if st.Err != nil {
			resp.Archive.Error = st.Err.Error()
		}
	}
	up := b.uploader.Status()
	if up.Err != nil {
		resp.Error = up.Err.Error()
	}
	if !up.Last.IsZero() {
		resp.LastUploadUs = up.Last.UnixMicro()
	}
	var at pg.LSN
	if resp.LagBytes, at = s.n.backupLag(); resp.LagBytes > 0 {
		resp.LagSeconds = s.n.lagSeconds(s.n.follow.main(), at)
	}
	resp.Retention, resp.LocalBytes = retentionText(s.n.cluster.State()), s.n.store.Stats().DiskBytes
	if a := resp.Archive; a != nil && a.LagBytes > 0 {
		a.LagSeconds = s.n.lagSeconds(s.n.follow.main(), pg.LSN(a.EndLsn))
	}
	left, ferr := b.filler.Status()
	if resp.ShardsToRestore = uint32(left); ferr != nil {
		resp.RestoreError = ferr.Error()
	}
	u := b.store.Usage()
	resp.Usage = &pb.StoreUsage{
		Puts: u.Puts, Gets: u.Gets, Stats: u.Stats, Deletes: u.Deletes, Lists: u.Lists, Failures: u.Failures, UploadedBytes: u.Uploaded, DownloadedBytes: u.Downloaded,
	}
	// How far behind the store is must be told above all when the store is away.
	listCtx, cancel := context.WithTimeout(ctx, manifestsWait)
	defer cancel()
	list, err := b.source.Manifests(listCtx, s.n.branches(), s.n.store.Shards())
	if err != nil {
		resp.Error = joinText(resp.Error, "what the store has can't be told: "+err.Error())
	}
	for _, m := range backup.Summarize(list) {
		resp.ObjectBytes += uint64(m.Bytes)
		m.Oldest = max(m.Oldest, s.n.store.Oldest(m.Branch))
		resp.Branches = append(resp.Branches, &pb.BranchBackup{
			Branch: m.Branch, OldestLsn: uint64(m.Oldest), NewestLsn: uint64(m.Newest), Shards: uint32(m.Shards), Layers: uint64(m.Layers), Bytes: uint64(m.Bytes),
		})
	}
	return resp, nil
}

// manifestsWait bounds how long a status waits for manifests that aren't known here.
const manifestsWait = 5 * time.Second

func joinText(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

func (s *backupService) BackupNow(ctx context.Context, _ *pb.BackupNowRequest) (*pb.BackupsResponse, error) {
	b, err := s.backups()
	if err != nil {
		return nil, err
	}
	if err := b.uploader.Now(ctx); err != nil {
		return nil, storeStatus(err)
	}
	return s.Backups(ctx, nil)
}

// collectStore deletes in the store, or tells what would go. The node must lead.
func (s *backupService) collectStore(ctx context.Context, dryRun bool) (*pb.CollectGarbageResponse, error) {
	b, err := s.backups()
	if err != nil {
		return nil, err
	}
	removed, err := s.n.collector(b).Collect(ctx, dryRun)
	resp := &pb.CollectGarbageResponse{Done: err == nil, Store: true}
	for _, i := range removed {
		resp.Objects = append(resp.Objects, i.Name)
		resp.Bytes += uint64(i.Size)
	}
	return resp, storeStatus(err)
}

// collector deletes in the store what no recovery needs.
func (n *Node) collector(b *backups) *backup.Collector {
	return &backup.Collector{
		Store: b.store, Registry: b.registry, Branches: n.branches, Shards: n.store.Shards(), ID: n.follow.archiveID, Grace: n.cfg.GCGrace, Owns: b.owner.Check,
		HoldRoots: b.uploader.HoldRoots,
		WALFrom: func() pg.LSN {
			// Recovery goes on behind the small layers' end. The segment before is kept too: readers begin at a page's or segment's start.
			return b.registry.Current(n.follow.main(), backup.Small).LSN
		},
	}
}

// collect removes garbage from the store, from time to time, until ctx ends.
func (n *Node) collect(ctx context.Context) error {
	tick := time.NewTicker(max(n.cfg.GCGrace, time.Minute))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		removed, err := n.collector(n.backups).Collect(ctx, false)
		if err != nil && !errors.Is(err, backup.ErrNotLeader) && ctx.Err() == nil {
			n.cfg.Logger.Warn("garbage stays in the store", "error", err)
		}
		if len(removed) > 0 {
			n.cfg.Logger.Info("garbage was removed from the store", "objects", len(removed))
		}
	}
}

// archiveID says whose WAL is archived; false while nothing is followed.
func (f *follower) archiveID() (archive.ID, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return archive.ID{SystemID: f.st.SystemIdentifier, SegmentSize: wal.SegmentSize(f.st.WALSegmentSize)}, f.st.SystemIdentifier != 0
}

func (s *backupService) VerifyBackup(_ *pb.VerifyBackupRequest, out pb.BackupService_VerifyBackupServer) error {
	b, err := s.backups()
	if err != nil {
		return err
	}
	ctx := out.Context()
	var sendErr error
	report := func(problem string) {
		if sendErr == nil {
			sendErr = out.Send(&pb.VerifyBackupResponse{Problem: problem})
		}
	}
	id, _ := s.n.follow.archiveID()
	scrub := &backup.Scrub{
		Store: b.store, Registry: b.registry, Branches: s.n.branches(), Shards: s.n.store.Shards(), ID: id, Grace: s.n.cfg.GCGrace, Report: report,
		Note: func(text string) {
			if sendErr == nil {
				sendErr = out.Send(&pb.VerifyBackupResponse{Note: text})
			}
		},
	}
	root, err := backup.ReadRoot(ctx, b.store)
	switch {
	case err == nil:
		scrub.Root = root
	case store.Temporary(err) && !errors.Is(err, backup.ErrNoRoot):
		return storeStatus(err)
	default:
		report("root: " + err.Error())
	}
	if err := errors.Join(scrub.Run(ctx), sendErr); err != nil {
		return storeStatus(err)
	}
	for _, branch := range s.n.store.Branches() {
		if err := s.n.store.Scrub(ctx, branch, func(shard placement.Shard, err error) {
			report(fmt.Sprintf("corrupt: shard %d of branch %d on the disk of node %s: %v; it is repaired from another replica or the store", shard, branch, s.n.cfg.Node, err))
		}); err != nil {
			return storeStatus(err)
		}
	}
	pages, err := s.n.compareSample(ctx, report)
	if err := errors.Join(err, sendErr); err != nil {
		return storeStatus(err)
	}
	return out.Send(&pb.VerifyBackupResponse{Done: true, Objects: uint64(scrub.Objects), Bytes: uint64(scrub.Bytes), Layers: uint64(scrub.Layers), Pages: uint64(pages)})
}

// samplePages is how many pages verify makes twice.
const samplePages = 400

// compareSample holds versions of pages as they are here against the same out of the store. Both are sources of their own: a table that decayed on one side
// shows, as does a layer that lacks what it should have.
func (n *Node) compareSample(ctx context.Context, report func(string)) (pages int, err error) {
	p, ok := n.store.Progress(n.follow.main())
	at := n.backups.registry.Current(n.follow.main(), backup.Small).LSN
	if !ok || at == 0 || at < p.Consistent {
		return 0, nil
	}
	rels, total := []relation{}, uint64(0)
	if err := n.store.Relations(ctx, n.follow.main(), at, pg.RelFork{}, func(fork pg.RelFork, blocks uint32) error {
		if blocks > 0 {
			rels = append(rels, relation{fork, blocks})
			total += uint64(blocks)
		}
		return ctx.Err()
	}); err != nil {
		return 0, err
	}
	step := max(total/samplePages, 1)
	next := uint64(time.Now().UnixNano()) % step
	for _, r := range rels {
		for ; next < uint64(r.blocks); next += step {
			key := pg.PageKey{RelFork: r.fork, Block: pg.BlockNumber(next)}
			if err := n.comparePage(ctx, key, at, report); err != nil {
				return pages, err
			}
			pages++
		}
		next -= uint64(r.blocks)
	}
	return pages, nil
}

type relation struct {
	fork   pg.RelFork
	blocks pg.BlockNumber
}

func (n *Node) comparePage(ctx context.Context, key pg.PageKey, at pg.LSN, report func(string)) error {
	here, err := n.store.Versions(ctx, n.follow.main(), key, at)
	if errors.Is(err, chunk.ErrNotHere) {
		return nil // it was evicted, or is not this node's
	}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		report(fmt.Sprintf("page %s at %s: here: %v", key, at, err))
		return nil
	}
	there, err := n.backups.source.Versions(ctx, n.follow.main(), key, at)
	if err != nil {
		if ctx.Err() != nil || store.Temporary(err) && errors.Is(err, store.ErrUnavailable) {
			return err
		}
		report(fmt.Sprintf("page %s at %s: in the store: %v", key, at, err))
		return nil
	}
	same, unlike := n.store.SameVersions(n.follow.main(), key, here, there)
	if same {
		return nil
	}
	if same, err = n.sameCollected(ctx, key, at, here, there); err != nil && ctx.Err() != nil {
		return err
	}
	if !same {
		text := fmt.Sprintf("page %s at %s: %d versions here and %d in the store differ", key, at, len(here), len(there))
		if unlike != nil {
			text += ": " + unlike.Error()
		}
		report(text)
	}
	return nil
}

// sameCollected tells whether two lists of a page's versions come to the same, where one of them may have been collected: an image stands for a chain then,
// and what was cut off is missing.
func (n *Node) sameCollected(ctx context.Context, key pg.PageKey, at pg.LSN, here, there []chunk.PageVersion) (bool, error) {
	main := n.follow.main()
	if p, _ := n.store.Progress(main); p.Horizon == 0 {
		return false, nil
	}
	var cut pg.LSN
	done := errors.New("found")
	if key.Spc != 0 {
		err := n.store.Sizes(ctx, main, key.RelFork, func(v chunk.SizeVersion) error {
			if v.LSN <= at && v.Cuts(key.Block) {
				cut = v.LSN
				return done
			}
			return nil
		})
		if err != nil && !errors.Is(err, done) {
			return false, err
		}
	}
	older := func(v chunk.PageVersion) bool { return v.LSN <= cut }
	here, there = slices.DeleteFunc(here, older), slices.DeleteFunc(there, older)
	if len(here) == 0 || len(there) == 0 {
		return len(here) == len(there), nil
	}
	a, b := make(pg.Page, pg.BlockSize), make(pg.Page, pg.BlockSize)
	wholeHere, errHere := n.store.Compose(main, key, here, a)
	wholeThere, errThere := n.store.Compose(main, key, there, b)
	if !wholeHere || !wholeThere { // the rest lies in another database, of which this one is a copy
		return here[0].LSN == there[0].LSN, nil
	}
	if errHere != nil || errThere != nil {
		return errHere != nil && errThere != nil, nil
	}
	return here[0].LSN == there[0].LSN && bytes.Equal(a, b), nil
}
