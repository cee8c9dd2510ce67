package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Basebackup writes a base backup of the running server to dst, which must not exist, with the WAL that makes it
// consistent. Tablespaces go to dst.tablespaces/OID. It is pg_basebackup's where DefaultMajor's knows the server, else one by
// the functions of the low-level interface. args are added to pg_basebackup's.
func (s *Server) Basebackup(ctx context.Context, dst string, args ...string) error {
	if err := s.account.mkdir(dst); err != nil {
		return fmt.Errorf("base backup: %w", err)
	}
	rows, err := s.SQL(ctx, "postgres", "select oid, pg_tablespace_location(oid) from pg_tablespace where pg_tablespace_location(oid) like '/%'")
	if err != nil {
		return fmt.Errorf("base backup: %w", err)
	}
	if s.cfg.Major > DefaultMajor {
		if err := os.Remove(dst); err != nil {
			return fmt.Errorf("base backup: %w", err)
		}
		return s.lowLevelBackup(ctx, dst)
	}
	args = append([]string{"-h", s.sockets, "-p", fmt.Sprint(s.port), "-U", "postgres", "-D", dst, "-X", "stream", "-c", "fast", "--no-sync"}, args...)
	if len(rows) > 0 {
		if err := s.account.mkdir(spacesOf(dst)); err != nil {
			return fmt.Errorf("base backup: %w", err)
		}
	}
	for _, row := range rows {
		args = append(args, "--tablespace-mapping="+row[1]+"="+filepath.Join(spacesOf(dst), row[0]))
	}
	cmd := s.serverCommand(ctx, filepath.Join(s.clients, "pg_basebackup"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	return nil
}

// lowLevelBackup copies the data directory between pg_backup_start and pg_backup_stop.
func (s *Server) lowLevelBackup(ctx context.Context, dst string) (err error) {
	conn, err := s.Conn(ctx, "postgres")
	if err != nil {
		return fmt.Errorf("base backup: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if _, err := conn.Exec(ctx, "select pg_backup_start('pgtest', true)"); err != nil {
		return fmt.Errorf("base backup: %w", err)
	}
	if err := copyDataDir(s.data, dst, true); err != nil {
		return fmt.Errorf("base backup: %w", err)
	}
	label, stop, err := stopBackup(ctx, conn)
	if err != nil {
		return fmt.Errorf("base backup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dst, "backup_label"), []byte(label), 0o600); err != nil {
		return fmt.Errorf("base backup: %w", err)
	}
	// What belongs to the running server, and WAL copied before it was complete.
	for _, pattern := range []string{"postmaster.*", "pg_replslot/*", "pg_dynshmem/*", "pg_notify/*", "pg_stat_tmp/*", "pg_wal/0*"} {
		matches, err := filepath.Glob(filepath.Join(dst, pattern))
		if err != nil {
			return err
		}
		for _, path := range matches {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("base backup: %w", err)
			}
		}
	}
	first := labelSegment(label)
	names, err := Segments(s.WALDir())
	if err != nil {
		return fmt.Errorf("base backup: %w", err)
	}
	for _, name := range names {
		if name < first || name > stop {
			continue
		}
		if err := copyFile(filepath.Join(s.WALDir(), name), filepath.Join(dst, "pg_wal", name)); err != nil {
			return fmt.Errorf("base backup: %w", err)
		}
	}
	return s.handOver(dst)
}

func stopBackup(ctx context.Context, conn *pgx.Conn) (label, segment string, err error) {
	row := conn.QueryRow(ctx, "select labelfile, pg_walfile_name(lsn) from pg_backup_stop(false)")
	err = row.Scan(&label, &segment)
	return label, segment, err
}

// labelSegment returns the segment that a backup_label's first line names: the one with the start of the replay.
func labelSegment(label string) string {
	_, rest, _ := strings.Cut(label, "(file ")
	name, _, _ := strings.Cut(rest, ")")
	return name
}

// handOver gives a copied data directory and its tablespaces to the server's user.
func (s *Server) handOver(data string) error {
	if err := errors.Join(s.account.reach(data), s.account.own(data)); err != nil {
		return err
	}
	if _, err := os.Stat(spacesOf(data)); err == nil {
		return s.account.own(spacesOf(data))
	}
	return nil
}

// Standby makes a standby of the running server from a base backup, in cfg.Dir/data, and starts it. It streams from the server
// under the given application name. The caller must Close it.
func (s *Server) Standby(ctx context.Context, name string, cfg Config) (*Server, error) {
	cfg.Major = s.cfg.Major
	standby, err := newServer(ctx, cfg)
	if err != nil {
		return nil, err
	}
	standby.cfg.Args = append(arguments(Merge(baseSettings(), cfg.Settings)), cfg.Args...)
	standby.data = filepath.Join(standby.dir, "data")
	err = s.Basebackup(ctx, standby.data)
	if err == nil {
		source := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres sslmode=disable application_name=%s", s.port, name)
		err = configure(standby.data, map[string]string{"primary_conninfo": source}, "standby.signal")
	}
	if err == nil {
		err = standby.adopt()
	}
	if err == nil {
		err = standby.StartAgain(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("standby %s: %w", name, err), standby.Close())
	}
	return standby, nil
}

// WaitReplayed waits until a standby has replayed up to an LSN.
func (s *Server) WaitReplayed(ctx context.Context, lsn string) error {
	return s.WaitTrue(ctx, fmt.Sprintf("select coalesce(pg_last_wal_replay_lsn() >= '%s', false)", lsn))
}

// WaitTrue waits until a query in database postgres returns true.
func (s *Server) WaitTrue(ctx context.Context, query string) error {
	conn, err := s.Conn(ctx, "postgres")
	if err != nil {
		return fmt.Errorf("wait until %s: %w; log: %s", abbreviate(query), err, s.LogTail())
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = poll(ctx, func() (ok bool, err error) {
		err = conn.QueryRow(ctx, query).Scan(&ok)
		return ok, err
	})
	if err != nil {
		return fmt.Errorf("wait until %s: %w; log: %s", abbreviate(query), err, s.LogTail())
	}
	return nil
}

// configure adds settings and a signal file to a data directory.
func configure(data string, settings map[string]string, signalFile string) error {
	if err := appendFile(filepath.Join(data, "postgresql.auto.conf"), conf(settings)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(data, signalFile), nil, 0o600)
}
