package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ConnString returns libpq keywords for a TCP connection to a database as superuser postgres.
func (s *Server) ConnString(db string) string {
	quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(db)
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname='%s' sslmode=disable connect_timeout=10", s.port, quoted)
}

// URI returns the same connection as a URI.
func (s *Server) URI(db string) string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Host: fmt.Sprintf("127.0.0.1:%d", s.port), Path: "/" + db,
		RawQuery: "sslmode=disable&connect_timeout=10"}
	return u.String()
}

// Conn opens a connection, which the caller must close.
func (s *Server) Conn(ctx context.Context, db string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, s.ConnString(db))
}

// SQL runs statements one after the other on one new connection, by the simple protocol, so an element may hold several
// statements. It returns the rows of all of them in order, values as text, NULL as an empty string.
func (s *Server) SQL(ctx context.Context, db string, sql ...string) (rows [][]string, err error) {
	conn, err := pgconn.Connect(ctx, s.ConnString(db))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	for _, statement := range sql {
		results, err := conn.Exec(ctx, statement).ReadAll()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", abbreviate(statement), err)
		}
		for _, result := range results {
			for _, values := range result.Rows {
				row := make([]string, len(values))
				for i, v := range values {
					row[i] = string(v)
				}
				rows = append(rows, row)
			}
		}
	}
	return rows, nil
}

// Value returns the only value of the only row of a query.
func (s *Server) Value(ctx context.Context, db, query string) (string, error) {
	rows, err := s.SQL(ctx, db, query)
	if err != nil {
		return "", err
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return "", fmt.Errorf("%s: %d rows, expected one with one value", abbreviate(query), len(rows))
	}
	return rows[0][0], nil
}

// CurrentLSN returns up to where the WAL is: on a primary a boundary between records, all of it flushed, for which a
// transaction that does nothing is committed; on a standby what it has replayed.
func (s *Server) CurrentLSN(ctx context.Context) (string, error) {
	standby, err := s.Value(ctx, "postgres", "select pg_is_in_recovery()")
	if err != nil {
		return "", err
	}
	if standby == "t" {
		return s.Value(ctx, "postgres", "select pg_last_wal_replay_lsn()")
	}
	// The position before the commit's own record; its flush takes all before it along.
	rows, err := s.SQL(ctx, "postgres", "begin", "select pg_current_wal_insert_lsn()", "set local synchronous_commit = local",
		"select pg_current_xact_id()", "commit")
	if err != nil {
		return "", err
	}
	return rows[0][0], nil
}

// FlushedLSN returns up to where a primary's WAL is on disk. It may lie inside a record.
func (s *Server) FlushedLSN(ctx context.Context) (string, error) {
	return s.Value(ctx, "postgres", "select pg_current_wal_flush_lsn()")
}

// Databases returns the names of the databases that accept connections, sorted.
func (s *Server) Databases(ctx context.Context) ([]string, error) {
	rows, err := s.SQL(ctx, "postgres", `select datname from pg_database where datallowconn order by datname collate "C"`)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, row := range rows {
		names = append(names, row[0])
	}
	return names, nil
}

// Reload makes the server read its configuration again.
func (s *Server) Reload(ctx context.Context) error {
	_, err := s.SQL(ctx, "postgres", "select pg_reload_conf()")
	return err
}

func abbreviate(sql string) string {
	const limit = 200
	sql = strings.Join(strings.Fields(sql), " ")
	if len(sql) > limit {
		return sql[:limit] + "…"
	}
	return sql
}
