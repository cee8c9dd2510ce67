package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Why a connection failed. Each is the Kind of a *ConnectError, found by errors.Is.
var (
	ErrConninfo     = errors.New("bad connection string")
	ErrUnreachable  = errors.New("server unreachable")
	ErrPassword     = errors.New("password refused")
	ErrNoHBA        = errors.New("no pg_hba.conf entry")
	ErrRole         = errors.New("role may not log in")
	ErrNoPrivilege  = errors.New("role lacks REPLICATION")
	ErrTooMany      = errors.New("no free connection")
	ErrStarting     = errors.New("server is starting or stopping")
	ErrNoDatabase   = errors.New("no such database")
	ErrPooler       = errors.New("not a PostgreSQL server but a pooler or proxy")
	ErrUnsupported  = errors.New("server not supported")
	ErrConnectOther = errors.New("connection failed")
)

// ConnectError is a connection that did not come about, with the next step.
type ConnectError struct {
	Kind  error  // one of the Err… above
	Where string // server and role
	Err   error
	Hint  string // what to do; may be empty
}

// Error names the server, the cause and the next step.
func (e *ConnectError) Error() string {
	s := fmt.Sprintf("connect to %s: %v: %v", e.Where, e.Kind, e.Err)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Unwrap gives the kind and the cause.
func (e *ConnectError) Unwrap() []error { return []error{e.Kind, e.Err} }

// SQLSTATE codes that are told apart.
const (
	codeProtocolViolation   = "08P01"
	codeSyntax              = "42601"
	codeInvalidAuth         = "28000"
	codeInvalidPassword     = "28P01"
	codeNoDatabase          = "3D000"
	codeInsufficient        = "42501"
	codeTooManyConnections  = "53300"
	codeCannotConnectNow    = "57P03"
	codeAdminShutdown       = "57P01"
	codeCrashShutdown       = "57P02"
	codeUndefinedObject     = "42704"
	codeDuplicateObject     = "42710"
	codeObjectInUse         = "55006"
	codeNotInState          = "55000"
	codeUndefinedFile       = "58P01"
	codeFeatureNotSupported = "0A000"
)

// sqlState is the SQLSTATE of a server's error, empty for others.
func sqlState(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return ""
}

// serverError prints a server's error with the detail and hint that its Error method leaves out.
func serverError(err error) error {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Detail == "" && pe.Hint == "" {
		return err
	}
	var more []string
	for _, s := range []string{pe.Detail, pe.Hint} {
		if s != "" {
			more = append(more, strings.TrimSuffix(s, "."))
		}
	}
	return fmt.Errorf("%w: %s", err, strings.Join(more, "; "))
}

// explainConnect finds out why a connection failed. Texts may be in any language, so it goes by SQLSTATE and by the name of the
// server's function that raised the error.
func explainConnect(ctx context.Context, cfg *pgconn.Config, mode Mode, err error) error {
	e := &ConnectError{Kind: ErrConnectOther, Where: describe(cfg), Err: err}
	if ctx.Err() != nil {
		e.Err = context.Cause(ctx)
		return e
	}
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		var ne net.Error
		var oe *net.OpError
		if errors.As(err, &oe) || errors.As(err, &ne) || pgconn.Timeout(err) {
			e.Kind, e.Hint = ErrUnreachable, "check host and port, that the server runs, and its listen_addresses"
		}
		return e
	}
	e.Err = serverError(pe)
	database := cfg.Database
	if mode == Replication {
		database = "replication"
	}
	switch pe.Code {
	case codeInvalidPassword:
		e.Kind, e.Hint = ErrPassword, "give the role's password in the conninfo, PGPASSWORD or .pgpass"
	case codeInvalidAuth:
		switch pe.Routine {
		case "ClientAuthentication":
			e.Kind = ErrNoHBA
			e.Hint = fmt.Sprintf("add a line like 'host %s %s <this node's address>/32 scram-sha-256' to pg_hba.conf and reload the server", database, cfg.User)
		case "auth_failed":
			e.Kind, e.Hint = ErrPassword, "see the server's log for the method that refused"
		default:
			e.Kind, e.Hint = ErrRole, fmt.Sprintf("create it: CREATE ROLE %s REPLICATION LOGIN PASSWORD '…'", quoteIdent(cfg.User))
		}
	case codeInsufficient:
		e.Kind, e.Hint = ErrNoPrivilege, fmt.Sprintf("grant it: ALTER ROLE %s REPLICATION", quoteIdent(cfg.User))
	case codeTooManyConnections:
		e.Kind, e.Hint = ErrTooMany, "raise max_wal_senders (replication) or max_connections, or end idle ones"
	case codeCannotConnectNow, codeAdminShutdown, codeCrashShutdown:
		e.Kind, e.Hint = ErrStarting, "try again when it accepts connections"
	case codeNoDatabase:
		e.Kind, e.Hint = ErrNoDatabase, "name an existing database in the conninfo"
	case codeProtocolViolation, codeFeatureNotSupported:
		e.Kind, e.Hint = ErrPooler, "connect to PostgreSQL itself: replication does not go through poolers such as pgbouncer"
	}
	return e
}

// quoteIdent quotes an SQL identifier.
func quoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// quoteLiteral quotes an SQL or replication command string. Backslashes are plain, as standard_conforming_strings and the replication grammar have it.
func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
