package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"
)

// concurrent needs several sessions: multixacts of lockers and updaters, aborted speculative insertions, rows locked along
// their update chain. Afterwards it uses up transaction ids and freezes every database, which fills and truncates the
// transaction logs.
func (r *run) concurrent(ctx context.Context, round int) error {
	if err := r.script(ctx, "concurrent/setup.sql", round, nil); err != nil {
		return err
	}
	if err := r.lockBench(ctx, round); err != nil {
		return err
	}
	if err := r.sharedLockChain(ctx); err != nil {
		return fmt.Errorf("locks shared with updates: %w", err)
	}
	if err := r.lockUpdated(ctx); err != nil {
		return fmt.Errorf("locks along an update chain: %w", err)
	}
	if _, err := r.server.SQL(ctx, "postgres", "vacuum freeze mx", "vacuum (freeze) mxc", "vacuum (freeze, disable_page_skipping) spec"); err != nil {
		return err
	}
	if err := r.burn(ctx); err != nil {
		return fmt.Errorf("use up transaction ids: %w", err)
	}
	return r.mark(ctx, fmt.Sprintf("concurrent %d", round))
}

// lockBench runs ten pgbench clients that fight for the same rows.
func (r *run) lockBench(ctx context.Context, round int) error {
	args := []string{"-n", "-c", "10", "-j", "1", "-t", strconv.Itoa(max(r.options.Transactions/4, 10)), "--max-tries=5", "--random-seed=" + r.seed(round)}
	for _, script := range []struct{ name, weight string }{{"lock.pgbench", "3"}, {"speculate.pgbench", "1"}} {
		text, err := scripts.ReadFile("sql/concurrent/" + script.name)
		if err != nil {
			return err
		}
		path := filepath.Join(r.options.Dir, script.name)
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
		args = append(args, "-f", path+"@"+script.weight)
	}
	_, err := r.server.Pgbench(ctx, append(args, "postgres")...)
	return err
}

// sharedLockChain updates rows that another transaction holds key-share locks on.
func (r *run) sharedLockChain(ctx context.Context) error {
	return r.withSessions(ctx, func(holder, updater session) error {
		if err := holder.exec("begin", "select count(*) from (select 1 from mx for key share) q"); err != nil {
			return err
		}
		for range 3 {
			err := updater.exec("update mx set v = v + 1 where id < 100",
				"begin",
				"select 1 from mx where id between 50 and 150 for key share",
				"savepoint q", "update mx set w = w || 'x' where id between 50 and 60", "rollback to q",
				"commit")
			if err != nil {
				return err
			}
		}
		return holder.exec("commit")
	})
}

// lockUpdated locks rows as an old snapshot sees them after another transaction has updated them.
func (r *run) lockUpdated(ctx context.Context) error {
	return r.withSessions(ctx, func(locker, updater session) error {
		if err := locker.exec("begin isolation level repeatable read", "select count(*) from mx"); err != nil {
			return err
		}
		if err := updater.exec("begin", "update mx set v = v + 10 where id between 1 and 200"); err != nil {
			return err
		}
		// While the update is under way the lock goes to the row's newer version too.
		if err := locker.exec("select count(*) from (select 1 from mx for key share) q"); err != nil {
			return err
		}
		if err := updater.exec("commit"); err != nil {
			return err
		}
		return locker.exec("commit")
	})
}

// burn uses up transaction ids and freezes every database, template0 too, so that the logs can be truncated.
func (r *run) burn(ctx context.Context) error {
	_, err := r.server.SQL(ctx, "postgres",
		fmt.Sprintf("do $$ begin for i in 1..%d loop perform pg_current_xact_id(); commit; end loop; end $$", r.options.Burn),
		"update pg_database set datallowconn = true where datname = 'template0'")
	if err != nil {
		return err
	}
	databases, err := r.server.Databases(ctx)
	if err != nil {
		return err
	}
	for _, db := range databases {
		if _, err := r.server.SQL(ctx, db, "vacuum freeze"); err != nil {
			return fmt.Errorf("database %s: %w", db, err)
		}
	}
	_, err = r.server.SQL(ctx, "postgres", "update pg_database set datallowconn = false where datname = 'template0'", "vacuum freeze pg_database", "checkpoint")
	return err
}

// session is a connection whose statements run one after the other.
type session struct {
	ctx  context.Context
	conn *pgconn.PgConn
}

func (s session) exec(statements ...string) error {
	for _, sql := range statements {
		if _, err := s.conn.Exec(s.ctx, sql).ReadAll(); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// withSessions gives do two sessions in database postgres.
func (r *run) withSessions(ctx context.Context, do func(a, b session) error) (err error) {
	var sessions [2]session
	for i := range sessions {
		conn, err := pgconn.Connect(ctx, r.server.ConnString("postgres"))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
		sessions[i] = session{ctx: ctx, conn: conn}
	}
	return do(sessions[0], sessions[1])
}
