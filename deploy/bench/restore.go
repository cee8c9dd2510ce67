package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"everpage/deploy/pgtest"
	"everpage/deploy/postgres"
	"everpage/wal/pg"
)

// peerRestore is what a restore is held against: pgBackRest's restore and replay, or where that is not to be had a plain base backup and replay.
type peerRestore interface {
	name() string
	backup(ctx context.Context) error
	// restore makes a data directory at data that recovers to a target when it is started.
	restore(ctx context.Context, data string, target pg.LSN) error
}

// fetchBackrest unpacks Debian's pgbackrest into the cache directory, without installing it.
func (b *bench) fetchBackrest(ctx context.Context) (string, error) {
	if path, err := exec.LookPath("pgbackrest"); err == nil {
		return path, nil
	}
	cache, err := postgres.CacheDir(ctx)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "pgbackrest")
	path := filepath.Join(dir, "usr", "bin", "pgbackrest")
	if _, err := os.Stat(path); err == nil {
		return path, check(ctx, path)
	}
	tmp, err := os.MkdirTemp(b.work, "deb")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(tmp, 0o777); err != nil { // apt downloads as its own user
		return "", err
	}
	cmd := exec.CommandContext(ctx, "apt-get", "-q", "download", "pgbackrest")
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get download pgbackrest: %w: %s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download left %d packages: %v", len(debs), err)
	}
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", debs[0], dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpack %s: %w: %s", debs[0], err, out)
	}
	return path, check(ctx, path)
}

// check finds out whether a program starts: its libraries may be missing.
func check(ctx context.Context, path string) error {
	if out, err := exec.CommandContext(ctx, path, "version").CombinedOutput(); err != nil {
		return fmt.Errorf("%s version: %w: %s", path, err, out)
	}
	return nil
}

// asServer makes a command run as the user that servers run as.
func asServer(cmd *exec.Cmd) error {
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/"}
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return errors.Join(err1, err2)
	}
	return errors.New("there is neither a user postgres nor nobody")
}

// nodeSettings are those of the primary that a node follows.
func nodeSettings() map[string]string {
	return pgtest.Merge(walSettings, map[string]string{"checkpoint_timeout": "5min", "max_wal_size": "1GB", "wal_keep_size": "0", "wal_recycle": "on",
		"max_replication_slots": "5"})
}

// primary starts the server that the node follows, with an archive for the peer.
func (b *bench) primary(ctx context.Context, dir, backrest string) (*pgtest.Server, peerRestore, error) {
	cfg := pgtest.Config{Dir: filepath.Join(dir, "server"), Settings: nodeSettings()}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	var rest peerRestore
	if backrest != "" {
		p := &pgBackRest{binary: backrest, dir: filepath.Join(dir, "backrest")}
		p.config = filepath.Join(p.dir, "pgbackrest.conf")
		cfg.Settings = pgtest.Merge(cfg.Settings, map[string]string{"archive_mode": "on", "archive_command": p.command("archive-push", "%p")})
		rest = p
	} else {
		p := &plainBackup{dir: filepath.Join(dir, "plain")}
		cfg.Settings = pgtest.Merge(cfg.Settings, pgtest.ArchiveSettings(filepath.Join(p.dir, "wal")))
		rest = p
	}
	s, err := pgtest.Init(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	err = func() error {
		switch p := rest.(type) {
		case *pgBackRest:
			p.s = s
			if err := p.init(); err != nil {
				return err
			}
		case *plainBackup:
			p.s = s
			if err := errors.Join(s.MakeDir(p.dir), s.MakeDir(filepath.Join(p.dir, "wal"))); err != nil {
				return err
			}
		}
		// The load of the data is no part of what is archived.
		if err := s.StartAgain(ctx); err != nil {
			return err
		}
		if p, ok := rest.(*pgBackRest); ok {
			if err := p.create(ctx); err != nil {
				return err
			}
		}
		progress("node: making a database of scale %d", b.nodeScale)
		_, err := s.Pgbench(ctx, "-i", "-q", "-s", strconv.Itoa(b.nodeScale))
		return err
	}()
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	return s, rest, nil
}

// pgBackRest keeps a repository on the same disk: two processes, lz4, as its guide recommends.
type pgBackRest struct {
	binary, dir, config string
	s                   *pgtest.Server
}

func (p *pgBackRest) name() string { return "pgBackRest restore + replay" }

func (p *pgBackRest) command(args ...string) string {
	return p.binary + " --config=" + p.config + " --stanza=bench " + strings.Join(args, " ")
}

// init writes the configuration. The server must have its port.
func (p *pgBackRest) init() error {
	if err := p.s.MakeDir(p.dir); err != nil {
		return err
	}
	for _, d := range []string{"repo", "log", "lock", "spool"} {
		if err := p.s.MakeDir(filepath.Join(p.dir, d)); err != nil {
			return err
		}
	}
	return nil
}

func (p *pgBackRest) create(ctx context.Context) error {
	conf := fmt.Sprintf(`[global]
repo1-path=%[1]s/repo
repo1-retention-full=2
log-path=%[1]s/log
lock-path=%[1]s/lock
spool-path=%[1]s/spool
log-level-console=warn
log-level-file=off
process-max=2
compress-type=lz4
start-fast=y
[bench]
pg1-path=%[2]s
pg1-port=%[3]d
pg1-socket-path=%[4]s
pg1-user=postgres
`, p.dir, p.s.DataDir(), p.s.Port(), p.s.SocketDir())
	if err := os.WriteFile(p.config, []byte(conf), 0o644); err != nil {
		return err
	}
	return p.run(ctx, "stanza-create")
}

func (p *pgBackRest) run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, p.binary, append([]string{"--config=" + p.config, "--stanza=bench"}, args...)...)
	if err := asServer(cmd); err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgbackrest %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (p *pgBackRest) backup(ctx context.Context) error { return p.run(ctx, "--type=full", "backup") }

