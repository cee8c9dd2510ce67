package ingest

import (
	"context"

	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// Scanned counts what Scan has read.
type Scanned struct {
	Records uint64
	Pages   uint64 // changes of pages
	Owned   uint64 // those of pages that owns wants
	End     pg.LSN // of the last record
}

// Scan decodes all records of r, checks their CRCs, keeps state, which is the control state where r stands, and finds out which pages each record
// changes, as a node does with the WAL of pages that others keep: the content of pages for which owns is false is not looked at. It returns with
// r's final error, or wal.ErrMore.
func Scan(ctx context.Context, r Reader, state *redo.ControlState, owns func(pg.PageKey) bool) (s Scanned, err error) {
	ch := redo.Changes{Skip: func(key pg.PageKey) bool { return !owns(key) }}
	for {
		rec, err := r.Next()
		if err != nil {
			s.End = r.Position()
			return s, err
		}
		if err := redo.Touch(rec, state, &ch); err != nil {
			return s, err
		}
		if _, err := state.Redo(rec); err != nil {
			return s, err
		}
		s.Records++
		s.Pages += uint64(len(ch.Pages))
		for i := range ch.Pages {
			if c := &ch.Pages[i]; !c.Skipped && (c.Delta.Part <= wal.MaxBlockID || owns(c.Key)) {
				s.Owned++
			}
		}
		if s.Records%4096 == 0 && ctx.Err() != nil {
			return s, context.Cause(ctx)
		}
	}
}
