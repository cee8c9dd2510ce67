package losstest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"everpage/deploy/pgtest"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/waldump"
)

// independent is an archive that Everpage has no part in: pg_basebackup's and pg_receivewal's.
type independent struct {
	primary   *pgtest.Server
	base, wal string
	from      pg.LSN
	to        pg.LSN // up to which whole segments are there
	cancel    context.CancelFunc
	done      sync.WaitGroup
}

func startArchive(ctx context.Context, s *pgtest.Server, dir string) (*independent, error) {
	a := &independent{primary: s, base: filepath.Join(dir, "base"), wal: filepath.Join(dir, "received")}
	if err := s.MakeDir(a.wal); err != nil {
		return nil, err
	}
	if _, err := s.Client(ctx, "pg_receivewal", "--slot", "independent", "--create-slot"); err != nil {
		return nil, err
	}
	ctx, a.cancel = context.WithCancel(ctx)
	a.done.Go(func() {
		for ctx.Err() == nil {
			_, _ = s.Client(ctx, "pg_receivewal", "--slot", "independent", "-D", a.wal) // ends when it is told to, or when the primary goes
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	if err := s.Basebackup(ctx, a.base); err != nil {
		return nil, errors.Join(err, a.stop())
	}
	text, err := s.CurrentLSN(ctx)
	if err == nil {
		a.from, err = pg.ParseLSN(text)
	}
	if err != nil {
		return nil, errors.Join(err, a.stop())
	}
	return a, nil
}

func (a *independent) stop() error {
	a.cancel()
	a.done.Wait()
	return nil
}

// sealed ends the current segment and waits until it is there as a whole.
func (a *independent) sealed(ctx context.Context) error {
	rows, err := a.primary.SQL(ctx, "postgres", "select pg_walfile_name(l), l from pg_current_wal_lsn() l", "select pg_switch_wal()")
	if err != nil {
		return err
	}
	if a.to, err = pg.ParseLSN(rows[0][1]); err != nil {
		return err
	}
	name := rows[0][0]
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if _, err := os.Stat(filepath.Join(a.wal, name)); err == nil {
			return a.readable()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pg_receivewal has no whole segment %s: %w", name, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// recordEnds are the LSNs between the base backup and the last whole segment at which records end.
func (a *independent) recordEnds() (ends []pg.LSN, err error) {
	reader, closer, err := waldump.Open(a.wal, a.from, a.to)
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	for {
		rec, err := reader.Next()
		if errors.As(err, new(*wal.EndError)) && len(ends) > 0 {
			return ends, nil
		}
		if err != nil {
			return nil, err
		}
		ends = append(ends, rec.End)
	}
}

// readable lets the servers' user read what pg_receivewal wrote for itself alone.
func (a *independent) readable() error {
	entries, err := os.ReadDir(a.wal)
	for _, e := range entries {
		err = errors.Join(err, os.Chmod(filepath.Join(a.wal, e.Name()), 0o644))
	}
	return err
}
