// Package waldump prints WAL records as pg_waldump does, and reads what pg_waldump printed.
package waldump

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"everpage/wal"
	"everpage/wal/pg"
)

// Namer gives the name of a record that pg_waldump prints (rm_identify): with "+INIT" where a page is initialised, or "UNKNOWN (f0)".
type Namer func(major pg.Major, rmgr wal.Rmgr, info uint8) string

// Entry is what is printed of one record.
type Entry struct {
	Rmgr        string           `json:"rmgr"`
	Record      string           `json:"record"`
	Length      uint32           `json:"length"` // without images, bytes
	Total       uint32           `json:"total"`  // with images, bytes
	XID         pg.TransactionID `json:"xid"`
	Start       pg.LSN           `json:"start"`
	End         pg.LSN           `json:"end"`
	Prev        pg.LSN           `json:"prev"`
	Timeline    pg.TimelineID    `json:"timeline"`
	Origin      uint16           `json:"origin,omitempty"`
	TopLevelXID pg.TransactionID `json:"toplevel_xid,omitempty"`
	Main        int              `json:"main"` // bytes of main data
	Blocks      []BlockRef       `json:"blocks,omitempty"`
}

// BlockRef is what is printed of one block reference.
type BlockRef struct {
	ID    uint8          `json:"id"`
	Spc   pg.Oid         `json:"spc"`
	DB    pg.Oid         `json:"db"`
	Rel   pg.Oid         `json:"rel"`
	Fork  string         `json:"fork"`
	Block pg.BlockNumber `json:"block"`
	Init  bool           `json:"init,omitempty"` // the page is made from nothing
	Data  int            `json:"data,omitempty"` // bytes of the block's own data
	Image *ImageRef      `json:"image,omitempty"`
}

// ImageRef is what is printed of a full-page image.
type ImageRef struct {
	Apply       bool   `json:"apply"` // false: only for WAL verification
	Compression string `json:"compression,omitempty"`
	Length      int    `json:"length"` // as packed, bytes
	HoleOffset  uint16 `json:"hole_offset"`
	HoleLength  uint16 `json:"hole_length"`
}

var compressions = map[wal.Compression]string{wal.PGLZ: "pglz", wal.LZ4: "lz4", wal.Zstd: "zstd"}

// Of takes from a record what is printed. Nothing of it borrows the record's memory.
func Of(rec *wal.Record, name Namer) Entry {
	e := Entry{
		Rmgr: rec.Rmgr.String(), Record: name(rec.Major, rec.Rmgr, rec.Info), Length: rec.TotalLength, Total: rec.TotalLength, XID: rec.XID,
		Start: rec.Start, End: rec.End, Prev: rec.Prev, Timeline: rec.Timeline,
		Origin: rec.Origin, TopLevelXID: rec.TopLevelXID, Main: len(rec.Main),
	}
	for i := range rec.Blocks {
		b := &rec.Blocks[i]
		ref := BlockRef{ID: b.ID, Spc: b.Spc, DB: b.DB, Rel: b.Rel, Fork: b.Fork.String(), Block: b.PageKey.Block, Init: b.WillInit, Data: len(b.Data)}
		if b.HasImage {
			e.Length -= uint32(len(b.Image.Data)) // XLogRecGetLen
			ref.Image = &ImageRef{
				Apply: b.Image.Apply, Compression: compressions[b.Image.Compression],
				Length: len(b.Image.Data), HoleOffset: b.Image.HoleOffset, HoleLength: b.Image.HoleLength,
			}
		}
		e.Blocks = append(e.Blocks, ref)
	}
	return e
}

// AppendText appends the entry as a line of pg_waldump 15, without what that prints of a record's contents.
func (e *Entry) AppendText(b []byte) []byte {
	b = fmt.Appendf(b, "rmgr: %-11s len (rec/tot): %6d/%6d, tx: %10d, lsn: %s, prev %s, desc: %s",
		e.Rmgr, e.Length, e.Total, e.XID, padded(e.Start), padded(e.Prev), e.Record)
	if e.Origin != 0 {
		b = fmt.Appendf(b, ", origin %d", e.Origin)
	}
	if e.TopLevelXID != 0 {
		b = fmt.Appendf(b, ", toplevel tx %d", e.TopLevelXID)
	}
	for i := range e.Blocks {
		r := &e.Blocks[i]
		b = fmt.Appendf(b, ", blkref #%d: rel %d/%d/%d ", r.ID, r.Spc, r.DB, r.Rel)
		if r.Fork != pg.MainFork.String() {
			b = append(append(append(b, "fork "...), r.Fork...), ' ')
		}
		b = append(b, "blk "...)
		b = strconv.AppendUint(b, uint64(r.Block), 10)
		if r.Image != nil {
			b = append(b, " FPW"...)
			if !r.Image.Apply {
				b = append(b, " for WAL verification"...)
			}
		}
	}
	return append(b, '\n')
}

// padded is an LSN with eight digits behind the slash, as pg_waldump prints it.
func padded(l pg.LSN) string { return fmt.Sprintf("%X/%08X", uint32(l>>32), uint32(l)) }

// AppendJSON appends the entry as one JSON object on a line.
func (e *Entry) AppendJSON(b []byte) []byte {
	j, err := json.Marshal(e)
	if err != nil {
		// Its fields are numbers and strings, which always marshal.
		return fmt.Appendf(b, "{\"error\":%q}\n", err.Error())
	}
	return append(append(b, j...), '\n')
}

// Reader hands out records (wal.Reader).
type Reader interface {
	Next() (*wal.Record, error)
}

// Write prints records to w until r ends, as text or as JSON lines, and returns how many. The clean end of WAL is returned as *wal.EndError,
// so that the caller can say where and why it ended.
func Write(w io.Writer, r Reader, name Namer, asJSON bool) (records int, err error) {
	var line []byte
	for {
		rec, err := r.Next()
		if err != nil {
			return records, err
		}
		e := Of(rec, name)
		if asJSON {
			line = e.AppendJSON(line[:0])
		} else {
			line = e.AppendText(line[:0])
		}
		if _, err := w.Write(line); err != nil {
			return records, err
		}
		records++
	}
}
