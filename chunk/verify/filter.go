package verify

import (
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// filtered hands records on as the options want them.
type filtered struct {
	*wal.Reader
	o Options
}

// Next is the next record, without its check images if they are to be stripped: then nothing behind this point can have made use of them.
func (f *filtered) Next() (*wal.Record, error) {
	rec, err := f.Reader.Next()
	if err != nil {
		return nil, err
	}
	if f.o.Strip {
		for i := range rec.Blocks {
			if b := &rec.Blocks[i]; b.HasImage && !b.Image.Apply {
				b.HasImage, b.Image = false, wal.Image{}
			}
		}
	}
	if f.o.FaultRecord != nil {
		f.o.FaultRecord(rec)
	}
	return rec, nil
}

// touch is redo.Touch, with a deliberate fault if there is one.
func (r *run) touch(rec *wal.Record, st *redo.ControlState, ch *redo.Changes) error {
	if err := redo.Touch(rec, st, ch); err != nil {
		return err
	}
	if r.o.FaultChanges != nil {
		r.o.FaultChanges(rec, ch)
	}
	return nil
}

// faulty is redo with a deliberate fault, if there is one.
type faulty struct {
	redo.Redoer
	fault func(d *redo.Delta)
}

func (f *faulty) Redo(page pg.Page, key pg.PageKey, lsn pg.LSN, init bool, delta []byte) (bool, error) {
	if f.fault == nil {
		return f.Redoer.Redo(page, key, lsn, init, delta)
	}
	var d redo.Delta
	if err := redo.DecodeDelta(delta, &d); err != nil {
		return false, err
	}
	d.Major, d.LSN, d.Key = f.Major, lsn, key
	f.fault(&d)
	return redo.Apply(page, &d, init)
}
