package verify

import (
	"context"
	"fmt"

	"everpage/chunk/offline"
	"everpage/wal"
	"everpage/wal/pg"
)

// Stop is a data directory as the primary left it when it was stopped cleanly, after which it went on. What has no after-images (SLRUs, sizes, small
// objects, control state) has no other oracle on the way.
type Stop struct {
	Dir string
}

// stop is one of them and where its shutdown checkpoint lies.
type stop struct {
	Stop
	shutdown pg.LSN // the record's start
	stopped  pg.LSN // its end, once it was read
}

func (r *run) openStops() error {
	for _, s := range r.o.Stops {
		control, err := offline.ReadControl(s.Dir)
		if err != nil {
			return fmt.Errorf("stop: %w", err)
		}
		r.stops = append(r.stops, stop{Stop: s, shutdown: control.CheckPoint})
	}
	return nil
}

func (r *run) watchStops(rec *wal.Record) {
	for i := range r.stops {
		if r.stops[i].shutdown == rec.Start {
			r.stops[i].stopped = rec.End
			r.settleStop()
		}
	}
}

// settleStop counts the types and forms that have had a record since the last LSN that is compared.
func (r *run) settleStop() {
	for _, all := range []map[string]*TypeReport{r.report.Types, r.report.Forms} {
		for _, t := range all {
			if t.fresh {
				t.Stops++
			}
			t.fresh = false
		}
	}
}

// compareStops holds the history against every one of them.
func (r *run) compareStops(ctx context.Context) error {
	for _, s := range r.stops {
		if s.stopped == 0 {
			r.report.mismatch(Mismatch{LSN: s.shutdown, Record: "final", Page: "pg_control", Text: fmt.Sprintf(
				"nothing was compared: the shutdown checkpoint of %s is not in the WAL", s.Dir)})
			continue
		}
		pages := stored{store: r.store, base: r.source.Control, at: s.stopped, lost: &lostBits{store: r.store}}
		report, err := Final(ctx, s.Dir, s.stopped, pages)
		if err != nil {
			return err
		}
		r.report.Stops = append(r.report.Stops, report.Final)
		r.report.Damaged += report.Damaged
		for _, m := range report.Found {
			r.report.mismatch(m)
		}
		r.report.Mismatches += report.Mismatches - uint64(len(report.Found))
	}
	return nil
}
