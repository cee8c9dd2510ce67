package verify

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"

	"everpage/chunk"
	"everpage/redo"
	"everpage/wal/pg"
)

// digestPoints is how many LSNs below the end Report.Digest looks at.
const digestPoints = 4

// digestLSNs spreads LSNs evenly over what a branch answers; the last one is end.
func digestLSNs(consistent, end pg.LSN) []pg.LSN {
	var at []pg.LSN
	for i := range pg.LSN(digestPoints) {
		at = append(at, consistent+(end-consistent)/digestPoints*i)
	}
	return append(at, end)
}

// commitProbes is how many LSNs the commit index is asked about.
const commitProbes = 500

// Digest hashes all that a branch of a store says at some LSNs, in ascending order: every relation fork's size and pages, every SLRU segment, every
// small object, and commits between the first of the LSNs and the last. Two stores with one digest are the same to every reader, however they keep it.
// A page that can't be made counts as what its damage says.
func Digest(ctx context.Context, store *chunk.Store, branch uint32, at []pg.LSN) (string, error) {
	d := &digest{ctx: ctx, store: store, branch: branch, sum: sha256.New(), page: make([]byte, pg.BlockSize)}
	for _, lsn := range at {
		if err := d.moment(lsn); err != nil {
			return "", fmt.Errorf("digest at %s: %w", lsn, err)
		}
	}
	if len(at) > 0 {
		if err := d.commits(at[0], at[len(at)-1]); err != nil {
			return "", fmt.Errorf("digest of commits: %w", err)
		}
	}
	return hex.EncodeToString(d.sum.Sum(nil)), nil
}

type digest struct {
	ctx    context.Context
	store  *chunk.Store
	branch uint32
	sum    hash.Hash
	page   pg.Page
	buf    []byte
}

// numbers adds a record of numbers, which begins with a tag.
func (d *digest) numbers(tag byte, n ...uint64) {
	d.buf = append(d.buf[:0], tag, byte(len(n)))
	for _, v := range n {
		d.buf = binary.LittleEndian.AppendUint64(d.buf, v)
	}
	d.sum.Write(d.buf)
}

func (d *digest) text(tag byte, s []byte) {
	d.numbers(tag, uint64(len(s)))
	d.sum.Write(s)
}

// fork is one fork and its size.
type fork struct {
	pg.RelFork
	blocks uint32
}

func (d *digest) moment(at pg.LSN) error {
	d.numbers('L', uint64(at))
	var forks []fork
	err := d.store.Relations(d.ctx, d.branch, at, pg.RelFork{}, func(f pg.RelFork, blocks uint32) error {
		forks = append(forks, fork{f, blocks})
		return nil
	})
	if err != nil {
		return err
	}
	for _, f := range forks {
		d.numbers('F', uint64(f.Spc), uint64(f.DB), uint64(f.Rel), uint64(f.Fork), uint64(f.blocks))
		for b := range f.blocks {
			if err := d.one(pg.PageKey{RelFork: f.RelFork, Block: b}, at); err != nil {
				return err
			}
		}
	}
	for _, slru := range pg.SLRUs() {
		var segments []slruSegment
		pages := map[slruSegment]uint32{}
		err := d.store.SLRUSegments(d.branch, slru, at, func(segment, n uint32) error {
			segments = append(segments, slruSegment{slru, segment})
			pages[segments[len(segments)-1]] = n
			return nil
		})
		if err != nil {
			return err
		}
		for _, s := range segments {
			d.numbers('S', uint64(slru), uint64(s.segment), uint64(pages[s]))
			for i := range pages[s] {
				if err := d.one(pg.SLRUPage(slru, s.segment*pg.SLRUPagesPerSegment+i), at); err != nil {
					return err
				}
			}
		}
	}
	for kind := redo.MetaControl; kind <= redo.MetaFile; kind++ {
		err := d.store.MetaAll(d.branch, kind, at, func(id [2]uint32, lsn pg.LSN, value []byte) error {
			d.numbers('M', uint64(kind), uint64(id[0]), uint64(id[1]), uint64(lsn))
			d.text('V', value)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *digest) one(key pg.PageKey, at pg.LSN) error {
	err := d.store.Page(d.ctx, d.branch, key, at, d.page)
	var damaged *chunk.DamagedError
	if errors.As(err, &damaged) {
		d.text('D', []byte(damaged.Error()))
		return nil
	}
	if err != nil {
		return err
	}
	d.numbers('P', uint64(key.Block))
	d.sum.Write(d.page)
	return nil
}

func (d *digest) commits(from, to pg.LSN) error {
	step := max((to-from)/commitProbes, 1)
	for at := from; at <= to; at += step {
		_, after, err := d.store.Neighbours(d.branch, at)
		if err != nil {
			return err
		}
		if after == nil || after.End > to {
			break
		}
		commit := uint64(0)
		if after.Commit {
			commit = 1
		}
		d.numbers('C', uint64(after.Start), uint64(after.End), uint64(after.XID), uint64(after.Time), commit)
		first, ok, err := d.store.FirstCommitAfter(d.branch, after.Time, true)
		if err != nil {
			return err
		}
		if ok {
			d.numbers('T', uint64(first.End))
		}
	}
	return nil
}
