package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// connectTimeout bounds a connection attempt to one host whose conninfo doesn't say connect_timeout.
const connectTimeout = 15 * time.Second

// Mode says what a connection is for.
type Mode uint8

const (
	// SQL is an ordinary connection to the database that the conninfo names.
	SQL Mode = iota
	// Replication is a connection to a walsender: replication commands and SHOW, no SQL, no database.
	Replication
)

// libpqIgnored are libpq's own keywords that mean nothing here, or that we do in our own way. The driver would send them to the server as settings.
var libpqIgnored = []string{"replication", "fallback_application_name", "application_name", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
	"tcp_user_timeout", "gsslib", "gssdelegation", "sslcompression", "load_balance_hosts", "hostaddr"}

// libpqRefused are libpq's keywords that narrow what the client may trust. To leave them out silently would widen it.
var libpqRefused = []string{"requirepeer", "requiressl", "sslcrl", "sslcrldir", "ssl_min_protocol_version", "ssl_max_protocol_version", "scram_client_key", "scram_server_key",
	"oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope", "sslkeylogfile"}

// parseConninfo reads a libpq URI or keyword string with libpq's defaults: PG* variables, service files, .pgpass.
func parseConninfo(conninfo string, mode Mode, applicationName string) (*pgconn.Config, error) {
	cfg, err := pgconn.ParseConfig(conninfo)
	if err != nil {
		return nil, &ConnectError{Kind: ErrConninfo, Where: "conninfo", Err: err, Hint: "give a libpq URI or keywords, as in postgres://user@host/db or 'host=… user=…'"}
	}
	if addr := cfg.RuntimeParams["hostaddr"]; addr != "" && strings.HasPrefix(cfg.Host, "/") {
		// hostaddr alone: without a host the driver would take the socket, and no TLS with it.
		conninfo = withKeyword(conninfo, "host", addr)
		if cfg, err = pgconn.ParseConfig(conninfo); err != nil {
			return nil, &ConnectError{Kind: ErrConninfo, Where: "conninfo", Err: err}
		}
	}
	if mode == Replication {
		// A walsender has no database, and .pgpass names it "replication", as libpq's walreceiver does (libpqrcv_connect).
		if named, err := pgconn.ParseConfig(withKeyword(conninfo, "dbname", "replication")); err == nil && named.Password != "" {
			cfg.Password = named.Password
		}
		cfg.Database = "replication"
	}
	for _, k := range libpqRefused {
		if v, ok := cfg.RuntimeParams[k]; ok && v != "" {
			return nil, &ConnectError{Kind: ErrConninfo, Where: "conninfo", Err: fmt.Errorf("parameter %q is not supported", k), Hint: "leave it out if the connection is safe without it"}
		}
		delete(cfg.RuntimeParams, k)
	}
	if v := cfg.RuntimeParams["gssencmode"]; v == "require" {
		return nil, &ConnectError{Kind: ErrConninfo, Where: "conninfo", Err: errors.New("gssencmode=require is not supported"), Hint: "use TLS (sslmode=verify-full) instead"}
	}
	delete(cfg.RuntimeParams, "gssencmode")
	if err := useHostAddr(cfg); err != nil {
		return nil, err
	}
	for _, k := range libpqIgnored {
		delete(cfg.RuntimeParams, k)
	}
	if cfg.RuntimeParams["client_encoding"] == "auto" {
		delete(cfg.RuntimeParams, "client_encoding")
	}
	if cfg.ConnectTimeout == 0 || !strings.Contains(conninfo, "connect_timeout") && cfg.ConnectTimeout > connectTimeout {
		cfg.ConnectTimeout = connectTimeout
	}
	// The kernel finds a dead peer where the protocol is silent for long, as while a base backup waits for its checkpoint.
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 10 * time.Second, Count: 4}}
	cfg.DialFunc = dialer.DialContext
	if applicationName != "" {
		cfg.RuntimeParams["application_name"] = applicationName
	}
	if mode == Replication {
		cfg.RuntimeParams["replication"] = "true"
		if err := choosePrimary(cfg); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

// choosePrimary makes target_session_attrs work with a walsender, which takes no SQL: the server reports in_hot_standby by itself.
func choosePrimary(cfg *pgconn.Config) error {
	if cfg.ValidateConnect == nil {
		return nil
	}
	same := func(f pgconn.ValidateConnectFunc) bool {
		return reflect.ValueOf(f).Pointer() == reflect.ValueOf(cfg.ValidateConnect).Pointer()
	}
	if same(pgconn.ValidateConnectTargetSessionAttrsReadOnly) || same(pgconn.ValidateConnectTargetSessionAttrsStandby) || same(pgconn.ValidateConnectTargetSessionAttrsPreferStandby) {
		return &ConnectError{Kind: ErrConninfo, Where: "conninfo", Err: errors.New("target_session_attrs asks for a standby"), Hint: "WAL is streamed from the primary: use read-write or primary"}
	}
	cfg.ValidateConnect = func(_ context.Context, c *pgconn.PgConn) error {
		if c.ParameterStatus("in_hot_standby") != "off" {
			return ErrStandby
		}
		return nil
	}
	return nil
}

// useHostAddr connects to hostaddr where the conninfo has it; host still names the server for TLS and .pgpass.
func useHostAddr(cfg *pgconn.Config) error {
	addr := cfg.RuntimeParams["hostaddr"]
	if addr == "" {
		return nil
	}
	if strings.Contains(addr, ",") {
		return &ConnectError{Kind: ErrConninfo, Where: "conninfo", Err: errors.New("a list in hostaddr is not supported"), Hint: "list the servers in host"}
	}
	cfg.LookupFunc = func(context.Context, string) ([]string, error) { return []string{addr}, nil }
	return nil
}

// withKeyword is the conninfo with another value for a keyword. The last of several equal keywords counts.
func withKeyword(conninfo, keyword, value string) string {
	if strings.HasPrefix(conninfo, "postgres://") || strings.HasPrefix(conninfo, "postgresql://") {
		u, err := url.Parse(conninfo)
		if err != nil {
			return conninfo
		}
		q := u.Query()
		if keyword == "dbname" {
			q.Del("dbname")
			q.Del("database")
			u.Path = "/" + value
		} else {
			q.Set(keyword, value)
		}
		u.RawQuery = q.Encode()
		return u.String()
	}
	return conninfo + " " + keyword + "='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
}

// describe names the server and role of a configuration for messages, without the password.
func describe(cfg *pgconn.Config) string {
	where := fmt.Sprintf("%s port %d", cfg.Host, cfg.Port)
	for _, f := range cfg.Fallbacks {
		if s := fmt.Sprintf("%s port %d", f.Host, f.Port); !strings.Contains(where, s) {
			where += ", " + s
		}
	}
	return where + " as " + cfg.User
}

// WithoutPassword is a conninfo without its password, for places where that doesn't belong. What can't be read becomes "".
func WithoutPassword(conninfo string) string {
	if u, err := url.Parse(conninfo); err == nil && (u.Scheme == "postgres" || u.Scheme == "postgresql") {
		if u.User != nil {
			u.User = url.User(u.User.Username())
		}
		q := u.Query()
		q.Del("password")
		u.RawQuery = q.Encode()
		return u.String()
	}
	if _, err := pgconn.ParseConfig(conninfo); err != nil {
		return ""
	}
	return passwordRE.ReplaceAllString(conninfo, "$1")
}

// passwordRE is a password in keyword form: quoted, with backslashes, or up to the next blank.
var passwordRE = regexp.MustCompile(`(^|\s)(?:ssl)?password\s*=\s*(?:'(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)*)`)