func (p *pgBackRest) restore(ctx context.Context, data string, target pg.LSN) error {
	return p.run(ctx, "--pg1-path="+data, "--type=lsn", "--target="+target.String(), "--target-exclusive", "--target-action=promote", "restore")
}

// plainBackup is pg_basebackup, cp and an archive of plain files.
type plainBackup struct {
	dir string
	s   *pgtest.Server
}

func (p *plainBackup) name() string { return "copy of a base backup + replay" }

func (p *plainBackup) backup(ctx context.Context) error {
	return p.s.Basebackup(ctx, filepath.Join(p.dir, "base"))
}

func (p *plainBackup) restore(ctx context.Context, data string, target pg.LSN) error {
	if err := copyDir(ctx, filepath.Join(p.dir, "base")+"/.", data); err != nil {
		return err
	}
	conf := fmt.Sprintf("restore_command = 'cp \"%s/wal/%%f\" \"%%p\"'\nrecovery_target_lsn = '%s'\nrecovery_target_inclusive = off\nrecovery_target_action = promote\n",
		p.dir, target)
	f, err := os.OpenFile(filepath.Join(data, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(conf)
	return errors.Join(err, f.Close(), os.WriteFile(filepath.Join(data, "recovery.signal"), nil, 0o600))
}

// restores measures how long it takes until a stock server at the target answers a query.
func (b *bench) restores(ctx context.Context, n *served, s *pgtest.Server, rest peerRestore, target pg.LSN) error {
	// Everything up to the target must be in the archive; so must what comes after, as recovery reads on until it sees the target passed.
	if err := archived(ctx, s); err != nil {
		return err
	}
	want, err := s.Value(ctx, "postgres", firstSelect)
	if err != nil {
		return err
	}
	var ours, written, theirs []float64
	for i := range b.restoreRuns() {
		settle()
		r, err := b.restored(ctx, want, func(data string) error {
			return n.call(ctx, nil, "restore", data, "--lsn", target.String())
		})
		if err != nil {
			return err
		}
		settle()
		p, err := b.restored(ctx, want, func(data string) error {
			if err := s.MakeDir(data); err != nil {
				return err
			}
			return rest.restore(ctx, data, target)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", rest.name(), err)
		}
		ours, written, theirs = append(ours, r.total), append(written, r.written), append(theirs, p.total)
		progress("restore, run %d: everpage %.1f s (%.1f s of it writing), %s %.1f s (%.1f s writing)", i+1, r.total, r.written, rest.name(), p.total, p.written)
	}
	we, peer := of("restore + start", "s", ours...), of(rest.name(), "s", theirs...)
	ratio := peer.Median / we.Median
	b.report.add("first SELECT after a restore of everything", "", true, ratio,
		fmt.Sprintf("to the end of the load, from the command to the first answer; %.1f s of ours is writing the directory; the ratio is theirs to ours", of("", "", written...).Median), we, peer)
	return nil
}

// restoreRuns is smaller than runs, as a restore writes the whole database.
func (b *bench) restoreRuns() int { return max(1, min(b.runs, 3)) }

// archived switches to a new segment and waits until the archive has the old one.
func archived(ctx context.Context, s *pgtest.Server) error {
	name, err := s.Value(ctx, "postgres", "select pg_walfile_name(pg_switch_wal() - 1)")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("the archive does not get the last segment"))
	defer cancel()
	return s.WaitTrue(ctx, fmt.Sprintf("select coalesce(last_archived_wal >= '%s', false) from pg_stat_archiver", name))
}

// firstSelect is a query that must give the same everywhere.
const firstSelect = "select count(*) || ' ' || coalesce(sum(delta), 0) || ' ' || (select sum(tbalance) from pgbench_tellers) from pgbench_history"

// restoreTime is in seconds from the command on.
type restoreTime struct{ written, total float64 }

// restored makes a data directory, starts a stock server on it and asks it.
func (b *bench) restored(ctx context.Context, want string, restore func(data string) error) (t restoreTime, err error) {
	dir := filepath.Join(b.work, "restored")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return t, err
	}
	data := filepath.Join(dir, "data")
	began := time.Now()
	if err := restore(data); err != nil {
		return t, err
	}
	t.written = time.Since(began).Seconds()
	s, err := pgtest.Open(ctx, data, pgtest.Config{Dir: filepath.Join(dir, "server"), ReadyTimeout: 20 * time.Minute,
		Settings: pgtest.Merge(nodeSettings(), map[string]string{"archive_mode": "off", "autovacuum": "off"})})
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	// A recovering server answers as soon as it is consistent, which is before the target.
	if err := s.WaitTrue(ctx, "select not pg_is_in_recovery()"); err != nil {
		return t, err
	}
	got, err := s.Value(ctx, "postgres", firstSelect)
	if err != nil {
		return t, err
	}
	t.total = time.Since(began).Seconds()
	if got != want {
		return t, fmt.Errorf("the restored server answers %q, the primary %q", got, want)
	}
	return t, nil
}
