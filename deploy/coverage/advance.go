package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"syscall"

	"everpage/wal"
	"everpage/wal/pg"
)

// Where a fresh cluster's counters are set to, just before the end of each log's first segment, so that a small workload writes the first page of the
// second one, and the first one can be removed once all is frozen.
var endOfSegment = counters{
	xid:         pg.SLRUPagesPerSegment*pg.XactsPerPage - 20000,
	multi:       pg.SLRUPagesPerSegment*pg.MultiXactOffsetsPerPage - 2000,
	multiOffset: pg.SLRUPagesPerSegment*pg.MembersPerPage - 4000,
}

// checkPointSize is that of a checkpoint's record, behind its header of 24 bytes and the two of its main data.
const (
	recordHeader   = 24
	checkPointData = 88
	checkPointSize = recordHeader + 2 + checkPointData
)

// counters are where a cluster shall go on.
type counters struct {
	xid                             uint32
	multi, oldestMulti, multiOffset uint32 // oldestMulti and multiOffset may be 0: as they are
}

// wrapping are steps to just before the wraparound of all counters. No counter may move by half of its circle before everything is frozen.
var wrapping = []counters{
	{xid: 2_000_000_000, multi: 2_000_000_000, oldestMulti: 1},
	{xid: 4_000_000_000, multi: 4_000_000_000, oldestMulti: 2_000_000_000},
	{xid: 4_294_966_000, multi: 4_294_966_500, oldestMulti: 4_294_966_500, multiOffset: 4_294_965_000},
}

// advance sets the counters of a cluster that was stopped cleanly, in pg_control and in the checkpoint that it names, which is where a server takes them
// from. pg_resetwal does that, too, and is not in every build.
func advance(data string, to counters) error {
	controlFile := filepath.Join(data, "global", "pg_control")
	b, err := os.ReadFile(controlFile)
	if err != nil {
		return err
	}
	c, err := pg.ReadControl(b)
	if err != nil {
		return err
	}
	if c.State != pg.DBShutdowned || c.Copy.Redo != c.CheckPoint {
		return errors.New("advance counters: the cluster was not stopped cleanly")
	}
	before := c.Copy.Encode(c.Major)
	c.Copy.NextXID = pg.FullTransactionID(to.xid)
	c.Copy.NextMulti = to.multi
	if to.oldestMulti != 0 {
		c.Copy.OldestMulti, c.Copy.OldestMultiDB = to.oldestMulti, 0
	}
	if to.multiOffset != 0 {
		c.Copy.NextMultiOffset = to.multiOffset
	}
	if err := patchCheckPoint(data, &c, before); err != nil {
		return fmt.Errorf("advance counters: %w", err)
	}
	encoded, err := c.Encode()
	if err != nil {
		return err
	}
	if err := os.WriteFile(controlFile, encoded, 0o600); err != nil {
		return err
	}
	for slru, page := range map[pg.SLRU]uint32{
		pg.Xact: to.xid / pg.XactsPerPage, pg.MultiXactOffsets: to.multi / pg.MultiXactOffsetsPerPage,
		pg.MultiXactMembers: c.Copy.NextMultiOffset / pg.MembersPerPage,
	} {
		if err := fillSegment(data, slru, page/pg.SLRUPagesPerSegment); err != nil {
			return fmt.Errorf("advance counters: %w", err)
		}
	}
	return nil
}

// fillSegment makes a segment of an SLRU one of all its pages, those that it lacks zero.
func fillSegment(data string, slru pg.SLRU, segment uint32) error {
	path := filepath.Join(data, slru.Dir(), pg.SLRUSegmentName(segment))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(pg.SLRUPagesPerSegment*pg.BlockSize), f.Close())
	if err != nil {
		return err
	}
	info, err := os.Stat(data)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("the owner of %s is not known", data)
	}
	return os.Chown(path, int(owner.Uid), int(owner.Gid))
}

// patchCheckPoint replaces the body of the checkpoint's record.
func patchCheckPoint(data string, c *pg.ControlFile, before []byte) error {
	size := uint64(c.WALSegmentSize)
	name := wal.Segment{Timeline: c.Copy.Timeline, Number: uint64(c.CheckPoint) / size}.Name(wal.SegmentSize(size))
	path := filepath.Join(data, "pg_wal", name)
	segment, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	parts, err := recordBytes(segment, int(uint64(c.CheckPoint)%size), checkPointSize)
	if err != nil {
		return fmt.Errorf("the checkpoint at %s: %w", c.CheckPoint, err)
	}
	record := bytes.Join(parts, nil)
	body := record[recordHeader+2:]
	if binary.LittleEndian.Uint32(record) != checkPointSize || !bytes.Equal(body, before) {
		return fmt.Errorf("%s has no checkpoint at %s as pg_control has it", name, c.CheckPoint)
	}
	copy(body, c.Copy.Encode(c.Major))
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(crc32.Checksum(record[recordHeader:], table), table, record[:recordHeader-4])
	binary.LittleEndian.PutUint32(record[recordHeader-4:], crc)
	for _, p := range parts {
		record = record[copy(p, record):]
	}
	return os.WriteFile(path, segment, 0o600)
}

// shortPageHeader is that of every page of a segment but the first.
const shortPageHeader = 24

// recordBytes are the pieces of a record of that size, around the page headers that it reaches over.
func recordBytes(segment []byte, at, size int) (parts [][]byte, err error) {
	for size > 0 {
		if at >= len(segment) {
			return nil, errors.New("reaches into the next segment: initialise another cluster")
		}
		if at%pg.BlockSize == 0 {
			at += shortPageHeader
		}
		n := min(size, pg.BlockSize-at%pg.BlockSize)
		parts = append(parts, segment[at:at+n])
		at, size = at+n, size-n
	}
	return parts, nil
}
