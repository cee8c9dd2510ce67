package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"everpage/wal"
	"everpage/wal/pg"
)

// Where a fresh cluster's counters are set to, just before the end of each log's first segment, so that a small workload writes the first page of the
// second one, and the first one can be removed once all is frozen.
const (
	startXID         = pg.SLRUPagesPerSegment*pg.XactsPerPage - 20000
	startMulti       = pg.SLRUPagesPerSegment*pg.MultiXactOffsetsPerPage - 2000
	startMultiOffset = pg.SLRUPagesPerSegment*pg.MembersPerPage - 4000
)

// checkPointSize is that of a checkpoint's record, behind its header of 24 bytes and the two of its main data.
const (
	recordHeader   = 24
	checkPointData = 88
	checkPointSize = recordHeader + 2 + checkPointData
)

// advance sets the counters of a cluster that was stopped cleanly, in pg_control and in the checkpoint that it names, which is where a server takes them
// from. pg_resetwal does that, too, and is not in every build.
func advance(data string) error {
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
	c.Copy.NextXID = startXID
	c.Copy.NextMulti, c.Copy.NextMultiOffset = startMulti, startMultiOffset
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
	for _, slru := range []pg.SLRU{pg.Xact, pg.MultiXactOffsets, pg.MultiXactMembers} {
		path := filepath.Join(data, slru.Dir(), pg.SLRUSegmentName(0))
		if err := os.Truncate(path, pg.SLRUPagesPerSegment*pg.BlockSize); err != nil {
			return err
		}
	}
	return nil
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
	at := uint64(c.CheckPoint) % size
	if at%pg.BlockSize+checkPointSize > pg.BlockSize {
		return fmt.Errorf("the checkpoint at %s reaches over the end of a page: initialise another cluster", c.CheckPoint)
	}
	record := segment[at : at+checkPointSize]
	body := record[recordHeader+2:]
	if binary.LittleEndian.Uint32(record) != checkPointSize || !bytes.Equal(body, before) {
		return fmt.Errorf("%s has no checkpoint at %s as pg_control has it", name, c.CheckPoint)
	}
	copy(body, c.Copy.Encode(c.Major))
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(crc32.Checksum(record[recordHeader:], table), table, record[:recordHeader-4])
	binary.LittleEndian.PutUint32(record[recordHeader-4:], crc)
	return os.WriteFile(path, segment, 0o600)
}
