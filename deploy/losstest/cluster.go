package losstest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"

	"everpage/deploy/nodetest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// listing is what `backup list` says.
type listing struct {
	Lag     uint64 `json:"lag_bytes"`
	Error   string
	Archive *struct {
		End   pg.LSN `json:"end_lsn"`
		Lag   uint64 `json:"lag_bytes"`
		Gaps  []string
		Error string
	}
	Branches []struct {
		Oldest pg.LSN `json:"oldest_lsn"`
		Newest pg.LSN `json:"newest_lsn"`
		Bytes  uint64
	}
	ToRestore  uint32 `json:"shards_to_restore"`
	Downloaded uint64 `json:"downloaded_bytes"`
}

func backups(ctx context.Context, n *nodetest.Node) (b listing, err error) {
	return b, n.JSON(ctx, &b, "backup", "list")
}

// leads is the node that archives.
func (x *run) leads(ctx context.Context) (*nodetest.Node, error) {
	list, err := x.cluster.Nodes[0].Members(ctx)
	if err != nil {
		return nil, err
	}
	for i, m := range list {
		if m.Leader && m.Name == name(i) {
			return x.cluster.Nodes[i], nil
		}
	}
	return nil, fmt.Errorf("no node leads: %+v", list)
}

// leader is what the node that archives says of the backup.
func (x *run) leader(ctx context.Context) (listing, error) {
	n, err := x.leads(ctx)
	if err != nil {
		return listing{}, err
	}
	b, err := backups(ctx, n)
	if err == nil && b.Archive == nil {
		err = fmt.Errorf("the leader archives nothing: %+v", b)
	}
	return b, err
}

// infoLag is the archive lag that `info` shows.
func (x *run) infoLag(ctx context.Context) (uint64, error) {
	n, err := x.leads(ctx)
	if err != nil {
		return 0, err
	}
	var v struct {
		Branches []struct {
			Backup *struct {
				Archive uint64 `json:"archive_lag_bytes"`
			}
		}
	}
	if err := n.JSON(ctx, &v, "info"); err != nil {
		return 0, err
	}
	if len(v.Branches) != 1 || v.Branches[0].Backup == nil {
		return 0, errors.New("info shows no backup")
	}
	return v.Branches[0].Backup.Archive, nil
}

// digest is one number for all pages and sizes that a node answers at an LSN.
func digest(ctx context.Context, n *nodetest.Node, at pg.LSN) (sum uint64, pages int, err error) {
	c, err := pageapi.NewClient([]string{n.Address()})
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	type rel struct {
		fork   pg.RelFork
		blocks pg.BlockNumber
	}
	var rels []rel
	pos := pageapi.Position{LSN: at}
	if _, err := c.Relations(ctx, pos, func(f pg.RelFork, blocks pg.BlockNumber) error {
		rels = append(rels, rel{f, blocks})
		return nil
	}); err != nil {
		return 0, 0, fmt.Errorf("relations at %s: %w", at, err)
	}
	h := fnv.New64a()
	for _, r := range rels {
		fmt.Fprintln(h, r.fork, r.blocks)
		for from := pg.BlockNumber(0); from < r.blocks; from += batch {
			var blocks []pg.BlockNumber
			for b := from; b < min(from+batch, r.blocks); b++ {
				blocks = append(blocks, b)
			}
			dst := make([]byte, len(blocks)*pg.BlockSize)
			if _, err := c.Pages(ctx, pos, r.fork, blocks, dst); err != nil {
				return 0, 0, fmt.Errorf("%s from block %d at %s: %w", r.fork, from, at, err)
			}
			h.Write(dst)
			pages += len(blocks)
		}
	}
	return h.Sum64(), pages, nil
}

const batch = 64
