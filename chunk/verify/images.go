package verify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"everpage/chunk"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// images gathers the check images of a batch of records, and compares them once the batch can be read.
type images struct {
	events []event
	arena  []byte // content of the events' images

	lost    lostBits
	extra   map[vmBit]Mismatch // visibility bits that only we have, until a later record clears them
	workers [checkWorkers]redo.CheckScratch
}

// checkWorkers compare at a time.
const checkWorkers = 4

// event is a check image, or (blk.HasImage is false) a change that clears visibility bits.
type event struct {
	rec   wal.Record // without blocks and main data
	blk   wal.Block
	name  string
	form  string // redo.RareForm
	made  bool   // by a redo function, not by an image
	clear []byte

	result  redo.Check
	bits    []redo.VMBits // copy of result.Extra
	missing []redo.VMBits // copy of result.Missing
	ours    string
	theirs  string
	err     error
}

type vmBit struct {
	rel  pg.RelFileLocator
	heap pg.BlockNumber
}

// watch notes what a record has to compare.
func (r *run) watch(rec *wal.Record, ch *redo.Changes) error {
	name := rec.Rmgr.String() + "/" + redo.RecordName(rec.Major, rec.Rmgr, rec.Info)
	t := r.report.of(name)
	t.count()
	form := redo.RareForm(rec)
	if form != "" {
		entryOf(r.report.Forms, form).count()
	}
	if len(ch.Damaged) > 0 && !t.unknown {
		t.unknown = true
		r.report.unknown(fmt.Sprintf("%s at %s: %v", name, rec.Start, ch.Damaged[0].Err))
	}
	if r.o.Progress != nil {
		r.o.Progress(rec.End, 0)
	}
	if rec.Start == r.shutdown {
		r.stopped = rec.End
		r.settleStop()
	}
	r.watchStops(rec)
	im := &r.images
	for i := range ch.Pages {
		if c := &ch.Pages[i]; c.Delta.Part == redo.PartVMClear && c.Kind != redo.KindImage {
			im.events = append(im.events, event{blk: wal.Block{PageKey: c.Key}, clear: im.keep(c.Delta.Main)})
		}
	}
	for i := range rec.Blocks {
		b := &rec.Blocks[i]
		if !b.HasImage || b.Image.Apply {
			continue
		}
		e := event{rec: *rec, blk: *b, name: name, form: form, made: made(ch, b.PageKey)}
		e.rec.Blocks, e.rec.Main = nil, nil
		e.blk.Data = nil
		e.blk.Image.Data = im.keep(b.Image.Data)
		im.events = append(im.events, e)
	}
	return nil
}

func made(ch *redo.Changes, key pg.PageKey) bool {
	for i := range ch.Pages {
		if ch.Pages[i].Key == key {
			return ch.Pages[i].Kind != redo.KindImage
		}
	}
	return false
}

// keep copies bytes that live until the batch was compared.
func (im *images) keep(b []byte) []byte {
	start := len(im.arena)
	im.arena = append(im.arena, b...)
	return im.arena[start:len(im.arena):len(im.arena)]
}

// compare reads all pages of the batch, several at a time, and then reports in WAL order.
func (im *images) compare(ctx context.Context, r *run) error {
	g, groupCtx := errgroup.WithContext(ctx)
	for w := range checkWorkers {
		g.Go(func() error {
			var page [pg.BlockSize]byte
			for i := w; i < len(im.events); i += checkWorkers {
				if e := &im.events[i]; e.clear == nil {
					e.check(groupCtx, r.store, page[:], &im.workers[w])
				}
			}
			return groupCtx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i := range im.events {
		if err := im.settle(ctx, r, &im.events[i]); err != nil {
			return err
		}
	}
	im.events, im.arena = im.events[:0], im.arena[:0]
	return nil
}

func (e *event) check(ctx context.Context, store *chunk.Store, page pg.Page, s *redo.CheckScratch) {
	if e.err = store.Page(ctx, branch, e.blk.PageKey, e.rec.End, page); e.err != nil {
		return
	}
	if e.result, e.err = redo.CheckImage(&e.rec, &e.blk, page, s); e.err != nil {
		return
	}
	switch e.result.Outcome {
	case redo.CheckDiffers:
		e.ours, e.theirs = firstBytes(s.Ours[:], e.result.FirstDiff), firstBytes(s.Image[:], e.result.FirstDiff)
	case redo.CheckVMBits:
		e.bits, e.missing = append([]redo.VMBits{}, e.result.Extra...), append([]redo.VMBits{}, e.result.Missing...)
	}
}

// settle enters one event's result into the report.
func (im *images) settle(ctx context.Context, r *run, e *event) error {
	rep := r.report
	if e.clear != nil {
		for b := e.clear; len(b) >= vmClearEntry; b = b[vmClearEntry:] {
			delete(im.extra, vmBit{e.blk.RelFileLocator, binary.LittleEndian.Uint32(b)})
		}
		return nil
	}
	m := Mismatch{LSN: e.rec.End, Record: e.name, Page: e.blk.PageKey.String(), form: e.form}
	var damaged *chunk.DamagedError
	switch {
	case errors.As(e.err, &damaged):
		rep.Damaged++
		return nil
	case errors.Is(e.err, chunk.ErrNotConsistent), errors.Is(e.err, chunk.ErrBelowHorizon):
		return nil // inside the base backup's window, where PostgreSQL doesn't check either
	case e.err != nil:
		m.Text = e.err.Error()
		rep.mismatch(m)
		return nil
	}
	switch e.result.Outcome {
	case redo.CheckEqual, redo.CheckVMBits:
		if e.made {
			rep.Compared++
			rep.of(e.name).Pages++
			if e.form != "" {
				entryOf(rep.Forms, e.form).Pages++
			}
		}
		if e.blk.Fork == pg.VMFork {
			rep.VMCompared++
		}
		if len(e.missing) > 0 {
			ok, err := im.lost.explained(ctx, e.blk.PageKey, e.rec.End, e.missing)
			if err != nil {
				return err
			}
			if !ok {
				m.Text = fmt.Sprintf("heap block %d has visibility bits %d on the primary only", e.missing[0].Heap, e.missing[0].Bits)
				rep.mismatch(m)
				return nil
			}
			rep.VMMissing += uint64(len(e.missing))
		}
		for _, b := range e.bits {
			if im.extra == nil {
				im.extra = map[vmBit]Mismatch{}
			}
			m.Text = fmt.Sprintf("heap block %d has visibility bits %d that the primary does not have", b.Heap, b.Bits)
			im.extra[vmBit{e.blk.RelFileLocator, b.Heap}] = m
		}
	case redo.CheckDiffers:
		m.Offset, m.Ours, m.Theirs = e.result.FirstDiff, e.ours, e.theirs
		rep.mismatch(m)
	}
	return nil
}

// vmClearEntry is the size of an entry of a redo.PartVMClear delta: heap block and bits.
const vmClearEntry = 5

// finish reports the visibility bits that no later record explained.
func (im *images) finish(r *run) {
	for _, m := range im.extra {
		r.report.mismatch(m)
	}
}
