package redo

import (
	"errors"

	"everpage/wal"
	"everpage/wal/pg"
)

func touch(rec *wal.Record, st *ControlState, ch *Changes) error { return errors.New("not built yet") }
func apply(page pg.Page, d *Delta, init bool) (bool, error)      { return false, errors.New("not built yet") }
