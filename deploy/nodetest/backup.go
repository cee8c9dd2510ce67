package nodetest

import (
	"context"
	"fmt"
	"hash/fnv"

	"everpage/pageapi"
	"everpage/wal/pg"
)

// Backups is what `backup list` says.
type Backups struct {
	Lag      uint64 `json:"lag_bytes"`
	Error    string
	Archive  *Archive // nil on a node that does not archive
	Branches []struct {
		Oldest pg.LSN `json:"oldest_lsn"`
		Newest pg.LSN `json:"newest_lsn"`
		Layers uint64
		Bytes  uint64
	}
	ToRestore    uint32 `json:"shards_to_restore"`
	RestoreError string `json:"restore_error"`
	Requests     map[string]uint64
	Uploaded     uint64 `json:"uploaded_bytes"`
	Downloaded   uint64 `json:"downloaded_bytes"`
}

// Archive is what `backup list` says of the WAL in the store.
type Archive struct {
	End   pg.LSN `json:"end_lsn"`
	Lag   uint64 `json:"lag_bytes"`
	Gaps  []string
	Error string
}

// Backups asks a node about the backup, or runs another command that answers the same, such as `backup now`.
func (n *Node) Backups(ctx context.Context, args ...string) (b Backups, err error) {
	if len(args) == 0 {
		args = []string{"backup", "list"}
	}
	return b, n.JSON(ctx, &b, args...)
}

const digestBatch = 64

// Digest is one number for all pages and sizes that a node answers at an LSN.
func (n *Node) Digest(ctx context.Context, at pg.LSN) (sum uint64, pages int, err error) {
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
		for from := pg.BlockNumber(0); from < r.blocks; from += digestBatch {
			var blocks []pg.BlockNumber
			for b := from; b < min(from+digestBatch, r.blocks); b++ {
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
