package workload

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"everpage/deploy/pgtest"
)

// rareScripts are apart from the workloads' own, which name cached corpora.
//
//go:embed rare
var rareScripts embed.FS

// Rare writes many of the records of which a round of Mixed and of Indexes writes few or none, after both of them. No transaction
// may be prepared: it would keep vacuum from removing anything. One is in the end, rare_stays.
func Rare(ctx context.Context, s *pgtest.Server) error {
	names := []string{"10_small", "20_indexes", "25_more_indexes"}
	level, err := s.Value(ctx, "postgres", "show wal_level")
	if err != nil {
		return err
	}
	if level == "logical" {
		names = append(names, "30_logical")
	}
	vars := map[string]string{"new": strconv.FormatBool(s.Major() >= 15)}
	for _, name := range names {
		text, err := rareScripts.ReadFile("rare/" + name + ".sql")
		if err != nil {
			return err
		}
		if _, err := s.Psql(ctx, "postgres", string(text), vars); err != nil {
			return fmt.Errorf("rare/%s: %w", name, err)
		}
	}
	_, err = s.SQL(ctx, "postgres", "begin", "insert into rr values (301, 'prepared')", "prepare transaction 'rare_stays'")
	return err
}

func (r *run) large(ctx context.Context, _ int) error {
	text, err := rareScripts.ReadFile("rare/50_large.sql")
	if err != nil {
		return err
	}
	_, err = r.server.Psql(ctx, "postgres", string(text), map[string]string{"tmpcopy": filepath.Join(r.options.Dir, "rows")})
	return err
}

// States is one of many rounds, counted from 1, of all that changes no page of a relation: transactions with subtransactions, prepared ones, multixacts,
// truncations, databases, tablespaces, relation maps, origins, counters, and the logs' truncation. It leaves a transaction prepared, whose end is in the
// next round.
func States(ctx context.Context, s *pgtest.Server, round int) error {
	prepared := func(n int) string { return fmt.Sprintf("'states_%d'", n) }
	if round > 1 {
		end := []string{"commit", "rollback"}[round%2]
		if _, err := s.SQL(ctx, "postgres", end+" prepared "+prepared(round-1)); err != nil {
			return err
		}
	}
	text, err := rareScripts.ReadFile("rare/40_states.sql")
	if err != nil {
		return err
	}
	vars := map[string]string{"round": strconv.Itoa(round), "before": strconv.Itoa(round - 1), "new": strconv.FormatBool(s.Major() >= 15)}
	if _, err := s.Psql(ctx, "postgres", string(text), vars); err != nil {
		return fmt.Errorf("rare/40_states: %w", err)
	}
	if err := Freeze(ctx, s, statesBurn); err != nil {
		return err
	}
	_, err = s.SQL(ctx, "postgres", fmt.Sprintf("alter system set max_connections = %d", 90+round),
		"begin", fmt.Sprintf("insert into st values (%d, 'prepared')", 20000+round), "savepoint s", fmt.Sprintf("create table st_prepared_%d(a int)", round),
		"prepare transaction "+prepared(round))
	return err
}

// statesBurn is a page of the commit log and a segment of commit times.
const statesBurn = 33000

// Crash kills a server while it writes a long transaction, most likely in the middle of a record that reaches over a page's end: the records that it
// wrote are complete up to there, and what comes next begins with a note of the one that is not.
func Crash(ctx context.Context, s *pgtest.Server) (err error) {
	// What recovery has to replay under wal_consistency_checking shall be this transaction only.
	if _, err := s.SQL(ctx, "postgres", "create table if not exists crashed(a int, t text)", "checkpoint"); err != nil {
		return err
	}
	conn, err := pgconn.Connect(ctx, s.ConnString("postgres"))
	if err != nil {
		return err
	}
	before, err := s.Value(ctx, "postgres", "select pg_current_wal_insert_lsn()")
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "insert into crashed select g, repeat('c', 1900) from generate_series(1, 1000000) g").ReadAll()
		done <- err
	}()
	err = s.WaitTrue(ctx, fmt.Sprintf("select pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '%s') > 2000000", before))
	err = errors.Join(err, s.Kill9(ctx))
	if <-done == nil {
		err = errors.Join(err, errors.New("the transaction ended before the server was killed"))
	}
	conn.Close(context.WithoutCancel(ctx))
	return errors.Join(err, s.StartAgain(ctx))
}

// Promote restarts a server that was stopped cleanly as a standby and promotes it: it begins a new timeline.
func Promote(ctx context.Context, s *pgtest.Server) error {
	if err := s.MakeStandby(); err != nil {
		return err
	}
	if err := s.StartAgain(ctx); err != nil {
		return err
	}
	_, err := s.SQL(ctx, "postgres", "select pg_promote()", "checkpoint")
	return err
}

// Freeze uses up n transaction ids and freezes every database, so that the logs are truncated. No transaction may be prepared.
func Freeze(ctx context.Context, s *pgtest.Server, n int) error {
	r := &run{server: s, options: Options{Burn: n}.withDefaults(), result: &Result{}}
	return r.burn(ctx)
}
