package node

import (
	"errors"
	"sync/atomic"

	"everpage/redo"
	"everpage/wal/pg"
)

// redoer redoes deltas of the followed primary's major, which isn't known before the first attach.
type redoer struct{ major atomic.Uint32 }

func (r *redoer) set(m pg.Major) { r.major.Store(uint32(m)) }

// Redo implements chunk.Redoer.
func (r *redoer) Redo(page pg.Page, key pg.PageKey, lsn pg.LSN, init bool, delta []byte) (bool, error) {
	m := pg.Major(r.major.Load())
	if m == 0 {
		return false, errors.New("the PostgreSQL major of this history is not known: node.json is missing or was replaced")
	}
	return redo.Redoer{Major: m}.Redo(page, key, lsn, init, delta)
}
