package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"everpage/deploy/pgtest"
)

// Hot makes a corpus whose base is a base backup that was taken while sessions wrote: pgbench, and one that makes, fills, shrinks, moves, rewrites and
// drops relations and databases. Afterwards they write on for a while, and the server is stopped. o.Transactions is for each of pgbench's rounds.
func Hot(ctx context.Context, dir string, major int, settings map[string]string, o Options, initdbArgs ...string) (files *Files, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	files = &Files{Dir: dir, Major: major, Which: "hot", Seed: o.Seed,
		Base: filepath.Join(dir, "base"), WAL: filepath.Join(dir, "wal"), Final: filepath.Join(dir, "final")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s, err := pgtest.Start(ctx, pgtest.Config{Major: major, Dir: filepath.Join(dir, "server"), InitdbArgs: initdbArgs,
		Settings: pgtest.Merge(pgtest.OracleSettings(major), settings)})
	if err != nil {
		return nil, fmt.Errorf("hot corpus: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	r := &run{server: s, options: o.withDefaults(), result: &files.Result}
	if r.options.Dir == "" {
		r.options.Dir = filepath.Join(dir, "workload")
	}
	if err := s.MakeDir(r.options.Dir); err != nil {
		return nil, fmt.Errorf("hot corpus: %w", err)
	}
	if err := r.hot(ctx, files.Base); err != nil {
		return nil, fmt.Errorf("hot corpus, seed %d: %w", o.Seed, err)
	}
	if err := s.Stop(ctx, pgtest.Fast); err != nil {
		return nil, err
	}
	return files, errors.Join(s.MoveWAL(files.WAL), s.CopyCold(files.Final))
}

// churnRounds is how many rounds of churn come before the backup and after it.
const churnRounds = 2

func (r *run) hot(ctx context.Context, base string) error {
	if err := r.tablespace(ctx, "hot"); err != nil {
		return err
	}
	if err := r.benchInit(ctx, 1); err != nil {
		return err
	}
	loads, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	rounds := make(chan int)    // of churn, as they end
	stop := make(chan struct{}) // ends the loads after the round they are in
	load := func(round func(i int) error, ended chan<- int) {
		for i := 1; ; i++ {
			if err := round(i); err != nil {
				failed <- err
				return
			}
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			select {
			case ended <- i:
			default: // nobody counts
			}
		}
	}
	go load(func(i int) error { return r.benchRun(loads, i) }, nil)
	go load(func(i int) error { return r.churn(loads, i) }, rounds)
	err := await(rounds, failed, churnRounds)
	if err == nil {
		err = r.server.Basebackup(ctx, base, "--max-rate=30M")
	}
	if err == nil {
		err = await(rounds, failed, churnRounds)
	}
	close(stop)
	if err != nil {
		cancel()
		return errors.Join(err, <-failed) // the other one; a load that failed was the first
	}
	return errors.Join(<-failed, <-failed)
}

// await waits until so many rounds have ended.
func await(rounds <-chan int, failed <-chan error, n int) error {
	for range n {
		select {
		case <-rounds:
		case err := <-failed:
			return fmt.Errorf("load: %w", err)
		}
	}
	return nil
}

// churn is one round of relations and databases that come and go; some things of it stay.
func (r *run) churn(ctx context.Context, i int) error {
	sql := []string{
		"create table if not exists stays(a int primary key, t text) with (fillfactor = 60)",
		"create table if not exists moved(a int, t text) tablespace hot",
		fmt.Sprintf("create table c_%d(a serial primary key, t text)", i),
		fmt.Sprintf("insert into c_%d(t) select repeat(md5(g::text), 1 + g %% 20) from generate_series(1, %d) g", i, 4*r.options.Rows),
		fmt.Sprintf("create index on c_%d(t)", i),
		fmt.Sprintf("insert into stays select g, 'round %d' from generate_series(1, %d) g on conflict (a) do update set t = excluded.t", i, r.options.Rows),
		fmt.Sprintf("insert into moved select * from c_%d where a %% 3 = 0", i),
		fmt.Sprintf("delete from c_%d where a > %d", i, r.options.Rows),
		fmt.Sprintf("vacuum c_%d", i),
		"vacuum (freeze) stays",
		"update stays set t = t || '.' where a % 7 = 0",
		"alter table moved set tablespace " + []string{"pg_default", "hot"}[i%2],
		fmt.Sprintf("begin; create table abrt as select * from c_%d; savepoint s; delete from stays where a %% 11 = 0; rollback to s; "+
			"select count(*) from (select 1 from stays where a < 50 for share) q; rollback", i),
		fmt.Sprintf("begin; insert into stays values (%d, 'prepared'); prepare transaction 'p%d'", 1_000_000+i, i),
		fmt.Sprintf("truncate c_%d", i),
		fmt.Sprintf("insert into c_%d(t) values ('again')", i),
		fmt.Sprintf("commit prepared 'p%d'", i),
		"delete from moved where a % 2 = 0",
		"vacuum full moved",
		fmt.Sprintf("create sequence s_%d", i),
		fmt.Sprintf("select nextval('s_%d') from generate_series(1, 50)", i),
	}
	if r.server.Major() >= 15 {
		sql = append(sql, fmt.Sprintf("create database d_%d strategy wal_log", i))
		if i > 1 {
			sql = append(sql, fmt.Sprintf("drop database d_%d", i-1))
		}
	}
	if i > 2 {
		sql = append(sql, fmt.Sprintf("drop table c_%d", i-2), fmt.Sprintf("drop sequence s_%d", i-2))
	}
	if i%3 == 0 {
		sql = append(sql, "checkpoint")
	}
	_, err := r.server.SQL(ctx, "postgres", sql...)
	return err
}
