package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"everpage/wal/pg"
)

// Conn is a connection to a server, for one goroutine at a time.
type Conn struct {
	pgc   *pgconn.PgConn
	where string
	user  string
	mode  Mode
	major pg.Major
}

// Connect opens a connection for SQL or replication. The application name is what pg_stat_replication shows and synchronous_standby_names
// matches: a node's name when it streams WAL, and something else while it takes a base backup, so that no commit waits for a backup.
// Errors are a *ConnectError.
func Connect(ctx context.Context, conninfo string, mode Mode, applicationName string) (*Conn, error) {
	cfg, err := parseConninfo(conninfo, mode, applicationName)
	if err != nil {
		return nil, err
	}
	return connect(ctx, cfg, mode)
}

func connect(ctx context.Context, cfg *pgconn.Config, mode Mode) (*Conn, error) {
	pgc, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, explainConnect(ctx, cfg, mode, err)
	}
	c := &Conn{pgc: pgc, where: describe(cfg), user: cfg.User, mode: mode}
	if c.major, err = parseMajor(pgc.ParameterStatus("server_version")); err != nil {
		c.Close()
		return nil, &ConnectError{Kind: ErrUnsupported, Where: c.where, Err: err, Hint: fmt.Sprintf("follow a PostgreSQL %d to %d", pg.MajorFirst, pg.MajorLast)}
	}
	return c, nil
}

// Line is what a server must be on that is one of several in a conninfo: the cluster, and a timeline that is not older than the one followed.
type Line struct {
	SystemID uint64
	Timeline pg.TimelineID
}

// check refuses a server that is not on the line.
func (l Line) check(systemID uint64, timeline pg.TimelineID) error {
	switch {
	case systemID != l.SystemID:
		return fmt.Errorf("%w: its system identifier is %d, ours %d", ErrSystem, systemID, l.SystemID)
	case timeline < l.Timeline:
		return fmt.Errorf("%w: it is on timeline %d, we follow %d: it is a copy from before the last promotion, or the old primary", ErrTimeline, timeline, l.Timeline)
	}
	return nil
}

// ConnectOne is Connect for a conninfo that may name several hosts: those that are not on the line are passed over, as an old primary is that came back. Where
// there is one host only, it is for the caller to find out whose it is.
func ConnectOne(ctx context.Context, conninfo string, mode Mode, applicationName string, l Line) (*Conn, error) {
	cfg, err := parseConninfo(conninfo, mode, applicationName)
	if err != nil {
		return nil, err
	}
	if l.SystemID != 0 && hosts(cfg) > 1 {
		before := cfg.ValidateConnect
		cfg.ValidateConnect = func(ctx context.Context, c *pgconn.PgConn) error {
			if before != nil {
				if err := before(ctx, c); err != nil {
					return err
				}
			}
			if err := l.validate(ctx, c, mode); err != nil {
				return fmt.Errorf("%s: %w", c.Conn().RemoteAddr(), err)
			}
			return nil
		}
	}
	return connect(ctx, cfg, mode)
}

// hosts counts the servers that a configuration names. One server is there several times where it is tried with and without TLS.
func hosts(cfg *pgconn.Config) int {
	seen := map[string]bool{}
	seen[net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))] = true
	for _, f := range cfg.Fallbacks {
		seen[net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port)))] = true
	}
	return len(seen)
}

// validate asks a server for its line.
func (l Line) validate(ctx context.Context, c *pgconn.PgConn, mode Mode) error {
	if mode == Replication {
		id, err := pglogrepl.IdentifySystem(ctx, c)
		if err != nil {
			return err
		}
		systemID, err := strconv.ParseUint(id.SystemID, 10, 64)
		if err != nil {
			return err
		}
		return l.check(systemID, pg.TimelineID(id.Timeline))
	}
	results, err := c.Exec(ctx, "SELECT system_identifier, CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_lsn()) END FROM pg_control_system()").ReadAll()
	if err != nil {
		return err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 2 {
		return errors.New("the server does not tell its system identifier")
	}
	row := results[0].Rows[0]
	if len(row[1]) < 8 {
		return ErrStandby
	}
	systemID, err := strconv.ParseUint(string(row[0]), 10, 64)
	if err != nil {
		return err
	}
	timeline, err := strconv.ParseUint(string(row[1][:8]), 16, 32)
	if err != nil {
		return err
	}
	return l.check(systemID, pg.TimelineID(timeline))
}

// parseMajor reads server_version: 15.18 (Debian …), 18beta1, 17devel.
func parseMajor(version string) (pg.Major, error) {
	end := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(version)
	}
	n, err := strconv.ParseUint(version[:end], 10, 8)
	if err != nil || pg.Major(n) < pg.MajorFirst || pg.Major(n) > pg.MajorLast {
		return 0, fmt.Errorf("server version %q is not supported", version)
	}
	return pg.Major(n), nil
}

// Major is the server's major version.
func (c *Conn) Major() pg.Major { return c.major }

// Where names the server and the role, for messages.
func (c *Conn) Where() string { return c.where }

// LocalAddr is our own address on this connection, nil on a unix socket.
func (c *Conn) LocalAddr() net.Addr {
	if a, ok := c.pgc.Conn().LocalAddr().(*net.TCPAddr); ok {
		return a
	}
	return nil
}

// Close says goodbye and closes the connection. It may be called more than once.
func (c *Conn) Close() {
	if c.pgc == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	closed := c.pgc.IsClosed()
	_ = c.pgc.Close(ctx) // the connection is gone either way
	if closed {
		// A command that failed midway closes in the background, within bounds of its own.
		select {
		case <-c.pgc.CleanupDone():
		case <-ctx.Done():
		}
	}
	c.pgc = nil
}

var errClosed = errors.New("connection is closed")

// rows runs one command by the simple protocol and returns its last result's rows as text, NULL as nil.
func (c *Conn) rows(ctx context.Context, command string) ([][][]byte, error) {
	if c.pgc == nil {
		return nil, errClosed
	}
	results, err := c.pgc.Exec(ctx, command).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) == 0 {
		return nil, nil
	}
	return results[len(results)-1].Rows, nil
}

// row runs a command that answers one row of at least n columns.
func (c *Conn) row(ctx context.Context, command string, n int) ([][]byte, error) {
	rows, err := c.rows(ctx, command)
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 || len(rows[0]) < n {
		return nil, fmt.Errorf("%s: answer of %d rows, want one with %d columns", command, len(rows), n)
	}
	return rows[0], nil
}

// show reads a setting. It works on replication connections too.
func (c *Conn) show(ctx context.Context, setting string) (string, error) {
	row, err := c.row(ctx, "SHOW "+setting, 1)
	if err != nil {
		return "", fmt.Errorf("show %s: %w", setting, err)
	}
	return string(row[0]), nil
}
