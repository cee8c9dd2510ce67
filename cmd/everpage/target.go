package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"everpage/pageapi"
	"everpage/wal/pg"
)

// targetFlags choose a point in history.
type targetFlags struct {
	lsn, time, xid, name, branch string
	before                       bool
}

// readFlags are the target flags of reads: an LSN or a time.
func (t *targetFlags) readFlags(f *pflag.FlagSet) {
	f.StringVar(&t.lsn, "lsn", "", "at this `LSN`: after every record that ends at or before it (default: the newest readable)")
	f.StringVar(&t.time, "time", "", "at this `timestamp`: before the first commit or abort, in WAL order, that is later")
	f.StringVar(&t.branch, "branch", "main", "branch `number`, or main")
}

// allFlags are the target flags of restore.
func (t *targetFlags) allFlags(f *pflag.FlagSet) {
	t.readFlags(f)
	f.StringVar(&t.xid, "xid", "", "right after this `transaction` committed or was rolled back")
	f.StringVar(&t.name, "name", "", "at the first restore point of this `name`, made by pg_create_restore_point()")
	f.BoolVar(&t.before, "before", false, "leave the target itself out: right before the commit, the restore point, the record that ends at the LSN")
}

func (t *targetFlags) target() (pageapi.Target, error) {
	var target pageapi.Target
	n := 0
	for _, s := range []string{t.lsn, t.time, t.xid, t.name} {
		if s != "" {
			n++
		}
	}
	if n > 1 {
		return target, usageError{fmt.Errorf("a target is one of --lsn, --time, --xid and --name, not several")}
	}
	if t.before && n == 0 {
		return target, usageError{fmt.Errorf("--before needs a target: --lsn, --time, --xid or --name")}
	}
	branch, err := parseBranch(t.branch)
	if err != nil {
		return target, err
	}
	target = pageapi.Target{Branch: branch, Name: t.name, Before: t.before}
	switch {
	case t.lsn != "":
		if target.LSN, err = pg.ParseLSN(t.lsn); err != nil {
			return target, usageError{err}
		}
		if target.LSN == 0 {
			return target, usageError{fmt.Errorf("--lsn 0/0 is no LSN")}
		}
	case t.time != "":
		at, err := parseTime(t.time)
		if err != nil {
			return target, usageError{err}
		}
		ts := pg.TimestampOf(at)
		target.Time = &ts
	case t.xid != "":
		x, err := strconv.ParseUint(t.xid, 10, 32)
		if err != nil {
			return target, usageError{fmt.Errorf("--xid %s: want a transaction number as pg_current_xact_id()::xid prints it", t.xid)}
		}
		xid := pg.TransactionID(x)
		target.XID = &xid
	}
	return target, nil
}

// resolve turns the flags into a position.
func (t *targetFlags) resolve(ctx context.Context, c *pageapi.Client) (pageapi.Position, *pageapi.Resolution, error) {
	target, err := t.target()
	if err != nil {
		return pageapi.Position{}, nil, err
	}
	if target.LSN != 0 && !target.Before {
		return pageapi.Position{Branch: target.Branch, LSN: target.LSN}, &pageapi.Resolution{LSN: target.LSN}, nil
	}
	r, err := c.Resolve(ctx, target)
	if err != nil {
		return pageapi.Position{}, nil, err
	}
	if r.Branch != 0 {
		target.Branch = r.Branch
	}
	return pageapi.Position{Branch: target.Branch, LSN: r.LSN}, r, nil
}

func parseBranch(s string) (uint32, error) {
	if s == "" || s == "main" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 {
		return 0, usageError{fmt.Errorf("--branch %s: want main or a branch number", s)}
	}
	return uint32(n), nil
}

// timeLayouts are the forms of timestamptz that are read. A time without a zone is local time, as in psql.
var timeLayouts = []string{
	"2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999-07", "2006-01-02 15:04:05.999999999-0700",
	"2006-01-02 15:04:05.999999999 Z07:00", "2006-01-02 15:04:05.999999999 -07", "2006-01-02 15:04:05.999999999 -0700",
	"2006-01-02 15:04Z07:00", "2006-01-02 15:04-07", "2006-01-02 15:04 Z07:00", "2006-01-02 15:04 -07",
}

var localLayouts = []string{"2006-01-02 15:04:05.999999999", "2006-01-02 15:04", "2006-01-02"}

func parseTime(s string) (time.Time, error) {
	text := s
	if len(text) > 10 && (text[10] == 'T' || text[10] == 't') {
		text = text[:10] + " " + text[11:]
	}
	for _, utc := range []string{" UTC", " GMT", "z"} {
		if head, ok := strings.CutSuffix(text, utc); ok {
			text = head + "Z"
		}
	}
	for _, l := range timeLayouts {
		if t, err := time.Parse(l, text); err == nil {
			return t, nil
		}
	}
	for _, l := range localLayouts {
		if t, err := time.ParseInLocation(l, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("timestamp %q: want it as in '2026-03-01 12:00:00+00' or '2026-03-01T12:00:00Z'", s)
}

func formatTime(t pg.Timestamp) string {
	return t.Time().Format("2006-01-02 15:04:05.999999-07")
}
