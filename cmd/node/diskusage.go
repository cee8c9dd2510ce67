package node

import (
	"context"
	"path/filepath"
	"time"

	"everpage/backup"
	"everpage/chunk"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// relationName is how usage names what a chunk is of: as rel list names relations, and the directory of what is none.
func relationName(rel pg.RelFileLocator) string {
	if rel.Spc == 0 {
		return pg.SLRU(rel.DB).String()
	}
	return rel.String()
}

// diskUsage adds up the chunks that this node answers for first.
func (n *Node) diskUsage(ctx context.Context, branch uint32) (*pb.DiskUsageResponse, error) {
	m := n.pages.Map()
	sums := map[string]uint64{}
	err := n.store.Usage(ctx, branch, func(u chunk.ChunkUsage) error {
		blocks := n.store.SegmentBlocks()
		if u.Chunk.Spc == 0 {
			blocks = pg.SLRUPagesPerSegment
		}
		if m != nil {
			owners := m.Owners(pg.PageKey{RelFork: u.Chunk.RelFork, Block: u.Chunk.Segment * blocks})
			if len(owners) > 0 && owners[0].Name != n.cfg.Node {
				return nil
			}
		}
		sums[relationName(u.Chunk.RelFileLocator)] += u.Bytes
		return nil
	})
	if err != nil {
		return nil, err
	}
	resp := &pb.DiskUsageResponse{Branch: branch, LocalBytes: n.store.Stats().DiskBytes, SpoolBytes: uint64(dirBytes(filepath.Join(n.cfg.Data, spoolDir)))}
	for name, bytes := range sums {
		resp.Relations = append(resp.Relations, &pb.RelationUsage{Relation: name, Bytes: bytes})
	}
	return resp, nil
}

// currentSizes are the sizes of all relations at an LSN, as PostgreSQL has them.
func (n *Node) currentSizes(ctx context.Context, branch uint32, at pg.LSN) (map[string]uint64, error) {
	out := map[string]uint64{}
	if err := n.store.Relations(ctx, branch, at, pg.RelFork{}, func(f pg.RelFork, blocks uint32) error {
		out[relationName(f.RelFileLocator)] += uint64(blocks) * pg.BlockSize
		return nil
	}); err != nil {
		return nil, err
	}
	for _, slru := range pg.SLRUs() {
		if err := n.store.SLRUSegments(branch, slru, at, func(_, pages uint32) error {
			out[slru.String()] += uint64(pages) * pg.BlockSize
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// stored is what the store has of a branch.
type stored struct {
	oldest, newest pg.LSN // that the store alone gives back
	layers         uint64 // bytes
}

// inStore tells what the store has of a branch, as far as its manifests are known: none is read for it that is not current.
func (n *Node) inStore(ctx context.Context, branch uint32) (out stored) {
	b := n.backups
	if b == nil {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, manifestsWait)
	defer cancel()
	if list, err := b.source.Manifests(ctx, []uint32{branch}, n.store.Shards()); err == nil {
		for _, s := range backup.Summarize(list) {
			out.oldest, out.newest, out.layers = s.Oldest, s.Newest, uint64(s.Bytes)
		}
	}
	if st, ok := b.status(); ok {
		out.newest = max(out.newest, st.End)
	}
	out.oldest = max(out.oldest, n.store.Oldest(branch))
	return out
}

// lagSeconds is the age of the oldest commit behind an LSN, 0 if there is none.
func (n *Node) lagSeconds(branch uint32, at pg.LSN) float64 {
	_, next, err := n.store.Neighbours(branch, at)
	if err != nil || next == nil {
		return 0
	}
	return max(0, time.Since(next.Time.Time()).Seconds())
}

// backupInfo adds how far the store is behind, and what is taken here and there.
func (n *Node) backupInfo(ctx context.Context, branch uint32, info *pb.BranchInfo) {
	info.LocalBytes = n.store.Stats().DiskBytes
	if n.backups == nil {
		return
	}
	info.BackedUp = true
	kept := n.inStore(ctx, branch)
	info.StoreOldestLsn, info.StoreNewestLsn, info.StoreBytes = uint64(kept.oldest), uint64(kept.newest), kept.layers
	p, _ := n.store.Progress(branch)
	if at, _ := backedUp(n.cluster.State(), branch); p.Readable > at {
		info.BackupLagBytes, info.BackupLagSeconds = uint64(p.Readable-at), n.lagSeconds(branch, at)
	}
	if st, ok := n.backups.status(); ok && branch == n.follow.main() {
		if info.ArchiveLagBytes = st.Lag(); st.Lag() > 0 {
			info.ArchiveLagSeconds = n.lagSeconds(branch, st.End)
		}
	}
}
