package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"everpage/deploy/postgres"
)

// Fetch returns the bin directory of a major's server, installing it first when it is absent.
func Fetch(ctx context.Context, major int) (string, error) { return postgres.Fetch(ctx, major) }

// Mode is how a server is asked to stop.
type Mode int

// Smart waits for clients to leave, Fast disconnects them, Immediate ends without a checkpoint.
const (
	Smart Mode = iota
	Fast
	Immediate
)

func (m Mode) signal() syscall.Signal {
	switch m {
	case Smart:
		return syscall.SIGTERM
	case Fast:
		return syscall.SIGINT
	default:
		return syscall.SIGQUIT
	}
}

// Server is one PostgreSQL server and its data directory. Its methods may be called by one goroutine at a time, those
// that only read (SQL, Conn, URI, …) by several while nobody stops or starts it.
type Server struct {
	cfg     Config
	bin     string // of the server's major
	clients string // of DefaultMajor
	dir     string
	data    string
	sockets string
	port    int
	held    *Port // nil where the configuration names the port
	account account
	proc    *process
	temp    bool       // dir is ours to remove
	locks   []*os.File // held until Close
}

// Start makes a new database cluster with superuser postgres and starts its server. ctx bounds the start, not the
// server's life. The caller must Close the server.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s, err := newServer(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.data = filepath.Join(s.dir, "data")
	if err := s.initdb(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.StartAgain(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Init makes a new database cluster like Start without starting its server; StartAgain does that.
func Init(ctx context.Context, cfg Config) (*Server, error) {
	s, err := newServer(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.data = filepath.Join(s.dir, "data")
	if err := s.initdb(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Open starts a server on an existing data directory, which is handed to the server's user. The configuration that it
// holds is left alone: cfg.Settings are given as arguments. The log goes to cfg.Dir. Close leaves data in place.
func Open(ctx context.Context, data string, cfg Config) (*Server, error) {
	s, err := newServer(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.cfg.Args = append(arguments(Merge(baseSettings(), cfg.Settings)), cfg.Args...)
	if s.data, err = filepath.Abs(data); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.adopt(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.StartAgain(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func newServer(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{cfg: cfg.withDefaults(), port: cfg.Port}
	var err error
	if s.bin, err = Fetch(ctx, s.cfg.Major); err != nil {
		return nil, err
	}
	if s.clients, err = Fetch(ctx, DefaultMajor); err != nil {
		return nil, err
	}
	if s.account, err = serverAccount(); err != nil {
		return nil, err
	}
	if s.temp = cfg.Dir == ""; s.temp {
		if s.dir, err = os.MkdirTemp("", "everpage-pg"); err != nil {
			return nil, err
		}
	} else if s.dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	if err := s.account.mkdir(s.dir); err != nil {
		return nil, errors.Join(fmt.Errorf("server directory: %w", err), s.Close())
	}
	// A socket's path may have at most 107 bytes, so it cannot lie under a test's long directory.
	if s.sockets, err = os.MkdirTemp("/tmp", "evp"); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	// A test that runs as another user than the server must reach the socket.
	if err := errors.Join(os.Chmod(s.sockets, 0o755), s.account.own(s.sockets)); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) initdb(ctx context.Context) error {
	if entries, err := os.ReadDir(s.data); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty: use Open for an existing data directory", s.data)
	}
	args := append([]string{"-D", s.data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"}, s.cfg.InitdbArgs...)
	if out, err := s.serverCommand(ctx, filepath.Join(s.bin, "initdb"), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("initdb %s: %w: %s", strings.Join(args, " "), err, out)
	}
	if err := appendFile(filepath.Join(s.data, "postgresql.conf"), "\n"+conf(Merge(baseSettings(), s.cfg.Settings))); err != nil {
		return err
	}
	hba := filepath.Join(s.data, "pg_hba.conf")
	b, err := os.ReadFile(hba)
	if err != nil {
		return err
	}
	lines := append(append([]string(nil), s.cfg.HBA...), string(b))
	return os.WriteFile(hba, []byte(strings.Join(lines, "\n")), 0o600)
}

// adopt makes a data directory that another process wrote one that the server accepts.
func (s *Server) adopt() error {
	if _, err := os.Stat(filepath.Join(s.data, "PG_VERSION")); err != nil {
		return fmt.Errorf("no data directory: %w", err)
	}
	if err := errors.Join(s.account.reach(s.data), s.account.own(s.data), os.Chmod(s.data, 0o700)); err != nil {
		return err
	}
	spaces, err := s.Tablespaces()
	if err != nil {
		return err
	}
	for _, path := range spaces {
		if err := errors.Join(s.account.reach(path), s.account.own(path)); err != nil {
			return err
		}
	}
	return nil
}

// StartAgain starts a stopped or killed server on its data directory and waits until it accepts connections.
func (s *Server) StartAgain(ctx context.Context) error {
	if s.Running() {
		return fmt.Errorf("server on port %d runs already", s.port)
	}
	if s.port == 0 {
		held, err := HoldPort("127.0.0.1")
		if err != nil {
			return err
		}
		s.held, s.port = held, held.Number
	}
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	before, err := log.Seek(0, 2)
	if err != nil {
		return err
	}
	args := []string{"-D", s.data, "-p", strconv.Itoa(s.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=" + s.sockets,
		"-c", "logging_collector=off", "-c", "log_destination=stderr"}
	cmd := s.serverCommand(context.WithoutCancel(ctx), filepath.Join(s.bin, "postgres"), append(args, s.cfg.Args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own keeps a terminal's interrupt, which means Fast to it, away from the server.
	cmd.SysProcAttr.Setpgid = true
	if s.proc, err = spawn(cmd); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	if err := s.waitReady(ctx); err != nil {
		tail := s.logFrom(before)
		return errors.Join(fmt.Errorf("%w; log: %s", err, tail), s.proc.kill9(context.WithoutCancel(ctx)))
	}
	return nil
}

// waitReady waits until connections are accepted: after crash recovery, on a standby from its consistent state on.
func (s *Server) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.ReadyTimeout, fmt.Errorf("not ready after %v", s.cfg.ReadyTimeout))
	defer cancel()
	var last error
	err := poll(ctx, func() (bool, error) {
		if !s.proc.running() {
			return false, fmt.Errorf("server ended: %v", s.proc.err)
		}
		conn, err := pgconn.Connect(ctx, s.ConnString("postgres"))
		if err != nil {
			last = err
			return false, nil
		}
		return true, conn.Close(ctx)
	})
	if err != nil {
		return fmt.Errorf("start server in %s: %w (last connection attempt: %v)", s.data, err, last)
	}
	return nil
}

// Running tells whether the server's process exists.
func (s *Server) Running() bool { return s.proc != nil && s.proc.running() }

// Stop asks the server to stop and waits for its end. Ending otherwise than asked for is an error, with the log's end.
func (s *Server) Stop(ctx context.Context, mode Mode) error {
	if !s.Running() {
		return errors.New("server does not run")
	}
	if err := syscall.Kill(s.proc.pid, mode.signal()); err != nil {
		return fmt.Errorf("signal postmaster %d: %w", s.proc.pid, err)
	}
	if err := s.proc.wait(ctx); err != nil {
		return fmt.Errorf("stop: %w; log: %s", err, s.LogTail())
	}
	if s.proc.err != nil && mode != Immediate {
		return fmt.Errorf("server ended with %w; log: %s", s.proc.err, s.LogTail())
	}
	return nil
}

// Kill9 ends the postmaster and all its children with SIGKILL, as a loss of power would, and waits until they are gone.
func (s *Server) Kill9(ctx context.Context) error {
	if !s.Running() {
		return errors.New("server does not run")
	}
	return s.proc.kill9(ctx)
}

// Restart stops the server fast and starts it again on the same port.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx, Fast); err != nil {
		return err
	}
	return s.StartAgain(ctx)
}

// Close ends the server at once if it still runs, and removes what lies outside its data directory, with a temporary
// directory also that. The server cannot be used afterwards.
func (s *Server) Close() error {
	var errs []error
	if s.Running() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Stop(ctx, Immediate); err != nil {
			errs = append(errs, err, s.proc.kill9(ctx))
		}
	}
	if s.data != "" {
		errs = append(errs, removeSharedMemory(filepath.Join(s.data, "postmaster.pid")))
	}
	if s.sockets != "" {
		errs = append(errs, os.RemoveAll(s.sockets))
	}
	if s.temp {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	for _, f := range s.locks {
		errs = append(errs, f.Close())
	}
	s.locks = nil
	s.held.Release()
	s.held = nil
	return errors.Join(errs...)
}

// Pid returns the postmaster's process id, 0 when none was started.
func (s *Server) Pid() int {
	if s.proc == nil {
		return 0
	}
	return s.proc.pid
}

// Major returns the server's major version.
func (s *Server) Major() int { return s.cfg.Major }

// DataDir returns the data directory, PGDATA.
func (s *Server) DataDir() string { return s.data }

// WALDir returns the directory of the server's WAL segments.
func (s *Server) WALDir() string { return filepath.Join(s.data, "pg_wal") }

// Port returns the TCP port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// SocketDir returns the directory of the server's unix socket.
func (s *Server) SocketDir() string { return s.sockets }

// LogFile returns the path of the server's log.
func (s *Server) LogFile() string { return filepath.Join(s.dir, "postgres.log") }

// LogTail returns the end of the server's log, for an error message.
func (s *Server) LogTail() string { return s.logFrom(0) }

func (s *Server) logFrom(offset int64) string {
	b, err := os.ReadFile(s.LogFile())
	if err != nil {
		return err.Error()
	}
	const limit = 4 << 10
	return string(b[max(min(int(offset), len(b)), len(b)-limit):])
}

// MakeDir makes a directory that the server may write, for a tablespace or an archive.
func (s *Server) MakeDir(dir string) error {
	if err := s.account.mkdir(dir); err != nil {
		return fmt.Errorf("make %s for the server: %w", dir, err)
	}
	return nil
}

// serverCommand prepares a program to run as the server's user.
func (s *Server) serverCommand(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = "/", childEnv("/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.account.credential()}
	return cmd
}

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
