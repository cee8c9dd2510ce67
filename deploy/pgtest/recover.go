package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// Recovery says what a stock server shall be recovered from and to.
type Recovery struct {
	Config
	// Base is a cold copy or a base backup. It is copied to Config.Dir/data.
	Base string
	// WAL holds the segments from Base's redo position on.
	WAL string
	// LSN is the target, with recovery_target_inclusive off. It should be where a record begins or ends: PostgreSQL stops before
	// the first record that begins at or after it, so one that it lies in is replayed.
	LSN string
	// Promote ends the recovery at the target; else the server pauses there and answers queries. Only a promoted server's
	// files can be compared after a stop: a paused one's are stale.
	Promote bool
	// Locations are the tablespace directories that the WAL names. They are emptied, and locked until the server's Close, since
	// two servers that replay the same WAL use the same ones.
	Locations []string
}

// RecoverTo starts a stock server that replays WAL up to a target and waits until it is there. Autovacuum and archiving are
// off. ctx bounds the wait. The caller must Close the server.
func RecoverTo(ctx context.Context, r Recovery) (*Server, error) {
	s, err := newServer(ctx, r.Config)
	if err != nil {
		return nil, err
	}
	if err := s.recoverTo(ctx, r); err != nil {
		return nil, errors.Join(fmt.Errorf("recover to %s: %w", r.LSN, err), s.Close())
	}
	return s, nil
}

func (s *Server) recoverTo(ctx context.Context, r Recovery) error {
	s.data = filepath.Join(s.dir, "data")
	if err := s.takeLocations(ctx, r.Locations); err != nil {
		return err
	}
	if err := copyDataDir(r.Base, s.data, false); err != nil {
		return err
	}
	wal, err := filepath.Abs(r.WAL)
	if err != nil {
		return err
	}
	action := "pause"
	if r.Promote {
		action = "promote"
	}
	recovery := map[string]string{
		"restore_command":           fmt.Sprintf(`cp "%s/%%f" "%%p"`, wal),
		"recovery_target_lsn":       r.LSN,
		"recovery_target_inclusive": "off",
		"recovery_target_action":    action,
		"hot_standby":               "on",
	}
	if err := configure(s.data, recovery, "recovery.signal"); err != nil {
		return err
	}
	// What the primary had configured must not act on the copy: its archive, its partners, its checks of its own redo.
	overrides := map[string]string{"archive_mode": "off", "autovacuum": "off", "synchronous_standby_names": "", "primary_conninfo": "",
		"wal_consistency_checking": ""}
	s.cfg.Args = append(arguments(Merge(baseSettings(), overrides, r.Settings)), r.Args...)
	if err := s.adopt(); err != nil {
		return err
	}
	if err := s.account.reach(wal); err != nil {
		return err
	}
	if err := s.StartAgain(ctx); err != nil {
		return err
	}
	if r.Promote {
		return s.WaitTrue(ctx, "select not pg_is_in_recovery()")
	}
	return s.WaitTrue(ctx, "select pg_get_wal_replay_pause_state() = 'paused'")
}

// takeLocations empties tablespace locations and keeps other servers off them until Close.
func (s *Server) takeLocations(ctx context.Context, locations []string) error {
	locations = append([]string(nil), locations...)
	sort.Strings(locations) // in one order, so that two servers never wait for each other
	for _, dir := range locations {
		f, err := os.OpenFile(filepath.Clean(dir)+".lock", os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("tablespace location: %w", err)
		}
		s.locks = append(s.locks, f)
		err = poll(ctx, func() (bool, error) {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			if errors.Is(err, unix.EWOULDBLOCK) {
				return false, nil
			}
			return err == nil, err
		})
		if err != nil {
			return fmt.Errorf("tablespace location %s is in use: %w", dir, err)
		}
		if err := s.account.mkdir(dir); err != nil {
			return fmt.Errorf("tablespace location: %w", err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("tablespace location: %w", err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("tablespace location: %w", err)
			}
		}
	}
	return nil
}
