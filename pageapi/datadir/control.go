package datadir

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"everpage/wal/pg"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sizes and values of the WAL that is crafted (xlogrecord.h, xlog_internal.h).
const (
	walLongHeader    = 40
	walRecordHeader  = 24
	walLongHeaderBit = 2   // XLP_LONG_HEADER
	walMainDataShort = 255 // XLR_BLOCK_ID_DATA_SHORT

	firstUnloggedLSN = 1000 // FirstNormalUnloggedLSN
)

// control adds pg_control, the segment with the shutdown checkpoint that it points at, and the new timeline's history. The segment is the first
// that starts beyond the LSN, so every page's LSN is below the server's new WAL.
func (b *builder) control(context.Context) error {
	c := b.c.Control
	size := uint64(c.WALSegmentSize)
	if size == 0 || b.o.At == 0 {
		return fmt.Errorf("cannot craft a checkpoint at %s with WAL segments of %d bytes", b.o.At, size)
	}
	parent := c.Copy.Timeline
	if b.o.Timeline <= parent {
		return fmt.Errorf("new timeline %d is not above timeline %d, which %s lies on", b.o.Timeline, parent, b.o.At)
	}
	history, err := extendHistory(b.o.Parents, parent, b.o.At, b.o.Reason)
	if err != nil {
		return err
	}
	number := uint64(b.o.At)/size + 1
	if number > ^uint64(0)/size-1 {
		return fmt.Errorf("no WAL segment is left behind %s", b.o.At)
	}
	start := pg.LSN(number * size)

	c.State = pg.DBShutdowned
	c.Time = b.o.Now.Unix()
	c.CheckPoint = start + walLongHeader
	c.Copy.Redo = c.CheckPoint
	c.Copy.Timeline, c.Copy.PrevTimeline = b.o.Timeline, b.o.Timeline
	c.Copy.FullPageWrites = true
	c.Copy.Time = c.Time
	c.Copy.OldestActiveXID = 0
	if c.Major >= 17 {
		c.Copy.WALLevel = c.WALLevel
	}
	c.UnloggedLSN = firstUnloggedLSN
	c.MinRecoveryPoint, c.MinRecoveryTimeline = 0, 0
	c.BackupStart, c.BackupEnd, c.BackupEndRequired = 0, 0, false
	if c.Copy.NextXID.XID() < pg.FirstNormalXID {
		return fmt.Errorf("next transaction ID %d at %s is not one that a server starts with", c.Copy.NextXID, b.o.At)
	}
	content, err := c.Encode()
	if err != nil {
		return err
	}
	b.tree.CheckPoint = c.CheckPoint
	if err := b.static(ControlPath, content); err != nil {
		return err
	}
	perID := (1 << 32) / size
	name := fmt.Sprintf("pg_wal/%08X%08X%08X", b.o.Timeline, number/perID, number%perID)
	if err := b.file(name, fileMode, int64(size), padded(checkpointPage(&c, start))); err != nil {
		return err
	}
	return b.static(fmt.Sprintf("pg_wal/%08X.history", b.o.Timeline), history)
}

// checkpointPage makes the first page of a WAL segment: its header and a shutdown checkpoint record without a predecessor (WriteEmptyXLOG).
func checkpointPage(c *pg.ControlFile, start pg.LSN) []byte {
	le := binary.LittleEndian
	p := make([]byte, pg.BlockSize)
	le.PutUint16(p[0:], c.Major.PageMagic())
	le.PutUint16(p[2:], walLongHeaderBit)
	le.PutUint32(p[4:], c.Copy.Timeline)
	le.PutUint64(p[8:], uint64(start))
	le.PutUint64(p[24:], c.SystemID)
	le.PutUint32(p[32:], c.WALSegmentSize)
	le.PutUint32(p[36:], pg.BlockSize)

	const total = walRecordHeader + 2 + pg.CheckPointSize
	r := p[walLongHeader:][:total]
	le.PutUint32(r[0:], total) // xl_tot_len; xl_xid, xl_prev, xl_info and xl_rmid are all 0
	r[walRecordHeader] = walMainDataShort
	r[walRecordHeader+1] = pg.CheckPointSize
	copy(r[walRecordHeader+2:], c.Copy.Encode(c.Major))
	crc := crc32.Checksum(r[walRecordHeader:], castagnoli)
	crc = crc32.Update(crc, castagnoli, r[:walRecordHeader-4])
	le.PutUint32(r[walRecordHeader-4:], crc)
	return p
}

// extendHistory adds to the history of timeline parent that it was left at an LSN (writeTimeLineHistory).
func extendHistory(parents []byte, parent pg.TimelineID, at pg.LSN, reason string) ([]byte, error) {
	last := uint64(0)
	for line := range strings.Lines(string(parents)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0][0] == '#' {
			continue
		}
		tli, err := strconv.ParseUint(fields[0], 10, 32)
		if err != nil || tli <= last || tli >= uint64(parent) {
			return nil, fmt.Errorf("history of timeline %d: bad line %q", parent, strings.TrimSpace(line))
		}
		last = tli
	}
	if parent > 1 && last == 0 {
		return nil, fmt.Errorf("history of timeline %d is empty: a server started without it could not be followed", parent)
	}
	h := append([]byte(nil), parents...)
	if len(h) > 0 && !bytes.HasSuffix(h, []byte("\n")) {
		h = append(h, '\n')
	}
	reason = strings.Join(strings.Fields(reason), " ")
	return fmt.Appendf(h, "%d\t%s\t%s\n", parent, at, reason), nil
}
